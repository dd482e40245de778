"""What the scenarios with Elasticsearch measure and how it is shown."""

from __future__ import annotations

from benchmarks.scenario import MB, Line, Raw, Scenario, Task, memory, values

CATALOGUE = Task("catalogue", "catalogue.prepare")
RETAIL = Task("online-retail", "data.prepare", {"name": "online-retail"})
DEMO = Task("demo", "data.prepare", {"name": "demo"})
NAIVE, HELPER = "one request a row", "parallel_bulk"
PREPARED = "parallel_bulk, actions made beforehand"
STALENESS = 3.0  # seconds  # and a second until the refresh: what others may wait for
UR = "Universal Recommender's way"


def _query(raw: Raw) -> list[Line]:
    task = "questions"

    def line(
        what: str, key: str, target: float | None = None, theirs: str = "", note: str = "", ratio: float | None = None
    ) -> Line:
        peer = values(raw, task, theirs) if theirs else []
        return Line(
            what, "ms", values(raw, task, key), peer=UR if theirs else "", theirs=peer,
            measure="value" if ratio is None else "ratio", target=target if ratio is None else ratio,
            memory=values(raw, task, "service_bytes", 1 / MB) if key.startswith("service") else [],
            peer_memory=values(raw, task, "node_bytes", 1 / MB) if key.startswith("service") else [], note=note,
        )  # fmt: skip

    return [
        line("through the service, p50", "service_p50", 15.0, "peer_service_p50", "memory: service / node"),
        line("through the service, p99", "service_p99", 50.0, "peer_service_p99"),
        line("through the service, p50, against the peer through the same service", "service_p50",
             theirs="peer_service_p50", ratio=1.0, note="both indices of 4 segments at most"),
        line("history and search, both asked directly, p50", "direct_p50", theirs="peer_p50", ratio=1.0),
        line("history and search, both asked directly, p99", "direct_p99", theirs="peer_p99"),
        line("search alone, both asked directly, p50", "search_p50", theirs="peer_search_p50"),
        line("search alone, both asked directly, p99", "search_p99", theirs="peer_search_p99"),
        line("through the service, p50, against the peer without one", "service_p50", theirs="peer_p50"),
    ]  # fmt: skip


def _memory(raw: Raw) -> list[Line]:
    task = "questions"
    bytes_ = values(raw, task, "service_bytes", 1 / MB)
    return [
        Line("one connection, p50", "ms", values(raw, task, "p50"), target=3.0, memory=bytes_),
        Line("one connection, p99", "ms", values(raw, task, "p99")),
        Line("four connections", "requests/s", values(raw, task, "rate"), "higher", target=1_000.0,
             note="server on one core, client on the other; logs JSON lines"),
        Line("four connections, p50", "ms", values(raw, task, "busy_p50")),
        Line("four connections, p99", "ms", values(raw, task, "busy_p99")),
    ]  # fmt: skip


def _stack(raw: Raw) -> list[Line]:
    task = "50 events/s"

    def line(what: str, key: str, target: float | None = None, note: str = "") -> Line:
        return Line(what, "ms", values(raw, task, key), target=target, note=note)

    workers = values(raw, task, "worker_bytes", 1 / MB)
    nodes = values(raw, task, "node_bytes", 1 / MB)
    missed = sum(values(raw, task, "own_not_found") + values(raw, task, "others_not_found"))
    holders = values(raw, task, "median_holders")
    return [
        Line("own event sent to an answer that counts it, p50", "ms", values(raw, task, "own_p50"), target=300.0,
             memory=workers, peer_memory=nodes, note="memory: worker / node"),
        line("own event sent to an answer that counts it, p99", "own_p99"),
        line("event sent until others find the changed row, p50", "others_p50", 2_000.0,
             f"refresh 1 s; rows with a median of {holders[0]:.0f} users" if holders else ""),
        line("event sent until others find the changed row, p99", "others_p99", 5_000.0),
        Line("events not counted or found within 30 s", "events", [missed], target=0.0),
        line("event to Elasticsearch, the last row that it touched, p50", "stored_p50",
             note="upper bound of the histogram's bucket; before the refresh"),
        line("event to Elasticsearch, the last row that it touched, p99", "stored_p99"),
        Line("staleness at worst meanwhile", "s", values(raw, task, "stalest_seconds"),
             note=f"max_staleness is {STALENESS:g} s"),
    ]  # fmt: skip


def _writers(raw: Raw) -> list[Line]:
    rate, naive, helper, prepared = (values(raw, task, "rate") for task in ("ours", NAIVE, HELPER, PREPARED))
    lost = [value for task in raw for value in values(raw, task, "lost")]
    return [
        Line("rows of 50 written, two in each partial update", "rows/s", rate, "higher", NAIVE, naive, "ratio", 3.0,
             memory(raw, "ours"), memory(raw, NAIVE), "the naive one takes turns with nobody: one row a request"),
        Line("the same against the client's helper with 4 threads", "rows/s", rate, "higher", HELPER, helper, "ratio",
             1.0, memory(raw, "ours"), memory(raw, HELPER), "from the same patches"),
        Line("the same against the helper with nothing but sending in its time", "rows/s", rate, "higher", PREPARED,
             prepared, memory=memory(raw, "ours"), peer_memory=memory(raw, PREPARED),
             note="ours encodes the rows within that time"),
        Line("documents that are not as they should be, of ours", "documents", values(raw, "ours", "lost"), target=0.0,
             note=f"peers': {sum(lost) - sum(values(raw, 'ours', 'lost')):.0f}"),
        Line("memory of the node", "MB", values(raw, "ours", "node_bytes", 1 / MB)),
    ]  # fmt: skip


def _saved(raw: Raw) -> list[Line]:
    task = "stream"
    found = {key: values(raw, task, key) for key in
             ("rows_counted", "rows_unchanged", "rows_sent", "documents_put", "documents_coalesced",
              "documents_stored", "events", "seconds")}  # fmt: skip

    def share(part: str, whole: str) -> str:
        return f"{100 * found[part][0] / found[whole][0]:.1f} %" if found[part] and found[whole] else ""

    return [
        Line("events", "events", found["events"]),
        Line("rows counted", "rows", found["rows_counted"]),
        Line("rows not sent, since they had not changed", "rows", found["rows_unchanged"],
             note=f"{share('rows_unchanged', 'rows_counted')} of those counted"),
        Line("documents handed to the writer", "documents", found["documents_put"]),
        Line("documents coalesced while they waited", "documents", found["documents_coalesced"],
             note=f"{share('documents_coalesced', 'documents_put')} of those handed over"),
        Line("documents stored", "documents", found["documents_stored"],
             memory=values(raw, task, "node_bytes", 1 / MB), note="memory of the node"),
        Line("all of it", "s", found["seconds"]),
    ]  # fmt: skip


def _ranking(raw: Raw) -> list[Line]:
    task = "queries"
    asked = values(raw, task, "queries")
    note = f"{values(raw, task, 'hits')[0]:,.0f} hits compared: items, scores, metadata, contributions" if asked else ""
    return [
        Line("queries answered differently", "queries", values(raw, task, "differing"), target=0.0,
             memory=values(raw, task, "node_bytes", 1 / MB), note=note),
        Line("queries asked", "queries", asked, "higher"),
    ]  # fmt: skip


SCENARIOS = [
    Scenario(
        "elastic-query",
        "users with 20 history items in each of 3 indicators ask with a filter on a keyword; 68,000 items, rows of 50;"
        " node, service and client on the same two cores",
        (CATALOGUE, Task("node", "elastic.prepare", cores=2)),
        (Task("questions", "elastic.query", cores=2),),
        _query,
    ),
    Scenario(
        "service-memory",
        "the same questions and data, index in memory, through the embedded service over HTTP",
        (CATALOGUE,),
        (Task("questions", "elastic.memory_service", cores=2),),
        _memory,
    ),
    Scenario(
        "elastic-stack",
        "online-retail at 50 events/s after 100,000 events through Kafka, a worker, a node and the service, all on the"
        " same two cores; refresh 1 s",
        (RETAIL,),
        (Task("50 events/s", "elastic_stack.visible", {"rate": 50.0, "staleness": STALENESS}, cores=2, most_runs=3),),
        _stack,
    ),
    Scenario(
        "elastic-writer",
        "30,000 documents, each changed twice under two indicators; node and writer on the same two cores",
        (),
        (
            Task("ours", "elastic_writers.ours", cores=2),
            Task(NAIVE, "elastic_writers.naive", cores=2, most_runs=3),
            Task(HELPER, "elastic_writers.bulk_helper", {"beforehand": False}, cores=2),
            Task(PREPARED, "elastic_writers.bulk_helper", {"beforehand": True}, cores=2),
        ),
        _writers,
    ),
    Scenario(
        "patches-saved",
        "the demo's stream at full speed into Elasticsearch, rows published after every micro-batch",
        (DEMO,),
        (Task("stream", "elastic_ranking.saved", cores=2, most_runs=1),),
        _saved,
    ),
    Scenario(
        "elastic-ranking",
        "queries of every kind on online-retail's model through Elasticsearch and in memory",
        (RETAIL,),
        (Task("queries", "elastic_ranking.ranking", cores=2, most_runs=1),),
        _ranking,
    ),
]

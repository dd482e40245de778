"""What the Kafka scenarios measure and how it is shown."""

from __future__ import annotations

from statistics import median

from benchmarks.scenario import Line, Raw, Scenario, Task, memory, values

PEER = "one message per event"
RETAIL = Task("online-retail", "data.prepare", {"name": "online-retail"})
DEMO = Task("demo", "data.prepare", {"name": "demo"})
JOURNEY = Task("completejourney", "data.prepare", {"name": "completejourney"})
HALVES = {"sources": 2, "item_partitions": 2}
ALONE, BESIDE = "one engine in memory", "two engines in memory side by side"


def _agent(raw: Raw) -> list[Line]:
    rate, peer = values(raw, "user agent", "rate"), values(raw, PEER, "rate")
    return [
        Line("JSON in, edits out, one core", "events/s", rate, "higher", target=100_000.0,
             memory=memory(raw, "user agent")),
        Line("the same against a Faust agent with one message per event", "events/s", rate, "higher", PEER, peer,
             "ratio", target=8.0),
    ]  # fmt: skip


def _bound(raw: Raw) -> str:
    """What two cores can give at most: all CPU time, the broker's too, spread over them evenly."""
    alone = values(raw, "one worker, longer", "seconds")
    spent, broker = (values(raw, "one worker, longer", key) for key in ("cpu_seconds", "broker_cpu_seconds"))
    slower = median(values(raw, BESIDE, "seconds")) / median(values(raw, ALONE, "seconds"))

    def most(factor: float) -> float:
        return median(a / ((factor * w + b) / 2) for a, w, b in zip(alone, spent, broker, strict=False))

    return (
        f"the broker shares both cores: at most {most(1.0):.2f} times if two workers took no more CPU time than one;"
        f" two engines in memory that share nothing but the machine take {slower:.2f} times as long as one: then"
        f" {most(slower):.2f}"
    )


def _path(raw: Raw) -> list[Line]:
    path = values(raw, "one worker", "rate")
    one, two = values(raw, "one worker, longer", "rate"), values(raw, "two workers, longer", "rate")
    stalest = [values(raw, task, "stalest_seconds") for task in ("one worker", "one worker, longer")]
    return [
        Line("JSON in, patches out, one worker and the broker", "events/s", path, "higher", target=50_000.0,
             memory=memory(raw, "one worker")),
        Line("staleness at worst meanwhile", "s", stalest[0], target=10.0),
        Line("the same on completejourney: 1.5 M purchases of 2,500 households", "events/s", one, "higher",
             memory=memory(raw, "one worker, longer")),
        Line("staleness at worst meanwhile", "s", stalest[1], target=10.0),
        Line("two workers against one there, a core each", "events/s", two, "higher", "one worker", one, "ratio",
             target=1.7, note=_bound(raw)),
    ]  # fmt: skip


def _latency(raw: Raw) -> list[Line]:
    note = "upper bound of the histogram's bucket; of all rows that an event touched"
    return [
        Line("event to patch, 20 events/s, p50", "ms", values(raw, "idle", "p50_ms"), target=50.0, note=note),
        Line("event to patch, 20 events/s, p99", "ms", values(raw, "idle", "p99_ms"), target=250.0, note=note),
        Line("event to patch, 10,000 events/s, p99", "ms", values(raw, "busy", "p99_ms"), target=1000.0, note=note),
    ]


def _restarts(raw: Raw) -> list[Line]:
    task = "ten million"
    return [
        Line("first event after SIGKILL and start", "s", values(raw, task, "killed_seconds"), target=16.0,
             note="10 s beyond a session timeout of 6 s", memory=memory(raw, task)),
        Line("first event after SIGTERM and start", "s", values(raw, task, "stopped_seconds"), target=5.0),
        Line("SIGTERM to the end of the process", "s", values(raw, task, "stopped_end_seconds"), target=10.0),
        Line("resync of the item partition", "s", values(raw, task, "resync_seconds")),
    ]  # fmt: skip


def _wire(raw: Raw) -> list[Line]:
    def line(task: str, size: int) -> Line:
        zstd, ids, edits, counts, priors, whole = (
            values(raw, task, f"{key}_{size}")[0] for key in ("zstd", "ids", "edits", "counts", "priors", "bytes")
        )
        note = f"{zstd:.1f} bytes with zstd; ids are {ids / whole:.0%}; rows: {edits:.2f} edits, {counts:.2f} counts"
        what = f"{task}: edits per interaction, ranges of {size:,}"
        return Line(what, "bytes", [whole], note=f"{note}, {priors:.2f} priors")

    return [line(task, size) for task in raw for size in (2_000, 16_384)]


SCENARIOS = [
    Scenario(
        "kafka-user-agent",
        "online-retail's purchases as JSON through the user agent alone, one core; the broker on the other",
        (RETAIL,),
        (
            Task("user agent", "kafka.user_agent", {"name": "online-retail"}, cores=2),
            Task(PEER, "kafka.one_by_one", {"name": "online-retail", "events": 30_000}, cores=2),
        ),
        _agent,
    ),
    Scenario(
        "kafka-whole-path",
        "online-retail's purchases as JSON to patches, rows never older than 10 s; topics preloaded",
        (RETAIL, JOURNEY),
        (
            Task("one worker", "kafka.whole_path", {"name": "online-retail", "workers": 1} | HALVES, cores=2),
            *(
                Task(
                    f"{words}, longer",
                    "kafka.whole_path",
                    {"name": "completejourney", "workers": workers} | HALVES,
                    cores=2,
                )
                for words, workers in (("one worker", 1), ("two workers", 2))
            ),
            *(
                Task(words, "kafka.side_by_side", {"name": "completejourney", "copies": copies}, cores=2)
                for words, copies in ((ALONE, 1), (BESIDE, 2))
            ),
        ),
        _path,
    ),
    Scenario(
        "kafka-latency",
        "online-retail's purchases at a rate, after 100,000 of them, from record to patch; rows never older than 0.5 s",
        (RETAIL,),
        (
            Task("idle", "kafka.latency", {"name": "online-retail", "rate": 20.0, "seconds": 30.0}, cores=2),
            Task("busy", "kafka.latency", {"name": "online-retail", "rate": 10_000.0, "seconds": 20.0}, cores=2),
        ),
        _latency,
    ),
    Scenario(
        "kafka-restart",
        "a worker whose state holds the interactions of ten million events, one source and one item partition",
        (),
        (Task("ten million", "kafka_restart.restarts", {"events": 10_000_000}, cores=2, most_runs=3),),
        _restarts,
    ),
    Scenario(
        "kafka-wire",
        "edits on the wire per interaction, over all item partitions, and what they are made of",
        (RETAIL, DEMO),
        tuple(
            Task(
                f"{name}, {count} item partition{'s' if count > 1 else ''}",
                "kafka_wire.wire",
                {"name": name, "item_partitions": count},
                most_runs=1,
            )
            for name in ("online-retail", "demo")
            for count in (1, 8)
        ),
        _wire,
    ),
]

"""What the scenarios of rebuilds under live traffic measure and how it is shown."""

from __future__ import annotations

from benchmarks.scenario import MB, Line, Raw, Scenario, Task, values

DEMO = Task("demo", "data.prepare", {"name": "demo"})
AWAY, ALIVE = "no worker", "a live worker"


def _swap(raw: Raw) -> list[Line]:
    found = []
    for task in raw:
        memory, node = values(raw, task, "service_bytes", 1 / MB), values(raw, task, "node_bytes", 1 / MB)
        answers = values(raw, task, "answers")
        note = f"{answers[0]:,.0f} answers in {values(raw, task, 'seconds')[0]:.0f} s" if answers else ""
        found += [
            Line(f"{task}: failed questions", "questions", values(raw, task, "failed"), target=0.0, note=note),
            Line(f"{task}: quiet, p50", "ms", values(raw, task, "quiet_p50"), memory=memory, peer_memory=node,
                 note="memory: service / node"),
            Line(f"{task}: quiet, p99", "ms", values(raw, task, "quiet_p99")),
            Line(f"{task}: during rebuild, load and swap, p50", "ms", values(raw, task, "swap_p50")),
            Line(f"{task}: during rebuild, load and swap, p99", "ms", values(raw, task, "swap_p99")),
            Line(f"{task}: that p99 as a multiple of the quiet p50", "times", values(raw, task, "times_the_median"),
                 target=5.0),
            Line(f"{task}: the slowest answer", "ms", values(raw, task, "swap_max"), target=500.0),
        ]  # fmt: skip
    return found


def _kappa(raw: Raw) -> list[Line]:
    task = "return"
    behind = values(raw, task, "behind")
    return [
        Line("start of the worker to mode kappa", "s", values(raw, task, "kappa_seconds"), target=60.0,
             memory=values(raw, task, "worker_bytes", 1 / MB), peer_memory=values(raw, task, "node_bytes", 1 / MB),
             note=f"{behind[0]:,.0f} events behind; memory: worker / node" if behind else ""),
        Line("start of the worker until every row is exact", "s", values(raw, task, "exact_seconds")),
    ]  # fmt: skip


SCENARIOS = [
    Scenario(
        "swap-queries",
        "questions over two connections while `cco rebuild --log --publish` of the demo's purchases is computed, loaded"
        " and swapped in; broker, node, service, rebuild and client on the same two cores",
        (DEMO,),
        tuple(
            Task(name, "lambda_path.swap_queries", {"alive": name == ALIVE}, cores=2, most_runs=3)
            for name in (AWAY, ALIVE)
        ),
        _swap,
    ),
    Scenario(
        "return-to-kappa",
        "a worker with a state of its own returns, and the demo's last million purchases came meanwhile; to the mode"
        " that `cco status` shows, everything in Elasticsearch",
        (DEMO,),
        (Task("return", "lambda_path.return_to_kappa", cores=2, most_runs=3),),
        _kappa,
    ),
]

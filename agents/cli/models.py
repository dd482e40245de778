"""`cco replay`: a model from events, by the stream; and what it shares with `cco rebuild`."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agents.cli.common import (
    ConfigFile,
    EventFiles,
    JsonFlag,
    Threads,
    UsageProblem,
    peak_memory_bytes,
    print_json,
    progress,
    size_text,
)
from agents.cli.inputs import STANDARD_OUTPUT, Intake, check_outputs, load_config, write_model

if TYPE_CHECKING:
    from agents.engine import Engine
    from agents.replay import ReplaySummary

ModelOut = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="FILE", help="Write the model there (JSON Lines); - is standard output."),
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="Write full doubles counted from the state at the end, not the index's weights."),
]
DeadLetters = Annotated[
    Path | None,
    typer.Option("--dead-letters", metavar="FILE", help="Write every rejected record there, with place and reason."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Rejected records are an error: exit code 2 and no model.")]


def replay(
    events: EventFiles,
    config: ConfigFile = None,
    model: ModelOut = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", "-s", metavar="DIR", help="Keep the state there; go on where it is, if it has begun."),
    ] = None,
    checkpoint_every: Annotated[
        float,
        typer.Option(
            "--checkpoint-every", metavar="SECONDS", min=0.01, max=3600, help="How often --state is written to."
        ),
    ] = 1.0,
    exact: Exact = False,
    item_partitions: Annotated[
        int,
        typer.Option("--item-partitions", min=1, max=256, help="Divide the counting of rows; the result is the same."),
    ] = 1,
    threads: Threads = 1,
    dead_letters: DeadLetters = None,
    strict: Strict = False,
    json: JsonFlag = False,
) -> None:
    """Stream EVENTS through the engine, and write what its patches made of the index.

    With --state, a run that was killed goes on where it was, and new events at the end of the input are added.
    """
    from agents.engine import Engine
    from agents.replay import replay as stream
    from cco.model_file import encode

    check_outputs(model, json, dead_letters, events, config, state)
    if math.isnan(checkpoint_every):  # passes every comparison with the limits
        raise UsageProblem("--checkpoint-every nan: is not a number of seconds")
    settings = load_config(config, state)
    intake = Intake(strict, dead_letters, appending=state is not None)
    begin = intake.ended = time.perf_counter()
    with (
        Engine(settings, item_partitions=item_partitions, threads=threads) as engine,
        progress("streaming", quiet=json) as bar,
    ):
        with intake.taking(bar) as take:
            done = stream(engine, events, state=state, every=checkpoint_every, on_chunk=take)
        intake.conclude(done.resumed, done.rejected - intake.rejected)
        size = 0
        if model is not None:
            bar(1, None, "writing the model")
            rows = engine.exact_rows() if exact else engine.rows()
            size = write_model(model, encode(rows, engine.items, settings))
        figures = _figures(engine, done)
    report = {
        **figures,
        "events_per_second": round(intake.accepted / max(intake.ended - begin, 1e-9)),
        "model_bytes": size,
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    show(report, model, json)


def _figures(engine: Engine, done: ReplaySummary) -> dict[str, Any]:
    """What a replay read, keeps and published."""
    stats = engine.stats()
    figures = {
        "events": done.accepted,
        "rejected": done.rejected,
        "applied": list(done.applied),
        "resumed_records": done.resumed,
        "users": stats["users"],
        "items": stats["items"],
        "users_in_u": stats["members"],
        "retained": stats["retained"],
        "rows_published": stats["fields_published"],
        "rows_counted": stats["rows_counted"],
        "patches": engine.counters.patches,
        "worst_staleness_seconds": round(stats["worst_staleness_seconds"], 3),
    }
    if done.checkpoints is not None:
        figures["state"] = {name: getattr(done.checkpoints, name) for name in _OF_CHECKPOINTS}
    return figures


_OF_CHECKPOINTS = ("commits", "full_cuts", "bytes_written", "longest_pause")

_LABELS = {
    "events": "events accepted",
    "rejected": "records rejected",
    "applied": "applied, by source",
    "resumed_records": "records read before",
    "reading_seconds": "reading",
    "users_in_u": "users in U",
    "rows": "rows of the model",
    "rows_published": "rows published",
    "rows_counted": "rows counted",
    "worst_staleness_seconds": "worst staleness",
    "events_per_second": "events a second",
    "model_bytes": "model",
    "seconds": "time",
    "peak_memory_bytes": "peak memory",
}


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f} s"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(report: dict[str, Any], model: str | None, json: bool) -> None:
    """The summary: JSON, or a line for each number; on stderr where stdout holds the model."""
    if json:
        print_json(report)
        return
    for key, value in report.items():
        if key == "model_bytes":
            text = f"{size_text(value)}, {model}" if model else "not written (--model FILE writes it)"
        elif key.endswith("bytes"):
            text = size_text(value)
        elif key == "offsets":
            text = ", ".join(f"{partition}:{offset}" for partition, offset in value.items()) or "none"
        elif isinstance(value, list):
            text = ", ".join(map(_number, value))
        elif isinstance(value, dict):
            text = ", ".join(f"{name.replace('_', ' ')} {_number(number)}" for name, number in value.items())
        else:
            text = _number(value)
        print(f"{_LABELS.get(key, key):<22}{text}", file=sys.stderr if model == STANDARD_OUTPUT else sys.stdout)

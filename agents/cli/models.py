"""`cco replay`: a model from events, by the stream; and what it shares with `cco rebuild`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
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
    print_figures,
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
            done = stream(
                engine, events, state=state, every=checkpoint_every, on_chunk=take,
                on_drain=lambda done, total: bar(done, total, "publishing what waited"),
            )  # fmt: skip
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
_SHARES = ("same", "live_share")  # of the numbers with a point; the others are seconds


def _text(name: str, value: object) -> str:
    """A value of a report, for people."""
    if value is None or value in ((), [], {}):
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{_label(of)} {_text(of, part)}" for of, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(name, part) for part in value)
    if isinstance(value, float):
        return f"{value:.1%}" if name in _SHARES else f"{value:,.3f} s"
    if isinstance(value, int):
        return size_text(value) if "bytes" in name else f"{value:,}"
    return str(value)


def _label(name: str) -> str:
    return "time" if name == "seconds" else name.replace("_", " ")


def _lines(name: str, value: Any, model: str | None) -> Iterator[tuple[str, str]]:
    """What a value of the report is called, and what it is, for people."""
    label = _LABELS.get(name, name)
    if name == "model_bytes":
        yield label, f"{size_text(value)}, {model}" if model else "not written (--model FILE writes it)"
    elif name == "offsets":
        yield label, ", ".join(f"{partition}:{offset}" for partition, offset in value.items()) or "none"
    elif name == "seeds":
        yield label, f"in {value['share']}"
        for partition, seed in value["partitions"].items():
            yield f"  partition {partition}", _seed(seed)
    else:
        yield label, _text(name, value)


def _seed(told: Mapping[str, Any]) -> str:
    """What became of the seed of a partition; see `agents.state.seeds.write_seeds`."""
    up_to = f"up to offset {told['offset']:,}"
    if not told["written"]:
        return f"{up_to}: not written, for what is there goes as far ({told.get('file', 'gone by now')})"
    return f"{up_to}: {told['users']:,} users, {size_text(told['bytes'])}, {told['file']}"


def show(report: dict[str, Any], model: str | None, json: bool) -> None:
    """The summary: JSON, or a line for each number; on stderr where stdout holds the model."""
    if json:
        print_json(report)
        return
    figures = dict(line for name, value in report.items() for line in _lines(name, value, model))
    print_figures(figures, sys.stderr if model == STANDARD_OUTPUT else sys.stdout)

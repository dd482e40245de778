"""What the commands share: exit codes, output for people and for machines, progress."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol, TextIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

OK, DIFFERENT, USAGE, INTERNAL = 0, 1, 2, 3
WIDE = 140  # columns of tables where the output is no terminal: cut off nothing that a log can hold

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text; no progress bars.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="TOML file. Default: the one that the state was last written with, else one indicator, purchase.",
        show_default=False,
    ),
]
EventFiles = Annotated[
    list[str],
    typer.Argument(metavar="EVENTS...", help="CSV, JSON Lines or Parquet, gzipped or not; - is standard input."),
]
Threads = Annotated[int, typer.Option("--threads", min=1, max=256, help="Threads that count and score rows.")]


class UsageProblem(Exception):
    """Bad usage or bad input, in one line for the person who typed it. Exit code 2."""


class NothingFound(Exception):
    """The question was fine and the answer is empty. Exit code 1."""


def out() -> Console:
    """The console for results."""
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def add_plain_row(table: Table, *cells: str) -> None:
    """A row of data: brackets in it are no markup."""
    table.add_row(*map(Text, cells))


def warn(message: str) -> None:
    """One line on stderr that does not stop anything."""
    print(f"cco: warning: {message}", file=sys.stderr)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document on stdout, in ASCII unless that is UTF-8. NaN and infinity, which JSON lacks, are an error."""
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    print(json.dumps(value, ensure_ascii=not unicode, allow_nan=False))


def print_figures(figures: Mapping[str, str], file: TextIO | None = None) -> None:
    """A line for each, on stdout if not in `file`: what it is, and the figure."""
    for label, text in figures.items():
        print(f"{label:<22}{text}", file=file)


class Bar(Protocol):
    """What a long piece of work reports to: how much of the total is done, and a few words about it."""

    def __call__(self, done: float, total: float | None, words: str = "") -> None: ...


def _silent(done: float, total: float | None, words: str = "") -> None:
    pass


@contextmanager
def progress(title: str, quiet: bool) -> Iterator[Bar]:
    """A progress bar on stderr; a silent one with `quiet` or where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield _silent
        return
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None, words="")

        def bar(done: float, total: float | None, words: str = "") -> None:
            if total is None:  # nobody knows how long this takes: the bar moves to and fro, and the clock goes on
                bars.tasks[0].total = bars.tasks[0].finished_time = None
            bars.update(task, completed=done, total=total, words=words)

        yield bar


def memory_bytes() -> int:
    """Resident memory of this process now, in bytes (0 where the system does not tell)."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    import resource

    return int(fields[1]) * resource.getpagesize()


def peak_memory_bytes() -> int:
    """The most that was resident so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def size_text(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"

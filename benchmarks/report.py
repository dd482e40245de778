"""Results as a table, for a terminal and for a file."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.scenario import Line

HEADINGS = ("what", "ours: median (range)", "peer", "ratio", "target", "reached", "memory, MB", "note")
WIDE = 190


def number(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _range(values: Sequence[float], unit: str) -> str:
    if not values:
        return "-"
    text = f"{number(statistics.median(values))} {unit}"
    return text if len(values) == 1 else f"{text} ({number(min(values))}-{number(max(values))})"


def cells(line: Line) -> tuple[str, ...]:
    """A line of the report, column by column."""
    target = ""
    if line.target is not None:
        if line.measure == "ratio":
            target = f">= {number(line.target)} x"
        else:
            target = f"{'<=' if line.better == 'lower' else '>='} {number(line.target)} {line.unit}"
    memory = "" if not line.memory else number(statistics.median(line.memory))
    if line.peer_memory:
        memory += f" / {number(statistics.median(line.peer_memory))}"
    reached = "" if line.target is None else {True: "yes", False: "NO", None: "not measured"}[line.reached]
    return (
        line.what,
        _range(line.ours, line.unit),
        f"{line.peer}: {_range(line.theirs, line.unit)}" if line.peer else "",
        "" if line.ratio is None else f"{number(line.ratio)} x",
        target,
        reached,
        memory,
        line.note,
    )


def show(documents: Iterable[dict[str, Any]], console: Console) -> None:
    """One table per scenario."""
    for document in documents:
        if "skipped" in document:
            console.print(f"{document['scenario']}: skipped: {document['skipped']}", markup=False)
            continue
        table = Table(title=Text(_title(document), style="bold"), title_justify="left")
        for heading in HEADINGS:
            table.add_column(heading)
        for found in document["lines"]:
            line = cells(Line.from_json(found))
            style = {"NO": "red", "yes": "green"}.get(line[5], "")
            table.add_row(*(Text(cell, style=style if k == 5 else "") for k, cell in enumerate(line)))
        console.print(table)


def markdown(documents: Iterable[dict[str, Any]]) -> str:
    """The same as a document."""
    parts = ["# Figures\n", "Written by `python -m benchmarks`; memory is ours / peer's at the peak, inputs apart.\n"]
    for document in documents:
        parts.append(f"## {document['scenario']}\n")
        if "skipped" in document:
            parts.append(f"Skipped: {document['skipped']}.\n")
            continue
        parts.append(_title(document) + ".\n")
        table = [HEADINGS, ("---",) * len(HEADINGS), *(cells(Line.from_json(line)) for line in document["lines"])]
        parts.append(
            "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table) + "\n"
        )
    return "\n".join(parts)


def _title(document: dict[str, Any]) -> str:
    machine = document["machine"]
    quick = " QUICK: TINY INPUTS, NO FIGURES." if document["quick"] else ""
    return (
        f"{document['scenario']}: {document['about']}.{quick} Runs: {document['runs']}. {machine['cpu']},"
        f" {machine['cores']} cores, Python {machine['python']}, numba {machine['packages'].get('numba', '?')},"
        f" commit {machine['commit'][:10]}, {document['began'][:10]}, load {machine['load_average'][0]:.1f}"
    )

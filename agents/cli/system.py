"""`cco demo` and `cco doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from agents.cli.common import DIFFERENT, JsonFlag, Threads, out, print_json, progress

_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failure": "[red]failure[/]"}


def doctor(json: JsonFlag = False) -> None:
    """Look at Python, packages, processor, JIT cache, disk and ports: would the engine run well here?

    Exit code 1 if something would keep it from running; warnings do not count.
    """
    from agents.doctor import examine

    with progress("looking", quiet=json):
        checks = examine()
    failed = any(check.status == "failure" for check in checks)
    if json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in checks:
            table.add_row(_MARKS[check.status], check.name, escape(check.found))
            if check.advice:
                table.add_row("", "", f"[bold]{escape(check.advice)}[/]")
        out().print(table)
    if failed:
        raise typer.Exit(DIFFERENT)


def demo(
    events: Annotated[
        int | None, typer.Option("--events", min=1000, help="Stop after this many purchases. Default: the whole year.")
    ] = None,
    threads: Threads = 2,
    json: JsonFlag = False,
) -> None:
    """Stream a year of real purchases through the engine, and prove on the spot that stream equals batch."""
    with progress("loading a year of purchases", quiet=json):
        from agents.demo.demo import Demo

        shown = Demo(limit=events, threads=threads, quiet=json)
    report = shown.run()
    if json:
        print_json(report)
    if not report["equal"]:
        raise typer.Exit(DIFFERENT)

"""`python -m benchmarks [SCENARIO...]`: run scenarios, keep the raw results, print the figures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import (
    durable,
    elastic_scenarios,
    ingest,
    kafka_scenarios,
    lambda_scenarios,
    large,
    models,
    queries,
    rebuilds,
    report,
    single_rows,
    sustained,
)
from benchmarks.runner import TaskFailed, run_scenario
from benchmarks.scenario import Scenario

RESULTS = Path(__file__).resolve().parent / "results"
REPORT = "REPORT.md"


def scenarios() -> dict[str, Scenario]:
    """All of them by name, in the order of the report."""
    groups = (
        models, ingest, single_rows, large, sustained, queries, durable, kafka_scenarios, elastic_scenarios,
        lambda_scenarios, rebuilds,
    )  # fmt: skip
    return {scenario.name: scenario for group in groups for scenario in group.SCENARIOS}


def main(arguments: list[str] | None = None) -> int:
    """0: everything was measured, reached or not; 1: a task failed; 2: bad usage."""
    known = scenarios()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Figures beside their peers'.")
    parser.add_argument("scenario", nargs="*", help="which ones (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs (default: 5)")
    parser.add_argument("--out", type=Path, help=f"folder for raw results (default: {RESULTS.name} in this package)")
    parser.add_argument("--quick", action="store_true", help="tiny inputs, to see that it works; kept only with --out")
    parser.add_argument("--list", action="store_true", help="name the scenarios")
    parser.add_argument("--report", action="store_true", help="run nothing, show what is in the folder")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.scenario if name not in known]
    if unknown or options.runs < 1:
        parser.error(f"no scenario {unknown[0]!r}; there are: {', '.join(known)}" if unknown else "--runs is 1 or more")
    if options.list:
        for scenario in known.values():
            print(f"{scenario.name:24}{scenario.about}")
        return 0
    folder: Path | None = options.out or (None if options.quick else RESULTS)
    chosen = [known[name] for name in options.scenario] or list(known.values())
    console = Console(width=None if sys.stdout.isatty() else report.WIDE)
    if options.report:
        documents = _kept(folder or RESULTS, [scenario.name for scenario in chosen])
        report.show(documents, console)
        return 0
    return _run(chosen, options.runs, options.quick, folder, console, list(known))


def _run(
    chosen: list[Scenario], runs: int, quick: bool, folder: Path | None, console: Console, names: list[str]
) -> int:
    documents, failed = [], False
    for scenario in chosen:
        try:
            document = run_scenario(scenario, runs, quick, lambda text: print(text, file=sys.stderr, flush=True))
        except TaskFailed as error:
            print(f"{scenario.name}: {error}", file=sys.stderr)
            failed = True
            continue
        documents.append(document)
        report.show([document], console)
        if folder is not None and "skipped" not in document:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{scenario.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    if folder is not None and documents:
        (folder / REPORT).write_text(report.markdown(_kept(folder, names)))
        print(f"raw results and {REPORT} are in {folder}", file=sys.stderr)
    return int(failed)


def _kept(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    paths = [folder / f"{name}.json" for name in names]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


if __name__ == "__main__":
    sys.exit(main())

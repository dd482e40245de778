"""`cco inspect` and `cco compare`: looking into models and states."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from agents.cli.common import (
    DIFFERENT,
    ConfigFile,
    JsonFlag,
    UsageProblem,
    add_plain_row,
    out,
    print_json,
    progress,
    size_text,
)
from agents.cli.inputs import load_config
from cco.model_file import Decoded, ModelFileError, Row, decode, difference

FirstModel = Annotated[Path, typer.Argument(metavar="FIRST", exists=True, dir_okay=False, help="A model file.")]
SecondModel = Annotated[Path, typer.Argument(metavar="SECOND", exists=True, dir_okay=False, help="Another one.")]


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    bytes: int
    sha256: str


def _fingerprint(path: Path) -> _File:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return _File(str(path), path.stat().st_size, digest.hexdigest())


def read_model(path: Path) -> Decoded:
    """The rows of a model file. Raises UsageProblem, naming file and line, where it is none."""
    with path.open("rb") as file:
        try:
            return decode(file)
        except ModelFileError as error:
            raise UsageProblem(f"{path}: {error}") from None


def compare(first: FirstModel, second: SecondModel, json: JsonFlag = False) -> None:
    """Compare two model files. Exit code 0 if they are equal, byte for byte, else 1 with the first differences."""
    files = [_fingerprint(first), _fingerprint(second)]
    equal = files[0].sha256 == files[1].sha256
    differences: list[str] = []
    if not equal:
        with progress("comparing", quiet=json):
            differences = difference(read_model(first), read_model(second))
        if not differences:
            differences = ["the same rows, written in different bytes: not both files were written by `cco`"]
    if json:
        print_json({"equal": equal, "differences": differences, "files": [asdict(file) for file in files]})
    elif equal:
        print(f"equal: {size_text(files[0].bytes)}, sha256 {files[0].sha256}")
    else:
        print("\n".join(differences))
    if not equal:
        raise typer.Exit(DIFFERENT)


def _summary(rows: Decoded) -> dict[str, Any]:
    """Counts of a model, by indicator and prior."""
    indicators: dict[str, dict[str, int]] = {}
    priors: dict[str, int] = {}
    for row in rows.values():
        for name, entries in row.indicators.items():
            of = indicators.setdefault(name, {"rows": 0, "correlators": 0})
            of["rows"] += 1
            of["correlators"] += len(entries)
        for name in row.priors:
            priors[name] = priors.get(name, 0) + 1
    return {
        "items": len(rows),
        "indicators": dict(sorted(indicators.items())),
        "priors": dict(sorted(priors.items())),
    }


def _weight(row: Row) -> float:
    return sum(weight for entries in row.indicators.values() for _, weight in entries)


def _heaviest(rows: Decoded, num: int) -> list[dict[str, Any]]:
    """The rows with the largest sum of weights, each with its strongest correlators."""
    found = []
    for row in heapq.nlargest(num, rows.values(), key=_weight):
        correlators = [(name, *entry) for name, entries in row.indicators.items() for entry in entries]
        strongest = heapq.nlargest(3, correlators, key=lambda entry: entry[2])
        found.append(
            {
                "item": row.item,
                "weight": _weight(row),
                "correlators": len(correlators),
                "strongest": [{"indicator": i, "item": j, "weight": w} for i, j, w in strongest],
            }
        )
    return found


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", exists=True, help="A model file or a state directory.")],
    config: ConfigFile = None,
    num: Annotated[int, typer.Option("--num", "-n", min=0, max=1000, help="How many of the heaviest rows.")] = 5,
    json: JsonFlag = False,
) -> None:
    """Show what is in a model file or in a state directory: sizes, counts, heaviest rows."""
    report = _state_report(path, config, num, json) if path.is_dir() else _model_report(path, num, json)
    if json:
        print_json(report)
        return
    heaviest = report.pop("heaviest")
    _print_tree(report)
    if heaviest:
        table = Table(box=None, pad_edge=False, title="heaviest rows", title_justify="left")
        for name in heaviest[0]:
            table.add_column(name.replace("_", " "), justify="right" if name not in ("item", "strongest") else "left")
        for row in heaviest:
            add_plain_row(table, *map(_cell, row.values()))
        out().print(table)


def _model_report(path: Path, num: int, quiet: bool) -> dict[str, Any]:
    with progress("reading", quiet):
        rows = read_model(path)
    return {**asdict(_fingerprint(path)), **_summary(rows), "heaviest": _heaviest(rows, num)}


def _state_report(path: Path, config: Path | None, num: int, quiet: bool) -> dict[str, Any]:
    from agents.engine import Engine

    with progress("loading", quiet):
        engine = Engine.load(path, load_config(config, path))
    with engine:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        heaviest = [{"item": engine.items.name(item), "users": users} for item, users in engine.pipeline.heaviest(num)]
        stats = engine.stats()
        kept = {name: stats[name] for name in ("position", "users", "members", "items", "retained", "bytes")}
        return {"path": str(path), "bytes_on_disk": size, **kept, "heaviest": heaviest}


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{c['item']} ({c['indicator']} {c['weight']:.1f})" for c in value)
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _print_tree(report: Mapping[str, Any], indent: str = "") -> None:
    for key, value in report.items():
        label = f"{indent}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            print(label)
            _print_tree(value, indent + "  ")
        elif key == "bytes" or key.endswith("bytes_on_disk"):
            print(f"{label:<24}{size_text(value)}")
        else:
            print(f"{label:<24}{_cell(value) if not isinstance(value, list) else ', '.join(map(str, value))}")

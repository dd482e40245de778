"""`cco status`: the whole system on one screen."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from agents.cli.common import DIFFERENT, JsonFlag, add_plain_row, out, print_json, size_text
from agents.cli.config import Brokers, SettingsFile, TopicPrefix
from agents.cli.index import IndexPrefix, Urls

if TYPE_CHECKING:
    from agents.health.status import Status
    from model_sync.elastic_versions import Version


def status(
    file: SettingsFile = None,
    brokers: Brokers = None,
    topic_prefix: TopicPrefix = None,
    urls: Urls = None,
    index_prefix: IndexPrefix = None,
    json: JsonFlag = False,
) -> None:
    """Show mode and why, what to do, workers, lag, staleness, indices, last rebuild. Exit code 1 unless mode is kappa.

    kappa: what is published follows the log. catching_up: it will, by itself. lambda: questions are answered from what
    was published last, and a rebuild makes that newer.
    """
    from agents.health.status import as_document, look
    from agents.settings import load_settings

    config, settings = load_settings(
        file,
        {"brokers": brokers, "topic_prefix": topic_prefix, "elasticsearch_urls": urls,
         "elasticsearch_index_prefix": index_prefix},
    )  # fmt: skip
    found = look(config, settings)
    if json:
        print_json(as_document(found))
    else:
        _print(found)
    if found.mode != "kappa":
        raise typer.Exit(DIFFERENT)


def _line(label: str, text: str) -> None:
    print(f"{label:<14}{text}")


def _lines(label: str, texts: list[str]) -> None:
    for k, text in enumerate(texts):
        _line("" if k else label, text)


def _print(found: Status) -> None:
    _line("mode", found.mode)
    _lines("why", found.why)
    _lines("what to do", found.what_to_do)
    _line("model age", "not known" if found.model_age is None else _age(found.model_age))
    _lines("workers", [_worker(of) for of in found.workers] or ["none has told of itself"])
    _lines("indices", [_index(of) for of in found.indices] or ["none: `cco index create` makes them"])
    _lines("other indices", [_version(of) for of in found.versions if of.role != "live"])
    _line("last rebuild", "none is published" if found.last_rebuild is None else _rebuild(found.last_rebuild))
    print()
    table = Table(box=None, pad_edge=False)
    table.add_column("partition")
    table.add_column("worker")
    for name in ("told", "position", "log end", "lag", "rows due", "staleness"):
        table.add_column(name, justify="right")
    for of in found.partitions:
        ages = ("-" if age is None else _age(age) for age in (of.told, of.staleness))
        numbers = ["-" if n is None else f"{n:,}" for n in (of.position, of.log_end, of.lag, of.due)]
        told, staleness = ages
        add_plain_row(table, of.name, of.worker or "-", told, *numbers, staleness)
    out().print(table)


def _worker(of: dict[str, Any]) -> str:
    seen = "" if of["runs"] else f", not heard of for {_age(of['told'])}"
    return f"{of['worker']}: {of['mode']}{seen}, process {of['process']} on {of['host']}, {of['monitor']}"


def _index(of: Any) -> str:
    return f"{of.alias} -> {of.index}: {of.documents:,} documents, {size_text(of.bytes)}, {of.health}"


def _version(of: Version) -> str:
    heard = f", last heard of {_age(max(0.0, of.silent(time.time())))} ago" if of.role == "loading" else ""
    return f"{of.name}: {of.role}, {of.documents:,} documents{heard}"


def _rebuild(of: Version) -> str:
    begun = of.moment("started")
    when = "" if begun is None else f"begun {datetime.fromtimestamp(begun, UTC):%Y-%m-%d %H:%M:%S} UTC"
    offsets = ", ".join(f"{partition}:{offset}" for partition, offset in of.offsets.items())
    host = f"on {of.rebuild['host']}" if "host" in of.rebuild else ""
    return ", ".join(part for part in (of.name, when, host, f"up to {offsets}" if offsets else "") if part)


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"

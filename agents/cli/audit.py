"""`cco audit`: is what is published, and what workers keep, what the log says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agents.cli.common import DIFFERENT, JsonFlag, Threads, print_json, progress
from agents.cli.config import Brokers, SettingsFile, TopicPrefix
from agents.cli.index import IndexPrefix, Urls

if TYPE_CHECKING:
    from agents.audit.audit import Audit
    from agents.audit.states import StateCheck

SHOWN = 20  # differences that are named; --json names all


def audit(
    file: SettingsFile = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write anew what differs, and have workers publish everything once more.")
    ] = False,
    state: Annotated[
        list[Path] | None,
        typer.Option(
            "--state", metavar="DIR", help="Also the states that a worker which has ended left there. Repeatable.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait", metavar="SECONDS", min=0, max=86_400, show_default=False,
            help="How long what differs may take to become right. Default: max_staleness, and 10 s.",
        ),
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(
            "--archive",
            metavar="URL",
            help="What `cco archive run` has archived is read from there, the rest from the log.",
            show_default=False,
        ),
    ] = None,
    brokers: Brokers = None,
    topic_prefix: TopicPrefix = None,
    urls: Urls = None,
    index_prefix: IndexPrefix = None,
    threads: Threads = 1,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Compare the indices, the shared copies and the log, document by document. Exit code 1 if something differs.

    Rows, metadata and histories are computed in batch from the log, and must be what is published, byte for byte.
    Events may go on meanwhile. States are compared that worker.share or --state leads to.
    """
    from agents.archive.archive import Archive
    from agents.audit.audit import Auditor
    from agents.elastic import elastic_options
    from agents.settings import load_settings
    from model_sync.elastic_client import elastic_errors, names, sync_client

    config, settings = load_settings(
        file,
        {"brokers": brokers, "topic_prefix": topic_prefix, "elasticsearch_urls": urls,
         "elasticsearch_index_prefix": index_prefix},
    )  # fmt: skip
    options = elastic_options(settings)
    patience = config.max_staleness + 10 if wait is None else wait
    with (
        progress("auditing", quiet=json) as bar,
        elastic_errors(options, "auditing the indices"),
        sync_client(options) as client,
    ):
        auditor = Auditor(
            config,
            settings,
            client,
            names(options),
            archive=None if archive is None else Archive(archive),
            threads=threads,
            tell=lambda text: bar(0, None, text),
        )
        found = auditor.run(patience, repair=repair, folders=state or ())
    if json:
        print_json(_document(found))
    else:
        _print(found, repair)
    if not found.ok:
        raise typer.Exit(DIFFERENT)


def _document(found: Audit) -> dict[str, object]:
    from dataclasses import asdict

    return {"ok": found.ok, **asdict(found)}


def _print(found: Audit, repair: bool) -> None:
    kinds = {kind: len({d.key for d in found.differences if d.kind == kind}) for kind in ("rows", "metadata", "users")}
    offsets = ", ".join(f"{name}:{end}" for name, end in found.offsets.items())
    print(f"{'rebuild':<10}{found.events:,} events, up to {offsets}")
    print(
        f"{'items':<10}{found.items:,} documents; rows of {kinds['rows']:,} differ, metadata of {kinds['metadata']:,}"
    )
    print(f"{'users':<10}{found.users:,} documents; {kinds['users']:,} differ")
    for check in found.states:
        print(f"{'state':<10}{_state(check, found)}")
    for note in found.notes:
        print(f"{'note':<10}{note}")
    if found.moving:
        print(f"{'moving':<10}{found.moving:,} documents differed and were being written: the stream was at them")
    if found.repaired or found.left:
        print(f"{'repaired':<10}{found.repaired:,} documents written, {found.left:,} that others wrote meanwhile")
    for difference in found.differences[:SHOWN]:
        print(difference)
    if len(found.differences) > SHOWN:
        print(f"and {len(found.differences) - SHOWN:,} more (--json names all)")
    if found.ok:
        print("everything is as the log says" if not found.notes else "all that was compared is as the log says")
    elif any(difference.kind == "state" for difference in found.differences):
        print("a state that differs: stop its worker and remove it and its shared copies, or use a seed")
    elif not repair:
        print("`cco audit --repair` mends the index")


def _state(check: StateCheck, found: Audit) -> str:
    if check.problem is not None:
        return check.problem
    differ = sum(d.kind == "state" and d.text.startswith(f"{check.where}, ") for d in found.differences)
    return f"{check.where} at offset {check.offset}: {check.users:,} users, {differ:,} differ"

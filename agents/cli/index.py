"""`cco index`: making, checking and looking into the indices that workers write and the query service asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from agents.cli.common import DIFFERENT, JsonFlag, NothingFound, add_plain_row, out, print_json, size_text
from agents.cli.config import SettingsFile

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

    from cco.config import Config
    from model_sync.elastic_admin import IndexDescription
    from model_sync.elastic_client import IndexNames
    from model_sync.elastic_mapping import Difference

app = typer.Typer(
    help="The indices in Elasticsearch: make them, check them, look into them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Urls = Annotated[
    str | None,
    typer.Option("--elasticsearch-urls", metavar="URL,...", help="Elasticsearch. Default: as `cco config` prints."),
]
IndexPrefix = Annotated[
    str | None,
    typer.Option(
        "--elasticsearch-index-prefix",
        metavar="TEXT",
        help="What names of indices begin with. Default: as `cco config` prints.",
    ),
]


@app.command("create")
def create(
    file: SettingsFile = None, urls: Urls = None, index_prefix: IndexPrefix = None, json: JsonFlag = False
) -> None:
    """Make the indices that are missing, and add what is new in the configuration. Exit code 1 if one does not fit."""
    from model_sync import elastic_admin

    with _connected(file, urls, index_prefix, "making the indices") as (client, config, names, _):
        done = elastic_admin.create(client, config, names)
    if json:
        print_json({"ok": not done.problems, "made": done.made, "problems": _dictionaries(done.problems)})
    else:
        print("\n".join([*(f"made {line}" for line in done.made), *map(str, done.problems)]) or "all indices are there")
    if done.problems:
        raise typer.Exit(DIFFERENT)


@app.command("check")
def check(
    file: SettingsFile = None, urls: Urls = None, index_prefix: IndexPrefix = None, json: JsonFlag = False
) -> None:
    """Name every difference between how the indices must be and how they are. Exit code 1 if there is one.

    Where Kafka answers, also that an index is of another log: topics were made anew, or have other partitions.
    """
    from model_sync import elastic_admin

    with _connected(file, urls, index_prefix, "checking the indices") as (client, config, names, _):
        problems = elastic_admin.check(client, config, names)
        of_log, unknown = _log_differences(file, elastic_admin.describe(client, names), names)
        problems += of_log
    if json:
        print_json({"ok": not problems, "problems": _dictionaries(problems), "log": unknown or "compared"})
    else:
        print("\n".join(map(str, problems)) or "the indices are as they must be")
        if unknown is not None:
            print(f"not compared with the log: {unknown}")
    if problems:
        raise typer.Exit(DIFFERENT)


@app.command("describe")
def describe(
    file: SettingsFile = None, urls: Urls = None, index_prefix: IndexPrefix = None, json: JsonFlag = False
) -> None:
    """Show the indices: alias, documents, size, format, indicators and health. Exit code 1 if there are none."""
    from model_sync import elastic_admin

    with _connected(file, urls, index_prefix, "looking at the indices") as (client, _, names, where):
        found = elastic_admin.describe(client, names)
    missing = [alias for alias in names if alias not in {each.alias for each in found}]
    if json:
        from dataclasses import asdict

        print_json({"indices": [asdict(each) for each in found], "missing": missing})
    else:
        _print(found, missing)
    if not found:
        raise NothingFound(f"Elasticsearch at {where} has none of the indices: `cco index create` makes them")


@app.command("rollback")
def rollback(
    file: SettingsFile = None, urls: Urls = None, index_prefix: IndexPrefix = None, json: JsonFlag = False
) -> None:
    """Serve the index of items that was served before the last swap, at once. Once more takes it back.

    Agents that are alive bring it up to date: it is for a rebuild that went wrong while they are not.
    """
    from model_sync import elastic_versions

    with _connected(file, urls, index_prefix, "going back to the previous index") as (client, config, names, _):
        before, after = elastic_versions.rollback(client, config, names)
    if json:
        print_json({"before": before, "now": after})
    else:
        print(f"{after} is served as {names.items}; {before} is kept")


@contextmanager
def _connected(
    file: Any, urls: str | None, index_prefix: str | None, doing: str
) -> Iterator[tuple[Elasticsearch, Config, IndexNames, str]]:
    """A client, the configuration, the aliases and where all that is."""
    from agents.elastic import elastic_options
    from agents.settings import load_settings
    from model_sync.elastic_client import elastic_errors, names, sync_client

    config, settings = load_settings(file, {"elasticsearch_urls": urls, "elasticsearch_index_prefix": index_prefix})
    options = elastic_options(settings)
    with elastic_errors(options, doing), sync_client(options) as client:
        yield client, config, names(options), ", ".join(options.urls)


def _log_differences(
    file: Any, found: list[IndexDescription], names: IndexNames
) -> tuple[list[Difference], str | None]:
    """What says that indices are of another log, and why that is not known."""
    signed = [each for each in found if each.log is not None]
    if not signed:
        return [], None  # nobody has written them yet
    try:
        from agents.kafka.logs import log_differences, look_at_logs, signature
    except ImportError:
        return [], "that takes the extra kafka: pip install 'streaming-cco[kafka]'"
    import asyncio

    from agents.kafka.client import KafkaProblem
    from agents.settings import load_settings

    try:
        logs = asyncio.run(look_at_logs(load_settings(file, {})[1]))
    except KafkaProblem as error:
        return [], str(error)
    return [
        difference
        for each in signed
        for difference in log_differences(
            each.index, each.log, signature(logs, "items" if each.alias == names.items else "users")
        )
    ], None


def _dictionaries(problems: list[Difference]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [{**asdict(each), "text": str(each)} for each in problems]


def _print(found: list[IndexDescription], missing: list[str]) -> None:
    for alias in missing:
        print(f"{alias}: is missing")
    if not found:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("alias", "index"):
        table.add_column(name)
    for name in ("documents", "size", "format"):
        table.add_column(name, justify="right")
    for name in ("health", "indicators"):
        table.add_column(name)
    for each in found:
        number = "none" if each.format is None else str(each.format)
        cells = (each.alias, each.index, f"{each.documents:,}", size_text(each.bytes), number, each.health)
        add_plain_row(table, *cells, ", ".join(each.indicators))
    out().print(table)

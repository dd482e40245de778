"""`cco topics`: making, checking and looking into the topics that workers use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from agents.cli.common import DIFFERENT, JsonFlag, NothingFound, UsageProblem, add_plain_row, out, print_json, warn
from agents.cli.config import Brokers, SettingsFile, TopicPrefix

if TYPE_CHECKING:
    from agents.kafka.topics import TopicFound
    from agents.settings import Settings
    from cco.config import Config

app = typer.Typer(
    help="The topics that workers use: make them, check them, look into them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ItemPartitions = Annotated[
    int | None,
    typer.Option(
        "--item-partitions", help="Partitions of the topic edits. Default: as `cco config`.", show_default=False
    ),
]
Patches = Annotated[
    str | None,
    typer.Option(
        "--patches", help='"topic": there is a topic of patches, too. Default: as `cco config`.', show_default=False
    ),
]
RetentionDays = Annotated[
    int | None,
    typer.Option(
        "--retention-days",
        min=1,
        max=100_000,
        help="How long interactions are kept. Default: for ever, so that states can always be made again from them.",
        show_default=False,
    ),
]


@app.command("create")
def create(
    file: SettingsFile = None,
    brokers: Brokers = None,
    prefix: TopicPrefix = None,
    item_partitions: ItemPartitions = None,
    patches: Patches = None,
    retention_days: RetentionDays = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            min=1,
            max=100,
            help="Copies of each new partition. Default: 3, or as many as there are brokers.",
            show_default=False,
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Make the topics that are missing, and check those that are there. Exit code 1 if one of them does not fit."""
    import asyncio

    from agents.kafka.topics import create_topics

    config, settings = _load(file, brokers, prefix, item_partitions, patches)
    retention = _seconds(retention_days)
    done = asyncio.run(create_topics(config, settings, retention=retention, replicas=replicas))
    if json:
        print_json({"ok": not done.problems, "created": done.topics, "problems": done.problems})
    else:
        print("\n".join([*(f"{name}: created" for name in done.topics), *done.problems]) or "all topics are there")
    if done.problems:
        raise typer.Exit(DIFFERENT)


@app.command("check")
def check(
    file: SettingsFile = None,
    brokers: Brokers = None,
    prefix: TopicPrefix = None,
    item_partitions: ItemPartitions = None,
    patches: Patches = None,
    retention_days: RetentionDays = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="A worker's states: name those that do not fit, too. Default: as `cco config`, if it is there.",
            show_default=False,
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Name every difference between how the topics must be and how they are. Exit code 1 if there is one.

    So is each state in a worker's directory that does not fit, with what to do, unless the worker is running.
    """
    import asyncio

    from agents.kafka.topics import check_topics

    config, settings = _load(file, brokers, prefix, item_partitions, patches, state)
    if state is not None and not state.is_dir():
        raise UsageProblem(f"{state}: there is no such directory")
    problems = asyncio.run(check_topics(config, settings, retention=_seconds(retention_days)))
    states = _states(config, settings)
    problems += [problem for problem in states.values() if problem is not None]
    if json:
        print_json({"ok": not problems, "problems": problems, "states": len(states)})
    else:
        fit = f", and {len(states)} states fit them" if states else ""
        print("\n".join(problems) or f"the topics are as they must be{fit}")
    if problems:
        raise typer.Exit(DIFFERENT)


def _states(config: Config, settings: Settings) -> dict[Path, str | None]:
    """The states of the worker's directory, each with why it does not fit; none where they cannot be looked at."""
    if not settings.state.is_dir():
        return {}
    from agents.state.errors import StateInUse
    from agents.state.fit import look_at_states

    try:
        return look_at_states(config, settings)
    except StateInUse as error:
        warn(str(error))
        return {}


@app.command("describe")
def describe(
    file: SettingsFile = None,
    brokers: Brokers = None,
    prefix: TopicPrefix = None,
    item_partitions: ItemPartitions = None,
    patches: Patches = None,
    json: JsonFlag = False,
) -> None:
    """Show the topics: settings, and for each partition its leader, its first offset and the one after its last."""
    import asyncio

    from agents.kafka.topics import describe_topics, topic_specs

    config, settings = _load(file, brokers, prefix, item_partitions, patches)
    found = asyncio.run(describe_topics(config, settings))
    there = {topic.name for topic in found}
    missing = [spec.name for spec in topic_specs(config, settings) if spec.name not in there]
    if json:
        print_json(_document(found, missing))
    else:
        _print(found, missing)
    if not found:
        raise NothingFound(f"Kafka at {settings.brokers} has none of the topics: `cco topics create` makes them")


def _load(
    file: Any,
    brokers: str | None,
    prefix: str | None,
    item_partitions: int | None,
    patches: str | None,
    state: Path | None = None,
) -> tuple[Config, Settings]:
    from agents.settings import load_settings

    flags = {"brokers": brokers, "topic_prefix": prefix, "item_partitions": item_partitions, "patches": patches}
    return load_settings(file, {**flags, "state": state})


def _seconds(days: int | None) -> float | None:
    from agents.kafka.topics import DAY

    return None if days is None else float(days * DAY)


def _document(found: list[TopicFound], missing: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    return {"topics": [asdict(topic) for topic in found], "missing": missing}


def _print(found: list[TopicFound], missing: list[str]) -> None:
    for topic in found:
        print(f"{topic.name}: {', '.join(f'{key}={value}' for key, value in topic.settings.items())}")
    for name in missing:
        print(f"{name}: is missing")
    if not found:
        return
    print()
    table = Table(box=None, pad_edge=False)
    table.add_column("topic")
    for name in ("partition", "leader", "replicas", "begin", "end"):
        table.add_column(name, justify="right")
    for topic in found:
        for part in topic.partitions:
            numbers = (part.partition, part.leader, part.replicas, part.begin, part.end)
            add_plain_row(table, topic.name, *("none" if number is None else f"{number:,}" for number in numbers))
    out().print(table)

"""`cco items`: what shops know of their items, from files to Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agents.cli.common import JsonFlag, UsageProblem, print_figures, print_json, progress
from agents.cli.config import Brokers, SettingsFile, TopicPrefix
from agents.cli.inputs import Intake, check_outputs
from agents.cli.models import DeadLetters

if TYPE_CHECKING:
    from agents.kafka.producing import Produced
    from agents.settings import Settings
    from cco.config import Config
    from cco.event_data import EventBatch, ItemChange

app = typer.Typer(
    help="Metadata of items: send it to Kafka, for workers to write it into Elasticsearch.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("load")
def load(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILES...", help="CSV, JSON Lines or Parquet, gzipped or not; - is standard input."),
    ],
    config: SettingsFile = None,
    brokers: Brokers = None,
    topic_prefix: TopicPrefix = None,
    dead_letters: DeadLetters = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Rejected records are an error: exit code 2, with the others sent.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Send the properties of items to the topic `items`, each record as a $set: properties not named stay.

    The item's id is in `item` or `item_id`; values of CSV are text, but for the properties that the table
    [items.types] of the configuration says are numbers (float) or booleans. Empty values are left out.
    """
    from agents.files.reading import read_item_changes
    from agents.settings import load_settings

    check_outputs(None, json, dead_letters, files, config)
    model, settings = load_settings(config, {"brokers": brokers, "topic_prefix": topic_prefix})
    intake = Intake(strict, dead_letters, records="items", hint="does each record name its item?")
    begin = time.perf_counter()
    with progress("sending", quiet=json) as bar, intake.taking(bar) as take:

        def changes() -> Iterator[Sequence[ItemChange]]:
            for chunk in read_item_changes(files, model.items.types):
                yield chunk.item_changes
                take(chunk)

        done = _send(settings, model, changes())
    intake.conclude()
    _show(done, intake.rejected, time.perf_counter() - begin, settings, json)


@app.command("delete")
def delete(
    items: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of items.")],
    config: SettingsFile = None,
    brokers: Brokers = None,
    topic_prefix: TopicPrefix = None,
    json: JsonFlag = False,
) -> None:
    """Delete items: they are recommended no more, until their properties are set again. What users did stays."""
    from agents.settings import load_settings
    from cco.event_data import ItemChange
    from model_sync.metadata import change_problem

    begin = time.perf_counter()
    model, settings = load_settings(config, {"brokers": brokers, "topic_prefix": topic_prefix})
    changes = [ItemChange(item, "delete") for item in items]
    problems = [problem for problem in map(change_problem, changes) if problem is not None]
    if problems:
        raise UsageProblem("\n".join(problems))
    done = _send(settings, model, iter([changes]))
    _show(done, 0, time.perf_counter() - begin, settings, json)


def _send(settings: Settings, model: Config, changes: Iterator[Sequence[ItemChange]]) -> Produced:
    """Returns when Kafka has all of them. Raises KafkaProblem."""
    import asyncio

    from agents.kafka.producing import produce
    from cco.event_data import EventBatch
    from cco.vocabulary import Vocabulary

    def work() -> Iterator[tuple[EventBatch, Sequence[ItemChange]]]:
        for part in changes:
            yield EventBatch.join([]), part

    return asyncio.run(produce(settings, model, Vocabulary(), Vocabulary(), work()))


def _show(done: Produced, rejected: int, seconds: float, settings: Settings, json: bool) -> None:
    report: dict[str, Any] = {
        "item_changes": done.item_changes,
        "rejected": rejected,
        "changes_per_second": round(done.item_changes / max(seconds, 1e-9)),
        "seconds": round(seconds, 3),
    }
    if json:
        print_json(report)
        return
    print_figures(
        {
            "item changes sent": f"{report['item_changes']:,}",
            "records rejected": f"{rejected:,}",
            "to": f"{', '.join(settings.broker_list)}, topic {settings.topic('items')}",
            "changes a second": f"{report['changes_per_second']:,}",
            "time": f"{seconds:,.3f} s",
        }
    )

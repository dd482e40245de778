"""`cco ingest`: events from files to Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agents.cli.common import EventFiles, JsonFlag, print_figures, print_json, progress
from agents.cli.config import Brokers, SettingsFile, TopicPrefix
from agents.cli.inputs import Intake, check_outputs
from agents.cli.models import DeadLetters

if TYPE_CHECKING:
    from cco.event_data import EventBatch, ItemChange


def ingest(
    events: EventFiles,
    config: SettingsFile = None,
    brokers: Brokers = None,
    topic_prefix: TopicPrefix = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="N", min=0.001, help="Send so many events a second, evenly.")
    ] = None,
    dead_letters: DeadLetters = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Rejected records are an error: exit code 2, with the others sent.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Send EVENTS to the topic `interactions`, keyed and partitioned by user, and item changes to `items`.

    Nothing is sent twice by one run. Events without a time take the time of sending; rejected records are not sent.
    """
    import asyncio

    from agents.files.reading import read_events
    from agents.kafka.producing import produce
    from agents.settings import load_settings
    from cco.events import EventParser
    from cco.vocabulary import Vocabulary
    from model_sync.metadata import change_problem

    check_outputs(None, json, dead_letters, events, config)
    model, settings = load_settings(config, {"brokers": brokers, "topic_prefix": topic_prefix})
    users, items = Vocabulary(), Vocabulary()
    parser = EventParser(model, users, items, change_problem)
    intake = Intake(strict, dead_letters)
    begin = time.perf_counter()
    with progress("sending", quiet=json) as bar, intake.taking(bar) as take:

        def work() -> Iterator[tuple[EventBatch, Sequence[ItemChange]]]:
            for chunk in read_events(events, parser, clock=lambda: int(time.time())):
                yield chunk.batch, chunk.item_changes
                take(chunk)

        done = asyncio.run(produce(settings, model, users, items, work(), rate=rate))
    intake.conclude()
    seconds = time.perf_counter() - begin
    report = {
        "events": done.events,
        "rejected": intake.rejected,
        "item_changes": done.item_changes,
        "messages": done.messages + done.item_changes,
        "offsets": {str(partition): offset for partition, offset in sorted(done.offsets.items())},
        "events_per_second": round(done.events / max(seconds, 1e-9)),
        "seconds": round(seconds, 3),
    }
    _show(report, settings.broker_list, json)


def _show(report: dict[str, Any], brokers: Sequence[str], json: bool) -> None:
    if json:
        print_json(report)
        return
    print_figures(
        {
            "events sent": f"{report['events']:,}",
            "records rejected": f"{report['rejected']:,}",
            "item changes sent": f"{report['item_changes']:,}",
            "to": f"{', '.join(brokers)}, {len(report['offsets'])} partition(s)",
            "events a second": f"{report['events_per_second']:,}",
            "time": f"{report['seconds']:,.3f} s",
        }
    )

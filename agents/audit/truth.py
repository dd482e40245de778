"""What everything published and kept should be: a batch rebuild of the log, and the changes of items folded.

Written apart from the agents: what they share with it is the rule of retention and the row kernel, as `cco.batch` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from agents.archive.archive import Archive
from agents.kafka.item_changes import ItemRecords
from agents.kafka.reading import Ends, read_topic
from agents.kafka.topics import INTERACTIONS, ITEMS, describe_topics
from agents.rebuilds.sources import LogSource
from agents.settings import Settings
from cco.batch import Model, rebuild
from cco.batch_fold import SourceBatch, source_partitions
from cco.config import Config
from cco.event_data import ItemChange
from cco.events import EventParser
from cco.rows import Patches
from cco.values import BadRecord
from cco.vocabulary import Vocabulary
from model_sync.elastic_audit import EMPTY, Metadata
from model_sync.elastic_documents import row_documents
from model_sync.elastic_users import MOST_ITEMS, user_document
from model_sync.metadata import change_problem

Bounds = Mapping[int, tuple[int, int]]  # by source partition: its first offset, and the one after its last


@dataclass(frozen=True, slots=True)
class Truth:
    """The model of the log before `ends`, and what should be published of it."""

    model: Model
    ends: Mapping[int, int]
    rows: Mapping[str, Mapping[str, bytes]]  # by item, as of `RowDocument`
    sources: list[int]  # by user index, the source partition
    events: int


def log_bounds(config: Config, settings: Settings) -> dict[int, tuple[int, int]]:
    """The offsets of `interactions` just now; nothing where there is no such topic. Raises KafkaProblem."""
    found = asyncio.run(describe_topics(config, settings))
    name = settings.topic(INTERACTIONS)
    return {
        of.partition: (of.begin or 0, of.end or 0) for topic in found if topic.name == name for of in topic.partitions
    }


def truth_of_log(
    config: Config, settings: Settings, ends: Ends, threads: int = 1, archive: Archive | None = None
) -> Truth:
    """What the log says up to `ends`, of those source partitions; what `archive` has is read from there.

    Raises KafkaProblem, ArchiveError.
    """
    log = LogSource(settings, archive, topic=True, ends=ends)
    users, items = Vocabulary(), Vocabulary()
    parser = EventParser(config, users, items, change_problem)
    events = 0

    def batches() -> Iterator[SourceBatch]:
        nonlocal events
        for chunk in log.chunks(parser, {}):
            events += len(chunk.batch)
            yield chunk.file, chunk.batch

    model = rebuild(config, batches(), users, items, threads=threads)
    positions = tuple(ends.get(source, 0) for source in range(config.retention.source_partitions))
    documents = row_documents(config, items, Patches(positions, model.rows()))
    rows = {document.item: document.fields for document in documents}
    return Truth(model, dict(ends), rows, source_partitions(config, users).tolist(), events)


def user_body(truth: Truth, user: int | None) -> Mapping[str, Any]:
    """The document that a user should have, without its position. `user`: index in the model's vocabulary, or None."""
    if user is None:
        return EMPTY
    config, model = truth.model.config, truth.model
    history: dict[str, tuple[list[str], int]] = {}
    kept = model.history(user)
    for name, entries in kept.items():
        ids = model.items.names(np.array([item for item, _ in entries], np.int64).tolist())
        latest_first = sorted((-time, item) for item, (_, time) in zip(ids, entries, strict=True))
        history[name] = [item for _, item in latest_first[:MOST_ITEMS]], len(entries)
    last = max((time for _, time in chain.from_iterable(kept.values())), default=None)
    member = len(kept[config.primary]) >= config.retention.min_primary
    body: dict[str, Any] = msgspec.json.decode(user_document(history, last, member, truth.sources[user], 0))
    del body["position"]
    return body


def folded_items(config: Config, settings: Settings) -> dict[str, Metadata]:
    """The metadata that the topic `items` gives items, those without any included. Raises KafkaProblem."""
    found: dict[str, Metadata] = {}
    records = ItemRecords(config)

    async def fold() -> None:
        async for read in read_topic(settings, ITEMS):
            for key, value, offset in zip(read.keys, read.values, read.offsets.tolist(), strict=True):
                try:
                    change = records.decode(key, value)
                except BadRecord:  # a dead letter
                    continue
                found[change.item_id] = _after(found.get(change.item_id), change, offset)

    asyncio.run(fold())
    return found


def _after(before: Metadata | None, change: ItemChange, offset: int) -> Metadata:
    known = None if before is None else before.properties
    if change.kind == "delete":
        return Metadata(None, deleted=True, position=offset)
    if change.kind == "unset":
        if known is None:
            return before or Metadata(None, deleted=False)
        left = {name: value for name, value in known.items() if name not in change.properties}
        return Metadata(left, deleted=False, position=offset)
    after = {**(known or {}), **change.properties}
    return Metadata({n: v for n, v in after.items() if v is not None}, deleted=False, position=offset)

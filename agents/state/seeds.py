"""Seeds: the states of user stages as a rebuild has computed them, put where workers look for shared copies.

A seed stands for one partition of `interactions` up to an offset. A worker without a state that it can use takes it
as it takes a copy of another worker's state, and reads on from there; item stages are filled by the user stages, as
ever. So what decides retention can be changed, and a log that has lost its beginning can be gone on with.

All users and items that the rebuild has seen are named in it, also those of whom nothing is retained: an index that
knows them from before must be told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from agents.kafka.client import KafkaProblem
from agents.kafka.logs import Log, look_at_logs
from agents.kafka.topics import INTERACTIONS, PartitionFound, describe_topics
from agents.settings import Settings
from agents.state.directory import meta_of
from agents.state.errors import StateError
from agents.state.records import (
    ITEMS,
    NAMES_KEY,
    USERS,
    USERS_KEY,
    Commit,
    Generation,
    key_of,
    names_bodies,
    sealed,
    users_bodies,
)
from agents.state.shared_copy import SharedCopy
from agents.workers.user_partition import SourceLog
from cco.batch import Model
from cco.batch_state import SourceState
from cco.config import Config

if TYPE_CHECKING:
    from agents.rebuilds.sources import Rebuilt

_NUMBER = 1  # of the one generation of a seed


class Seed:
    """The state of one source partition as of `log.at(offset)`: what `SharedCopy.upload` takes."""

    def __init__(self, model: Model, log: SourceLog, offset: int) -> None:
        self.meta = meta_of(model.config)
        self._state = SourceState(model, log.partition)
        self._names = [
            *names_bodies(USERS, 0, *self._state.names()),
            *names_bodies(ITEMS, 0, model.items.bytes_, model.items.offsets),
        ]
        sizes = [len(body) for body in self._users()]  # made twice, so that they need not be kept
        written = sum(sizes) + sum(map(len, self._names))
        generation = Generation(_NUMBER, len(sizes), len(self._names), written)
        applied = offset  # events, of which there are not more; nothing depends on it
        self.commit = Commit(
            model.config.epoch, _NUMBER, [(applied, self._state.watermark)], len(self._state), len(model.items),
            log.at(offset), [generation], _NUMBER,
        )  # fmt: skip

    @property
    def users(self) -> int:
        """Users that it names."""
        return len(self._state)

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values as a store would have them, in the order of `Commit.segments`."""
        for kind, bodies in ((NAMES_KEY, iter(self._names)), (USERS_KEY, self._users())):
            for sequence, body in enumerate(bodies):
                key = key_of(kind, _NUMBER, sequence)
                yield key, sealed(key, body)

    def _users(self) -> Iterator[bytes]:
        for words in self._state.packed():
            yield from users_bodies(0, words)


def check_place(config: Config, settings: Settings) -> None:
    """See, before a long rebuild, whether seeds could be written.

    Raises StateError if `share` is not set or cannot be reached, KafkaProblem.
    """
    for source in range(config.retention.source_partitions):
        _place(settings, source).newest()
    asyncio.run(_look(config, settings))


def write_seeds(rebuilt: Rebuilt[Model]) -> dict[str, Any]:
    """Write a seed for each source partition of which something was read; answers what became of each.

    None is written where a copy is there already that goes as far. Not to be called where an event loop runs.
    Raises StateError if a worker could not go on from one of them (then none is written) or the place cannot be
    used, KafkaProblem.
    """
    config, settings, offsets = rebuilt.config, rebuilt.settings, rebuilt.offsets
    log_now, partitions = asyncio.run(_look(config, settings))
    logs = {}
    for source, offset in sorted(offsets.items()):
        sources = config.retention.source_partitions
        log = SourceLog(log_now.topic, source, sources, log_now.cluster, log_now.id)
        _check(log, offset, partitions.get(source))
        if offset > 0:  # else a worker begins at the beginning by itself
            logs[source] = log
    found = {}
    for source, log in logs.items():
        place = _place(settings, source)
        seed = Seed(rebuilt.model, log, offsets[source])
        copy = place.upload(seed, seed=True)
        told: dict[str, Any] = {"offset": offsets[source], "users": seed.users, "written": copy is not None}
        newest = copy or place.newest(config.epoch)
        if newest is not None:
            told |= {"file": f"{place.where}/{newest.name}", "bytes": newest.size}
        found[str(source)] = told
    return {"share": settings.share, "partitions": found}


def _place(settings: Settings, source: int) -> SharedCopy:
    if settings.share is None:
        raise StateError(
            "worker.share: is not set, and seeds are written there: name a path or URL that all workers reach"
        )
    return SharedCopy(settings.share, f"{INTERACTIONS}-{source}")


async def _look(config: Config, settings: Settings) -> tuple[Log, dict[int, PartitionFound]]:
    """The topic of interactions and its partitions."""
    log = (await look_at_logs(settings)).get(INTERACTIONS)
    name, sources = settings.topic(INTERACTIONS), config.retention.source_partitions
    topics = [topic for topic in await describe_topics(config, settings) if topic.name == name]
    if not topics or log is None:
        raise KafkaProblem(f"the topic {name} is missing: `cco topics create` makes it")
    if len(topics[0].partitions) != sources:
        raise KafkaProblem(
            f"the topic {name} has {len(topics[0].partitions)} partitions, and the configuration says"
            f" retention.source_partitions = {sources}: correct it, or name another topic_prefix"
        )
    return log, {found.partition: found for found in topics[0].partitions}


def _check(log: SourceLog, offset: int, found: PartitionFound | None) -> None:
    """Raise StateError unless a worker can read on at the offset."""
    where = f"{log.topic}-{log.partition}"
    if found is None or found.begin is None or found.end is None:
        raise KafkaProblem(f"{where}: is not there, or has no leader")
    if offset > found.end:
        raise StateError(
            f"{where}: no seed can be written: what was counted ends at offset {offset}, and the log at {found.end}:"
            " the topic was made anew or has lost its last records; ingest the events into it, and rebuild from it"
        )
    if offset < found.begin:
        raise StateError(
            f"{where}: no seed can be written: what was counted ends at offset {offset}, and the log begins at"
            f" {found.begin}: {found.begin - offset} records are gone that were not counted; an archive that has them"
            " is needed, and a longer retention"
        )

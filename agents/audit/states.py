"""States that workers keep, compared with what the log says at the offset that they stand for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agents.archive.archive import Archive
from agents.audit.truth import Bounds, Truth, truth_of_log
from agents.kafka.topics import INTERACTIONS
from agents.settings import Settings
from agents.state.checkpoint import restore_stages
from agents.state.errors import StateError
from agents.state.owner import offset_of
from agents.state.shared_copy import SharedCopy
from agents.state.store import StateStore
from agents.workers.user_partition import SourceLog, UserPartition
from cco.config import Config
from model_sync.elastic_audit import Difference

Histories = dict[str, dict[str, int]]  # by indicator, by item: time of its last event
Opened = AbstractContextManager[StateStore | None]  # None where nothing is kept yet


@dataclass(frozen=True, slots=True)
class StateCheck:
    """A state that was compared, or why it could not be."""

    where: str
    source: int
    offset: int | None = None
    users: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Kept:
    where: str
    partition: UserPartition
    offset: int


def check_states(
    config: Config,
    settings: Settings,
    folders: Sequence[Path],
    bounds: Bounds,
    threads: int = 1,
    archive: Archive | None = None,
) -> tuple[list[StateCheck], list[Difference]]:
    """Compare the newest shared copy of each partition, and the states in `folders`, which no worker may have open.

    `bounds`: of the log. Raises KafkaProblem, ArchiveError.
    """
    checks: list[StateCheck] = []
    differences: list[Difference] = []
    for group in _groups(config, settings, folders):
        kept: dict[int, _Kept] = {}
        for source, where, opened in group:
            try:
                with opened() as store:
                    if store is not None:
                        kept[source] = _load(where, store, config, settings, source, bounds[source][1])
            except StateError as error:
                checks.append(StateCheck(where, source, problem=str(error)))
        if kept:
            truth = truth_of_log(config, settings, {source: of.offset for source, of in kept.items()}, threads, archive)
            for source, of in kept.items():
                users, found = _compare(of, truth, source)
                checks.append(StateCheck(of.where, source, of.offset, users))
                differences += found
    return checks, differences


def _groups(
    config: Config, settings: Settings, folders: Sequence[Path]
) -> Iterator[list[tuple[int, str, Callable[[], Opened]]]]:
    """(source, where, how it is opened) of states that may be of different offsets from those of other groups."""
    sources = range(config.retention.source_partitions)
    names = {source: f"{INTERACTIONS}-{source}" for source in sources}
    if settings.share is not None:
        where = settings.share.rstrip("/")
        yield [(s, f"{where}/{name}", partial(_shared, settings.share, name, config)) for s, name in names.items()]
    for folder in folders:
        there = {source: folder / name for source, name in names.items() if (folder / name).exists()}
        yield [(source, str(path), partial(_local, path, config)) for source, path in there.items()]


@contextmanager
def _shared(url: str, name: str, config: Config) -> Iterator[StateStore | None]:
    shared = SharedCopy(url, name)
    newest = shared.newest(config.epoch)
    if newest is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="cco-audit-") as folder:
        path = Path(folder) / name
        shared.download(newest, path, config)
        with _local(path, config) as store:
            yield store


@contextmanager
def _local(path: Path, config: Config) -> Iterator[StateStore | None]:
    store = StateStore.open(path, config, sources=1, read_only=True)
    try:
        yield store if store.commit.generation else None
    finally:
        store.close()


def _load(where: str, store: StateStore, config: Config, settings: Settings, source: int, end: int) -> _Kept:
    """What a store has of a source whose log ends at offset `end`. Raises StateError."""
    offset = offset_of(where, store.commit, source)
    assert offset is not None
    if offset > end:
        raise StateError(f"{where}: stands for the log up to offset {offset}, and that ends at {end}")
    log = SourceLog(settings.topic(INTERACTIONS), source, config.retention.source_partitions, "")
    partition = UserPartition(config, log, settings.item_partitions)
    restore_stages(store, partition)
    return _Kept(where, partition, offset)


def _compare(kept: _Kept, truth: Truth, source: int) -> tuple[int, list[Difference]]:
    """How many users were compared, and what differs."""
    partition, model = kept.partition, truth.model
    ours = {partition.users.name(user): _of_state(partition, user) for user in range(len(partition.users))}
    right = {
        model.users.name(user): {
            name: {model.items.name(i): t for i, t in of} for name, of in model.history(user).items()
        }
        for user in range(len(model.users))
        if truth.sources[user] == source
    }
    found = []
    for user in sorted(ours.keys() | right.keys()):
        text = _difference(ours.get(user, {}), right.get(user, {}))
        if text is not None:
            found.append(Difference("state", user, f"{kept.where}, offset {kept.offset}: {text}"))
    return len(ours.keys() | right.keys()), found


def _of_state(partition: UserPartition, user: int) -> Histories:
    pairs = zip(partition.config.indicator_names, partition.stage.history(user), strict=True)
    return {
        name: dict(zip(partition.items.names(items.tolist()), times.tolist(), strict=True))
        for name, (items, times) in pairs
    }


def _difference(ours: Histories, right: Histories) -> str | None:
    for name in sorted(ours.keys() | right.keys()):
        has, should = ours.get(name, {}), right.get(name, {})
        for item in sorted(has.keys() | should.keys()):
            if has.get(item) != should.get(item):
                was, is_ = (f"of {d[item]}" if item in d else "not there" for d in (has, should))
                return f"{name}, item {item!r} is {was}, should be {is_}"
    return None

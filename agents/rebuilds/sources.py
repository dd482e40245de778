"""What a batch rebuild reads of a log - from the topic, its archive, or the archive and then the topic - and what comes
of it. A rebuild can keep what it has counted so far in a file, and go on from there."""

from __future__ import annotations

import asyncio
import glob
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from agents.archive.archive import Archive, ArchiveError
from agents.files.reading import Chunk
from agents.kafka.records import Records, parsed
from agents.settings import Settings
from agents.state.errors import StateError, is_full, one_line
from cco.batch_fold import Histories
from cco.config import Config
from cco.events import EventParser
from cco.rows import Rows
from cco.vocabulary import Vocabulary, VocabularyError

if TYPE_CHECKING:
    from agents.kafka.logs import Log

SAVE_EVERY = 30.0  # seconds, at least, between two times that what was counted is saved
SAVE_SHARE = 0.05  # of the time may go into that

_FORMAT = 2


class Computed(Protocol):
    """A model, whichever engine has computed it."""

    @property
    def users(self) -> Sized:
        """All that were seen."""

    @property
    def items(self) -> Vocabulary:
        """All that were seen."""

    @property
    def n_users(self) -> int:
        """N: users in U."""

    def rows(self) -> Rows:
        """Every field with entries, weights as the index keeps them."""

    def exact_rows(self) -> Rows:
        """Every field with entries, weights as full doubles, ordered by them."""


M_co = TypeVar("M_co", bound=Computed, covariant=True)


@dataclass(frozen=True, slots=True)
class Rebuilt(Generic[M_co]):
    """A model, and up to where it stands for the log."""

    config: Config
    settings: Settings
    model: M_co
    offsets: Mapping[int, int]  # by source partition, the offset after what was counted


@dataclass(frozen=True, slots=True)
class LogSource:
    """The log of interactions: its archive, if there is one; then, with `topic`, the topic itself.

    `ends`: by partition, the offset to end before; others are not read then. None: everything that is there.
    """

    settings: Settings
    archive: Archive | None
    topic: bool
    ends: Mapping[int, int] | None = None

    def name(self) -> str:
        """What tells this log from others, wherever it is read from; a topic that was made anew is another one.

        Not to be called where an event loop runs. Raises KafkaProblem.
        """
        if self.archive is not None:
            return self.archive.url
        log = self._log()
        id = "" if log is None or log.id is None else f" (id {log.id})"
        return f"{self.settings.topic('interactions')}{id} at {','.join(sorted(self.settings.broker_list))}"

    def chunks(self, parser: EventParser, begins: Mapping[int, int]) -> Iterator[Chunk]:
        """The events from the offsets `begins` on (0 for partitions not named). `Chunk.record` is where it goes on.

        Not to be called where an event loop runs. Raises ArchiveError, also if archive and topic are not of one log;
        KafkaProblem; StateError, where less is to be counted than was.
        """
        if self.ends is not None:
            _none_is_beyond(begins, self.ends, "where to end")
        done = 0
        if self.archive is not None:
            if self.topic:
                self.check_topic()
            archived = self.archive.ends(parser.config.retention.source_partitions)
            if not self.topic:
                _none_is_beyond(begins, archived, f"where {self.archive.url} ends (--tail reads the rest from the log)")
            for chunk in _of_archive(self.archive, parser, begins, self.within(archived)):
                done = chunk.records
                yield chunk
            begins = {partition: max(end, begins.get(partition, 0)) for partition, end in archived.items()}
        if not self.topic:
            return
        from agents.kafka.reading import read_log  # of an extra that others can do without

        ends = self.ends
        if ends is not None:
            ends = {partition: end for partition, end in ends.items() if end > begins.get(partition, 0)}
        for chunk in read_log(self.settings, parser, ends, begins) if ends is None or ends else ():
            total = None if chunk.bytes_total is None else chunk.bytes_total + done
            yield replace(chunk, records=chunk.records + done, bytes_read=chunk.bytes_read + done, bytes_total=total)

    def check_topic(self) -> None:
        """Raise ArchiveError if the archive is of another topic than there is now, KafkaProblem if nobody can tell.

        Not to be called where an event loop runs.
        """
        log = self._log()
        if self.archive is not None and log is not None:
            self.archive.check_topic(self.archive.files(), log.topic, log.id)

    def _log(self) -> Log | None:
        """The topic as it is now; None if there is none."""
        from agents.kafka.logs import look_at_logs  # of an extra that others can do without

        return asyncio.run(look_at_logs(self.settings)).get("interactions")

    def within(self, archived: Mapping[int, int]) -> dict[int, int]:
        """Where to end in the archive. Raises ArchiveError if that is beyond it, and nothing else is read."""
        if self.ends is None:
            return dict(archived)
        for partition, end in self.ends.items():
            there = archived.get(partition)
            if there is None or (end > there and not self.topic):
                assert self.archive is not None
                raise ArchiveError(
                    f"{self.archive.url}: partition {partition} is archived up to offset {there or 0}, before the {end}"
                    " that is wanted: --tail reads the rest from the log"
                )
        return {partition: min(end, archived[partition]) for partition, end in self.ends.items()}


def _none_is_beyond(begins: Mapping[int, int], ends: Mapping[int, int], what: str) -> None:
    """Raise StateError where more was counted before than is to be counted in all."""
    for partition, begin in sorted(begins.items()):
        end = ends.get(partition, 0)
        if end < begin:
            raise StateError(
                f"partition {partition}: has been counted up to offset {begin}, beyond {end}, {what}: name another"
                " file, or none, to count anew"
            )


def _of_archive(
    archive: Archive, parser: EventParser, begins: Mapping[int, int], ends: Mapping[int, int]
) -> Iterator[Chunk]:
    wanted = {p: (begins.get(p, 0), end) for p, end in sorted(ends.items()) if end > begins.get(p, 0)}
    total, before = sum(end - begin for begin, end in wanted.values()), 0
    for partition, (begin, end) in wanted.items():
        where = f"{archive.url}/source={partition}"
        reached = begin
        for records in archive.read(partition, begin, end):
            reached = records.next_offset
            yield parsed(replace(records, read=before + reached - begin, total=total), parser, where)
        if reached < end:  # the last offsets hold no records
            none = np.zeros(0, np.int64)
            yield parsed(Records(partition, [], [], none, none, end, before + end - begin, total), parser, where)
        before += end - begin


@dataclass(slots=True)
class Progress:
    """What was counted of a log so far, and the file that keeps it, if one does.

    `users` and `items` have at least all that `histories` speak of. Methods raise StateError, one readable line.
    """

    config: Config
    log: str
    file: Path | None = None
    topic: str | None = None  # Kafka's id of what was archived, where that is known
    users: Vocabulary = field(default_factory=Vocabulary)
    items: Vocabulary = field(default_factory=Vocabulary)
    histories: Histories | None = None
    offsets: dict[int, int] = field(default_factory=dict)  # by partition, after what is counted
    rejected: int = 0  # records up to `offsets`, those that other rebuilds read included
    resumed: int = 0  # offsets that were counted before, by other rebuilds
    saved: int = 0  # times
    pieces: int = 0  # that were counted, one after the other
    _due: float = field(default_factory=lambda: time.monotonic() + SAVE_EVERY)

    @classmethod
    def begin(cls, config: Config, log: str, file: Path | None, topic: str | None = None) -> Progress:
        """What the file keeps; nothing if it is not there yet."""
        progress = cls(config, log, file, topic)
        if file is None:
            return progress
        for unfinished in file.parent.glob(f".{glob.escape(file.name)}.????????"):  # of one that was killed
            with suppress(OSError):
                unfinished.unlink()
        if not file.exists():
            return progress
        about, arrays = _load(file)
        counted = about.get("topic")
        is_another = None not in (topic, counted) and topic != counted
        if about.get("format") != _FORMAT or about.get("about") != progress._about() or is_another:
            id = f", id {counted}" if counted else ""
            raise StateError(
                f"{file}: what it keeps was counted by another configuration or version, or of another log"
                f" ({about.get('about', {}).get('log', 'unknown')}{id}): name another file, or remove it to count anew"
            )
        progress.topic = topic or counted
        try:
            progress.users = Vocabulary.restore(arrays["users"].tobytes(), arrays["users_offsets"])
            progress.items = Vocabulary.restore(arrays["items"].tobytes(), arrays["items_offsets"])
            progress.histories = Histories(
                arrays["head"], arrays["history_items"], arrays["history_times"], arrays["watermarks"]
            )
            progress.offsets = {int(partition): int(offset) for partition, offset in about["offsets"].items()}
            progress.resumed = sum(progress.offsets.values())
            progress.rejected = int(about["rejected"])
        except (KeyError, VocabularyError) as error:
            raise _damaged(file, error) from error
        return progress

    def folded(self, histories: Histories) -> None:
        """All up to `offsets` is counted in `histories`: save it if it is time to."""
        self.pieces += 1
        if self.file is not None and time.monotonic() >= self._due:
            self.save(histories)

    def save(self, histories: Histories) -> None:
        """Write the file anew, whole or not at all."""
        if self.file is None:
            return
        began = time.monotonic()
        about = {
            "format": _FORMAT, "about": self._about(), "topic": self.topic, "offsets": self.offsets,
            "rejected": self.rejected,
        }  # fmt: skip
        users, users_offsets = self.users.export()
        items, items_offsets = self.items.export()
        arrays = {
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
            "users": np.frombuffer(users, np.uint8),
            "users_offsets": users_offsets,
            "items": np.frombuffer(items, np.uint8),
            "items_offsets": items_offsets,
            "head": histories.head,
            "history_items": histories.items,
            "history_times": histories.times,
            "watermarks": histories.watermarks,
        }
        unfinished = self.file.with_name(f".{self.file.name}.{secrets.token_hex(4)}")
        try:
            with unfinished.open("wb") as opened:
                np.savez(opened, **arrays)  # type: ignore[arg-type]
                opened.flush()
                os.fsync(opened.fileno())
            unfinished.replace(self.file)
        except BaseException as error:
            with suppress(OSError):
                unfinished.unlink()
            if isinstance(error, OSError):
                full = "there is no room: " if is_full(error) else ""
                raise StateError(f"{self.file}: saving what was counted failed: {full}{one_line(error)}") from error
            raise
        self.saved += 1
        now = time.monotonic()
        self._due = now + max(SAVE_EVERY, (now - began) / SAVE_SHARE)

    def _about(self) -> dict[str, Any]:
        return {"epoch": self.config.epoch, "indicators": list(self.config.indicator_names), "log": self.log}


def _load(file: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
            about = json.loads(arrays.pop("about").tobytes())
    except OSError as error:
        raise StateError(f"{file}: cannot be read: {one_line(error)}") from error
    except Exception as error:  # zip archives and arrays fail in many ways when any bit may be wrong
        raise _damaged(file, error) from error
    if not isinstance(about, dict) or not isinstance(about.get("about"), dict):
        raise _damaged(file, ValueError("it does not say what it keeps"))
    return about, arrays


def _damaged(file: Path, error: Exception) -> StateError:
    return StateError(
        f"{file}: is damaged, or no file of a rebuild ({one_line(error)}): name another one, or remove it to count anew"
    )

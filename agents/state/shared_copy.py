"""Copies of a worker's states in a place that all workers reach: where a partition goes on on another machine.

The place is a URL that fsspec knows, or a path. A copy is one file (see `agents.state.copy_format`),

    URL/NAME/<offset, 20 digits>-<epoch>-<random>.cco
    URL/NAME/<offset, 20 digits>-<epoch>-seed-<random>.cco

NAME is of the partition, the offset is the next one to read after it, the epoch that of the configuration. A seed is
the same, made by a rebuild (see `agents.state.seeds`). A copy is written under another name that ends with .part, and
counts from when it is renamed. The newest two of an epoch are kept; those of other epochs are for whoever goes back.
"""

from __future__ import annotations

import io
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from agents.state.copy_format import CopyReader, Exported, write_copy
from agents.state.directory import check_meta, install, lock, put_back, set_aside
from agents.state.errors import (
    ShareError,
    StateClosed,
    StateDamaged,
    StateError,
    StateUnfit,
    one_line,
    share_explained,
)
from agents.state.export import StateExport
from agents.state.owner import offset_of, other_log
from agents.state.records import Commit
from agents.state.store import StateStore, fill_database
from cco.config import Config

KEPT = 2
_NAME = re.compile(r"(\d{20})-(?:([0-9a-f]{16})-)?(seed-)?[0-9a-f]{8}\.(cco|part)")


@dataclass(frozen=True, slots=True, order=True)
class Copy:
    """A whole copy."""

    offset: int  # the next to read after it
    name: str  # of the file, within the folder of its partition
    size: int  # bytes

    @property
    def epoch(self) -> str:
        """Of the configuration that it was made with; "" where the name does not tell."""
        match = _NAME.fullmatch(self.name)
        return (match[2] or "") if match else ""

    @property
    def seed(self) -> bool:
        """Whether a rebuild has made it."""
        match = _NAME.fullmatch(self.name)
        return bool(match and match[3])


class SharedCopy:
    """The shared copies of one partition, `name`, at `url`. For any one thread at a time.

    Raises StateError if there is no file system for the URL. Methods raise ShareError when the place cannot be
    reached, read or written.
    """

    def __init__(self, url: str, name: str) -> None:
        self.where = f"{url.rstrip('/')}/{name}"
        try:
            self._fs, root = fsspec.url_to_fs(url)
        except Exception as error:
            raise StateError(f"{url}: cannot be used for shared copies: {one_line(error)}") from error
        self._folder = f"{root.rstrip('/')}/{name}"

    def newest(self, epoch: str | None = None) -> Copy | None:
        """The one with the largest offset, as in `copies`."""
        return next(iter(self.copies(epoch)), None)

    def copies(self, epoch: str | None = None) -> list[Copy]:
        """All that are there, newest first; with `epoch`, those that may be of it."""
        whole = [copy for copy in self._files() if copy.name.endswith(".cco")]
        return [copy for copy in whole if epoch is None or copy.epoch in ("", epoch)]

    def _files(self) -> list[Copy]:
        """Whole copies, and those in the making, newest first."""
        with share_explained(self.where, "listing the shared copies"):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(self._folder, detail=True)
            except FileNotFoundError:
                return []
            names = [(entry["name"].rsplit("/", 1)[-1], entry["size"] or 0) for entry in entries]
            found = [Copy(int(match[1]), name, size) for name, size in names if (match := _NAME.fullmatch(name))]
            return sorted(found, reverse=True)

    def upload(self, export: Exported, *, seed: bool = False) -> Copy | None:
        """Make a copy of a state of a worker's, if none of its epoch is there that is as new, and remove old ones.

        Raises also StateDamaged, if the state is, and StateClosed when its store is closed meanwhile; no copy
        counts then that is not whole.
        """
        assert export.commit.input is not None
        offset, epoch = int(export.commit.input["offset"]), export.commit.epoch
        if any(copy.offset >= offset and copy.epoch == epoch for copy in self.copies()):
            return None
        name = f"{offset:020}-{epoch}-{'seed-' * seed}{secrets.token_hex(4)}"
        unfinished, finished = f"{self._folder}/{name}.part", f"{self._folder}/{name}.cco"
        with share_explained(self.where, "writing a shared copy"):
            self._fs.makedirs(self._folder, exist_ok=True)
            try:
                with self._fs.open(unfinished, "wb") as file:
                    write_copy(file, export)
                    _sync(file)
                size = self._fs.size(unfinished)
                self._fs.mv(unfinished, finished)
            except BaseException:
                with suppress(Exception):  # the next copy removes it if this does not
                    self._fs.rm_file(unfinished)
                raise
            self._remove_old(offset, epoch)
        return Copy(offset, f"{name}.cco", size)

    def _remove_old(self, offset: int, epoch: str) -> None:
        """Of an epoch, all copies but the newest ones, and what was broken off before that of `offset`."""
        files = [file for file in self._files() if file.epoch in ("", epoch)]
        old = [file for file in files if file.name.endswith(".cco")][KEPT:]
        old += [file for file in files if file.name.endswith(".part") and file.offset < offset]
        for file in old:
            with suppress(FileNotFoundError):  # another worker has done it
                self._fs.rm_file(f"{self._folder}/{file.name}")

    def download(
        self, copy: Copy, path: Path, config: Config, accept: Callable[[str, Commit], None] = lambda where, commit: None
    ) -> None:
        """Make the state in the directory `path` the one of a copy; an older one of it may be there.

        `accept(where, commit)` may refuse it, before anything is changed. When this fails, what was there is
        still there; when it is killed, either that or nothing is. Raises also StateDamaged if the copy is, and
        StateUnfit if it is of another configuration.
        """
        where = f"{self.where}/{copy.name}"
        handle = lock(path, read_only=False)
        try:
            with self._opened(copy, where) as file:
                reader = CopyReader(file, where)
                check_meta(where, reader.meta, config, "another place for shared copies")
                found = reader.commit.input or {}
                if found.get("offset") != copy.offset:
                    raise StateDamaged(where, f"it goes on at offset {found.get('offset')}", "remove this copy")
                accept(where, reader.commit)
                install(path, config, lambda folder: fill_database(folder, reader.commit, reader.records()))
        finally:
            os.close(handle)

    @contextmanager
    def _opened(self, copy: Copy, where: str) -> Iterator[BinaryIO]:
        with share_explained(where, "opening it"):
            file: Any = self._fs.open(f"{self._folder}/{copy.name}", "rb")
        try:
            yield file
        finally:
            with suppress(Exception):  # it was only read
                file.close()


def _sync(file: Any) -> None:
    """Wait for the disk, where the file is on one."""
    file.flush()
    with suppress(AttributeError, io.UnsupportedOperation):
        os.fsync(file.fileno())


@dataclass(slots=True)
class ShareReport:
    """What became of the shared copies of this process."""

    copies: int = 0
    failures: int = 0
    reason: str | None = None  # why the last one failed; None if it did not
    newest: Copy | None = None
    seconds: float = 0.0  # that the last one took


class Sharing:
    """Makes shared copies of a store in a thread of its own, so that a slow or broken place delays no commit.

    `share` is for the thread of the store. When the store is closed, a copy in the making is given up. A
    failure is in `report`, and the next copy is tried when it is due.
    """

    def __init__(self, shared: SharedCopy, every: float) -> None:
        self.report = ShareReport()
        self._shared, self._every = shared, every
        self._due = time.monotonic() + random.uniform(0.0, every)  # partitions take turns
        self._offset = -1  # of what is shared
        self._thread: threading.Thread | None = None

    def share(self, store: StateStore) -> None:
        """Begin a copy of what is committed, if one is due and none is being made. Never raises."""
        now, found = time.monotonic(), store.commit.input
        if now < self._due or found is None or found["offset"] <= self._offset:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._due = now + self._every
        try:
            export = store.export()
        except StateError as error:
            self._failed(error)
            return
        self._thread = threading.Thread(target=self._upload, args=(export,), name="shared copy", daemon=True)
        self._thread.start()

    def _upload(self, export: StateExport) -> None:
        began = time.monotonic()
        try:
            with export:
                copy = self._shared.upload(export)
            assert export.commit.input is not None
            self._offset = int(export.commit.input["offset"])
            if copy is not None:
                self.report.copies += 1
                self.report.newest, self.report.seconds = copy, time.monotonic() - began
            self.report.reason = None
        except StateClosed:
            pass
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.report.failures += 1
        self.report.reason = str(error) if isinstance(error, StateError) else f"{self._shared.where}: {error!r}"


def open_newest(
    path: Path, config: Config, shared: SharedCopy | None, *, source: int
) -> tuple[StateStore, str, list[str]]:
    """Open the state of source partition `source`: the one in `path`, or the newest shared copy if that is newer.

    Answers the store, where its state is from ("local", "shared", "seed", or "new" where there is none yet), and
    sentences about what could not be used. All checksums are good. A directory that is damaged or of another
    configuration is renamed if a copy can take its place. Raises StateError where none can, where something else is
    there that is not to be replaced (another partition or log), and where copies cannot be read while there is no
    directory: a state may be lost that is needed.
    """
    try:
        store = open_verified(path, config, source)
    except StateDamaged as error:
        return _instead_of_damaged(path, config, shared, source, error)
    except StateUnfit as error:
        return _instead_of_unfit(path, config, shared, source, error)
    local, notes = store.commit.input, []
    if shared is not None:
        try:
            copies = [copy for copy in shared.copies(config.epoch) if local is None or copy.offset > local["offset"]]
        except ShareError as error:
            notes.append(str(error))
            copies = []
        if copies or (notes and local is None):
            store.close()
            taken = _take(copies, path, config, shared, source, local, notes)
            if taken is not None:
                return _taken(taken, path, config, notes)
            if local is None:
                raise StateError(
                    f"{path}: there is no state here, and no shared copy can be used ({'; '.join(notes)}): start again"
                    f" when they can, or remove {shared.where} to begin at the start of the log"
                )
            store = StateStore.open(path, config, sources=1)
    return store, "new" if local is None else "local", notes


def open_verified(path: Path, config: Config, source: int, read_only: bool = False) -> StateStore:
    """Open the state of a source partition, all of whose checksums are good. Raises StateError."""
    store = StateStore.open(path, config, sources=1, read_only=read_only)
    try:
        offset_of(path, store.commit, source)
        with store.export() as export:
            export.verify()
    except BaseException:
        store.close()
        raise
    return store


def _taken(copy: Copy, path: Path, config: Config, notes: list[str]) -> tuple[StateStore, str, list[str]]:
    return StateStore.open(path, config, sources=1), "seed" if copy.seed else "shared", notes


def _instead_of_damaged(
    path: Path, config: Config, shared: SharedCopy | None, source: int, damage: StateDamaged
) -> tuple[StateStore, str, list[str]]:
    """The newest good copy, with the damaged directory under another name."""
    why = ["there are no shared copies"]
    if shared is not None and (copies := shared.copies(config.epoch)):
        why = []
        taken, aside = _take_instead(copies, path, config, shared, source, "damaged", why)
        if taken is not None:
            note = f"{path}: the state is damaged ({damage.what}): it was renamed to {aside}, and a shared copy taken"
            return _taken(taken, path, config, [*why, note])
    raise StateError(
        f"{path}: the state is damaged ({damage.what}), and nothing can take its place ({'; '.join(why)}): remove the"
        " directory to begin at the start of the log, or with a rebuild (`cco rebuild --seed`)"
    )


def _instead_of_unfit(
    path: Path, config: Config, shared: SharedCopy | None, source: int, unfit: StateUnfit
) -> tuple[StateStore, str, list[str]]:
    """The newest copy of this configuration, with the directory of another one under another name."""
    why: list[str] = []
    if shared is not None and (copies := shared.copies(config.epoch)):
        taken, aside = _take_instead(copies, path, config, shared, source, "outdated", why)
        if taken is not None:
            note = f"{unfit}: it was renamed to {aside}, and a {'seed' if taken.seed else 'shared copy'} taken"
            return _taken(taken, path, config, [*why, note])
    unusable = f" (no shared copy can be used: {'; '.join(why)})" if why else ""
    raise StateError(f"{unfit}; or write states for this one, with `cco rebuild --seed`{unusable}") from unfit


def _take_instead(
    copies: list[Copy], path: Path, config: Config, shared: SharedCopy, source: int, word: str, notes: list[str]
) -> tuple[Copy | None, Path]:
    """As `_take`, with the directory renamed, in a way that says `word`; if none is taken, it is put back."""
    aside = set_aside(path, word)
    try:
        taken = _take(copies, path, config, shared, source, None, notes)
    except BaseException:
        put_back(path, aside)
        raise
    if taken is None:
        put_back(path, aside)
    return taken, aside


def _take(
    copies: list[Copy],
    path: Path,
    config: Config,
    shared: SharedCopy,
    source: int,
    local: dict[str, Any] | None,
    notes: list[str],
) -> Copy | None:
    """Download the first of the copies that is good, and answer it; why the others are not goes to `notes`."""

    def accept(where: str, commit: Commit) -> None:
        offset_of(where, commit, source)
        differing = other_log(commit.input or {}, local) if local else None
        if differing:
            raise StateError(
                f"{where}: the shared copy is of another log than {path} ({differing}): name another place for shared"
                " copies"
            )

    for copy in copies:
        try:
            shared.download(copy, path, config, accept)
            return copy
        except (StateDamaged, ShareError) as error:
            notes.append(str(error))
    return None

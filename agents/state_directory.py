"""State directories: locking one, telling whose it is, and making a new one so that a crash leaves no half of it.

DIR/state.json       whose directory this is: format, and the settings that decide what is retained
DIR/state.json.new   the same while the state is being created: nothing in it counts yet
DIR/rocksdb          see `agents.state_store`
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from agents.state_errors import StateError, damaged, explained, setting_differences, settings_of
from cco.config import Config

MAGIC, FORMAT = "streaming-cco state", 1
DATABASE = "rocksdb"
_META, _NEW_META = "state.json", "state.json.new"


def lock(path: Path, read_only: bool) -> int:
    """A handle of the directory, locked; it is made if it is not there."""
    try:
        if not read_only:
            path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StateError(f"{path}: there is no state: `cco replay --state {path}` makes one") from None
    except (FileExistsError, NotADirectoryError):
        raise StateError(f"{path}: is not a directory; name one that is empty or does not exist") from None
    except OSError as error:
        raise StateError(f"{path}: cannot be used as a state directory: {error.strerror}") from None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise StateError(f"{path}: the state is in use by another process; wait for its end") from None
        raise StateError(f"{path}: cannot be locked: {error.strerror}") from None
    return handle


def create_if_new(path: Path, config: Config, fill: Callable[[Path], None]) -> None:
    """Make an empty state where nothing is; `fill` makes its database in the folder that it is given.

    A crash in the middle leaves _NEW_META, and we begin again.
    """
    found = {entry.name for entry in path.iterdir()}
    if not _is_new(found):
        return
    meta = {"magic": MAGIC, "format": FORMAT, "epoch": config.epoch, "settings": settings_of(config)}
    with explained(path, "creating the state"):
        with (path / _NEW_META).open("w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path)
        if DATABASE in found:
            shutil.rmtree(path / DATABASE)
        fill(path / DATABASE)
        _sync_folder(path / DATABASE)
        os.replace(path / _NEW_META, path / _META)
        _sync_folder(path)


def _is_new(found: set[str]) -> bool:
    """Whether a directory holds nothing, or what is left of a creation that was broken off."""
    return not found or (_NEW_META in found and found <= {_NEW_META, DATABASE})


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check(path: Path, config: Config) -> None:
    """Raise StateError unless the directory is a state of this format and configuration."""
    foreign = f"{path}: holds something else than a state; name a directory that is empty or does not exist"
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not _is_new({entry.name for entry in path.iterdir()}):
            raise StateError(foreign) from None
        raise StateError(f"{path}: is empty: `cco replay --state {path}` makes a state there") from None
    except (OSError, ValueError) as error:
        raise damaged(path, f"{_META} cannot be read ({error})") from None
    if not isinstance(meta, dict) or meta.get("magic") != MAGIC:
        raise StateError(foreign)
    if meta.get("format") != FORMAT:
        raise StateError(
            f"{path}: the state has format {meta.get('format')}, this version reads {FORMAT}: use the version that"
            " wrote it, or replay into a new directory"
        )
    if meta.get("epoch") != config.epoch:
        differences = setting_differences(meta.get("settings"), settings_of(config))
        raise StateError(
            f"{path}: the state was made with another configuration ({differences}): use that one, or replay into a"
            " new directory"
        )

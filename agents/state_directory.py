"""State directories: locking one, telling whose it is, and making a new one so that a crash leaves no half of it.

DIR/state.json       whose directory this is: format, the configuration, and those of its settings that decide
                     what is retained
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
from typing import Any

from agents.state_errors import StateError, damaged, explained, setting_differences, settings_of
from cco.config import Config, ConfigError, make_config

MAGIC, FORMAT = "streaming-cco state", 2
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
    with explained(path, "creating the state"):
        _write_new_meta(path, config)
        if DATABASE in found:
            shutil.rmtree(path / DATABASE)
        fill(path / DATABASE)
        _sync_folder(path / DATABASE)
        os.replace(path / _NEW_META, path / _META)
        _sync_folder(path)


def keep_config(path: Path, config: Config) -> None:
    """Make a configuration that fits the state the one that it is asked with from now on."""
    stored = stored_config(path)
    if stored is None or stored.model_dump() != config.model_dump():  # == would compare the cached arrays, too
        with explained(path, "writing the configuration"):
            _write_new_meta(path, config)
            os.replace(path / _NEW_META, path / _META)
            _sync_folder(path)


def _write_new_meta(path: Path, config: Config) -> None:
    meta = {
        "magic": MAGIC,
        "format": FORMAT,
        "epoch": config.epoch,
        "settings": settings_of(config),
        "config": config.model_dump(mode="json"),
    }
    with (path / _NEW_META).open("w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
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


def stored_config(path: Path) -> Config | None:
    """The configuration that a state was last written with; None where there is no state. Raises StateError.

    Needs no lock: the file is replaced as a whole.
    """
    if not os.path.exists(path / _META):  # False too where it may not be looked at: locking says why
        return None
    try:
        return make_config(_read_meta(path)["config"])
    except (ConfigError, LookupError, TypeError, ValueError) as error:
        raise damaged(path, f"the configuration in {_META} cannot be used ({error})") from None


def check(path: Path, config: Config) -> None:
    """Raise StateError unless the directory is a state of this format and configuration."""
    meta = _read_meta(path)
    if meta.get("epoch") != config.epoch:
        differences = setting_differences(meta.get("settings"), settings_of(config))
        raise StateError(
            f"{path}: the state was made with another configuration ({differences}): use that one, or replay into a"
            " new directory"
        )


def _read_meta(path: Path) -> dict[str, Any]:
    """What a directory says of itself. Raises StateError unless it is a state of this format."""
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
    return meta

"""State directories: locking one, telling whose it is, and making a new one so that a crash leaves no half of it.

DIR/state.json       whose directory this is: format, the configuration, and those of its settings that decide
                     what is retained
DIR/state.json.new   the same while the state is being created: nothing in it counts yet
DIR/rocksdb          see `agents.state.store`
DIR/rocksdb.new      what is to be there instead, while it comes from a shared copy
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agents.state.errors import (
    StateError,
    StateInUse,
    StateUnfit,
    damaged,
    explained,
    setting_differences,
    settings_of,
)
from cco.config import Config, ConfigError, make_config

MAGIC, FORMAT = "streaming-cco state", 2
DATABASE, _INCOMING = "rocksdb", "rocksdb.new"
_META, _NEW_META = "state.json", "state.json.new"
IN_USE = "the state is in use by another process; wait for its end"


def lock(path: Path, read_only: bool, in_use: str = IN_USE) -> int:
    """A handle of the directory, locked; it is made if it is not there. `in_use` is what a refusal says."""
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
            raise StateInUse(f"{path}: {in_use}") from None
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
        for old in found & {DATABASE, _INCOMING}:
            shutil.rmtree(path / old)
        fill(path / DATABASE)
        sync_folder(path / DATABASE)
        _make_it_count(path)


def install(path: Path, config: Config, fill: Callable[[Path], None]) -> None:
    """Put another database in place of the one of the same configuration that is there, or of none.

    The directory must be locked. `fill` makes the database in the folder that it is given; when it fails,
    what was there before still counts. A crash later on leaves a directory that counts as a new one. Raises
    StateError if the directory holds something else, or the state of another configuration.
    """
    found = {entry.name for entry in path.iterdir()}
    new = _is_new(found)
    if not new:
        check(path, config)
    with explained(path, "creating the state"):
        if new:
            _write_new_meta(path, config)
        drop_incoming(path)
        try:
            fill(path / _INCOMING)
            sync_folder(path / _INCOMING)
        except BaseException:
            drop_incoming(path)
            raise
        if not new:
            os.replace(path / _META, path / _NEW_META)
            sync_folder(path)
        if DATABASE in found:
            shutil.rmtree(path / DATABASE)
        os.replace(path / _INCOMING, path / DATABASE)
        _write_new_meta(path, config)
        _make_it_count(path)


def drop_incoming(path: Path) -> None:
    """Remove what a crash left of a shared copy. The directory must be locked."""
    if (path / _INCOMING).exists():
        shutil.rmtree(path / _INCOMING)


def put_back(path: Path, aside: Path) -> None:
    """The converse of `set_aside`; what has come to be at `path` meanwhile is removed."""
    with explained(path, f"renaming {aside} to it"):
        shutil.rmtree(path, ignore_errors=True)
        os.rename(aside, path)


def set_aside(path: Path, why: str) -> Path:
    """Rename a directory that cannot be used, and answer its new name, which says why. Raises StateError if in use."""
    handle = lock(path, read_only=False)
    try:
        number = 1
        while (aside := path.with_name(f"{path.name}.{why}-{number}")).exists():
            number += 1
        with explained(path, f"renaming it to {aside}"):
            os.rename(path, aside)
        return aside
    finally:
        os.close(handle)


def keep_config(path: Path, config: Config) -> None:
    """Make a configuration that fits the state the one that it is asked with from now on."""
    stored = stored_config(path)
    if stored is None or stored.model_dump() != config.model_dump():  # == would compare the cached arrays, too
        with explained(path, "writing the configuration"):
            _write_new_meta(path, config)
            _make_it_count(path)


def meta_of(config: Config) -> dict[str, Any]:
    """What a state of a configuration says of itself."""
    return {
        "magic": MAGIC,
        "format": FORMAT,
        "epoch": config.epoch,
        "settings": settings_of(config),
        "config": config.model_dump(mode="json"),
    }


def _write_new_meta(path: Path, config: Config) -> None:
    with (path / _NEW_META).open("w", encoding="utf-8") as file:
        json.dump(meta_of(config), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path)


def _make_it_count(path: Path) -> None:
    os.replace(path / _NEW_META, path / _META)
    sync_folder(path)


def _is_new(found: set[str]) -> bool:
    """Whether a directory holds nothing, or what is left of a creation that was broken off."""
    return not found or (_NEW_META in found and found <= {_NEW_META, DATABASE, _INCOMING})


def sync_folder(path: Path) -> None:
    """Make durable which files a folder has."""
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
    """Raise StateError unless the directory is a state of this format and configuration (StateUnfit: of another)."""
    check_meta(path, _read_meta(path), config, "a new directory")


def check_meta(where: object, meta: Mapping[str, Any], config: Config, otherwise: str) -> None:
    """Raise StateUnfit unless what a state says of itself fits this format and the configuration.

    `otherwise` says what can be done if the configuration is to stay.
    """
    _check_format(where, meta, otherwise)
    if meta.get("epoch") != config.epoch:
        differences = setting_differences(meta.get("settings"), settings_of(config))
        raise StateUnfit(
            f"{where}: the state was made with another configuration ({differences}): use that one, or {otherwise}"
        )


def _check_format(where: object, meta: Mapping[str, Any], otherwise: str) -> None:
    if meta.get("format") != FORMAT:
        raise StateUnfit(
            f"{where}: the state has format {meta.get('format')}, this version reads {FORMAT}: use the version that"
            f" wrote it, or {otherwise}"
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
    except OSError as error:
        raise StateError(f"{path}: {_META} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise damaged(path, f"{_META} cannot be read ({error})") from None
    if not isinstance(meta, dict) or meta.get("magic") != MAGIC:
        raise StateError(foreign)
    _check_format(path, meta, "a new directory")
    return meta

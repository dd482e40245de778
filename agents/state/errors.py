"""What can be wrong with a state directory, said in one line: what, where, what to do."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cco.config import FORMAT_VERSION, Config

_SHOWN = 5  # differing settings
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_DAMAGE = ("Corruption", "Invalid argument", "Not implemented")  # what RocksDB says then
_STAYS = "the state stays at its last commit"


class StateError(Exception):
    """A state that cannot be opened, read or written on: one readable line that names it."""


class StateDamaged(StateError):
    """A state, or a shared copy of one, that cannot be trusted: `what` is wrong with it."""

    def __init__(self, where: object, what: str, remedy: str) -> None:
        super().__init__(f"{where}: the state is damaged: {what}; {remedy}")
        self.what = what


class StateUnfit(StateError):
    """A state, or a copy of one, of another configuration or format: nothing is wrong with it."""


class StateClosed(StateError):
    """The store was closed while its state was being copied."""


class ShareError(StateError):
    """A place for shared copies that cannot be reached, read or written."""


class StateInUse(StateError):
    """A directory that another process has open."""


def damaged(path: Path, what: str) -> StateDamaged:
    """The error for a state directory that cannot be trusted."""
    return StateDamaged(path, what, "remove the directory and replay from the start")


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn whatever the system or RocksDB (which raises plain exceptions) says into a StateError."""
    try:
        yield
    except StateError:
        raise
    except Exception as error:
        text = one_line(error)
        if not is_full(error) and (text.startswith(_DAMAGE) or "No such file" in text):
            raise damaged(path, text) from error
        raise StateError(f"{path}: {_explanation(doing, error, text)}") from error


@contextmanager
def share_explained(where: str, doing: str) -> Iterator[None]:
    """Turn whatever a file system of shared copies says into a ShareError."""
    try:
        yield
    except StateError:
        raise
    except Exception as error:
        full = "there is no room: " if is_full(error) else ""
        raise ShareError(f"{where}: {doing} failed: {full}{one_line(error)}") from error


def is_full(error: Exception) -> bool:
    """Whether a disk, a quota or a limit on files is what speaks."""
    return getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL)


def one_line(error: Exception) -> str:
    """What an exception says, or its name if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _explanation(doing: str, error: Exception, text: str) -> str:
    if is_full(error):
        return f"{doing} failed, the disk (or a limit on it) is full: {_STAYS}; make room and start again ({text})"
    if "lock file" in text or "lock hold by" in text:
        return f"the state is in use by another process; wait for its end ({text})"
    if isinstance(error, PermissionError) or "Permission denied" in text or "Read-only file system" in text:
        return f"{doing} is not permitted: {text}"
    return f"{doing} failed: {text}; {_STAYS}"


def settings_of(config: Config) -> dict[str, str]:
    """The settings that decide what is retained, as they are written in TOML or nearly so, by dotted name."""
    settings = {"format version": str(FORMAT_VERSION), "primary": config.primary}
    for name, indicator in config.indicators.items():
        settings[f"indicators.{name}.events"] = json.dumps(sorted(indicator.events))
        settings[f"indicators.{name}.removed_by"] = json.dumps(sorted(indicator.removed_by))
        settings[f"indicators.{name}.user_cap"] = str(indicator.user_cap)
    for table, values in (("retention", config.retention.model_dump()), ("priors", config.priors.model_dump())):
        for key, value in values.items():
            settings[f"{table}.{key}"] = "none" if value is None else str(value)
    return settings


def setting_differences(stored: object, ours: Mapping[str, str]) -> str:
    """Which settings differ between a state's and the configuration's."""
    theirs = stored if isinstance(stored, dict) else {}
    names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    found = [
        f"{name}: {theirs.get(name, 'absent')} in the state, {ours.get(name, 'absent')} in the configuration"
        for name in names[:_SHOWN]
    ]
    if len(names) > _SHOWN:
        found.append(f"and {len(names) - _SHOWN} more")
    return "; ".join(found) or "its settings are not readable"

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
_STAYS = "the state stays at its last commit"


class StateError(Exception):
    """A state that cannot be opened, read or written on: one readable line that names it."""


def damaged(path: Path, what: str) -> StateError:
    """The error for a state that cannot be trusted."""
    return StateError(f"{path}: the state is damaged: {what}; remove the directory and replay from the start")


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn whatever the system or RocksDB (which raises plain exceptions) says into a StateError."""
    try:
        yield
    except StateError:
        raise
    except Exception as error:
        raise StateError(f"{path}: {_explanation(doing, error)}") from error


def _explanation(doing: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if getattr(error, "errno", None) in _FULL or any(os.strerror(number) in text for number in _FULL):
        return f"{doing} failed, the disk (or a limit on it) is full: {_STAYS}; make room and start again ({text})"
    if text.startswith(("Corruption", "Invalid argument", "Not implemented")) or "No such file" in text:
        return f"the state is damaged ({text}); remove the directory and replay from the start"
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

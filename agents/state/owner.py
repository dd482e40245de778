"""Who made a state: a worker, from one partition of a log; a replay, from files; a service; or `Engine.save`.

The input of a commit tells. A worker's names the `topic`, the `partition`, the counts `partitions` and
`item_partitions`, the `cluster` and the `offset` of the next record to read. A state that somebody else
made is refused: going on from it would mix two logs, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from agents.state.errors import StateError
from agents.state.records import Commit


def is_of_log(found: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Whether the input of a commit is a partition of a log."""
    return found is not None and "topic" in found


def is_served(found: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Whether the input of a commit is the journal of a service: `journal` is the next record of it to apply."""
    return found is not None and "journal" in found


def owner_of(commit: Commit) -> str:
    """Who made a state, as the rest of a sentence that begins with "the state"."""
    found = commit.input
    if is_of_log(found):
        return f"was made by a worker from partition {found['partition']} of the topic {found['topic']}"
    if is_served(found):
        return "is one of `cco serve`"
    if found is not None:
        return "was made by a replay"
    return "was saved by Engine.save" if commit.generation else "is a new one"


def refuse_worker(where: object, commit: Commit) -> None:
    """Raise StateError if the state is one that a worker keeps: it has users of one partition, and no metadata."""
    if is_of_log(commit.input):
        raise StateError(
            f"{where}: the state {owner_of(commit)}, and is only for a worker: give another directory to a replay"
            " or an engine"
        )


def offset_of(where: object, commit: Commit, source: int) -> int | None:
    """The next offset of source partition `source` to read after what a state holds; None if it holds nothing.

    Raises StateError, which names `where` the state is, if the state is not one that a worker keeps for it.
    """
    if commit.generation == 0:
        return None
    found = commit.input
    if not is_of_log(found):
        raise StateError(
            f"{where}: the state {owner_of(commit)}, not by a worker, which cannot go on from it: name another"
            " directory for the worker's states"
        )
    if found["partition"] != source:
        raise StateError(
            f"{where}: the state {owner_of(commit)}, and not from partition {source}: was it renamed? Give it its name"
            " back, or remove it"
        )
    return int(found["offset"])


def other_log(found: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """What differs between the logs of two inputs, their offsets apart; None if they are of the same log."""
    names = sorted((found.keys() | known.keys()) - {"offset"})
    differing = [name for name in names if found.get(name) != known.get(name)]
    return "; ".join(f"{name} {found.get(name)}, not {known.get(name)}" for name in differing) or None

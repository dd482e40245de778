"""Versions of the items index: which is served, which is being loaded, which one could be gone back to.

The aliases are the truth, for they change at once and together; `_meta.cco.rebuild` of each index says more about it:

    PREFIXitems           the index that is served
    PREFIXitems-rebuild   an index that a rebuild is making: the lock that keeps a second one away
    PREFIXitems-next      the same, once it is loaded: live agents write it as well
    INDEX-xxxxxxxx        of one index alone: agents write by it, so that what is on its way to one index, for however
                          long, never ends in the one that took its place

All functions here are for one thread and wait: at most 10 s a request. They raise what the client raises: use
`elastic_errors`.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from elasticsearch import Elasticsearch, NotFoundError

from cco.config import Config
from model_sync.elastic_client import ElasticProblem, IndexNames
from model_sync.elastic_mapping import differences, mapping

Role: TypeAlias = Literal["live", "loading", "previous", "left over"]
LOCK, NEXT = "-rebuild", "-next"  # of aliases: what follows the name of `items`
SILENT_SECONDS = 300.0  # without a heartbeat, after which a rebuild is taken for dead

_NUMBERED = re.compile(r"-([0-9]{6})")
_OWN = re.compile(r"-[0-9a-f]{8}")
_LOOK = "*.aliases,*.mappings._meta.cco"


@dataclass(frozen=True, slots=True)
class Version:
    """One index of items. `rebuild`: what its rebuild says of itself; empty where none made it."""

    name: str
    role: Role
    aliases: frozenset[str]
    rebuild: Mapping[str, Any] = field(default_factory=dict)
    documents: int = 0

    @property
    def number(self) -> int:
        """Versions count up."""
        return int(self.name[-6:])

    @property
    def state(self) -> str:
        """computing, loading, ready, live or previous, as far as a rebuild came to write it."""
        return str(self.rebuild.get("state", ""))

    @property
    def offsets(self) -> dict[str, int]:
        """By source partition, the offset of the log that the model stood for when it was loaded."""
        return {str(partition): int(offset) for partition, offset in self.rebuild.get("offsets", {}).items()}

    def moment(self, which: Literal["started", "heartbeat", "finished"]) -> int | None:
        """Seconds since 1970, by the clock of who rebuilt it; None: not known."""
        found = self.rebuild.get(which)
        return None if found is None else int(found)

    def silent(self, now: float) -> float:
        """Seconds since the rebuild's last heartbeat; `now` in seconds since 1970."""
        return now - (self.moment("heartbeat") or 0)

    def told(self, now: float) -> str:
        """Who rebuilds it, for messages."""
        host, ago = self.rebuild.get("host", "an unknown host"), max(0.0, self.silent(now))
        return f"{self.name} on {host}, last heard of {ago:.0f} s ago"


def own_alias(index: str) -> str:
    """A new alias for an index alone."""
    return f"{index}-{secrets.token_hex(4)}"


def is_own_alias(index: str, alias: str) -> bool:
    """Whether `alias` was made for the index alone."""
    return alias.startswith(index) and _OWN.fullmatch(alias.removeprefix(index)) is not None


def versions(client: Elasticsearch, names: IndexNames) -> list[Version]:
    """All versions, the newest first."""
    pattern = f"{names.items}-0*"
    found = client.indices.get(index=pattern, allow_no_indices=True, ignore_unavailable=True, filter_path=_LOOK).body
    ours = {
        name: of
        for name, of in found.items()
        if name.startswith(names.items) and _NUMBERED.fullmatch(name.removeprefix(names.items))
    }
    if not ours:
        return []
    stats = client.indices.stats(index=pattern, metric=["docs"]).body.get("indices", {})
    metas = {name: _rebuild(of) for name, of in ours.items()}
    aliases = {name: frozenset(of.get("aliases", ())) for name, of in ours.items()}
    before = {metas[name].get("previous") for name in ours if names.items in aliases[name]}
    return [
        Version(
            name,
            _role(name, aliases[name], names, before),
            aliases[name],
            metas[name],
            int(stats.get(name, {}).get("primaries", {}).get("docs", {}).get("count", 0)),
        )
        for name in sorted(ours, reverse=True)
    ]


def _rebuild(found: Mapping[str, Any]) -> dict[str, Any]:
    ours: Mapping[str, Any] = found.get("mappings", {}).get("_meta", {}).get("cco", {})
    return dict(ours.get("rebuild", {}))


def _role(name: str, aliases: frozenset[str], names: IndexNames, before: set[str | None]) -> Role:
    if names.items in aliases:
        return "live"
    if names.items + LOCK in aliases:
        return "loading"
    return "previous" if name in before else "left over"


def live(found: list[Version]) -> Version | None:
    """The one that is served."""
    return next((version for version in found if version.role == "live"), None)


def refuse_beside(found: list[Version], doing: str, remedy: str) -> None:
    """Raises ElasticProblem while another rebuild is alive."""
    now = time.time()
    for version in found:
        if version.role == "loading" and version.silent(now) < SILENT_SECONDS:
            raise ElasticProblem(f"{doing}: a rebuild is going on: {version.told(now)}: {remedy}")


def annotate(client: Elasticsearch, index: str, **values: object) -> None:
    """Set some of what `_meta.cco.rebuild` of an index says; None removes."""
    meta: dict[str, Any] = dict(client.indices.get_mapping(index=index).body[index]["mappings"].get("_meta", {}))
    ours = dict(meta.get("cco", {}))
    rebuild = {**ours.get("rebuild", {}), **values}
    ours["rebuild"] = {name: value for name, value in rebuild.items() if value is not None}
    client.indices.put_mapping(index=index, meta={**meta, "cco": ours})


def remove_left_over(client: Elasticsearch, names: IndexNames) -> list[str]:
    """Delete what rebuilds left behind, but for the index that is served and the one before it. Answers their names."""
    removed = []
    for version in versions(client, names):
        if version.role == "left over" and version.rebuild:  # what no rebuild has written on is somebody else's
            client.options(ignore_status=404).indices.delete(index=version.name)
            removed.append(version.name)
    return removed


def rollback(client: Elasticsearch, config: Config, names: IndexNames) -> tuple[str, str]:
    """Serve the previous index again, at once, and keep the other for another rollback. Answers (from, to).

    Agents that are alive write it from then on, and bring it up to date. Raises ElasticProblem.
    """
    found = versions(client, names)
    refuse_beside(found, "not rolled back", "wait until it has ended")
    now, before = live(found), next((version for version in found if version.role == "previous"), None)
    if now is None:
        raise ElasticProblem(f"not rolled back: no index is served as {names.items}: `cco index create` makes one")
    if before is None:
        raise ElasticProblem(f"not rolled back: there is none before {now.name}: none was swapped, or it was deleted")
    meta = client.indices.get_mapping(index=before.name).body[before.name]["mappings"]
    unfit = [str(each) for each in differences(before.name, mapping("items", config), meta) if not each.in_place]
    if unfit:
        raise ElasticProblem("not rolled back: the previous index does not fit the configuration\n" + "\n".join(unfit))
    annotate(client, before.name, previous=now.name)  # first: an alias that has moved is not left without its way back
    try:
        client.indices.update_aliases(
            actions=[
                {"remove": {"index": now.name, "alias": names.items, "must_exist": True}},
                {"add": {"index": before.name, "alias": names.items}},
            ]
        )
    except NotFoundError:
        raise ElasticProblem(f"not rolled back: {names.items} has been moved meanwhile: look again") from None
    annotate(client, now.name, state="previous")
    annotate(client, before.name, state="live")
    return now.name, before.name

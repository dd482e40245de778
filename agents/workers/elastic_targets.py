"""The indices of items that a worker writes: the one that is served, and the next while a rebuild has one ready.

What is put goes to all of them, through a writer each. An index that comes to be served after it was the next one has
everything already: nothing is said again. One that was not seen before is told everything from the beginning; those
that were there get what has changed alone, and between two requests the node has time for questions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from elasticsearch import AsyncElasticsearch

from agents.workers.item_partition import Claim
from agents.workers.patch_sinks import Encoded
from cco.config import Config
from cco.rows import Patches
from cco.vocabulary import Vocabulary
from model_sync.bulk_types import FencedError, Statistics
from model_sync.bulk_writer import Owner, RowWriter, WriterClosedError
from model_sync.elastic_client import ElasticProblem
from model_sync.elastic_documents import RowDocument, row_documents
from model_sync.elastic_mapping import LOG, Kind, differences, mapping, merged_meta
from model_sync.elastic_metadata import MetadataWriter
from model_sync.elastic_versions import NEXT, is_own_alias

# While rows are handed over to an index that is not yet served: until the next, of the time that they took; seconds.
REST, MOST_REST = 0.5, 1.0
_META = "*.mappings._meta.cco"
_LOOK = f"*.aliases,*.settings.index.uuid,{_META}.rebuild.epoch,{_META}.{LOG},{_META}.indicators,{_META}.format"


@dataclass(frozen=True, slots=True)
class Place:
    """An index. `alias`: what it is written by; `epoch`: of the rebuild that made it, if one did.

    `log`: of which log it is; None: nobody has signed it. `indicators`: that it has fields for, and `format`: of its
    documents; None: not known.
    """

    name: str
    id: str
    alias: str
    epoch: str | None
    log: Mapping[str, Any] | None = None
    indicators: tuple[str, ...] | None = None
    format: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """An index that is written."""

    place: Place
    rows: RowWriter
    metadata: MetadataWriter


async def look(client: AsyncElasticsearch, alias: str) -> tuple[Place, Place | None]:
    """What is served, and what is next. Raises ElasticProblem where nothing is served, and what the client raises."""
    found = await client.indices.get(
        index=f"{alias},{alias}{NEXT}", ignore_unavailable=True, allow_no_indices=True, filter_path=_LOOK
    )
    of: Mapping[str, Mapping[str, Any]] = found.body or {}
    served = [name for name in of if alias in of[name].get("aliases", ())]
    if len(served) != 1:
        which = "no index" if not served else ", ".join(sorted(served))
        raise ElasticProblem(f"{which} is behind the alias {alias}, and one must be: see `cco index check`")
    following = sorted(name for name in of if alias + NEXT in of[name].get("aliases", ()) and name not in served)
    return _place(served[0], of, alias), _place(following[-1], of, alias) if following else None


def _place(name: str, found: Mapping[str, Mapping[str, Any]], alias: str) -> Place:
    of = found[name]
    own = sorted(each for each in of.get("aliases", ()) if is_own_alias(name, each))
    meta = of.get("mappings", {}).get("_meta", {}).get("cco", {})
    epoch, uuid = meta.get("rebuild", {}).get("epoch"), str(of["settings"]["index"]["uuid"])
    indicators = None if "indicators" not in meta else tuple(meta["indicators"])
    # An index made by hand may have no alias of its own.
    return Place(name, uuid, own[0] if own else alias, epoch, meta.get(LOG), indicators, meta.get("format"))


async def sign(client: AsyncElasticsearch, index: str, log: Mapping[str, Any]) -> None:
    """Note of which log an index is. Raises what the client raises."""
    meta = dict((await client.indices.get_mapping(index=index)).body[index]["mappings"].get("_meta", {}))
    await client.indices.put_mapping(index=index, meta={**meta, "cco": {**meta.get("cco", {}), LOG: log}})


async def fit(client: AsyncElasticsearch, place: Place, kind: Kind, config: Config) -> list[str]:
    """Give an index the fields of indicators that are new to it, and would be refused; answers which these are.

    Raises ElasticProblem where it does not fit in another way too, and what the client raises.
    """
    new = [name for name in config.indicator_names if place.indicators is not None and name not in place.indicators]
    if new:
        wanted = mapping(kind, config)
        found = (await client.indices.get_mapping(index=place.name)).body[place.name]["mappings"]
        for each in differences(place.name, wanted, found):
            if not each.in_place:
                raise ElasticProblem(str(each))
        meta = merged_meta(wanted, found)
        await client.indices.put_mapping(index=place.name, properties=wanted["properties"], meta=meta)
    return new


class Targets:
    """The indices that are written, by id; the one that is served first."""

    def __init__(self) -> None:
        self._targets: dict[str, Target] = {}
        self.holding: frozenset[str] = frozenset()  # ids of those that hold what patches say was sent before
        self._closed = Statistics()  # of writers that are gone
        self._some = asyncio.Event()

    def __iter__(self) -> Iterator[Target]:
        return iter(list(self._targets.values()))

    def ids(self) -> list[str]:
        """Of the indices, the one that is served first."""
        return list(self._targets)

    @property
    def served(self) -> Target | None:
        """The index that questions are answered from; None while it is not known."""
        return next(iter(self._targets.values()), None)

    def set(self, targets: Sequence[Target]) -> list[Target]:
        """From now on these, the one that is served first. Answers those that are no more, to be closed."""
        before = self._targets
        self._targets = {target.place.id: target for target in targets}
        gone = [target for id, target in before.items() if id not in self._targets]
        for target in gone:
            counts = target.rows.stats.counts
            for each in fields(Statistics):
                setattr(self._closed, each.name, getattr(self._closed, each.name) + getattr(counts, each.name))
        if self._targets:
            self._some.set()
        else:
            self._some.clear()
        return gone

    def counts(self) -> Statistics:
        """Of all writers since the beginning; the latency is that of the index that is served."""
        total = Statistics()
        every = [self._closed, *(target.rows.stats.counts for target in self._targets.values())]
        for each in fields(Statistics):
            setattr(total, each.name, sum(getattr(counts, each.name) for counts in every))
        total.latency = 0.0 if self.served is None else self.served.rows.stats.counts.latency
        return total

    async def some(self) -> list[Target]:
        """All of them; waits while there is none."""
        await self._some.wait()
        return list(self._targets.values())


class ElasticSink:
    """A `patch_sinks.Sink` over all targets."""

    def __init__(self, config: Config, targets: Targets) -> None:
        self._config, self._targets = config, targets

    def encode(self, items: Vocabulary, patches: Patches, partition: int, claim: Claim) -> Encoded[RowDocument]:
        """One document for each item that `patches` has fields of."""
        documents, changed = row_documents(self._config, items, patches), None
        if patches.again is not None:
            rest = patches.rows.select(np.flatnonzero(~patches.again))
            changed = row_documents(self._config, items, Patches(patches.position, rest))
        return Encoded(partition, claim, documents, len(patches.rows), changed)

    async def send(self, encoded: Encoded[RowDocument]) -> asyncio.Future[Any]:
        """Waits while a writer's queue is full; with rows that are handed over, until they are stored, and a while."""
        owner = Owner(encoded.partition, encoded.claim.at, encoded.claim.offset)
        futures = []
        for target in await self._targets.some():
            records = encoded.records
            if encoded.changed is not None and target.place.id in self._targets.holding:
                records = encoded.changed
            try:
                if records:
                    futures.append(await target.rows.put(owner, records))
            except WriterClosedError:  # it is written no more; what broke a writer, earlier futures have told
                continue
        stored = asyncio.ensure_future(_stored(futures))
        if encoded.changed is not None:
            began = time.monotonic()
            await asyncio.wait([stored])
            await asyncio.sleep(min(MOST_REST, REST * (time.monotonic() - began)))
        return stored

    async def close(self) -> None:
        """The writers are closed by `ElasticPublishing`."""


async def _stored(futures: Sequence[asyncio.Future[None]]) -> None:
    """Wait for all. Raises FencedError if one of them does, and whatever is wrong with a writer."""
    found = await asyncio.gather(*futures, return_exceptions=True)
    errors = [error for error in found if isinstance(error, BaseException) and not isinstance(error, WriterClosedError)]
    for error in sorted(errors, key=lambda error: isinstance(error, FencedError)):
        raise error

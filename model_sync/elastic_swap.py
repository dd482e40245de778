"""A rebuilt model published by a swap: a fresh index is loaded, looked at, and takes the place of the one served.

1. Making the fresh index is the lock: a second rebuild finds it and is refused. A thread keeps its heartbeat.
2. It is loaded while nobody else writes it, and compared with what was computed.
3. Then live agents are shown it, by the alias `-next`: they send it every row of theirs and all changes of items, and
   keep it like the one that is served. A change of an item during all this is in its topic, and so is never lost.
4. One request moves the alias of `items`, so that each search is answered by one index or the other, whole. A question
   that takes two (one of shares, or for want of hits) and is asked at that moment has a part of its answer from each.

Queries go on throughout. A rebuild that dies leaves the index that is served as it is: before step 4 nothing has
happened, after it everything. What it leaves behind is removed by the next.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from elasticsearch import ApiError, BadRequestError, Elasticsearch, NotFoundError, TransportError

from cco.config import Config
from cco.rows import Rows
from cco.vocabulary import Vocabulary
from model_sync.elastic_admin import for_server, served_index
from model_sync.elastic_client import ElasticOptions, ElasticProblem, IndexNames, names, reason, sync_client
from model_sync.elastic_load import Loader
from model_sync.elastic_mapping import LOG, mapping, settings
from model_sync.elastic_patience import Patience
from model_sync.elastic_verify import Verifier
from model_sync.elastic_versions import (
    LOCK,
    NEXT,
    annotate,
    own_alias,
    refuse_beside,
    remove_left_over,
    versions,
)

HEARTBEAT_SECONDS = 10.0
PATIENCE_SECONDS = 180.0  # that Elasticsearch may be away
NOBODY_SECONDS = 5.0  # without a document of theirs, after which no agent is taken to be alive
SILENT_SECONDS = 60.0  # the same, as long as some say that they are
STANDSTILL_SECONDS = 10.0  # after which those that write have taken over all that they will
TAKE_OVER_SECONDS = 900.0  # at most
LATE_SECONDS = 10.0  # in which an index is made, asked for by somebody who did not wait for the answer
LOOK_SECONDS = 0.5

_LOST = "this rebuild is over: another one has set it aside, or its index was deleted; nothing of it was published"


@dataclass(frozen=True, slots=True)
class Published:
    """What was published.

    answered, unanswered: sampled questions about users and items of the index before that it answers, and those of them
    that this one does not. same: mean share of equal hits of sampled questions in this index and the one before; None
    without one. live_share: of sampled documents, those that live agents had written before the swap.
    """

    index: str
    previous: str | None
    items: int
    metadata: int
    verified_rows: int
    questions: int
    answered: int
    unanswered: int
    same: float | None
    live_share: float
    seconds: float
    removed: tuple[str, ...]


@contextmanager
def rebuilding(
    config: Config,
    options: ElasticOptions,
    *,
    take_over: bool = False,
    source: str = "",
    tell: Callable[[str], None] = lambda _: None,
    someone_writes: Callable[[Elasticsearch], bool] = lambda _: False,
) -> Iterator[Rebuilding]:
    """Enter before computing: makes the fresh index, which is the lock. Unless `publish` has swapped it, it is removed.

    `source`: what the model is made from, in a word, for whoever looks. `tell` is called with a sentence for each step.
    `someone_writes`: whether agents that would write the index say that they are there; looked at while none does.
    Raises ElasticProblem, also if another rebuild is going on; `take_over` sets that one aside.
    """
    with sync_client(options) as client:
        swap = Rebuilding(client, names(options), config, source, tell, someone_writes)
        try:
            swap.begin(take_over)
            yield swap
        finally:
            swap.end()


class Rebuilding:
    """One rebuild, from its lock to the swap."""

    def __init__(
        self,
        client: Elasticsearch,
        names: IndexNames,
        config: Config,
        source: str,
        tell: Callable[[str], None],
        someone_writes: Callable[[Elasticsearch], bool],
    ) -> None:
        self._client, self._names, self._config, self._tell = client, names, config, tell
        self._someone_writes = someone_writes
        self._patience = Patience(PATIENCE_SECONDS, self._check, tell)
        self._chance = random.Random()
        self._is_asked = self._is_made = self._is_lost = self._is_published = False
        self._said = threading.Lock()
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None
        self._rebuild: dict[str, Any] = {
            "by": f"{self._chance.getrandbits(64):016x}",
            "host": socket.gethostname(),
            "source": source,
            "epoch": config.epoch,
            "started": _now(),
        }
        self.index = ""
        self._alias = ""
        self.log_of_served: Mapping[str, Any] = {}  # `_meta.cco.log` of the served index; see `agents.kafka.logs`

    # -- the lock -----------------------------------------------------------------------------------

    def begin(self, take_over: bool) -> None:
        """Make the fresh index. Raises ElasticProblem while another rebuild is alive, unless it is to be taken over."""
        found = self._patience("looking at the indices", lambda: versions(self._client, self._names))
        if not take_over:
            refuse_beside(found, "no second rebuild", "wait until it has ended, or --take-over sets it aside")
        self.log_of_served = self._patience("looking at the index", self._look_at_log)
        number = 1 + max((version.number for version in found), default=0)
        self.index = f"{self._names.items}-{number:06d}"
        self._alias = own_alias(self.index)
        self._rebuild |= {"state": "computing", "heartbeat": _now()}
        self._patience("making an index", self._make)
        self._is_made = True
        for version in found:
            if version.role == "loading":
                self._set_aside(version.name)
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()
        self._tell(f"made {self.index}")

    def _make(self) -> None:
        wanted = {**mapping("items", self._config), "_meta": self._meta()}
        aliases: dict[str, Any] = {self._names.items + LOCK: {}, self._alias: {}}
        given = {**settings(), **for_server(self._client), "refresh_interval": "-1"}
        self._is_asked = True
        try:
            self._client.indices.create(index=self.index, mappings=wanted, settings=given, aliases=aliases)
        except ApiError as error:
            is_there = isinstance(error, BadRequestError) and reason(error)[0] == "resource_already_exists_exception"
            if not is_there:
                self._is_asked = error.status_code >= 500  # then it may be made all the same
                raise
            if not self._is_ours():  # else: our own earlier try
                self._is_asked = False
                raise ElasticProblem(f"no second rebuild: another one has just made {self.index}") from None

    def _is_ours(self) -> bool:
        """Whether the index is there, and we made it."""
        found = self._client.indices.get_mapping(index=self.index).body[self.index]["mappings"].get("_meta", {})
        return bool(found.get("cco", {}).get("rebuild", {}).get("by") == self._rebuild["by"])

    def _set_aside(self, index: str) -> None:
        """Remove the index of another rebuild, unless it has swapped meanwhile: then it is the one that is served."""
        try:
            self._patience("removing an index", partial(self._remove, index))
            self._tell(f"removed {index} of another rebuild")
        except ElasticProblem as error:
            if not isinstance(error.__cause__, NotFoundError):
                raise

    def _remove(self, index: str) -> None:
        """Delete an index that is still being made. Without its lock first, it cannot be swapped in between."""
        alias = self._names.items
        actions = [
            {"remove": {"index": index, "alias": alias + LOCK, "must_exist": True}},
            {"remove": {"index": index, "alias": alias + NEXT, "must_exist": False}},
        ]
        self._client.indices.update_aliases(actions=actions)
        self._client.indices.delete(index=index)

    def _look_at_log(self) -> Mapping[str, Any]:
        """What says of which log the served index is: its metadata goes into ours, with its positions in that log."""
        served = served_index(self._client, self._names.items)
        if served is None:
            return {}
        found = self._client.indices.get_mapping(index=served).body[served]["mappings"].get("_meta", {}).get("cco", {})
        signed: Mapping[str, Any] = found.get(LOG) or {}
        return signed

    def _meta(self) -> dict[str, Any]:
        ours = mapping("items", self._config)["_meta"]["cco"]
        log = {LOG: self.log_of_served} if self.log_of_served else {}
        return {"cco": {**ours, **log, "rebuild": dict(self._rebuild)}}

    def _say(self, **values: Any) -> None:
        """Write what `_meta` says of the rebuild."""
        with self._said:
            self._rebuild |= {**values, "heartbeat": _now()}
            self._client.indices.put_mapping(index=self.index, meta=self._meta())

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                self._say()
            except NotFoundError:
                self._is_lost = True
                return
            except (ApiError, TransportError):
                continue  # it is away for a moment; whoever waits for it says so

    def _check(self) -> None:
        if self._is_lost:
            raise ElasticProblem(_LOST)

    def end(self) -> None:
        """The heart stops; an index that was not published is removed, if Elasticsearch is there."""
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        if self._is_asked and not self._is_published:
            with suppress(ApiError, TransportError):
                if self._is_made or self._came_late():
                    self._remove(self.index)

    def _came_late(self) -> bool:
        """Whether a request that was interrupted has made the index after all, or makes it now."""
        end = time.monotonic() + LATE_SECONDS
        while True:
            try:
                return self._is_ours()
            except (NotFoundError, TransportError):
                if time.monotonic() > end:
                    return False
            time.sleep(LOOK_SECONDS)

    # -- publishing ---------------------------------------------------------------------------------

    def publish(
        self, rows: Rows, items: Vocabulary, offsets: Mapping[str, int], *, allow_smaller: bool = False
    ) -> Published:
        """Load, compare, let live agents take over, swap. Raises ElasticProblem: then nothing was published.

        `rows`: sealed, sorted by item, then field. `offsets`: of each source partition, up to where the model counts.
        """
        began = time.monotonic()
        served = self._patience("looking at the index", lambda: served_index(self._client, self._names.items))
        alias = None if served is None else self._names.items
        self._step("saying what is loaded", state="loading", offsets=dict(offsets))
        loader = Loader(self._client, self._alias, alias, self._config, self._patience, self._chance)
        for documents in loader.load(rows, items):
            self._tell(f"loaded {documents:,} documents into {self.index}")
        self._patience("making documents visible", self._open)
        verifier = Verifier(self._client, self.index, alias, self._names.users, self._config, self._patience)
        verified = verifier.verify(loader.loaded, rows, items, allow_smaller)
        self._tell(f"verified {verified.rows} rows and {verified.questions + verified.answered} questions")
        self._step("saying that it is loaded", state="ready", previous=served)
        self._patience("showing it to agents", self._show)
        share = self._wait_for_agents([document.item for document in loader.loaded.row_samples])
        served = self._swap(served)
        self._is_published = True
        self._tell(f"{self.index} is served")
        removed = self._tidy(served)
        return Published(
            index=self.index, previous=served, items=loader.loaded.rows, metadata=loader.loaded.metadata,
            verified_rows=verified.rows, questions=verified.questions, answered=verified.answered,
            unanswered=verified.unanswered, same=verified.same, live_share=share,
            seconds=round(time.monotonic() - began, 3), removed=tuple(removed),
        )  # fmt: skip

    def _step(self, doing: str, **values: Any) -> None:
        try:
            self._patience(doing, lambda: self._say(**values))
        except ElasticProblem as error:
            if isinstance(error.__cause__, NotFoundError):
                raise ElasticProblem(_LOST) from error
            raise

    def _open(self) -> None:
        """For searches: what was loaded is visible, and what comes is within a second."""
        usual = {"refresh_interval": settings()["refresh_interval"]}
        self._client.indices.put_settings(index=self.index, settings=usual)
        self._client.indices.refresh(index=self.index)

    def _show(self) -> None:
        actions = [{"add": {"index": self.index, "alias": self._names.items + NEXT}}]
        self._client.indices.update_aliases(actions=actions)

    def _wait_for_agents(self, sample: list[str]) -> float:
        """Until live agents have written the sampled documents, or nobody does. Answers the share that they wrote."""
        began = changed = time.monotonic()
        share = 0.0
        while sample:
            found = self._patience("looking for agents", lambda: self._owned(sample)) / len(sample)
            now = time.monotonic()
            if found > share:
                share, changed = found, now
            if share == 1 or self._is_over(share, now - changed) or now - began > TAKE_OVER_SECONDS:
                break
            time.sleep(LOOK_SECONDS)
        if share:
            self._tell(f"live agents have written {share:.0%} of {self.index}")
        return share

    def _is_over(self, share: float, quiet: float) -> bool:
        """Whether nobody is waited for any more, after `quiet` s without another document of theirs."""
        if share:
            return quiet > STANDSTILL_SECONDS
        if quiet <= NOBODY_SECONDS:
            return False
        someone = self._patience("looking for agents", partial(self._someone_writes, self._client))
        return quiet > SILENT_SECONDS or not someone

    def _owned(self, ids: list[str]) -> int:
        answer = self._client.mget(index=self.index, ids=ids, source_includes=["owner"])
        return sum("owner" in (document.get("_source") or {}) for document in answer["docs"])

    # -- the swap -----------------------------------------------------------------------------------

    def _swap(self, before: str | None) -> str | None:
        """Move the alias. Answers the index that was served. An answer that was lost is looked up."""
        while True:
            try:
                return self._patience("swapping", partial(self._move, before))
            except ElasticProblem as error:
                if not isinstance(error.__cause__, NotFoundError):
                    raise
            time.sleep(LOOK_SECONDS)
            before = self._patience("looking at the index", self._still_ours)

    def _move(self, before: str | None) -> str | None:
        """All at once, and only if everything is still as it was."""
        alias = self._names.items
        if self._client.indices.exists_alias(index=self.index, name=alias):
            return before  # done by an earlier try
        actions: list[dict[str, Any]] = [
            {"remove": {"index": self.index, "alias": alias + LOCK, "must_exist": True}},
            {"remove": {"index": self.index, "alias": alias + NEXT, "must_exist": False}},
            {"add": {"index": self.index, "alias": alias}},
        ]
        if before is not None:
            actions.append({"remove": {"index": before, "alias": alias, "must_exist": True}})
        self._client.indices.update_aliases(actions=actions)
        return before

    def _still_ours(self) -> str | None:
        """What is served, after something was not there: it may have been moved by hand, and we go on from that."""
        if not self._client.indices.exists_alias(index=self.index, name=self._names.items + LOCK):
            raise ElasticProblem(_LOST)
        served = served_index(self._client, self._names.items)
        self._say(previous=served)
        return served

    def _tidy(self, before: str | None) -> list[str]:
        """What is left to do after the swap. If it fails, the next rebuild does it."""
        self._ended.set()
        try:
            self._patience("noting the swap", lambda: self._say(state="live", finished=_now()))
            if before is not None:
                self._patience("noting the swap", lambda: annotate(self._client, before, state="previous"))
            return self._patience("removing old indices", lambda: remove_left_over(self._client, self._names))
        except ElasticProblem as error:
            self._tell(f"{error}; the model is published, and the next rebuild tidies up")
            return []


def _now() -> int:
    return int(time.time())

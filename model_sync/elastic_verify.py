"""Whether a loaded index is what was computed, and answers: looked at before anybody is served from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from elasticsearch import AuthorizationException, Elasticsearch

from cco.config import Config
from cco.rows import Rows
from cco.vocabulary import Vocabulary
from model_sync.contract import PRIORS, Query
from model_sync.elastic_client import ElasticProblem
from model_sync.elastic_documents import RowDocument, properties_of, returned_properties
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_load import Loaded
from model_sync.elastic_metadata import SOURCE
from model_sync.elastic_names import decoded, encoded
from model_sync.elastic_patience import Patience
from model_sync.elastic_users import user_history

QUESTIONS = 30
OF_SERVED = 10  # sampled items, and users, of the index that is served now
HISTORY = 10  # items of a sampled question
HITS = 10
SMALLEST = 0.5  # of the items with rows, and of the questions with answers, of now: with fewer an index is suspect


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at.

    answered, unanswered: questions about users and items of the served index that it answers, and those of them that
    the new one does not. same: mean share of equal hits in both indices; None where there is no other.
    """

    rows: int
    metadata: int
    questions: int
    answered: int
    unanswered: int
    same: float | None


class Verifier:
    """Compares `index` with what was computed and with `served`, the alias of the present one, if there is one.

    `users`: the alias of the users whose histories are asked with.
    """

    def __init__(
        self, client: Elasticsearch, index: str, served: str | None, users: str, config: Config, patience: Patience
    ) -> None:
        self._client, self._index, self._served, self._users = client, index, served, users
        self._config, self._patience = config, patience

    def verify(self, loaded: Loaded, rows: Rows, items: Vocabulary, allow_smaller: bool) -> Verified:
        """Raises ElasticProblem with the first thing that is not as it should be."""
        self._counts(loaded, allow_smaller)
        self._rows(loaded)
        self._metadata(loaded)
        asked, same = self._questions(loaded, items)
        answered, unanswered = self._still_answered(items, allow_smaller)
        samples = len(loaded.row_samples), len(loaded.metadata_samples)
        return Verified(*samples, asked, answered, unanswered, same)

    def _counts(self, loaded: Loaded, allow_smaller: bool) -> None:
        there = self._count(self._index, {"match_all": {}})
        if there != loaded.documents:
            raise self._wrong(f"{there:,} documents, and {loaded.documents:,} were loaded")
        filled = self._count(self._index, _filled(self._config.indicator_names))
        if filled != loaded.rows:
            raise self._wrong(f"{filled:,} documents with rows, and {loaded.rows:,} were loaded")
        if self._served is None or allow_smaller:
            return
        before = self._count(self._served, _filled(self._config.indicator_names))
        if filled < SMALLEST * before:
            raise ElasticProblem(
                f"{self._index}: {filled:,} items would have rows, and {before:,} of {self._served} have now: was all"
                " of the log read? Nothing is published; --allow-smaller says that it is meant"
            )

    def _count(self, index: str, query: Mapping[str, Any]) -> int:
        return self._patience("counting", lambda: int(self._client.count(index=index, query=query)["count"]))

    def _wrong(self, what: str) -> ElasticProblem:
        return ElasticProblem(f"{self._index} is not as it was loaded: {what}: nothing is published; rebuild again")

    def _get(self, ids: list[str], source: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
        if not ids:
            return {}
        found = self._patience(
            "looking at documents",
            lambda: self._client.mget(index=self._index, ids=ids, source_includes=source).body["docs"],
        )
        return {document["_id"]: document.get("_source") or {} for document in found}

    def _rows(self, loaded: Loaded) -> None:
        found = self._get([document.item for document in loaded.row_samples], ("rows", PRIORS))
        for item, fields in loaded.row_samples:
            wanted = {name: json.loads(value) for name, value in fields.items()}
            source = found[item]
            has = {**source.get("rows", {}), **({PRIORS: source[PRIORS]} if PRIORS in source else {})}
            if has != wanted:
                raise self._wrong(f"the rows of {item[:40]!r} are others than were computed")

    def _metadata(self, loaded: Loaded) -> None:
        found = self._get([item for item, _ in loaded.metadata_samples], (*SOURCE, "returned"))
        for item, source in loaded.metadata_samples:
            has = found[item]
            same = all(has.get(name) == source.get(name) for name in ("known", "metadata_position"))
            if source.get("known"):
                same &= properties_of(source) == properties_of(has) == returned_properties(has.get("returned"))
            if not same:
                raise self._wrong(f"the metadata of {item[:40]!r} is not that of {self._served}")

    def _questions(self, loaded: Loaded, items: Vocabulary) -> tuple[int, float | None]:
        """Ask for what rows hold: whoever has it must be found."""
        hidden = {item for item, source in loaded.metadata_samples if source.get("deleted")}
        asked, empty, shares = 0, 0, []
        new = ElasticIndex(self._client, self._index, self._config, items)
        old = None if self._served is None else ElasticIndex(self._client, self._served, self._config, items)
        for document in loaded.row_samples:
            if asked == QUESTIONS:
                break
            query = self._question(document)
            if query is None or document.item in hidden:
                continue
            asked += 1
            hits = self._hits(new, query)
            empty += not hits
            if old is not None:
                before = self._hits(old, query)
                shares.append(len(hits & before) / max(1, len(hits), len(before)))
        if asked and empty > asked / 2:  # not all: an item may have been deleted
            raise self._wrong(f"{empty} of {asked} questions that rows answer are answered by nothing")
        return asked, float(np.mean(shares)) if shares else None

    # -- what is answered now -----------------------------------------------------------------------

    def _still_answered(self, items: Vocabulary, allow_smaller: bool) -> tuple[int, int]:
        """Questions about users and items that the served index answers, and those of them that the new one does not.

        What was loaded may be as it was computed and answer whoever asks for it, and be of other users and items.
        """
        if self._served is None:
            return 0, 0
        new = ElasticIndex(self._client, self._index, self._config, items)
        old = ElasticIndex(self._client, self._served, self._config, items)
        asked = [Query(history=of, num=HITS, backfill=None, fields=()) for of in self._histories_of_served()]
        answered = [query for query in asked if self._hits(old, query)]
        unanswered = sum(not self._hits(new, query) for query in answered)
        if len(answered) - unanswered < SMALLEST * len(answered) and not allow_smaller:
            raise ElasticProblem(
                f"{self._index}: would not answer {unanswered} of {len(answered)} questions about users and items that"
                f" {self._served} answers now: is this the log of these users and items? Nothing is published;"
                " --allow-smaller says that it is meant"
            )
        return len(answered), unanswered

    def _histories_of_served(self) -> list[dict[str, list[str]]]:
        """Of some items that are served: who has just this; of some users: theirs."""
        assert self._served is not None
        filled = self._some(self._served, _filled(self._config.indicator_names))
        found = [{self._config.primary: [str(hit["_id"])]} for hit in filled]
        try:
            users = self._some(self._users, {"exists": {"field": "last"}}, ("history", "position"))
        except ElasticProblem as error:
            if not isinstance(error.__cause__, AuthorizationException):
                raise
            users = []  # who publishes needs no right to read them
        for hit in users:
            history = user_history(hit["_source"]).items
            known = {name: history[name][:HISTORY] for name in self._config.indicator_names if name in history}
            found += [known] if known else []
        return found

    def _some(self, index: str, query: Mapping[str, Any], source: tuple[str, ...] = ()) -> list[Mapping[str, Any]]:
        """Documents that match, by chance; none where there is no such index."""
        drawn = {"function_score": {"query": query, "random_score": {}}}
        return self._patience(
            "looking for questions",
            lambda: self._client.search(
                index=index, query=drawn, size=OF_SERVED, source={"includes": source} if source else False,
                ignore_unavailable=True,
            ).body["hits"]["hits"],
        )  # fmt: skip

    def _hits(self, index: ElasticIndex, query: Query) -> set[str]:
        return {hit.item for hit in self._patience("asking", lambda: index.search(query))}

    def _question(self, document: RowDocument) -> Query | None:
        names = {encoded(name): name for name in self._config.indicator_names}
        history = {}
        for field, value in document.fields.items():
            if field in names and value != b"[]":
                [row] = json.loads(value)
                history[names[field]] = [decoded(feature) for feature in list(row)[:HISTORY]]
        return Query(history=history, num=HITS, backfill=None, fields=()) if history else None


def _filled(indicators: tuple[str, ...]) -> dict[str, Any]:
    names = (*indicators, PRIORS)
    return {"bool": {"filter": [{"bool": {"should": [{"term": {f"filled.{encoded(name)}": True}} for name in names]}}]}}

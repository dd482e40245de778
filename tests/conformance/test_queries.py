"""The 28 published queries of the Universal Recommender, through the doors of the real service.

Events come through /events.json, queries through /queries.json, over the index in memory and over Elasticsearch.
Published rows, eligible items, rules, dates, blacklist, paging and backfill are the same; which items are recommended
and which are backfill too, where nothing is asked differently. The order differs where DIFFERENCES says so, and
nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conformance.apps import NamedRows, elastic_app, memory_app
from tests.conformance.handmade import DEFAULT_NUM, Case, cases, config, eligible, published, records
from tests.servers.elasticsearch import ElasticsearchServer

POPULAR = "equally popular: here by id, there by shard"
EQUAL = "equal scores: here by id, there by popularity, then by shard"
ITEM = "asks with the item here, with the correlators of the item there"
BOOST = "a boost multiplies score and popularity here; there it adds the idf of the value, so that backfill has a score"

# Number of the query, from 0, in the published order: our order, and why it is not theirs.
DIFFERENCES: Mapping[int, tuple[list[str], str]] = {
    2: (["Ipad-retina", "Iphone 4", "Nexus", "Galaxy"], EQUAL),
    5: (["Ipad-retina", "Galaxy", "Nexus", "Surface"], ITEM),
    6: (["Iphone 4", "Galaxy", "Nexus", "Surface"], ITEM),
    7: (["Galaxy", "Iphone 4", "Ipad-retina", "Surface"], ITEM),
    8: (["Iphone 4", "Ipad-retina", "Nexus", "Surface"], POPULAR),
    9: (["Galaxy", "Iphone 4", "Ipad-retina", "Nexus"], POPULAR),
    10: (["Galaxy", "Iphone 4", "Ipad-retina", "Nexus"], POPULAR),
    11: (["Galaxy", "Iphone 4", "Ipad-retina", "Nexus"], POPULAR),
    12: (["Galaxy", "Iphone 4", "Ipad-retina", "Nexus"], POPULAR),
    13: (["Ipad-retina", "Nexus", "Surface"], POPULAR),
    14: (["Galaxy", "Iphone 4", "Ipad-retina", "Nexus"], BOOST),
    15: (["Iphone 4", "Ipad-retina"], BOOST),
    18: (["Ipad-retina", "Iphone 4", "Nexus", "Galaxy"], EQUAL),
    19: (["Ipad-retina", "Nexus"], EQUAL),
    20: (["Ipad-retina", "Nexus", "Iphone 4", "Galaxy"], EQUAL),
}

everything = pytest.mark.parametrize("k", range(28))


@dataclass
class Answers:
    """What the service answered to each query: as asked, and with all that is eligible; and its published rows."""

    now: datetime
    cases: list[Case]
    pages: list[list[tuple[str, float]]]
    whole: list[list[tuple[str, float]]]
    rows: NamedRows


async def ask(client: httpx.AsyncClient, query: Mapping[str, Any]) -> list[tuple[str, float]]:
    answer = await client.post("/queries.json", json=dict(query))
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"itemScores"}
    return [(hit["item"], hit["score"]) for hit in answer.json()["itemScores"]]


@pytest.fixture(scope="module", params=["memory", "elasticsearch"])
def answers(request: pytest.FixtureRequest) -> Answers:
    """Everything is imported and asked once for all tests."""
    published()  # skips where there is no data
    now = datetime.now(UTC)
    given = list(records(now))
    if request.param == "memory":
        serving = memory_app(config(), given)
    else:
        server: ElasticsearchServer = request.getfixturevalue("elasticsearch")
        serving = elastic_app(config(), given, server.url)

    async def run() -> Answers:
        asked = cases(now)
        async with serving as (app, rows):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                pages = [await ask(client, {"num": DEFAULT_NUM, **case.query}) for case in asked]
                whole = [await ask(client, {**case.query, "num": 1_000, "from": 0}) for case in asked]
        return Answers(now, asked, pages, whole, rows)

    return asyncio.run(run())


def items(hits: list[tuple[str, float]]) -> list[str]:
    return [item for item, _ in hits]


def test_published_rows(answers: Answers) -> None:
    """The documents of their index: the same correlators, and their LLR to the 9 bits that an index keeps."""
    llr = {
        (item, name, feature): as_kept(weight)
        for name, of_items in published()["llr"].items()
        for item, row in of_items.items()
        for feature, weight in row.items()
    }
    expected = {
        (item, name): {feature: llr[item, name, feature] for feature in document[name]}
        for item, document in published()["es_model_docs"].items()
        for name in published()["indicators"]
        if document.get(name)
    }
    assert answers.rows == expected


def as_kept(weight: float) -> float:
    """A float32 with the low 15 bits clear."""
    return float((np.array([weight], np.float32).view(np.uint32) & np.uint32(0xFFFF8000)).view(np.float32)[0])


@everything
def test_eligible_items(answers: Answers, k: int) -> None:
    """All of them, no other, each once; those of the published answer among them."""
    query, found = answers.cases[k].query, items(answers.whole[k])
    assert sorted(found) == sorted(eligible(query, answers.now))
    assert set(items(answers.cases[k].expected)) <= set(found)


@everything
def test_paging(answers: Answers, k: int) -> None:
    """A page is a part of the whole, as long as the published one."""
    query = answers.cases[k].query
    start = query.get("from", 0)
    assert answers.pages[k] == answers.whole[k][start : start + query.get("num", DEFAULT_NUM)]
    assert len(answers.pages[k]) == len(answers.cases[k].expected)


@everything
def test_backfill_follows_what_is_recommended(answers: Answers, k: int) -> None:
    """With score 0, as there; and the same items are recommended where the same is asked."""
    found = answers.whole[k]
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True) and min(scores) >= 0
    query = answers.cases[k].query
    if "item" not in query and not any(field["bias"] > 0 for field in query.get("fields", ())):
        ours = {item for item, score in found if score > 0}
        theirs = {item for item, score in answers.cases[k].expected if score > 0}
        shown = set(items(answers.cases[k].expected))
        assert ours & shown == theirs


@everything
def test_order(answers: Answers, k: int) -> None:
    """That of the published answer, or the one that is listed with its reason."""
    found, expected = items(answers.pages[k]), items(answers.cases[k].expected)
    if k not in DIFFERENCES:
        assert found == expected, "a difference that is not listed"
        return
    listed, reason = DIFFERENCES[k]
    assert found == listed
    assert found != expected, "no difference any more: take it off the list"
    score, popularity = dict(answers.cases[k].expected), published()["popRank"]
    if reason in (EQUAL, POPULAR):
        assert [score[item] for item in found] == [score[item] for item in expected]
    if reason == POPULAR:
        assert [popularity[item] for item in found] == [popularity[item] for item in expected]

"""Indices in a real Elasticsearch: made once, added to in place, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from elasticsearch import BadRequestError, Elasticsearch

from cco.config import Config, make_config
from model_sync.elastic_admin import check, create, describe, for_versions, has_settings, template, unfit
from model_sync.elastic_client import ElasticOptions, IndexNames, names, sync_client
from model_sync.elastic_mapping import mapping, settings
from tests.servers.elasticsearch import ElasticsearchServer

KINDS = ("keyword", "float", "date", "boolean", "text")


def model(*indicators: str, types: dict[str, str] | None = None) -> Config:
    return make_config(
        {"primary": "buy", "indicators": {name: {} for name in ("buy", *indicators)}, "items": {"types": types or {}}}
    )


CONFIG = model("view", types={f"p-{kind}": kind for kind in KINDS})
ON_SALE = CONFIG.model_copy(update={"items": CONFIG.items.model_copy(update={"available": "on sale"})})


@pytest.fixture
def options(elasticsearch: ElasticsearchServer, index_prefix: str) -> ElasticOptions:
    return ElasticOptions(urls=(elasticsearch.url,), prefix=index_prefix)


@pytest.fixture
def client(options: ElasticOptions) -> Iterator[Elasticsearch]:
    with sync_client(options) as client:
        yield client


@pytest.fixture
def aliases(options: ElasticOptions) -> IndexNames:
    return names(options)


def texts(found: list[Any], aliases: IndexNames) -> list[str]:
    return [str(each).replace(aliases.items, "items").replace(aliases.users, "users") for each in found]


def test_create_makes_what_check_misses_and_again_nothing(client: Elasticsearch, aliases: IndexNames) -> None:
    assert texts(check(client, CONFIG, aliases), aliases) == [
        "items: wanted an alias of one index, found nothing: `cco index create` mends it",
        "template items: wanted the mapping of the next index, found nothing: `cco index create` mends it",
        "users: wanted an alias of one index, found nothing: `cco index create` mends it",
        "template users: wanted the mapping of the next index, found nothing: `cco index create` mends it",
    ]
    done = create(client, CONFIG, aliases)
    assert done.problems == []
    assert texts(done.made, aliases) == [
        "items: template for items-0*",
        "items-000001: index behind items",
        "users: template for users-0*",
        "users-000001: index behind users",
    ]
    assert check(client, CONFIG, aliases) == []
    again = create(client, CONFIG, aliases)
    assert (again.made, again.problems) == ([], [])
    found = client.indices.get(index=aliases.items)[aliases.items + "-000001"]["settings"]["index"]
    assert (found["number_of_shards"], found["number_of_replicas"]) == ("1", "0")  # one node: no replica, and green
    assert (found["refresh_interval"], found["max_result_window"]) == ("1s", "11000")


def test_the_mapping_takes_what_it_must_and_nothing_else(client: Elasticsearch, aliases: IndexNames) -> None:
    create(client, CONFIG, aliases)
    item: dict[str, Any] = {
        "id": "a.b",
        "shuffle": 0.5,
        "rank": 2,
        "known": True,
        "deleted": False,
        "filled": {"buy": True, "priors": True},
        "rows": {"buy": [{"a%2Eb": 1.5}], "view": []},
        "priors": [{"popular": 3.0}],
        "properties": [{"other": [1, "x"], **{f"p-{kind}": [1e300, "x", "", True, -1] for kind in KINDS}}],
        "returned": "eyJhIjoxfQ==",
        "tokens": ["=tcategory\0x", "+" + "n" * 1000],
        "owner": {"at": 1_700_000_000_000, "claim": 2**40},
        "metadata_position": 0,
    }
    client.index(index=aliases.items, id="a.b", document=item)
    client.update(index=aliases.items, id="a.b", doc={"rows": {"view": [{"z": 2.0}]}})
    stored = client.get(index=aliases.items, id="a.b")["_source"]
    assert stored == {**item, "rows": {"buy": [{"a%2Eb": 1.5}], "view": [{"z": 2.0}]}}
    client.indices.refresh(index=aliases.items)
    for query, score in (
        ({"term": {"rows.view": {"value": "z", "boost": 3.0}}}, 6.0),
        ({"term": {"tokens": {"value": "=tcategory\0x", "boost": 2.0}}}, None),
        ({"bool": {"filter": [{"term": {"filled.priors": True}}, {"exists": {"field": "rank"}}]}}, None),
    ):
        hits = client.search(index=aliases.items, query=query)["hits"]["hits"]
        assert [hit["_id"] for hit in hits] == ["a.b"], query
        assert score is None or hits[0]["_score"] == score
    assert client.search(index=aliases.items, query={"match_all": {}}, sort=["shuffle", "rank"])["hits"]["hits"]
    user = {
        "history": {"buy": ["a", "b"]}, "counts": {"buy": 2}, "last": 1_700_000_000, "member": True, "source": 0,
        "position": 7,
    }  # fmt: skip
    client.index(index=aliases.users, id="u", document=user)
    for index, document in (
        (aliases.items, {"novel": 1}),
        (aliases.items, {"rows": {"like": [{"a": 1.0}]}}),
        (aliases.items, {"filled": {"like": True}}),
        (aliases.users, {"history": {"like": ["a"]}}),
        (aliases.users, {"counts": {"like": 1}}),
        (aliases.items, {"owner": {"name": 1}}),
    ):
        with pytest.raises(BadRequestError, match="strict_dynamic_mapping_exception"):
            client.index(index=index, id="x", document=document)


def test_new_indicators_and_properties_are_added_in_place(client: Elasticsearch, aliases: IndexNames) -> None:
    create(client, CONFIG, aliases)
    client.index(index=aliases.items, id="i", document={"rows": {"view": [{"j": 1.0}]}})
    more = model("like", types={"price": "float"})  # and without "view", whose fields stay
    assert texts(check(client, more, aliases), aliases)[:2] == [
        "items-000001: _meta.cco.indicators: wanted also like, found buy, view: `cco index create` mends it",
        "items-000001: filled/like: wanted boolean, found nothing: `cco index create` mends it",
    ]
    done = create(client, more, aliases)
    assert done.problems == []
    assert f"{aliases.items}-000001: rows/like: sparse_vector" in done.made
    assert f"{aliases.items}-000001: properties/price: double" in done.made
    assert f"{aliases.users}-000001: history/like: keyword" in done.made
    assert check(client, more, aliases) == []
    assert [each.indicators for each in describe(client, aliases)] == [("buy", "view", "like")] * 2
    client.update(index=aliases.items, id="i", doc={"rows": {"like": [{"j": 2.0}]}})
    client.indices.refresh(index=aliases.items)
    for field in ("view", "like"):
        assert client.count(index=aliases.items, query={"term": {f"rows.{field}": "j"}})["count"] == 1


def other(**changed: Any) -> dict[str, Any]:
    wanted = mapping("items", CONFIG)
    return {**wanted, **changed, "properties": {**wanted["properties"], **changed.get("properties", {})}}


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (other(dynamic="true"), "items-000001: dynamic: wanted strict, found true: that cannot be changed in place: "),
        (other(_meta={}), "items-000001: _meta.cco: wanted format 2, found nothing: not made by us: that cannot be "),
        (
            other(_meta={"cco": {**mapping("items", CONFIG)["_meta"]["cco"], "format": 1}}),
            "items-000001: _meta.cco.format: wanted 2, found 1: that cannot be changed in place: choose another index_",
        ),
        (
            mapping(
                "items", CONFIG.model_copy(update={"items": CONFIG.items.model_copy(update={"available": "on sale"})})
            ),
            "items-000001: _meta.cco.items: wanted available = 'available', expires = 'expires', rank = 'rank', found"
            " available = 'on sale', expires = 'expires', rank = 'rank': that cannot be changed in place: ",
        ),
        (
            other(properties={"rows": {"properties": {"buy": {"type": "sparse_vector"}, "view": {"type": "keyword"}}}}),
            "items-000001: rows/view.type: wanted sparse_vector, found keyword: that cannot be changed in place: ",
        ),
        (
            other(properties={"tokens": {"type": "keyword", "index": False}}),
            "items-000001: tokens.index: wanted true, found false: that cannot be changed in place: ",
        ),
        (
            {**other(), "properties": {k: v for k, v in other()["properties"].items() if k != "shuffle"}},
            "items-000001: shuffle: wanted float, found nothing: that cannot be changed in place: ",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_left_alone(
    client: Elasticsearch, aliases: IndexNames, found: dict[str, Any], line: str
) -> None:
    index = aliases.items + "-000001"
    client.indices.create(index=index, mappings=found, settings=settings(), aliases={aliases.items: {}})
    before = client.indices.get(index=index).body
    lines = texts(unfit(check(client, CONFIG, aliases), "items", aliases), aliases)
    assert len(lines) == 1
    assert lines[0].startswith(line)
    done = create(client, CONFIG, aliases)
    assert texts(done.problems, aliases) == lines
    assert client.indices.get(index=index).body == before
    assert not client.indices.exists_index_template(name=aliases.items)
    assert [each.index for each in describe(client, aliases)] == [index, aliases.users + "-000001"]


def test_aliases_are_mended_or_told(client: Elasticsearch, aliases: IndexNames) -> None:
    create(client, CONFIG, aliases)
    first, second = aliases.items + "-000001", aliases.items + "-000002"
    client.index(index=aliases.items, id="i", document={"known": True})
    client.indices.delete_alias(index=first, name=aliases.items)
    assert create(client, CONFIG, aliases).made == [f"{aliases.items}: alias of {first}"]
    assert client.exists(index=aliases.items, id="i")
    client.indices.create(index=second)  # of the template
    assert client.indices.get_mapping(index=second)[second] == client.indices.get_mapping(index=first)[first]
    client.indices.put_alias(index=second, name=aliases.items)
    expected = f"items: wanted an alias of one index, found one of 2: {first}, {second}: remove it from all"
    assert texts(create(client, CONFIG, aliases).problems, aliases)[0].startswith(
        expected.replace(aliases.items, "items")
    )
    client.indices.update_aliases(actions=[{"remove": {"indices": [first, second], "alias": aliases.items}}])
    (problem,) = create(client, CONFIG, aliases).problems
    assert (problem.found, problem.in_place) == (f"none, but {first}, {second}", False)
    client.indices.delete(index=[first, second])
    client.indices.create(index=aliases.items)
    (problem,) = create(client, CONFIG, aliases).problems
    assert texts([problem], aliases) == [
        "items: wanted an alias of one index, found an index of that name: delete the index items"
    ]
    client.indices.delete(index=aliases.items)
    assert create(client, CONFIG, aliases).made == [f"{first}: index behind {aliases.items}"]
    assert check(client, CONFIG, aliases) == []


def test_several_may_create_at_a_time(client: Elasticsearch, aliases: IndexNames) -> None:
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda _: create(client, CONFIG, aliases), range(4)))
    assert [each.problems for each in done] == [[]] * 4
    made = [line for each in done for line in each.made if "index behind" in line]
    assert len(made) == 2
    assert check(client, CONFIG, aliases) == []


def test_another_creates_between_any_two_requests(
    client: Elasticsearch, options: ElasticOptions, aliases: IndexNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the one has seen before, it finds nothing wrong after."""
    perform = client.transport.perform_request

    def interrupted(place: int) -> int:
        """How many requests `create` took while another one came between; all is made anew."""
        asked = 0

        def between(method: str, target: str, **given: Any) -> Any:
            nonlocal asked
            if asked == place:
                with sync_client(options) as other:
                    assert create(other, CONFIG, aliases).problems == []
            asked += 1
            return perform(method, target, **given)

        with monkeypatch.context() as patch:
            patch.setattr(client.transport, "perform_request", between)
            assert create(client, CONFIG, aliases).problems == []
        assert check(client, CONFIG, aliases) == []
        client.indices.delete(index=[f"{alias}-000001" for alias in aliases])
        client.indices.delete_index_template(name=[*aliases])
        return asked

    for place in range(interrupted(-1)):
        assert interrupted(place) > place


def test_a_window_that_is_too_small_is_widened(client: Elasticsearch, aliases: IndexNames) -> None:
    create(client, CONFIG, aliases)
    index = aliases.items + "-000001"
    client.indices.put_settings(index=index, settings={"max_result_window": 100, "refresh_interval": "5s"})
    (difference,) = check(client, CONFIG, aliases)  # how often it is refreshed is the operator's
    assert (difference.path, difference.wanted, difference.found) == ("max_result_window", "at least 11000", "100")
    assert create(client, CONFIG, aliases).made == [f"{index}: max_result_window: at least 11000"]
    assert check(client, CONFIG, aliases) == []


def test_a_template_has_what_newer_servers_need(client: Elasticsearch, aliases: IndexNames) -> None:
    """From 9.2 on they leave vectors out of `_source` unless an index says otherwise, and rows are read from there."""
    assert for_versions(["9.2.0"]) == for_versions(["9.10.1", "9.2.3"]) == {"mapping.exclude_source_vectors": False}
    assert for_versions(["9.1.9"]) == for_versions(["9.2.0", "8.19.1"]) == {}
    newer = for_versions(["9.2.0"])
    body = template("items", mapping("items", CONFIG), {**settings(), **newer})
    assert body["template"]["settings"]["index"] == {**settings(), **newer}
    create(client, CONFIG, aliases)
    [answer] = client.indices.get_index_template(name=aliases.items)["index_templates"]
    made = answer["index_template"]["template"]  # of an older server
    assert has_settings(made, {}) and not has_settings(made, newer)
    assert has_settings(made, {"max_result_window": 11_000, "merge.policy.floor_segment": "16mb"})
    assert not has_settings(made, {"max_result_window": 11_001})


def test_describe_counts(client: Elasticsearch, aliases: IndexNames) -> None:
    assert describe(client, aliases) == []
    create(client, CONFIG, aliases)
    for k in range(3):
        client.index(index=aliases.items, id=str(k), document={"known": True}, refresh=True)
    items, users = describe(client, aliases)
    assert (items.alias, items.index, items.documents) == (aliases.items, aliases.items + "-000001", 3)
    assert (items.format, items.indicators, items.health) == (2, ("buy", "view"), "green")
    assert users.documents == 0
    assert items.bytes > users.bytes

"""Models published by a swap on a real node: what is served, what is refused, and rebuilds and nodes that die."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from cco.config import Config, make_config
from cco.event_data import ItemChange
from model_sync import elastic_load, elastic_patience, elastic_swap, elastic_versions
from model_sync.contract import Query
from model_sync.elastic_admin import check, create
from model_sync.elastic_client import ElasticOptions, ElasticProblem, IndexNames, names, sync_client
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_mapping import Kind, mapping
from model_sync.elastic_metadata import PositionedChange, write
from model_sync.elastic_swap import rebuilding
from model_sync.elastic_users import user_document
from model_sync.elastic_verify import OF_SERVED
from model_sync.elastic_versions import rollback, versions
from tests.model_sync.samples import CONFIG, CONFIG_TABLES
from tests.model_sync.swap_world import Asking, die_at, made_up, model, publish, roles, served, vocabulary
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch

ONE, TWO, THREE = made_up(1), made_up(2), made_up(3)


@pytest.fixture
def options(elasticsearch: ElasticsearchServer, index_prefix: str) -> ElasticOptions:
    return ElasticOptions((elasticsearch.url,), prefix=index_prefix)


@pytest.fixture
def client(options: ElasticOptions) -> Iterator[Elasticsearch]:
    with sync_client(options) as client:
        yield client


@pytest.fixture
def aliases(options: ElasticOptions) -> IndexNames:
    return names(options)


@pytest.fixture(autouse=True)
def nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no agents here; and where a node comes back, it is seen soon."""
    monkeypatch.setattr(elastic_swap, "NOBODY_SECONDS", 0.0)
    monkeypatch.setattr(elastic_swap, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(elastic_patience, "LONGEST_WAIT", 0.2)


def change(client: Elasticsearch, alias: str, *changes: tuple[int, ItemChange]) -> None:
    """Changes of metadata, with their positions, as agents make them."""
    steps: Any = write(CONFIG, [PositionedChange(of, at) for at, of in changes])
    answer: Any = None
    try:
        while True:
            step = steps.send(answer)
            if hasattr(step, "ids"):
                answer = client.mget(index=alias, ids=step.ids)["docs"]
            else:
                answer = client.bulk(index=alias, operations=step.lines, refresh=True)["items"]
    except StopIteration as done:
        assert done.value == []


def test_one_model_after_the_other(client: Elasticsearch, options: ElasticOptions, aliases: IndexNames) -> None:
    first = publish(options, ONE)  # where there was no index at all
    assert (first.index, first.previous, first.same) == (f"{aliases.items}-000001", None, None)
    assert served(client, aliases, ONE[1]) == model(ONE)
    create(client, CONFIG, aliases)  # users, and templates
    assert check(client, CONFIG, aliases) == []

    with_rows, without = ONE[1][0], "only metadata"
    change(client, aliases.items, (3, ItemChange(with_rows, "set", {"color": "red"})))
    change(client, aliases.items, (4, ItemChange(without, "set", {"price": 2})), (5, ItemChange(ONE[1][1], "delete")))
    second = publish(options, TWO)
    assert (second.index, second.previous, second.metadata) == (f"{aliases.items}-000002", first.index, 3)
    assert second.same is not None
    assert 0 <= second.same < 1
    assert served(client, aliases, TWO[1]) == model(TWO)
    index = ElasticIndex(client, aliases.items, CONFIG, vocabulary(TWO[1]))
    assert index.properties(with_rows) == {"color": "red"}
    assert index.properties(without) == {"price": 2}
    assert roles(client, aliases) == {"000002": "live", "000001": "previous"}
    change(client, aliases.items, (4, ItemChange(without, "set", {"price": 9})))  # is in the index already
    assert index.properties(without) == {"price": 2}
    document = client.get(index=aliases.items, id=ONE[1][1])["_source"]
    assert (document["deleted"], document["metadata_position"]) == (True, 5)

    assert publish(options, THREE).removed == (first.index,)
    assert roles(client, aliases) == {"000003": "live", "000002": "previous"}
    now = versions(client, aliases)[0]
    assert (now.state, now.offsets, now.documents) == ("live", {"0": 17}, len(THREE[1]) + 1)
    assert now.rebuild["epoch"] == CONFIG.epoch
    assert (now.moment("finished") or 0) >= (now.moment("started") or 0) > time.time() - 60
    settings = client.indices.get_settings(index=now.name, flat_settings=True)[now.name]["settings"]
    assert settings["index.refresh_interval"] == "1s"


def test_back_and_forth(client: Elasticsearch, options: ElasticOptions, aliases: IndexNames) -> None:
    with pytest.raises(ElasticProblem, match="no index is served as"):
        rollback(client, CONFIG, aliases)
    publish(options, ONE)
    with pytest.raises(ElasticProblem, match="there is none before"):
        rollback(client, CONFIG, aliases)
    publish(options, TWO)
    assert rollback(client, CONFIG, aliases) == (f"{aliases.items}-000002", f"{aliases.items}-000001")
    assert served(client, aliases, ONE[1]) == model(ONE)
    assert roles(client, aliases) == {"000001": "live", "000002": "previous"}
    assert rollback(client, CONFIG, aliases) == (f"{aliases.items}-000001", f"{aliases.items}-000002")
    assert served(client, aliases, TWO[1]) == model(TWO)
    rollback(client, CONFIG, aliases)
    assert publish(options, THREE).previous == f"{aliases.items}-000001"
    assert roles(client, aliases) == {"000003": "live", "000001": "previous"}
    other = make_config({**CONFIG_TABLES, "items": {"types": {"color": "keyword"}}})
    rollback(client, other, aliases)  # `cco index create` can add what is missing
    with rebuilding(CONFIG, options), pytest.raises(ElasticProblem, match="a rebuild is going on"):
        rollback(client, CONFIG, aliases)


def test_the_second_rebuild_is_refused(client: Elasticsearch, options: ElasticOptions, aliases: IndexNames) -> None:
    publish(options, ONE)
    with rebuilding(CONFIG, options) as first:
        with pytest.raises(ElasticProblem, match=r"no second rebuild: .*items-000002 on .* --take-over sets it aside"):
            publish(options, THREE)
        assert roles(client, aliases) == {"000002": "loading", "000001": "live"}
        first.publish(TWO[0], vocabulary(TWO[1]), {})
    assert served(client, aliases, TWO[1]) == model(TWO)

    with rebuilding(CONFIG, options) as slow:
        assert publish(options, THREE, take_over=True).index == f"{aliases.items}-000004"
        with pytest.raises(ElasticProblem, match="this rebuild is over: another one has set it aside"):
            slow.publish(ONE[0], vocabulary(ONE[1]), {})
    assert served(client, aliases, THREE[1]) == model(THREE)
    assert roles(client, aliases) == {"000004": "live", "000002": "previous"}


def test_two_at_the_same_moment(client: Elasticsearch, options: ElasticOptions, aliases: IndexNames) -> None:
    publish(options, ONE)
    done: list[object] = []

    def run() -> None:
        try:
            done.append(publish(options, TWO).index)
        except ElasticProblem as error:
            done.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [error for error in done if isinstance(error, ElasticProblem)]
    assert len(refused) < 4  # one after the other they may
    assert all("no second rebuild" in str(error) for error in refused)
    assert served(client, aliases, TWO[1]) == model(TWO)
    assert sorted(roles(client, aliases).values()) == ["live", "previous"]


def test_what_was_silent_for_long_is_in_nobodys_way(
    client: Elasticsearch, options: ElasticOptions, aliases: IndexNames
) -> None:
    die_at("made", options, ONE)
    elastic_versions.annotate(client, f"{aliases.items}-000001", heartbeat=int(time.time()) - 301)
    publish(options, TWO)
    assert roles(client, aliases) == {"000002": "live"}


@pytest.mark.parametrize("step", ["made", "loaded", "verified", "{index} is served"])
def test_a_rebuild_that_dies(step: str, client: Elasticsearch, options: ElasticOptions, aliases: IndexNames) -> None:
    publish(options, ONE)
    die_at(step.replace("{index}", f"{aliases.items}-000002"), options, TWO)
    is_through = "served" in step
    assert served(client, aliases, ONE[1]) == model(TWO if is_through else ONE)
    if not is_through:
        with pytest.raises(ElasticProblem, match="no second rebuild"):
            publish(options, THREE)
    done = publish(options, THREE, take_over=True)
    assert served(client, aliases, THREE[1]) == model(THREE)
    assert roles(client, aliases) == {"000003": "live", "000002" if is_through else "000001": "previous"}
    assert done.removed == ((f"{aliases.items}-000001",) if is_through else ())


def test_nothing_is_left_of_one_that_fails(client: Elasticsearch, options: ElasticOptions, aliases: IndexNames) -> None:
    publish(options, ONE)
    with pytest.raises(ZeroDivisionError), rebuilding(CONFIG, options):
        raise ZeroDivisionError
    assert roles(client, aliases) == {"000001": "live"}
    with pytest.raises(ElasticProblem, match=r"12 items would have rows, and 60 of .*--allow-smaller says"):
        publish(options, made_up(4, 12))
    assert served(client, aliases, ONE[1]) == model(ONE)
    assert roles(client, aliases) == {"000001": "live"}
    assert publish(options, made_up(4, 12), allow_smaller=True).items == 12


def test_nothing_is_left_of_one_that_ends_while_its_index_is_made(
    client: Elasticsearch, options: ElasticOptions, aliases: IndexNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(options, made_up(1))
    monkeypatch.setattr(elastic_swap, "LATE_SECONDS", 30.0)
    indices = type(client.indices)
    make, late = indices.create, list[threading.Timer]()

    def interrupted(_: object, **wanted: Any) -> None:
        late.append(threading.Timer(0.5, lambda: make(client.indices, **wanted)))
        late[-1].start()
        raise KeyboardInterrupt

    monkeypatch.setattr(indices, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(options, made_up(2))
    late[0].join()
    assert roles(client, aliases) == {"000001": "live"}


def test_a_model_of_other_users_and_items_is_not_published(
    client: Elasticsearch, options: ElasticOptions, aliases: IndexNames
) -> None:
    """Such as one of another log: all is as it was loaded, and answers whoever asks for what is in it."""
    publish(options, ONE)
    create(client, CONFIG, aliases)
    for user in ("ann", "bob"):
        history = user_document({"buy": (ONE[1][:5], 5)}, 1_700_000_000, True, 0, 1)
        client.index(index=aliases.users, id=user, document=json.loads(history), refresh=True)
    done = publish(options, TWO)
    assert 5 < done.answered <= OF_SERVED + 2 and done.unanswered < done.answered / 2
    others = made_up(4)[0], [f"other-{k}" for k in range(60)]
    with pytest.raises(ElasticProblem, match=r"would not answer (\d+) of \1 questions about users and items"):
        publish(options, others)
    assert served(client, aliases, ONE[1]) == model(TWO)
    assert roles(client, aliases) == {"000002": "live", "000001": "previous"}
    done = publish(options, others, allow_smaller=True)
    assert done.answered == done.unanswered > 5
    publish(options, (made_up(5)[0], others[1]))  # what users have is of none of these: nobody answered them before


def test_an_index_that_holds_all_and_finds_nothing_is_not_published(
    client: Elasticsearch, options: ElasticOptions, aliases: IndexNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in a field that is not indexed: counts and documents are as they were loaded."""
    publish(options, ONE)

    def without_rows(kind: Kind, config: Config) -> dict[str, Any]:
        found = mapping(kind, config)
        return {**found, "properties": {**found["properties"], "rows": {"type": "object", "enabled": False}}}

    monkeypatch.setattr(elastic_swap, "mapping", without_rows)
    with pytest.raises(ElasticProblem, match=r"(\d+) of \1 questions that rows answer are answered by nothing"):
        publish(options, TWO)
    assert served(client, aliases, ONE[1]) == model(ONE)


@pytest.mark.parametrize("damage", ["rows", "missing", "metadata", "returned", "returned of nothing", "more"])
def test_a_damaged_index_is_not_published(
    damage: str, client: Elasticsearch, options: ElasticOptions, aliases: IndexNames
) -> None:
    publish(options, ONE)
    red, bare = ONE[1][:2]
    change(client, aliases.items, (1, ItemChange(red, "set", {"color": "red"})))
    change(client, aliases.items, (2, ItemChange(bare, "set", {"color": "red"})))
    change(client, aliases.items, (3, ItemChange(bare, "unset", {"color": None})))
    item = TWO[1][5]

    def tell(text: str) -> None:
        if not text.startswith("loaded"):
            return
        index = f"{aliases.items}-000002"
        if damage == "rows":
            client.update(index=index, id=item, doc={"rows": {"view": [{"x": 1.5}]}})
        elif damage == "missing":
            client.delete(index=index, id=item)
        elif damage == "metadata":
            client.update(index=index, id=red, doc={"properties": [{"color": "blue"}]})
        elif damage == "returned":
            client.update(index=index, id=red, doc={"returned": None})
        elif damage == "returned of nothing":
            client.update(
                index=index, id=bare, doc={"returned": client.get(index=index, id=red)["_source"]["returned"]}
            )
        else:
            client.index(index=index, id="more", document={"id": "more"})

    with pytest.raises(ElasticProblem, match=r"items-000002 is not as it was loaded: .*nothing is published"):
        publish(options, TWO, tell=tell)
    assert served(client, aliases, ONE[1]) == model(ONE)


def test_the_node_dies_while_it_is_loaded_and_before_the_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_load, "MOST_DOCUMENTS", 20)
    monkeypatch.setattr(elastic_load, "TELL_SECONDS", 0.0)
    made = made_up(5, 200)
    with ElasticsearchServer(tmp_path / "node", fetch_elasticsearch(), heap="512m") as node:
        options = ElasticOptions((node.url,))
        aliases = names(options)
        publish(options, ONE)
        starts: list[threading.Thread] = []
        told: list[str] = []

        def tell(text: str) -> None:
            told.append(text)
            if text.startswith("loaded 60 ") or text.startswith("verified"):
                node.kill()
                starts.append(threading.Thread(target=node.start))
                starts[-1].start()

        done = publish(options, made, tell=tell)
        for start in starts:
            start.join()
        assert len(starts) == 2
        assert sum("cannot be reached" in text for text in told) >= 2
        with sync_client(options) as client:
            assert served(client, aliases, made[1]) == model(made)
            assert roles(client, aliases) == {"000002": "live", "000001": "previous"}
        assert done.items == 200


def test_questions_are_answered_throughout(client: Elasticsearch, options: ElasticOptions, aliases: IndexNames) -> None:
    publish(options, ONE)
    items = vocabulary([*ONE[1], *TWO[1]])
    index = ElasticIndex(client, aliases.items, CONFIG, items)
    query = Query(history={"buy": [*ONE[1][:20], *TWO[1][:20]]}, num=10)
    with Asking(lambda: len(index.search(query)) == 10) as asking:
        for turn in range(6):
            publish(options, (TWO, ONE)[turn % 2])
        rollback(client, CONFIG, aliases)
    assert asking.failures == []
    assert asking.asked > 50

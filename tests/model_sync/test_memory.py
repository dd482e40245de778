"""The index in memory: the contract, and what only it promises."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cco.config import make_config
from cco.vocabulary import Vocabulary
from model_sync.contract import Query, rules
from model_sync.memory import MemoryIndex
from tests.model_sync.index_contract import IndexContract, MakeIndex, Shop
from tests.model_sync.reference import patches
from tests.model_sync.samples import CONFIG


@pytest.fixture(scope="module")
def make_index() -> MakeIndex:
    return MemoryIndex


class TestMemoryIndex(IndexContract):
    """MemoryIndex passes the suite."""


def test_an_entry_takes_less_than_20_bytes() -> None:
    items = Vocabulary()
    index = MemoryIndex(CONFIG, items)
    random = np.random.default_rng(3)
    names = [f"item {k}" for k in range(3_000)]
    for part in range(0, 3_000, 500):
        index.apply(
            patches(
                CONFIG,
                items,
                {
                    name: {"buy": {names[x]: 1.0 + x for x in random.choice(3_000, 50, replace=False).tolist()}}
                    for name in names[part : part + 500]
                },
            )
        )
    entries = index.rows().feature.size
    of_lists = 2 * len(CONFIG.indicator_names) * items.offsets.size * 1.25 * 16
    assert entries == 150_000
    assert sum(index.sizes().values()) < 20 * entries + of_lists


def test_storage_does_not_grow_when_rows_change_for_ever() -> None:
    shop = Shop(MemoryIndex)
    random = np.random.default_rng(4)
    names = [f"item {k}" for k in range(200)]
    sizes = []
    for turn in range(60):
        some = random.choice(names, 40, replace=False).tolist()
        shop.apply(
            {
                item: {"buy": dict.fromkeys(random.choice(names, 1 + 49 * (turn % 2), replace=False).tolist(), 2.0)}
                for item in some
            }
        )
        sizes.append(sum(shop.index.sizes().values()))
    assert max(sizes[30:]) <= 1.5 * max(sizes[:30])


def test_rules_follow_changes_of_values_that_many_items_share() -> None:
    """Values of 256 items and more are kept as masks, which every write has to follow."""
    shop = Shop(MemoryIndex)
    color = {f"i{k:03}": "red" if k % 2 else "blue" for k in range(600)}
    price = {item: float(k) for k, item in enumerate(color)}
    shop.index.put_items({item: {"color": color[item], "price": price[item]} for item in color})

    def check() -> None:
        for wanted in ("red", "blue"):
            hits = shop.ask(include=rules({"color": wanted}), num=1000, fields=())
            assert [hit.item for hit in hits] == sorted(item for item in color if color[item] == wanted)

    check()
    for item in list(color)[:100]:
        color[item] = "blue" if color[item] == "red" else "red"
        shop.index.update_items({item: {"color": color[item]}})
    check()
    for item in list(color)[100:150]:
        del color[item]
    shop.index.delete_items([f"i{k:03}" for k in range(100, 150)])
    check()
    for k in range(600, 1300):  # more room than there was
        color[f"i{k:03}"] = "red"
    shop.index.put_items({item: {"color": "red"} for item in color if int(item[1:]) >= 600})
    check()
    shop.index.unset({item: ["color"] for item in color})
    color.clear()
    check()


def test_searches_see_whole_rows_while_another_thread_writes() -> None:
    shop = Shop(MemoryIndex)
    names = [f"item {k}" for k in range(60)]
    versions = [
        patches(CONFIG, shop.items, {name: {"buy": {names[k - 1]: v, names[k - 2]: v}} for k, name in enumerate(names)})
        for v in (1.0, 2.0, 4.0, 8.0)
    ]
    shop.index.apply(versions[0])
    done = threading.Event()
    wrong: list[object] = []
    searches = [0, 0]

    def read(reader: int) -> None:
        query = Query(history={"buy": names}, num=60, backfill=None)
        while not done.is_set() or searches[reader] < 5:
            scores = {hit.score for hit in shop.index.search(query)}
            searches[reader] += 1
            if not scores <= {2.0, 4.0, 8.0, 16.0}:
                wrong.append(scores)

    readers = [threading.Thread(target=read, args=(reader,)) for reader in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(400):
        shop.index.apply(versions[turn % 4])
    for k in range(100):  # the vocabulary, and with it every array, grows
        shop.index.put_items({f"new {turn} {k}": {} for turn in range(5)})
    done.set()
    for reader in readers:
        reader.join(timeout=60)
    assert not wrong and min(searches) >= 5


def test_a_history_item_that_was_only_just_interned_is_no_error() -> None:
    shop = Shop(MemoryIndex)
    shop.apply({"i": {"buy": {"x": 1.0}}})
    new = [f"new {k}" for k in range(1000)]
    shop.items.intern(new)
    hits = shop.ask(history={"buy": ["x", *new], "view": new}, exclude_items=new, candidates=["i", *new])
    assert [hit.item for hit in hits] == ["i"]


def test_more_priors_than_items() -> None:
    config = make_config({"priors": {"hot": "3d", "trending": "6d"}})
    shop = Shop(MemoryIndex, config)
    shop.apply({"i": {"priors": {"hot": 1.0, "popular": 2.0, "recent": 3.0, "trending": 4.0}}})
    assert [hit.backfill for hit in shop.ask(backfill="trending")] == [4.0]

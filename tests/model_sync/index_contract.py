"""The suite that every implementation of `model_sync.contract.Index` passes.

A test module subclasses `IndexContract` and gives it a fixture `make_index`: (config, items) -> Index.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cco.config import Config, make_config
from cco.rows import Patches, Rows
from cco.vocabulary import Vocabulary
from model_sync.availability import available
from model_sync.contract import Boost, Hit, Index, Query, QueryError, Range, Rule, rules
from model_sync.metadata import MetadataError
from tests.model_sync.reference import Fields, Reference, listed, patches
from tests.model_sync.samples import (
    BAD_ITEMS,
    BAD_QUERIES,
    CONFIG,
    CONFIG_TABLES,
    IDS,
    WEIGHTS,
    any_ids,
    operations,
    queries,
)

MakeIndex = Callable[[Config, Vocabulary], Index]


def ask(index: Index, query: Query) -> list[Hit]:
    index.flush()
    return index.search(query)


def names(hits: list[Hit]) -> list[str]:
    return [hit.item for hit in hits]


class Shop:
    """An index and its vocabulary, filled by names."""

    def __init__(self, make_index: MakeIndex, config: Config = CONFIG) -> None:
        self.config = config
        self.items = Vocabulary()
        self.index = make_index(config, self.items)

    def apply(self, given: Fields) -> None:
        self.index.apply(patches(self.config, self.items, given))

    def ask(self, **query: Any) -> list[Hit]:
        return ask(self.index, Query(**query))


def equals_the_reference(make_index: MakeIndex, steps: list[tuple[str, Any]], last: Query) -> None:
    """Whatever is done to an index, it answers as the reference does."""
    shop = Shop(make_index)
    right = Reference(CONFIG, shop.items)
    for name, what in [*steps, ("search", last), ("search", Query(history=last.history, explain=True))]:
        if name == "search":
            assert ask(shop.index, what) == right.search(what)
            continue
        given_ = patches(CONFIG, shop.items, what) if name == "apply" else what
        getattr(shop.index, name)(given_)
        getattr(right, name)(given_)
    shop.index.flush()
    assert listed(CONFIG, shop.items, shop.index.rows()) == right.rows()
    assert len(shop.index) == len(right)
    for item in {*IDS, *shop.items.names(range(len(shop.items)))}:
        assert shop.index.properties(item) == right.properties(item)


class IndexContract:
    """What an index must do."""

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=st.lists(operations, min_size=1, max_size=14), last=queries)
    def test_equals_the_reference(self, make_index: MakeIndex, steps: list[tuple[str, Any]], last: Query) -> None:
        equals_the_reference(make_index, steps, last)

    def test_of_a_patch_only_the_named_fields_change(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({"i": {"buy": {"x": 2.0, "y": 1.0}, "view": {"x": 4.0}, "priors": {"popular": 3.0}}})
        shop.apply({"i": {"buy": {"y": 8.0}}})
        assert shop.ask(history={"buy": ["x"]}, backfill=None) == []
        assert [h.score for h in shop.ask(history={"buy": ["y"]})] == [8.0]
        shop.apply({"i": {"buy": {}}})
        assert [h.score for h in shop.ask(history={"buy": ["y"], "view": ["x"]})] == [float(np.float32(0.3) * 4)]
        assert [h.backfill for h in shop.ask()] == [3.0]

    def test_a_repeated_patch_changes_nothing(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        for _ in range(3):
            shop.apply({"i": {"buy": {"x": 2.0, "y": 1.0}}, "j": {"buy": {"x": 1.0}, "priors": {"recent": 1.0}}})
            assert [(h.item, h.score) for h in shop.ask(history={"buy": ["x", "y"]})] == [("i", 3.0), ("j", 1.0)]

    def test_scores_are_boost_times_weight_in_float32_summed_once(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({"i": {"buy": {"x": 1.3, "y": 7.1}, "view": {"x": 123.4}}})
        [hit] = shop.ask(history={"buy": ["x", "y"], "view": ["x", "x"]}, weights={"view": 0.7})
        kept = [1.296875, 7.09375, 123.25]  # 9 significant bits
        boost = np.float32(0.3 * 0.7)
        assert hit.score == float(np.float32(kept[0] + kept[1] + float(boost * np.float32(kept[2]))))

    @pytest.mark.parametrize("count", [1, 30])
    def test_sums_are_not_rounded_on_the_way(self, make_index: MakeIndex, count: int) -> None:
        shop = Shop(make_index)
        shop.apply({f"i{k}": {"buy": {"x": 2.0**24, "y": 1.0, "z": 1.0}} for k in range(count)})
        hits = shop.ask(history={"buy": ["x", "y", "z"]}, num=30)
        assert [hit.score for hit in hits] == [2.0**24 + 2] * count

    def test_ties_go_by_the_bytes_of_the_id(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({item: {"buy": {"x": 2.0}, "priors": {"popular": 5.0}} for item in reversed(IDS)})
        in_order = sorted(IDS, key=str.encode)
        assert in_order != sorted(IDS, key=lambda s: s.encode("utf-16-be"))
        assert names(shop.ask(history={"buy": ["x"]}, num=1000)) == in_order
        assert names(shop.ask(num=1000)) == in_order

    def test_pages_join(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({item: {"buy": {"x": WEIGHTS[k % 4]}} for k, item in enumerate(IDS[:15])})
        shop.apply({item: {"priors": {"popular": WEIGHTS[k % 3]}} for k, item in enumerate(IDS[8:22])})
        shop.index.put_items({item: {} for item in IDS[20:]})
        query = Query(history={"buy": ["x"]}, num=1000)
        everything = ask(shop.index, query)
        assert sorted(names(everything)) == sorted(IDS)
        for size in (1, 4, 7):
            pages = [ask(shop.index, replace(query, num=size, offset=k)) for k in range(0, len(IDS) + size, size)]
            assert list(itertools.chain(*pages)) == everything
        assert shop.ask(history={"buy": ["x"]}, offset=10_000) == []

    def test_a_deleted_item_stays_away_until_it_is_put_again(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({"i": {"buy": {"x": 2.0}, "priors": {"popular": 5.0}}})
        shop.index.put_items({"i": {"color": "red"}})
        shop.index.delete_items(["i", "never seen"])
        history = {"buy": ["x"]}
        assert shop.ask(history=history) == [] and shop.ask() == [] and len(shop.index) == 0
        shop.apply({"i": {"buy": {"x": 9.0}}, "never seen": {"buy": {"x": 9.0}, "priors": {"popular": 1.0}}})
        shop.index.unset({"i": ["color"]})
        assert shop.ask(history=history) == [] and shop.ask(candidates=["i"]) == []
        assert shop.ask(history=history, priors={"popular": 1.0}) == []
        assert shop.index.properties("i") is None
        shop.index.put_items({"i": {"size": 4}})
        assert shop.ask(history=history) == [Hit("i", 9.0, {"size": 4})]
        shop.index.update_items({"never seen": {}})
        assert names(shop.ask(history=history)) == ["i", "never seen"]

    def test_fields_of_a_deleted_item_are_still_published(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.index.delete_items(["i"])
        shop.apply({"i": {"buy": {"x": 2.0}}})
        shop.index.flush()
        assert listed(CONFIG, shop.items, shop.index.rows()) == [("i", "buy", [("x", 2.0)])]

    def test_set_merges_put_replaces_unset_removes(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.index.put_items({"i": {"color": "red", "size": 4, "gone": None}})
        shop.index.update_items({"i": {"size": 5, "price": 1.5}})
        shop.index.flush()
        assert shop.index.properties("i") == {"color": "red", "size": 5, "price": 1.5}
        shop.index.unset({"i": ["color", "nothing"], "nobody": ["color"]})
        shop.index.update_items({"i": {"price": None}})
        assert [h.item for h in shop.ask(include=rules({"size": 5}))] == ["i"]
        assert shop.ask(include=rules({"color": "red"})) == []
        shop.index.put_items({"i": {"size": 6}})
        assert shop.ask(include=rules({"size": [5]})) == []
        assert shop.index.properties("i") == {"size": 6}
        assert shop.index.properties("nobody") is None

    def test_kinds_of_values_are_never_equal(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.index.put_items({"text": {"v": "1"}, "number": {"v": 1}, "float": {"v": 1.0}, "truth": {"v": True}})
        assert names(shop.ask(include=(Rule("v", ("1",)),))) == ["text"]
        assert names(shop.ask(include=(Rule("v", (1,)),))) == ["float", "number"]
        assert names(shop.ask(include=(Rule("v", (True,)),))) == ["truth"]
        shop.index.update_items({"truth": {"v": 1}})
        assert names(shop.ask(include=(Rule("v", (True,)),))) == []
        assert names(shop.ask(include=(Rule("v", (1.0,)),))) == ["float", "number", "truth"]

    def test_any_and_all(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.index.put_items({"r": {"c": ["red"]}, "rb": {"c": ["red", "blue"]}, "b": {"c": "blue"}, "none": {}})
        values = ("red", "blue")
        assert names(shop.ask(include=(Rule("c", values),))) == ["b", "r", "rb"]
        assert names(shop.ask(include=(Rule("c", values, "all"),))) == ["rb"]
        assert names(shop.ask(exclude=(Rule("c", values),))) == ["none"]
        assert names(shop.ask(exclude=(Rule("c", values, "all"),))) == ["b", "none", "r"]

    def test_ranges(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.index.put_items(
            {
                "a": {"price": 1, "since": "2024-01-01"},
                "b": {"price": [0.5, 9], "since": "2024-01-01T00:30:00+01:00"},
                "c": {"price": "5", "since": "soon"},
                "d": {},
            }
        )
        assert names(shop.ask(ranges=(Range("price", 1, 8),))) == ["a"]
        assert names(shop.ask(ranges=(Range("price", 9),))) == ["b"]
        assert names(shop.ask(ranges=(Range("price", None, 1, missing=True),))) == ["a", "b", "d"]
        assert names(shop.ask(ranges=(Range("since", "2024-01-01"),))) == ["a"]
        assert names(shop.ask(ranges=(Range("since", None, "2023-12-31T23:30:00Z"),))) == ["b"]
        assert names(shop.ask(ranges=(Range("nothing", 1),))) == []
        assert names(shop.ask(ranges=(Range("nothing", 1, missing=True),))) == ["a", "b", "c", "d"]

    def test_ranges_of_dates_that_decide_on_availability(self, make_index: MakeIndex) -> None:
        """An index may keep these apart, since every question has them."""
        shop = Shop(make_index, make_config({**CONFIG_TABLES, "items": {"available": "from", "expires": "since"}}))
        items: dict[str, dict[str, Any]] = {
            "a": {"from": "2024-01-01", "since": "2024-03-01"},
            "b": {"from": ["2023-01-01", "2025-01-01"], "since": "soon"},
            "c": {"from": 5, "since": []},
            "d": {},
        }
        shop.index.put_items(items)
        ranges, excluded = available(shop.config, "2024-01-01T01:00:00+01:00")
        assert names(shop.ask(ranges=ranges, exclude=excluded)) == ["a", "d"]
        assert names(shop.ask(ranges=(Range("from", "2024-01-01", "2024-12-31"),))) == ["a"]
        assert names(shop.ask(ranges=(Range("from", "2024-06-01", missing=True),))) == ["b", "d"]
        assert names(shop.ask(ranges=(Range("from", 1, 9),))) == ["c"]
        assert names(shop.ask(ranges=(Range("since", None, "2024-03-01"),))) == ["a"]
        assert names(shop.ask(ranges=(Range("since", "2024-03-01T00:00:00.001Z", missing=True),))) == ["c", "d"]
        shop.index.update_items({"a": {"from": None}, "d": {"from": "2024-07-01"}})
        assert names(shop.ask(ranges=(Range("from", "2024-06-01", missing=True),))) == ["a", "b", "d"]
        assert names(shop.ask(ranges=(Range("from", "2024-06-01"),))) == ["b", "d"]

    def test_boosts_multiply_in_both_tiers(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({"a": {"buy": {"x": 2.0}}, "b": {"buy": {"x": 1.5}}})
        shop.apply({"p": {"priors": {"popular": 2.0}}, "q": {"priors": {"popular": 1.5}}})
        shop.index.put_items({"b": {"c": "red"}, "q": {"c": "red", "d": 1}, "z": {"c": "red"}})
        hits = shop.ask(history={"buy": ["x"]}, boost=(Boost("c", ("red", "green"), 2.0), Boost("d", (1,), 0.8)))
        assert [(h.item, h.score, h.backfill, h.factor) for h in hits] == [
            ("b", 3.0, 0.0, 2.0),
            ("a", 2.0, 0.0, 1.0),
            ("q", 0.0, float(np.float32(1.5 * 2.0 * float(np.float32(0.8)))), 2.0 * float(np.float32(0.8))),
            ("p", 0.0, 2.0, 1.0),
            ("z", 0.0, 0.0, 2.0),
        ]

    def test_priors_take_a_share_of_the_best_eligible_score(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({"a": {"buy": {"x": 8.0}, "priors": {"popular": 4.0}}, "b": {"buy": {"x": 4.0}}})
        shop.apply(
            {
                "c": {"priors": {"popular": 2.0, "recent": 1.0}},
                "huge": {"buy": {"x": 90.0}, "priors": {"popular": 900.0}},
            }
        )
        query = {"history": {"buy": ["x"]}, "priors": {"popular": 0.5}, "exclude_items": ["huge"], "explain": True}
        hits = shop.ask(**query)
        assert [(h.item, h.score) for h in hits] == [("a", 12.0), ("b", 4.0), ("c", 2.0)]
        assert [(c.indicator, c.feature, c.weight, c.boost, c.score) for c in hits[0].contributions] == [
            ("buy", "x", 8.0, 1.0, 8.0),
            ("priors", "popular", 4.0, 1.0, 4.0),
        ]
        # Without a match there is no best score to take a share of: all is backfill.
        assert [(h.item, h.score, h.backfill) for h in shop.ask(priors={"popular": 0.5}, num=2)] == [
            ("huge", 0.0, 900.0),
            ("a", 0.0, 4.0),
        ]

    def test_backfill(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({"m": {"buy": {"x": 0.5}, "priors": {"popular": 1.0}}})
        shop.apply(
            {"p": {"priors": {"popular": 9.0}}, "r": {"priors": {"recent": 3.0}}, "rowonly": {"buy": {"y": 9.0}}}
        )
        shop.index.put_items({"known": {}})
        assert names(shop.ask(history={"buy": ["x"]})) == ["m", "p", "known", "r"]
        assert names(shop.ask(history={"buy": ["x"]}, backfill="recent")) == ["m", "r", "known", "p"]
        assert names(shop.ask(history={"buy": ["x"]}, backfill=None)) == ["m"]
        assert names(shop.ask(num=2)) == ["p", "m"]

    def test_backfill_without_popular(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index, make_config({"priors": {"popular": "none", "recent": "none", "hot": "3d"}}))
        shop.apply({"a": {"priors": {"hot": 1.0}}, "b": {"priors": {"hot": 2.0}}})
        shop.index.put_items({"known": {}})
        assert names(shop.ask()) == ["b", "a", "known"]

    def test_backfill_without_priors(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index, make_config({"priors": {"popular": "none", "recent": "none"}}))
        shop.apply({"a": {"purchase": {"x": 1.0}}})
        shop.index.put_items({"known": {}})
        assert names(shop.ask(history={"purchase": ["x"]})) == ["a", "known"]
        assert names(shop.ask()) == ["known"]

    def test_backfill_by_rank(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index, make_config({**CONFIG_TABLES, "items": {"rank": "position"}}))
        shop.apply({"m": {"buy": {"x": 0.5}}, "p": {"priors": {"popular": 9.0}}})
        ranks = {"low": 0.1, "high": 7, "negative": -1, "text": "9", "several": [9, 9], "truth": True, "huge": 1e300}
        shop.index.put_items({name: {"position": rank} for name, rank in ranks.items()} | {"m": {"position": 99}})
        hits = shop.ask(history={"buy": ["x"]}, backfill="rank", boost=(Boost("position", (0.1,), 100.0),))
        assert [(hit.item, hit.backfill) for hit in hits] == [
            ("m", 0.0),
            ("huge", float(np.float32(1e18))),
            ("low", float(np.float32(np.float32(0.1) * 100.0))),
            ("high", 7.0),
            *((name, 0.0) for name in ("negative", "p", "several", "text", "truth")),
        ]
        shop.index.update_items({"high": {"position": 0}})
        shop.index.unset({"huge": ["position"]})
        assert names(shop.ask(backfill="rank", num=2)) == ["m", "low"]
        shop.index.put_items({"huge": {"position": 1e9}})
        shop.index.delete_items(["m"])
        assert names(shop.ask(backfill="rank", num=2)) == ["huge", "low"]

    def test_backfill_at_random_is_the_same_every_time(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.index.put_items({f"item {k}": {} for k in range(40)})
        hits = shop.ask(backfill="random", num=40)
        assert [hit.backfill for hit in hits] == sorted({hit.backfill for hit in hits}, reverse=True)
        assert all(0 <= hit.backfill < 1 for hit in hits)
        values = [hit.backfill for hit in hits]
        for begin in (0.25, values[7], 0.75):  # the same circle, from there on
            last = sum(value >= begin for value in values)  # of them come at the end now
            turned = shop.ask(backfill="random", num=40, shuffle=begin)
            assert names(turned) == names(hits)[last:] + names(hits)[:last] and 0 < last < 40
            pages = [shop.ask(backfill="random", num=7, offset=k, shuffle=begin) for k in range(0, 40, 7)]
            assert list(itertools.chain(*pages)) == turned
        assert names(hits) != sorted(names(hits)) and names(hits) != sorted(names(hits), reverse=True)
        shop.apply({item: {"priors": {"popular": 1.0 + k}} for k, item in enumerate(names(hits))})
        assert shop.ask(backfill="random", num=40) == hits

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(found=st.lists(any_ids, min_size=1, max_size=5, unique=True))
    def test_whatever_is_an_id_is_an_item_and_a_feature(self, make_index: MakeIndex, found: list[str]) -> None:
        shop = Shop(make_index)
        shop.apply({item: {"buy": {item: 2.0}, "view": {"feature": 1.0}} for item in found})
        shop.index.put_items({item: {"name": item} for item in found})
        assert names(shop.ask(history={"view": ["feature"]}, backfill=None)) == sorted(found, key=str.encode)
        for item in found:
            assert shop.ask(history={"buy": [item]}, backfill=None) == [Hit(item, 2.0, {"name": item})]
            assert names(shop.ask(include=rules({"name": item}), candidates=[item])) == [item]
            assert item not in names(shop.ask(exclude_items=[item]))

    def test_candidates_and_exclusions(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({item: {"buy": {"x": float(k + 1)}} for k, item in enumerate("abcd")})
        shop.index.put_items({"e": {}})
        history = {"buy": ["x"]}
        assert names(shop.ask(history=history, candidates={"a", "e", "nobody"})) == ["a", "e"]
        assert names(shop.ask(history=history, candidates=["a", "d"], exclude_items=["d", "nobody"])) == ["a"]
        assert shop.ask(history=history, candidates=[]) == []

    def test_explained_contributions_add_up(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        shop.apply({"i": {"buy": {"x": 2.5, "y": 7.0}, "view": {"y": 4.0, "z": 1.0}}})
        [hit] = shop.ask(history={"buy": ["x", "y", "q"], "view": ["y"]}, explain=True)
        assert [(c.indicator, c.feature) for c in hit.contributions] == [("buy", "y"), ("buy", "x"), ("view", "y")]
        assert hit.score == float(np.float32(sum(c.score for c in hit.contributions)))
        assert shop.ask(history={"buy": ["x"]})[0].contributions == ()

    def test_an_empty_index_answers(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        assert shop.ask(history={"buy": ["x"]}, include=rules({"a": "b"}), priors={"popular": 1.0}, explain=True) == []
        assert len(shop.index.rows()) == 0 and len(shop.index) == 0 and shop.index.properties("x") is None

    def test_answers_are_copies(self, make_index: MakeIndex) -> None:
        shop = Shop(make_index)
        given_: dict[str, Any] = {"tags": ["a"]}
        shop.index.put_items({"i": given_})
        given_["tags"].append("b")
        shop.ask()[0].properties["tags"].append("c")  # type: ignore[union-attr]
        shop.index.properties("i")["tags"].append("d")  # type: ignore[index, union-attr]
        assert shop.ask()[0].properties == {"tags": ["a"]}

    @pytest.mark.parametrize(("query", "path"), BAD_QUERIES, ids=lambda v: v if isinstance(v, str) else "")
    def test_bad_queries_name_the_part(self, make_index: MakeIndex, query: dict[str, Any], path: str) -> None:
        with pytest.raises(QueryError) as caught:
            Shop(make_index).ask(**query)
        assert caught.value.path == path
        assert str(caught.value) == f"{path}: {caught.value.problem}" and len(str(caught.value)) < 200

    def test_unknown_names_come_with_the_nearest_known(self, make_index: MakeIndex) -> None:
        with pytest.raises(QueryError, match="did you mean 'view'"):
            Shop(make_index).ask(history={"veiw": ["a"]})
        with pytest.raises(QueryError, match="there are: popular, recent"):
            Shop(make_index).ask(backfill="zzz")

    @pytest.mark.parametrize(("items", "problem"), BAD_ITEMS, ids=lambda v: v if isinstance(v, str) else "")
    def test_bad_metadata_changes_nothing(self, make_index: MakeIndex, items: dict[Any, Any], problem: str) -> None:
        shop = Shop(make_index)
        for write in (shop.index.put_items, shop.index.update_items):
            with pytest.raises(MetadataError, match=problem):
                write({"good": {}, **items})
        assert shop.ask() == []

    @pytest.mark.parametrize("what", ["item", "field", "feature", "prior", "zero", "nan", "infinite", "twice"])
    def test_bad_patches_change_nothing(self, make_index: MakeIndex, what: str) -> None:
        shop = Shop(make_index)
        good = patches(CONFIG, shop.items, {"a": {"buy": {"x": 2.0}}, "b": {"buy": {"x": 2.0, "y": 1.0}}}).rows
        if what == "prior":
            good = patches(CONFIG, shop.items, {"a": {"buy": {"x": 2.0}}, "b": {"priors": {"recent": 1.0}}}).rows
        shop.apply({"a": {"buy": {"x": 1.0}}})
        item, field, feature, weight = (c.copy() for c in (good.item, good.field, good.feature, good.weight))
        match what:
            case "item":
                item[1] = len(shop.items)
            case "field":
                field[1] = 3
            case "feature":
                feature[-1] = len(shop.items)
            case "prior":
                feature[-1] = 2
            case "twice":
                feature[-1] = feature[-2]
            case _:
                weight[-1] = {"zero": 0.0, "nan": np.nan, "infinite": np.inf}[what]
        with pytest.raises(ValueError, match="row 1 of the patch"):
            shop.index.apply(Patches((0,), Rows(item, field, good.start, feature, weight)))
        assert [(h.item, h.score) for h in shop.ask(history={"buy": ["x"]})] == [("a", 1.0)]

    def test_many_patches_equal_the_reference(self, make_index: MakeIndex) -> None:
        """Rows that grow, shrink and swap entries until storage has been rearranged many times."""
        random = np.random.default_rng(7)
        shop = Shop(make_index)
        right = Reference(CONFIG, shop.items)
        known = [f"item {k * 37 % 101}" for k in range(101)]
        for turn in range(25):
            some = random.choice(known[: 20 + 4 * turn], size=15, replace=False).tolist()
            given_ = {
                item: {
                    "buy" if random.random() < 0.7 else "view": dict(
                        zip(
                            random.choice(known, size=int(random.integers(0, 50)), replace=False).tolist(),
                            random.exponential(20.0, 50).tolist(),
                            strict=False,
                        )
                    ),
                    "priors": {"popular": float(random.integers(1, 9))},
                }
                for item in some
            }
            patch = patches(CONFIG, shop.items, given_)
            shop.index.apply(patch)
            right.apply(patch)
            history = {name: random.choice(known, size=30, replace=False).tolist() for name in ("buy", "view")}
            query = Query(history=history, num=40, priors={"popular": 0.1} if turn % 2 else {}, explain=turn % 5 == 0)
            assert ask(shop.index, query) == right.search(query)
        shop.index.flush()
        assert listed(CONFIG, shop.items, shop.index.rows()) == right.rows()
        assert all(size >= 0 for size in shop.index.sizes().values())

"""The joined stages against the oracle: each patch at its position, each row within max_staleness, and the end."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cco.batch import rebuild
from cco.config import Config, Indicator, Retention
from cco.event_data import EventBatch
from cco.model_file import encode
from cco.pipeline import Pipeline
from cco.row_counter import MapLike
from cco.rows import Patches, Rows, join_rows
from cco.vocabulary import Vocabulary
from tests.cco.histories import Event, cases, to_batch, to_batches
from tests.examples import examples
from tests.oracle import Oracle, truncate

Case = tuple[Config, list[Event]]
Fields = dict[tuple[str, str], list[tuple[str, float]]]  # (item, field) -> entries, in order; empty ones left out

STALENESS = 10.0


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def wanted_fields(oracle: Oracle) -> Fields:
    """What an index that is exact holds."""
    found: Fields = {}
    for item, row in oracle.rows().items():
        for name, entries in row.items():
            kept = [(j, truncate(llr)) for j, llr in entries]
            found[item, name] = sorted(kept, key=lambda e: (-e[1], e[0].encode()))
    for item, priors in oracle.priors().items():
        if priors:
            kept = [(name, truncate(value)) for name, value in priors.items()]
            found[item, "priors"] = sorted(kept, key=lambda e: (-e[1], e[0]))
    return found


def fields_of(rows: Rows, config: Config, items: Vocabulary) -> dict[tuple[str, str], list[tuple[str, float]]]:
    """Rows by names, empty ones included."""
    found = {}
    names = (*config.indicator_names, "priors")
    for r in range(len(rows)):
        entries = slice(int(rows.start[r]), int(rows.start[r + 1]))
        field = names[rows.field[r]]
        feature = rows.feature[entries].tolist()
        features = [config.prior_names[p] for p in feature] if field == "priors" else items.names(feature)
        found[items.name(int(rows.item[r])), field] = list(zip(features, rows.weight[entries].tolist(), strict=True))
    return found


class World:
    """A pipeline, what its patches made of an index, and the states of the oracle with their times."""

    def __init__(self, config: Config, item_partitions: int, map_chunks: MapLike = map) -> None:
        self.config = config.model_copy(update={"max_staleness": STALENESS})
        self.users, self.items = Vocabulary(), Vocabulary()
        self.pipeline = Pipeline(self.config, self.users, self.items, item_partitions, map_chunks)
        self.oracle = Oracle(self.config)
        self.index: Fields = {}
        self.now = 0.0
        self.states: list[tuple[float, Fields]] = [(0.0, {})]  # when a state ended to be the latest is the next's time

    def feed(self, log: list[Event]) -> None:
        self.pipeline.ingest(to_batch(self.config, log, self.users, self.items), self.now)
        for event in log:
            self.oracle.apply(*event)
        self.states.append((self.now, wanted_fields(self.oracle)))

    def take(self, patches: Patches) -> None:
        assert patches.position == self.pipeline.position
        latest = self.states[-1][1]
        for key, entries in fields_of(patches.rows, self.config, self.items).items():
            assert entries == latest.get(key, []), (key, "differs from the oracle at the position of its patch")
            assert entries != self.index.get(key, []), (key, "was sent although nothing changed")
            self.index.pop(key, None)
            if entries:
                self.index[key] = entries

    def check_staleness(self) -> None:
        """Each published field is what some state within the last STALENESS seconds had."""
        recent = [
            fields
            for (_, fields), ended in zip(self.states, [s[0] for s in self.states[1:]] + [float("inf")], strict=True)
            if ended >= self.now - STALENESS
        ]
        for key in {key for fields in recent for key in fields} | set(self.index):
            assert any(self.index.get(key) == fields.get(key) for fields in recent), key

    def drain(self) -> None:
        for patches in self.pipeline.drain(self.now):
            self.take(patches)
        assert self.pipeline.staleness(self.now) == 0.0
        assert self.pipeline.due() == 0


def model_of(world: World, log: list[Event]) -> list[bytes]:
    users, items = Vocabulary(), Vocabulary()
    model = rebuild(world.config, to_batches(world.config, log, users, items, 7), users, items)
    return list(encode(model.rows(), items, world.config))


@examples(120)
@given(case=cases(), partitions=st.integers(1, 3), threads=st.booleans(), data=st.data())
def test_each_patch_each_row_and_the_end(
    pool: ThreadPoolExecutor, case: Case, partitions: int, threads: bool, data: Any
) -> None:
    config, log = case
    world = World(config, partitions, pool.map if threads else map)
    at = 0
    while at < len(log):
        size = data.draw(st.integers(1, 12))
        world.feed(log[at : at + size])
        at += size
        for patches in world.pipeline.publish(world.now, data.draw(st.integers(0, 3))):
            world.take(patches)
        world.check_staleness()
        world.now += data.draw(st.sampled_from((0.0, 0.5, 1.9)))
    for _ in range(7):  # no more events and no room: what is too old is counted all the same
        for patches in world.pipeline.publish(world.now, 0):
            world.take(patches)
        world.check_staleness()
        world.now += 1.9
    world.drain()
    assert world.index == wanted_fields(world.oracle)
    assert fields_of(world.pipeline.exact_rows(), config, world.items) == exact_fields(world.oracle)


def exact_fields(oracle: Oracle) -> Fields:
    found = {(item, name): entries for item, row in oracle.rows().items() for name, entries in row.items()}
    for item, priors in oracle.priors().items():
        if priors:
            by_value = sorted(priors.items(), key=lambda e: (-e[1], e[0]))
            found[item, "priors"] = [(name, float(value)) for name, value in by_value]
    return found


@examples(60)
@given(cases(), st.integers(1, 3), st.integers(1, 30))
def test_drained_stream_equals_the_batch_rebuild(case: Case, partitions: int, size: int) -> None:
    config, log = case
    world = World(config, partitions)
    for at in range(0, len(log), size):
        world.feed(log[at : at + size])
        for patches in world.pipeline.publish(world.now, 2):
            world.take(patches)
        world.now += 1.0
    world.drain()
    again = World(config, 1)
    again.feed(log)
    again.drain()
    assert again.index == world.index
    oracle_lines = [line.encode() for line in world.oracle.model_lines()]
    assert b"".join(model_of(world, log)).splitlines() == oracle_lines


@examples(40)
@given(cases(), st.integers(1, 3))
def test_a_new_index_gets_everything_once_more(case: Case, partitions: int) -> None:
    config, log = case
    world = World(config, partitions)
    world.feed(log)
    world.drain()
    world.index.clear()
    world.pipeline.forget_sent(world.now)
    world.drain()
    assert world.index == wanted_fields(world.oracle)


@examples(60)
@given(case=cases(), partitions=st.integers(1, 3), data=st.data())
def test_one_more_index_is_handed_every_row_while_the_first_goes_on(case: Case, partitions: int, data: Any) -> None:
    """It was loaded with something else; the first gets what changes, and nothing twice (`World.take` looks)."""
    config, log = case
    world = World(config, partitions)
    at = data.draw(st.integers(0, len(log)))
    world.feed(log[:at])
    for patches in world.pipeline.publish(world.now, data.draw(st.integers(0, 50))):
        world.take(patches)
    further: Fields = {key: [("loaded", 1.0)] for key in world.index}

    def take(patches: Patches) -> None:
        for key, entries in fields_of(patches.rows, config, world.items).items():
            further[key] = entries
        if patches.again is not None:
            patches = Patches(patches.position, patches.rows.select(np.flatnonzero(~patches.again)))
        world.take(patches)

    left = [stage.known_items() for stage in world.pipeline.item_stages]
    handed = [items[:0] for items in left]
    stages = world.pipeline.item_stages
    while any(left[k].size or stage.is_due(handed[k]) for k, stage in enumerate(stages)):
        for k, stage in enumerate(stages):
            if not stage.is_due(handed[k]):
                size = data.draw(st.integers(1, 4))
                handed[k], left[k] = left[k][:size], left[k][size:]
                stage.send_again(handed[k])
        size = data.draw(st.integers(0, 6))
        if log[at : at + size]:
            world.feed(log[at : at + size])
            at += size
        for patches in world.pipeline.publish(world.now, data.draw(st.integers(1, 5))):
            take(patches)
        world.now += data.draw(st.sampled_from((0.0, 1.9)))
    if log[at:]:
        world.feed(log[at:])
    for patches in world.pipeline.drain(world.now):
        take(patches)
    assert world.index == wanted_fields(world.oracle)
    assert {key: entries for key, entries in further.items() if entries} == world.index


def test_a_new_index_after_an_idle_hour_is_filled_in_portions() -> None:
    """Its rows age from then on: not all of them are too old at once, for one step that holds up everything else."""
    world = World(Config(), 1)
    world.feed([(f"u{k * k % 17}", "purchase", f"i{k % 60}", k) for k in range(240)])
    world.drain()
    world.index.clear()
    world.now += 3600.0
    world.pipeline.forget_sent(world.now)
    (stage,) = world.pipeline.item_stages
    stage.make_all_due(world.now)
    assert world.pipeline.staleness(world.now + 1.0) == 1.0
    portions = []
    while world.pipeline.due():
        counted = world.pipeline.rows_counted
        for patches in world.pipeline.publish(world.now, 8):
            world.take(patches)
        assert stage.ages.max() < STALENESS
        portions.append(world.pipeline.rows_counted - counted)
        world.now += 0.1
    assert portions == 7 * [8] + [4]
    assert world.index == wanted_fields(world.oracle)


def test_rows_that_are_too_old_come_oldest_first_where_one_step_may_not_count_them_all() -> None:
    world = World(Config(), 1)
    world.feed([(f"u{k}", "purchase", f"i{k}", k) for k in range(20)])
    world.now += 1.0
    world.feed([(f"v{k}", "purchase", f"j{k}", k) for k in range(20)])
    (stage,) = world.pipeline.item_stages
    world.now += 10 * STALENESS
    oldest, steps = [], []
    while world.pipeline.staleness(world.now):
        patches = stage.publish(world.now, 2, 7)
        assert patches is not None
        world.take(patches)
        oldest.append(float(stage.ages.max()))
        steps.append(stage.ages.size)
    assert steps == 5 * [7] + [5] and oldest == sorted(oldest, reverse=True) and oldest[0] > oldest[-1]
    world.drain()
    assert world.index == wanted_fields(world.oracle)


def test_what_was_out_of_date_before_a_new_index_is_as_old_as_it_was() -> None:
    world = World(Config(), 1)
    world.feed([(f"u{k * k % 17}", "purchase", f"i{k % 60}", k) for k in range(240)])
    world.drain()
    world.now += 3600.0
    world.feed([("new", "purchase", "i1", 500)])  # which changes N, and so every row
    world.now += 5.0
    world.index.clear()
    world.pipeline.forget_sent(world.now)
    assert world.pipeline.staleness(world.now) == 5.0
    world.now += STALENESS - 6.0
    for patches in world.pipeline.publish(world.now, 0):
        world.take(patches)
    assert world.pipeline.staleness(world.now) == 0.0


@examples(40)
@given(cases(), st.integers(1, 3), st.integers(1, 12))
def test_applying_messages_again_changes_nothing(case: Case, partitions: int, size: int) -> None:
    config, log = case
    world = World(config, partitions)
    for batch in to_batches(config, log, world.users, world.items, size):
        for source, part in world.pipeline._by_source(batch):
            for messages in world.pipeline.user_stages[source].ingest(part):
                for stage, edits in zip(world.pipeline.item_stages, messages, strict=True):
                    stage.apply(edits, 0.0)
                    stage.apply(edits, 0.0)
    for event in log:
        world.oracle.apply(*event)
    world.states.append((0.0, wanted_fields(world.oracle)))
    world.drain()
    assert world.index == wanted_fields(world.oracle)


def test_a_slow_sink_leaves_rows_due_and_memory_flat() -> None:
    """Nothing is published: due items are at most the items, however many events there are."""
    world = World(Config(), 1)
    log = [(f"u{k % 17}", "purchase", f"i{k * k % 23}", k) for k in range(4000)]
    world.pipeline.ingest(to_batch(world.config, log, world.users, world.items), 0.0)
    before = world.pipeline.nbytes()
    for _ in range(5):
        world.pipeline.ingest(to_batch(world.config, log, world.users, world.items), 1.0)
    assert world.pipeline.nbytes() == before
    assert world.pipeline.due() <= 23
    assert world.pipeline.staleness(9.0) == 9.0


def test_impossible_numbers_of_partitions() -> None:
    for number in (0, 257, -1):
        with pytest.raises(ValueError, match="item_partitions"):
            Pipeline(Config(), Vocabulary(), Vocabulary(), number)


def test_after_an_idle_hour_one_event_makes_no_row_too_old() -> None:
    """A row is as old as the first change that it does not show, not as its last count."""
    world = World(Config(), 1)
    world.feed([(f"u{k % 5}", "purchase", f"i{k % 7}", k) for k in range(40)])
    world.drain()
    counted = world.pipeline.rows_counted
    world.now += 3600.0
    assert world.pipeline.staleness(world.now) == 0.0
    world.feed([("new", "purchase", "i1", 50)])
    assert world.pipeline.staleness(world.now) == 0.0
    for patches in world.pipeline.publish(world.now, 0):
        world.take(patches)
    assert world.pipeline.rows_counted == counted
    world.now += 3.0
    assert world.pipeline.staleness(world.now) == 3.0


def test_a_row_that_was_counted_in_one_field_is_not_exact_in_all() -> None:
    config = Config(primary="buy", indicators={"buy": Indicator(), "view": Indicator()})
    world = World(config, 1)
    world.feed([(user, "buy", item, 1) for user, items in {"a": "xy", "b": "xy", "c": "zw"}.items() for item in items])
    world.drain()
    world.feed([("a", "view", "q", 1), ("n", "buy", "m", 1)])
    for patches in world.pipeline.publish(world.now, 100):
        world.take(patches)
    world.drain()
    assert world.index == wanted_fields(world.oracle)


def test_the_largest_relative_change_goes_first() -> None:
    world = World(Config(), 1)
    world.feed([(f"u{k}", "purchase", "popular", 1) for k in range(20)] + [("v", "purchase", "rare", 1)])
    world.drain()
    world.feed([("new", "purchase", "popular", 2), ("other", "purchase", "rare", 2)])
    (patches,) = world.pipeline.publish(world.now, 1)
    assert {world.items.name(int(item)) for item in patches.rows.item} == {"rare"}


def test_impossible_columns_are_refused_before_anything_is_applied() -> None:
    world = World(Config(), 1)
    good = to_batch(world.config, [("u", "purchase", "i", 1)], world.users, world.items)
    for column, value in (("users", 9), ("items", 9), ("types", 7), ("types", -3)):
        bad = np.array([value], getattr(good, column).dtype)
        with pytest.raises(ValueError, match="beyond"):
            world.pipeline.ingest(replace(good, **{column: bad}), 0.0)
    with pytest.raises(ValueError, match="one length"):
        world.pipeline.ingest(replace(good, times=np.array([1, 2], np.uint32)), 0.0)
    with pytest.raises(ValueError, match="uint32"):
        world.pipeline.ingest(replace(good, users=np.array([0], np.int64)), 0.0)
    assert world.pipeline.position == (0,)


def test_memory_stays_when_interactions_come_and_go() -> None:
    """Purchases and returns, expiry and new users at a constant size: the arenas stay where they are."""
    config = Config(
        indicators={"purchase": Indicator(removed_by=("return",), user_cap=9)},
        retention=Retention(sampling="recent", window=200, visitor_window=None),
    )
    world = World(config, 1)
    sizes = []
    for day in range(30):
        log = [
            (f"u{k % 50}", "return" if k % 5 == 0 else "purchase", f"i{(k * 7 + day * 11) % 60}", day * 100 + k // 20)
            for k in range(1500)
        ]
        world.pipeline.ingest(to_batch(config, log, world.users, world.items), float(day))
        sizes.append(sum(world.pipeline.nbytes().values()))
    assert max(sizes[10:]) <= 1.5 * max(sizes[:10])


def test_a_user_with_a_million_events_and_an_item_with_a_million_users() -> None:
    """The one is cut to its cap, the other counted whole; and the batch rebuild says the same."""
    million, others, catalogue, cap = 1_000_000, 1_000, 100_000, 500
    config = Config(indicators={"purchase": Indicator(user_cap=cap, top_k=40)}, retention=Retention(sampling="recent"))
    users, items = Vocabulary(), Vocabulary()
    users.intern(["busy", *(f"u{k}" for k in range(million))])
    items.intern(["star", *(f"i{k}" for k in range(catalogue))])
    k = np.arange(million, dtype=np.uint32)
    bought = np.random.default_rng(3).integers(1, catalogue + 1, million, dtype=np.uint32)  # by the busy user
    log = EventBatch(  # of each second: the star and one of a few others by somebody new, and something by the busy one
        users=np.stack([k + 1, k + 1, np.zeros_like(k)], axis=1).ravel(),
        items=np.stack([np.zeros_like(k), 1 + k % others, bought], axis=1).ravel(),
        types=np.zeros(3 * million, np.int16),
        times=np.repeat(k, 3),
    )
    pipeline = Pipeline(config, users, items)
    for at in range(0, len(log), 1 << 16):
        pipeline.ingest(log.part(at, at + (1 << 16)), 0.0)
    latest, first = np.unique(bought[::-1], return_index=True)
    kept = set(latest[np.argsort(first)][:cap].tolist())
    assert {item for item, _ in pipeline.history(0)["purchase"]} == kept
    assert pipeline.members() == million + 1
    assert pipeline.counts(0, "purchase", 7) == (
        million // others,
        million,
        million // others + (7 in kept),
        million + 1,
    )
    streamed = join_rows([patches.rows for patches in pipeline.drain(0.0)])
    rebuilt = rebuild(config, [log], users, items, threads=2)
    model = b"".join(encode(streamed, items, config))
    assert model == b"".join(encode(rebuilt.rows(), items, config))
    assert model.count(b"\n") == len(kept | set(range(others + 1)))

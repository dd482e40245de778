"""The batch rebuild against the oracle: retained histories, counts, exact rows, the file, priors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cco import batch
from cco.batch import Model, rebuild
from cco.batch_fold import Histories as Retained
from cco.batch_fold import SourceBatch, fold
from cco.config import Config, Indicator, Priors, Retention
from cco.event_data import EventBatch
from cco.model_file import encode
from cco.rows import Rows
from cco.vocabulary import Vocabulary
from tests.cco.histories import Event, cases, configs, events, expiring_cases, oracle_of, to_batch, to_batches
from tests.examples import examples
from tests.oracle import Histories, Oracle, partition_of

DAY = 86_400


def batch_of(config: Config, log: list[Event], size: int = 10**6, threads: int = 1, fold_every: int = 10**6) -> Model:
    users, items = Vocabulary(), Vocabulary()
    batches = (to_batch(config, log[at : at + size], users, items) for at in range(0, len(log), size))
    return rebuild(config, batches, users, items, threads=threads, fold_every=fold_every)


def file_of(model: Model, exact: bool = False) -> str:
    rows = model.exact_rows() if exact else model.rows()
    return b"".join(encode(rows, model.items, model.config)).decode()


def histories_of(model: Model) -> dict[str, Histories]:
    found = {}
    for index in range(len(model.users)):
        history = {
            name: {model.items.name(item): time for item, time in entries}
            for name, entries in model.history(index).items()
        }
        if any(history.values()):
            found[model.users.name(index)] = history
    return found


def exact_of(model: Model) -> dict[str, dict[str, list[tuple[str, float]]]]:
    rows, names = model.exact_rows(), model.config.indicator_names
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for r in range(len(rows)):
        if rows.field[r] < len(names):
            entries = slice(int(rows.start[r]), int(rows.start[r + 1]))
            row = zip(model.items.names(rows.feature[entries]), rows.weight[entries].tolist(), strict=True)
            found.setdefault(model.items.name(int(rows.item[r])), {})[names[rows.field[r]]] = list(row)
    return found


@examples(250)
@given(cases() | expiring_cases())
def test_equals_oracle(case: tuple[Config, list[Event]]) -> None:
    config, log = case
    oracle = oracle_of(config, log)
    model = batch_of(config, log)
    assert histories_of(model) == oracle.histories()
    assert exact_of(model) == oracle.rows()
    assert file_of(model).splitlines() == oracle.model_lines()
    assert file_of(model, exact=True).splitlines() == oracle.model_lines(exact=True)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_counts_equal_oracle(case: tuple[Config, list[Event]]) -> None:
    config, log = case
    oracle = oracle_of(config, log)
    model = batch_of(config, log)
    assert model.n_users == len(oracle.members())
    n_row = oracle.counts(config.primary)[1]
    for name in config.indicators:
        n, n_column, pairs = oracle.counts(name)
        for i in n_row:
            for j in n_column:
                index, feature = model.items.index(i), model.items.index(j)
                assert index is not None and feature is not None
                assert model.counts(index, name, feature) == (pairs.get((i, j), 0), n_row[i], n_column[j], n)


@settings(max_examples=100, deadline=None)
@given(cases() | expiring_cases(), st.integers(1, 30), st.integers(1, 30), st.integers(1, 2))
def test_batches_folds_and_threads_do_not_matter(
    case: tuple[Config, list[Event]], size: int, fold_every: int, threads: int
) -> None:
    config, log = case
    whole = batch_of(config, log)
    parts = batch_of(config, log, size, threads, fold_every)
    assert histories_of(parts) == histories_of(whole)
    assert file_of(parts) == file_of(whole)
    assert file_of(parts, exact=True) == file_of(whole, exact=True)


@settings(max_examples=150, deadline=None)
@given(
    cases() | expiring_cases(),
    st.lists(st.integers(0, 100), min_size=3, max_size=3),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_a_clock_event_in_the_log_of_one_source_moves_its_time_alone(
    case: tuple[Config, list[Event]], ahead: list[int], size: int, fold_every: int
) -> None:
    config, log = case
    sources = config.retention.source_partitions
    oracle, users, items = Oracle(config), Vocabulary(), Vocabulary()
    batches: list[SourceBatch] = []
    for source in range(sources):
        mine: list[Event] = []
        for k, (user, kind, item, time) in enumerate(log):
            if kind == "$clock" and k % sources == source:  # in this log alone, and its clock goes ahead
                mine.append((user, kind, item, time + ahead[source]))
            elif kind != "$clock" and partition_of(user, sources) == source:
                mine.append((user, kind, item, time))
        for event in mine:
            oracle.apply(*event, source=source)
        batches += [(source, to_batch(config, mine[at : at + size], users, items)) for at in range(0, len(mine), size)]
    model = rebuild(config, batches, users, items, fold_every=fold_every)
    assert histories_of(model) == oracle.histories()
    assert file_of(model).splitlines() == oracle.model_lines()


def timeless(config: Config) -> Config:
    """The same without what looks at time or order: windows, removals, priors within a duration."""
    return config.model_copy(
        update={
            "retention": config.retention.model_copy(
                update={"sampling": "uniform", "window": None, "visitor_window": None}
            ),
            "indicators": {n: i.model_copy(update={"removed_by": ()}) for n, i in config.indicators.items()},
            "priors": Priors(popular="all", recent="none", trending="none", hot="none"),  # type: ignore[arg-type]
        }
    )


@st.composite
def orderless_cases(draw: st.DrawFn) -> tuple[Config, list[Event]]:
    config = timeless(Config.model_validate(draw(configs()).model_dump()))
    config = Config.model_validate(config.model_dump())
    log = [event for event in draw(events(config)) if not event[1].startswith("$")]
    return config, log


@settings(max_examples=100, deadline=None)
@given(orderless_cases(), st.randoms(use_true_random=False))
def test_order_and_duplicates_do_not_matter_to_uniform(case: tuple[Config, list[Event]], rng: random.Random) -> None:
    """Uniform retention is a function of the set of events, where nothing is removed and nothing expires."""
    config, log = case
    shuffled = log + rng.choices(log, k=len(log)) if log else []
    rng.shuffle(shuffled)
    assert file_of(batch_of(config, shuffled)) == file_of(batch_of(config, log))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_duplicates_side_by_side_do_not_matter(case: tuple[Config, list[Event]]) -> None:
    """Whatever the options: an event that comes twice in a row says nothing new."""
    config, log = case
    assert file_of(batch_of(config, [event for event in log for _ in range(2)])) == file_of(batch_of(config, log))


def test_nothing() -> None:
    for log in ([], [("", "$clock", "", 5)], [("u", "$delete", "", 5)]):
        model = batch_of(Config(), log)
        assert (file_of(model), model.n_users, len(model.rows())) == ("", 0, 0)


def test_vocabularies_that_know_more() -> None:
    """Users and items without events are no part of the model."""
    log = [("u1", "purchase", "a", 1), ("u1", "purchase", "b", 1), ("u2", "purchase", "c", 1)]
    users, items = Vocabulary(), Vocabulary()
    users.intern(["nobody", "u1"])
    items.intern(["nothing", "b"])
    config = Config(primary="purchase")
    model = rebuild(config, to_batches(config, log, users, items, 2), users, items)
    users.intern(["later"])
    items.intern(["later"])
    assert file_of(model) == file_of(batch_of(config, log))
    assert model.history(len(users) - 1) == {"purchase": []}


def test_visitors_keep_no_longer_than_members() -> None:
    """A window shorter than the visitors' holds for visitors too, so leaving U prolongs nothing."""
    config = Config(
        primary="buy",
        indicators={"buy": Indicator(), "view": Indicator()},
        retention=Retention(sampling="recent", window=10, visitor_window=1_000),
    )
    log = [("u", "buy", "a", 1), ("u", "view", "b", 5), ("v", "view", "c", 5), ("w", "buy", "a", 12)]
    assert histories_of(batch_of(config, log)) == {
        "u": {"buy": {}, "view": {"b": 5}},
        "v": {"buy": {}, "view": {"c": 5}},
        "w": {"buy": {"a": 12}, "view": {}},
    }
    log += [("w", "buy", "a", 16)]
    assert histories_of(batch_of(config, log)) == {"w": {"buy": {"a": 16}, "view": {}}}


def test_leaving_u_is_followed_by_the_visitor_window() -> None:
    """The clock that takes a member's last primary item takes at once what a visitor may not keep."""
    config = Config(
        primary="buy",
        indicators={"buy": Indicator(), "view": Indicator()},
        retention=Retention(sampling="recent", window=20, visitor_window=5, source_partitions=3),
    )
    log = [("u", "buy", "a", 10), ("u", "view", "b", 20), ("u", "view", "c", 27), ("", "$clock", "", 30)]
    assert histories_of(batch_of(config, log)) == {"u": {"buy": {"a": 10}, "view": {"b": 20, "c": 27}}}
    log += [("", "$clock", "", 31)]
    assert histories_of(batch_of(config, log)) == {"u": {"buy": {}, "view": {"c": 27}}}


def test_expiry_goes_by_the_watermark_not_by_the_event() -> None:
    """An event that comes late finds its user without what has expired meanwhile, so it does not join U."""
    retention = Retention(visitor_window=10, min_primary=2)
    config = Config(primary="buy", indicators={"buy": Indicator()}, retention=retention)
    log = [("u", "buy", "a", 25), ("v", "buy", "x", 40), ("u", "buy", "b", 32)]
    assert histories_of(batch_of(config, log)) == {"u": {"buy": {"b": 32}}, "v": {"buy": {"x": 40}}}


def test_larger_world_with_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of rows and threads leave the rows as they are; full histories are sampled as the oracle says."""
    rng = np.random.default_rng(5)
    config = Config(
        primary="buy",
        indicators={"buy": Indicator(user_cap=12, top_k=7), "view": Indicator(user_cap=20, top_k=9)},
        retention=Retention(visitor_window=20 * DAY, min_primary=2),
        priors=Priors(popular=9 * DAY, recent=30 * DAY, trending=30 * DAY, hot=10 * DAY),
    )
    log = [
        (f"u{u}", "buy" if buys else "view", f"i{i}", 40 * DAY * n // 6_000)
        for n, (u, i, buys) in enumerate(
            zip(rng.zipf(1.3, 6_000) % 150, rng.zipf(1.2, 6_000) % 90, rng.random(6_000) < 0.4, strict=True)
        )
    ]
    lines = oracle_of_members_at_end(config, log)
    assert file_of(batch_of(config, log)).splitlines() == lines
    monkeypatch.setattr("cco.batch._CHUNK_ROWS", 7)
    monkeypatch.setattr("cco.batch._CHUNK_STEPS", 500)
    assert file_of(batch_of(config, log, 100, threads=2, fold_every=300)).splitlines() == lines


def oracle_of_members_at_end(config: Config, log: list[Event]) -> list[str]:
    return oracle_of(config, log).model_lines()


def test_events_are_held_only_until_there_are_enough_for_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the log: so many events at most, or half as many as are retained, and one batch."""
    held = list[tuple[int, int]]()

    def counted(before: Retained, batches: Sequence[EventBatch], *rest: Any) -> Retained:
        held.append((sum(map(len, batches)), before.items.size))
        return fold(before, batches, *rest)

    monkeypatch.setattr("cco.batch.fold", counted)
    config = Config(indicators={"purchase": Indicator(user_cap=4)})
    log = [(f"u{k % 400}", "purchase", f"i{k % 7}", k) for k in range(20_000)]
    batch_of(config, log, size=50, fold_every=300)
    assert sum(events for events, _ in held) == 20_000 and held[-1][1] == 1_600
    assert all(events < max(300, retained // 2) + 50 for events, retained in held)


def test_rows_are_sorted_columns() -> None:
    log = [(f"u{k % 4}", "purchase", f"i{k % 3}", 0) for k in range(9)]
    rows: Rows = batch_of(Config(), log).rows()
    keys = list(zip(rows.item.tolist(), rows.field.tolist(), strict=True))
    assert keys == sorted(set(keys))
    types = [column.dtype.name for column in (rows.item, rows.field, rows.start, rows.feature, rows.weight)]
    assert types == ["uint32", "uint8", "int64", "uint32", "float32"]
    assert (np.diff(rows.start) > 0).all() and rows.start[-1] == rows.feature.size == rows.weight.size


def test_memory_decides_how_many_pieces_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LEAST_PIECE", 10)
    chance, config = random.Random(5), Config()
    log: list[Event] = [
        (f"u{chance.randrange(30)}", "purchase", f"i{chance.randrange(40)}", k) for k in range(3_000)
    ]  # fmt: skip

    def counted(memory: int | None) -> tuple[int, str]:
        users, items, pieces = Vocabulary(), Vocabulary(), list[int]()
        parts = (to_batch(config, log[at : at + 20], users, items) for at in range(0, len(log), 20))
        model = rebuild(config, parts, users, items, folded=lambda _: pieces.append(1), memory=memory)
        return len(pieces) + 1, file_of(model)

    (one, whole), (some, of_some), (many, of_many) = map(counted, (None, 60_000, 25_000))
    assert one == 1 < some < many and some * 2 < many
    assert whole == of_some == of_many
    with pytest.raises(OverflowError, match=r"interactions are retained so far, .* allow more, lower user_cap"):
        counted(12_000)

"""Edits messages: round trips, splitting, and bytes that stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cco.config import parse_config
from cco.edits import ADD, ENTER, REMOVE, Edits
from cco.edits_message import LEAST_LIMIT, Header, Kind, MessageError, decode, decode_header, encode
from cco.event_data import EventBatch
from cco.item_stage import ItemStage
from cco.user_stage import UserStage
from cco.vocabulary import Vocabulary
from tests.cco.edits_data import (
    CONFIG,
    HEAD,
    HEADER,
    IDS,
    PRIORS,
    Fact,
    facts,
    make_edits,
    small_message,
    vocabulary,
    worlds,
)


def all_facts(parts: list[Edits], users: Vocabulary, items: Vocabulary) -> tuple[list[Fact], list[Fact], list[Fact]]:
    said = [facts(part, users, items) for part in parts]
    ops, counts, priors = ([fact for part in said for fact in part[k]] for k in range(3))
    return ops, counts, priors


@settings(max_examples=150, deadline=None)
@given(worlds(), IDS, IDS, st.randoms())
def test_another_vocabulary_reads_the_same_facts(
    world: tuple[list[str], list[str], Edits], more_users: list[str], more_items: list[str], random: Any
) -> None:
    users, items, edits = world
    of_users, of_items = vocabulary(users), vocabulary(items)
    [data] = encode(HEADER, edits, of_users, of_items)
    for ids in (more_users, more_items):
        ids.extend(random.sample(users + items, 2))
        random.shuffle(ids)
    to_users, to_items = vocabulary(more_users), vocabulary(more_items)
    got = decode(data, to_users, to_items, CONFIG)
    assert decode_header(data) == HEADER
    assert facts(got, to_users, to_items) == facts(edits, of_users, of_items)
    assert (got.source, got.position, got.members) == (HEADER.source, HEADER.end, edits.members)
    for field in ("op", "indicator", "user", "item", "count_indicator", "count_item", "count", "prior", "prior_item",
                  "prior_value"):  # fmt: skip
        assert getattr(got, field).dtype == getattr(edits, field).dtype
    # only what the message names is added, and it names only what the edits do
    named = {of_users.name(u) for u in edits.user.tolist()}
    assert {to_users.name(u) for u in range(len(set(more_users)), len(to_users))} == named - set(more_users)
    assert data == encode(HEADER, edits, of_users, of_items)[0]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(Kind)), st.integers(0, 2**16 - 2), st.integers(0, 2**16 - 2),
    st.binary(min_size=8, max_size=8),
    st.integers(0, 2**64 - 1), st.integers(-1, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1),
    st.booleans(),
)  # fmt: skip
def test_headers_round_trip(
    kind: Kind, source: int, partition: int, epoch: bytes, session: int, claim: int, end: int, part: int, last: bool
) -> None:
    header = Header(
        kind, source, source + 1, partition, partition + 1, epoch.hex(), session, claim, end // 2, end, part, last
    )
    [data] = encode(header, None, Vocabulary(), Vocabulary())
    assert len(data) == HEAD
    assert decode_header(data) == header
    with pytest.raises(MessageError, match=f"{kind.name} without edits"):
        decode(data, Vocabulary(), Vocabulary(), CONFIG)


def check_split(edits: Edits, users: Vocabulary, items: Vocabulary, limit: int) -> list[bytes]:
    """The parts, after checking them against the whole."""
    header = msgspec.structs.replace(HEADER, part=5)
    parts = encode(header, edits, users, items, limit)
    assert max(map(len, parts)) <= limit
    for k, part in enumerate(parts):
        assert decode_header(part) == msgspec.structs.replace(header, part=5 + k, last=k == len(parts) - 1)
    to_users, to_items = Vocabulary(), Vocabulary()
    got = [decode(part, to_users, to_items, CONFIG) for part in parts]
    assert all((one.members, one.position) == (edits.members, HEADER.end) for one in got)
    assert all_facts(got, to_users, to_items) == facts(edits, users, items)
    unfinished = encode(msgspec.structs.replace(header, last=False), edits, users, items, limit)
    assert not any(decode_header(part).last for part in unfinished)
    return parts


def test_long_ids_are_split() -> None:
    ids = [f"{k:0512d}" for k in range(200)]
    rng = np.random.default_rng(1)
    ops = [(ENTER, 0, k, 0) for k in range(150)] + [(ADD, k % 31, 199 - k, k) for k in range(200)]
    ops += [(int(o), 0, int(u), int(i)) for o, u, i in rng.integers(0, (4, 200, 200), (300, 3))]
    counts = [(k % 31, 199 - k, k) for k in range(200)]
    priors = [(p, k, -k) for k in range(200) for p in range(PRIORS)]
    edits = make_edits(ops, counts, priors)
    parts = check_split(edits, vocabulary(ids), vocabulary(ids), LEAST_LIMIT)
    assert min(map(len, parts[:-1])) > LEAST_LIMIT - 1200  # full, but for less than a row of new ids
    assert len(encode(HEADER, edits, vocabulary(ids), vocabulary(ids))) == 1


def test_the_limit_is_kept_to_the_byte() -> None:
    """Rows as long as they can be, at every distance from the limit."""
    ids = vocabulary([f"{k:0512d}" for k in range(20)])
    edits = make_edits([(ADD, 0, k, k) for k in range(20)], [], [])
    fullest = 0
    for limit in range(LEAST_LIMIT, LEAST_LIMIT + 1100):
        parts = encode(HEADER, edits, ids, ids, limit)
        assert max(map(len, parts)) <= limit
        fullest = max(fullest, len(parts[0]) - limit)
    assert fullest > -20


def test_many_rows_are_split() -> None:
    rng = np.random.default_rng(2)
    n = 250_000
    ids = vocabulary([f"id {k}" for k in range(20_000)])
    op, word = rng.integers(0, 4, n).astype(np.uint8), rng.integers(0, 20_000, (4, n)).astype(np.uint32)
    edits = Edits(
        HEADER.source, HEADER.end, op, rng.integers(0, 31, n).astype(np.uint8), word[0],
        np.where(op <= REMOVE, word[1], 0).astype(np.uint32), 5,
        np.zeros(n, np.uint8), word[2], rng.integers(0, 2**31, n).astype(np.int32),
        np.zeros(n, np.uint8), word[3], rng.integers(-(2**31), 2**31, n).astype(np.int32),
    )  # fmt: skip
    parts = check_split(edits, ids, ids, 300_000)
    assert min(map(len, parts[:-1])) > 300_000 - 1200


def test_columns_may_have_any_layout() -> None:
    """The user stage cuts columns out of a table."""
    ids = vocabulary([f"i{k}" for k in range(10)])
    edits = make_edits([(ADD, 0, k, 9 - k) for k in range(10)], [(0, k, k) for k in range(10)], [(0, 3, -4)] * 4)
    table = np.stack([edits.user, edits.item, edits.count_item], axis=1)
    cut = replace(edits, user=table[:, 0], item=table[:, 1], count_item=table[:, 2])
    assert encode(HEADER, cut, ids, ids) == encode(HEADER, edits, ids, ids)


GOLDEN = (
    "43434f4501010100902ad961"  # magic, format 1, RANGE, last, checksum
    "01000300040005000123456789abcdeffeffffffffffffff"  # source, partitions, epoch, session
    "ffffffffffffffff6400000000000000fa0000000000000000000000"  # claim, start, end, part
    "07000000030000000b0000000300000009000000050000000300000003000000"  # sizes
    "5a6fc3ab00753200753000" "f09f98800061006200"  # ids
    "8200788583" "000000" "000002"  # edits
    "800180" "0200" "ac027f00"  # counts
    "800183" "0201" "d80403feffffff0f"  # priors
)  # fmt: skip


def test_the_format_stays() -> None:
    """Messages of one version are read by the next: change the format's number with the format."""
    data, *_ = small_message()
    assert data.hex() == GOLDEN
    assert decode_header(bytes.fromhex(GOLDEN)) == HEADER


def test_nonsense_is_not_sent() -> None:
    ids = vocabulary(["a", "b"])
    edits = make_edits([(ADD, 0, 1, 1)], [(0, 1, 1)], [(0, 1, 1)])
    with pytest.raises(ValueError, match="at least 16384 are needed"):
        encode(HEADER, edits, ids, ids, LEAST_LIMIT - 1)
    for changes, problem in (
        ({"source": 3}, "edits of source 1 under a header of source 3"),
        ({"sources": 1}, "source 1 of 1"),
        ({"partition": 5}, "item partition 5 of 5"),
        ({"start": 251}, "a range from offset 251 to 250"),
        ({"epoch": "0123456789ABCDEF"}, "not 16 hex digits"),
        ({"session": 2**64}, "cannot be sent: "),
        ({"part": -1}, "cannot be sent: "),
    ):
        with pytest.raises(ValueError, match=problem):
            encode(msgspec.structs.replace(HEADER, **changes), edits, ids, ids)
    for users, items in ((vocabulary(["a"]), ids), (ids, vocabulary(["a"])), (ids, Vocabulary())):
        with pytest.raises(ValueError, match="beyond the vocabularies"):
            encode(HEADER, edits, users, items)
    for broken in (
        replace(edits, op=edits.op + np.uint8(4)),
        replace(edits, indicator=edits.indicator + np.uint8(32)),
        replace(edits, prior=edits.prior + np.uint8(128)),
        replace(edits, count=-edits.count),
        replace(edits, members=-1),
    ):
        with pytest.raises(ValueError, match="edits with"):
            encode(HEADER, broken, ids, ids)


def test_an_item_stage_behind_messages_is_the_same() -> None:
    """Real edits, with leaving users and windows, split small: the rows are those without messages between."""
    config = parse_config(
        '[indicators.purchase]\nremoved_by = ["return"]\nuser_cap = 6\n[indicators.view]\n[retention]\n'
        'sampling = "recent"\nwindow = "20d"\nmin_primary = 2\n[priors]\nrecent = "5d"\ntrending = "10d"\n',
        "test",
    )
    rng = np.random.default_rng(3)
    n, partitions = 30_000, 2
    users, items = vocabulary([f"user {k}" for k in range(300)]), vocabulary([f"item {k:03}" for k in range(200)])
    batch = EventBatch(
        rng.integers(0, 300, n).astype(np.uint32), (rng.random(n) ** 2 * 200).astype(np.uint32),
        rng.choice(len(config.event_types), n).astype(np.int16),
        np.sort(rng.integers(10**9, 10**9 + 60 * 86_400, n)).astype(np.uint32),
    )  # fmt: skip
    stage = UserStage(config, users, items, item_partitions=partitions)
    there = [(Vocabulary(), Vocabulary()) for _ in range(partitions)]
    near = [ItemStage(config, users, items, p, partitions) for p in range(partitions)]
    far = [ItemStage(config, *there[p], p, partitions) for p in range(partitions)]
    sent = 0
    for begin in range(0, n, 5_000):
        for told in stage.ingest(batch.part(begin, begin + 5_000)):
            for p, edits in enumerate(told):
                near[p].apply(edits, 0.0)
                header = Header(Kind.RANGE, 0, 1, p, partitions, config.epoch, 0, -1, begin, begin + 5_000, 0, True)
                for message in encode(header, edits, users, items, LEAST_LIMIT):
                    far[p].apply(decode(message, *there[p], config), 0.0)
                    sent += 1
    assert sent > 2 * 6
    for p in range(partitions):
        rows = [named_rows(near[p], items), named_rows(far[p], there[p][1])]
        assert rows[0] == rows[1]
        assert len(rows[0]) > 200


def named_rows(stage: ItemStage, items: Vocabulary) -> dict[tuple[str, int], dict[Any, float]]:
    rows = stage.exact_rows()
    found = {}
    for k, (item, field) in enumerate(zip(rows.item.tolist(), rows.field.tolist(), strict=True)):
        part = slice(int(rows.start[k]), int(rows.start[k + 1]))
        features = rows.feature[part].tolist() if field == 2 else items.names(rows.feature[part])
        found[items.name(item), field] = dict(zip(features, rows.weight[part].tolist(), strict=True))
    return found

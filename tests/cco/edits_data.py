"""Edits for the tests of their messages: made from rows, drawn at random, and compared by what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from cco.config import parse_config
from cco.edits import ADD, ENTER, LEAVE, REMOVE, Edits
from cco.edits_message import Header, Kind, encode
from cco.vocabulary import Vocabulary

INDICATORS = 31
CONFIG = parse_config(
    'primary = "x"\n[indicators.x]\n'
    + "".join(f"[indicators.y{k}]\n" for k in range(INDICATORS - 1))
    + '[priors]\nrecent = "7d"\ntrending = "30d"\nhot = "30d"\n',
    "test",
)
PRIORS = len(CONFIG.prior_names)
HEADER = Header(Kind.RANGE, 1, 3, 4, 5, "0123456789abcdef", 2**64 - 2, -1, 100, 250, 0, True)
HEAD = 64  # bytes of the header; the sizes follow
SIZES = ("members", "users", "bytes of users", "items", "bytes of items", "edits", "counts", "priors")

SHORT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
LONG = st.sampled_from(["x" * 512, "y" * 512, "é" * 256, "\U0001f600" * 128, "z" * 511])
IDS = st.lists(SHORT | LONG, min_size=1, max_size=30, unique=True)

Fact = tuple[Any, ...]


def vocabulary(ids: list[str]) -> Vocabulary:
    made = Vocabulary()
    made.intern(ids)
    return made


def make_edits(
    ops: list[tuple[int, int, int, int]],
    counts: list[tuple[int, int, int]],
    priors: list[tuple[int, int, int]],
    members: int = 7,
) -> Edits:
    """From rows: (op, indicator, user, item), (indicator, item, count), (prior, item, value)."""
    o, c, p = (np.array(rows, np.int64).reshape(-1, n) for rows, n in ((ops, 4), (counts, 3), (priors, 3)))
    byte, word, number = np.uint8, np.uint32, np.int32
    return Edits(
        HEADER.source, HEADER.end, o[:, 0].astype(byte), o[:, 1].astype(byte), o[:, 2].astype(word),
        np.where(o[:, 0] <= REMOVE, o[:, 3], 0).astype(word), members,
        c[:, 0].astype(byte), c[:, 1].astype(word), c[:, 2].astype(number),
        p[:, 0].astype(byte), p[:, 1].astype(word), p[:, 2].astype(number),
    )  # fmt: skip


def facts(edits: Edits, users: Vocabulary, items: Vocabulary) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """What the edits say, in terms of ids."""
    rows = zip(edits.op.tolist(), edits.indicator.tolist(), edits.user.tolist(), edits.item.tolist(), strict=True)
    ops = [(o, t, users.name(u), items.name(i) if o <= REMOVE else i) for o, t, u, i in rows]
    counts = zip(edits.count_indicator.tolist(), items.names(edits.count_item), edits.count.tolist(), strict=True)
    priors = zip(edits.prior.tolist(), items.names(edits.prior_item), edits.prior_value.tolist(), strict=True)
    return ops, list(counts), list(priors)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[str], list[str], Edits]:
    """Ids of users and of items, and edits about them."""
    users, items = draw(IDS), draw(IDS)
    user, item = st.integers(0, len(users) - 1), st.integers(0, len(items) - 1)
    kind = st.integers(0, INDICATORS - 1)
    ops = draw(st.lists(st.tuples(st.sampled_from([ADD, REMOVE, ENTER, LEAVE]), kind, user, item), max_size=40))
    small = st.integers(0, 300) | st.integers(0, 2**31 - 1)
    counts = draw(st.lists(st.tuples(kind, item, small), max_size=20))
    value = st.integers(-300, 300) | st.integers(-(2**31), 2**31 - 1)
    priors = draw(st.lists(st.tuples(st.integers(0, PRIORS - 1), item, value), max_size=20))
    return users, items, make_edits(ops, counts, priors, draw(small))


def small_message() -> tuple[bytes, Vocabulary, Vocabulary, Edits]:
    users, items = vocabulary(["u0", "Zoë", "u2"]), vocabulary(["a", "b", "\U0001f600", "never named"])
    edits = make_edits(
        [(ENTER, 0, 1, 0), (ADD, 0, 1, 2), (ADD, 30, 1, 0), (REMOVE, 1, 2, 2), (LEAVE, 0, 0, 0)],
        [(0, 2, 300), (1, 2, 127), (0, 1, 0)],
        [(0, 2, 300), (1, 2, -2), (3, 0, 2**31 - 1)],
    )
    [data] = encode(HEADER, edits, users, items)
    return data, users, items, edits

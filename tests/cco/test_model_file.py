"""The model file: bytes that depend on the model alone, read back, and clear errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cco.config import Config, Indicator, Priors
from cco.model_file import ModelFileError, Row, decode, difference, encode
from cco.rows import Rows
from cco.vocabulary import Vocabulary

CONFIG = Config(
    primary="view",
    indicators={"view": Indicator(), "buy": Indicator(), "like": Indicator()},
    priors=Priors(popular="all", recent=60, trending=60),
)  # fields: 0 view, 1 buy, 2 like, 3 priors (popular, recent, trending)

Field = tuple[str, int, list[tuple[str | int, float]]]

IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=5)
FINITE = st.floats(min_value=2.0**-40, max_value=2.0**40, width=32)


def rows_of(fields: list[Field], items: Vocabulary, dtype: type[np.floating] = np.float32) -> Rows:
    features = [j if isinstance(j, int) else int(items.intern([j])[0]) for _, _, entries in fields for j, _ in entries]
    return Rows(
        item=items.intern([item for item, _, _ in fields]),
        field=np.array([field for _, field, _ in fields], np.uint8),
        start=np.cumsum([0] + [len(entries) for _, _, entries in fields], dtype=np.int64),
        feature=np.array(features, np.uint32),
        weight=np.array([weight for _, _, entries in fields for _, weight in entries], dtype),
    )


def text_of(fields: list[Field], dtype: type[np.floating] = np.float32) -> str:
    items = Vocabulary()
    return b"".join(encode(rows_of(fields, items, dtype), items, CONFIG)).decode()


def test_published_form() -> None:
    """The very bytes: items by UTF-8, names sorted, empty fields and items left out, whatever the order given."""
    fields: list[Field] = [
        ("z", 0, [("ä", 12.5), ("a", 12.5), ('"\\\n', 0.1)]),
        ("only priors", 3, [(0, 3.0)]),
        ("z", 3, [(2, 7.0), (0, 4.0), (1, 4.0)]),
        ("nothing", 1, []),
        ("z", 1, [("b", 1e-7)]),
        ("\U0001f600", 2, [("b", 1e9)]),
        ("\uffee", 2, [("b", 1.0)]),
        ("nothing", 3, []),
    ]
    expected = (
        '{"item":"only priors","priors":{"popular":3.0}}\n'
        '{"item":"z","indicators":{"buy":[["b",1.0000000116860974e-07]],'
        '"view":[["ä",12.5],["a",12.5],["\\"\\\\\\n",0.10000000149011612]]},'
        '"priors":{"popular":4.0,"recent":4.0,"trending":7.0}}\n'
        '{"item":"\uffee","indicators":{"like":[["b",1.0]]}}\n'
        '{"item":"\U0001f600","indicators":{"like":[["b",1000000000.0]]}}\n'
    )
    assert text_of(fields) == expected
    assert text_of(fields[::-1]) == expected
    assert text_of([]) == ""


def test_exact_weights_are_doubles() -> None:
    assert text_of([("a", 0, [("b", 0.1)])], np.float64) == '{"item":"a","indicators":{"view":[["b",0.1]]}}\n'


entries_of = st.lists(st.tuples(IDS, FINITE), max_size=4, unique_by=lambda entry: entry[0]).map(
    lambda row: sorted(row, key=lambda entry: (-entry[1], entry[0].encode()))
)
priors_of = st.dictionaries(st.integers(0, 2), FINITE).map(lambda found: list(found.items()))
models = st.dictionaries(IDS, st.tuples(entries_of, entries_of, entries_of, priors_of), max_size=8)


@settings(max_examples=200, deadline=None)
@given(models, st.randoms(use_true_random=False))
def test_equals_the_standard_library_and_reads_back(model, rng) -> None:  # type: ignore[no-untyped-def]
    """Byte for byte what `json` writes for the same rows, and `decode` gives them back."""
    fields = [(item, f, entries) for item, found in model.items() for f, entries in enumerate(found)]
    rng.shuffle(fields)
    lines, rows = [], {}
    for item in sorted(model, key=str.encode):
        view, buy, like, priors = model[item]
        named = {"buy": buy, "like": like, "view": view}
        value = {
            "item": item,
            "indicators": {name: entries for name, entries in named.items() if entries},
            "priors": {CONFIG.prior_names[k]: weight for k, weight in sorted(priors)},
        }
        value = {key: part for key, part in value.items() if part}
        if len(value) > 1:
            lines.append(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
            rows[item] = Row(**value)
    text = text_of(fields)
    assert text == "".join(lines)
    decoded = decode(text.encode().splitlines(keepends=True))
    assert decoded == rows
    assert difference(decoded, rows) == []


def test_pieces_are_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: list[Field] = [(f"i{k}", f, [("a", 1.0)]) for k in range(10) for f in (0, 1)]
    items = Vocabulary()
    rows = rows_of(fields, items)
    whole = list(encode(rows, items, CONFIG))
    monkeypatch.setattr("cco.model_file._CHUNK_ITEMS", 3)
    pieces = list(encode(rows, items, CONFIG))
    assert len(whole) == 1 and len(pieces) == 4
    assert b"".join(pieces) == b"".join(whole)
    assert all(piece.startswith(b"{") and piece.endswith(b"}\n") for piece in pieces)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"item":"b"', "not a row"),
        (b"\xff", "not a row"),
        (b"", "not a row"),
        (b'{"item":"b","indicator":{}}', "unknown field `indicator`"),
        (b'{"item":""}', "length >= 1"),
        (b'{"indicators":{}}', "missing required field `item`"),
        (b'{"item":"b","indicators":{"buy":[["c"]]}}', "not a row"),
        (b'{"item":"b","indicators":{"buy":[["c","1"]]}}', "Expected `float`"),
        (b'{"item":"b","indicators":{"buy":[]}}', "'buy' of item 'b' is empty"),
        (b'{"item":"b","indicators":{"buy":[["c",2.0],["c",1.0]]}}', "'buy' of item 'b' has a feature twice"),
        (b'{"item":"b","indicators":{"buy":[["c",1.0],["d",2.0]]}}', "out of order at 'd'"),
        (b'{"item":"b","indicators":{"buy":[["d",1.0],["c",1.0]]}}', "out of order at 'c'"),
        (b'{"item":"b","indicators":{"buy":[["c",1e999]]}}', "not a row"),
        (
            b'{"item":"b","indicators":{"buy":[["c",1e308],["d",1e308]]}}',
            "'buy' of item 'b', 'c', has 1e+308: a number",
        ),
        (b'{"item":"b","indicators":{"buy":[["c",1.0],["d",0.0]]}}', "'buy' of item 'b', 'd', has 0.0: a number above"),
        (b'{"item":"b","indicators":{"buy":[["c",-1.0]]}}', "has -1.0"),
        (b'{"item":"b","priors":{"popular":1e308}}', "the prior 'popular' of item 'b', has 1e+308"),
        (b'{"item":"b","priors":{"popular":0}}', "the prior 'popular' of item 'b', has 0.0"),
        (b'{"item":"a"}', "the item 'a' is there twice"),
        (b'{"item":"A"}', "the item 'A' is out of order"),
    ],
)
def test_errors_name_the_line(line: bytes, reason: str) -> None:
    with pytest.raises(ModelFileError, match=r"^line 2: ") as raised:
        decode([b'{"item":"a"}\n', line])
    assert reason in str(raised.value)


def test_difference_names_what_differs() -> None:
    a = decode([b'{"item":"a","indicators":{"buy":[["c",2.0],["d",1.0]]},"priors":{"popular":1}}', b'{"item":"b"}'])
    b = decode([b'{"item":"a","indicators":{"buy":[["c",2.0]]},"priors":{"popular":2}}', b'{"item":"c"}'])
    assert difference(a, b) == [
        "item 'a', 'buy', entry 2: ('d', 1.0) in the first, nothing in the second model",
        "item 'a', prior 'popular': 1.0 in the first, 2.0 in the second model",
        "item 'b': only in the first model",
        "item 'c': only in the second model",
    ]
    many = {f"i{k}": Row(f"i{k}") for k in range(9)}
    assert difference(many, {})[-1] == "and 4 more items"
    assert difference(many, many) == []

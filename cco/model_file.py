"""The model file: JSON Lines, one item a line, for comparing and moving models.

`{"item":"i9","indicators":{"purchase":[["i4",12.5]]},"priors":{"popular":3.0}}`: lines sorted by the item
id's UTF-8 bytes, indicators and priors by name, entries by weight descending, then id; what is empty is left
out. Numbers are the shortest text of the double that the weight is, so equal models are equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise, zip_longest
from typing import Annotated, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from cco.config import Config
from cco.rows import Rows
from cco.vocabulary import Vocabulary

_CHUNK_ITEMS = 1 << 12
_MAX_WEIGHT = float(np.finfo(np.float32).max)
_SHOWN = 5  # differing rows that a message names

_Id = Annotated[str, msgspec.Meta(min_length=1)]


class ModelFileError(ValueError):
    """A model file that cannot be read; the message names the line."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line: an item's correlators by indicator, and its priors by name."""

    item: _Id
    indicators: dict[str, list[tuple[_Id, float]]] = {}
    priors: dict[str, float] = {}


Decoded: TypeAlias = dict[str, Row]


def encode(rows: Rows, items: Vocabulary, config: Config) -> Iterator[bytes]:
    """The file, in pieces of whole lines. The fields of `rows` may stand in any order."""
    fields = np.flatnonzero(np.diff(rows.start))
    order = fields[np.lexsort((_places(config)[rows.field[fields]], _rank(rows.item[fields], items)))]
    first_of_item = np.flatnonzero(np.diff(rows.item[order].astype(np.int64), prepend=-1))
    openings = _openings(rows, items)
    bounds = [*first_of_item[::_CHUNK_ITEMS].tolist(), order.size]
    for begin, end in pairwise(bounds):
        yield _lines(rows, order[begin:end], items, openings, config)


def _places(config: Config) -> npt.NDArray[np.int64]:
    """(indicators + 1,): the place of each field in a line; the priors come last."""
    names = config.indicator_names
    places = np.full(len(names) + 1, len(names), np.int64)
    places[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return places


def _rank(at: npt.NDArray[np.uint32], items: Vocabulary) -> npt.NDArray[np.int64]:
    """The place of each item index when sorted by the UTF-8 bytes of the ids."""
    indices, inverse = np.unique(at, return_inverse=True)
    names = [name.encode() for name in items.names(indices)]
    rank = np.empty(indices.size, np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(indices.size)
    return rank[inverse]


def _openings(rows: Rows, items: Vocabulary) -> npt.NDArray[np.object_]:
    """(items,) for every feature that occurs, the bytes with which its entry begins: `["i4",`."""
    used = np.zeros(len(items), np.bool_)
    used[rows.feature[rows.feature < len(items)]] = True  # the priors' small numbers do no harm
    indices = np.flatnonzero(used)
    openings = np.empty(len(items), np.object_)
    openings[indices] = [b"[" + msgspec.json.encode(name) + b"," for name in items.names(indices)]
    return openings


def _lines(
    rows: Rows, order: npt.NDArray[np.int64], items: Vocabulary, openings: npt.NDArray[np.object_], config: Config
) -> bytes:
    """The lines of some items, whose fields are `order`."""
    names = [msgspec.json.encode(name) for name in config.indicator_names]
    starts, ends = rows.start[order], rows.start[order + 1]
    sizes = ends - starts
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    entries = np.repeat(starts - offsets[:-1], sizes) + np.arange(offsets[-1])
    features, numbers = rows.feature[entries], _numbers(rows.weight[entries])
    is_prior = np.repeat(rows.field[order] == len(names), sizes)
    pairs = np.empty((entries.size, 2), np.object_)
    pairs[~is_prior, 0] = openings[features[~is_prior]]
    pairs[:, 1] = numbers
    fragments = pairs.ravel().tolist()
    out: list[bytes] = []
    item = -1
    indicators = False  # the line's object of indicators is open
    for at, field, begin, end in zip(
        rows.item[order].tolist(), rows.field[order].tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True
    ):
        if at != item:
            out += (b"}" * indicators, b"}\n" * (item >= 0), b'{"item":', msgspec.json.encode(items.name(at)))
            item, indicators = at, False
        if field == len(names):
            values = zip(features[begin:end].tolist(), numbers[begin:end].tolist(), strict=True)
            texts = sorted((config.prior_names[prior], number[:-2]) for prior, number in values)
            out += (b"}" * indicators, b',"priors":{')
            out.append(b",".join(b"%b:%b" % (msgspec.json.encode(name), number) for name, number in texts) + b"}")
            indicators = False
            continue
        out += (b"," if indicators else b',"indicators":{', names[field], b":[")
        out.append(b"".join(fragments[2 * begin : 2 * end])[:-1] + b"]")
        indicators = True
    out += (b"}" * indicators, b"}\n")
    return b"".join(out)


def _numbers(weights: npt.NDArray[np.float32] | npt.NDArray[np.float64]) -> npt.NDArray[np.object_]:
    """Object array of the bytes with which each entry ends: `12.5],`. Truncated weights repeat a lot."""
    values, inverse = np.unique(weights.astype(np.float64), return_inverse=True)
    texts = np.empty(values.size, np.object_)
    texts[:] = [b"%b]," % repr(value).encode() for value in values.tolist()]
    return np.asarray(texts[inverse], np.object_)


def encode_line(row: Row) -> bytes:
    """The line of one row, as `encode` writes it; b"" where nothing is in it."""
    indicators = [
        b"%b:[%b]" % (_text(name), b",".join(b"[%b,%b]" % (_text(j), repr(w).encode()) for j, w in entries))
        for name, entries in sorted(row.indicators.items())
        if entries
    ]
    priors = [b"%b:%b" % (_text(name), repr(value).encode()) for name, value in sorted(row.priors.items())]
    if not indicators and not priors:
        return b""
    fields = [b'"indicators":{%b}' % b",".join(indicators)] if indicators else []
    fields += [b'"priors":{%b}' % b",".join(priors)] if priors else []
    return b'{"item":%b,%b}\n' % (_text(row.item), b",".join(fields))


def _text(text: str) -> bytes:
    return msgspec.json.encode(text)


def decode(lines: Iterable[bytes | str]) -> Decoded:
    """The rows of a file by item, given its lines.

    Raises ModelFileError, naming the line, where one is no row, an item comes twice or is out of order,
    entries are out of order, or a feature comes twice, or a weight or prior is no number that a weight can be.
    """
    decoder = msgspec.json.Decoder(Row)
    found: Decoded = {}
    previous = b""
    for number, line in enumerate(lines, 1):
        try:
            row = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelFileError(f"line {number}: not a row of a model file: {error}") from None
        item = row.item.encode()
        if row.item in found:
            raise ModelFileError(f"line {number}: the item {row.item[:40]!r} is there twice")
        if item < previous:
            raise ModelFileError(f"line {number}: the item {row.item[:40]!r} is out of order: sort by UTF-8 bytes")
        for name, entries in row.indicators.items():
            check_entries(entries, f"line {number}: {name[:40]!r} of item {row.item[:40]!r}")
        for name, value in row.priors.items():
            check_number(value, f"line {number}: the prior {name[:40]!r} of item {row.item[:40]!r}")
        previous = item
        found[row.item] = row
    return found


def check_entries(entries: list[tuple[str, float]], where: str) -> None:
    """Raise ModelFileError, beginning with `where`, unless these are a field's entries: ordered, no feature twice."""
    if not entries:
        raise ModelFileError(f"{where} is empty: leave it out")
    if len({feature for feature, _ in entries}) < len(entries):
        raise ModelFileError(f"{where} has a feature twice")
    for feature, weight in entries:
        check_number(weight, f"{where}, {feature[:40]!r}")
    for (feature, weight), (after, lower) in pairwise(entries):
        if weight < lower or (weight == lower and feature.encode() > after.encode()):
            raise ModelFileError(f"{where} is out of order at {after[:40]!r}: sort by weight descending, then id")


def check_number(value: float, where: str) -> None:
    """Raise ModelFileError, beginning with `where`, unless this can be a weight or a prior."""
    if not 0 < value <= _MAX_WEIGHT:  # NaN too
        raise ModelFileError(f"{where}, has {value!r}: a number above 0 and at most {_MAX_WEIGHT:.3g} is possible")


def difference(a: Decoded, b: Decoded) -> list[str]:
    """What differs between two models, one sentence for each of the first differing rows; empty if nothing does."""
    items = sorted((item for item in a.keys() | b.keys() if a.get(item) != b.get(item)), key=str.encode)
    found = [sentence for item in items[:_SHOWN] for sentence in _row_difference(item, a.get(item), b.get(item))]
    if len(items) > _SHOWN:
        found.append(f"and {len(items) - _SHOWN} more items")
    return found


def _row_difference(item: str, a: Row | None, b: Row | None) -> Iterator[str]:
    if a is None or b is None:
        yield f"item {item!r}: only in the {'second' if a is None else 'first'} model"
        return
    for name in sorted(a.indicators.keys() | b.indicators.keys()):
        pairs = enumerate(zip_longest(a.indicators.get(name, []), b.indicators.get(name, [])), 1)
        for place, (ours, theirs) in pairs:
            if ours != theirs:
                yield f"item {item!r}, {name!r}, entry {place}: {_versus(ours, theirs)}"
                break
    for name in sorted(a.priors.keys() | b.priors.keys()):
        if a.priors.get(name) != b.priors.get(name):
            yield f"item {item!r}, prior {name!r}: {_versus(a.priors.get(name), b.priors.get(name))}"


def _versus(ours: object, theirs: object) -> str:
    first, second = ("nothing" if entry is None else str(entry) for entry in (ours, theirs))
    return f"{first} in the first, {second} in the second model"

"""What is written into Elasticsearch: rows and metadata of items as fields of documents, and the tokens of rules.

Every rule works on tokens, exact terms made here, and never on the properties themselves: so any property can be
asked for, declared or not, and values compare exactly as they do in memory.
"""

from __future__ import annotations

import binascii
import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from cco.config import Config
from cco.rows import Patches
from cco.vocabulary import Vocabulary
from model_sync.backfill import rank_value, shuffle_of
from model_sync.contract import PRIORS, Range
from model_sync.elastic_names import encoded
from model_sync.metadata import Scalar, elements, moment

_encode, _encode_sorted = (msgspec.json.Encoder(order=order).encode for order in (None, "deterministic"))
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_LONGEST = 200  # bytes of text in a token; longer ones are hashed
_SIGN = 1 << 63
_ALL = (1 << 64) - 1
LOWEST, HIGHEST = "0" * 16, "f" * 16


# -- tokens -----------------------------------------------------------------------------------------


def _name(name: str) -> str:
    """A property's name without NUL, which ends it in a token."""
    return name.replace("\1", "\1\1").replace("\0", "\1\2") if "\0" in name or "\1" in name else name


def ordered(number: float) -> str:
    """16 hex digits whose order is that of the numbers; -0 is 0."""
    bits: int = struct.unpack(">Q", struct.pack(">d", number + 0.0))[0]
    return f"{bits ^ (_ALL if bits & _SIGN else _SIGN):016x}"


def equality_token(name: str, value: Scalar) -> str:
    """The same for equal values of one property and kind, and for no others."""
    if isinstance(value, bool):
        return f"=b{_name(name)}\0{value:d}"
    if not isinstance(value, str):
        return f"=n{_name(name)}\0{ordered(float(value))}"
    if 4 * len(value) > _LONGEST and len(data := value.encode()) > _LONGEST:
        return f"=h{_name(name)}\0{hashlib.sha256(data).hexdigest()}"
    return f"=t{_name(name)}\0{value}"


def presence_token(name: str) -> str:
    """Of every property that has a value."""
    return f"+{_name(name)}"


def range_tokens(span: Range) -> tuple[str, str]:
    """The lowest and the highest token of the values within a range that `contract.check_query` has passed."""
    kind = "d" if isinstance(span.min, str) or isinstance(span.max, str) else "n"
    begin = f">{kind}{_name(span.field)}\0"
    low = LOWEST if span.min is None else ordered(_end(span.min))
    high = HIGHEST if span.max is None else ordered(_end(span.max))
    return begin + low, begin + high


def _end(end: float | str) -> float:
    found = moment(end) if isinstance(end, str) else end
    return math.nan if found is None else float(found)


def tokens(properties: Mapping[str, Any]) -> list[str]:
    """The tokens of an item's properties, sorted, none twice."""
    return sorted({token for name, value in properties.items() for token in _tokens_of(name, elements(value))})


def _tokens_of(name: str, values: Sequence[Scalar]) -> Iterator[str]:
    if values:
        yield presence_token(name)
    for value in values:
        yield equality_token(name, value)
        if isinstance(value, bool):
            continue
        if isinstance(value, str):
            date = moment(value)
            if date is not None:
                yield f">d{_name(name)}\0{ordered(float(date))}"
        else:
            yield f">n{_name(name)}\0{ordered(float(value))}"


# -- documents --------------------------------------------------------------------------------------


def identity(item: str) -> dict[str, object]:
    """The fields that an item's document has from its first day."""
    return {"id": item, "shuffle": shuffle_of(item)}


def identity_json(item: str) -> bytes:
    """`identity` as JSON without its braces."""
    return _encode(identity(item))[1:-1]


def metadata_fields(
    config: Config, properties: Mapping[str, Any] | None, position: int | None, deleted: bool = False
) -> dict[str, object]:
    """The fields that hold an item's metadata (None: it has none); they replace the earlier ones."""
    known = properties or {}
    rank = rank_value(known.get(config.items.rank))
    fields: dict[str, object] = {
        "known": properties is not None,
        "deleted": deleted,
        "properties": [] if properties is None else [dict(properties)],  # in a list: an object would be merged
        "returned": _packed(known),
        "tokens": tokens(known),
        "rank": rank if rank > 0 else None,
        "available": _moments(known.get(config.items.available)),
        "expires": _moments(known.get(config.items.expires)),
    }
    if position is not None:
        fields["metadata_position"] = position
    return fields


def _packed(properties: Mapping[str, Any]) -> str | None:
    """Equal properties are equal texts: Elasticsearch gives them back in an order of its own."""
    return binascii.b2a_base64(_encode_sorted(properties), newline=False).decode() if properties else None


def _moments(value: Any) -> list[int]:
    """The dates of a property that every query asks for: as numbers they are much quicker than as tokens."""
    dates = (moment(element) for element in elements(value) if isinstance(element, str))
    return [date for date in dates if date is not None]


def properties_of(source: Mapping[str, object]) -> dict[str, Scalar | list[Scalar]]:
    """The properties in a document's source; none where it has none."""
    found = source.get("properties")
    if isinstance(found, list):
        found = found[0] if found else None
    return dict(found) if isinstance(found, Mapping) else {}


def returned_properties(value: str | None) -> dict[str, Scalar | list[Scalar]]:
    """The properties in the field "returned", which has them apart from all else; none where it cannot be read."""
    try:
        return {} if value is None else _decode(binascii.a2b_base64(value))
    except (ValueError, msgspec.MsgspecError):  # not written by us
        return {}


def fields_json(fields: Mapping[str, bytes]) -> bytes:
    """Row fields (see `RowDocument`) as JSON members without braces: "rows", "priors" and "filled"."""
    rows = [b'"%b":%b' % (name.encode(), value) for name, value in fields.items() if name != PRIORS]
    filled = [b'"%b":%b' % (name.encode(), b"false" if value == b"[]" else b"true") for name, value in fields.items()]
    members = [b'"filled":{%b}' % b",".join(filled)]
    if rows:
        members.append(b'"rows":{%b}' % b",".join(rows))
    if PRIORS in fields:
        members.append(b'"priors":' + fields[PRIORS])
    return b",".join(members)


class RowDocument(NamedTuple):
    """Fields of an item that replace the earlier ones.

    Per name of a field (an encoded indicator, or "priors") the JSON of [{feature: weight}], or of [] if it is empty.
    """

    item: str
    fields: dict[str, bytes]


def row_documents(config: Config, items: Vocabulary, patches: Patches) -> list[RowDocument]:
    """One document for each item that `patches` has fields of."""
    rows = patches.rows
    kinds = (*(encoded(name) for name in config.indicator_names), PRIORS)
    priors = [encoded(name) for name in config.prior_names]
    entries, weights = rows.feature.tolist(), rows.weight.tolist()
    starts, fields = rows.start.tolist(), rows.field.tolist()
    found: list[RowDocument] = []
    last = -1
    for r, item in enumerate(rows.item.tolist()):
        if item != last:
            found.append(RowDocument(items.name(item), {}))
            last = item
        features = entries[starts[r] : starts[r + 1]]
        kind = kinds[fields[r]]
        names = map(priors.__getitem__, features) if kind == PRIORS else map(encoded, items.names(features))
        row = dict(zip(names, weights[starts[r] : starts[r + 1]], strict=True))
        found[-1].fields[kind] = _encode([row]) if row else b"[]"
    return found

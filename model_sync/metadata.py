"""Metadata of items, and the rules on it as boolean masks over item positions.

Nothing is prepared for a property until a rule first asks for it; from then on its lists and columns
follow every change in place, so a rule costs a few passes over a mask and never a look at the items.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from cco.config import MAX_PROPERTY
from cco.event_data import ItemChange
from cco.vocabulary import id_problem

Scalar = str | int | float | bool
Properties = dict[str, Scalar | list[Scalar]]
Mask = npt.NDArray[np.bool_]
Kind = Literal["number", "date"]
_KINDS: tuple[Kind, ...] = ("number", "date")

MAX_PROPERTIES = 1_000  # of an item
MAX_ELEMENTS = 1_000  # of a list
MAX_TEXT_BYTES = 32_766  # the longest term that Lucene indexes
MAX_WHOLE = 2**53  # beyond it a float64 does not tell neighbours apart

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MASKED_FROM = 256  # items: shorter lists are not worth a mask that is kept
_MASKS_BYTES = 64 << 20
_NOBODY: frozenset[int] = frozenset()


class MetadataError(ValueError):
    """Metadata that cannot be kept: the message names the item, the property and what is wrong."""


def moment(text: str) -> int | None:
    """Milliseconds since 1970 of an ISO 8601 date, in UTC where it names no zone; None if it is none."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return (parsed - _EPOCH) // timedelta(milliseconds=1)


def shown(value: object) -> str:
    """The beginning of a value, for messages."""
    try:
        return repr(value)[:40]
    except ValueError:  # Python refuses to write out numbers of thousands of digits
        return f"a huge {type(value).__name__}"


def scalar_problem(value: object) -> str | None:
    """What keeps a value from being compared, as the end of a sentence; None if nothing does."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            size = len(value) if value.isascii() else len(value.encode())
        except UnicodeEncodeError:
            return "is not valid Unicode (a lone surrogate)"
        return None if size <= MAX_TEXT_BYTES else f"has {size} bytes; at most {MAX_TEXT_BYTES} are possible"
    if isinstance(value, int):
        return None if abs(value) <= MAX_WHOLE else "is a whole number beyond 2^53; give it as text"
    if isinstance(value, float):
        return None if math.isfinite(value) else "is not finite"
    return f"is of type {type(value).__name__}; text, numbers, booleans and lists of these are possible"


def checked_id(item: object) -> str:
    """An item id as it came. Raises MetadataError if it is none."""
    problem = id_problem(item) if isinstance(item, str) else "is not text"
    if problem is not None:
        raise MetadataError(f"the item id {shown(item)} {problem}")
    return cast(str, item)


def is_name(name: object) -> bool:
    """Can a property have this name?"""
    return (
        isinstance(name, str)
        and len(name) <= MAX_PROPERTY
        and "." not in name
        and scalar_problem(name) is None
        and not (name.isspace() or not name)
    )


def checked_properties(item: str, given: Mapping[str, object]) -> dict[str, Scalar | list[Scalar] | None]:
    """A copy of an item's properties (None: not there). Raises MetadataError at the first that is not possible."""
    if not isinstance(given, Mapping):
        raise MetadataError(f"item {shown(item)}: properties are a {type(given).__name__}; give name-value pairs")
    if len(given) > MAX_PROPERTIES:
        raise MetadataError(f"item {shown(item)}: {len(given)} properties; at most {MAX_PROPERTIES} are possible")
    checked: dict[str, Scalar | list[Scalar] | None] = {}
    for name, value in given.items():
        where = f"item {shown(item)}: property {shown(name)}"
        if not is_name(name):
            raise MetadataError(f"{where}: a name is text of 1 to {MAX_PROPERTY} characters, not blank, without a dot")
        parts = value if isinstance(value, list | tuple) else () if value is None else (value,)
        if len(parts) > MAX_ELEMENTS:
            raise MetadataError(f"{where} has {len(parts)} values; at most {MAX_ELEMENTS} are possible")
        for element in parts:
            problem = scalar_problem(element)
            if problem is not None:
                raise MetadataError(f"{where}: {shown(element)} {problem}")
        checked[name] = list(value) if isinstance(value, list | tuple) else cast(Scalar | None, value)
    return checked


def change_problem(change: ItemChange) -> str | None:
    """What keeps a change of an item's metadata from being made, in a sentence; None if nothing does."""
    try:
        item = checked_id(change.item_id)
        if change.kind == "set":
            checked_properties(item, change.properties)
    except MetadataError as error:
        return str(error)
    return None


def elements(value: Scalar | list[Scalar] | None) -> Sequence[Scalar]:
    """The values of a property: none, itself, or those of the list."""
    if value is None:
        return ()
    return value if isinstance(value, list) else (value,)


def _key(value: Scalar) -> object:
    """Equal for equal values of one kind only: text, number or boolean."""
    if isinstance(value, bool):
        return ("boolean", value)
    return value if isinstance(value, str) else float(value)


class _Column:
    """The numbers, or the dates, of one property: one per item as an array, the items with several apart."""

    def __init__(self, kind: Kind, capacity: int) -> None:
        self._kind = kind
        self._one = np.full(capacity, np.nan)
        self._present = np.zeros(capacity, np.bool_)
        self._several: dict[int, list[float]] = {}

    def _numbers(self, value: Scalar | list[Scalar] | None) -> list[float]:
        if self._kind == "number":
            return [float(v) for v in elements(value) if isinstance(v, int | float) and not isinstance(v, bool)]
        moments = (moment(v) for v in elements(value) if isinstance(v, str))
        return [float(m) for m in moments if m is not None]

    def set(self, item: int, value: Scalar | list[Scalar] | None) -> None:
        numbers = self._numbers(value)
        self._present[item] = bool(elements(value))
        self._one[item] = numbers[0] if len(numbers) == 1 else np.nan
        self._several.pop(item, None)
        if len(numbers) > 1:
            self._several[item] = numbers

    def within(self, low: float, high: float, missing: bool) -> Mask:
        mask = (self._one >= low) & (self._one <= high)
        for item, numbers in self._several.items():
            mask[item] = any(low <= number <= high for number in numbers)
        if missing:
            mask |= ~self._present
        return mask

    def reserve(self, capacity: int) -> None:
        self._one = np.concatenate((self._one, np.full(capacity - self._one.size, np.nan)))
        self._present = np.concatenate((self._present, np.zeros(capacity - self._present.size, np.bool_)))

    def size(self) -> int:
        return self._one.nbytes + self._present.nbytes


class Metadata:
    """Properties by item position. Every position is below the capacity last reserved; masks are that long.

    Not safe for threads: the index holds its lock around every call.
    """

    def __init__(self) -> None:
        self._capacity = 0
        self._of: dict[int, Properties] = {}
        self._holders: dict[str, int] = {}  # items that have a property: a rule on another name costs nothing
        self._lists: dict[str, dict[object, set[int]]] = {}  # property -> value -> items
        self._columns: dict[tuple[str, Kind], _Column] = {}
        self._masks: OrderedDict[tuple[str, object], Mask] = OrderedDict()
        self.known = np.zeros(0, np.bool_)  # (capacity,): has metadata, be it empty

    def reserve(self, capacity: int) -> None:
        if capacity <= self._capacity:
            return
        self.known = np.concatenate((self.known, np.zeros(capacity - self._capacity, np.bool_)))
        for column in self._columns.values():
            column.reserve(capacity)
        self._masks.clear()
        self._capacity = capacity

    def get(self, item: int) -> Properties | None:
        return self._of.get(item)

    def replace(self, item: int, properties: Properties | None) -> None:
        """Make these the whole metadata of an item; None takes it away."""
        old = self._of.get(item, {})
        new = properties or {}
        for name in old.keys() | new.keys():
            self._change(item, name, old.get(name), new.get(name))
        if properties is None:
            self._of.pop(item, None)
        else:
            self._of[item] = new
        self.known[item] = properties is not None

    def _change(
        self, item: int, name: str, old: Scalar | list[Scalar] | None, new: Scalar | list[Scalar] | None
    ) -> None:
        holders = self._holders.get(name, 0) + (new is not None) - (old is not None)
        if holders:
            self._holders[name] = holders
        else:
            self._forget(name)
            return
        lists = self._lists.get(name)
        if lists is not None:
            before, after = set(map(_key, elements(old))), set(map(_key, elements(new)))
            for key in before - after:
                lists[key].discard(item)
                self._mark(name, key, item, False)
            for key in after - before:
                lists.setdefault(key, set()).add(item)
                self._mark(name, key, item, True)
        for kind in _KINDS:
            column = self._columns.get((name, kind))
            if column is not None:
                column.set(item, new)

    def _mark(self, name: str, key: object, item: int, value: bool) -> None:
        mask = self._masks.get((name, key))
        if mask is not None:
            mask[item] = value

    def _forget(self, name: str) -> None:
        """Nobody has the property any more."""
        self._holders.pop(name, None)
        for key in self._lists.pop(name, {}):
            self._masks.pop((name, key), None)
        self._columns.pop((name, "number"), None)
        self._columns.pop((name, "date"), None)

    def matching(self, name: str, values: Iterable[Scalar], every: bool) -> Mask:
        """(capacity,) new mask of the items whose property has any, or every one, of the values."""
        lists = self._listed(name)
        found = np.full(self._capacity, every)
        for value in values:
            key = _key(value)
            items = lists.get(key, _NOBODY)
            if not every and len(items) < _MASKED_FROM:
                found[np.fromiter(items, np.int64, len(items))] = True
                continue
            mask = self._value_mask(name, key, items)
            if every:
                found &= mask
            else:
                found |= mask
        return found

    def within(self, name: str, low: float | str | None, high: float | str | None, missing: bool) -> Mask:
        """(capacity,) new mask of the items with a value between two numbers or ISO dates, both included."""
        if name not in self._holders:
            return np.full(self._capacity, missing)
        kind: Kind = "date" if isinstance(low, str) or isinstance(high, str) else "number"
        column = self._columns.get((name, kind))
        if column is None:
            column = self._columns[name, kind] = _Column(kind, self._capacity)
            for item, properties in self._of.items():
                if name in properties:
                    column.set(item, properties[name])
        return column.within(_end(low, -math.inf), _end(high, math.inf), missing)

    def _listed(self, name: str) -> dict[object, set[int]]:
        if name not in self._holders:
            return {}
        lists = self._lists.get(name)
        if lists is None:
            lists = self._lists[name] = {}
            for item, properties in self._of.items():
                for value in elements(properties.get(name)):
                    lists.setdefault(_key(value), set()).add(item)
        return lists

    def _value_mask(self, name: str, key: object, items: Set[int]) -> Mask:
        mask = self._masks.get((name, key))
        if mask is not None:
            self._masks.move_to_end((name, key))
            return mask
        mask = np.zeros(self._capacity, np.bool_)
        mask[np.fromiter(items, np.int64, len(items))] = True
        if len(items) >= _MASKED_FROM:
            self._masks[name, key] = mask
            while len(self._masks) * self._capacity > _MASKS_BYTES:
                self._masks.popitem(last=False)
        return mask

    def size(self) -> int:
        """Bytes of masks and columns; what the properties themselves take is Python's."""
        return (
            self.known.nbytes
            + len(self._masks) * self._capacity
            + sum(column.size() for column in self._columns.values())
        )


def _end(end: float | str | None, default: float) -> float:
    """An end of a range as a number; a date that is none matches nothing."""
    if end is None:
        return default
    if isinstance(end, str):
        found = moment(end)
        return math.nan if found is None else float(found)
    return float(end)

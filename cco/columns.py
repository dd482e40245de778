"""Columns of ids on their way into a vocabulary: as lists, or coded (different values and a code for each row)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress

import numpy as np
import numpy.typing as npt

from cco.vocabulary import Vocabulary, id_problem
from llr.jit import kernel

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Listed:
    """A column as a list of texts, one for each row; "" where missing."""

    values: list[str]

    def bad(self, vocabulary: Vocabulary) -> Mask | None:
        """(n,) where a value is no possible id; None if nowhere. What is interned already was checked once."""
        bad = {value for value in vocabulary.unknown(self.values) if id_problem(value) is not None}
        if not bad:
            return None
        return np.fromiter(map(bad.__contains__, self.values), np.bool_, len(self.values))

    def put(self, row: int, value: str) -> None:
        """Replace the value of a row."""
        self.values[row] = value

    def intern(self, vocabulary: Vocabulary, rows: Mask | None) -> npt.NDArray[np.uint32]:
        """Positions of the values of `rows` (of all if None), new ones added in order of appearance."""
        return vocabulary.intern(self.values if rows is None else list(compress(self.values, rows.tolist())))


@dataclass(slots=True)
class Coded:
    """A column as different values and codes (n,), writable, -1 where missing."""

    values: list[str]
    codes: npt.NDArray[np.int32]

    def bad(self, vocabulary: Vocabulary) -> Mask | None:
        """As `Listed.bad`."""
        bad = {value for value in vocabulary.unknown(self.values) if id_problem(value) is not None}
        if not bad and (self.codes >= 0).all():
            return None
        return np.array([*map(bad.__contains__, self.values), True])[self.codes]  # code -1 finds the last

    def put(self, row: int, value: str) -> None:
        """As `Listed.put`."""
        if not 0 <= self.codes[row] < len(self.values) or self.values[self.codes[row]] != value:
            self.values.append(value)
            self.codes[row] = len(self.values) - 1

    def intern(self, vocabulary: Vocabulary, rows: Mask | None) -> npt.NDArray[np.uint32]:
        """As `Listed.intern`; values that no row of `rows` holds are not added."""
        codes = self.codes if rows is None else self.codes[rows]
        order = np.empty(len(self.values), np.int32)
        used = order[: first_uses(codes, np.zeros(len(self.values), np.bool_), order)]
        positions = np.zeros(len(self.values), np.uint32)
        in_order = used.size == len(self.values) and bool((used[1:] > used[:-1]).all())  # as most encoders leave them
        values = self.values if in_order else [self.values[code] for code in used.tolist()]
        positions[used] = vocabulary.intern(values)
        return positions[codes]


@dataclass(slots=True)
class Packed:
    """A column as UTF-8 of all rows, one after the other, and offsets (n + 1,); nothing is missing.

    What is interned already is found without a text of Python's.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    _found: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # -1: not interned
    _texts: dict[int, str] = field(default_factory=dict)  # of the rows that are not, and of those that were put

    def bad(self, vocabulary: Vocabulary) -> Mask | None:
        """As `Listed.bad`."""
        self._found = vocabulary.find(self.data, self.offsets)
        new = np.flatnonzero(self._found < 0)
        bounds = zip(self.offsets[new].tolist(), self.offsets[new + 1].tolist(), strict=True)
        text = self.data.tobytes() if new.size else b""
        texts = [text[a:b].decode(errors="surrogateescape") for a, b in bounds]
        self._texts = dict(zip(new.tolist(), texts, strict=True))
        bad = {value for value in set(texts) if id_problem(value) is not None}
        if not bad:
            return None
        mask = np.zeros(self._found.size, np.bool_)
        mask[new] = np.fromiter(map(bad.__contains__, texts), np.bool_, len(texts))
        return mask

    def put(self, row: int, value: str) -> None:
        """As `Listed.put`."""
        self._texts[row] = value
        self._found[row] = -1

    def intern(self, vocabulary: Vocabulary, rows: Mask | None) -> npt.NDArray[np.uint32]:
        """As `Listed.intern`; after `bad`, of the same vocabulary."""
        assert self._found.size == self.offsets.size - 1, "bad() comes first"
        found = self._found if rows is None else self._found[rows]
        new = np.flatnonzero(found < 0)
        if new.size:
            named = new if rows is None else np.flatnonzero(rows)[new]
            found[new] = vocabulary.intern([self._texts[row] for row in named.tolist()])
        return found.astype(np.uint32)


@kernel
def first_uses(codes: npt.NDArray[np.int32], seen: Mask, order: npt.NDArray[np.int32]) -> int:
    """How many different codes there are; `order` gets them in order of first appearance. `seen` is scratch."""
    count = 0
    for code in codes:
        if not seen[code]:
            seen[code] = True
            order[count] = code
            count += 1
    return count

"""Columns of ids on their way into a vocabulary: as lists, or coded (different values and a code for each row)."""

from __future__ import annotations

from dataclasses import dataclass
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
        new = vocabulary.unknown(self.values)
        wrong = [value in new and id_problem(value) is not None for value in self.values]
        if not any(wrong) and (self.codes >= 0).all():
            return None
        return np.array([*wrong, True])[self.codes]  # code -1 finds the last

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
        positions[used] = vocabulary.intern([self.values[code] for code in used.tolist()])
        return positions[codes]


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

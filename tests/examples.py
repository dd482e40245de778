"""How many examples a property is tried on: more or fewer where mutants are caught, with `EXAMPLES_FACTOR`."""

from __future__ import annotations

import os

from hypothesis import settings

_FACTOR = float(os.environ.get("EXAMPLES_FACTOR", "1"))


def examples(number: int) -> settings:
    """The loaded profile with `number` examples, times the factor."""
    return settings(max_examples=round(number * _FACTOR))

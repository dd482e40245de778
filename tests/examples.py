"""How many examples a property is tried on: more where a mutant has to be caught, with `EXAMPLES_FACTOR`."""

from __future__ import annotations

import os

from hypothesis import settings

_FACTOR = int(os.environ.get("EXAMPLES_FACTOR", "1"))


def examples(number: int) -> settings:
    """The loaded profile with `number` examples, times the factor."""
    return settings(max_examples=number * _FACTOR)

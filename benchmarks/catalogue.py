"""A generated catalogue for queries: items with full rows under three indicators, metadata, users with histories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Bench
from benchmarks.scenario import Result
from cco.config import Config, parse_config
from cco.rows import Patches, Rows
from cco.vocabulary import Vocabulary

ITEMS, QUICK_ITEMS = 68_000, 2_000
USERS, QUICK_USERS = 2_000, 100
TOP = 50  # entries of a row
HISTORY = 20  # items of a user under each indicator
CATEGORIES = 20
SHIFT = 50.0  # of Zipf's law: the most popular item is in about one row in eight
DRAWS = 2 * TOP  # of which so many are different, with room to spare
CHUNK = 2_000  # items of a patch

TOML = """\
primary = "buy"
[indicators.buy]
[indicators.view]
[indicators.cart]
[items.types]
category = "keyword"
"""

Indices = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Catalogue:
    """`features` and `weights` are (items, indicators, TOP), `histories` (users, indicators, HISTORY)."""

    config: Config
    items: Vocabulary
    features: Indices
    weights: npt.NDArray[np.float32]
    histories: Indices

    def patches(self, fields: int | None = None) -> Iterator[Patches]:
        """All rows (of the first `fields` indicators), CHUNK items at a time."""
        kinds = self.features.shape[1] if fields is None else fields
        for begin in range(0, len(self.items), CHUNK):
            part = slice(begin, begin + CHUNK)
            features, weights = self.features[part, :kinds], self.weights[part, :kinds]
            count = features.shape[0]
            rows = Rows(
                np.repeat(np.arange(begin, begin + count, dtype=np.uint32), kinds),
                np.tile(np.arange(kinds, dtype=np.uint8), count),
                np.arange(0, count * kinds * TOP + 1, TOP, dtype=np.int64),
                features.ravel(),
                weights.ravel(),
            )
            yield Patches((0,), rows)

    def row(self, item: int, kind: int) -> list[str]:
        """The features of a row, heaviest first."""
        return self.items.names(self.features[item, kind].tolist())

    def properties(self) -> dict[str, dict[str, Any]]:
        """Metadata of every item."""
        names = self.items.names(range(len(self.items)))
        return {name: {"category": category(k), "title": f"Item number {k}"} for k, name in enumerate(names)}

    def history(self, user: int) -> dict[str, list[str]]:
        """What a user did, latest first."""
        found = self.histories[user].tolist()
        return {name: self.items.names(ids) for name, ids in zip(self.config.indicator_names, found, strict=True)}

    @property
    def users(self) -> list[str]:
        """Their ids."""
        return [f"user-{k}" for k in range(len(self.histories))]


def category(item: int) -> str:
    """Of an item, or the one that a user asks for."""
    return f"category {item % CATEGORIES}"


def prepare(bench: Bench) -> Result:
    """Draw it, and keep it as arrays."""
    items, users = (QUICK_ITEMS, QUICK_USERS) if bench.quick else (ITEMS, USERS)
    rng = np.random.default_rng(5)
    shares = np.cumsum(1 / (np.arange(1, items + 1) + SHIFT))
    shares /= shares[-1]
    of_rank = rng.permutation(items).astype(np.uint32)

    def different(rows: int, number: int) -> Indices:
        drawn = of_rank[np.searchsorted(shares, rng.random((rows, DRAWS)))]
        return np.array([list(dict.fromkeys(row))[:number] for row in drawn.tolist()], np.uint32)

    kinds = len(parse_config(TOML, "benchmark").indicator_names)
    np.save(bench.folder / "features.npy", different(items * kinds, TOP).reshape(items, kinds, TOP))
    np.save(bench.folder / "weights.npy", draw_weights(rng, (items, kinds, TOP)))
    np.save(bench.folder / "histories.npy", different(users * kinds, HISTORY).reshape(users, kinds, HISTORY))
    return {"items": items, "users": users}


def draw_weights(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Weights as a model has them: 9 significant bits, falling along a row."""
    drawn = -np.sort(-(20 * rng.random(shape) + 0.1), axis=-1).astype(np.float32)
    return (drawn.view(np.uint32) & np.uint32(0xFFFF8000)).view(np.float32)


def load(bench: Bench) -> Catalogue:
    """As `prepare` wrote it."""
    with bench.loading():
        features, weights, histories = (
            np.load(bench.folder / f"{part}.npy") for part in ("features", "weights", "histories")
        )
        items = Vocabulary()
        items.intern([f"item-{k}" for k in range(len(features))])
    return Catalogue(parse_config(TOML, "benchmark"), items, features, weights, histories)

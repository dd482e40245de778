"""Changes of items that cannot be made are refused records, and everything around them goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.cli.main import main
from agents.engine import Engine
from agents.replay import replay

BAD: list[tuple[str, str]] = [
    ('{"a": {"b": 1}}', "is of type dict"),
    ('{"a": [[1]]}', "is of type list"),
    ('{"a": NaN}', "is not finite"),
    ('{"a": 9007199254740993}', r"beyond 2^53"),
    ('{"": 1}', "a name is text of 1 to 256 characters"),
    ('{"a": "%s"}' % ("x" * 32_767), "has 32767 bytes"),
    ('{"a": "\\ud800"}', "is not valid Unicode"),
]


def log(properties: str) -> list[str]:
    return [
        '{"user_id":"u1","item_id":"i1","event_type":"purchase"}',
        '{"event":"$set","entityType":"item","entityId":"i1","properties":{"colour":"red"}}',
        f'{{"event":"$set","entityType":"item","entityId":"i2","properties":{properties}}}',
        '{"event":"$delete","entityType":"item","entityId":"%s"}' % ("i" * 513),
        '{"user_id":"u2","item_id":"i1","event_type":"purchase"}',
    ]


@pytest.mark.parametrize(("properties", "reason"), BAD)
def test_a_bad_change_is_refused_with_its_line(tmp_path: Path, properties: str, reason: str) -> None:
    path, state, found = tmp_path / "events.jsonl", tmp_path / "state", []
    path.write_text("".join(line + "\n" for line in log(properties)))
    for _ in range(2):  # the second time from the state
        engine = Engine()
        done = replay(engine, [str(path)], state=state, on_chunk=lambda chunk: found.extend(chunk.rejections))
        assert (done.accepted, done.rejected, done.item_changes) == (2, 2, 1)
        assert engine.index.properties("i1") == {"colour": "red"}
        assert engine.items.index("i2") is None
    assert [(rejection.line, rejection.file) for rejection in found] == [(3, str(path)), (4, str(path))]
    assert reason in found[0].reason and "\n" not in found[0].reason
    assert found[0].record and "at most 512" in found[1].reason


def test_stream_and_batch_refuse_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(line + "\n" for properties, _ in BAD for line in log(properties)))
    counts = []
    for command in ("replay", "rebuild"):
        assert main([command, str(path), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        counts.append((report["events"], report["rejected"]))
    assert counts == [(2 * len(BAD), 2 * len(BAD))] * 2


@pytest.mark.parametrize(("properties", "reason"), BAD)
def test_ingest_reports_a_bad_change(properties: str, reason: str) -> None:
    engine = Engine()
    records: list[dict[str, Any]] = [json.loads(line) for line in log(properties)]
    report = engine.ingest(records)
    assert report.accepted == 2
    assert [rejection.line for rejection in report.rejected] == [3, 4]
    assert reason in report.rejected[0].reason
    assert engine.index.properties("i1") == {"colour": "red"}

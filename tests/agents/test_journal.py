"""The journal: what was appended is read again, what was never acknowledged is cut off, what is damaged is told."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import pytest

from agents.state.errors import StateError
from agents.state.journal import Journal


def records(first: int, last: int) -> list[dict[str, object]]:
    return [
        {"user_id": f"u{k}", "item_id": "ü", "weight": k / 7, "properties": {"a": [k, None, True]}}
        for k in range(first, last)
    ]


def read(folder: Path, start: int = 0) -> list[object]:
    journal = Journal(folder, start)
    found = [entry for entries in journal.read() for entry in entries]
    assert [entry.position for entry in found] == list(range(start, journal.position))
    journal.close(0)
    return [entry.record for entry in found]


def written(folder: Path, *groups: int, segment_bytes: int = 1 << 20) -> Journal:
    """A journal with so many records in each group; it is left open."""
    journal = Journal(folder, 0, segment_bytes)
    assert list(journal.read()) == []
    for group in groups:
        journal.append(1_700_000_000, records(journal.position, journal.position + group))
    return journal


def test_what_was_appended_is_read_again_from_any_position(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    written(folder, 3, 1, 4_200).close(0)
    for start in (0, 1, 3, 4_000, 4_203, 4_204):
        assert read(folder, start) == records(start, 4_204)
    journal = Journal(folder, 4_000)
    assert [len(entries) for entries in journal.read()] == [204]
    journal.append(5, records(4_204, 4_210))
    journal.close(4_000)
    assert read(folder, 4_100) == records(4_100, 4_210)


def test_segments_go_once_they_are_committed(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = written(folder, *[10] * 20, segment_bytes=1_500)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) > 5 and names[0] == "00000000000000000000.jsonl"
    second = int(names[1].partition(".")[0])
    journal.committed(second - 1)
    assert sorted(path.name for path in folder.iterdir()) == names
    journal.committed(second)
    assert sorted(path.name for path in folder.iterdir()) == names[1:]
    journal.close(150)
    assert read(folder, 150) == records(150, 200)
    with pytest.raises(StateError, match="do not belong together"):
        Journal(folder, 3)
    journal = Journal(folder, 200)
    assert list(journal.read()) == []
    journal.close(200)
    assert list(folder.iterdir()) == []
    journal = Journal(folder, 200)
    journal.append(1, records(200, 201))
    journal.close(200)
    assert read(folder, 200) == records(200, 201)


@pytest.mark.parametrize("tail", [b"{", b'{"position": 7', b"\0" * 5_000, b"\0" * 50 + b"\n", b"not JSON\n", b"\n"])
def test_what_was_never_acknowledged_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    folder = tmp_path / "journal"
    written(folder, 4, 3).close(0)
    segment = folder / "00000000000000000000.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole + tail)
    journal = Journal(folder, 0)
    assert sum(map(len, journal.read())) == 7
    assert segment.read_bytes() == whole
    journal.append(1, records(7, 9))
    journal.close(0)
    assert read(folder) == records(0, 9)


def test_a_group_of_which_the_disk_has_only_the_end_was_never_acknowledged(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    written(folder, 4, 30).close(0)
    segment = folder / "00000000000000000000.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[10] = b"\0" * len(lines[10])
    segment.write_bytes(b"".join(lines))
    assert read(folder) == records(0, 10)
    assert len(segment.read_bytes().splitlines()) == 10


def test_what_was_acknowledged_and_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    written(folder, 4, 30, 1).close(0)
    segment = folder / "00000000000000000000.jsonl"
    whole = segment.read_bytes()
    lines = whole.splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:10], b"\0" * len(lines[10]), *lines[11:]]))
    with pytest.raises(StateError, match="record 10 was acknowledged and cannot be read"):
        read(folder)
    segment.write_bytes(b"".join([*lines[:10], *lines[11:]]))
    with pytest.raises(StateError, match="record 10 was acknowledged"):
        read(folder)
    assert segment.read_bytes() != whole
    other = tmp_path / "other"
    written(other, *[10] * 5, segment_bytes=1_500).close(0)
    first = min(other.iterdir())
    first.write_bytes(first.read_bytes()[:-2])
    with pytest.raises(StateError, match="was acknowledged"):
        read(other)


def test_a_full_disk_refuses_records_and_takes_them_later(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = written(folder, 5)
    segment = folder / "00000000000000000000.jsonl"
    before = segment.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, old[1]))
    try:
        with pytest.raises(StateError, match="full"):
            journal.append(1, records(5, 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert segment.read_bytes() == before and not journal.failed and journal.position == 5
    journal.append(1, records(5, 9))
    journal.close(0)
    assert read(folder) == records(0, 9)


def test_a_sync_that_failed_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = written(tmp_path / "journal", 5)

    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(StateError, match="Input/output error"):
        journal.append(1, records(5, 6))
    monkeypatch.undo()
    assert journal.failed
    with pytest.raises(StateError, match="start again"):
        journal.append(1, records(5, 6))
    journal.close(5)
    line = json.loads((tmp_path / "journal" / "00000000000000000000.jsonl").read_bytes().splitlines()[0])
    assert line == {"position": 0, "durable": 0, "at": 1_700_000_000, "record": records(0, 1)[0]}

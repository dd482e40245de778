"""`cco rebuild --archive --resume`: what was refused is not forgotten, another log not gone on with; merged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.archive.archive import Archive, ArchiveError, ArchiveFile, table_of
from agents.archive.compaction import compact
from agents.cli.main import main
from agents.kafka.records import Records
from cco.batch_fold import source_partitions
from cco.config import make_config
from cco.vocabulary import Vocabulary

BAD = b"no record"
SOME = Vocabulary()
SOME.intern([f"u{k}" for k in range(100)])
SOURCES = source_partitions(make_config({"retention": {"source_partitions": 2}}), SOME)
OF = [[name.encode() for name in SOME.names(np.flatnonzero(source == SOURCES))] for source in (0, 1)]


def archived(url: Path, source: int, first: int, values: list[bytes], id: str | None = "one") -> None:
    """A file of an archive with these records of a source, as of a topic with this id of Kafka's."""
    offsets = first + np.arange(len(values))
    keys: list[bytes | None] = [json.loads(value)["user_id"].encode() if value != BAD else b"u" for value in values]
    records = Records(source, keys, list(values), offsets, 1_600_000_000_000 + offsets, int(offsets[-1]) + 1)
    about: dict[str, Any] = {"topic": "interactions", "partitions": 2, **({} if id is None else {"topic_id": id})}
    Archive(str(url)).write(iter([table_of(records)]), source, first, int(offsets[-1]), "2020-09-13", about)


def purchases(source: int, number: int, begin: int = 0) -> list[bytes]:
    """Of users of this source partition of two."""
    return [
        b'{"user_id":"%b","item_id":"i%d","event_type":"purchase","timestamp":%d}' % (OF[source][k % 9], k % 7, k)
        for k in range(begin, begin + number)
    ]


class Rebuilding:
    """`cco rebuild` of an archive in this folder, of two sources."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.archive, self.kept, self.model = folder / "archive", folder / "counted", folder / "model"
        self.config, self._capsys = folder / "cco.toml", capsys
        self.config.write_text("[retention]\nsource_partitions = 2\n")

    def run(self, *more: object, resume: bool = True) -> tuple[int, str]:
        """Its exit code and what it tells of errors."""
        resumed = ["--resume", str(self.kept)] if resume else []
        given = ["rebuild", "--archive", str(self.archive), "--config", str(self.config), "--model", str(self.model)]
        self._capsys.readouterr()
        code = main([*given, *resumed, *map(str, more)])
        return code, self._capsys.readouterr().err


@pytest.fixture
def rebuilding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Rebuilding:
    return Rebuilding(tmp_path, capsys)


def test_strict_remembers_what_earlier_runs_rejected(rebuilding: Rebuilding) -> None:
    archived(rebuilding.archive, 0, 0, [*purchases(0, 30), BAD, BAD])
    archived(rebuilding.archive, 1, 0, purchases(1, 30))
    for told in ("2 records rejected (--strict)", "2 records were rejected by earlier runs"):
        code, err = rebuilding.run("--strict")
        assert code == 2 and told in err and not rebuilding.model.exists(), err
    archived(rebuilding.archive, 0, 32, purchases(0, 5, 32))
    assert rebuilding.run("--strict")[0] == 2
    assert rebuilding.run()[0] == 0
    resumed = rebuilding.model.read_bytes()
    assert rebuilding.run(resume=False)[0] == 0 and rebuilding.model.read_bytes() == resumed


def test_dead_letters_of_earlier_runs_stay(rebuilding: Rebuilding, tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    letters.write_text("of a run before, which counted from the beginning\n")
    archived(rebuilding.archive, 0, 0, [BAD, *purchases(0, 30)])
    archived(rebuilding.archive, 1, 0, purchases(1, 30))
    rebuilding.run("--dead-letters", letters)
    archived(rebuilding.archive, 1, 30, [*purchases(1, 2), BAD])
    rebuilding.run("--dead-letters", letters)
    found = [json.loads(line) for line in letters.read_text().splitlines()]
    assert [letter["line"] for letter in found] == [0, 32]  # offsets
    assert [letter["file"].rpartition("/")[2] for letter in found] == ["source=0", "source=1"]


@pytest.mark.parametrize("number", [10, 50])
def test_another_log_in_the_same_place_is_refused(rebuilding: Rebuilding, number: int) -> None:
    for source in (0, 1):
        archived(rebuilding.archive, source, 0, purchases(source, 30))
    assert rebuilding.run()[0] == 0
    before = rebuilding.model.read_bytes()
    shutil.rmtree(rebuilding.archive)
    for source in (0, 1):
        archived(rebuilding.archive, source, 0, purchases(source, number, 7), id="two")
    code, err = rebuilding.run()
    assert code == 2 and "of another log" in err and "archive, id one)" in err, err
    assert rebuilding.model.read_bytes() == before


def test_an_archive_that_ends_before_what_was_counted_is_refused(rebuilding: Rebuilding) -> None:
    """Also where its files do not say of which topic they are."""
    for source in (0, 1):
        archived(rebuilding.archive, source, 0, purchases(source, 30), id=None)
    assert rebuilding.run()[0] == 0
    shutil.rmtree(rebuilding.archive)
    for source, number in ((0, 40), (1, 20)):
        archived(rebuilding.archive, source, 0, purchases(source, number), id=None)
    code, err = rebuilding.run()
    assert code == 2 and "partition 1: has been counted up to offset 30, beyond 20, where" in err, err


def test_partitions_that_are_not_to_be_counted_must_not_have_been(rebuilding: Rebuilding) -> None:
    for source in (0, 1):
        archived(rebuilding.archive, source, 0, purchases(source, 30))
    assert rebuilding.run("--end-offsets", "0:20,1:10")[0] == 0
    code, err = rebuilding.run("--end-offsets", "0:30")
    assert code == 2 and "partition 1: has been counted up to offset 10, beyond 0, where to end" in err, err
    assert rebuilding.run("--end-offsets", "0:30,1:10")[0] == 0


def test_an_archive_that_learns_its_topic_later_is_the_same(rebuilding: Rebuilding) -> None:
    """Also where old files and new ones are merged."""
    archive = Archive(str(rebuilding.archive))
    for source in (0, 1):
        archived(rebuilding.archive, source, 0, purchases(source, 30), id=None)
    assert rebuilding.run()[0] == 0 and archive.topic_id() is None
    for source in (0, 1):
        archived(rebuilding.archive, source, 30, purchases(source, 10, 30))
    assert rebuilding.run()[0] == 0 and archive.topic_id() == "one"
    for files in archive.files().values():
        assert len(compact(archive, files, [files]).made) == 1
    assert rebuilding.run()[0] == 0 and archive.topic_id() == "one"
    resumed = rebuilding.model.read_bytes()
    assert rebuilding.run(resume=False)[0] == 0 and rebuilding.model.read_bytes() == resumed


def test_files_that_are_merged_during_a_look_are_found_in_the_next(
    rebuilding: Rebuilding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is looked through meanwhile may show neither the merged file nor those that were merged."""
    archive = Archive(str(rebuilding.archive))
    for first in (0, 10, 20):
        archived(rebuilding.archive, 0, first, purchases(0, 10, first))
    look, looks = Archive.files, 0

    def files(self: Archive) -> dict[int, list[ArchiveFile]]:
        nonlocal looks
        looks += 1
        return {source: of[::2] if looks % 2 else of for source, of in look(self).items()}

    monkeypatch.setattr(Archive, "files", files)
    assert archive.ends(2) == {0: 30, 1: 0}
    looks = 0
    assert sum(table.num_rows for table in archive.tables(0, 0, 30)) == 30
    monkeypatch.setattr(Archive, "files", lambda self: {source: of[::2] for source, of in look(self).items()})
    with pytest.raises(ArchiveError, match="the offsets 10 to 19 are missing"):
        archive.ends(2)
    with pytest.raises(ArchiveError, match="offset 10 is missing"):
        list(archive.tables(0, 0, 30))

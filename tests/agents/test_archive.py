"""The archive as files: names, days, overlaps, merging, damage; and rebuilds that go on where others were stopped."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from agents.archive.agent import _by_day
from agents.archive.archive import GROUP_ROWS, Archive, ArchiveError, ArchiveFile, day_of, holes, missing, table_of
from agents.archive.compaction import LARGEST, TIER, compact, contained, due, mergeable
from agents.cli.main import main
from agents.kafka.records import Records
from agents.rebuilds.sources import Progress
from agents.state.errors import StateError
from cco.batch import rebuild
from cco.config import Config, parse_config
from cco.event_data import EventBatch
from cco.model_file import encode
from tests.agents.test_kafka_log import TOML

ABOUT = {"topic": "interactions", "partitions": 1}
DAY = 86_400_000


def log_of(number: int, seed: int = 0, source: int = 0) -> Records:
    """Records of every kind, with offsets left out here and there, as transactions do."""
    rng = random.Random(seed)
    offsets = [k for k in range(number) if rng.random() > 0.1] or [0]
    keys = [rng.choice([None, b"", b"u%d" % rng.randrange(9), b"\xff\x00"]) for _ in offsets]
    values = [rng.choice([None, b"", rng.randbytes(rng.randrange(60)), b'{"a": 1}']) for _ in offsets]
    times = [1_700_000_000_000 + 10_000_000 * k + rng.randrange(-50_000_000, 50_000_000) for k in offsets]
    return Records(source, keys, values, np.array(offsets), np.array(times), number)


def put(archive: Archive, log: Records, first: int, last: int, day: str = "2023-11-14") -> ArchiveFile:
    part = log.between(first, last + 1)
    half = (first + last) // 2
    tables = [table_of(part.between(first, half)), table_of(part.between(half, last + 1))]
    return archive.write(tables, log.partition, first, last, day, ABOUT)


Row = tuple[int, int, bytes | None, bytes | None]


def rows(records: Sequence[Records]) -> list[Row]:
    return [
        row for r in records for row in zip(r.offsets.tolist(), r.milliseconds.tolist(), r.keys, r.values, strict=True)
    ]


def all_of(archive: Archive, end: int, begin: int = 0, source: int = 0) -> list[Row]:
    return rows(list(archive.read(source, begin, end)))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet*"))


def files_of(*spans: tuple[int, int], size: int = 1000, day: str = "2023-11-14") -> list[ArchiveFile]:
    return sorted((ArchiveFile(0, a, b, day, size) for a, b in spans), key=lambda file: (file.first, -file.last))


@pytest.fixture(params=["local", "memory"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    return Archive(str(tmp_path / "archive") if request.param == "local" else f"memory://{tmp_path}/archive")


# -- names ------------------------------------------------------------------------------------------


def test_what_is_missing_and_where_it_ends() -> None:
    files = files_of((0, 9), (5, 6), (10, 14), (20, 29), (25, 39))
    assert missing([]) == (0, None)
    assert missing(files) == (15, 20)
    assert missing(files, 12) == (15, 20)
    assert missing(files, 17) == (17, 20)
    assert missing(files, 20) == (40, None)
    assert missing(files, 50) == (50, None)
    assert holes(files) == [(15, 20)]
    assert holes(files_of((3, 4))) == [(0, 3)]
    assert holes([]) == []


def test_days_are_of_utc_whatever_a_producer_writes() -> None:
    assert [day_of(ms) for ms in (0, DAY - 1, DAY, -1, 1_709_164_800_000)] == [
        "1970-01-01", "1970-01-01", "1970-01-02", "1969-12-31", "2024-02-29",
    ]  # fmt: skip
    assert [day_of(2**62), day_of(-(2**62))] == ["9999-12-31", "0001-01-01"]


def test_a_file_ends_before_a_record_of_a_later_day() -> None:
    class Record:
        def __init__(self, day: int) -> None:
            self.timestamp = day * DAY + 5

    def cut(held: Sequence[int], days: Sequence[int]) -> list[list[int]]:
        made = [Record(day) for day in days]
        return [[r.timestamp // DAY for r in part] for part in _by_day([Record(day) for day in held], made)]  # type: ignore[arg-type, misc]

    assert cut([], [1, 1, 1]) == [[1, 1, 1]]
    assert cut([], [1, 2, 1, 2, 3]) == [[1], [2, 1, 2], [3]]  # who is late goes with the others
    assert cut([1], [1, 2]) == [[1], [2]]
    assert cut([1], [2, 2]) == [[], [2, 2]]
    assert cut([2], [1, 1]) == [[1, 1]]
    assert cut([2], []) == []


def test_names_are_the_whole_truth(tmp_path: Path) -> None:
    archive, log = Archive(str(tmp_path)), log_of(50)
    file = put(archive, log, 0, 24, "2024-01-31")
    name = "source=0/day=2024-01-31/00000000000000000000-00000000000000000024.parquet"
    assert (file.name, names(tmp_path)) == (name, [name])
    assert file.size == (tmp_path / name).stat().st_size
    for other in ("notes.txt", "source=0/day=2024-01-31/x.parquet", f"{name}.12345678.part", "source=x/a.parquet"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"what?")
    assert archive.files() == {0: [file]}
    assert archive.ends(1) == {0: 25}
    with pytest.raises(ArchiveError, match=r"is the archive of a topic with 1 partition, and .*source_partitions is 2"):
        archive.ends(2)
    put(archive, log, 30, 49)
    with pytest.raises(ArchiveError, match="source=0: the offsets 25 to 29 are missing: `cco archive run` archives"):
        archive.ends(1)


# -- reading ----------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_written_each_offset_once(archive: Archive) -> None:
    log = log_of(200, seed=1)
    assert archive.files() == {}
    for first, last in ((0, 49), (50, 119), (20, 60), (100, 199), (100, 130)):
        put(archive, log, first, last)
    assert all_of(archive, 200) == rows([log])
    for begin, end in ((0, 0), (0, 1), (37, 113), (55, 57), (199, 200), (60, 200)):
        assert all_of(archive, end, begin) == rows([log.between(begin, end)])
    with pytest.raises(ArchiveError, match="offset 200 is missing"):
        all_of(archive, 201)
    last = archive.last_record(archive.files()[0])
    assert last is not None
    assert rows([last]) == rows([log])[-1:]


@pytest.mark.parametrize("seed", range(30))
def test_any_overlapping_files_merged_in_any_order_say_the_same(seed: int, tmp_path: Path) -> None:
    rng, log = random.Random(seed), log_of(120, seed)
    archive, at = Archive(str(tmp_path)), 0
    while at < 120:  # files that cover everything, and more of them anywhere
        last = min(119, at + rng.randrange(1, 25))
        put(archive, log, max(0, at - rng.choice([0, 0, 7])), last, f"2024-01-0{1 + at // 50}")
        at = last + 1
    for _ in range(rng.randrange(6)):
        first = rng.randrange(119)
        put(archive, log, first, rng.randrange(first, 120), "2024-01-02")
    before = archive.files()[0]
    kept = [shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-kept"))]
    stale = archive.files()[0]
    runs = mergeable(before)
    if runs:
        some = compact(archive, before, [rng.choice(runs)])
        assert all_of(archive, 120) == rows([log])
        assert set(some.removed) >= {file for file, _ in contained(before)}
    with suppress(FileNotFoundError):
        compact(archive, stale)  # somebody who looked before
    assert all_of(archive, 120) == rows([log])
    compact(archive, archive.files()[0])
    assert all_of(archive, 120) == rows([log])
    after = archive.files()[0]
    assert mergeable(after) == contained(after) == []
    shutil.copytree(kept[0], tmp_path, dirs_exist_ok=True)  # killed before the small ones were removed
    assert len(archive.files()[0]) > len(after)
    assert all_of(archive, 120) == rows([log])
    compact(archive, archive.files()[0])
    assert all_of(archive, 120) == rows([log])
    assert mergeable(archive.files()[0]) == []


def test_a_reader_goes_on_when_files_are_merged_under_it(archive: Archive) -> None:
    log = log_of(100, seed=3)
    for first in range(0, 100, 10):
        put(archive, log, first, first + 9)
    reading = archive.read(0, 0, 100)
    found = [next(reading)]
    compact(archive, archive.files()[0])
    assert len(archive.files()[0]) == 1
    assert rows([*found, *reading]) == rows([log])


def test_large_files_are_merged_in_groups_that_are_read_one_by_one(tmp_path: Path) -> None:
    archive, log = Archive(str(tmp_path)), log_of(3 * GROUP_ROWS, seed=4)
    third = GROUP_ROWS
    for first in range(0, 3 * third, third):
        put(archive, log, first, first + third - 1)
    (merged,) = compact(archive, archive.files()[0]).made
    with archive.opened(merged) as file:
        groups = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    assert len(groups) > 2
    assert max(groups) <= GROUP_ROWS
    assert all_of(archive, 3 * third) == rows([log])


def test_merged_files_are_of_one_day_not_too_large_and_of_like_size_while_it_goes_on() -> None:
    small = files_of(*((10 * k, 10 * k + 9) for k in range(TIER)))
    assert due(small) == mergeable(small) == [small]
    assert due(small[1:]) == []
    assert mergeable(small[:1]) == []
    assert mergeable([*small[:3], *small[4:]]) == [small[:3], small[4:]]  # a hole
    other = [ArchiveFile(0, 160, 169, "2023-11-15", 1000), ArchiveFile(0, 170, 179, "2023-11-15", 1000)]
    assert mergeable(small + other) == [small, other]
    large = ArchiveFile(0, 160, 999, "2023-11-14", LARGEST)
    assert mergeable([*small, large]) == [small]
    middle = ArchiveFile(0, 160, 999, "2023-11-14", LARGEST // 16)
    assert due([*small, middle]) == [small]
    assert mergeable([*small, middle]) == [[*small, middle]]
    assert contained(files_of((0, 9), (0, 5), (5, 9), (9, 12))) == [
        (file, files_of((0, 9))[0]) for file in files_of((0, 5), (5, 9))
    ]


# -- damage -----------------------------------------------------------------------------------------


def test_no_damage_is_read_over(tmp_path: Path) -> None:
    archive, log = Archive(str(tmp_path)), log_of(300, seed=5)
    path = tmp_path / put(archive, log, 0, 299).name
    whole, rng = path.read_bytes(), random.Random(5)
    wrong = 0
    for k in range(150):
        spoilt = bytearray(whole)
        spoilt[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt if k % 3 else whole[: rng.randrange(len(whole))])
        try:
            assert all_of(archive, 300) == rows([log]), k  # of some bytes nothing depends
        except ArchiveError as error:
            wrong += 1
            assert path.name in str(error)
            assert "\n" not in str(error)
    assert wrong > 100
    path.write_bytes(b"no Parquet")
    with pytest.raises(ArchiveError, match=r"the file is damaged .*: remove it, and `cco archive run` archives"):
        all_of(archive, 300)


def test_files_of_others_and_places_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"nosuch://x: cannot be used for an archive"):
        Archive("nosuch://x")
    archive, log = Archive(str(tmp_path / "a")), log_of(10)
    moved = tmp_path / "a" / put(archive, log, 0, 9).name.replace("source=0", "source=1")
    moved.parent.mkdir(parents=True)
    shutil.move(tmp_path / "a" / archive.files()[0][0].name, moved)
    with pytest.raises(ArchiveError, match="is no file of this archive"):
        all_of(archive, 10, source=1)
    (tmp_path / "a" / "source=2").write_text("in the way")
    log = log_of(10, source=2)
    with pytest.raises(ArchiveError, match=r"source=2/.*: writing it failed"):
        put(archive, log, 0, 9)
    assert not list(tmp_path.rglob("*.part"))


def test_what_a_killed_writer_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    archive, log = Archive(str(tmp_path)), log_of(10)
    file = tmp_path / put(archive, log, 0, 9).name
    for name, age in (("old", 4000), ("new", 60)):
        path = file.with_name(f"{file.name}.{name}.part")
        path.write_bytes(b"")
        os.utime(path, (time.time() - age, time.time() - age))
    assert archive.remove_left_over() == 1
    assert [name.split(".")[-2] for name in names(tmp_path) if name.endswith(".part")] == ["new"]


# -- going on with a rebuild ------------------------------------------------------------------------


def events_of(config: Config, seed: int, number: int = 400) -> list[tuple[str, str, int, int]]:
    """User, item, type, time: skewed, with removals, deletions and clocks."""
    rng, kinds = random.Random(seed), len(config.event_types)
    return [
        (f"u{rng.randrange(25)}", f"i{int(12 * rng.random() ** 2)}", rng.choice([*range(kinds), *range(kinds), -1, -2]),
         k // 3 + rng.randrange(8))
        for k in range(number)
    ]  # fmt: skip


class Broken(Exception):
    pass


@pytest.mark.parametrize("seed", range(12))
def test_a_rebuild_that_is_stopped_anywhere_goes_on_to_the_same_model(seed: int, tmp_path: Path) -> None:
    rng, config = random.Random(seed), parse_config(TOML.replace("source_partitions = 2", ""), "cco.toml")
    events, file = events_of(config, seed), tmp_path / "resume"

    def model(progress: Progress, breaks: int | None, every: int) -> bytes:
        def batches() -> object:
            for at in range(progress.offsets.get(0, 0), len(events), every):
                if breaks is not None and at >= breaks:
                    raise Broken
                part = events[at : at + every]
                progress.offsets[0] = at + len(part)
                yield (
                    0,
                    EventBatch(
                        progress.users.intern([e[0] for e in part]),
                        progress.items.intern([e[1] for e in part]),
                        np.array([e[2] for e in part], np.int16),
                        np.array([e[3] for e in part], np.uint32),
                    ),
                )
            if breaks is not None:
                raise Broken

        made = rebuild(
            config, batches(), progress.users, progress.items, fold_every=rng.randrange(1, 60),  # type: ignore[arg-type]
            start=progress.histories, folded=progress.save,
        )  # fmt: skip
        progress.save(made.histories)
        return b"".join(encode(made.rows(), made.items, config))

    whole = model(Progress.begin(config, "log", None), None, 400)
    assert whole.count(b"\n") > 3
    resumed = 0
    for breaks in sorted(rng.sample(range(400), 4)):
        progress = Progress.begin(config, "log", file)
        resumed += progress.resumed
        with pytest.raises(Broken):
            model(progress, breaks, rng.randrange(1, 30))
    assert resumed > 0
    last = Progress.begin(config, "log", file)
    assert model(last, None, 17) == whole
    assert model(Progress.begin(config, "log", file), None, 17) == whole  # and when nothing is left to read


def test_what_was_counted_otherwise_or_is_damaged_is_refused(tmp_path: Path) -> None:
    config, file = parse_config(TOML, "cco.toml"), tmp_path / "resume"
    progress = Progress.begin(config, "log", file)
    progress.offsets = {0: 3}
    batch = EventBatch(
        progress.users.intern(["u1", "u2"]), progress.items.intern(["i1", "i1"]), np.zeros(2, np.int16),
        np.ones(2, np.uint32),
    )  # fmt: skip
    progress.save(rebuild(config, [batch], progress.users, progress.items).histories)
    assert [path.name for path in tmp_path.iterdir()] == ["resume"]
    assert Progress.begin(config, "log", file).resumed == 3
    for other, log in ((parse_config(TOML.replace("= 4", "= 5"), "cco.toml"), "log"), (config, "another")):
        with pytest.raises(StateError, match=r"counted by another configuration or version, or of another log \(log\)"):
            Progress.begin(other, log, file)
    whole, rng = file.read_bytes(), random.Random(1)
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:size])
        with pytest.raises(StateError, match=r"is damaged, or no file of a rebuild \(.*\): name another one"):
            Progress.begin(config, "log", file)
    for _ in range(60):
        spoilt = bytearray(whole)
        spoilt[rng.randrange(len(whole))] ^= 0x10
        file.write_bytes(spoilt)
        try:
            found = Progress.begin(config, "log", file)
        except StateError:
            continue
        assert found.histories is not None  # what says nothing was spoilt
        assert (found.offsets, found.histories.items.tolist()) == ({0: 3}, [0, 0])


# -- the command without Kafka ----------------------------------------------------------------------


def test_describe_and_compact_of_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, log = str(tmp_path / "archive"), log_of(60, seed=7)
    assert main(["archive", "describe", url]) == 1
    assert capsys.readouterr().err == f"cco: {url}: there is no archive: `cco archive run` makes it\n"
    archive = Archive(url)
    for first in (0, 10, 20, 40, 50):
        put(archive, log, first, first + 9, "2024-01-01" if first < 50 else "2024-01-02")
    assert main(["archive", "describe", url]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"^\s*0\s+30\s+5\s+.* 2024-01-01 to 2024-01-02\s+30 to 39", line), line
    assert main(["archive", "describe", url, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["partitions"]
    assert (told["archived"], told["holes"], told["files"]) == (30, [[30, 40]], 5)
    assert main(["archive", "compact", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"made": 1, "removed": 3, "left_over": 0}
    put(archive, log, 30, 39, "2024-01-01")
    assert main(["archive", "compact", url]) == 0
    assert capsys.readouterr().out == "3 files became 1; 0 left over in the making were removed\n"
    assert all_of(archive, 60) == rows([log])


def test_a_rebuild_says_what_contradicts_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, empty = tmp_path / "e.csv", str(tmp_path / "empty")
    events.write_text("user,item,event,timestamp\nu1,i1,purchase,1\n")
    config = tmp_path / "cco.toml"
    config.write_text("")
    for arguments, line in (
        ([str(events), "--archive", empty], "name what to read: either EVENTS, --log or --archive"),
        (["--log", "--archive", empty], "name what to read: either EVENTS, --log or --archive"),
        (["--log", "--tail"], "--tail goes with --archive; --log reads the whole log"),
        ([str(events), "--resume", empty],
         "--resume goes with --log or --archive: files have no offsets to go on from"),
        (["--archive", empty], f"{empty}: there is no archive: `cco archive run` makes it"),
        (["--archive", empty, "--end-offsets", "x:1"], None),
    ):  # fmt: skip
        assert main(["rebuild", *arguments, "--config", str(config)]) == 2
        said = capsys.readouterr().err
        assert line is None or said == f"cco: error: {line}\n"

"""Files of events: every record is accepted or reported with file, line and reason, however the file is cut."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tempfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.files.reading import InputError, read_events, read_items
from agents.files.streams import MAX_LINE
from cco.config import make_config
from cco.events import EventParser
from cco.vocabulary import Vocabulary
from tests.agents.reading import CONFIG, EVENTS, GOOD, HEADER, NOW, as_csv, as_lines, read, reasons, table, write
from tests.shared import shared


def test_every_format_gives_the_same(tmp_path: Path) -> None:
    parquet = tmp_path / "events.parquet"
    pa.parquet.write_table(table(EVENTS), parquet, row_group_size=4)
    texts = [as_csv(EVENTS), as_lines(EVENTS), as_csv(EVENTS).replace(b",", b"\t").replace(b"i\t1", b"i,1")]
    for k, text in enumerate(texts):
        variants = [text, text.rstrip(b"\r\n"), b"\xef\xbb\xbf" + text]
        for variant in variants:
            for content in (variant, gzip.compress(variant), gzip.compress(variant[:9]) + gzip.compress(variant[9:])):
                for path in (write(tmp_path, f"{k}", content), write(tmp_path, f"{k}.csv.gz", content)):
                    assert read(path).events == EVENTS
                assert read("-", stdin=content).events == EVENTS
    assert read(parquet).events == EVENTS
    for content in (parquet.read_bytes(), gzip.compress(parquet.read_bytes())):  # what is read from its end
        assert read(write(tmp_path, "packed.parquet.gz", content)).events == EVENTS
        assert read("-", stdin=content).events == EVENTS
        assert read("-", stdin=content, chunk=2, skip=3).events == EVENTS[3:]
        assert read(pipe(tmp_path, content)).events == EVENTS
    assert read(parquet, tmp_path / "0", parquet).events == EVENTS * 3


def pipe(folder: Path, content: bytes) -> Path:
    """A named pipe through which `content` comes once."""
    name = Path(tempfile.mkdtemp(dir=folder)) / "pipe"
    os.mkfifo(name)
    threading.Thread(target=name.write_bytes, args=(content,), daemon=True).start()
    return name


def test_line_ends_do_not_matter(tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        plain = write(tmp_path, "a.csv", HEADER.replace("\n", end) + f"{GOOD}{end}{end}{GOOD}{end}")
        assert read(plain).events == [("u", "i", "view", NOW)] * 2
        lines = write(tmp_path, "a.jsonl", as_lines(EVENTS).replace(b"\n", end.encode()))
        assert read(lines).events == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 4, 1000])
def test_chunks_and_skips_change_nothing(tmp_path: Path, size: int) -> None:
    rows = [list(row) for row in EVENTS]
    rows.insert(4, ["", "", "nothing", "x"])
    parquet = tmp_path / "c.parquet"
    pa.parquet.write_table(table([*EVENTS, ("u", "", "view", 3), *EVENTS]), parquet, row_group_size=5)
    paths = [
        write(tmp_path, "a.csv", as_csv(rows)),
        write(tmp_path, "b.jsonl", as_lines(EVENTS) + b"garbage\n\n" + as_lines(EVENTS)),
        write(tmp_path, "empty.csv", ""),
        parquet,
        write(tmp_path, "c.parquet.gz", gzip.compress(parquet.read_bytes())),
        write(tmp_path, "d.csv", HEADER + f"{GOOD}\nbad\n{GOOD}"),
    ]
    whole = read(*paths)
    assert len(whole.events) == 7 * len(EVENTS) + 2
    assert [(r.file.rsplit("/", 1)[1], r.line) for r in whole.rejections] == [
        ("a.csv", 7), ("b.jsonl", 10), ("c.parquet", 10), ("c.parquet.gz", 10), ("d.csv", 3),
    ]  # fmt: skip
    cut = read(*paths, chunk=size)
    assert cut[:2] == whole[:2]
    assert cut.chunks[-1].bytes_read == cut.chunks[-1].bytes_total == sum(path.stat().st_size for path in paths)
    assert [part.records for part in cut.chunks] == sorted(part.records for part in cut.chunks)
    events = rejections = 0
    for part in cut.chunks:
        events += len(part.batch)
        rejections += len(part.rejections)
        rest = read(*paths, chunk=size, skip=part.records)
        assert rest.events == whole.events[events:]
        assert rest.rejections == whole.rejections[rejections:]
    with pytest.raises(InputError, match="fewer than the 1000000 to go on after"):
        read(*paths, skip=1_000_000)


# ---- fuzz

ODD = st.one_of(
    st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"").replace(b'"', b"").replace(b"\r", b"")),
    st.sampled_from([
        b"u,i,view", b"u,i,view,1,2", b",,,", b"", b" ", b"u\0,i,view,1", b"u\xff,i,view,1", b"u,i,vew,1", b"u,,view,1",
        b"u,i,view,-1", b"u,i,view,1476884080000", b"u,i,view,9999-01-01", b"u,i,view,NaN", b"x" * 513 + b",i,view,1",
        b"\xef\xbb\xbfu,i,view,3", b"u,i\r,view,3", b"{}", b'{"user_id":"u"}', b"null", b"[[[[", b",,$clock,5",
        b"u,,$delete,5", b"u,i,$delete,5", b"u,i,view, 12 ", b"u,i,view,2020-01-01T00:00:00Z", b"u,i,view,0x10",
    ]),
)  # fmt: skip


def mixed(good: bytes) -> st.SearchStrategy[list[tuple[bool, bytes]]]:
    return st.lists(
        st.tuples(st.booleans(), ODD).map(lambda pair: (pair[0], good if pair[0] else pair[1])), max_size=25
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "quoted"])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_fuzz_each_line_alone_or_in_company(kind: str, data: st.DataObject) -> None:
    neighbour = {
        "csv": b"me,it,view,7",
        "jsonl": as_lines([("me", "it", "view", 7)]).strip(),
        "quoted": b'me,"it",view,7',
    }
    lines = data.draw(mixed(neighbour[kind]))
    header = b"\n" if kind == "jsonl" else HEADER.encode()  # a file may begin with what a line may not
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name), f"x.{kind}", header + b"\n".join(line for _, line in lines))
        whole = read(path)
        size = data.draw(st.integers(1, 30))
        assert read(path, chunk=size)[:2] == whole[:2]
        assert read(write(Path(name), f"{path.name}.gz", gzip.compress(path.read_bytes()))).events == whole.events
        said = {rejection.line: rejection for rejection in whole.rejections}
        assert len(said) == len(whole.rejections)
        assert sum(event == ("me", "it", "view", 7) for event in whole.events) == sum(good for good, _ in lines)
        events = iter(whole.events)
        for k, (good, line) in enumerate(lines):
            alone = read(write(Path(name), f"alone.{kind}", header + line))
            number = k + 2
            assert alone.events == [next(events) for _ in alone.events]
            assert [r.reason for r in alone.rejections] == [said[n].reason for n in (number,) if n in said]
            assert len(alone.events) + len(alone.rejections) == (1 if line.strip() else 0)
            assert not (good and alone.rejections)
        assert next(events, None) is None
        assert all(r.file == str(path) and r.reason and len(r.record) <= 200 for r in whole.rejections)


@pytest.mark.parametrize("line", [b"\x1c", "\u00a0".encode(), b"\x85"])
def test_only_ascii_makes_a_line_blank(tmp_path: Path, line: bytes) -> None:
    found = read(write(tmp_path, "x.csv", HEADER.encode() + b" \t\r\n" + line + b"\nme,it,view,7\n"))
    assert found.events == [("me", "it", "view", 7)]
    assert [rejection.line for rejection in found.rejections] == [3]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["x", "x.csv", "x.jsonl", "x.gz", "x.parquet"]))
def test_fuzz_any_bytes(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for variant in (
            content,
            gzip.compress(content)[: 5 + len(content)],
            HEADER.encode() + content,
            b"PAR1" + content,
        ):
            path = write(Path(folder), name, variant)
            try:
                found = read(path)
                assert read(path, chunk=1)[:2] == found[:2]
            except InputError as error:
                assert str(error).startswith(f"{path}: ")
                assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "user,item,when\nu,i,3\n",
            "no column event, timestamp; columns found: user, item, when; needed: user, item, event",
        ),
        ("user,item,event,time\nu,i,view,3\n", "no column timestamp; columns found: user, item, event, time; needed"),
        ("user,user_id,item,event\n", "the column user is there 2 times"),
        (GOOD + "\n", "no column user, item, event, timestamp; columns found: u, i, view, 1476884080"),
        ('"user,item\n', "no column"),
        ("x" * (MAX_LINE + 1) + "\n", "the first line is longer than"),
        (b"PK\x03\x04rest", "is a zip archive"),
        ("user,item,event\n".encode("utf-16"), "is UTF-16: convert it to UTF-8"),
        (b"PAR1 broken", "cannot be read as Parquet"),
        (gzip.compress(as_lines(EVENTS * 99), mtime=0)[:-20], "the gzip file is cut off"),
        (gzip.compress(as_lines(EVENTS), mtime=0)[:12] + b"garbage garbage", "the gzip file is damaged"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, "a.csv", content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    good = write(tmp_path, "a.csv", HEADER + GOOD)
    for path, message in [(tmp_path, "is a folder"), (tmp_path / "none", "No such file"), ("a\0b", "null")]:
        parser = EventParser(CONFIG, Vocabulary(), Vocabulary())
        with pytest.raises(InputError, match=message):
            next(read_events([str(good), str(path)], parser))  # seen before the first file is read
    with pytest.raises(InputError, match="once only"):
        read("-", "-", stdin=b"")
    with pytest.raises(InputError, match="one JSON array"):
        read(write(tmp_path, "a.json", "[{}]"))


def test_parquet_that_has_to_be_unpacked_and_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = tmp_path / "p"
    pa.parquet.write_table(table(EVENTS), parquet)
    packed = gzip.compress(parquet.read_bytes())

    def problem(content: bytes) -> str:
        with pytest.raises(InputError) as caught:
            read("-", stdin=content)
        return str(caught.value)

    assert problem(packed[:-9]) == "standard input: the gzip file is cut off"
    assert problem(packed[:40] + b"garbage" + packed[47:]).startswith("standard input: the gzip file is damaged (")
    assert problem(gzip.compress(b"PAR1 broken")).startswith("standard input: cannot be read as Parquet (")
    monkeypatch.setattr("agents.files.streams.MOST_UNPACKED", 100)
    assert problem(packed) == (
        "standard input: has more than 100 bytes when unpacked: write it unpacked to a file, and name that"
    )


def test_what_came_before_a_cut_off_gzip_is_read(tmp_path: Path) -> None:
    rows = [(f"u{k}", f"i{k * 7919 % 997}", "view", k) for k in range(200_000)]
    path = write(tmp_path, "a.jsonl.gz", gzip.compress(as_lines(rows), 1)[:-9])
    parser = EventParser(CONFIG, Vocabulary(), Vocabulary())
    count = 0
    with pytest.raises(InputError, match="cut off"):
        for chunk in read_events([str(path)], parser):
            count += len(chunk.batch)
    assert count > 199_000


def test_empty_files_and_only_bad_lines(tmp_path: Path) -> None:
    for name in ("a", "a.csv", "a.jsonl", "a.gz"):
        for content in (b"", b"\xef\xbb\xbf", b"\n", gzip.compress(b"")):
            assert read(write(tmp_path, name, content))[:2] == ([], [])
    assert read(write(tmp_path, "a.csv", HEADER)).events == []
    found = read(write(tmp_path, "a.csv", HEADER + "x\n" * 1000))
    assert reasons(found) == [(k, "the line has 1 field, the header 4") for k in range(2, 1002)]
    found = read(write(tmp_path, "a.jsonl", "x\n" * 1000))
    assert [line for line, _ in reasons(found)] == list(range(1, 1001))
    assert found.events == []
    pa.parquet.write_table(table([]), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").events == []


@pytest.mark.parametrize("blocks", [0, 1, 9])
def test_a_line_that_is_too_long_is_never_held(tmp_path: Path, blocks: int) -> None:
    long = b"x" * (MAX_LINE + 1 + blocks * (1 << 20))
    good = as_lines([("u", "i", "view", 7)])
    fits = json.dumps({"user": "u", "item": "i", "event": "view", "timestamp": 7, "x": "y" * (MAX_LINE - 80)}).encode()
    path = write(tmp_path, "a.jsonl", good + long + b"\n" + fits + b"\n" + long + b"\n" + good + long)
    for size in (1, 2, 65_536):
        found = read(path, chunk=size)
        assert found.events == [("u", "i", "view", 7)] * 3
        assert reasons(found) == [(line, "the line is longer than 1048576 bytes") for line in (2, 4, 6)]
        assert found.rejections[0].record.startswith("xxx")
        assert read(path, chunk=size, skip=2)[:2] == (found.events[1:], found.rejections[1:])
    csv_path = write(tmp_path, "a.csv", HEADER.encode() + b"u,i,view,7\n" + long + b'\n"u",i,view,7\n')
    for size in (1, 65_536):
        found = read(csv_path, chunk=size)
        assert found.events == [("u", "i", "view", 7)] * 2
        assert [line for line, _ in reasons(found)] == [3]
    csv_path = write(tmp_path, "b.csv", b"\n".join([HEADER.encode() + b"u,i,view,7", b'x,"open', long, b"u,i,view,7"]))
    for size in (1, 2, 3, 4):
        found = read(csv_path, chunk=size)
        assert found.events == [("u", "i", "view", 7)] * 2
        assert [(line, reason[:8]) for line, reason in reasons(found)] == [(3, "not vali"), (4, "the line")]


@pytest.mark.parametrize("name", ["movietweetings-100k", "online-retail", "ur-handmade"])
def test_real_files_are_read_whole(name: str) -> None:
    events, catalogue = (shared(f"data/{name}/{part}.csv.gz") for part in ("events", "items"))
    with gzip.open(events, "rt", newline="") as file:
        rows = [(r["user"], r["item"], r["event"], int(r["timestamp"] or 0)) for r in csv.DictReader(file)]
    types = sorted({row[2] for row in rows})
    config = make_config({"primary": types[0], "indicators": {kind: {} for kind in types}})
    users, items = Vocabulary(), Vocabulary()
    found: list[tuple[str, str, str, int]] = []
    for chunk in read_events([str(events)], EventParser(config, users, items), 10_000):
        assert not chunk.rejections
        batch = chunk.batch
        kinds = [types[kind] for kind in batch.types.tolist()]
        found += zip(users.names(batch.users), items.names(batch.items), kinds, batch.times.tolist(), strict=True)
    assert found == rows
    with gzip.open(catalogue, "rt", newline="") as file:
        expected = [(r.pop("item"), {k: v for k, v in r.items() if v}) for r in csv.DictReader(file)]
    assert list(read_items(str(catalogue))) == expected

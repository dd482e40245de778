"""CSV and Parquet in all their kinds, and files of items."""

from __future__ import annotations

import gzip
import json
import math
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.files.csv_format import Header, columns_of_block, columns_of_records, find_columns, split_records
from agents.files.reading import InputError, read_items
from agents.rebuilds.spark_reading import stretches_of_files
from cco.events import EventParser, Rejection
from cco.vocabulary import Vocabulary
from tests.agents.reading import CONFIG, GOOD, HEADER, NOW, read, reasons, write

PIECES = st.sampled_from(
    ['"', '""', ",", "u", "view", "7", "\r", " ", "\0", "\ufeff", '"u"', ',"view",', "u,i,view,7", '"",']
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=9).map("".join), min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_fuzz_blocks_and_records_are_cut_alike(lines: list[str], end: str) -> None:
    header = Header.parse(HEADER.encode(), "x")
    places = find_columns(header.names, "x")
    parsers = [EventParser(CONFIG, Vocabulary(), Vocabulary()) for _ in range(2)]
    data = "".join(line + end for line in lines).encode()
    raw = data.split(b"\n")[: len(lines)]
    fast = columns_of_block(data, len(lines), header, places, parsers[0])
    records, used = split_records(raw, header, final=True)
    assert used == len(lines)
    if fast is None:
        assert b'"' in data
        return
    assert all(record.lines == 1 for record in records)
    slow = columns_of_records(records, header, places, parsers[1], raw)
    found = [parser.columns(columns) for parser, columns in zip(parsers, (fast, slow), strict=True)]
    assert found[0].rejections == found[1].rejections
    assert found[0].batch.times.tolist() == found[1].batch.times.tolist()
    for k, names in enumerate(([p.users for p in parsers], [p.items for p in parsers])):
        assert names[0].names(range(len(names[0]))) == names[1].names(range(len(names[1])))
        columns = [(part.batch.users, part.batch.items)[k].tolist() for part in found]
        assert columns[0] == columns[1]


def test_quotes(tmp_path: Path) -> None:
    text = HEADER + "\n".join([
        f'"u1","a\nb",view,{NOW}',
        'u2,"open,view,1',
        GOOD,
        'u3,"x"y,view,1',
        'u4,"say ""hi""",view,1',
        GOOD,
        'u5,"never closed,view,1',
        GOOD,
    ])  # fmt: skip
    whole = read(write(tmp_path, "a.csv", text))
    assert whole.events == [
        ("u1", "a\nb", "view", NOW), ("u", "i", "view", NOW), ("u4", 'say "hi"', "view", 1),
        ("u", "i", "view", NOW), ("u", "i", "view", NOW),
    ]  # fmt: skip
    assert [(line, reason.split(":")[0]) for line, reason in reasons(whole)] == [
        (4, "not valid CSV"), (6, "not valid CSV"), (9, "not valid CSV"),
    ]  # fmt: skip
    for size in range(1, 9):
        assert read(tmp_path / "a.csv", chunk=size)[:2] == whole[:2]


def test_ragged_rows_and_other_columns(tmp_path: Path) -> None:
    text = "shop,user_id,x,x,item_id,event_type,timestamp,weight\n" + "\n".join([
        "s,u,1,2,i,view,7,", "s,u,1,2,i,view,7,nan", "s,u,1,2,i,view,7,heavy", "s,u,1,2,i,view,7,1e5", "s,u,i,view,7",
    ])  # fmt: skip
    expected = [
        (3, "weight must be a finite number, not nan"),
        (4, "weight must be a finite number, not heavy"),
        (6, "the line has 5 fields, the header 8"),
    ]
    for content in (text, text + '\ns,"u",1,2,i,view,7,'):
        found = read(write(tmp_path, "a.csv", content))
        assert set(found.events) == {("u", "i", "view", 7)}
        assert reasons(found) == expected


def test_times_in_csv(tmp_path: Path) -> None:
    texts = ["5", "05", " 5 ", "5.9", "", "1970-01-01T00:00:05Z", "99999999999", f"{2**64 + NOW}", "-5", "5x", "\u0665"]
    found = read(write(tmp_path, "a.csv", HEADER + "\n".join(f"u,i,view,{text}" for text in texts)))
    assert [event[3] for event in found.events] == [5, 5, 5, 5, 0, 5]
    assert [line for line, _ in reasons(found)] == [8, 9, 10, 11, 12]


# ---- Parquet


def test_parquet_types(tmp_path: Path) -> None:
    when = [datetime(2016, 10, 19, 13, 34, 40, 999_999, tzinfo=UTC), datetime(1969, 12, 31, tzinfo=UTC), None]
    times: list[tuple[pa.Array, list[int | None]]] = [
        *((pa.array(when, pa.timestamp(unit, "UTC")), [NOW, None, 0]) for unit in ("ms", "us", "ns")),
        (pa.array([w and w.date() for w in when]), [1_476_835_200, None, 0]),
        (pa.array([NOW + 0.5, math.nan, None]), [NOW, None, 0]),
        (pa.array([NOW, -1, None], pa.int32()), [NOW, None, 0]),
        (pa.array([NOW, 2**63, None], pa.uint64()), [NOW, None, 0]),
        (pa.array(["2016-10-19T13:34:40Z", "x", None]), [NOW, None, 0]),
        (pa.array([None, None, None]), [0, 0, 0]),
    ]
    users = [pa.array([1, 2, 3]), pa.array(["1", "2", "3"]).dictionary_encode(), pa.array([b"1", b"2", b"3"])]
    for k, (column, expected) in enumerate(times):
        parts = {"user_id": users[k % 3], "item_id": pa.array(["i"] * 3, pa.large_string()), "event_type": ["view"] * 3}
        pa.parquet.write_table(pa.table({**parts, "timestamp": column}), tmp_path / "a")
        found = read(tmp_path / "a")
        assert found.events == [(str(u + 1), "i", "view", t) for u, t in enumerate(expected) if t is not None]
        assert [r.line for r in found.rejections] == [u + 1 for u, t in enumerate(expected) if t is None]


def test_parquet_rows_that_are_refused(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "user": pa.array([b"u", None, b"\xff", b"", b"u", b"u", b"x" * 513, b"u"]),
        "item": ["i", "i", "i", "i", None, "i", "i", "i"],
        "event": ["view", "view", "view", "view", "$delete", "vew", "view", "view"],
        "weight": [1.0, 1.0, 1.0, None, 1.0, 1.0, 1.0, math.nan],
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "a")
    found = read(tmp_path / "a")
    assert found.events == [("u", "i", "view", 0), ("u", "", "-1", 0)]
    assert [(line, reason.split(" (")[0]) for line, reason in reasons(found)] == [
        (2, "user is missing"),
        (3, "user is not valid UTF-8"),
        (4, "user is missing"),
        (6, "no indicator names the event type 'vew'"),
        (7, "user has 513 bytes; at most 512 are possible"),
        (8, "weight must be a finite number, not nan"),
    ]


@pytest.mark.parametrize("name", ["user", "event", "timestamp", "weight"])
def test_parquet_columns_of_a_wrong_type(tmp_path: Path, name: str) -> None:
    columns = {"user": ["u"], "item": ["i"], "event": ["view"], "timestamp": [1], "weight": [1.0]} | {name: [True]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "a")
    with pytest.raises(InputError, match=f"the column {name} is of type bool; needed: "):
        read(tmp_path / "a")


# ---- damaged Parquet

ROWS = 40
FUZZED = 100  # damaged files of each kind
KINDS = [(compression, encoded) for compression in ("none", "snappy", "gzip") for encoded in (False, True)]


def parquet_of(folder: Path, compression: str, encoded: bool) -> bytes:
    """A good file with a column of each kind, with dictionaries or without."""
    columns = {
        "user": pa.array([b"u%d" % (k % 7) for k in range(ROWS)]),
        "item": [f"i{k % 5}" for k in range(ROWS)],
        "event": ["view", "purchase"] * (ROWS // 2),
        "timestamp": pa.array([datetime(2020, 1, 1 + k % 28, tzinfo=UTC) for k in range(ROWS)], pa.timestamp("us")),
        "weight": [1.0 + k for k in range(ROWS)],
    }
    pa.parquet.write_table(
        pa.table(columns), folder / "good", compression=compression, use_dictionary=encoded, row_group_size=15,
        data_page_version="2.0" if encoded else "1.0",
    )  # fmt: skip
    return (folder / "good").read_bytes()


def all_rows(path: Path) -> bool:
    """Whether a file could be read, as events and as items; then every row is accepted or refused, else it is named."""
    refused: list[Rejection] = []
    try:
        assert len(list(read_items(str(path), refused.append))) + len(refused) == ROWS
        found = read(path, chunk=11)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return False
    assert len(found.events) + len(found.rejections) == ROWS
    assert all(rejection.reason.isprintable() for rejection in [*refused, *found.rejections])
    return True


@pytest.mark.parametrize(("compression", "encoded"), KINDS)
def test_fuzz_damaged_parquet(tmp_path: Path, compression: str, encoded: bool) -> None:
    """Bits that are turned over, and ends that are missing."""
    good = parquet_of(tmp_path, compression, encoded)
    chance = random.Random(f"{compression} {encoded}")
    whole = 0
    for _ in range(FUZZED):
        content = bytearray(good)
        for _ in range(chance.choice((1, 1, 1, 2, 5, 20))):
            content[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.2:
            del content[chance.randrange(len(good)) :]
        whole += all_rows(write(tmp_path, "bad", bytes(content)))
    assert 0 < whole < FUZZED


def test_parquet_with_texts_that_are_not_utf8(tmp_path: Path) -> None:
    """Each in a column that says that it is text, and once in the name of a column; their neighbours are read."""
    rows = [["u", "i", "view", "2020-01-01"] for _ in range(9)]
    for k in range(4):
        rows[2 * k + 1][k] = "\udcff"
    columns = {
        name: pa.array([row[k].encode(errors="surrogateescape") for row in rows]).cast(pa.string(), safe=False)
        for k, name in enumerate(("user", "item", "event", "timestamp"))
    }
    for encoded in (False, True):
        pa.parquet.write_table(pa.table({**columns, "more": columns["item"]}), tmp_path / "a", use_dictionary=encoded)
        found = read(tmp_path / "a")
        assert found.events == [("u", "i", "view", 1_577_836_800)] * 5
        assert [line for line, _ in reasons(found)] == [2, 4, 6, 8]
        assert all(rejection.reason.isprintable() for rejection in found.rejections)
        refused: list[Rejection] = []
        assert len(list(read_items(str(tmp_path / "a"), refused.append))) == 5
        assert [rejection.line for rejection in refused] == [2, 4, 6, 8]
    path = write(tmp_path, "b", (tmp_path / "a").read_bytes().replace(b"more", b"m\xff\xfee"))
    with pytest.raises(InputError, match="b: cannot be read as Parquet"):
        read(path)


def test_gzipped_parquet_is_read_whole_by_one_task_of_spark(tmp_path: Path) -> None:
    good = parquet_of(tmp_path, "snappy", True)
    (stretch,) = stretches_of_files([str(write(tmp_path, "a.parquet.gz", gzip.compress(good)))])
    parser = EventParser(CONFIG, Vocabulary(), Vocabulary())
    assert sum(len(part.batch) for part in stretch.read(parser)) == ROWS


# ---- items


def test_items(tmp_path: Path) -> None:
    expected = [("i1", {"title": "a,b", "tags": "x|y"}), ("i2", {"title": "c"})]
    lines = [{"item": "i1", "title": "a,b", "tags": "x|y"}, {"item_id": "i2", "title": "c", "tags": None}]
    path = write(tmp_path, "a.csv", 'item,title,tags\ni1,"a,b",x|y\n\ni2,c,\n')
    assert list(read_items(str(path))) == expected
    path = write(tmp_path, "a.jsonl.gz", gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    assert list(read_items(str(path))) == expected
    pa.parquet.write_table(
        pa.table({"item": ["i1", "i2"], "title": ["a,b", "c"], "tags": ["x|y", None]}), tmp_path / "p"
    )
    assert list(read_items(str(tmp_path / "p"))) == expected
    packed = write(tmp_path, "p.gz", gzip.compress((tmp_path / "p").read_bytes()))
    assert list(read_items(str(packed))) == expected
    assert list(read_items(str(write(tmp_path, "e", "")))) == []


def test_items_that_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "item,title\ni1,a\nragged\n,b\ni2,c\n")
    with pytest.raises(InputError, match=r"a\.csv, line 3: the line has 1 field, the header 2: ragged"):
        list(read_items(str(path)))
    refused: list[Rejection] = []
    assert [item for item, _ in read_items(str(path), refused.append)] == ["i1", "i2"]
    assert [(r.line, r.reason) for r in refused] == [(3, "the line has 1 field, the header 2"), (4, "item is missing")]
    refused.clear()
    path = write(tmp_path, "a.jsonl", '{"item": 1}\nx\n[]\n{"title": "t"}\n{"item": "a\\u0000"}\n')
    assert list(read_items(str(path), refused.append)) == [("1", {})]
    assert [r.line for r in refused] == [2, 3, 4, 5]
    with pytest.raises(InputError, match="no column item; columns found: sku, title"):
        list(read_items(str(write(tmp_path, "b.csv", "sku,title\n"))))

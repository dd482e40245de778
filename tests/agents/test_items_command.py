"""`cco items` on a real broker: what is in the topic afterwards, what is refused, and the exit codes."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agents.cli.main import main
from agents.kafka.item_changes import ItemRecords
from agents.kafka.reading import read_topic
from agents.kafka.topics import create_topics
from agents.settings import load_settings
from cco.event_data import ItemChange
from tests.servers.kafka import KafkaServer

MODEL = """\
primary = "buy"
[items.types]
price = "float"
sold = "boolean"
since = "date"
brand = "keyword"
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(kafka: KafkaServer, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration, in the folder that the test is in; the topics are there."""
    monkeypatch.chdir(tmp_path)
    path = Path("cco.toml")
    path.write_text(f'{MODEL}[kafka]\nbrokers = "{kafka.bootstrap}"\ntopic_prefix = "{topic_prefix}"\n')
    asyncio.run(create_topics(*load_settings(path, {})))
    return path


@pytest.fixture
def run(file: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["items", *arguments, "--config", str(file)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def in_topic(file: Path) -> list[ItemChange]:
    """All changes in the topic, items with fewer letters first, those of an item in their order."""
    config, settings = load_settings(file, {})

    async def read() -> list[ItemChange]:
        records = ItemRecords(config)
        return [
            records.decode(key, value)
            async for found in read_topic(settings, "items")
            for key, value in zip(found.keys, found.values, strict=True)
        ]

    return sorted(asyncio.run(read()), key=lambda change: change.item_id)


def test_csv_is_typed_by_the_configuration(file: Path, run: Run) -> None:
    rows = "item,price,sold,since,brand,size\na,1.50,TRUE,2024-01-01,7,10\nb,,0,,x|y,\nü,-2e3,false,,,\n"
    Path("items.csv.gz").write_bytes(gzip.compress(rows.encode()))
    code, out, err = run("load", "items.csv.gz", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["item_changes"], report["rejected"]) == (3, 0)
    wanted: dict[str, dict[str, Any]] = {
        "a": {"price": 1.5, "sold": True, "since": "2024-01-01", "brand": "7", "size": "10"},
        "b": {"sold": False, "brand": "x|y"},
        "ü": {"price": -2000.0, "sold": False},
    }
    found = in_topic(file)
    assert found == [ItemChange(item, "set", properties) for item, properties in wanted.items()]
    assert [type(value) for value in found[0].properties.values()] == [float, bool, str, str, str]


def test_values_of_other_formats_are_what_they_are(file: Path, run: Run) -> None:
    Path("some.jsonl").write_text(
        '{"item": "a", "price": "cheap", "tags": ["x", 1]}\n\n{"item_id": 7, "sold": null, "n": 1}\n'
    )
    when = datetime(2024, 5, 6, 7, 8, tzinfo=UTC)
    pq.write_table(pa.table({"item": ["p", "q"], "since": [when, None], "price": [2.5, 3.0]}), "more.parquet")
    code, out, _ = run("load", "some.jsonl", "more.parquet")
    assert code == 0
    assert "item changes sent     4" in out
    assert in_topic(file) == [
        ItemChange("7", "set", {"n": 1}),
        ItemChange("a", "set", {"price": "cheap", "tags": ["x", 1]}),
        ItemChange("p", "set", {"since": "2024-05-06T07:08:00+00:00", "price": 2.5}),
        ItemChange("q", "set", {"price": 3.0}),
    ]


BAD = [  # line, the record, a part of the reason
    ("b,dear,true,", "price must be a number, not 'dear' (items.types)"),
    ("c,nan,true,", "price must be a number, not 'nan' (items.types)"),
    ("d,1,maybe,", "sold must be true or false, not 'maybe' (items.types)"),
    ("e,1,true,tomorrow", "since must be a date in ISO 8601, not 'tomorrow' (items.types)"),
    (",1,true,", "item is missing"),
    (f"{'x' * 513},1,true,", "item has 513 bytes"),
    ("f,1", "2 fields"),
    ("g,,,", "no properties of the item are given"),
]


def test_bad_records_are_told_with_file_and_line_and_the_others_sent(file: Path, run: Run) -> None:
    lines = ["item,price,sold,since", "a,1,true,2024-01-01", *(line for line, _ in BAD), "z,2,false,"]
    Path("items.csv").write_text("\n".join(lines) + "\n")
    Path("other.jsonl").write_text('{"item": "y", "deep": {"er": 1}}\nnonsense\n{"item": "w", "a": 1}\n')
    code, out, err = run("load", "items.csv", "other.jsonl", "--dead-letters", "dead.jsonl", "--json")
    assert code == 0
    assert (json.loads(out)["item_changes"], json.loads(out)["rejected"]) == (3, len(BAD) + 2)
    assert [change.item_id for change in in_topic(file)] == ["a", "w", "z"]
    letters = [json.loads(line) for line in Path("dead.jsonl").read_text().splitlines()]
    for number, (letter, (line, reason)) in enumerate(zip(letters, BAD, strict=False), 3):
        assert (letter["file"], letter["line"]) == ("items.csv", number)
        assert reason in letter["reason"]
        assert letter["record"][:100] == line[:100]
    assert [(one["file"], one["line"]) for one in letters[len(BAD) :]] == [("other.jsonl", 1), ("other.jsonl", 2)]
    assert "is of type dict" in letters[-2]["reason"]
    assert err.splitlines()[0] == f"cco: items.csv:3: {letters[0]['reason']}: {BAD[0][0]}"
    assert f"cco: warning: {len(BAD) + 2} records rejected, the first 5 shown" in err


def test_strict_sends_the_others_and_is_exit_code_2(file: Path, run: Run) -> None:
    Path("items.csv").write_text("item,price\na,1\nb,dear\n")
    code, _, err = run("load", "items.csv", "--strict")
    assert code == 2
    assert "1 record rejected (--strict)" in err
    assert [change.item_id for change in in_topic(file)] == ["a"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("item,price\na,dear\n", "1 record rejected, and there is no other: does each record name its item?"),
        ("sku,price\na,1\n", "items.csv: no column item; columns found: sku, price"),
        (None, "items.csv: No such file or directory"),
    ],
)
def test_nothing_that_could_be_used_is_exit_code_2(file: Path, run: Run, content: str | None, reason: str) -> None:
    if content is not None:
        Path("items.csv").write_text(content)
    code, _, err = run("load", "items.csv")
    assert code == 2
    assert reason in err
    assert in_topic(file) == []


def test_many_items_arrive_in_order(file: Path, run: Run) -> None:
    number, turns = 7_000, 3
    lines = (f'{{"item": "i{k:04}", "turn": {turn}}}\n' for turn in range(turns) for k in range(number))
    Path("items.jsonl").write_text("".join(lines))
    assert run("load", "items.jsonl")[0] == 0
    found = [(change.item_id, change.properties["turn"]) for change in in_topic(file)]
    assert found == [(f"i{k:04}", turn) for k in range(number) for turn in range(turns)]


def test_delete(file: Path, run: Run) -> None:
    Path("items.csv").write_text("item,price\na,1\nb,2\n")
    assert run("load", "items.csv")[0] == 0
    code, out, _ = run("delete", "b", "c", "--json")
    assert (code, json.loads(out)["item_changes"]) == (0, 2)
    kinds = [(change.item_id, change.kind) for change in in_topic(file)]
    assert kinds == [("a", "set"), ("b", "set"), ("b", "delete"), ("c", "delete")]
    code, _, err = run("delete", "d", "x" * 513)
    assert code == 2
    assert "has 513 bytes" in err
    assert len(in_topic(file)) == 4  # none of them was sent


def test_without_topics_it_says_what_to_do(file: Path, run: Run) -> None:
    Path("items.csv").write_text("item,price\na,1\n")
    code, _, err = run("load", "items.csv", "--topic-prefix", "nowhere-")
    assert code == 2
    assert "has no topic nowhere-interactions: `cco topics create` makes it" in err

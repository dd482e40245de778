"""`cco rebuild --engine spark` on a real Spark of two cores: the model of the other engine, byte for byte; refusals."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from agents.archive.archive import Archive, table_of
from agents.cli import rebuild as rebuild_command
from agents.cli.main import main
from agents.kafka.records import Records
from agents.rebuilds import spark, spark_reading
from tests.oracle import partition_of
from tests.servers.common import FAST_START
from tests.shared import shared

WINDOWS = """
primary = "buy"
[indicators.buy]
removed_by = ["return"]
user_cap = 6
[indicators.view]
user_cap = 4
top_k = 5
[retention]
sampling = "recent"
window = 5_000
visitor_window = 900
min_primary = 2
source_partitions = 3
[priors]
popular = 3_000
recent = 600
trending = 2_400
hot = 2_400
"""
UNIFORM = """
primary = "buy"
anti_correlations = true
[indicators.buy]
user_cap = 5
[indicators.view]
min_llr = 0.5
[retention]
visitor_window = "none"
seed = 7
"""
BEGIN = 1_600_000_000
OF_SPARK = {
    "JDK_JAVA_OPTIONS": " ".join(FAST_START),
    "PYSPARK_PYTHON": sys.executable,
    "PYSPARK_SUBMIT_ARGS": "--master local[2] --conf spark.ui.enabled=false --conf spark.driver.host=127.0.0.1"
    " --conf spark.log.level=ERROR pyspark-shell",
}
Capture = pytest.CaptureFixture[str]
Report = dict[str, Any]


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    """One Spark for all tests here; those that begin none find it."""
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        for name, value in OF_SPARK.items():
            patch.setenv(name, value)
        made = SparkSession.builder.getOrCreate()
    yield made
    made.stop()


@pytest.fixture
def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many stretches and blocks of little data."""
    monkeypatch.setattr(spark_reading, "STRETCH", 400)
    monkeypatch.setattr(spark, "FOLD_EVERY", 500)
    monkeypatch.setattr(spark, "BLOCK_ENTRIES", 200)


def events(number: int, seed: int) -> list[Report]:
    """Purchases, views and returns of users with two tastes, late ones, deletions, and a clock that jumps."""
    rng = random.Random(seed)
    found: list[Report] = []
    for k in range(number):
        user, time = rng.randrange(40), BEGIN + 10 * k - rng.choice((0, 0, 0, 300, 2_000))
        item = 2 * rng.randrange(12) + (user % 2 if rng.random() < 0.8 else 0)
        kind = rng.choices(("buy", "view", "return", "$delete", "$clock"), (50, 40, 8, 1, 1))[0]
        event: Report = {"event_type": kind, "timestamp": time}
        if kind == "$clock":
            event["timestamp"] = BEGIN + 10 * k + rng.choice((0, 500))
        else:
            event["user_id"] = f"u{user}" if user else "用户"
        if not kind.startswith("$"):
            event["item_id"] = f"i{item}" if item else "ï"
        found.append(event)
    return found


def rebuilt(capsys: Capture, folder: Path, engine: str, *arguments: object) -> tuple[Report, bytes]:
    """What an engine reports, memory and seconds apart, and the model."""
    file = folder / f"{engine}.jsonl"
    capsys.readouterr()
    command = ["rebuild", *map(str, arguments), "--engine", engine, "--model", str(file), "--json"]
    assert main(command) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    for figure in ("seconds", "reading_seconds", "peak_memory_bytes"):
        report.pop(figure)
    return report, file.read_bytes()


def same(capsys: Capture, folder: Path, *arguments: object) -> Report:
    """The report, which is the same of both engines, as the model is."""
    local = rebuilt(capsys, folder, "local", *arguments)
    assert rebuilt(capsys, folder, "spark", *arguments) == local
    assert local[1]
    return local[0]


def files(folder: Path, log: list[Report]) -> list[Path]:
    """The log in files of every format, the first ones without clock events, which columns do not have."""
    quarter = len(log) // 4
    plain = [event for event in log[: 2 * quarter] if not event["event_type"].startswith("$")]
    half = len(plain) // 2
    paths = [folder / name for name in ("a.csv", "b.parquet", "c.jsonl", "d.jsonl.gz")]
    rows = [(e["user_id"], e["item_id"], e["event_type"], e["timestamp"]) for e in plain[:half]]
    paths[0].write_text("user,item,event,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    table = pa.Table.from_pylist(plain[half:])
    pyarrow.parquet.write_table(table, paths[1], row_group_size=60)
    paths[2].write_text("".join(json.dumps(event) + "\n" for event in log[2 * quarter : 3 * quarter]))
    paths[3].write_bytes(gzip.compress("".join(json.dumps(event) + "\n" for event in log[3 * quarter :]).encode()))
    return paths


def archive(folder: Path, log: list[Report], sources: int) -> str:
    """The log as an archive of so many partitions, in files that overlap; clock events are in one partition each."""
    url = str(folder / "archive")
    made = Archive(url)
    values: list[list[tuple[bytes | None, bytes]]] = [[] for _ in range(sources)]
    for k, event in enumerate(log):
        user = event.get("user_id")
        source = k % sources if user is None else partition_of(user, sources)
        values[source].append((None if user is None else user.encode(), json.dumps(event).encode()))
    for source, listed in enumerate(values):
        offsets = np.arange(len(listed)) * 2  # as transactions leave them
        times = np.full(len(listed), BEGIN * 1000 + 10**8)
        keys, texts = [key for key, _ in listed], [value for _, value in listed]
        records = Records(source, list(keys), list(texts), offsets, times, int(offsets[-1]) + 1)
        end, step = records.next_offset, max(1, records.next_offset // 5)
        for first in range(0, end, step):
            last = min(end - 1, first + step + 3)
            part = table_of(records.between(first, last + 1))
            about = {"topic": "interactions", "partitions": sources}
            made.write([part], source, first, last, "2020-09-13", about)
    return url


def settings_file(folder: Path, text: str) -> Path:
    """A configuration."""
    path = folder / "cco.toml"
    path.write_text(text)
    return path


def test_spark_is_begun_and_ended_where_none_is_there(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first test here: all others have a session, on the JVM that this one leaves."""
    from pyspark import SparkContext

    assert SparkContext._active_spark_context is None
    for name, value in OF_SPARK.items():
        monkeypatch.setenv(name, value)
    path = files(tmp_path, events(400, seed=4))[2]
    same(capsys, tmp_path, path, "--config", settings_file(tmp_path, UNIFORM))
    assert SparkContext._active_spark_context is None


# -- the same model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [WINDOWS, UNIFORM], ids=["windows", "uniform"])
@pytest.mark.usefixtures("session", "cut_small")
def test_files_of_every_format(text: str, tmp_path: Path, capsys: Capture) -> None:
    paths = files(tmp_path, events(2_000, seed=1))
    report = same(capsys, tmp_path, *paths, "--config", settings_file(tmp_path, text))
    assert report["events"] > 1_500 and report["users"] == 40 and report["rows"] > 20


@pytest.mark.usefixtures("session", "cut_small")
def test_an_archive_of_three_partitions(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it exact, the half sealed."""
    url = archive(tmp_path, events(3_000, seed=2), 3)
    report = same(capsys, tmp_path, "--archive", url, "--config", settings_file(tmp_path, WINDOWS), "--exact")
    assert report["events"] == 3_000 and set(report["offsets"]) == {"0", "1", "2"}
    half = ",".join(f"{source}:{offset // 2}" for source, offset in report["offsets"].items())
    monkeypatch.setattr(rebuild_command, "MB", 400)
    options = ("--archive", url, "--config", tmp_path / "cco.toml", "--end-offsets", half)
    part, model = rebuilt(capsys, tmp_path, "local", *options)
    assert part["events"] < 2_000
    small, model_of_small = rebuilt(capsys, tmp_path, "spark", *options, "--memory", "8")  # for 100 events at a time
    large, model_of_large = rebuilt(capsys, tmp_path, "spark", *options, "--memory", "100000")
    assert model == model_of_small == model_of_large
    assert small.pop("pieces") > 2 * large.pop("pieces") and small == large == part


@pytest.mark.usefixtures("session", "cut_small")
def test_bad_records_are_counted_and_told_in_the_same_way(tmp_path: Path, capsys: Capture) -> None:
    lines = [json.dumps(event) for event in events(600, seed=3)]
    for at in range(5, 600, 50):
        lines[at] = random.Random(at).choice(['{"bad"', "[]", '{"event_type": "buy", "user_id": "u1"}', '{"event": 7}'])
    lines[100:100] = ['{"event": "$set", "entityType": "item", "entityId": "i1", "properties": {"colour": "red"}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:300]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[300:]) + "\n")
    told = {}
    for engine in ("local", "spark"):
        letters = tmp_path / f"{engine}.letters"
        arguments = (tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--dead-letters", letters)
        report, model = rebuilt(capsys, tmp_path, engine, *arguments, "-c", settings_file(tmp_path, UNIFORM))
        told[engine] = (report, model, letters.read_text())
    assert told["spark"] == told["local"]
    assert told["spark"][0]["rejected"] == told["spark"][2].count("\n") > 12


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("movietweetings-100k", 'primary = "like"\n[indicators.like]\n[indicators.dislike]\n[indicators.neutral]\n'
         '[retention]\nsampling = "recent"\nwindow = "45d"\nmin_primary = 2\nsource_partitions = 2\n'),
        ("ur-handmade", 'anti_correlations = true\n[indicators.purchase]\n[indicators.view]\n'
         '[indicators.category-pref]\n[retention]\nmin_primary = 3\n'),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("session")
def test_real_data(data: str, text: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark, "FOLD_EVERY", 20_000)
    source = shared(f"data/{data}/events.csv.gz")
    same(capsys, tmp_path, source, "--config", settings_file(tmp_path, text))


@pytest.mark.usefixtures("session")
def test_no_events_at_all(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.jsonl").write_text("")
    report, model = rebuilt(capsys, tmp_path, "spark", tmp_path / "a.jsonl")
    assert (report["events"], report["rows"], model) == (0, 0, b"")


# -- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--log"], "--log goes with --engine local: --engine spark reads files or --archive, whole"),
        (["--archive", "x", "--tail"], "--tail goes with --engine local"),
        (["--archive", "x", "--resume", "y"], "--resume goes with --engine local"),
        (["--archive", "x", "--seed"], "--seed goes with --engine local"),
        (["-"], "--engine spark reads files on many machines, and cannot read standard input"),
        (["x", "--threads", "2"], "--threads goes with --engine local: Spark has its own configuration of cores"),
        (["missing.csv"], "missing.csv: No such file or directory"),
        (["--archive", "missing"], "missing: there is no archive: `cco archive run` makes it"),
    ],
)
def test_what_spark_cannot_do_is_refused_before_it_starts(arguments: list[str], told: str, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["rebuild", *arguments, "--engine", "spark"]) == 2
    assert f"cco: error: {told}" in capsys.readouterr().err


@pytest.mark.usefixtures("session")
def test_what_a_task_has_to_say_comes_to_the_user(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.csv").write_text("user,thing\nu1,i1\n")
    capsys.readouterr()
    assert main(["rebuild", str(tmp_path / "a.csv"), "--engine", "spark"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cco: error: ")]
    capsys.readouterr()
    assert main(["rebuild", str(tmp_path / "a.csv")]) == 2
    assert errors == capsys.readouterr().err.splitlines()


def test_spark_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,event\nu1,i1,purchase\n")
    hidden = "import sys; sys.modules['pyspark'] = None\nfrom agents.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", hidden, "rebuild", str(tmp_path / "a.csv"), "--engine", "spark"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "cco: error: this needs the package pyspark, which is not installed: pip install 'streaming-cco[spark]'\n"
    )
    bare = {key: value for key, value in os.environ.items() if key != "JAVA_HOME"} | {"PATH": str(tmp_path)}
    command = [sys.executable, "-m", "agents", "rebuild", str(tmp_path / "a.csv"), "--engine", "spark"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=bare)
    assert done.returncode == 2
    assert done.stderr == (
        "cco: error: --engine spark needs Java 17 or newer, and there is no `java` on the PATH: install one\n"
    )

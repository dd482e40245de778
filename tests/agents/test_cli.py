"""The `cco` command: results, exit codes, errors in one line, output for machines."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pytest

from agents.cli.main import main

CONFIG = """
primary = "purchase"
[indicators.purchase]
removed_by = ["return"]
[indicators.view]
weight = 0.5
"""
ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


def events(number: int = 3_000, seed: int = 1) -> list[dict[str, Any]]:
    """Purchases, views and returns of 60 users with two tastes: items of one parity go together."""
    choose = random.Random(seed)
    found = []
    for k in range(number):
        user = choose.randrange(60)
        item = 2 * choose.randrange(20) + (user % 2 if choose.random() < 0.9 else 1 - user % 2)
        kind = choose.choices(("purchase", "view", "return"), (10, 10, 1))[0]
        found.append({"user": f"u{user}", "item": f"i{item}", "event": kind, "timestamp": 1_500_000_000 + 60 * k})
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same events in every format, a configuration, metadata, and a model made by the stream."""
    folder = tmp_path_factory.mktemp("data")
    records = events()
    csv = "user,item,event,timestamp\n" + "".join(",".join(map(str, r.values())) + "\n" for r in records)
    (folder / "events.csv").write_text(csv)
    (folder / "events.csv.gz").write_bytes(gzip.compress(csv.encode()))
    lines = "".join(json.dumps(r) + "\n" for r in records)
    (folder / "events.jsonl").write_text(lines)
    (folder / "events.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), folder / "events.parquet")
    (folder / "cco.toml").write_text(CONFIG)
    items = "".join(f"i{k},Thing {k},{'red' if k % 4 < 2 else 'blue'}\n" for k in range(40))
    (folder / "items.csv").write_text("item,title,colour\n" + items)
    arguments = [
        "replay",
        str(folder / "events.csv"),
        "-c",
        str(folder / "cco.toml"),
        "-m",
        str(folder / "model.jsonl"),
    ]
    assert main(arguments) == 0
    return folder


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def report(capsys: Capture, *arguments: object, code: int = 0) -> dict[str, Any]:
    """The JSON document that a command prints."""
    found, out, _ = run(capsys, *arguments, "--json")
    assert found == code
    assert out.count("\n") == 1
    parsed: dict[str, Any] = json.loads(out)
    return parsed


def one_error(err: str) -> str:
    """The only line of standard error."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("cco: error: ")
    return lines[0]


def cco(*arguments: object, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "agents", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )


# -- models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["events.csv", "events.csv.gz", "events.jsonl", "events.jsonl.gz", "events.parquet"])
def test_stream_equals_batch_in_every_format(data: Path, tmp_path: Path, capsys: Capture, name: str) -> None:
    batch = tmp_path / "batch.jsonl"
    found = report(capsys, "rebuild", data / name, "-c", data / "cco.toml", "-m", batch)
    assert found["events"] == 3_000
    assert found["model_bytes"] == batch.stat().st_size > 10_000
    assert batch.read_bytes() == (data / "model.jsonl").read_bytes()
    assert report(capsys, "compare", batch, data / "model.jsonl")["equal"] is True


def test_partitions_and_threads_change_nothing(data: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ["-c", data / "cco.toml", "-m", tmp_path / "model", "--item-partitions", 3, "--threads", 2]
    found = report(capsys, "replay", data / "events.csv", *options)
    assert (tmp_path / "model").read_bytes() == (data / "model.jsonl").read_bytes()
    assert found["rows_published"] > 0 and found["patches"] > 0 and found["retained"]["purchase"] > 100
    options[3] = tmp_path / "batch"
    assert run(capsys, "rebuild", data / "events.csv", *options[:4], "--threads", 2)[0] == 0
    assert (tmp_path / "batch").read_bytes() == (data / "model.jsonl").read_bytes()


def test_exact_weights(data: Path, tmp_path: Path, capsys: Capture) -> None:
    for command in ("replay", "rebuild"):
        options = ["-c", data / "cco.toml", "--exact", "-m", tmp_path / command]
        assert run(capsys, command, data / "events.csv", *options)[0] == 0
    exact = (tmp_path / "replay").read_bytes()
    assert exact == (tmp_path / "rebuild").read_bytes()
    assert exact != (data / "model.jsonl").read_bytes()


def test_memory_bounds_what_is_counted_at_a_time(tmp_path: Path, capsys: Capture) -> None:
    """560,000 interactions are retained: 9 MB while they are folded."""
    number, users = np.arange(600_000), 6_000
    table = pa.table({
        "user": pc.binary_join_element_wise("u", pa.array(number % users).cast(pa.string()), ""),
        "item": pc.binary_join_element_wise("i", pa.array(number // users * 37 % 93).cast(pa.string()), ""),
        "event": pa.repeat("purchase", number.size), "timestamp": pa.array(1_500_000_000 + number),
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "events.parquet")
    (tmp_path / "cco.toml").write_text("")
    command = ("rebuild", tmp_path / "events.parquet", "-c", tmp_path / "cco.toml")
    whole = report(capsys, *command, "--memory", 1_000, "-m", tmp_path / "whole")
    small = report(capsys, *command, "--memory", 16, "-m", tmp_path / "small")
    assert (whole["pieces"], whole["events"]) == (1, number.size) and small["pieces"] > 1
    assert (tmp_path / "small").read_bytes() == (tmp_path / "whole").read_bytes()
    code, _, err = run(capsys, *command, "--memory", 8)
    assert (code, "--memory: " in err, "MB that are allowed: allow more" in one_error(err)) == (2, True, True)


def test_several_files_follow_each_other(data: Path, tmp_path: Path, capsys: Capture) -> None:
    header, *lines = (data / "events.csv").read_text().splitlines(keepends=True)
    (tmp_path / "a.csv").write_text(header + "".join(lines[:1000]))
    (tmp_path / "b.csv").write_text(header + "".join(lines[1000:]))
    options = ["-c", data / "cco.toml", "-m", tmp_path / "model"]
    assert run(capsys, "replay", tmp_path / "a.csv", tmp_path / "b.csv", *options)[0] == 0
    assert (tmp_path / "model").read_bytes() == (data / "model.jsonl").read_bytes()


def test_standard_input_and_output(data: Path) -> None:
    done = cco("replay", "-", "-c", data / "cco.toml", "-m", "-", stdin=(data / "events.csv.gz").read_bytes())
    assert done.returncode == 0, done.stderr
    assert done.stdout == (data / "model.jsonl").read_bytes()
    assert b"events accepted" in done.stderr


def test_a_state_goes_on_where_it_was(data: Path, tmp_path: Path, capsys: Capture) -> None:
    whole = (data / "events.csv").read_bytes()
    part = tmp_path / "events.csv"
    part.write_bytes(b"".join(whole.splitlines(keepends=True)[:1001]))
    command = ["replay", part, "-c", data / "cco.toml", "--state", tmp_path / "state", "-m", tmp_path / "model"]
    assert report(capsys, *command)["resumed_records"] == 0
    part.write_bytes(whole)
    found = report(capsys, *command)
    assert found["resumed_records"] == 1_000
    assert found["events"] == 3_000
    assert found["state"]["commits"] >= 1
    assert (tmp_path / "model").read_bytes() == (data / "model.jsonl").read_bytes()
    again, _, err = run(capsys, *command)
    assert (again, err) == (0, "")
    assert (tmp_path / "model").read_bytes() == (data / "model.jsonl").read_bytes()
    other = tmp_path / "cco.toml"  # what decides rows alone may be changed: the state is as good as before
    other.write_text(CONFIG.replace("[indicators.view]", "top_k = 3\nmin_llr = 2.0\n[indicators.view]\ntop_k = 2"))
    command[command.index("-c") + 1] = other
    assert report(capsys, *command)["resumed_records"] == 3_000
    assert run(capsys, "rebuild", part, "-c", other, "-m", tmp_path / "batch")[0] == 0
    assert (tmp_path / "model").read_bytes() == (tmp_path / "batch").read_bytes()


def test_dead_letters_of_a_state_add_up(data: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = (data / "events.jsonl").read_text().splitlines(keepends=True)
    source, letters = tmp_path / "events.jsonl", tmp_path / "dead.jsonl"
    command = ["replay", source, "-c", data / "cco.toml", "--state", tmp_path / "state", "--dead-letters", letters]
    source.write_text("".join(["first\n", *lines[:500]]))
    assert report(capsys, *command)["rejected"] == 1
    source.write_text("".join(["first\n", *lines[:500], "second\n", *lines[500:]]))
    assert report(capsys, *command)["rejected"] == 2
    assert [json.loads(line)["line"] for line in letters.read_text().splitlines()] == [1, 502]


def test_a_state_is_asked_without_a_configuration(data: Path, tmp_path: Path, capsys: Capture) -> None:
    state = ["--state", tmp_path / "state"]
    command = ["replay", data / "events.csv", *state, "--checkpoint-every"]
    for wrong in ("0", "nan", "inf", "3601", "soon"):
        code, _, err = run(capsys, *command, wrong)
        assert code == 2 and "checkpoint-every" in err
    assert report(capsys, *command, "0.01", "-c", data / "cco.toml")["applied"] == [3_000]
    assert report(capsys, *command, "1")["resumed_records"] == 3_000
    code, out, _ = run(capsys, *command, "1")
    assert code == 0 and "applied, by source    3,000\n" in out
    for asked in (["recommend", "--user", "u2"], ["explain", "i4", "--items", "i2"]):
        plain = report(capsys, *asked, *state)
        assert plain == report(capsys, *asked, *state, "-c", data / "cco.toml")
        (tmp_path / "double.toml").write_text(CONFIG.replace("[indicators.view]", "weight = 2.0\n[indicators.view]"))
        assert plain != report(capsys, *asked, *state, "-c", tmp_path / "double.toml")
    assert report(capsys, "inspect", tmp_path / "state")["position"] == [3_000]


def test_a_state_of_another_configuration(data: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["replay", data / "events.csv", "-c", data / "cco.toml", "--state", tmp_path / "state"]
    assert run(capsys, *command)[0] == 0
    (tmp_path / "other.toml").write_text(CONFIG + "user_cap = 7\n")
    code, _, err = run(capsys, "inspect", tmp_path / "state", "-c", tmp_path / "other.toml")
    assert code == 2
    assert "user_cap" in one_error(err)


# -- bad input --------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(data: Path, tmp_path: Path) -> Path:
    """The events with eight bad lines between."""
    lines = (data / "events.jsonl").read_text().splitlines(keepends=True)
    bad = [
        "{\n",
        '{"user": "", "item": "i1", "event": "view"}\n',
        '{"user": "u1", "item": "i1", "event": "buy"}\n',
        "7\n",
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(bad + lines[:1500] + bad + lines[1500:]))
    return path


@pytest.mark.parametrize("command", ["replay", "rebuild"])
def test_bad_records_are_reported_and_harm_no_neighbour(
    data: Path, spoilt: Path, tmp_path: Path, capsys: Capture, command: str
) -> None:
    letters = tmp_path / "dead.jsonl"
    options = ["-c", data / "cco.toml", "-m", tmp_path / "model", "--dead-letters", letters]
    code, _, err = run(capsys, command, spoilt, *options)
    assert code == 0
    assert (tmp_path / "model").read_bytes() == (data / "model.jsonl").read_bytes()
    *shown, last = err.splitlines()
    assert [line.split(": ")[1] for line in shown] == [f"{spoilt}:{k}" for k in (1, 2, 3, 4, 1505)]
    assert "8 records rejected, the first 5 shown" in last and str(letters) in last
    written = [json.loads(line) for line in letters.read_text().splitlines()]
    assert [letter["line"] for letter in written] == [1, 2, 3, 4, 1505, 1506, 1507, 1508]
    assert all(letter["reason"] and letter["file"] == str(spoilt) for letter in written)


def test_strict(data: Path, spoilt: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ["-c", data / "cco.toml", "-m", tmp_path / "model", "--strict"]
    code, _, err = run(capsys, "replay", spoilt, *options)
    assert code == 2
    assert "8 records rejected" in err.splitlines()[-1]
    assert not (tmp_path / "model").exists()
    assert run(capsys, "replay", data / "events.jsonl", *options)[0] == 0


def test_only_bad_records(data: Path, tmp_path: Path, capsys: Capture) -> None:
    code, out, err = run(
        capsys, "rebuild", data / "events.csv.gz", "-m", tmp_path / "model", "--config", data / "no.toml"
    )
    assert (code, out) == (2, "")
    assert "no.toml" in one_error(err)
    (tmp_path / "cco.toml").write_text('primary = "listen"')
    code, _, err = run(capsys, "rebuild", data / "events.csv", "-c", tmp_path / "cco.toml", "-m", tmp_path / "model")
    assert code == 2
    assert "3,000 records rejected" in err and "event types" in err
    assert not (tmp_path / "model").exists()


def test_an_empty_file(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty.csv").write_text("")
    for command in ("replay", "rebuild"):
        code, _, err = run(capsys, command, tmp_path / "empty.csv", "-m", tmp_path / command)
        assert code == 0
        assert err == "cco: warning: the input has no records\n"
        assert (tmp_path / command).read_bytes() == b""


def test_errors_are_one_readable_line(data: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.toml").write_text('[retention]\nsamplng = "recent"\n')
    (tmp_path / "bad.csv").write_text("who,what\n1,2\n")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    good = data / "events.csv"
    source = ["-e", good, "-c", data / "cco.toml"]
    cases: list[tuple[list[object], list[str]]] = [
        (["replay", good, "-c", tmp_path / "bad.toml"], ["bad.toml", "samplng", "sampling"]),
        (["replay", good, "-c", tmp_path / "binary.toml"], ["binary.toml", "UTF-8"]),
        (["replay", tmp_path / "none.csv"], ["none.csv", "No such file"]),
        (["replay", tmp_path / "bad.csv"], ["bad.csv", "who"]),
        (["replay", good, "-m", tmp_path / "no" / "model"], ["no/model", "no folder"]),
        (["replay", good, "-m", tmp_path], ["is a folder"]),
        (["replay", good, "-m", "-", "--json"], ["--json", "standard output"]),
        (["recommend", "--user", "u1"], ["--state", "--events"]),
        (["recommend", "--user", "u1", "--item", "i1", *source], ["--user", "--item"]),
        (["recommend", *source], ["--user", "--item", "--items"]),
        (["recommend", "--items", " , ", *source], ["--items", "at least one"]),
        (["recommend", "--item", "i1", *source, "--boost", "a=b"], ["--boost a=b", "factor"]),
        (["recommend", "--item", "i1", *source, "--include", "a"], ["--include a", "name=value"]),
        (["recommend", "--item", "i1", *source, "--prior", "recnt=1"], ["recnt", "recent"]),
        (["recommend", "--item", "i1", *source, "--prior", "recent=x"], ["'x'", "not a number"]),
        (["inspect", good], ["events.csv", "line 1"]),
        (["inspect", tmp_path], ["state"]),
    ]
    for arguments, words in cases:
        code, out, err = run(capsys, *arguments)
        line = one_error(err)
        assert (code, out) == (2, ""), arguments
        assert all(word in line for word in words), (arguments, line)


def test_usage_errors(capsys: Capture) -> None:
    for arguments in (
        ["replay"],
        ["replay", "x", "--threads", "0"],
        ["nonsense"],
        ["compare", "x", "y"],
        ["demo", "--evnts"],
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("cco: error: ")
        assert "Try: cco --help" in err


def test_an_internal_error_is_reported_as_one(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("of all things\nand more")

    monkeypatch.setattr("agents.doctor.examine", broken)
    code, out, err = run(capsys, "doctor")
    assert (code, out) == (3, "")
    assert "ZeroDivisionError: of all things" in one_error(err)
    monkeypatch.setenv("CCO_TRACEBACK", "1")
    assert "Traceback" in run(capsys, "doctor")[2]


def test_a_model_that_cannot_be_written_leaves_the_old_one(data: Path, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "model"
    target.write_text("old")
    command = ["rebuild", data / "events.csv", "-c", data / "cco.toml", "-m", target]
    limited = f"ulimit -f 1; exec {sys.executable} -m agents " + " ".join(map(str, command))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", limited], capture_output=True, env=environment, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert b"cco: error: " in done.stderr and b"too large" in done.stderr
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert run(capsys, *command)[0] == 0
    assert target.read_bytes() == (data / "model.jsonl").read_bytes()


# -- questions --------------------------------------------------------------------------------------------


def test_recommend_for_a_user(data: Path, capsys: Capture) -> None:
    source = ["-e", data / "events.csv", "-c", data / "cco.toml", "--metadata", data / "items.csv"]
    found = report(capsys, "recommend", "--user", "u2", "--num", 6, *source)
    hits = found["recommendations"]
    bought = set(found["history"]["purchase"])
    assert len(hits) == 6
    assert not bought & {hit["item"] for hit in hits}
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    again = report(capsys, "recommend", "--user", "u2", "--num", 40, "--seen", *source)["recommendations"]
    assert bought & {hit["item"] for hit in again}


def test_recommend_for_a_basket_with_rules(data: Path, capsys: Capture) -> None:
    source = ["-e", data / "events.csv", "-c", data / "cco.toml", "--metadata", data / "items.csv"]
    asked = ["recommend", "--items", "i2,i4", "--num", 5, *source]
    plain = report(capsys, *asked)["recommendations"]
    assert sum(int(hit["item"][1:]) % 2 == 0 for hit in plain) >= 4  # one taste: even items go with even ones
    red = report(capsys, *asked, "--include", "colour=red")["recommendations"]
    assert {hit["properties"]["colour"] for hit in red} == {"red"}
    assert red == report(capsys, *asked, "--exclude", "colour=blue")["recommendations"]
    blue = report(capsys, *asked, "--boost", "colour=blue:1000")["recommendations"]
    assert blue[0]["properties"]["colour"] == "blue"
    assert blue[0]["score"] > plain[0]["score"]
    best = plain[0]["item"]
    without = report(capsys, *asked, "--exclude-items", best)["recommendations"]
    assert best not in {hit["item"] for hit in without}
    code, out, _ = run(capsys, *asked)
    assert code == 0
    assert plain[0]["item"] in out and plain[0]["properties"]["title"] in out


def test_recommend_to_a_stranger(data: Path, capsys: Capture) -> None:
    source = ["-e", data / "events.csv", "-c", data / "cco.toml"]
    code, out, err = run(capsys, "recommend", "--user", "nobody", *source)
    assert code == 0
    assert "popular" in out
    assert err == "cco: warning: nothing is known of user nobody\n"
    code, _, err = run(capsys, "recommend", "--items", "i2,martian", *source)
    assert code == 0
    assert "martian" in err


def test_nothing_found(data: Path, capsys: Capture) -> None:
    source = ["-e", data / "events.csv", "-c", data / "cco.toml"]
    code, out, err = run(capsys, "recommend", "--item", "i2", "--include", "colour=none", *source)
    assert (code, out, err) == (1, "", "cco: nothing to recommend\n")
    assert report(capsys, "recommend", "--item", "i2", "--include", "x=y", *source, code=1)["recommendations"] == []
    code, _, err = run(capsys, "explain", "martian", "--items", "i2", *source)
    assert (code, err) == (1, "cco: nothing in the history speaks for martian\n")


def test_explain(data: Path, capsys: Capture) -> None:
    source = ["-e", data / "events.csv", "-c", data / "cco.toml"]
    best = report(capsys, "recommend", "--items", "i2,i4", *source)["recommendations"][0]
    found = report(capsys, "explain", best["item"], "--items", "i2,i4", *source)
    assert found["score"] == pytest.approx(best["score"], rel=1e-6)
    histories: dict[str, set[str]] = {}
    for event in events():
        if event["event"] == "purchase":
            histories.setdefault(event["user"], set()).add(event["item"])
        elif event["event"] == "return":
            histories.get(event["user"], set()).discard(event["item"])
    for reason in found["reasons"]:
        row = {user for user, items in histories.items() if best["item"] in items}
        column = {user for user, items in histories.items() if reason["history_item"] in items}
        members = sum(bool(items) for items in histories.values())
        counts = (len(row & column), len(row), len(column), members)
        assert (reason["k"], reason["n_row"], reason["n_col"], reason["n"]) == counts
    code, out, _ = run(capsys, "explain", best["item"], "--items", "i2,i4", *source)
    assert code == 0
    assert all(reason["history_item"] in out for reason in found["reasons"])


def test_brackets_in_ids_are_shown_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    lines = "".join(f"u{k},[bold]{j}[/x],purchase\n" for k in range(6) for j in range(1 + k % 3))
    (tmp_path / "events.csv").write_text("user,item,event\n" + lines)
    code, out, _ = run(capsys, "recommend", "--user", "u0", "-e", tmp_path / "events.csv")
    assert code == 0
    assert "[bold]1[/x]" in out


# -- looking in -------------------------------------------------------------------------------------------


def test_inspect_a_model(data: Path, capsys: Capture) -> None:
    found = report(capsys, "inspect", data / "model.jsonl", "--num", 3)
    rows = [json.loads(line) for line in (data / "model.jsonl").read_text().splitlines()]
    assert found["items"] == len(rows)
    entries = sum(len(row["indicators"].get("view", [])) for row in rows)
    assert found["indicators"]["view"]["correlators"] == entries
    assert found["bytes"] == (data / "model.jsonl").stat().st_size
    weights = [sum(w for field in row["indicators"].values() for _, w in field) for row in rows]
    assert [row["weight"] for row in found["heaviest"]] == pytest.approx(sorted(weights, reverse=True)[:3])
    code, out, _ = run(capsys, "inspect", data / "model.jsonl", "--num", 3)
    assert code == 0
    assert found["sha256"] in out and found["heaviest"][0]["item"] in out


def test_inspect_a_state(data: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ["-c", data / "cco.toml"]
    assert run(capsys, "replay", data / "events.csv", *options, "--state", tmp_path / "state")[0] == 0
    found = report(capsys, "inspect", tmp_path / "state", *options)
    assert found["position"] == [3_000]
    assert found["users"] == 60
    assert found["bytes_on_disk"] > 0
    users = [row["users"] for row in found["heaviest"]]
    assert users == sorted(users, reverse=True)
    assert run(capsys, "inspect", tmp_path / "state", *options)[0] == 0
    asked = ["recommend", "--user", "u2", *options]
    fresh = report(capsys, *asked, "-e", data / "events.csv")
    kept = report(capsys, *asked, "--state", tmp_path / "state")
    assert kept["recommendations"] == fresh["recommendations"]


def test_compare(data: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = (data / "model.jsonl").read_text().splitlines(keepends=True)
    changed = json.loads(lines[3])
    changed["indicators"]["purchase"][0][1] += 0.25
    other = tmp_path / "other.jsonl"
    other.write_text("".join([*lines[:3], json.dumps(changed) + "\n", *lines[4:-1]]))
    code, out, _ = run(capsys, "compare", data / "model.jsonl", other)
    assert code == 1
    assert changed["item"] in out and "entry 1" in out
    found = report(capsys, "compare", data / "model.jsonl", other, code=1)
    assert found["equal"] is False
    assert any(json.loads(lines[-1])["item"] in line for line in found["differences"])
    other.write_text("".join(lines[:2]) + "nonsense\n")
    code, _, err = run(capsys, "compare", data / "model.jsonl", other)
    assert code == 2
    assert f"{other}: line 3" in one_error(err)


def test_help_names_every_command() -> None:
    done = cco("--help")
    assert done.returncode == 0
    shown = done.stdout.decode()
    names = ("demo", "replay", "rebuild", "recommend", "explain", "inspect", "compare", "doctor")
    assert all(f"\n  {name}" in shown for name in names)


def test_a_reader_that_goes_away(data: Path) -> None:
    pipeline = f"{sys.executable} -m agents rebuild {data}/events.csv -c {data}/cco.toml -m - | head -c 10 >/dev/null"
    script = pipeline + '; exit "${PIPESTATUS[0]}"'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=environment, timeout=300, check=False)
    assert b"Traceback" not in done.stderr and b"internal" not in done.stderr
    assert done.returncode == 0

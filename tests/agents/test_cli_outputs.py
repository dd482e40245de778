"""What the commands write never overwrites what they read or keep; and what they show on a terminal."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from rich.progress import Progress

from agents.cli.main import entry, main

EVENTS = "user,item,event,timestamp\nu1,i1,purchase,1000\nu2,i1,purchase,1000\nbad line\n"
Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1, shown.err
    return shown.err


@pytest.fixture
def events(tmp_path: Path) -> Path:
    (tmp_path / "events.csv").write_text(EVENTS)
    (tmp_path / "cco.toml").write_text("")
    (tmp_path / "link").symlink_to("events.csv")
    os.link(tmp_path / "events.csv", tmp_path / "hard")
    return tmp_path / "events.csv"


@pytest.mark.parametrize("command", ["replay", "rebuild"])
@pytest.mark.parametrize("option", ["--model", "--dead-letters"])
@pytest.mark.parametrize("name", ["events.csv", "link", "hard", "cco.toml", "../{}/events.csv"])
def test_an_output_that_is_an_input_is_refused(
    events: Path, capsys: Capture, command: str, option: str, name: str
) -> None:
    output = events.parent / name.format(events.parent.name)
    before = sorted(events.parent.iterdir())
    said = refused(capsys, command, events, "--config", events.parent / "cco.toml", option, output)
    assert f"{option} {output}: is the same file as " in said
    assert events.read_text() == EVENTS and sorted(events.parent.iterdir()) == before


def test_two_outputs_in_one_file_are_refused(events: Path, capsys: Capture) -> None:
    said = refused(capsys, "replay", events, "--model", events.parent / "x", "--dead-letters", events.parent / "x")
    assert "is the same file as --dead-letters" in said and not (events.parent / "x").exists()
    assert main(["replay", str(events), "--model", "/dev/null", "--dead-letters", "/dev/null"]) == 0


@pytest.mark.parametrize("option", ["--model", "--dead-letters"])
def test_an_output_inside_of_the_state_is_refused(events: Path, capsys: Capture, option: str) -> None:
    state = events.parent / "state"
    assert main(["replay", str(events), "--state", str(state)]) == 0
    capsys.readouterr()
    (events.parent / "also").symlink_to(state)
    before = (state / "state.json").read_bytes()
    for output in (state / "state.json", state / "new", events.parent / "also" / "new"):
        assert "lies in the state directory" in refused(capsys, "replay", events, "--state", state, option, output)
    assert (state / "state.json").read_bytes() == before and not (state / "new").exists()


def test_strict_remembers_what_earlier_runs_rejected(events: Path, capsys: Capture) -> None:
    model = events.parent / "model"
    arguments = ["replay", events, "--state", events.parent / "state", "--strict", "--model", model]
    for _ in range(3):
        assert main([str(argument) for argument in arguments]) == 2
        assert "--strict" in capsys.readouterr().err and not model.exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_ends_nothing(events: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events.write_text(EVENTS.replace("i1", "\u00e9\u4e2d"))
    for options in (["--json"], []):
        shown = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding, write_through=True))
        monkeypatch.setattr(sys, "argv", ["cco", "recommend", "--events", str(events), "--user", "\u4e2d", *options])
        with pytest.raises(SystemExit) as ended:
            entry()
        assert ended.value.code == 0 and shown.getvalue()
        if options:
            assert json.loads(shown.getvalue().decode(encoding))["recommendations"][0]["item"] == "\u00e9\u4e2d"


def test_an_item_file_without_line_breaks_is_explained(events: Path, capsys: Capture) -> None:
    (events.parent / "items.csv").write_bytes(b"item," + b"x" * (1 << 20) + b"\n1,2\n")
    arguments = ["recommend", "--user", "u1", "--events", events, "--metadata", events.parent / "items.csv"]
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert "the first line is longer than 1048576 bytes: is it CSV at all?" in said


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A terminal for stderr; has what came to it once it is left."""
    shown: list[str] = []
    ours, theirs = os.openpty()

    def read() -> None:
        with suppress(OSError):  # Linux says EIO when nobody has it open any more
            while data := os.read(ours, 1 << 16):
                pieces.append(data)

    pieces: list[bytes] = []
    reader = threading.Thread(target=read)
    with monkeypatch.context() as patched, os.fdopen(theirs, "w", encoding="utf-8") as stderr:
        patched.setenv("TERM", "xterm")
        patched.setenv("COLUMNS", "150")
        patched.setattr(sys, "stderr", stderr)
        reader.start()
        yield shown
    reader.join()
    os.close(ours)
    shown.append(b"".join(pieces).decode())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("replay", ("streaming", "3,000 events", "publishing what waited")),
        ("rebuild", ("reading", "3,000 events", "computing the rows")),
    ],
)
def test_progress_on_a_terminal(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str, words: tuple[str, ...]
) -> None:
    """From the first record to the last row: also while rows are published that waited. Nowhere else."""
    update = Progress.update
    monkeypatch.setattr("agents.engine.PUBLISH_ITEMS", 1)
    monkeypatch.setattr("agents.engine.LEAST_PUBLISH_SECONDS", 0.0)
    monkeypatch.setattr(Progress, "update", lambda *to, **what: update(*to, **what, refresh=True))  # however short
    events = tmp_path / "events.csv"
    events.write_text("user,item,event\n" + "".join(f"u{k % 9},i{k},purchase\n" for k in range(3000)))
    with terminal(monkeypatch) as shown:
        assert main([command, str(events)]) == 0
    said = shown[0]
    places = [said.find(part) for part in words]
    assert places == sorted(places) and places[0] >= 0, said
    assert "100%" in said[places[1] - 99 : places[1]] and "  0%" not in said[places[2] - 99 :]
    for quiet in ([], ["--json"]):
        capsys.readouterr()
        assert main([command, str(events), *quiet]) == 0
        assert capsys.readouterr().err == ""
    with terminal(monkeypatch) as shown:
        assert main([command, str(events), "--json"]) == 0
    assert shown == [""]

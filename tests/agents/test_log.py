"""Logs: JSON or text, ours and the libraries', with fields."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from agents.log import get_logger, set_up


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_carry_fields() -> None:
    stream = io.StringIO()
    set_up("json", stream)
    get_logger(topic="edits", partition=3).info("resync asked", source=1, offset=17)
    [line] = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "message": "resync asked", "level": "info", "logger": "cco",
        "topic": "edits", "partition": 3, "source": 1, "offset": 17,
    }  # fmt: skip


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    for stream, is_text in ((Terminal(), True), (io.StringIO(), False)):
        set_up("auto", stream)
        get_logger().info("started", port=8080)
        [line] = stream.getvalue().splitlines()
        assert line.startswith("{") != is_text
        assert "started" in line
        assert ("\x1b[" in line) == is_text


def test_text_in_a_file_has_no_colours() -> None:
    stream = io.StringIO()
    set_up("text", stream)
    get_logger().warning("lag", partition=2)
    assert "\x1b[" not in stream.getvalue()
    assert "partition=2" in stream.getvalue()


def test_libraries_are_heard_from_warnings_upwards() -> None:
    stream = io.StringIO()
    set_up("json", stream)
    for name in ("faust.app", "aiokafka.conn", "mode.worker"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("node %s is not ready", 3, extra={"broker": 3})
    assert [(line["logger"], line["level"], line["message"], line["broker"]) for line in lines(stream)] == [
        (name, "warning", "node 3 is not ready", 3) for name in ("faust.app", "aiokafka.conn", "mode.worker")
    ]


def test_warnings_of_python_are_lines_too() -> None:
    stream = io.StringIO()
    set_up("json", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    [line] = lines(stream)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "this is old" in line["message"]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_tracebacks_show_no_variables(log_format: Any) -> None:
    stream = io.StringIO()
    set_up(log_format, stream)
    password = "s3cret"
    try:
        raise ValueError(f"a login of {len(password)} characters")
    except ValueError:
        get_logger().exception("failed")
    assert "ValueError: a login of 6 characters" in stream.getvalue()
    assert "s3cret" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1 or log_format == "text"


def test_a_second_set_up_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    set_up("json", first)
    logger = get_logger(partition=1)
    set_up("json", second)
    logger.info("once")
    assert not first.getvalue()
    assert len(lines(second)) == 1


def test_logs_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("json")
    get_logger().info("here")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert json.loads(shown.err)["message"] == "here"
    assert sys.stderr is not None


def test_what_json_has_no_word_for_is_text() -> None:
    stream = io.StringIO()
    set_up("json", stream)
    get_logger().info("odd", raw=b"\xff", path=io.StringIO)
    assert lines(stream)[0]["raw"] == "b'\\xff'"

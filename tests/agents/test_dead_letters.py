"""The format of dead letters, and what the command says without a broker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.cli.main import main
from agents.kafka.dead_letters import LIMIT, DeadLetter, DeadLetterError, Origin, marked, marker

NOW_MS = 1_476_884_080_123
LETTER = DeadLetter("json", "not valid JSON", "interactions", 2, 17, NOW_MS, b"u1", b"{")


@pytest.mark.parametrize(
    "letter",
    [
        LETTER,
        replace(LETTER, key=None, value=None),
        replace(LETTER, key=b"", value=b""),
        replace(LETTER, key=b"\x00\xff", value=bytes(range(256)), code="message", reason="reason — ü\n2"),
        replace(LETTER, timestamp=-1, headers=(("trace", b"\x01"), ("code", b"their own"), ("trace", b""))),
        replace(LETTER, size=5_000_000),
    ],
)
def test_a_letter_comes_back_as_it_was(letter: DeadLetter) -> None:
    assert DeadLetter.from_record(*letter.to_record()) == letter


def test_the_record_is_readable_with_any_tool() -> None:
    key, value, headers = LETTER.to_record()
    assert (key, value) == (b"u1", b"{")
    assert dict(headers) == {
        "code": b"json",
        "reason": b"not valid JSON",
        "topic": b"interactions",
        "partition": b"2",
        "offset": b"17",
        "timestamp": b"1476884080123",
    }


@pytest.mark.parametrize(
    "large",
    [
        replace(LETTER, value=b"x" * (LIMIT + 1)),
        replace(LETTER, key=b"k" * 2_000_000, value=b"v"),
        replace(LETTER, value=b"x" * 900_000, headers=(("h", b"y" * 200_000),)),
        replace(LETTER, key=b"k" * 60_000, value=b"x" * LIMIT, headers=(("h", b"y" * 60_000),), reason="€" * 5_000),
    ],
)
def test_what_does_not_fit_is_cut_and_says_how_large_it_was(large: DeadLetter) -> None:
    record = large.to_record()
    assert len(record.key) + len(record.value) + sum(len(n.encode()) + len(c) for n, c in record.headers) <= LIMIT
    found = DeadLetter.from_record(*record)
    whole = len(large.key or b"") + len(large.value or b"") + sum(len(n) + len(c) for n, c in large.headers)
    assert found.size is not None
    assert abs(found.size - whole) < 100
    assert (found.origin, found.code) == (large.origin, large.code)
    assert (large.value or b"").startswith(found.value or b"")
    assert DeadLetter.from_record(*found.to_record()) == found  # cutting again changes nothing
    smaller = DeadLetter.from_record(*found.to_record(LIMIT // 2))
    assert (smaller.size, smaller.origin) == (found.size, found.origin)


def test_what_fits_is_never_cut() -> None:
    letter = replace(LETTER, value=b"x" * (LIMIT - 10_000))
    assert DeadLetter.from_record(*letter.to_record()) == letter


def test_records_that_are_no_letters_are_told() -> None:
    key, value, headers = LETTER.to_record()
    for name in ("code", "reason", "topic", "partition", "offset", "timestamp"):
        with pytest.raises(DeadLetterError, match=f"the header {name} is missing"):
            DeadLetter.from_record(key, value, [(n, c) for n, c in headers if n != name])
    for name, bad in (("partition", b"two"), ("offset", b""), ("topic", b"\xff"), ("size", b"large")):
        with pytest.raises(DeadLetterError, match="a header is damaged"):
            DeadLetter.from_record(key, value, [*((n, c) for n, c in headers if n != name), (name, bad)])


def test_markers_are_told_from_letters() -> None:
    origins = [LETTER.origin, Origin("items", 0, 1, -1)]
    record = marker(origins)
    assert marked(record.headers, record.value) == origins
    assert marked(LETTER.to_record().headers, b"[]") is None
    for damaged in (b"", None, b"{}", b'[["interactions", 0]]'):
        with pytest.raises(DeadLetterError, match="a marker is damaged"):
            marked(record.headers, damaged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--reason", "jsn"], '--reason jsn: unknown code (did you mean "json"?); known: json, shape,'),
        (["retry", "--offsets", "1,x"], "--offsets: 'x' is neither OFFSET, FIRST-LAST nor PARTITION:FIRST-LAST"),
        (["retry", "--offsets", "0:9-3"], "--offsets: '0:9-3' ends before it begins"),
        (["list", "--brokers", "127.0.0.1:1"], "Kafka at 127.0.0.1:1 cannot be reached while reading dead letters"),
        (["retry", "--brokers", "127.0.0.1:1"], "Kafka at 127.0.0.1:1 cannot be reached while retrying dead letters"),
    ],
)
def test_errors_are_one_line(capfd: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["dead-letters", *arguments]) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith(f"cco: error: {message}")
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""

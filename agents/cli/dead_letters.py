"""`cco dead-letters`: looking at the records that could not be applied, and sending them again."""

from __future__ import annotations

import base64
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from agents.cli.common import JsonFlag, UsageProblem, add_plain_row, out, print_json
from agents.cli.config import Brokers, SettingsFile, TopicPrefix

if TYPE_CHECKING:
    from agents.kafka.dead_letter_topic import Choice, Filed, Listing, Retried

app = typer.Typer(
    help="Records that could not be applied: list them, send them again.", no_args_is_help=True, rich_markup_mode=None
)

Code = Annotated[
    str | None,
    typer.Option("--reason", metavar="CODE", help="Only those refused for this: json, key, type, ..."),
]
FromTopic = Annotated[str | None, typer.Option("--topic", metavar="TOPIC", help="Only those from this topic.")]

_OFFSETS = re.compile(r"(?:(\d{1,9}):)?(\d{1,18})(?:-(\d{1,18}))?")
_VALUE_SHOWN = 60


@app.command("list")
def list_letters(
    file: SettingsFile = None,
    brokers: Brokers = None,
    prefix: TopicPrefix = None,
    reason: Code = None,
    topic: FromTopic = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="Show the last ones, at most.")] = 50,
    json: JsonFlag = False,
) -> None:
    """List dead letters: which record, why, and whether it was retried. --json shows records as a whole."""
    import asyncio

    from agents.kafka import dead_letter_topic
    from agents.settings import load_settings

    _, settings = load_settings(file, {"brokers": brokers, "topic_prefix": prefix})
    listing = asyncio.run(dead_letter_topic.list_letters(settings, _choice(reason, topic, None), limit))
    if json:
        print_json(_document(listing))
    else:
        _print(listing)


@app.command("retry")
def retry_letters(
    file: SettingsFile = None,
    brokers: Brokers = None,
    prefix: TopicPrefix = None,
    reason: Code = None,
    topic: FromTopic = None,
    offsets: Annotated[
        str | None,
        typer.Option(
            "--offsets",
            metavar="LIST",
            help="Only these, as `list` names them: 0:17,0:20-30 (partition:offset; the partition is 0 without one).",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Send the records of dead letters to where they came from, each once; wrong keys are set right.

    For what has been mended: an event type that the configuration knows by now, keys of a wrong producer.
    A record that is refused again becomes a new letter.
    """
    import asyncio

    from agents.kafka import dead_letter_topic
    from agents.settings import load_settings

    _, settings = load_settings(file, {"brokers": brokers, "topic_prefix": prefix})
    done = asyncio.run(dead_letter_topic.retry(settings, _choice(reason, topic, offsets)))
    if json:
        print_json(asdict(done))
    else:
        print(_sentence(done))


def _choice(reason: str | None, topic: str | None, offsets: str | None) -> Choice:
    from agents.kafka.dead_letter_topic import Choice
    from agents.kafka.dead_letters import CODES
    from cco.config_errors import nearest

    if reason is not None and reason not in CODES:
        raise UsageProblem(f"--reason {reason}: unknown code{nearest(reason, CODES)}; known: {', '.join(CODES)}")
    return Choice(reason, topic, () if offsets is None else _parsed(offsets))


def _parsed(offsets: str) -> tuple[tuple[int, int, int], ...]:
    """(partition, first, last) of each part of a list. Raises UsageProblem."""
    found = []
    for part in offsets.split(","):
        match = _OFFSETS.fullmatch(part.strip())
        if match is None:
            raise UsageProblem(f"--offsets: {part.strip()!r} is neither OFFSET, FIRST-LAST nor PARTITION:FIRST-LAST")
        first = int(match[2])
        last = first if match[3] is None else int(match[3])
        if last < first:
            raise UsageProblem(f"--offsets: {part.strip()!r} ends before it begins")
        found.append((int(match[1] or 0), first, last))
    return tuple(found)


def _print(listing: Listing) -> None:
    if listing.letters:
        table = Table(box=None, pad_edge=False)
        for name in ("letter", "state", "code", "record", "written"):
            table.add_column(name, no_wrap=True)
        table.add_column("reason; key: value", overflow="fold")
        for filed in listing.letters:
            add_plain_row(table, *_cells(filed))
        out().print(table)
    codes = ", ".join(f"{count:,} {code}" for code, count in listing.codes.items())
    hidden = listing.found - len(listing.letters)
    print(
        f"{listing.found:,} dead letters{f' ({codes})' if codes else ''}, {listing.retried:,} of them retried"
        + (f"; {hidden:,} older ones are not shown (--limit)" if hidden else "")
    )
    if listing.foreign:
        print(f"{listing.foreign:,} records in the topic are no letters")


def _cells(filed: Filed) -> tuple[str, ...]:
    letter = filed.letter
    return (
        f"{filed.partition}:{filed.offset}",
        "retried" if filed.retried else "open",
        letter.code,
        f"{letter.topic}/{letter.partition}@{letter.offset}",
        _time(letter.timestamp),
        f"{letter.reason}\n{_short(letter.key)}: {_short(letter.value)}"
        + ("" if letter.size is None else f" (of {letter.size:,} bytes)"),
    )


def _short(data: bytes | None) -> str:
    if data is None:
        return "null"
    text = data[: 4 * _VALUE_SHOWN].decode(errors="backslashreplace")
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return text if len(text) <= _VALUE_SHOWN else text[: _VALUE_SHOWN - 3] + "..."


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(sep=" ", timespec="seconds")[:19]
    except (ValueError, OverflowError, OSError):  # a producer may write anything
        return str(milliseconds)


def _document(listing: Listing) -> dict[str, Any]:
    return {
        "found": listing.found,
        "retried": listing.retried,
        "codes": listing.codes,
        "foreign": listing.foreign,
        "letters": [_letter(filed) for filed in listing.letters],
    }


def _letter(filed: Filed) -> dict[str, Any]:
    letter = filed.letter
    return {
        "letter": {"partition": filed.partition, "offset": filed.offset},
        "retried": filed.retried,
        "code": letter.code,
        "reason": letter.reason,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp": letter.timestamp,
        "key": _data(letter.key),
        "value": _data(letter.value),
        "headers": [{"name": name, "value": _data(value)} for name, value in letter.headers],
        "size": letter.size,
    }


def _data(data: bytes | None) -> dict[str, str] | None:
    """Bytes in JSON: as text where they are UTF-8."""
    if data is None:
        return None
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _sentence(done: Retried) -> str:
    rekeyed = f", {done.rekeyed:,} of them under another key" if done.rekeyed else ""
    skipped = "; ".join(f"{count:,} {problem}" for problem, count in sorted(done.skipped.items()))
    return f"{done.sent:,} records sent{rekeyed}" + (f"; left alone: {skipped}" if skipped else "")

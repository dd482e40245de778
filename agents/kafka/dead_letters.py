"""Dead letters: the records that could not be applied, in a topic of their own, with the reason and as they were.

One letter is one record of `dead-letters`: key and value are the original's, headers say the rest. Its
`Origin` names the original record; a worker that repeats events after a crash writes the same letters
again, and they count once. What was retried is remembered by markers in the same topic: records without
a letter, listing origins. `agents.kafka.dead_letter_topic` reads and retries them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from cco import values

CODES: tuple[str, ...] = (*values.CODES, "message", "document")
"""Why a record was refused, in one word: `Rejection.code`, `message` for a damaged edits message, and `document` for
one that Elasticsearch does not take: its topic is "elasticsearch:INDEX", its value the document."""

LIMIT = 1_000_000  # bytes of key, value and headers: brokers take 1,048,588 with what is around them

_REASON, _KEY, _HEADERS = 1_000, 65_536, 65_536  # at most: characters, bytes, bytes
_RETRIED = "retried"
_ORIGINAL = "original."  # before the names of the original's headers

Headers = tuple[tuple[str, bytes], ...]


class Origin(NamedTuple):
    """The record that a letter is about. The timestamp tells a topic made anew from the one before it."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # epoch milliseconds, as the log has it


class Record(NamedTuple):
    """What to produce: `producer.send(settings.topic(DEAD_LETTERS), **record._asdict())`."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class DeadLetterError(Exception):
    """A record in the topic that is no letter and no marker: a sentence that says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be applied, and why."""

    code: str  # one of CODES
    reason: str  # a sentence
    topic: str  # as the broker knows it, with its prefix
    partition: int
    offset: int
    timestamp: int  # epoch milliseconds, as the log has it
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    size: int | None = None  # bytes of the original's key, value and headers, where not all of them fitted

    @property
    def origin(self) -> Origin:
        """Which record this letter is about. Documents have no offset of their own: their topic is INDEX/ID here."""
        topic = f"{self.topic}/{(self.key or b'').decode(errors='replace')}" if self.code == "document" else self.topic
        return Origin(topic, self.partition, self.offset, self.timestamp)

    def to_record(self, limit: int = LIMIT) -> Record:
        """The record for the topic. What does not fit into `limit` bytes is cut off, and `size` says so."""
        letter = self._fitting(limit)
        headers = {
            "code": letter.code,
            "reason": letter.reason,
            "topic": letter.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "timestamp": letter.timestamp,
            "key-null": 1 if letter.key is None else None,
            "value-null": 1 if letter.value is None else None,
            "size": letter.size,
        }
        listed = [(name, str(value).encode()) for name, value in headers.items() if value is not None]
        listed += [(_ORIGINAL + name, value) for name, value in letter.headers]
        return Record(letter.key or b"", letter.value or b"", listed)

    def _fitting(self, limit: int) -> DeadLetter:
        key, value = self.key or b"", self.value or b""
        around = sum(len(name.encode()) + len(content or b"") + len(_ORIGINAL) for name, content in self.headers)
        headers = self.headers if around <= _HEADERS else ()
        room = limit - min(len(key), _KEY) - (around if headers else 0) - 4 * _REASON - 1_000
        letter = replace(self, reason=self.reason[:_REASON], headers=headers)
        if len(key) <= _KEY and len(value) <= room and headers == self.headers:
            return letter
        return replace(
            letter,
            key=None if self.key is None else key[:_KEY],
            value=None if self.value is None else value[: max(0, room)],
            size=self.size or len(key) + len(value) + around,
        )

    @classmethod
    def from_record(cls, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]) -> DeadLetter:
        """The letter in a record. Raises DeadLetterError where there is none."""
        listed = list(headers)
        found = dict(listed)
        try:
            size = found.get("size")
            return cls(
                code=found["code"].decode(),
                reason=found["reason"].decode(errors="replace"),
                topic=found["topic"].decode(),
                partition=int(found["partition"]),
                offset=int(found["offset"]),
                timestamp=int(found["timestamp"]),
                key=None if "key-null" in found else key or b"",
                value=None if "value-null" in found else value or b"",
                headers=tuple((n.removeprefix(_ORIGINAL), c) for n, c in listed if n.startswith(_ORIGINAL)),
                size=None if size is None else int(size),
            )
        except KeyError as error:
            raise DeadLetterError(f"the header {error.args[0]} is missing") from None
        except (AttributeError, UnicodeDecodeError, ValueError) as error:
            raise DeadLetterError(f"a header is damaged: {error}") from None


def marker(origins: Sequence[Origin]) -> Record:
    """The record that says that the letters about these records were retried."""
    return Record(b"", msgspec.json.encode(origins), [(_RETRIED, str(len(origins)).encode())])


def marked(headers: Iterable[tuple[str, bytes]], value: bytes | None) -> list[Origin] | None:
    """What a marker lists; None if the record is none. Raises DeadLetterError if it is damaged."""
    if not any(name == _RETRIED for name, _ in headers):
        return None
    try:
        return msgspec.json.decode(value or b"", type=list[Origin])
    except msgspec.MsgspecError as error:
        raise DeadLetterError(f"a marker is damaged: {error}") from None

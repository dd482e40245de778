"""The wire format of edits messages: what a user stage tells an item partition, and what frames it.

A message is a fixed header (little endian) with a checksum over all of it and, where it carries edits,
a body (`cco.edits_columns`).
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum

import msgspec

from cco.config import Config
from cco.edits import LEAVE, Edits
from cco.edits_columns import MessageError, pack, unpack
from cco.vocabulary import Vocabulary

__all__ = ["MESSAGE_BYTES", "Header", "Kind", "MessageError", "decode", "decode_header", "encode"]

FORMAT = 1
MESSAGE_BYTES = 1_000_000  # below Kafka's default limit of 1 MiB, with room for its own framing
LEAST_LIMIT = 1 << 14

_MAGIC = b"CCOE"
_START = struct.Struct("<4sBBBx")  # magic, format, kind, flags
_CRC = struct.Struct("<I")  # CRC-32 of all bytes but its own
_REST = struct.Struct("<4H8sQ3qI")  # source, sources, partition, partitions, epoch, session, claim, start, end, part
_LAST = 1  # flag
HEADER_BYTES = _START.size + _CRC.size + _REST.size
_MAX_INDICATOR, _MAX_PRIOR = 31, 127


class Kind(IntEnum):
    """What a message is for."""

    RANGE = 1  # the edits of a range of the source's log
    FILL = 2  # in answer to a claim: some members and counts of the source as they are now
    MARK = 3  # how far the source is, and nothing else
    CLAIM = 4  # of the item partition itself: a new owner begins


_KINDS = {int(kind): kind for kind in Kind}


class Header(msgspec.Struct, frozen=True):
    """What frames the edits. Offsets are those of the source's log, each the next one to be read."""

    kind: Kind
    source: int  # source partition; 0 in a CLAIM
    sources: int  # their number
    partition: int  # item partition
    partitions: int  # their number
    epoch: str  # Config.epoch
    session: int  # uint64: one life of a user stage on one worker, or of the claimer
    claim: int  # offset of the CLAIM that a FILL answers; -1 otherwise
    start: int  # before the range
    end: int  # after it
    part: int  # number of this part of the range or of the fill
    last: bool  # nothing of it comes after this part


def encode(
    header: Header, edits: Edits | None, users: Vocabulary, items: Vocabulary, limit: int = MESSAGE_BYTES
) -> list[bytes]:
    """The message, or its parts where it needs more than `limit` bytes, numbered from `header.part` on.

    Only the final part has `header.last`; in the others it is False. All carry the same range and members;
    operations keep their order, then come counts, then priors. Not sent are `edits.position`, which is
    `header.end` to the reader, and the items of ENTER and LEAVE, which are 0 to him.

    Raises ValueError for a limit below LEAST_LIMIT, for a header whose fields are not possible, and for edits
    of another source or of other vocabularies. Not safe while another thread interns into the vocabularies.
    """
    if limit < LEAST_LIMIT:
        raise ValueError(f"messages of at most {limit} bytes: at least {LEAST_LIMIT} are needed")
    if edits is None:
        return [_framed(header, b"", header.part, header.last)]
    _check(header, edits)
    bodies = pack(edits, users, items, limit - HEADER_BYTES)
    final = len(bodies) - 1
    return [_framed(header, body, header.part + k, header.last and k == final) for k, body in enumerate(bodies)]


def _check(header: Header, edits: Edits) -> None:
    if edits.source != header.source:
        raise ValueError(f"edits of source {edits.source} under a header of source {header.source}")
    op, indicator, of_count, prior = (
        int(column.max(initial=0)) for column in (edits.op, edits.indicator, edits.count_indicator, edits.prior)
    )
    if op > LEAVE or max(indicator, of_count) > _MAX_INDICATOR or prior > _MAX_PRIOR:
        raise ValueError(f"edits with operation {op}, indicator {max(indicator, of_count)} or prior {prior}: too high")
    if edits.members < 0 or edits.count.min(initial=0) < 0:
        raise ValueError(f"edits with {edits.members} members and a count of {edits.count.min(initial=0)}")


def _framed(header: Header, body: bytes, part: int, last: bool) -> bytes:
    problem = _problem(header)
    if problem is not None:
        raise ValueError(f"a header that cannot be sent: {problem}")
    try:
        start = _START.pack(_MAGIC, FORMAT, header.kind, _LAST * last)
        rest = _REST.pack(
            header.source, header.sources, header.partition, header.partitions, bytes.fromhex(header.epoch),
            header.session, header.claim, header.start, header.end, part,
        )  # fmt: skip
    except struct.error as error:
        raise ValueError(f"a header that cannot be sent: {error} in {header}") from None
    crc = zlib.crc32(body, zlib.crc32(rest, zlib.crc32(start)))
    return b"".join((start, _CRC.pack(crc), rest, body))


def _problem(header: Header) -> str | None:
    """Which fields of a header do not fit each other; None if all do."""
    if not 0 <= header.source < header.sources:
        return f"source {header.source} of {header.sources}"
    if not 0 <= header.partition < header.partitions:
        return f"item partition {header.partition} of {header.partitions}"
    if header.start > header.end:
        return f"a range from offset {header.start} to {header.end}"
    if len(header.epoch) != 16 or not set(header.epoch) <= set("0123456789abcdef"):
        return f"the epoch {header.epoch[:40]!r}, which is not 16 hex digits"
    return None


def decode_header(data: bytes | None) -> Header:
    """The header of a message. The checksum is over all of it, so what follows is undamaged too.

    Raises MessageError: too short, no edits message, another format, damaged, or fields that cannot be.
    """
    if data is None:
        raise MessageError("no edits message: the record has no value")
    if len(data) < HEADER_BYTES:
        raise MessageError(
            f"no edits message, or cut off: {len(data)} bytes, where the header alone has {HEADER_BYTES}"
        )
    magic, version, kind, flags = _START.unpack_from(data)
    if magic != _MAGIC:
        raise MessageError(f"no edits message: it begins with {magic!r} instead of {_MAGIC!r}")
    if version != FORMAT:
        raise MessageError(
            f"an edits message of format {version}, while this program knows format {FORMAT}: "
            "run one version on all workers"
        )
    start, rest = _START.size, _START.size + _CRC.size
    crc = zlib.crc32(memoryview(data)[rest:], zlib.crc32(data[:start]))
    if crc != _CRC.unpack_from(data, start)[0]:
        raise MessageError(f"a damaged edits message of {len(data)} bytes: its checksum does not match")
    if kind not in _KINDS or flags & ~_LAST:
        raise MessageError(f"an edits message of kind {kind} with flags {flags}, which format {FORMAT} does not have")
    source, sources, partition, partitions, epoch, session, claim, begin, end, part = _REST.unpack_from(data, rest)
    header = Header(
        _KINDS[kind], source, sources, partition, partitions, epoch.hex(), session, claim, begin, end, part,
        last=flags == _LAST,
    )  # fmt: skip
    problem = _problem(header)
    if problem is not None:
        raise MessageError(f"an edits message that cannot be: {problem}")
    return header


def decode(data: bytes, users: Vocabulary, items: Vocabulary, config: Config) -> Edits:
    """The edits of a message in terms of these vocabularies, to which its ids are added.

    `config` says how many indicators and priors there are: what names another would be written outside the
    arrays of an item stage. Raises MessageError, also for a message without edits; none of its ids are added
    then, but for those before one that cannot be interned.
    """
    header = decode_header(data)
    if len(data) == HEADER_BYTES:
        raise MessageError(f"a message of kind {header.kind.name} without edits")
    return unpack(data, HEADER_BYTES, header.source, header.end, users, items, config)

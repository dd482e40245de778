"""Edits messages that are damaged, or made to do harm: all are refused with a sentence that says why."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cco.config import Config, parse_config
from cco.edits import ADD, LEAVE, Edits
from cco.edits_message import MessageError, decode, decode_header, encode
from cco.vocabulary import Vocabulary
from tests.cco.edits_data import (
    CONFIG,
    HEAD,
    HEADER,
    INDICATORS,
    PRIORS,
    SIZES,
    facts,
    make_edits,
    small_message,
    vocabulary,
    worlds,
)


def resealed(data: bytes) -> bytes:
    """With the checksum that makes it a message again: what a hostile sender can do."""
    crc = zlib.crc32(data[12:], zlib.crc32(data[:8]))
    return data[:8] + struct.pack("<I", crc) + data[12:]


def with_size(data: bytes, name: str, value: int) -> bytes:
    at = HEAD + 4 * SIZES.index(name)
    return resealed(data[:at] + struct.pack("<I", value) + data[at + 4 :])


def test_every_truncation_is_refused() -> None:
    data, *_ = small_message()
    for size in range(len(data)):
        for call in (decode_header, read):
            with pytest.raises(MessageError, match=r"damaged|cut off"):
                call(data[:size])
    for call in (decode_header, read):
        with pytest.raises(MessageError, match="damaged"):
            call(data + b"\0")


def read(data: bytes, config: Config = CONFIG) -> Edits:
    return decode(data, Vocabulary(), Vocabulary(), config)


def test_every_damaged_byte_is_noticed() -> None:
    data, *_ = small_message()
    for at in range(len(data)):
        for bits in (1, 0x80, 0xFF):
            broken = bytearray(data)
            broken[at] ^= bits
            for call in (decode_header, read):
                with pytest.raises(MessageError):
                    call(bytes(broken))


def test_what_is_no_message_says_so() -> None:
    data, *_ = small_message()
    with pytest.raises(MessageError, match=r"no edits message: it begins with b'\{\"us'"):
        decode_header(b'{"user_id": "u1", "item_id": "i9", "event_type": "purchase", "timestamp": 1}')
    with pytest.raises(MessageError, match="format 2, while this program knows format 1: run one version"):
        decode_header(resealed(data[:4] + b"\2" + data[5:]))
    with pytest.raises(MessageError, match="kind 9"):
        decode_header(resealed(data[:5] + b"\x09" + data[6:]))
    with pytest.raises(MessageError, match="flags 3"):
        decode_header(resealed(data[:6] + b"\3" + data[7:]))
    with pytest.raises(MessageError, match="cut off: 0 bytes"):
        decode_header(b"")
    with pytest.raises(MessageError, match="no value"):
        decode_header(None)
    with pytest.raises(MessageError, match="source 1 of 1"):
        decode_header(resealed(data[:14] + b"\1\0" + data[16:]))
    with pytest.raises(MessageError, match="sizes are cut off"):
        read(resealed(data[: HEAD + 31]))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("by", [1, -1, 1000, None])
def test_sizes_are_not_believed(name: str, by: int | None) -> None:
    data, *_ = small_message()
    value = struct.unpack_from("<I", data, HEAD + 4 * SIZES.index(name))[0]
    changed = with_size(data, name, 2**32 - 1 if by is None else value + by)
    if name == "members" and by is not None:
        assert read(changed).members == value + by
        return
    read(data)  # what is compiled is there
    tracemalloc.start()
    with pytest.raises(MessageError):
        read(changed)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


COLUMNS = HEAD + 32 + 11 + 9  # where they begin in the small message
HOSTILE = {
    "an item that was not named yet": ({10: 0x20}, b"", "names an id which is not there"),
    "a position beyond all": ({8: 0xFF, 9: 0xFF, 10: 0x7F}, b"", "names an id which is not there"),
    "the next position, where there is none": ({10: 0, 9: 1}, b"", "names an id which is not there"),
    "a first edit about nobody": ({0: 0x02, 1: 0x80}, b"", "about nobody"),
    "a first prior about nothing": ({20: 0x00, 21: 0x81}, b"", "about nobody or nothing"),
    "a value of more than 32 bits": ({32: 0x1F}, b"", "no number of 32 bits"),
    "a value without an end": ({32: 0x8F}, b"", "no number of 32 bits"),
    "bytes after the end": ({}, b"\0", "do not fit each other"),
}


@pytest.mark.parametrize(("changes", "more", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_columns_are_not_believed(changes: dict[int, int], more: bytes, problem: str) -> None:
    data = bytearray(small_message()[0])
    for at, value in changes.items():
        data[COLUMNS + at] = value
    with pytest.raises(MessageError, match=problem):
        read(resealed(bytes(data) + more))


def test_counts_have_31_bits() -> None:
    ids = vocabulary(["a"])
    [data] = encode(HEADER, make_edits([], [(0, 0, 2**31 - 1)], []), ids, ids)
    assert read(data).count.tolist() == [2**31 - 1]
    assert data.endswith(b"\xff\xff\xff\xff\x07")
    with pytest.raises(MessageError, match="a higher count"):
        read(resealed(data[:-1] + b"\x0f"))


def test_what_the_configuration_does_not_have_is_refused() -> None:
    data, *_ = small_message()
    with pytest.raises(MessageError, match="indicator number 30, where there are 1"):
        read(data, parse_config("", "test"))
    ids = vocabulary(["a"])
    for edits, problem in (
        (make_edits([(ADD, 0, 0, 0)], [(1, 0, 1)], []), "indicator number 1, where there are 1"),
        (make_edits([(ADD, 0, 0, 0)], [], [(2, 0, 1)]), "prior number 2, where there are 2"),
    ):
        with pytest.raises(MessageError, match=problem):
            read(encode(HEADER, edits, ids, ids)[0], parse_config("", "test"))


def test_impossible_ids_are_refused() -> None:
    edits = make_edits([(ADD, 0, 0, 0)], [], [])
    [data] = encode(HEADER, edits, vocabulary(["user1"]), vocabulary(["item1"]))
    for ids, problem in (
        (b"use\xff1", "not valid UTF-8"),
        (b"us\0r1", "other ids than the 1"),
        (b"user\0", "other ids"),
    ):
        with pytest.raises(MessageError, match=problem):
            read(resealed(data.replace(b"user1", ids)))
    [longest] = encode(HEADER, edits, vocabulary(["u" * 512]), vocabulary(["i"]))
    assert len(longest) > 512
    longer = with_size(longest.replace(b"u" * 512, b"u" * 513), "bytes of users", 514)
    with pytest.raises(MessageError, match="has 513 bytes"):
        read(longer)
    empty = with_size(data.replace(b"user1\0", b"\0"), "bytes of users", 1)
    with pytest.raises(MessageError, match="is empty"):
        read(empty)


@settings(max_examples=250, deadline=None)
@given(worlds(), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_hostile_bytes_never_get_through(
    world: tuple[list[str], list[str], Edits], changes: list[tuple[int, int]]
) -> None:
    """Whatever a checksum was made for: either it is refused, or all that it says is possible."""
    users, items, edits = world
    [data] = encode(HEADER, edits, vocabulary(users), vocabulary(items))
    hostile = bytearray(data)
    for at, value in changes:
        hostile[HEAD + at % (len(data) - HEAD)] = value
    to_users, to_items = Vocabulary(), Vocabulary()
    try:
        got = decode(resealed(bytes(hostile)), to_users, to_items, CONFIG)
    except MessageError as error:
        assert str(error)
        return
    facts(got, to_users, to_items)  # all indices are there
    assert got.op.max(initial=0) <= LEAVE
    assert max(got.indicator.max(initial=0), got.count_indicator.max(initial=0)) < INDICATORS
    assert got.prior.max(initial=0) < PRIORS
    assert got.count.min(initial=0) >= 0
    assert got.members >= 0

"""Interning, hashes, partitions, export and restore."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cco.hashing import murmur2
from cco.vocabulary import Vocabulary, VocabularyError, id_problem

IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)

MURMUR2 = {  # Kafka's UtilsTest.testMurmur2
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}


def fnv(data: bytes) -> int:
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) % 2**64
    return h ^ (h >> 31)


@pytest.mark.parametrize(("text", "expected"), MURMUR2.items())
def test_murmur2_is_kafkas(text: str, expected: int) -> None:
    data = np.frombuffer(text.encode(), np.uint8)
    assert int(np.uint32(murmur2(data, 0, data.size)).view(np.int32)) == expected


def test_partitions_are_kafkas() -> None:
    vocabulary = Vocabulary()
    vocabulary.intern(list(MURMUR2))
    for count in (1, 7, 1_024, 65_535):
        assert vocabulary.partitions(count).tolist() == [(h & 0x7FFFFFFF) % count for h in MURMUR2.values()]
    vocabulary.intern(["one more"])
    assert vocabulary.partitions(7).size == len(vocabulary)
    for count in (0, 65_536):
        with pytest.raises(ValueError, match="partitions"):
            vocabulary.partitions(count)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(IDS, max_size=20), max_size=6))
def test_every_view_agrees_with_a_list(batches: list[list[str]]) -> None:
    vocabulary = Vocabulary()
    known: list[str] = []
    old = vocabulary.hashes
    before: list[int] = []
    for batch in batches:
        got = vocabulary.intern(batch)
        known += [x for x in dict.fromkeys(batch) if x not in known]
        assert got.dtype == np.uint32
        assert got.tolist() == [known.index(x) for x in batch]
        assert vocabulary.hashes.tolist() == [fnv(x.encode()) for x in known]
        assert old.tolist() == before  # earlier views stay
        old, before = vocabulary.hashes, vocabulary.hashes.tolist()
    assert vocabulary.bytes_.tobytes() == "".join(known).encode()
    assert vocabulary.names(np.arange(len(known), dtype=np.uint32)) == known
    assert np.diff(vocabulary.offsets).tolist() == [len(x.encode()) for x in known]
    assert [vocabulary.index(x) for x in known] == list(range(len(known)))
    assert vocabulary.index("\0") is None
    half = len(known) // 2
    restored = Vocabulary.restore(*_first(vocabulary, half))
    restored.extend(*vocabulary.export(half))
    assert restored.names(range(len(restored))) == known
    assert restored.hashes.tolist() == vocabulary.hashes.tolist()


def _first(vocabulary: Vocabulary, count: int) -> tuple[bytes, np.ndarray]:
    data, offsets = vocabulary.export()
    return data[: offsets[count]], offsets[: count + 1]


def test_limits() -> None:
    assert [id_problem(x) for x in ("x" * 512, "é" * 256, "🦊" * 128)] == [None] * 3
    for wrong, reason in {
        "": "empty",
        "é" * 257: "514 bytes",
        "x" * 513: "513",
        "a\0": "NUL",
        "\ud800": "UTF-8",
    }.items():
        assert reason in str(id_problem(wrong))
        with pytest.raises(VocabularyError):
            Vocabulary().intern([wrong])
    small = Vocabulary(limit=2)
    assert small.intern(["a", "b", "a"]).tolist() == [0, 1, 0]
    with pytest.raises(VocabularyError, match="more than 2 different ids"):
        small.intern(["c"])
    assert len(small) == 2
    with pytest.raises(IndexError):
        small.name(-1)


def test_damage_is_seen() -> None:
    offsets = np.array([0, 1, 2])
    wrong = [(b"ab", offsets[:2]), (b"aa", offsets), (b"a\xff", offsets), (b"ab", np.array([0, 3, 2]))]
    wrong += [(b"a\0", offsets), (b"a", np.array([0, 1, 1])), (b"x" * 513, np.array([0, 513]))]
    for data, bounds in wrong:
        with pytest.raises(VocabularyError, match="damaged"):
            Vocabulary.restore(data, bounds)
    with pytest.raises(VocabularyError):
        Vocabulary.restore(b"", np.empty(0, np.int64))
    known = Vocabulary(limit=3)
    known.intern(["a"])
    with pytest.raises(VocabularyError, match="damaged vocabulary: an id is there twice"):
        known.extend(b"ba", offsets)
    full = Vocabulary(limit=3)
    full.intern(["x", "y"])
    with pytest.raises(VocabularyError, match="4 ids: one vocabulary holds 3"):
        full.extend(b"ab", offsets)


def test_the_bytes_are_those_that_are_taken() -> None:
    Vocabulary().intern(["what", "is", "compiled"])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        vocabulary = Vocabulary()
        assert vocabulary.nbytes() < 10_000
        for k in range(0, 200_000, 10_000):
            vocabulary.intern([f"user-{n}" if n % 3 else f"\u00fcser-{n}" for n in range(k, k + 10_000)])
            vocabulary.partitions(4)
        said = vocabulary.nbytes()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.9 * taken < said < 1.1 * taken


def test_ids_are_found_by_their_bytes_as_more_come() -> None:
    vocabulary = Vocabulary()
    ids = [f"i{k}" for k in range(300)] + ["ï", "用户", "x" * 512, "i1\0", ""]
    data = "".join(ids).encode()
    bounds = np.cumsum([0, *(len(name.encode()) for name in ids)])
    for known in (0, 1, 2, 150, 303):
        vocabulary.intern(ids[:known])
        found = vocabulary.find(np.frombuffer(bytearray(data), np.uint8), bounds)
        assert found.tolist() == [*range(known), *(-1 for _ in ids[known:])]

"""Hashes of ids: FNV-1a 64 with SplitMix64's finaliser (sampling), murmur2 (Kafka's partitioner)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llr.jit import kernel
from llr.prefetch import prefetch

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

_AHEAD = 16  # ids: the slots that these begin at are asked for


@kernel
def fnv_hashes(data: Bytes, offsets: Offsets, first: int, out: npt.NDArray[np.uint64]) -> None:
    """out[i] = finalised FNV-1a 64 of data[offsets[i]:offsets[i + 1]], for i from `first` to the end of `out`.

    `data` uint8, `offsets` int64[len(out) + 1], `out` uint64. FNV alone spreads its last bytes badly into
    the high bits; SplitMix64's finaliser (Steele et al. 2014) mends that.
    """
    for i in range(first, out.size):
        h = np.uint64(0xCBF29CE484222325)
        for k in range(offsets[i], offsets[i + 1]):
            h = (h ^ np.uint64(data[k])) * np.uint64(0x100000001B3)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[i] = h ^ (h >> np.uint64(31))


@kernel
def enter_hashes(hashes: npt.NDArray[np.uint64], first: int, table: npt.NDArray[np.uint64]) -> None:
    """Enter the ids from `first` on into an open hash table: in the high half of a slot the hash's, below position + 1.

    `table`: a power of two of slots, more than there are ids; 0 is a free one.
    """
    last, high = np.uint64(table.size - 1), np.uint64(0xFFFFFFFF00000000)
    for i in range(first, hashes.size):
        slot = hashes[i] & last
        while table[slot] != np.uint64(0):
            slot = (slot + np.uint64(1)) & last
        table[slot] = (hashes[i] & high) | np.uint64(i + 1)


@kernel
def find_ids(
    data: Bytes, offsets: Offsets, wanted: npt.NDArray[np.uint64], known: Bytes, known_offsets: Offsets,
    table: npt.NDArray[np.uint64], out: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    """out[i] = position of data[offsets[i]:offsets[i + 1]], whose hash is wanted[i], among the `known` ids; or -1.

    `table`: as `enter_hashes` fills it.
    """
    last, high, low = np.uint64(table.size - 1), np.uint64(0xFFFFFFFF00000000), np.uint64(0xFFFFFFFF)
    for i in range(out.size):
        prefetch(table, wanted[min(i + _AHEAD, out.size - 1)] & last)
        start, size = offsets[i], offsets[i + 1] - offsets[i]
        slot, found = wanted[i] & last, np.int64(-1)
        while found < 0 and table[slot] != np.uint64(0):
            if table[slot] & high == wanted[i] & high:
                position = np.int64(table[slot] & low) - 1
                begin = known_offsets[position]
                if known_offsets[position + 1] - begin == size:
                    same = np.int64(0)
                    while same < size and known[begin + same] == data[start + same]:
                        same += 1
                    if same == size:
                        found = position
            slot = (slot + np.uint64(1)) & last
        out[i] = found


@kernel
def murmur2(data: Bytes, start: int, stop: int) -> np.uint32:
    """Murmur2 (32 bits, uint32) of data[start:stop] (uint8), as org.apache.kafka.common.utils.Utils has it."""
    m = np.uint32(0x5BD1E995)
    h = np.uint32(np.uint32(0x9747B28C) ^ np.uint32(stop - start))
    k = start
    while k + 4 <= stop:
        word = np.uint32(
            np.uint32(data[k])
            | (np.uint32(data[k + 1]) << np.uint32(8))
            | (np.uint32(data[k + 2]) << np.uint32(16))
            | (np.uint32(data[k + 3]) << np.uint32(24))
        )
        word = np.uint32(word * m)
        word = np.uint32(word ^ (word >> np.uint32(24)))
        word = np.uint32(word * m)
        h = np.uint32(np.uint32(h * m) ^ word)
        k += 4
    left = stop - k
    if left > 2:
        h = np.uint32(h ^ (np.uint32(data[k + 2]) << np.uint32(16)))
    if left > 1:
        h = np.uint32(h ^ (np.uint32(data[k + 1]) << np.uint32(8)))
    if left > 0:
        h = np.uint32(np.uint32(h ^ np.uint32(data[k])) * m)
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(13))) * m)
    return np.uint32(h ^ (h >> np.uint32(15)))


@kernel
def kafka_partitions(data: Bytes, offsets: Offsets, first: int, count: int, out: npt.NDArray[np.uint16]) -> None:
    """out[i] = partition (uint16, of `count`) that Kafka's Java client gives to key i, from `first` on."""
    for i in range(first, out.size):
        positive = np.uint32(murmur2(data, offsets[i], offsets[i + 1]) & np.uint32(0x7FFFFFFF))
        out[i] = np.uint16(positive % np.uint32(count))

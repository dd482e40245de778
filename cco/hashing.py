"""Hashes of ids: FNV-1a 64 with SplitMix64's finaliser (sampling), murmur2 (Kafka's partitioner)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llr.jit import kernel

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


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

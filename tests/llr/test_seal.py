"""Weights as the index keeps them, the order they give, and fingerprints."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llr.kernels import EMPTY, seal_rows
from llr.weights import truncate
from tests.llr.world import random_world


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-30, 1e12))
def test_truncate_is_what_lucene_keeps(value: float) -> None:
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    (kept,) = struct.unpack("<f", struct.pack("<I", bits >> 15 << 15))
    assert float(truncate(np.array([value]))[0]) == kept
    assert float(truncate(np.float64(kept))) == kept


def test_truncate_keeps_shape_and_leaves_its_input_alone() -> None:
    values = np.array([[1.0, 1.999, 3.1415926], [0.0, 257.0, 1e9]])
    before = values.copy()
    out = truncate(values)
    assert out.dtype == np.float32
    assert out.tolist() == [[1.0, 1.99609375, 3.140625], [0.0, 257.0, 998244352.0]]
    assert (values == before).all()
    single = np.array([3.1415926], np.float32)
    assert truncate(single)[0] != single[0]


@pytest.mark.parametrize("top_k", [1, 50, 300])
def test_seal_orders_by_kept_weight_then_id(top_k: int) -> None:
    world = random_world(7, 200, 700, 40.0, [f"catalogue/{n % 7}/{n}" for n in range(700)])
    feature, llr, length = world.arrays(1, top_k)
    exact, doubles = feature.copy(), llr.copy()
    weight = np.full(llr.shape, -1, np.float32)
    fingerprints = seal_rows(feature, llr, length, world.id_bytes, world.id_offsets, weight)
    moved = 0
    for r, n in enumerate(length.tolist()):
        entries = sorted(
            zip(truncate(doubles[r, :n]).tolist(), exact[r, :n].tolist(), strict=True),
            key=lambda entry: (-entry[0], world.ids[entry[1]].encode()),
        )
        assert weight[r, :n].tolist() == [w for w, _ in entries]
        assert feature[r, :n].tolist() == [j for _, j in entries]
        assert not weight[r, n:].any()
        moved += feature[r, :n].tolist() != exact[r, :n].tolist()
        assert (fingerprints[r] == EMPTY) == (n == 0)
    assert np.array_equal(llr, doubles, equal_nan=True)
    assert moved > 0 or top_k == 1


def test_fingerprints_tell_rows_apart() -> None:
    ids, offsets = np.frombuffer(b"abcd", np.uint8).copy(), np.arange(5, dtype=np.int64)

    def seal(*entries: tuple[int, float]) -> int:
        feature = np.array([[j for j, _ in entries] + [9]], np.uint32)
        llr = np.array([[value for _, value in entries] + [5.0]])
        length = np.array([len(entries)], np.int32)
        return int(seal_rows(feature, llr, length, ids, offsets, np.zeros(llr.shape, np.float32))[0])

    rows = [
        (),
        ((0, 2.0),),
        ((1, 2.0),),
        ((0, 2.0), (1, 2.0)),
        ((0, 2.0), (1, 1.0)),
        ((1, 2.0), (0, 1.0)),
        ((0, 2.01),),
    ]
    found = [seal(*row) for row in rows]
    assert len(set(found)) == len(rows)
    assert found[0] == EMPTY
    assert seal((1, 2.0), (0, 2.0)) == seal((0, 2.0), (1, 2.0))  # the same row once sealed
    assert seal((0, 2.0000001)) == seal((0, 2.0))  # the index would not see the difference

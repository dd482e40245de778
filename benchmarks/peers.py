"""The peers: recoreco, implicit and scipy, each on the same pairs and cores as ours."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import data
from benchmarks.measure import Bench, status_bytes
from benchmarks.scenario import Result

TOP_K = 50
LOOK_EVERY = 0.05  # seconds; a thousandth of the core that both share
BLOCK_ENTRIES = 1 << 22  # of the product, scored at a time
_TRAINED = re.compile(r"(\d+) cooccurrences observed, (\d+)ms training time")

Floats = npt.NDArray[np.float64]


def recoreco(bench: Bench, name: str, which: str) -> Result:
    """Its training time as it prints it: reading and writing files are not in it."""
    binary = os.environ.get("RECORECO") or shutil.which("recoreco")
    if binary is None or shutil.which(binary) is None:
        return {"absent": "no recoreco: cargo install recoreco, then put it on PATH or name it in RECORECO"}
    bench.warm_up(lambda: None)
    with tempfile.TemporaryFile() as log:
        order = [binary, "-i", str(bench.folder / f"{name}-{which}.tsv"), "-o", os.devnull, "-n", str(TOP_K)]
        process = subprocess.Popen(order, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:  # its account by wait4 would include what this process had when it forked
            time.sleep(LOOK_EVERY)  # first: until it executes the binary, it is a copy of this process
            peak = max(peak, _peak(process.pid))
        log.seek(0)
        text = log.read().decode(errors="replace")
    found = _TRAINED.search(text)
    if process.returncode != 0 or found is None:
        raise RuntimeError(f"recoreco ended with {process.returncode} and said: {text[-300:]}")
    return {
        "seconds": int(found[2]) / 1000,
        "counted": int(found[1]),
        "peak_bytes": peak,  # the whole process
    }


def _peak(process: int) -> int:
    """VmHWM of another process; 0 once it has gone."""
    with suppress(OSError, RuntimeError):
        return status_bytes("VmHWM", process)
    return 0


def implicit(bench: Bench, name: str, cap: int, threads: int) -> Result:
    """Fit of its CosineRecommender on the retained pairs; the matrix is there before the clock starts."""
    try:
        recommender: Any = importlib.import_module("implicit.nearest_neighbours").CosineRecommender
        sparse: Any = importlib.import_module("scipy.sparse")
    except ImportError as error:
        return {"absent": f"implicit is not installed ({error})"}
    bounds, indices = data.retained(bench, name, cap)
    shape = (bounds.size - 1, int(indices.max()) + 1)
    with bench.loading():
        matrix = sparse.csr_matrix((np.ones(indices.size), indices, bounds), shape)

    def fit(pairs: Any) -> Any:
        model = recommender(K=TOP_K, num_threads=threads)
        model.fit(pairs, show_progress=False)
        return model

    bench.warm_up(lambda: fit(matrix[:50]))
    begin = bench.start()
    model = fit(matrix)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "entries": int(model.similarity.nnz), **bench.memory()}


def scipy(bench: Bench, name: str, cap: int) -> Result:
    """The whole product A'A, then G2 and the best of each row, vectorised over blocks of it."""
    try:
        sparse: Any = importlib.import_module("scipy.sparse")
    except ImportError as error:
        return {"absent": f"scipy is not installed ({error})"}
    bounds, indices = data.retained(bench, name, cap)
    shape = (bounds.size - 1, int(indices.max()) + 1)
    with bench.loading():
        matrix = sparse.csr_matrix((np.ones(indices.size, np.int32), indices, bounds), shape)
    bench.warm_up(lambda: _model(matrix[:50]))
    begin = bench.start()
    rows, product_seconds, nonzero = _model(matrix)
    seconds = time.perf_counter() - begin
    entries = sum(features.size for features, _ in rows)
    return {
        "seconds": seconds, "product_seconds": product_seconds, "nonzero": nonzero, "entries": entries,
        **bench.memory(),
    }  # fmt: skip


def _model(matrix: Any) -> tuple[list[tuple[npt.NDArray[np.int32], Floats]], float, int]:
    """(features, G2) of each row, best first; seconds of the product alone; its non-zero cells."""
    members = int(np.count_nonzero(np.diff(matrix.indptr)))
    counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
    begin = time.perf_counter()
    product = (matrix.T.tocsr() @ matrix).tocsr()
    product_seconds = time.perf_counter() - begin
    numbers = np.arange(members + 1, dtype=np.float64)
    table = numbers * np.log(np.maximum(numbers, 1))
    rows: list[tuple[npt.NDArray[np.int32], Floats]] = []
    ends = product.indptr[1:]
    first = 0
    while first < ends.size:
        begin_entry = int(product.indptr[first])
        last = max(first + 1, int(np.searchsorted(ends, begin_entry + BLOCK_ENTRIES, side="right")))
        rows += _best_of_block(product, first, last, counts, members, table)
        first = last
    return rows, product_seconds, int(product.nnz)


def _best_of_block(
    product: Any, first: int, last: int, counts: npt.NDArray[np.int64], n: int, table: Floats
) -> list[tuple[npt.NDArray[np.int32], Floats]]:
    bounds = product.indptr[first : last + 1]
    columns = product.indices[bounds[0] : bounds[-1]]
    k = product.data[bounds[0] : bounds[-1]].astype(np.int64)
    row = np.repeat(np.arange(first, last), np.diff(bounds))
    n_row, n_column = counts[row], counts[columns]
    keep = np.flatnonzero((k * n >= n_row * n_column) & (columns != row))
    k, n_row, n_column, columns = k[keep], n_row[keep], n_column[keep], columns[keep]
    g2 = table[k] + table[n_row - k]
    g2 += table[n_column - k] + table[n - n_row - n_column + k]
    g2 -= table[n_column] + table[n - n_column]
    g2 += table[n] - (table[n_row] + table[n - n_row])
    g2 *= 2
    kept = np.concatenate([[0], np.cumsum(np.bincount(row[keep] - first, minlength=last - first))])
    found = []
    for a, b in zip(kept[:-1].tolist(), kept[1:].tolist(), strict=True):
        scores, features = g2[a:b], columns[a:b]
        if scores.size > TOP_K:
            best = np.argpartition(-scores, TOP_K - 1)[:TOP_K]
            scores, features = scores[best], features[best]
        order = np.argsort(-scores, kind="stable")
        found.append((features[order], scores[order]))
    return found

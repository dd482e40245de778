"""The peer of a rebuild: the same model on Spark as it is usually written, a self-join of DataFrames.

Pairs of (user, item) joined with themselves by user, grouped by both items, G2 in column expressions, the best 50 of
each row by a window. It begins with the pairs that our retention keeps, and so has nothing to do for it.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from benchmarks import data
from benchmarks.measure import Bench
from benchmarks.rebuilds import watched
from benchmarks.scenario import Result

TOP_K = 50


def prepare(bench: Bench) -> Result:
    """Write the retained pairs of each indicator, and our rows to compare with."""
    from agents.demo.data import demo_config
    from cco.batch import rebuild
    from cco.model_file import encode

    config, log = demo_config(), data.load(bench, "demo")
    model = rebuild(config, [log.batch()], log.user_ids, log.item_ids, threads=1)
    histories, stride = model.histories, len(config.indicator_names)
    member = histories.head[::stride, 1] >= config.retention.min_primary
    pairs = {}
    for t, name in enumerate(config.indicator_names):
        head = histories.head[t::stride].astype(np.int64)
        users = np.flatnonzero(member & (head[:, 1] > 0))
        at = np.concatenate([np.arange(begin, begin + size) for begin, size in head[users].tolist()])
        items = histories.items[at]
        table = pa.table({
            "user": log.user_ids.names(np.repeat(users, head[users, 1])), "item": log.item_ids.names(items),
        })  # fmt: skip
        pyarrow.parquet.write_table(table, bench.folder / f"pairs-{name}.parquet")
        pairs[name] = len(table)
    lines = b"".join(encode(model.rows(), model.items, config)).splitlines()
    rows = {found["item"]: found["indicators"] for found in map(json.loads, lines) if "indicators" in found}
    (bench.folder / "rows.json").write_text(json.dumps(rows))
    return {"pairs": pairs, "items": len(rows)}


def self_join(bench: Bench) -> Result:
    """Time from loaded pairs to all rows, counted; then, untimed, how many of its entries are ours."""
    try:
        sql: Any = importlib.import_module("pyspark.sql")
    except ImportError as error:
        return {"absent": f"pyspark is not installed ({error})"}
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        sql.SparkSession.builder.master("local[2]")
        .config("spark.driver.memory", "8g")
        .config("spark.sql.shuffle.partitions", "8")  # two cores; its default of 200 takes longer
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    names = sorted(path.stem.removeprefix("pairs-") for path in bench.folder.glob("pairs-*.parquet"))
    with watched(os.getpid()) as peak:
        began = time.perf_counter()
        pairs = {name: session.read.parquet(str(bench.folder / f"pairs-{name}.parquet")).cache() for name in names}
        loaded = sum(frame.count() for frame in pairs.values())
        loading = time.perf_counter() - began
        bench.warm_up(lambda: _model(sql, {name: frame.limit(1000) for name, frame in pairs.items()}).count())
        began = time.perf_counter()
        rows = _model(sql, pairs).cache()
        entries = rows.count()
        seconds = time.perf_counter() - began
    agreement = _agreement(bench, rows.select("indicator", "i", "j").collect())
    session.stop()
    return {
        "seconds": seconds, "loading_seconds": loading, "pairs": loaded, "entries": entries, "agreement": agreement,
        "peak_bytes": peak[0],
    }  # fmt: skip


def _model(sql: Any, pairs: dict[str, Any]) -> Any:
    """(indicator, i, j, llr): the best of each row of each indicator."""
    f = sql.functions
    primary = pairs["purchase"]
    n = primary.select("user").distinct().count()
    of_row = primary.groupBy(f.col("item").alias("i")).agg(f.count("*").alias("n_i"))
    found = None
    for name, frame in pairs.items():
        of_column = frame.groupBy(f.col("item").alias("j")).agg(f.count("*").alias("n_j"))
        left, right = primary.withColumnRenamed("item", "i"), frame.withColumnRenamed("item", "j")
        counted = left.join(right, "user").groupBy("i", "j").agg(f.count("*").alias("k"))
        if name == "purchase":
            counted = counted.where("i <> j")
        scored = (
            counted.join(of_row, "i")
            .join(of_column, "j")
            .where(f.col("k") * n >= f.col("n_i") * f.col("n_j"))
            .withColumn("llr", _llr(f, n))
            .where(f.col("llr") > 16 * 2.0**-52 * n * math.log(max(2, n)))
        )
        best = sql.Window.partitionBy("i").orderBy(f.desc("llr"), f.asc("j"))
        top = scored.withColumn("place", f.row_number().over(best)).where(f.col("place") <= TOP_K)
        rows = top.select(f.lit(name).alias("indicator"), "i", "j", "llr")
        found = rows if found is None else found.unionByName(rows)
    return found


def _llr(f: Any, n: int) -> Any:
    """G2 of the four counts."""

    def x_log_x(x: Any) -> Any:
        return f.when(x > 0, x * f.log(x)).otherwise(0.0)

    k, row, column = f.col("k"), f.col("n_i"), f.col("n_j")
    cells = x_log_x(k) + x_log_x(row - k) + x_log_x(column - k) + x_log_x(f.lit(n) - row - column + k)
    margins = x_log_x(row) + x_log_x(f.lit(n) - row) + x_log_x(column) + x_log_x(f.lit(n) - column)
    return 2 * (cells - margins + x_log_x(f.lit(n)))


def _agreement(bench: Bench, found: list[Any]) -> float:
    """The share of entries that are in our rows as well: ties and round-off decide otherwise now and then."""
    ours = json.loads((bench.folder / "rows.json").read_text())
    known = {(name, i, j) for i, row in ours.items() for name, entries in row.items() for j, _ in entries}
    return sum((row.indicator, row.i, row.j) in known for row in found) / max(1, len(found))

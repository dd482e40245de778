"""Files larger than memory: what `cco replay` and `cco rebuild` need for a file does not grow with the file."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from agents.files.streams import BLOCK
from tests.agents.states import child

RECORD, TOGETHER = 1 << 10, 1 << 13  # bytes of a record; records of a group of rows
SMALL, LARGE = 2 * BLOCK // RECORD, 18 * BLOCK // RECORD  # records
GROWTH = 6 * BLOCK  # bytes; what a large file has more than a small one is 16 * BLOCK
KINDS = ("csv", "csv.gz", "jsonl", "jsonl.gz", "parquet", "parquet.gz")

READ = """
import os
os.environ["MIMALLOC_PURGE_DELAY"] = "0"  # else Arrow's threads keep what they gave back, more under load
import json, sys
from contextlib import suppress
from pathlib import Path
from agents.cli.main import main

for command in ("replay", "rebuild"):
    for path in sys.argv[1:]:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        with open(path) as sys.stdin:  # packed ones come by standard input
            assert main([command, "-" if path.endswith(".gz") else path, "--json"]) == 0
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(json.dumps([command, Path(path).name, 1024 * int(status["VmHWM"].split()[0])]))
"""


def records(count: int) -> list[dict[str, str | int]]:
    """Of few users and items, so that what is retained is little; nearly all of a record is its last value."""
    note = "x" * (RECORD - 50)
    return [{"user": f"u{k % 50}", "item": f"i{k % 20}", "event": "purchase", "timestamp": 1000, "event_id": note}
            for k in range(count)]  # fmt: skip


def write(folder: Path, name: str, count: int) -> list[Path]:
    """The same records in every format."""
    paths = [folder / f"{name}.{kind}" for kind in KINDS]
    some = records(TOGETHER)
    lines = "".join(",".join(map(str, record.values())) + "\n" for record in some)
    objects = "".join(json.dumps(record) + "\n" for record in some)
    group = pa.Table.from_pylist(some)
    with (
        paths[0].open("w") as csv,
        paths[2].open("w") as jsonl,
        pa.parquet.ParquetWriter(paths[4], group.schema, compression="none", use_dictionary=False) as parquet,
    ):
        csv.write(",".join(some[0]) + "\n")
        for _ in range(count // TOGETHER):
            csv.write(lines)
            jsonl.write(objects)
            parquet.write_table(group)
    for plain, packed in zip(paths[::2], paths[1::2], strict=True):
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as target:
            shutil.copyfileobj(source, target, BLOCK)
    return paths


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[Path]]:
    """Of each format a small file, then a large one; they do not stay."""
    folder = tmp_path / "files"
    folder.mkdir()
    small, large = write(folder, "small", SMALL), write(folder, "large", LARGE)
    yield [path for pair in zip(small, large, strict=True) for path in pair]
    shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is asked for in Linux's way")
def test_memory_does_not_grow_with_the_file(files: list[Path]) -> None:
    done: subprocess.CompletedProcess[str] = child(READ, *files)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    reports, peaks = told[::2], told[1::2]
    assert [report["events"] for report in reports] == [SMALL, LARGE] * 2 * len(KINDS)
    grown = {
        (command, name): large - small
        for (_, _, small), (command, name, large) in zip(peaks[::2], peaks[1::2], strict=True)
    }
    assert len(grown) == 2 * len(KINDS)
    assert max(grown.values()) <= GROWTH, grown

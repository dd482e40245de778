"""`cco rebuild --resume` dies at any moment: what was counted is kept, and the model is the same in the end."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from agents.archive.archive import Archive, table_of
from agents.cli.main import main
from agents.kafka.records import Records
from tests.agents.states import child

SEED = int(os.environ.get("CCO_CRASH_SEED", "20261123"))
RECORDS, OF_A_USER, TOGETHER, FILES = 100_000, 10, 2_000, 5  # whole groups of rows in each file
KILLS = 5
# The command, in processes of its own: pieces are small, and each is saved, so that kills find every step of both.
LIVES = """
import os, random, signal, sys
from pathlib import Path
import cco.batch
from agents.cli.main import main
from agents.rebuilds import sources

cco.batch._piece = lambda *given: 4_000  # events
sources.SAVE_EVERY, sources.SAVE_SHARE = 0.0, float("inf")
chance, kills, kept, command = random.Random(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]

def end_after(saves, seconds):
    # by the kernel, as SIGKILL does: nobody handles the alarm
    save, left = sources.Progress.save, saves
    def counted(*given):
        nonlocal left
        save(*given)
        left -= 1
        if left == 0:
            signal.setitimer(signal.ITIMER_REAL, seconds)
    sources.Progress.save = counted

for _ in range(kills):
    saves, seconds = chance.randrange(1, 4), 1e-6 + chance.random() * 0.01
    life = os.fork()  # of a process without other threads
    if life == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        end_after(saves, seconds)  # while the next piece is read, counted or saved
        os._exit(main(command))
    ended = os.waitpid(life, 0)[1]
    if not os.WIFSIGNALED(ended) or os.WTERMSIG(ended) != signal.SIGALRM:
        print("ended", flush=True)
        break
    print(sum(sources._load(kept)[0]["offsets"].values()), flush=True)
"""


def archived(url: str) -> None:
    """Purchases among 60 items, one user after the other: whoever leaves some out counts fewer users."""
    chance, archive = random.Random(SEED), Archive(url)
    pairs = [(k // OF_A_USER, int(60 * chance.random() ** 2)) for k in range(RECORDS)]
    values = [
        b'{"user_id":"u%d","item_id":"i%d","event_type":"purchase","timestamp":%d}' % (user, item, 1_600_000_000 + k)
        for k, (user, item) in enumerate(pairs)
    ]
    offsets = np.arange(RECORDS)
    keys: list[bytes | None] = [b"u%d" % user for user, _ in pairs]
    records = Records(0, keys, list(values), offsets, 1_600_000_000_000 + 1_000 * offsets, RECORDS)
    each = RECORDS // FILES
    for first in range(0, RECORDS, each):
        tables = (table_of(records.between(at, at + TOGETHER)) for at in range(first, first + each, TOGETHER))
        archive.write(tables, 0, first, first + each - 1, "2020-09-13", {"topic": "interactions", "partitions": 1})


def test_killed_at_any_moment_it_goes_on_from_what_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, kept, config = str(tmp_path / "archive"), tmp_path / "kept" / "counted", tmp_path / "cco.toml"
    archived(url)
    config.write_text("")
    kept.parent.mkdir()
    command = ["rebuild", "--archive", url, "--config", str(config), "--json"]
    resume = [*command, "--resume", str(kept), "--model", str(tmp_path / "resumed")]
    print("seed", SEED)
    done = child(LIVES, str(SEED), str(KILLS), str(kept), *resume)
    assert not done.stderr, done.stderr
    reached = [int(line) for line in done.stdout.split() if line != "ended"]
    assert len(reached) >= 3, done.stdout
    assert reached == sorted(reached) and 0 < reached[0] < reached[-1] < RECORDS, reached
    assert not (tmp_path / "resumed").exists()
    (kept.parent / f".{kept.name}.0123abcd").write_bytes(b"half")  # as a kill in the middle of a save leaves it
    capsys.readouterr()
    assert main(resume) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["resumed_records"] == reached[-1]  # nothing that was saved is read again
    assert report["events"] == RECORDS - reached[-1]
    assert main([*command, "--model", str(tmp_path / "whole")]) == 0
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]  # what was half written is gone

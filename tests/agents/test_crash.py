"""kill -9 at any moment: `cco replay --state`, killed and started again and again, ends with the batch's model."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.engine import Engine
from agents.engine_state import restore
from agents.state.errors import StateError
from agents.state.store import StateStore
from cco.config import Config, parse_config
from tests.shared import FOLDER

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("CCO_CRASH_SEED", "20261122"))
KILLS = 5  # of each configuration
LONGEST = 1.5  # seconds that a run lives which is killed by the clock: it may not have begun yet
MOST = 3_000_000  # bytes of commits after which a run is killed otherwise
TICK = 0.002  # seconds between two looks at a run

CONFIGS = {
    "uniform": """
[indicators.purchase]
removed_by = ["return"]
[retention]
source_partitions = 3
[priors]
hot = "90d"
""",
    "recent, windows": """
[indicators.purchase]
removed_by = ["return"]
user_cap = 60
[indicators.return]
[retention]
sampling = "recent"
window = "120d"
visitor_window = "30d"
min_primary = 2
source_partitions = 2
[priors]
recent = "30d"
""",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A year of real purchases and returns if it is there, else made up ones, and more in plain text with metadata."""
    folder = tmp_path_factory.mktemp("inputs")
    real = FOLDER / "data" / "online-retail" / "events.csv.gz"
    first, second = folder / "first.csv.gz", folder / "second.jsonl"
    chance = random.Random(SEED)
    if real.exists():
        shutil.copyfile(real, first)
    else:
        with gzip.open(first, "wt") as file:
            file.write("user,item,event,timestamp\n")
            for k in range(300_000):
                user, item = int(4000 * chance.random() ** 2), int(3000 * chance.random() ** 2)
                file.write(f"{user},{item},{'purchase' if k % 50 else 'return'},{1291191960 + 100 * k}\n")
    with second.open("w") as file:
        for k in range(150_000):
            user, item = int(6000 * chance.random() ** 2), int(2000 * chance.random() ** 2)
            event: dict[str, Any] = {"user_id": f"later-{user}", "item_id": f"i{item}", "event_type": "purchase"}
            event["timestamp"] = 1325376000 + 60 * k
            if k % 200 == 7:
                event = {"event": "$set", "entityType": "item", "entityId": f"i{item}", "properties": {f"p{k % 3}": k}}
            file.write(json.dumps(event) + "\n" if k % 1000 else "not JSON\n")
    return [str(first), str(second)]


def metadata(file: str) -> tuple[int, dict[str, dict[str, float]]]:
    """How many changes of items an input has, and the properties that they leave."""
    found: dict[str, dict[str, float]] = {}
    changes = [json.loads(line) for line in Path(file).read_text().splitlines() if '"$set"' in line]
    for change in changes:
        found.setdefault(change["entityId"], {}).update(change["properties"])
    return len(changes), found


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "agents", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: object) -> dict[str, Any]:
    """The JSON report of a command that must succeed."""
    done = subprocess.run(
        command(*arguments, "--json"), capture_output=True, text=True, env=environment(), timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def committed(state: Path, config: Config) -> tuple[int, int]:
    """(records, events) that the state on the disk stands for."""
    try:
        with StateStore.open(state, config, read_only=True) as store:
            position, applied = store.commit.input, sum(source[0] for source in store.commit.sources)
    except StateError as error:  # killed before there was a state
        assert "there is no state" in str(error) or "is empty" in str(error), error
        return 0, 0
    if position is None:
        assert applied == 0
        return 0, 0
    assert applied == position["accepted"]
    return sum(file["records"] for file in position["files"]), applied


def logs(state: Path) -> dict[str, int]:
    """Bytes of RocksDB's logs by name: what was written, synced or not."""
    found = {}
    for file in (state / "rocksdb").glob("*.log"):
        with contextlib.suppress(FileNotFoundError):
            found[file.name] = file.stat().st_size
    return found


def run_and_kill(replay: list[str], state: Path, chance: random.Random) -> str | None:
    """Run until a random moment, and kill; answers when that was, None if the run ended before it."""
    by_clock = chance.random() < 0.2
    lifetime, most = chance.uniform(0.1, LONGEST), int(MOST * chance.random() ** 2)
    delay = chance.choice((0.0, chance.uniform(0.0, 0.1)))
    before = logs(state)
    with subprocess.Popen(replay, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) as child:
        assert child.stderr is not None
        waited = 0.0
        try:
            while True:
                written = sum(size for name, size in logs(state).items() if name not in before)
                if waited >= lifetime if by_clock else written > most:
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    assert child.wait(TICK) == 0, child.stderr.read().decode()
                    return None
                waited += TICK
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert child.wait(delay) == 0, child.stderr.read().decode()
                return None
        finally:
            child.kill()
    return f"after {lifetime:.2f} s" if by_clock else f"{1e3 * delay:.0f} ms after {written:,} bytes"


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is for POSIX systems")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_replay_that_is_killed_again_and_again_ends_with_the_model_of_the_batch(
    name: str, inputs: list[str], tmp_path: Path
) -> None:
    chance = random.Random(f"{SEED} {name}")
    print("seed", SEED)
    settings, state = tmp_path / "cco.toml", tmp_path / "state"
    settings.write_text(CONFIGS[name])
    config = parse_config(CONFIGS[name], "cco.toml")
    batch = run("rebuild", *inputs, "--config", settings, "--model", tmp_path / "batch.jsonl")
    changes, properties = metadata(inputs[-1])
    total = batch["events"] + batch["rejected"] + changes
    replay = ("replay", *inputs, "--config", settings, "--state", state)
    often = (*replay, "--checkpoint-every", 0.02)  # commits as fast as they go: kills hit every phase of one
    kills, at, places = 0, 0, set()
    while kills < KILLS:
        if at == total:  # nothing left to interrupt: once more from the beginning
            shutil.rmtree(state)
            at = 0
        killed = run_and_kill(command(*(replay if chance.random() < 0.3 else often)), state, chance)
        kills += killed is not None
        before, (at, applied) = at, committed(state, config)
        print(f"kill {kills}: {killed or 'came to its end'}: {at:,} of {total:,} records, {applied:,} events")
        assert at >= before
        places.add(at)
    assert len(places - {0, total}) >= 2, "the kills missed the stream"
    report = run(*replay, "--model", tmp_path / "stream.jsonl")
    assert (report["events"], report["rejected"]) == (batch["events"], batch["rejected"])
    assert (report["resumed_records"], sum(report["applied"])) == (at, batch["events"])
    assert committed(state, config) == (total, batch["events"])
    assert (tmp_path / "stream.jsonl").read_bytes() == (tmp_path / "batch.jsonl").read_bytes()
    with StateStore.open(state, config) as store, Engine(config) as engine:
        restore(store, engine)
        assert {item: engine.properties(item) for item in properties} == properties

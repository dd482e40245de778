"""`make soak`: workers that die again and again while events flow, and one under a steady flow for long.

    python -m tests.kafka.soak [--kills N] [--minutes N] [--steady MINUTES] [--rate N] [--seed N] [--out FILE]

With --kills, phases of ten kills (SIGKILL) at random moments, in turn of one worker and of two; each ends when the
published model has caught up with the log, and is compared with the batch rebuild of the log, byte for byte. With
--steady, half of the highest rate for so many minutes: memory and lag every few seconds, their slopes, and the same
comparison. Results go to benchmarks/results/soak.json. Exit code 1: something differs, or is not flat.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runner import machine
from tests.kafka import steady
from tests.kafka.board import Board
from tests.kafka.events import CONFIG
from tests.kafka.flow import Flow
from tests.kafka.world import ROOT, WorkerProcess, World, wait_for
from tests.servers.kafka import KafkaServer, fetch_kafka

OUT = ROOT / "benchmarks" / "results" / "soak.json"
PHASE = 10  # kills
PAUSE = 4.0  # seconds between two kills, in the mean, if --minutes does not say
RATE = 2_000.0  # events a second while workers are killed
USERS, ITEMS, PACE = 2_000, 300, 120.0
AWAY = 5.0  # seconds that a killed worker sometimes stays away: past the session, so that the other takes over
READY = 20.0  # seconds that a kill waits at most for its victim to be ready
SESSION = "3s"


@dataclass(frozen=True, slots=True)
class Phase:
    """What a phase was. `equal`: the model of the patches is the batch rebuild of the log, byte for byte."""

    workers: int
    kills: int
    seconds: float
    events: int
    replayed: int  # events that a later life applied once more
    resyncs: int
    gaps: int
    settled_seconds: float  # from the last event until every row was exact
    equal: bool
    model_bytes: int
    sha256: str


def phase(broker: str, folder: Path, number: int, kills: int, pause: float, chance: random.Random) -> Phase:
    """Kill workers of a world of their own so often, at random moments. Raises AssertionError where models differ."""
    workers = 1 + number % 2
    world = World(broker, folder / f"phase-{number}", f"soak{number}-", CONFIG, 2, share=True, session_timeout=SESSION)
    try:
        owners = [world.worker(name) for name in ("a", "b")[:workers]]
        board = Board(owners)
        wait_for(owners[0].is_ready, "the first worker")
        flow = Flow(world, chance.randrange(1 << 32), USERS, ITEMS, PACE)
        begin = time.perf_counter()
        with flow.flowing(RATE):
            for _ in range(kills):
                victim = chance.choice(owners)
                if chance.random() < 1 / 2:  # else it may well be killed while it starts
                    _wait(board, READY, victim)
                _wait(board, chance.uniform(0.1, 2 * pause))
                victim.kill()
                _wait(board, AWAY if workers > 1 and chance.random() < 1 / 3 else 0.0)
                victim.start()
        ended = time.perf_counter()
        world.settle()
        settled = time.perf_counter() - ended
        counts = [f.counts for f in board.look()]
        world.check()
        model = world.model()
    finally:
        world.close()
    sums = {name: sum(count[name] for count in counts) for name in ("replayed", "resyncs", "gaps")}
    return Phase(
        workers, kills, round(ended - begin, 1), flow.sent.events, **sums, settled_seconds=round(settled, 1),
        equal=True, model_bytes=len(model), sha256=hashlib.sha256(model).hexdigest(),
    )  # fmt: skip


def _wait(board: Board, seconds: float, worker: WorkerProcess | None = None) -> None:
    """Let time pass, at most until `worker` is ready. What workers count is looked at, for it ends with each life."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        board.look()
        if worker is not None and worker.is_ready():
            return
        time.sleep(min(0.25, max(0.0, left)))


def run_kills(broker: str, folder: Path, kills: int, pause: float, seed: int, console: Console) -> list[Phase]:
    """All phases, and a table of them."""
    chance, phases = random.Random(seed), []
    for number in range(-(-kills // PHASE)):
        this = min(PHASE, kills - number * PHASE)
        phases.append(phase(broker, folder, number, this, pause, chance))
        p = phases[-1]
        console.print(
            f"phase {number + 1}: {p.workers} worker(s), {p.kills} kills, {p.events:,} events, {p.replayed:,} replayed:"
            f" equal, sha256 {p.sha256[:16]}, {p.model_bytes:,} bytes"
        )
        shutil.rmtree(folder / f"phase-{number}")
    return phases


def _table(phases: Sequence[Phase]) -> Table:
    table = Table(title=f"{sum(p.kills for p in phases)} kills", title_justify="left", box=None, pad_edge=False)
    for name in ("workers", "kills", "seconds", "events", "replayed", "resyncs", "gaps", "until exact", "equal"):
        table.add_column(name, justify="right")
    for p in phases:
        table.add_row(
            str(p.workers), str(p.kills), f"{p.seconds:.0f}", f"{p.events:,}", f"{p.replayed:,}", f"{p.resyncs:,}",
            str(p.gaps), f"{p.settled_seconds:.1f} s", "yes" if p.equal else "NO",
        )  # fmt: skip
    return table


def _write(out: Path, found: dict[str, Any]) -> None:
    """Add to what other runs have left in the file."""
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(known | found, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.kafka.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=0, help="how many SIGKILLs, in phases of 10")
    parser.add_argument("--minutes", type=float, help=f"over which the kills are spread; default: {PAUSE:g} s for each")
    parser.add_argument("--steady", type=float, metavar="MINUTES", help="a steady flow for so long")
    parser.add_argument("--rate", type=float, help="of the steady flow, events/s; default: half of the highest")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    if not given.kills and given.steady is None:
        parser.error("name --kills, --steady or both")
    pause = 60 * given.minutes / given.kills if given.minutes and given.kills else PAUSE
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    about = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "seed": given.seed, "machine": machine()}
    folder, flat = Path(tempfile.mkdtemp(prefix="cco-soak-")), True
    try:
        with KafkaServer(folder / "kafka", fetch_kafka()) as server:
            if given.kills:
                phases = run_kills(server.bootstrap, folder, given.kills, pause, given.seed, console)
                console.print(_table(phases))
                _write(given.out, {"kills": {**about, "pause": pause, "phases": [asdict(p) for p in phases]}})
            if given.steady is not None:
                found = steady.run(
                    server.bootstrap, folder / "steady", given.steady, given.rate, given.seed, console.print
                )
                flat = found["flat"] is not False
                console.print({key: value for key, value in found.items() if key != "samples"})
                _write(given.out, {"steady": {**about, **found}})
    except AssertionError as error:
        print(f"soak: {error}\nsoak: logs and models are kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())

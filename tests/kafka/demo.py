"""`make demo-kafka`: a year of purchases through a real Kafka and two workers, one of them killed on the way.

    python -m tests.kafka.demo [--events N] [--json]

Exit code 0: the model that the workers' patches make is, byte for byte, the batch rebuild of the log; 1: it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape

from agents.cli.common import DIFFERENT, OK, USAGE, out, print_json, size_text
from agents.demo.data import DemoDataMissing, Purchases, load_purchases
from agents.kafka.producing import Produced, produce
from tests.kafka.board import Board, Figures, Screen
from tests.kafka.world import ROOT, World, wait_for
from tests.servers.common import ServerError
from tests.servers.kafka import KafkaServer, fetch_kafka

CONFIG = """\
primary = "purchase"
max_staleness = "60s"

[indicators.purchase]
events = ["purchase", "purchase-discount", "purchase-coupon", "purchase-discount-coupon"]
[indicators.discount]
events = ["purchase-discount", "purchase-discount-coupon"]
[indicators.coupon]
events = ["purchase-coupon", "purchase-discount-coupon"]

[retention]
sampling = "recent"
source_partitions = 4
"""
SOURCES, ITEM_PARTITIONS = 4, 2
LEAST = 1_000  # purchases
BATCH = 20_000  # purchases handed to the producer at once
LOOK = 0.5  # seconds between two looks at the workers
PATIENCE = 900.0  # seconds for all of it to become exact
NEXT_STEPS = """\
With a Kafka of your own, the same by hand (README.md, "On Kafka"; deploy/cco.toml is an example of the file):

  cco topics create --config cco.toml
  cco worker --config cco.toml --name worker-1             as many as you like, each with a name of its own
  cco ingest events.csv --config cco.toml
  cco patches --topic --config cco.toml --model stream.jsonl
  cco rebuild --log --config cco.toml --model batch.jsonl
  cco compare stream.jsonl batch.jsonl
"""


class Demo:
    """One run over a broker that runs. `folder` gets configuration, states, logs and models."""

    stream_title = "A year of purchases, as fast as it goes, and a kill -9 in the middle"
    rate: float | None = None  # purchases a second; None: as fast as it goes

    def __init__(self, server: KafkaServer, folder: Path, purchases: Purchases, quiet: bool) -> None:
        self.server, self.folder, self.purchases, self.quiet = server, folder, purchases, quiet
        self.console = out()
        self.sent = Produced()
        self.sending_seconds = self.worst_staleness = 0.0

    def run(self) -> dict[str, Any]:
        """Show everything; answers the numbers, `equal` among them: whether stream and batch agree."""
        report: dict[str, Any] = {"events": len(self.purchases)}
        self.world = World(
            self.server.bootstrap, self.folder, "demo-", CONFIG, ITEM_PARTITIONS, share=True, session_timeout="10s"
        )
        try:
            self._start_workers()
            report |= self._stream()
            report |= self._prove()
            codes = {worker.name: worker.stop() for worker in self.workers}
            assert not any(codes.values()), f"workers did not stop in order: {codes}"
        finally:
            self.world.close()
        return report

    def say(self, text: str = "") -> None:
        """A line for people."""
        if not self.quiet:
            self.console.print(text)

    def title(self, text: str) -> None:
        """A heading."""
        self.say(f"\n[bold cyan]{text}[/]\n")

    # -- the workers --------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        self.title("A Kafka, and two workers")
        self.say(
            f"Apache Kafka listens at {self.server.bootstrap}. Made there: [bold]interactions[/] ({SOURCES} partitions,"
            " by user),\n[bold]edits[/] and [bold]patches[/] (by item), [bold]control[/], [bold]items[/],"
            " [bold]dead-letters[/]. Each of the two workers decides for its users what\nis kept, tells it as edits,"
            " and counts the rows of its items; `kill -9` is all that it fears, and not even that."
        )
        begin = time.perf_counter()
        self.workers = [self.world.worker(name, CCO_CHECKPOINT_EVERY="1s") for name in ("ann", "bob")]
        self.board = Board(self.workers)
        figures = wait_for(self._all_served, "all partitions to be served")
        self.say(f"\nBoth are ready after {time.perf_counter() - begin:.1f} s:")
        for worker, told in zip(self.workers, figures, strict=True):
            self.say(f"  {told.name}: {told.partitions}; {worker.url()}/status, /metrics, /readyz")

    def _all_served(self) -> list[Figures] | None:
        found = self.board.look()
        sources = sum(len(f.positions) for f in found)
        items = sum(len(f.item_partitions) for f in found)
        settled = sources == SOURCES and items == ITEM_PARTITIONS and all(f.mode == "kappa" for f in found)
        return found if settled and all(f.positions for f in found) else None

    # -- the year, with a kill ----------------------------------------------------------------------

    def _stream(self) -> dict[str, Any]:
        total = len(self.purchases)
        self.title(self.stream_title)
        self.say(
            f"{total:,} purchases go to Kafka as JSON, keyed by household. Each counts for up to three indicators:"
            " bought at all\n(that is what will be recommended), at a discount, with a coupon.\n"
        )
        self.began = time.perf_counter()
        failures: list[BaseException] = []
        sending = threading.Thread(target=self._send, args=(failures,), daemon=True)
        sending.start()
        report: dict[str, Any] = {}
        with self._screen() as show:
            self._follow(show, failures, lambda found: _applied(found) >= total // 2)
            report["kill"] = killed = self._kill()
            self._follow(show, failures, lambda found: self._goes_on(found, killed))
            self._follow(show, failures, lambda found: not sending.is_alive() and _applied(found) == total)
            report["applied_seconds"] = round(time.perf_counter() - self.began, 2)
            found = self._follow(
                show, failures, lambda found: not any(f.lag or f.due for f in found) and self.world.settled()
            )
        report["exact_seconds"] = round(time.perf_counter() - self.began, 2)
        report["produced"] = {
            "events": self.sent.events,
            "seconds": round(self.sending_seconds, 2),
            "events_per_second": round(self.sent.events / self.sending_seconds),
        }
        report["rows_counted"], report["patches"] = (sum(f.counts[name] for f in found) for name in ("rows", "patches"))
        report["worst_staleness_seconds"] = round(self.worst_staleness, 2)
        self.say(
            f"\nDone: sent in {self.sending_seconds:.1f} s, applied after {report['applied_seconds']:.1f} s, and every"
            f" row exact at the end of the log after\n{report['exact_seconds']:.1f} s, the kill included:"
            f" {total / report['exact_seconds']:,.0f} purchases a second from JSON to patches."
            f" {report['rows_counted']:,} rows counted, {report['patches']:,} patches sent."
        )
        return report

    @contextmanager
    def _screen(self) -> Iterator[Callable[[list[Figures]], None]]:
        with Screen(self.console, self.quiet) as screen:
            yield lambda found: screen.show(found, self._totals(found))

    def _totals(self, found: Sequence[Figures]) -> dict[str, float]:
        """Numbers about all of it, the first of which is the time."""
        return {"seconds": time.perf_counter() - self.began, "sent": self.sent.events, "applied": _applied(found)}

    def _send(self, failures: list[BaseException]) -> None:
        world, begin = self.world, time.perf_counter()
        at_once = BATCH if self.rate is None else max(1, round(self.rate / 2))
        batches = self.purchases.batches(world.config, world.users, world.items, at_once)

        def tell(done: Produced) -> None:
            self.sent = done

        try:
            self.sent = asyncio.run(
                produce(world.settings, world.config, world.users, world.items, batches, rate=self.rate, tell=tell)
            )
        except BaseException as error:
            failures.append(error)
        self.sending_seconds = time.perf_counter() - begin

    def _follow(
        self,
        show: Callable[[list[Figures]], None],
        failures: list[BaseException],
        until: Callable[[list[Figures]], bool],
    ) -> list[Figures]:
        """Look at the workers and show them until they are so far."""
        end = time.monotonic() + PATIENCE
        while True:
            found = self.board.look()
            self.worst_staleness = max(self.worst_staleness, *(f.staleness for f in found))
            show(found)
            if failures:
                raise failures[0]
            if until(found):
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"the workers are not through after {PATIENCE:.0f} s")
            time.sleep(LOOK)

    def _kill(self) -> dict[str, Any]:
        """Kill the worker that has most to lose, and start it again at once."""
        found = self.board.look()
        victim = max(found, key=lambda f: (len(f.item_partitions), sum(f.positions.values())))
        worker = self.world.workers[victim.name]
        worker.kill()
        self.say(f"[bold red]kill -9[/] of {victim.name} ({victim.partitions}), and a new start at once")
        worker.start()
        self._restarted = time.perf_counter()
        return {"worker": victim.name, "at": _applied(found), "told": dict(victim.positions)}

    def _goes_on(self, found: Sequence[Figures], killed: dict[str, Any]) -> bool:
        """Whether what the killed worker had is read again; until then, note how far its former life had come."""
        told: dict[int, int] = killed["told"]
        now = {source: position for f in found for source, position in f.positions.items() if source in told}
        begun = {source: begin for f in found for source, begin in f.begun.items() if source in told}
        for source in told.keys() - begun.keys():  # by its own word before the kill, or as others have heard of it
            told[source] = max(told[source], *(f.heard.get(source, 0) for f in found))
        if begun.keys() != told.keys() or (now == begun and any(f.lag for f in found)):
            return False
        repeated = {source: max(0, told[source] - begun[source]) for source in sorted(begun)}
        killed["replayed"] = {str(source): records for source, records in repeated.items()}
        killed["seconds_to_first_event"] = round(time.perf_counter() - self._restarted, 2)
        del killed["told"]
        listed = " and ".join(
            f"{records:,} of interactions-{source}" for source, records in repeated.items() if records
        )
        again = (
            f"repeats what it had told and not yet saved, {listed}; who has heard that drops it"
            if listed
            else ("repeats nothing: its snapshots were up to date")
        )
        self.say(
            f"[bold green]{killed['worker']} is back[/], {killed['seconds_to_first_event']:.1f} s after its start, and"
            f" {again}."
        )
        return True

    # -- the proof ----------------------------------------------------------------------------------

    def _prove(self) -> dict[str, Any]:
        self.title("Is it exact? What the patches made, and the batch rebuild of the log")
        told, patches = self._command("patches", "--topic", "--model", "stream.jsonl", "--json")
        read, batch = self._command("rebuild", "--log", "--model", "batch.jsonl", "--threads", "2", "--json")
        sums = {name: _digest(self.folder / f"{name}.jsonl") for name in ("stream", "batch")}
        equal = sums["stream"] == sums["batch"] and read["events"] == len(self.purchases)
        self.say(f"  stream.jsonl  sha256 {sums['stream']}  {told['items']:,} items, {size_text(told['model_bytes'])}")
        self.say(f"  batch.jsonl   sha256 {sums['batch']}  {read['events']:,} events, {size_text(read['model_bytes'])}")
        self.say(
            "\n[bold green]Not a byte differs.[/]"
            if equal
            else "\n[bold red]They differ: this is a bug, please report it.[/]"
        )
        return {
            "equal": equal,
            "sha256": sums,
            "model_bytes": told["model_bytes"],
            "patch_records": told["records"],
            "patches_seconds": round(patches, 2),
            "rebuild_seconds": round(batch, 2),
        }

    def _command(self, *arguments: str) -> tuple[dict[str, Any], float]:
        """Run `cco` with the configuration, in our folder; answers its JSON and how long it took."""
        given = [*arguments, "--config", "cco.toml"]
        shown = " ".join(argument for argument in given if argument != "--json")
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "agents", *given],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.perf_counter() - begin
        if done.returncode:
            raise RuntimeError(f"`cco {shown}` ended with code {done.returncode}: {done.stderr.strip()}")
        self.say(f"  [dim]$ cco {escape(shown)}[/]  ({took:.1f} s)")
        return json.loads(done.stdout), took


def _applied(found: Sequence[Figures]) -> int:
    return sum(sum(f.positions.values()) for f in found)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; answers the exit code: 0 equal, 1 different, 2 it could not be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.kafka.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, help="stop after this many purchases; default: the whole year")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    given = parser.parse_args(arguments)
    if given.events is not None and given.events < LEAST:
        parser.error(f"--events: at least {LEAST}, so that there is something to see")
    return run_in_folder(lambda folder: _run(folder, given.events, given.json), given.json)


def run_in_folder(run: Callable[[Path], dict[str, Any]], json: bool) -> int:
    """Run a demo in a folder of its own, which is kept if something went wrong; answers the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="cco-demo-"))
    try:
        report = run(folder)
    except (ServerError, DemoDataMissing) as error:  # nothing has begun that could be looked into
        shutil.rmtree(folder)
        print(f"demo: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        print("demo: interrupted", file=sys.stderr)
        return 130
    except BaseException:
        print(f"demo: it failed; the workers' logs are kept in {folder / 'world'}", file=sys.stderr)
        raise
    if json:
        print_json(report)
    if not report["equal"]:
        print(f"demo: logs and models are kept in {folder / 'world'}", file=sys.stderr)
        return DIFFERENT
    shutil.rmtree(folder)
    return OK


def _run(folder: Path, events: int | None, quiet: bool) -> dict[str, Any]:
    purchases = load_purchases().first(events)
    libs = fetch_kafka()
    begin = time.perf_counter()
    with KafkaServer(folder / "kafka", libs) as server:
        demo = Demo(server, folder / "world", purchases, quiet)
        report = demo.run()
    report["seconds"] = round(time.perf_counter() - begin, 2)
    demo.title(f"That was it, in {report['seconds']:.0f} seconds. What next?")
    demo.say(escape(NEXT_STEPS))
    return report


if __name__ == "__main__":
    sys.exit(main())

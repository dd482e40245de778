"""One scripted day on real servers: from kappa to lambda and back, questions asked all the time.

    python -m tests.stack.day [--events N] [--rate N] [--seed N] [--out FILE]

Events flow into two workers, and into the archive. All workers are killed; events and changes of items go on arriving.
`cco status` says lambda, and why. `cco rebuild --archive URL --tail --publish --seed` is swapped in. The workers return
without their states, take the seeds, and the mode is kappa again. In the end index, states and archive are what the log
says: every document compared, rows byte for byte. `make test` has it in small, `make soak` in large.

Exit code 1: something differs, or a question failed. Results go to benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.health import status
from agents.kafka.reading import rebuild_from_log
from cco.model_file import encode
from tests.kafka.events import CONFIG
from tests.kafka.flow import Flow
from tests.kafka.world import ROOT, WorkerProcess, wait_for
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch
from tests.servers.kafka import KafkaServer, fetch_kafka
from tests.stack.questions import Questioner
from tests.stack.serving import serving
from tests.stack.stack import Stack, changes_of

OUT = ROOT / "benchmarks" / "results" / "soak.json"
PACE = 120.0  # seconds of event time from one event to the next
EVENTS_OF_A_USER, LEAST_USERS, LEAST_ITEMS = 50, 200, 80
PATIENCE = 900.0  # seconds that a step may take
CHANGES_SECONDS = 0.5  # between two changes of items
QUIET = 100  # questions before anything happens
LEAST_SHARE = 0.8  # of the answers by history in the morning: users are deleted, and come again, meanwhile
SESSION = "10s"

Say = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """How the day went. `questions`: by phase, how many were asked and what they took, in milliseconds."""

    events: int = 0
    behind: int = 0  # of them, those that came while nobody learned
    why: list[str] = field(default_factory=list)
    what_to_do: list[str] = field(default_factory=list)
    oldest_model_seconds: float = 0.0
    rebuild_seconds: float = 0.0
    published: dict[str, Any] = field(default_factory=dict)
    to_kappa_seconds: float = 0.0
    to_exact_seconds: float = 0.0
    questions: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    model_bytes: int = 0
    sha256: str = ""
    audited: dict[str, int] = field(default_factory=dict)


class Day:
    """One day of a stack of its own; its servers run."""

    def __init__(
        self, stack: Stack, events: int, rate: float, seed: int, patience: float = PATIENCE,
        say: Say = lambda text: None,
    ) -> None:  # fmt: skip
        self.stack, self._events, self._rate, self._patience, self._say = stack, events, rate, patience, say
        users = max(LEAST_USERS, events // EVENTS_OF_A_USER)
        self._items = [f"item-{k}" for k in range(max(LEAST_ITEMS, users // 10) + 10)]  # some have no events
        self._flow = Flow(stack, seed, users, len(self._items) - 10, PACE)
        self._asked = [{"user": f"user-{k}"} for k in range(0, users, max(1, users // 200))]
        self._asked += [{"item": item} for item in self._items[:20]] + [{}]
        self._archive = str(stack.folder / "archive")
        self._phases: dict[str, tuple[float, float]] = {}
        self._seeds: dict[int, int] = {}
        self._known: set[str] = set()  # users with a history in the morning
        self.report = Report()

    def run(self) -> Report:
        """Live through it. Raises AssertionError where something is not as it must be."""
        with ExitStack() as open_:
            workers = [self.stack.worker("a"), self.stack.worker("b")]
            open_.enter_context(self._archiving())
            url = open_.enter_context(serving(self.stack))
            self._questioner = open_.enter_context(Questioner(url, self._asked))
            self._morning(workers)
            open_.enter_context(self._items_changing())
            with self._flow.flowing(self._rate):
                self._outage(workers, url)
            self._send(self._events - self._flow.sent.events)
            self.report.behind = self._flow.sent.events - self.report.behind
            with self._flow.flowing(self._rate):
                self._rebuild(url)
                self._return(workers)
            self._settle()
        self.report.events = self._flow.sent.events
        self._conclude()
        self._compare(workers)
        return self.report

    # -- the steps ----------------------------------------------------------------------------------

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._say(name)
        begin = time.perf_counter()
        yield
        self._phases[name] = (begin, time.perf_counter())

    def _morning(self, workers: Sequence[WorkerProcess]) -> None:
        self._send(self._events // 2)
        self.stack.change_items(changes_of(self._items, 0))
        wait_for(lambda: all((worker.status() or {}).get("interactions") for worker in workers), "work for both")
        self.stack.settle(self._patience)
        self._wait_for("kappa")
        self._known = set(self.stack.documents_of_users())
        assert all((worker.status() or {}).get("interactions") for worker in workers), "one worker has all the work"
        before = self._questioner.asked
        with self._phase("kappa"):
            wait_for(lambda: self._questioner.asked > before + QUIET, "questions")
        self.report.behind = self._flow.sent.events

    def _outage(self, workers: Sequence[WorkerProcess], url: str) -> None:
        """Nobody learns, and everybody is told so."""
        for worker in workers:
            worker.kill()
        with self._phase("nobody learns"):
            self._wait_for("lambda")
        code, told = self.stack.command("status")
        assert (code, told["mode"]) == (1, "lambda"), told
        self.report.why, self.report.what_to_do = told["why"], told["what_to_do"]
        self.report.oldest_model_seconds = self.stack.ask(url, {})["model_age"]
        assert self.report.oldest_model_seconds > status.FRESH

    def _rebuild(self, url: str) -> None:
        """What is served becomes the model of all that is archived and logged, while more arrives."""
        began = time.perf_counter()
        arguments = ("--archive", self._archive, "--tail", "--publish", "--seed")
        with self._phase("rebuild and swap"):
            code, told = self._command("rebuild", *arguments)
        assert code == 0, told
        self.report.rebuild_seconds = time.perf_counter() - began
        self.report.published = told["published"]
        self._seeds = {int(source): offset for source, offset in told["offsets"].items()}
        written = {int(source): seed["offset"] for source, seed in told["seeds"]["partitions"].items()}
        assert written == self._seeds, told
        model = rebuild_from_log(self.stack.settings, self.stack.config, self._seeds)
        assert self.stack.model() == b"".join(encode(model.rows(), model.items, self.stack.config))
        age = wait_for(lambda: (found := self.stack.ask(url, {})["model_age"]) < time.perf_counter() - began and found,
                       "the age of the model to fall", 30)  # fmt: skip
        assert age < self.report.oldest_model_seconds + self.report.rebuild_seconds

    def _return(self, workers: Sequence[WorkerProcess]) -> None:
        """Without what they knew: they take the seeds."""
        shutil.rmtree(self.stack.folder / "state")
        began = time.perf_counter()
        with self._phase("workers return"):
            for worker in workers:
                worker.start()
            self._wait_for("kappa")
        self.report.to_kappa_seconds = time.perf_counter() - began
        begun = _first_served(workers)
        assert begun == {source: ("seed", offset) for source, offset in self._seeds.items()}, begun
        self._returned = began

    def _settle(self) -> None:
        self.stack.settle(self._patience)
        self.report.to_exact_seconds = time.perf_counter() - self._returned

    def _conclude(self) -> None:
        """What became of the questions."""
        asked = self._questioner
        self.report.failures = asked.failures[:10]
        for name, (begin, end) in self._phases.items():
            self.report.questions[name] = {
                "asked": sum(begin <= at <= end for at, _ in asked.taken),
                **{key: asked.milliseconds(share, begin, end) for key, share in
                   (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
                "by_history": self._by_history(begin, end),
            }  # fmt: skip
        assert asked.failures == [], asked.failures[:3]
        since = self._phases["kappa"][0]
        empty = [found for found in asked.found if found.at >= since and not found.items]
        assert not empty, f"{len(empty)} answers without any item: {empty[:3]}"
        shares = {name: of["by_history"] for name, of in self.report.questions.items()}
        assert shares["kappa"] > 0.5 and min(shares.values()) > LEAST_SHARE * shares["kappa"], shares

    def _by_history(self, begin: float, end: float) -> float:
        """Of the answers for users who were known in the morning, those that their histories have found items for."""
        of_known = [f for f in self._questioner.found if begin <= f.at <= end and f.user in self._known]
        return round(sum(found.scored > 0 for found in of_known) / max(1, len(of_known)), 3)

    def _compare(self, workers: Sequence[WorkerProcess]) -> None:
        """Index, states and archive with the log."""
        self._say("comparing")
        self.stack.check_all()
        model = self.stack.model()
        self.report.model_bytes, self.report.sha256 = len(model), hashlib.sha256(model).hexdigest()
        assert [worker.stop() for worker in workers] == [0] * len(workers)
        folders = [word for worker in workers for word in ("--state", str(self.stack.folder / "state" / worker.name))]
        code, told = self.stack.command("audit", "--wait", "20", *folders)
        assert code == 0 and told["ok"] and not told["notes"], told
        sources = self.stack.config.retention.source_partitions
        assert {check["source"] for check in told["states"]} == set(range(sources)), told["states"]
        at_the_end = [check for check in told["states"] if check["offset"] == self.stack.log_ends()[check["source"]]]
        assert {check["source"] for check in at_the_end} == set(range(sources)), told["states"]
        self.report.audited = {name: told[name] for name in ("events", "items", "users")}
        code, told = self.stack.command("archive", "verify", self._archive)
        assert code == 0, told

    # -- what goes on meanwhile ---------------------------------------------------------------------

    def _send(self, number: int) -> None:
        if number > 0:
            self._flow.send(number)

    @contextmanager
    def _items_changing(self) -> Iterator[None]:
        end, failures = threading.Event(), list[BaseException]()

        def run() -> None:
            turn = 1
            while not end.wait(CHANGES_SECONDS):
                try:
                    self.stack.change_items(changes_of(self._items[turn % 7 :: 7], turn))
                except BaseException as error:
                    failures.append(error)
                turn += 1

        thread = threading.Thread(target=run, name="changes", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
        assert not failures, failures

    @contextmanager
    def _archiving(self) -> Iterator[None]:
        log = self.stack.folder / "archive.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*_CCO, "archive", "run", self._archive, "--every", "1", "--config", str(self.stack.config_file)],
                stdout=out, stderr=out, cwd=ROOT, env=os.environ,
            )  # fmt: skip
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()[-3000:]

    def _wait_for(self, mode: str) -> None:
        """What `cco status` says; if it does not come to that, what it says instead."""
        try:
            wait_for(lambda: self.stack.mode() == mode, f"mode {mode}", self._patience)
        except AssertionError as error:
            raise AssertionError(f"{error}: {status.look(self.stack.config, self.stack.settings).why}") from None

    def _command(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code, and what a command says with --json; its error where it says nothing."""
        command = [*_CCO, *arguments, "--config", str(self.stack.config_file), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=self._patience, check=False)
        return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}


_CCO = (sys.executable, "-m", "agents")


def _first_served(workers: Sequence[WorkerProcess]) -> dict[int, tuple[str, int]]:
    """By source partition, with which state and offset the first worker that had it began in this life."""
    said = [told for worker in workers for told in worker.messages() if told["message"] == "the partition is served"]
    found: dict[int, tuple[str, int]] = {}
    for told in sorted((told for told in said if "state" in told), key=lambda told: str(told["timestamp"])):
        found.setdefault(told["partition"], (told["state"], told["offset"]))
    return dict(sorted(found.items()))


# -- in large -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; answers the exit code."""
    from benchmarks.runner import machine

    parser = argparse.ArgumentParser(prog="python -m tests.stack.day", description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="at least; half of them before the outage")
    parser.add_argument("--rate", type=float, default=500.0, help="events a second, once the outage begins")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    about = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "seed": given.seed, "machine": machine()}
    folder = Path(tempfile.mkdtemp(prefix="cco-day-"))
    try:
        with (
            KafkaServer(folder / "kafka", fetch_kafka(), flags=()) as broker,
            ElasticsearchServer(folder / "node", fetch_elasticsearch(), heap="2g", flags=()) as node,
        ):
            stack = Stack(
                broker.bootstrap, folder / "stack", "day-", CONFIG, 2, share=True, session_timeout=SESSION,
                elasticsearch=node.url,
            )  # fmt: skip
            try:
                report = Day(
                    stack, given.events, given.rate, given.seed, say=lambda text: print(text, flush=True)
                ).run()
            finally:
                stack.close()
    except AssertionError as error:
        print(f"day: {error}\nday: logs and models are kept in {folder}", file=sys.stderr)
        return 1
    _tell(report)
    _write(given.out, {"day": {**about, **asdict(report)}})
    shutil.rmtree(folder)
    return 0


def _tell(report: Report) -> None:
    print(f"{report.events:,} events, {report.behind:,} of them while nobody learned")
    for line in report.why:
        print(f"  lambda: {line}")
    print(f"  rebuilt and swapped in after {report.rebuild_seconds:.1f} s")
    print(f"  after the workers' return: kappa {report.to_kappa_seconds:.1f} s, exact {report.to_exact_seconds:.1f} s")
    for name, of in report.questions.items():
        print(f"  questions, {name}: {of['asked']:.0f}; p50 {of['p50']}, p99 {of['p99']}, at most {of['max']} ms")
    print(f"  no question failed; index, states and archive are as the log says: sha256 {report.sha256[:16]}")


def _write(out: Path, found: dict[str, Any]) -> None:
    """Add to what other runs have left in the file."""
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(known | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""A real Apache Kafka broker for tests and benchmarks: fetched through Maven, started, killed, paused, started again.

`python -m tests.servers.kafka` runs one in the foreground (`make kafka`); with --fetch it only fetches what is missing.

The folder of jars also holds what makes starting fast, made once by a first run:
    pom.xml         which jars these are
    formatted/      an empty, formatted data folder, copied for each new broker: saves a JVM
    classes.jsa     the classes that a start loads, as the JVM maps them: a start takes 2.5 s instead of 5 to 8
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.etree import ElementTree

POM = Path(__file__).with_name("kafka.pom.xml")
ROOT = Path(__file__).resolve().parents[2]
SERVERS = ROOT / ".servers"  # git-ignored; what is fetched, one folder for each version

OLDEST_JAVA = 17
FAST_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # compiled quickly, not well: right for tests
STARTING, STOPPING = 60.0, 60.0  # seconds at most
TICK = 0.01  # seconds between two looks at the log
TAIL = 25  # lines of a log that an error shows
TRIES = 5  # of finding ports that nobody else takes between our look and the broker's start
PORTS = range(20_000, 32_768)  # below those that Linux gives to outgoing connections: see `_free_ports`

_STARTED = b"Kafka Server started"
_PORT_TAKEN = "Address already in use"
_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "CLIENTS",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # A killed broker may come back only when the session of its former life has ended: the default is 9 s.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
}

# Runs a command that dies with us, however we die. Not a preexec_fn: those may hang where threads run.
_LEASH = """
import ctypes, os, signal, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit("the parent has gone")
os.execvp(command[0], command)
"""
# That signal comes when the *thread* that started the child ends, so one that stays until the end starts them all.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-starter")


class KafkaError(RuntimeError):
    """The broker cannot be fetched or started: what happened, and what to do or the tail of its log."""


class KafkaServer:
    """One real Apache Kafka broker (KRaft) on free ports of 127.0.0.1, with its data in `folder`.

    `libs`: what `fetch_kafka` answers. `heap`: the JVM's. `settings`: broker settings on top of ours. `port`: for
    clients; default: a free one. `flags`: of the JVM; pass () where the broker's own speed is measured.
    The folder holds `data`, `server.properties` and `kafka.log`, and may be used again by another KafkaServer.
    """

    def __init__(
        self,
        folder: Path,
        libs: Path,
        *,
        heap: str = "512m",
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        flags: Sequence[str] = FAST_START,
    ) -> None:
        self.folder = folder
        self.log = folder / "kafka.log"
        self._libs = libs
        self._flags = (f"-Xmx{heap}", *flags)
        self._settings = dict(settings or {})
        self._wanted = port
        self._ports = _free_ports(port)
        self._has_started = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """Where clients find it, "127.0.0.1:PORT"; the same from the first `start` on, whatever happens to it."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def pid(self) -> int:
        """The JVM's process id. Raises KafkaError if it does not run."""
        return self._running().pid

    def start(self) -> None:
        """Start it, and return when it answers. May be called from any thread.

        Raises KafkaError, with the tail of the log, if it ends, or does not answer within 60 s.
        """
        if self._process is not None and self._process.poll() is None:
            raise KafkaError(f"the broker at {self.bootstrap} runs already; stop or kill it first")
        self._format()
        for _ in range(TRIES):
            failure = self._try_to_start()
            if failure is None:
                self._has_started = True
                return
            if self._has_started or self._wanted or _PORT_TAKEN not in failure:
                break
            self._ports = _free_ports(None)
        raise KafkaError(f"Kafka did not start at {self.bootstrap}: {failure}")

    def stop(self) -> None:
        """Stop it gracefully (SIGTERM) and wait for its end; also if it is paused. Nothing if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it at once (SIGKILL) and wait for its end. Nothing if it does not run."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it stand still (SIGSTOP): connections stay, and nobody answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait until it ends by itself, and answer its exit code."""
        return self._running().wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise KafkaError(f"the broker at {self.bootstrap} does not run")
        return self._process

    def _format(self) -> None:
        """Make the data folder if there is none; each one with an identity of its own."""
        data = self.folder / "data"
        if data.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(self._libs / "formatted", new)
        identity = {"version": "1", "node.id": "1", "cluster.id": _identifier(), "directory.id": _identifier()}
        _write_properties(new / "meta.properties", identity)
        new.rename(data)

    def _try_to_start(self) -> str | None:
        """What went wrong, None if nothing did."""
        clients, controller = (f"127.0.0.1:{port}" for port in self._ports)
        properties = self.folder / "server.properties"
        places = {
            "listeners": f"CLIENTS://{clients},CONTROLLER://{controller}",
            "advertised.listeners": f"CLIENTS://{clients}",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(self.folder / "data"),
        }
        _write_properties(properties, {**_SETTINGS, **places, **self._settings})
        archive = self._libs / "classes.jsa"
        shared = [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off"] if archive.exists() else []
        command = _java(self._libs, "kafka.Kafka", str(properties), flags=[*shared, *self._flags])
        with self.log.open("ab") as log:
            begin = log.tell()
            self._process = _start(command, log.fileno())
        deadline = time.monotonic() + STARTING
        while True:
            with self.log.open("rb") as file:
                file.seek(begin)
                told = file.read()
            ended = self._process.poll()
            if _STARTED in told and ended is None:
                return None
            if ended is None and time.monotonic() < deadline:
                time.sleep(TICK)
                continue
            self.kill()
            what = f"no answer within {STARTING:.0f} s" if ended is None else f"it ended with code {ended}"
            lines = told.decode(errors="replace").splitlines()
            tail = [line for line in lines if " INFO " not in line][-TAIL:] or lines[-TAIL:]
            return "\n".join([f"{what}; the tail of {self.log}:", *tail])

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # one that stands still would not see the other signal
        try:
            process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(command: Sequence[str], log: int) -> subprocess.Popen[bytes]:
    leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
    return _starter.submit(
        subprocess.Popen, [*leash, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    ).result()


def _java(libs: Path, main: str, *arguments: str, flags: Sequence[str] = ()) -> list[str]:
    quiet = ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]
    quiet.append("-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn")  # 400 lines of settings
    return [_program("java"), *quiet, *flags, "-cp", f"{libs}/*", main, *arguments]


def _free_ports(wanted: int | None) -> tuple[int, int]:
    """Two ports to listen on, for clients and for the controller.

    Not the system's choice (port 0): those are also given to outgoing connections, so that while the broker is down a
    client could take its port, even by connecting to itself.
    """
    found = [wanted] if wanted else []
    while len(found) < 2:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found[0], found[1]


def _identifier() -> str:
    """A random id as Kafka writes them: 22 characters of URL-safe base 64, not beginning with a dash."""
    return "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes)[1:22].decode()


def _write_properties(path: Path, values: Mapping[str, str]) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in values.items()), encoding="utf-8")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise KafkaError(
            f"`{name}` is not installed, and tests against a real Kafka need it: `make test` installs it, or on Debian"
            " and Ubuntu: apt-get install default-jre-headless maven"
        )
    return found


def _run(command: Sequence[str], doing: str) -> None:
    """Run a program to its end. Raises KafkaError with what it said."""
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    done = subprocess.run(
        command, check=False, text=True, errors="replace", stdin=nothing, stdout=pipe, stderr=subprocess.STDOUT
    )
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-TAIL:])
        raise KafkaError(f"{doing} failed: {Path(command[0]).name} ended with code {done.returncode}:\n{said}")


def _check_java() -> None:
    said = subprocess.run([_program("java"), "-version"], check=False, capture_output=True, text=True).stderr
    version = said.partition('version "')[2].partition(".")[0].partition('"')[0]
    if version.isdigit() and int(version) < OLDEST_JAVA:
        raise KafkaError(
            f"Kafka needs Java {OLDEST_JAVA} or newer, and `java` is {version}: put a newer one first on the PATH, on"
            f" Debian and Ubuntu: apt-get install openjdk-{OLDEST_JAVA}-jre-headless"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among all processes that do the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_kafka(servers: Path = SERVERS) -> Path:
    """The folder with Kafka's jars, fetched if they are not there (half a minute), by one process at a time.

    Raises KafkaError if Java or Maven are missing, or do not do it.
    """
    version = ElementTree.parse(POM).findtext("{*}version")
    libs = servers / f"kafka-{version}"
    if _is_complete(libs):
        return libs
    with _locked(servers / "lock"):
        if not _is_complete(libs):
            _check_java()
            shutil.rmtree(libs, ignore_errors=True)
            _fetch(libs)
            _prepare(libs)
            shutil.copyfile(POM, libs / "pom.xml.new")
            os.replace(libs / "pom.xml.new", libs / "pom.xml")  # the last thing, and at once: now it is complete
    return libs


def _is_complete(libs: Path) -> bool:
    pom = libs / "pom.xml"
    return pom.exists() and pom.read_bytes() == POM.read_bytes()


def _fetch(libs: Path) -> None:
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={libs}", "-DincludeScope=runtime"]
    _run([_program("mvn"), "-q", "-B", "-f", str(POM), *goal], "fetching Kafka's jars")


def _prepare(libs: Path) -> None:
    """Format an empty data folder, and let a first start and stop write down which classes it loads."""
    properties = libs / "format.properties"
    format_settings = {
        "listeners": "CLIENTS://127.0.0.1:1,CONTROLLER://127.0.0.1:2",
        "log.dirs": str(libs / "formatted"),
    }
    _write_properties(properties, {**_SETTINGS, **format_settings, "controller.quorum.voters": "1@127.0.0.1:2"})
    formatting = ["format", "-t", _identifier(), "-c", str(properties)]
    _run(_java(libs, "kafka.tools.StorageTool", *formatting, flags=FAST_START), "formatting a data folder")
    with tempfile.TemporaryDirectory(prefix="kafka-") as folder:
        recording = f"-XX:ArchiveClassesAtExit={libs / 'classes.jsa'}"
        with KafkaServer(Path(folder), libs, flags=(*FAST_START, recording)):
            pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a broker in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers.kafka", description=main.__doc__)
    parser.add_argument("--fetch", action="store_true", help="only fetch what is missing")
    parser.add_argument("--port", type=int, help="for clients; default: a free one")
    parser.add_argument("--folder", type=Path, help="keep the data there; default: a temporary folder")
    parser.add_argument("--heap", default="512m", help="of the JVM; default: 512m")
    given = parser.parse_args(arguments)
    try:
        libs = fetch_kafka()
        if given.fetch:
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with tempfile.TemporaryDirectory(prefix="kafka-") as temporary, suppress(KeyboardInterrupt):
            folder = given.folder or Path(temporary)
            with KafkaServer(folder.resolve(), libs, port=given.port, heap=given.heap, flags=()) as server:
                print(f"Kafka listens at {server.bootstrap}, data in {server.folder}; Ctrl-C ends it", flush=True)
                ended = server.wait()
            sys.exit(f"Kafka ended by itself with code {ended}; see {server.log}")
    except KafkaError as error:
        sys.exit(f"kafka: {error}")


if __name__ == "__main__":
    main()

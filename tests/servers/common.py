"""What the real servers of the tests have in common: fetched through Maven, started on free ports, killed, paused.

Each server is one JVM with a folder of its own; its jars are in `.servers`, one folder for each version.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
SERVERS = ROOT / ".servers"  # git-ignored; what is fetched, one folder for each version

OLDEST_JAVA = 17
FAST_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # compiled quickly, not well: right for tests
STARTING, STOPPING = 60.0, 60.0  # seconds at most
TICK = 0.01  # seconds between two looks at the log
TAIL = 25  # lines of a log that an error shows
TRIES = 5  # of finding ports that nobody else takes between our look and the server's start
PORTS = range(20_000, 32_768)  # below those that Linux gives to outgoing connections: see `_free_ports`

_PORT_TAKEN = "Address already in use"
_STACK = re.compile(r"\s+at |\s+\.\.\. [0-9]+ more")  # of an exception: its message says more

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
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")


class ServerError(RuntimeError):
    """A server cannot be fetched or started: what happened, and what to do or the tail of its log."""


class Server(ABC):
    """One JVM that listens on two free ports of 127.0.0.1, the first for clients, with its data in `folder`."""

    product: ClassVar[str]  # "Kafka"
    kind: ClassVar[str]  # "broker"
    error: ClassVar[type[ServerError]]
    told_when_started: ClassVar[bytes]  # in its log

    def __init__(self, folder: Path, libs: Path, port: int | None, heap: str, flags: Sequence[str]) -> None:
        self.folder = folder
        self.log = folder / f"{self.product.lower()}.log"
        self._libs = libs = libs.resolve()
        archive = libs / "classes.jsa"
        usable = archive.exists() and self._archive_fits()
        shared = [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off"] if usable else []
        self._flags = (*shared, f"-Xmx{heap}", *flags)
        self._wanted = port
        self._ports = _free_ports(port)
        self._has_started = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where clients find it, "127.0.0.1:PORT"; the same from the first `start` on, whatever happens to it."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def pid(self) -> int:
        """The JVM's process id. Raises ServerError if it does not run."""
        return self._running().pid

    def start(self) -> None:
        """Start it, and return when it answers. May be called from any thread.

        Raises ServerError, with the tail of the log, if it ends, or does not answer within 60 s.
        """
        if self._process is not None and self._process.poll() is None:
            raise self.error(f"the {self.kind} at {self.address} runs already; stop or kill it first")
        for _ in range(TRIES):
            failure = self._try_to_start()
            if failure is None:
                self._has_started = True
                return
            if self._has_started or self._wanted or _PORT_TAKEN not in failure:
                break
            self._ports = _free_ports(None)
        raise self.error(f"{self.product} did not start at {self.address}: {failure}")

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

    @abstractmethod
    def _command(self) -> list[str]:
        """Make in the folder what is missing, and answer the command that runs it on `self._ports`."""

    def _archive_fits(self) -> bool:
        """Whether the archive of classes is of these jars; the JVM itself checks those on its class path."""
        return True

    def _answers(self) -> bool:
        """Whether it can be used; asked again and again once it told that it has started."""
        return True

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise self.error(f"the {self.kind} at {self.address} does not run")
        return self._process

    def _try_to_start(self) -> str | None:
        """What went wrong, None if nothing did."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = self._command()
        with self.log.open("ab") as log:
            begin = log.tell()
            self._process = _start(command, log.fileno())
        deadline = time.monotonic() + STARTING
        while True:
            with self.log.open("rb") as file:
                file.seek(begin)
                told = file.read()
            ended = self._process.poll()
            if ended is None and self.told_when_started in told and self._answers():
                return None
            if ended is None and time.monotonic() < deadline:
                time.sleep(TICK)
                continue
            self.kill()
            what = f"no answer within {STARTING:.0f} s" if ended is None else f"it ended with code {ended}"
            lines = [line for line in told.decode(errors="replace").splitlines() if not _STACK.match(line)]
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


def _free_ports(wanted: int | None) -> tuple[int, int]:
    """Two ports to listen on, the first for clients.

    Not the system's choice (port 0): those are also given to outgoing connections, so that while the server is down a
    client could take its port, even by connecting to itself.
    """
    found = [wanted] if wanted else []
    while len(found) < 2:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found[0], found[1]


class Fetching:
    """Fetches one product: `sources` are the files beside this one that decide what is fetched and made.

    The folder is complete when it holds a copy of each source, by the name that is given here.
    """

    def __init__(self, product: str, error: type[ServerError], pom: Path, sources: Mapping[str, Path]) -> None:
        self._product, self._error, self._pom = product, error, pom
        self._sources = {**sources, "pom.xml": pom}

    @property
    def version(self) -> str:
        """As the pom says."""
        return ElementTree.parse(self._pom).findtext("{*}version") or ""

    def folder(self, servers: Path, prepare: Callable[[Path], None]) -> Path:
        """The folder with the jars, fetched and prepared if it is not complete, by one process at a time.

        Raises ServerError if Java or Maven are missing, or do not do it.
        """
        libs = servers / f"{self._product.lower()}-{self.version}"
        if self._is_complete(libs):
            return libs
        with _locked(servers / "lock"):
            if not self._is_complete(libs):
                self._check_java()
                shutil.rmtree(libs, ignore_errors=True)
                self._fetch(libs)
                prepare(libs)
                for name, source in self._sources.items():
                    shutil.copyfile(source, libs / f"{name}.new")
                    os.replace(libs / f"{name}.new", libs / name)  # at once; the last one completes it
        return libs

    def program(self, name: str) -> str:
        """The path of a program. Raises ServerError, which says how to install it."""
        found = shutil.which(name)
        if found is None:
            raise self._error(
                f"`{name}` is not installed, and tests against a real {self._product} need it: `make test` installs it,"
                " or on Debian and Ubuntu: apt-get install default-jre-headless maven"
            )
        return found

    def run(self, command: Sequence[str], doing: str) -> None:
        """Run a program to its end. Raises ServerError with what it said."""
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        done = subprocess.run(
            command, check=False, text=True, errors="replace", stdin=nothing, stdout=pipe, stderr=subprocess.STDOUT
        )
        if done.returncode:
            said = "\n".join(done.stdout.splitlines()[-TAIL:])
            raise self._error(f"{doing} failed: {Path(command[0]).name} ended with code {done.returncode}:\n{said}")

    def _is_complete(self, libs: Path) -> bool:
        copies = ((libs / name, source) for name, source in self._sources.items())
        return all(copy.exists() and copy.read_bytes() == source.read_bytes() for copy, source in copies)

    def _check_java(self) -> None:
        said = subprocess.run([self.program("java"), "-version"], check=False, capture_output=True, text=True).stderr
        version = said.partition('version "')[2].partition(".")[0].partition('"')[0]
        if version.isdigit() and int(version) < OLDEST_JAVA:
            raise self._error(
                f"{self._product} needs Java {OLDEST_JAVA} or newer, and `java` is {version}: put a newer one first on"
                f" the PATH, on Debian and Ubuntu: apt-get install openjdk-{OLDEST_JAVA}-jre-headless"
            )

    def _fetch(self, libs: Path) -> None:
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={libs}", "-DincludeScope=runtime"]
        command = [self.program("mvn"), "-q", "-B", "-f", str(self._pom), *goal]
        self.run(command, f"fetching {self._product}'s jars")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among all processes that do the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

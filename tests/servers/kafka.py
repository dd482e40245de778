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
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.servers.common import FAST_START, ROOT, SERVERS, Fetching, Server, ServerError

__all__ = ["FAST_START", "POM", "ROOT", "SERVERS", "KafkaError", "KafkaServer", "fetch_kafka"]

POM = Path(__file__).with_name("kafka.pom.xml")

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


class KafkaError(ServerError):
    """The broker cannot be fetched or started: what happened, and what to do or the tail of its log."""


_fetching = Fetching("Kafka", KafkaError, POM, {})


class KafkaServer(Server):
    """One real Apache Kafka broker (KRaft) on free ports of 127.0.0.1, with its data in `folder`.

    `libs`: what `fetch_kafka` answers. `heap`: the JVM's. `settings`: broker settings on top of ours. `port`: for
    clients; default: a free one. `flags`: of the JVM; pass () where the broker's own speed is measured.
    The folder holds `data`, `server.properties` and `kafka.log`, and may be used again by another KafkaServer.
    """

    product, kind, error = "Kafka", "broker", KafkaError
    told_when_started = b"Kafka Server started"

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
        super().__init__(folder, libs, port, heap, flags)
        self._settings = dict(settings or {})

    @property
    def bootstrap(self) -> str:
        """Where clients find it, "127.0.0.1:PORT"; the same from the first `start` on, whatever happens to it."""
        return self.address

    def _command(self) -> list[str]:
        self._format()
        clients, controller = (f"127.0.0.1:{port}" for port in self._ports)
        properties = self.folder / "server.properties"
        places = {
            "listeners": f"CLIENTS://{clients},CONTROLLER://{controller}",
            "advertised.listeners": f"CLIENTS://{clients}",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(self.folder / "data"),
        }
        _write_properties(properties, {**_SETTINGS, **places, **self._settings})
        return _java(self._libs, "kafka.Kafka", str(properties), flags=self._flags)

    def _format(self) -> None:
        """Make the data folder if there is none; each one with an identity of its own."""
        data = self.folder / "data"
        if data.exists():
            return
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(self._libs / "formatted", new)
        identity = {"version": "1", "node.id": "1", "cluster.id": _identifier(), "directory.id": _identifier()}
        _write_properties(new / "meta.properties", identity)
        new.rename(data)


def _java(libs: Path, main: str, *arguments: str, flags: Sequence[str] = ()) -> list[str]:
    quiet = ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]
    quiet.append("-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn")  # 400 lines of settings
    return [_fetching.program("java"), *quiet, *flags, "-cp", f"{libs}/*", main, *arguments]


def _identifier() -> str:
    """A random id as Kafka writes them: 22 characters of URL-safe base 64, not beginning with a dash."""
    return "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes)[1:22].decode()


def _write_properties(path: Path, values: Mapping[str, str]) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in values.items()), encoding="utf-8")


def fetch_kafka(servers: Path = SERVERS) -> Path:
    """The folder with Kafka's jars, fetched if they are not there (half a minute), by one process at a time.

    Raises KafkaError if Java or Maven are missing, or do not do it.
    """
    return _fetching.folder(servers, _prepare)


def _prepare(libs: Path) -> None:
    """Format an empty data folder, and let a first start and stop write down which classes it loads."""
    properties = libs / "format.properties"
    format_settings = {
        "listeners": "CLIENTS://127.0.0.1:1,CONTROLLER://127.0.0.1:2",
        "log.dirs": str(libs / "formatted"),
    }
    _write_properties(properties, {**_SETTINGS, **format_settings, "controller.quorum.voters": "1@127.0.0.1:2"})
    formatting = ["format", "-t", _identifier(), "-c", str(properties)]
    _fetching.run(_java(libs, "kafka.tools.StorageTool", *formatting, flags=FAST_START), "formatting a data folder")
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

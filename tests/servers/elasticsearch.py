"""A real Elasticsearch node for tests and benchmarks: fetched through Maven, started, killed, paused, started again.

`python -m tests.servers.elasticsearch` runs one in the foreground (`make elasticsearch`); with --fetch it only fetches
what is missing. It is the server's core without the modules of a distribution: scripts, the `sparse_vector` query,
`_delete_by_query`, `_reindex` and an answer at `/` are not there.

The folder of jars is laid out, and made fast, once:
    pom.xml         which jars these are
    libs/           the modules of the server
    compiler/       what compiled the launcher, since Java may be there without a compiler
    launcher.jar    our own `main`, from ElasticsearchLauncher.java
    home/           config, modules and plugins of every node; data and logs are in the node's own folder
    classes.jsa     the classes that a start loads, as the JVM maps them: a start takes 2 s instead of 8
    made-at         where the folder was then: an archive of the modules of another place breaks the node
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.servers.common import FAST_START, SERVERS, Fetching, Server, ServerError

__all__ = ["FAST_START", "ElasticsearchError", "ElasticsearchServer", "fetch_elasticsearch"]

POM = Path(__file__).with_name("elasticsearch.pom.xml")
LAUNCHER = Path(__file__).with_name("ElasticsearchLauncher.java")
ANSWER_SECONDS = 5.0  # of one question whether it is ready

_SETTINGS = {
    "cluster.name": "cco-tests",
    "node.name": "node-1",
    "network.host": "127.0.0.1",
    "discovery.type": "single-node",
    # Tests have small data and may have a full disk; and each makes indices of its own.
    "cluster.routing.allocation.disk.threshold_enabled": "false",
    "cluster.max_shards_per_node": "10000",
}
_PLUGIN = """\
description=Netty transport
version={version}
name=transport-netty4
classname=org.elasticsearch.transport.netty4.Netty4Plugin
java.version=17
elasticsearch.version={version}
extended.plugins=
has.native.controller=false
licensed=false
modulename=
"""


class ElasticsearchError(ServerError):
    """The node cannot be fetched or started: what happened, and what to do or the tail of its log."""


_fetching = Fetching("Elasticsearch", ElasticsearchError, POM, {LAUNCHER.name: LAUNCHER})


class ElasticsearchServer(Server):
    """One real Elasticsearch node on free ports of 127.0.0.1, with its data in `folder`.

    `libs`: what `fetch_elasticsearch` answers. `heap`: the JVM's. `settings`: of the node, on top of ours. `port`: of
    HTTP; default: a free one. `flags`: of the JVM; pass () where the node's own speed is measured.
    The folder holds `data`, `logs` and `elasticsearch.log`, and may be used again by another ElasticsearchServer.
    """

    product, kind, error = "Elasticsearch", "node", ElasticsearchError
    told_when_started = b"node started"

    def __init__(
        self,
        folder: Path,
        libs: Path,
        *,
        heap: str = "1g",
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        flags: Sequence[str] = FAST_START,
    ) -> None:
        super().__init__(folder, libs, port, heap, flags)
        self._settings = dict(settings or {})

    @property
    def url(self) -> str:
        """Where clients find it; the same from the first `start` on, whatever happens to it."""
        return f"http://{self.address}"

    def _command(self) -> list[str]:
        places = {
            "path.data": str(self.folder / "data"),
            "path.logs": str(self.folder / "logs"),
            "http.port": str(self._ports[0]),
            "transport.port": str(self._ports[1]),
        }
        settings = [f"{name}={value}" for name, value in {**_SETTINGS, **places, **self._settings}.items()]
        # The server must be a named module: on the class path it ends at once.
        modules = ["--module-path", str(self._libs / "libs"), "--add-modules", "jdk.net,ALL-MODULE-PATH"]
        main = ["-cp", str(self._libs / "launcher.jar"), LAUNCHER.stem, str(self._libs / "home")]
        quiet = ["-Dlog4j2.level=INFO", "-Dlog4j2.disable.jmx=true", "-XX:+ExitOnOutOfMemoryError"]
        return [_fetching.program("java"), *self._flags, *quiet, *modules, *main, *settings]

    def _archive_fits(self) -> bool:
        made = self._libs / "made-at"
        return made.exists() and made.read_text(encoding="utf-8") == str(self._libs)

    def _answers(self) -> bool:
        """Whether all primary shards of the data that it found are there."""
        question = f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=1s"
        try:
            with urllib.request.urlopen(question, timeout=ANSWER_SECONDS) as answer:
                return not json.load(answer)["timed_out"]
        except OSError:  # also one that says "408, not yet"
            return False


def fetch_elasticsearch(servers: Path = SERVERS) -> Path:
    """The folder with Elasticsearch's jars, fetched if they are not there (half a minute), by one process at a time.

    Raises ElasticsearchError if Java or Maven are missing, or do not do it.
    """
    return _fetching.folder(servers, _prepare)


def _prepare(folder: Path) -> None:
    """Lay out what was fetched, compile the launcher, and let a first start and stop write down its classes."""
    libs, compiler, netty = folder / "libs", folder / "compiler", folder / "home/modules/transport-netty4"
    for place in (libs, compiler, netty, folder / "home/config", folder / "home/plugins"):
        place.mkdir(parents=True)
    for jar in folder.glob("*.jar"):
        of_plugin = jar.name.startswith(("netty-", "transport-netty4-"))
        place = netty if of_plugin else compiler if jar.name.startswith("ecj-") else libs
        jar.rename(place / jar.name)  # no jar may be in two places
    (netty / "plugin-descriptor.properties").write_text(_PLUGIN.format(version=_fetching.version), encoding="utf-8")
    _compile(folder, libs, compiler)
    with tempfile.TemporaryDirectory(prefix="elasticsearch-") as data:
        recording = f"-XX:ArchiveClassesAtExit={folder / 'classes.jsa'}"
        with ElasticsearchServer(Path(data), folder, flags=(*FAST_START, recording)):
            pass
    (folder / "made-at").write_text(str(folder.resolve()), encoding="utf-8")


def _compile(folder: Path, libs: Path, compiler: Path) -> None:
    classes = folder / "classes"
    options = ["-source", "17", "-target", "17", "-proc:none", "-nowarn", "-d", str(classes)]
    main = ["-cp", f"{compiler}/*", "org.eclipse.jdt.internal.compiler.batch.Main"]
    jars = ":".join(map(str, libs.glob("*.jar")))
    command = [_fetching.program("java"), *main, *options, "-cp", jars, str(LAUNCHER)]
    _fetching.run(command, "compiling the launcher of Elasticsearch")
    with zipfile.ZipFile(folder / "launcher.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\r\n\r\n")
        for file in classes.iterdir():
            jar.write(file, file.name)
    shutil.rmtree(classes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a node in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers.elasticsearch", description=main.__doc__)
    parser.add_argument("--fetch", action="store_true", help="only fetch what is missing")
    parser.add_argument("--port", type=int, help="of HTTP; default: a free one")
    parser.add_argument("--folder", type=Path, help="keep the data there; default: a temporary folder")
    parser.add_argument("--heap", default="1g", help="of the JVM; default: 1g")
    given = parser.parse_args(arguments)
    try:
        libs = fetch_elasticsearch()
        if given.fetch:
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with tempfile.TemporaryDirectory(prefix="elasticsearch-") as temporary, suppress(KeyboardInterrupt):
            folder = given.folder or Path(temporary)
            with ElasticsearchServer(folder.resolve(), libs, port=given.port, heap=given.heap, flags=()) as server:
                print(f"Elasticsearch listens at {server.url}, data in {server.folder}; Ctrl-C ends it", flush=True)
                ended = server.wait()
            sys.exit(f"Elasticsearch ended by itself with code {ended}; see {server.log}")
    except ElasticsearchError as error:
        sys.exit(f"elasticsearch: {error}")


if __name__ == "__main__":
    main()

"""One connection that is kept, and asked over: a client that costs little beside what it measures."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
STOP_SECONDS = 20.0


class Connection:
    """HTTP/1.1 to a server that answers with a Content-Length, as ours does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, url: str) -> Self:
        """A new one."""
        place = urlsplit(url)
        return cls(*await asyncio.open_connection(place.hostname, place.port))

    async def exchange(self, request: bytes) -> bytes:
        """The body of the answer. Raises RuntimeError unless it is one of success."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"{head.splitlines()[0].decode()}: {body[:500].decode()}")
        return body

    async def post(self, path: str, body: object) -> Any:
        """What is answered to JSON."""
        return json.loads(await self.exchange(post(path, body)))

    def close(self) -> None:
        """No more."""
        self._writer.close()


def post(path: str, body: object) -> bytes:
    """A request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return f"{head}\r\n\r\n".encode() + data


class Serving:
    """A service in a process of its own: where, and which process."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.pid = url, pid


@contextmanager
def serving(command: list[str], log: Path) -> Iterator[Serving]:
    """Run a Python module that says "serving ... on URL" once it answers; its logs go to a file, as JSON lines."""
    with log.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=err, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("serving "):
                raise RuntimeError(f"{' '.join(command)}: {line}{log.read_text()[-2000:]}")
            yield Serving(line.split()[-1], process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def milliseconds(since: float) -> float:
    """Since a time of `time.perf_counter`."""
    return 1000 * (time.perf_counter() - since)

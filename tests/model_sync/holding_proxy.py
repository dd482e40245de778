"""A proxy before an Elasticsearch that keeps bulk requests, as bytes, and passes on everything else.

So what a writer sent can be carried out as late as a test likes, byte for byte.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

_STARTING = 10.0  # seconds


class HoldingProxy:
    """Listens before the node at `address`. `async with` answers its own URL.

    `holds`: whether to keep a bulk request, by its first line; default: all of them.
    """

    def __init__(self, address: str, holds: Callable[[bytes], bool] = lambda line: True) -> None:
        host, port = address.split(":")
        self._target = host, int(port)
        self._holds = holds
        self.held = b""  # the latest one
        self.has_one = asyncio.Event()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        answers = asyncio.create_task(self._pass(there, writer))
        while not reader.at_eof():
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
                request = head + await reader.readexactly(sum(lengths))
            except (asyncio.IncompleteReadError, OSError):  # whoever asks has gone, or was killed
                break
            line = head.split(b"\r\n", 1)[0]
            if b"/_bulk" in line and self._holds(line):
                self.held = request
                self.has_one.set()
            else:
                back.write(request)
        answers.cancel()
        back.close()
        writer.close()

    async def _pass(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await there.read(1 << 16):
            writer.write(data)

    async def deliver(self) -> list[int]:
        """Carry out what was held, and answer the status of each of its operations."""
        reader, writer = await asyncio.open_connection(*self._target)
        writer.write(self.held.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        answer = await reader.read()
        writer.close()
        head, body = answer.split(b"\r\n\r\n", 1)
        if b"chunked" in head.lower():
            body = body.split(b"\r\n", 1)[1].rsplit(b"\r\n0\r\n", 1)[0]
        return [item["status"] for each in json.loads(body)["items"] for item in each.values()]


@contextmanager
def in_a_thread(proxy: HoldingProxy) -> Iterator[str]:
    """The proxy's URL; it works in a thread of its own until the end of this."""
    started = Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]]()

    async def serve() -> None:
        async with proxy as url:
            end = asyncio.Event()
            started.set_result((url, asyncio.get_running_loop(), end))
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="proxy", daemon=True)
    thread.start()
    url, loop, end = started.result(_STARTING)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()

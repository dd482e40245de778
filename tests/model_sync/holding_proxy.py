"""A proxy before an Elasticsearch that keeps bulk requests, as bytes, and passes on everything else.

So what a writer sent can be carried out as late as a test likes, byte for byte.
"""

from __future__ import annotations

import asyncio
import json


class HoldingProxy:
    """Listens before the node at `address`. `async with` answers its own URL."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._target = host, int(port)
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
            except asyncio.IncompleteReadError:
                break
            lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            request = head + await reader.readexactly(sum(lengths))
            if b"/_bulk" in head.split(b"\r\n", 1)[0]:
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

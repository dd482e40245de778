"""A proxy before a broker that loses answers: it passes a produce request on and cuts the line when the answer comes.

The client cannot know whether the broker has the batch (it has) and sends it again.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Self

_PRODUCE = 0


class CuttingProxy:
    """Listens at `port` for the broker at `target`, both of 127.0.0.1; loses the answers to produce requests in `lose`.

    The broker must advertise the proxy's port as its own. `with CuttingProxy(...)`: it works until the end of that.
    """

    def __init__(self, lose: set[int]) -> None:
        self._lose = lose
        self._requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.target = 0  # set it before the first client comes
        self.lost = 0  # answers so far

    def __enter__(self) -> Self:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                broker = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            to_lose: set[bytes] = set()  # correlation ids
            with broker:
                answers = Thread(target=self._pass_answers, args=(broker, client, to_lose), daemon=True)
                answers.start()
                self._pass_requests(client, broker, to_lose)
                _hang_up(broker)
                answers.join()

    def _pass_requests(self, client: socket.socket, broker: socket.socket, to_lose: set[bytes]) -> None:
        with suppress(OSError, EOFError):
            while True:
                frame = _frame(client)
                if struct.unpack_from(">h", frame, 4)[0] == _PRODUCE:
                    self._requests += 1
                    if self._requests in self._lose:
                        to_lose.add(frame[8:12])
                broker.sendall(frame)

    def _pass_answers(self, broker: socket.socket, client: socket.socket, to_lose: set[bytes]) -> None:
        with suppress(OSError, EOFError):
            while True:
                frame = _frame(broker)
                if frame[4:8] in to_lose:
                    self.lost += 1
                    break
                client.sendall(frame)
        _hang_up(client)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _frame(connection: socket.socket) -> bytes:
    """A message with the four bytes of its size. Raises EOFError."""
    size = _exactly(connection, 4)
    return size + _exactly(connection, int.from_bytes(size, "big"))


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)

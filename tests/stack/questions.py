"""Questions to a service: one, or all the time from a thread of its own, with how long each took."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

TIMEOUT = 10.0  # seconds
IDLE = 20.0  # seconds after which a connection is made anew: the other side may have closed it
PAUSE = 0.02  # seconds between an answer and the next question


class Found(NamedTuple):
    """What an answer had. `scored`: items that were found by the history, and not for want of better ones."""

    at: float  # seconds, of `time.perf_counter`
    user: str | None
    items: int
    scored: int


class Client:
    """One connection to a service."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(str(urlsplit(url).netloc), timeout=TIMEOUT)
        self._used = 0.0

    def post(self, path: str, body: object) -> Any:
        """What it answers to JSON. Raises RuntimeError with the answer if that is an error."""
        if time.monotonic() - self._used > IDLE:
            self._connection.close()
        self._used = time.monotonic()
        try:
            self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            content = answer.read()
        except BaseException:
            self._connection.close()  # the next request opens it again
            raise
        if answer.status >= 300:
            raise RuntimeError(f"{path}: {answer.status} {content.decode(errors='replace')[:500]}")
        return json.loads(content)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question."""
        found: dict[str, Any] = self.post("/recommendations", question)
        return found

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


class Questioner:
    """Asks one question after the other, and again from the first, as long as it lasts."""

    def __init__(self, url: str, questions: Sequence[dict[str, Any]]) -> None:
        self._client, self._questions = Client(url), questions
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="questions", daemon=True)
        self.failures: list[str] = []
        self.taken: list[tuple[float, float]] = []  # when an answer was there, and what it took: seconds
        self.found: list[Found] = []  # what was in it

    @property
    def asked(self) -> int:
        """Questions that were answered, or failed."""
        return len(self.taken) + len(self.failures)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            begin = time.perf_counter()
            question = self._questions[number % len(self._questions)]
            try:
                items = self._client.ask(question)["items"]
            except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            else:
                end = time.perf_counter()
                self.taken.append((end, end - begin))
                scored = sum(item["score"] > 0 for item in items)
                self.found.append(Found(end, question.get("user"), len(items), scored))
            number += 1
            self._stop.wait(PAUSE)

    def milliseconds(self, share: float, since: float = 0.0, until: float = float("inf")) -> float:
        """What that share of the answers within a time took at most; 0 without any."""
        found = sorted(took for end, took in self.taken if since <= end <= until)
        return round(1000 * found[min(len(found) - 1, int(share * len(found)))], 1) if found else 0.0

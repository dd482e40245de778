"""Requests that are made again while Elasticsearch is away, for as long as somebody is willing to wait."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from elasticsearch import ApiError, TransportError

from model_sync.elastic_client import ElasticProblem, NotNow, elastic_errors

T = TypeVar("T")
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds
_PASSING = (408, 429, 500, 502, 503, 504)


def passes(error: BaseException | None) -> bool:
    """Whether an error is one of those that may be over in a while."""
    if isinstance(error, ElasticProblem):
        return isinstance(error, NotNow) or passes(error.__cause__)
    if isinstance(error, ApiError):
        return error.status_code in _PASSING
    return isinstance(error, TransportError)


class Patience:
    """Makes requests. `check` is called before each try, and raises what ends them."""

    def __init__(self, seconds: float, check: Callable[[], None], tell: Callable[[str], None]) -> None:
        self._seconds, self._check, self._tell = seconds, check, tell

    def __call__(self, doing: str, request: Callable[[], T]) -> T:
        """The answer of `request`, which may be repeated. Raises ElasticProblem when patience is at its end."""
        until, wait, told = time.monotonic() + self._seconds, FIRST_WAIT, False
        while True:
            self._check()
            try:
                with elastic_errors(doing=doing):
                    return request()
            except ElasticProblem as error:
                if not passes(error) or time.monotonic() > until:
                    raise
                if not told:
                    told = True
                    self._tell(f"{error}; trying again for {self._seconds:.0f} s")
            time.sleep(wait * (0.5 + random.random() / 2))
            wait = min(2 * wait, LONGEST_WAIT)

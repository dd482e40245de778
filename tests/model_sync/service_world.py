"""A service over a real index in memory, and a client that speaks to it without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from fastapi import FastAPI

from cco.config import make_config
from cco.vocabulary import Vocabulary
from model_sync.contract import Hit, Query
from model_sync.memory import MemoryIndex
from model_sync.metadata import Properties
from model_sync.service.app import make_service
from model_sync.service.auth import ApiKey
from model_sync.service.store import StoreProblem
from tests.model_sync.reference import patches

CONFIG = make_config(
    {
        "primary": "buy",
        "indicators": {"buy": {"events": ["buy", "order"]}, "view": {"weight": 0.5, "events": ["view", "look"]}},
        "priors": {"popular": "all", "recent": "30d"},
    }
)
READ, WRITE = "read-key-0123456789", "write-key-0123456789"
KEYS = (ApiKey("reader", READ, frozenset({"read"})), ApiKey("writer", WRITE, frozenset({"write"})))
ROWS: dict[str, dict[str, dict[str, float]]] = {
    "tablet": {"buy": {"phone": 4.0, "pen": 2.0}, "view": {"phone": 8.0}, "priors": {"popular": 3.0, "recent": 1.0}},
    "phone": {"buy": {"tablet": 4.0}, "view": {"tablet": 2.0}, "priors": {"popular": 5.0}},
    "pen": {"buy": {"tablet": 2.0}, "priors": {"popular": 1.0, "recent": 4.0}},
    "old": {"buy": {"phone": 9.0}},
    "soon": {"buy": {"phone": 9.0}},
    "hidden": {"buy": {"phone": 9.0}},
}
ITEMS: dict[str, dict[str, Any]] = {
    "tablet": {"category": ["tablet", "device"], "price": 300, "title": "Tablet"},
    "phone": {"category": ["device"], "price": 500.5, "title": "Phone"},
    "pen": {"category": ["paper"], "price": 2, "since": "2024-03-01"},
    "cheap": {"price": 1},
    "old": {"expires": "2024-01-01T00:00:00Z"},
    "soon": {"available": "2030-01-01T00:00:00Z"},
    "hidden": {"recommendable": False},
}
HISTORIES = {
    "u": {"buy": ["phone"], "view": ["phone", "pen"], "gone": ["tablet"]},  # "gone" as of an earlier configuration
    "stranger": dict[str, list[str]](),
}
NOW = "2026-06-01T00:00:00Z"


class IndexStore:
    """A store over an index; `away` is what keeps it from answering."""

    def __init__(self) -> None:
        items = Vocabulary()
        self.index = MemoryIndex(CONFIG, items)
        self.index.apply(patches(CONFIG, items, ROWS))
        self.index.put_items(ITEMS)
        self.away: str | None = None
        self.gate: asyncio.Event | None = None  # searches wait for it
        self.searching = 0

    async def search(self, query: Query) -> list[Hit]:
        self._check()
        self.searching += 1
        if self.gate is not None:
            await self.gate.wait()
        return self.index.search(query)

    async def history(self, user: str) -> Mapping[str, list[str]]:
        self._check()
        return HISTORIES.get(user, {})

    async def properties(self, item: str) -> Properties | None:
        self._check()
        return self.index.properties(item)

    async def problem(self) -> str | None:
        return self.away

    def _check(self) -> None:
        if self.away is not None:
            raise StoreProblem(self.away)


class Sink:
    """Takes records with a user, and remembers them."""

    def __init__(self) -> None:
        self.taken: list[Mapping[str, Any]] = []
        self.away: str | None = None

    async def accept(self, records: Sequence[Mapping[str, Any]]) -> list[str | None]:
        if self.away is not None:
            raise StoreProblem(self.away)
        self.taken += [record for record in records if "user_id" in record]
        return [None if "user_id" in record else "user_id is missing" for record in records]


class World:
    """A service, and answers to requests to it."""

    def __init__(self, keys: Sequence[ApiKey] = (), **options: Any) -> None:
        self.store, self.sink = IndexStore(), Sink()
        events = options.pop("events", self.sink)
        self.app: FastAPI = make_service(CONFIG, self.store, events, keys, now=lambda: NOW, **options)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def ask(self, question: object, status: int = 200) -> Any:
        """The answer to a question, decoded."""
        response = self.request("POST", "/recommendations", json=question)
        assert response.status_code == status, response.text
        kind = "application/json" if status == 200 else "application/problem+json"
        assert response.headers["content-type"] == kind
        return response.json()

    def items(self, **question: Any) -> list[str]:
        return [found["item"] for found in self.ask(question)["items"]]

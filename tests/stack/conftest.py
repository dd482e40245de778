"""Fixtures of the tests on real servers of both kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_sync import elastic_swap
from tests.kafka.events import CONFIG
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.stack.stack import Stack

MakeStack = Callable[..., Stack]


@pytest.fixture
def nobody_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebuilds of this process wait a moment, and not for seconds, until they see that no worker writes their index."""
    monkeypatch.setattr(elastic_swap, "NOBODY_SECONDS", 0.5)


@pytest.fixture
def make_stack(
    kafka: KafkaServer, elasticsearch: ElasticsearchServer, index_prefix: str, tmp_path: Path
) -> Iterator[MakeStack]:
    """Stacks on the shared servers; their workers are killed at the end."""
    made: list[Stack] = []

    def make(toml: str = CONFIG, url: str = "", broker: str = kafka.bootstrap, **options: object) -> Stack:
        name = f"{index_prefix}{len(made)}-"
        at = url or elasticsearch.url
        made.append(Stack(broker, tmp_path / name, name, toml, elasticsearch=at, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for stack in made:
        stack.close()

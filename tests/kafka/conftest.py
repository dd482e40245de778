"""Fixtures of the tests on a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kafka.events import CONFIG
from tests.kafka.world import MakeWorld, World
from tests.servers.kafka import KafkaServer


@pytest.fixture
def make_world(kafka: KafkaServer, tmp_path: Path, topic_prefix: str) -> Iterator[MakeWorld]:
    """Worlds on the shared broker; their workers are killed at the end."""
    worlds: list[World] = []

    def make(toml: str = CONFIG, broker: str = kafka.bootstrap, **options: object) -> World:
        name = f"{topic_prefix}{len(worlds)}-"
        worlds.append(World(broker, tmp_path / name, name, toml, **options))  # type: ignore[arg-type]
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()

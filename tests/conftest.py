"""Hypothesis profiles: no deadlines (kernels compile during tests), and a fast one for showing that a test fails.

And the real servers, one of a kind for all tests of a process, started when the first test wants it.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator

import pytest
from elasticsearch import Elasticsearch
from hypothesis import HealthCheck, Phase, settings

from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch
from tests.servers.kafka import KafkaServer, fetch_kafka

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile(
    "mutants",
    parent=settings.get_profile("tests"),
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # a failure is enough, the smallest one is not needed
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A test may set up the log of a whole process, on a stream that ends with it: no other may write there."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A real broker that runs. Tests share it: each uses topics and groups of its own, see `topic_prefix`.

    A test that stops or kills the broker starts one of its own (2 s).
    """
    folder = tmp_path_factory.mktemp("kafka")
    server = KafkaServer(folder, fetch_kafka())
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture
def topic_prefix() -> str:
    """What the names of a test's topics and groups begin with, so that it has the shared broker for itself."""
    return f"t{uuid.uuid4().hex[:8]}-"


@pytest.fixture(scope="session")
def elasticsearch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ElasticsearchServer]:
    """A real Elasticsearch node that runs. Tests share it: each uses indices of its own, see `index_prefix`.

    A test that stops, kills or pauses the node starts one of its own.
    """
    folder = tmp_path_factory.mktemp("elasticsearch")
    server = ElasticsearchServer(folder, fetch_elasticsearch())
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture
def index_prefix(elasticsearch: ElasticsearchServer) -> Iterator[str]:
    """What the names of a test's indices begin with, so that it has the shared node for itself; removed afterwards."""
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    yield prefix
    with Elasticsearch(elasticsearch.url) as client:
        made = list(client.indices.get_alias(index=f"{prefix}*"))
        if made:
            client.indices.delete(index=made)
        client.options(ignore_status=404).indices.delete_index_template(name=f"{prefix}*")

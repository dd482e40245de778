"""Models to publish, made up; a rebuild that dies at a step of one's choice; what an index says of all that."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from elasticsearch import Elasticsearch

from cco.model_file import encode
from cco.rows import Rows
from cco.vocabulary import Vocabulary
from model_sync import elastic_swap
from model_sync.elastic_client import ElasticOptions, IndexNames
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_swap import Published, rebuilding
from model_sync.elastic_versions import versions
from tests.model_sync.samples import CONFIG

DIED = 9
PAUSE = 0.01  # seconds between two questions, which leave the node time for the rebuild
Made = tuple[Rows, Sequence[str]]  # rows, and the names of the items that they are about


def made_up(seed: int, number: int = 60) -> Made:
    """Rows of `number` items, with weights that an index keeps as they are. The same seed makes the same."""
    chance = random.Random(seed)
    names = [f"item.{k}/%" for k in range(number)]
    item, field, start, feature, weight = [], [], [0], [], []
    for i in range(number):
        for t in range(len(CONFIG.indicator_names) + 1):
            is_prior = t == len(CONFIG.indicator_names)
            others = range(len(CONFIG.prior_names)) if is_prior else [k for k in range(number) if k != i or t]
            chosen = chance.sample(others, chance.randrange(1 if t else 2, min(8, len(others)) + 1))
            weights = sorted(chance.sample(range(1, 512), len(chosen)), reverse=True)  # no ties: they go by id
            item.append(i)
            field.append(t)
            feature += chosen
            weight += [w / 4 for w in weights]
            start.append(len(feature))
    rows = Rows(
        np.array(item, np.uint32), np.array(field, np.uint8), np.array(start, np.int64),
        np.array(feature, np.uint32), np.array(weight, np.float32),
    )  # fmt: skip
    return rows, names


def vocabulary(names: Sequence[str]) -> Vocabulary:
    """Ids at the places that rows refer to."""
    items = Vocabulary()
    items.intern(names)
    return items


def model(made: Made) -> bytes:
    """As a model file."""
    rows, names = made
    return b"".join(encode(rows, vocabulary(names), CONFIG))


def served(client: Elasticsearch, names: IndexNames, known: Sequence[str]) -> bytes:
    """What is served, as a model file."""
    client.indices.refresh(index=names.items)
    items = vocabulary(known)
    rows = ElasticIndex(client, names.items, CONFIG, items).rows()
    return b"".join(encode(rows, items, CONFIG))


def publish(options: ElasticOptions, made: Made, **given: Any) -> Published:
    """A rebuild from its beginning to its end."""
    allow_smaller = given.pop("allow_smaller", False)
    rows, names = made
    with rebuilding(CONFIG, options, **given) as swap:
        return swap.publish(rows, vocabulary(names), {"0": 17}, allow_smaller=allow_smaller)


def roles(client: Elasticsearch, names: IndexNames) -> dict[str, str]:
    """By the number of each version, what it is."""
    return {version.name.rpartition("-")[2]: version.role for version in versions(client, names)}


# -- rebuilds that die ------------------------------------------------------------------------------


def die_at(step: str, options: ElasticOptions, made: Made) -> None:
    """Publish in a process that is gone, without a word, once a step that is told begins with `step`."""
    context = multiprocessing.get_context("forkserver")  # the second process has all that the first one imported
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_publish_until, args=(step, options, made))
    process.start()
    process.join(60)
    assert process.exitcode == DIED


def _publish_until(step: str, options: ElasticOptions, made: Made) -> None:
    def tell(text: str) -> None:
        if text.startswith(step):
            os._exit(DIED)

    elastic_swap.NOBODY_SECONDS = 0.0
    publish(options, made, tell=tell)


class Asking:
    """Asks all the time, from a thread, and keeps what went wrong. `ask` raises or answers whether all is well."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask, self._stop = ask, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.asked = 0
        self.failures: list[str] = []

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE):
            try:
                if not self._ask():
                    self.failures.append("a wrong answer")
            except Exception as error:
                self.failures.append(repr(error))
            self.asked += 1

"""Events that come by HTTP, into Kafka: the event sink of `cco serve` beside workers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from agents.kafka.client import client_options
from agents.kafka.item_changes import encode_change
from agents.kafka.topics import INTERACTIONS, ITEMS
from agents.settings import Settings
from cco.config import Config
from cco.event_data import ItemChange
from cco.fields import FieldRules
from cco.values import BadRecord
from model_sync.metadata import change_problem
from model_sync.service.store import StoreProblem

REQUEST_SECONDS = 10.0  # for everything until the broker acknowledges; after that the client is told to try again
CLOSING_SECONDS = 2.0
MOST_BYTES = 1_000_000  # of a record: brokers take 1 MiB with what is around it


class KafkaEvents:
    """Sends accepted records, as they came, keyed by user or item; answers when the broker has them in its log.

    The partition of a key is Kafka's murmur2, as the workers want it. Connects when the first record comes.
    """

    def __init__(self, config: Config, settings: Settings) -> None:
        self._rules = FieldRules.of(config)
        self._interactions, self._items = settings.topic(INTERACTIONS), settings.topic(ITEMS)
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **client_options(self._settings), enable_idempotence=True, acks="all",
                    request_timeout_ms=int(1000 * REQUEST_SECONDS),
                )  # fmt: skip
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def close(self) -> None:
        """Let go of the connections."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):
                await asyncio.wait_for(producer.stop(), CLOSING_SECONDS)

    async def accept(self, records: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """Per record None, or why it was refused. Raises StoreProblem if Kafka does not take the others."""
        answers: list[str | None] = []
        messages = []
        for record in records:
            try:
                messages.append(self._message(record))
                answers.append(None)
            except BadRecord as error:
                answers.append(str(error))
        try:
            async with asyncio.timeout(REQUEST_SECONDS):  # the client itself never gives up what it has numbered
                producer = await self._connected()
                futures = [await producer.send(topic, value, key) for topic, key, value in messages]
                await asyncio.gather(*futures)
        except (KafkaError, TimeoutError) as error:
            if isinstance(error, KafkaError) and not error.retriable:
                await self.close()  # what is fatal to a producer is so for ever: the next request makes another
            said = str(error) or "no answer"
            raise StoreProblem(f"Kafka does not take events ({said}); the same request may be sent again") from None
        return answers

    def _message(self, record: Mapping[str, Any]) -> tuple[str, bytes, bytes]:
        """Topic, key and value. Raises BadRecord."""
        topic, key, value = self._encoded(record)
        if len(key) + len(value) > MOST_BYTES:
            raise BadRecord(f"the record has {len(value)} bytes; at most {MOST_BYTES} are possible")
        return topic, key, value

    def _encoded(self, record: Mapping[str, Any]) -> tuple[str, bytes, bytes]:
        found = self._rules.accept(record, int(time.time()))
        if isinstance(found, ItemChange):
            problem = change_problem(found)
            if problem is not None:
                raise BadRecord(problem, "item_change")
            return self._items, *encode_change(found)
        if found.user is None:
            raise BadRecord("$clock is for whoever writes the log itself", "type")
        return self._interactions, found.user.encode(), json.dumps(record, ensure_ascii=False).encode()

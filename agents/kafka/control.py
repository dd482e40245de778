"""Messages of the topic `control` besides the requests of item partitions (`item_agent.Request`): what tools ask."""

from __future__ import annotations

import msgspec
from aiokafka import AIOKafkaProducer

from agents.kafka.client import client_options, kafka_errors
from agents.kafka.topics import CONTROL
from agents.settings import Settings
from cco.config import Config


class SendAgain(msgspec.Struct, frozen=True):
    """Asks all workers to publish every row and every user once more: the index is not as they know it."""

    epoch: str
    send_again: bool


def encoded(epoch: str) -> bytes:
    """The message, for workers with this epoch."""
    return msgspec.json.encode(SendAgain(epoch, send_again=True))


def is_send_again(data: bytes, epoch: str) -> bool:
    """Whether a message of the topic is that, and for workers with this epoch."""
    try:
        found = msgspec.json.decode(data, type=SendAgain)
    except msgspec.MsgspecError:
        return False
    return found.send_again and found.epoch == epoch


async def ask_to_send_again(config: Config, settings: Settings) -> None:
    """Ask all workers that run. Raises KafkaProblem."""
    with kafka_errors(settings, "asking workers to publish everything once more"):
        producer = AIOKafkaProducer(**client_options(settings), enable_idempotence=True, acks="all")
        try:
            await producer.start()
            await producer.send_and_wait(settings.topic(CONTROL), value=encoded(config.epoch), partition=0)
        finally:
            await producer.stop()

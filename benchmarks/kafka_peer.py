"""A Faust agent as its manual shows it, one message per event, that does what the user agent does.

python -m benchmarks.kafka_peer CONFIG FOLDER EVENTS: prints the rate as JSON once so many are done.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import faust
from aiokafka import AIOKafkaProducer

from agents.kafka.client import client_options
from agents.settings import load_settings
from agents.workers.user_partition import SourceLog, UserPartition


def main(file: Path, folder: Path, events: int) -> None:
    """Run until `events` are done."""
    config, settings = load_settings(file, {})
    partition = UserPartition(config, SourceLog("interactions", 0, 1, "benchmark"), 1)
    app = faust.App(
        "one-by-one", broker=f"kafka://{settings.brokers}", store="memory://", datadir=folder / "faust",
        autodiscover=False, web_enabled=False, topic_disable_leader=True, topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
    )  # fmt: skip
    topic = app.topic(
        settings.topic("interactions"), key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )
    state: dict[str, float] = {"done": 0, "begun": 0}

    @app.agent(topic)
    async def take(stream: faust.StreamT[bytes]) -> None:
        producer = AIOKafkaProducer(
            **client_options(settings), enable_idempotence=True, acks="all", compression_type="zstd"
        )
        await producer.start()
        sent: list[asyncio.Future[object]] = []
        async for event in stream.events():
            message = event.message
            record = SimpleNamespace(
                value=message.value, key=message.key, timestamp=int(message.timestamp * 1000), offset=message.offset,
                headers=(),
            )  # fmt: skip
            told = partition.apply([record], message.offset + 1)
            for target, data in told.messages:
                sent.append(await producer.send(settings.topic("edits"), value=data, partition=target))
            if len(sent) >= 1000:
                await asyncio.gather(*sent)
                sent.clear()
            state["done"] += 1
            if state["done"] == 1_000:  # kernels are loaded, Kafka is warm
                state["begun"] = time.perf_counter()
            if state["done"] == events:
                rate = (events - 1_000) / (time.perf_counter() - state["begun"])
                print("\n" + json.dumps({"rate": rate}), flush=True)
                os._exit(0)

    faust.Worker(app, loglevel="ERROR", redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

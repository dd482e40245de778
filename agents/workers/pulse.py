"""Whether a worker's work goes round, and whether Kafka answers it: what does not show in what is applied."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from agents.health.modes import Reason

HUNG_SECONDS = 60.0  # since the last round of the worker, after which it is taken to hang
SILENT_SECONDS = 10.0  # since Kafka's last answer, after which it counts as away
ASK_SECONDS = 1.0  # between two questions to Kafka


class Pulse:
    """Of one worker. Every round of its ticks goes through the compute thread, so both show."""

    def __init__(self) -> None:
        self._ticked: float | None = None  # clock time of the last round; None until kernels are there
        self._answered = time.monotonic()

    def warm(self) -> None:
        """Kernels are compiled or loaded, which may have taken minutes: from now on rounds are waited for."""
        self._ticked = time.monotonic()

    def tick(self) -> None:
        """A round is done."""
        if self._ticked is not None:
            self._ticked = time.monotonic()

    def answer(self) -> None:
        """Kafka has answered."""
        self._answered = time.monotonic()

    def hung(self) -> Iterator[Reason]:
        """What has failed and will not mend itself."""
        stood = 0.0 if self._ticked is None else time.monotonic() - self._ticked
        if stood > HUNG_SECONDS:
            yield Reason(
                "lambda", "", f"the worker hangs: nothing was computed for {stood:.0f} s", "start it again (SIGKILL)"
            )

    def silent(self) -> Iterator[Reason]:
        """Without Kafka there is no lag to be seen, whatever others produce."""
        silent = time.monotonic() - self._answered
        if silent > SILENT_SECONDS:
            yield Reason(
                "catching_up", "", f"Kafka has not answered for {silent:.0f} s: what came since is not known",
                "see to its brokers",
            )  # fmt: skip

    async def listen_forever(self, consumer: AIOKafkaConsumer, tps: Callable[[], Iterable[TopicPartition]]) -> None:
        """Ask the leaders of `tps` for the ends of their logs, again and again; the client ends each question."""
        while True:
            with suppress(KafkaError):
                await consumer.end_offsets(list(tps()))
                self.answer()
            await asyncio.sleep(ASK_SECONDS)

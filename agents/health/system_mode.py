"""The mode of the whole system as a metric of the query service: of workers that are gone no metric tells any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agents.health.modes import MODES, Mode
from agents.health.status import look
from agents.log import get_logger
from agents.settings import Settings
from cco.config import Config

EVERY = 10.0  # seconds between two looks
STOP_SECONDS = 1.0  # that the end waits for a look


class SystemMode(Collector):
    """What `cco status` shows, looked at every few seconds; nothing before the first look is done, or if one fails."""

    def __init__(self, config: Config, settings: Settings) -> None:
        self._config, self._settings = config, settings
        self._mode: Mode | None = None
        self._ended = threading.Event()

    def collect(self) -> Iterator[Metric]:
        """A series for each mode: 1 for the one that it is, 0 for the others."""
        family = GaugeMetricFamily("cco_system_mode", "Mode of the whole system, as cco status shows.", labels=["mode"])
        now = self._mode
        for mode in () if now is None else MODES:
            family.add_metric([mode], float(mode == now))
        yield family

    @contextmanager
    def following(self) -> Iterator[None]:
        """Looks meanwhile, from a thread that nobody waits for for long: where Kafka is away, a look takes long."""
        thread = threading.Thread(target=self._follow, name="system mode", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(STOP_SECONDS)

    def _follow(self) -> None:
        while not self._ended.is_set():
            try:
                self._mode = look(self._config, self._settings).mode
            except Exception as error:  # whatever it is, questions are answered
                if self._mode is not None:
                    get_logger().warning("the mode of the system cannot be told", reason=repr(error)[:300])
                self._mode = None
            self._ended.wait(EVERY)

"""A rebuilt model into Elasticsearch: what of it is the command's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from elasticsearch import AuthorizationException, Elasticsearch

from agents.elastic import elastic_options
from agents.health.reports import rows_are_written
from agents.kafka.client import KafkaProblem
from agents.kafka.logs import log_differences, look_at_logs, signature
from agents.settings import Settings
from cco.config import Config
from model_sync.elastic_client import ElasticProblem, names
from model_sync.elastic_status import read, status_index
from model_sync.elastic_swap import rebuilding

if TYPE_CHECKING:
    from agents.rebuilds.sources import Computed, Rebuilt


@contextmanager
def publishing(
    config: Config,
    settings: Settings,
    *,
    take_over: bool = False,
    allow_smaller: bool = False,
    source: str = "log",
    in_part: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Callable[[Rebuilt[Computed]], dict[str, Any]]]:
    """Enter before computing, so that a second rebuild is refused at once; yields what publishes the model.

    `source`: what the model is made from; `in_part`: not to its end, as it was wanted.
    Raises ConfigError where Elasticsearch is not set up, ElasticProblem; then nothing was published.
    """
    options = elastic_options(settings)
    said = f"{source}, in part" if in_part else source

    def someone_writes(client: Elasticsearch) -> bool:
        try:
            reports = read(client, status_index(options.prefix))
        except AuthorizationException:  # it can be done without
            return False
        return rows_are_written(reports, config.epoch, time.time())

    with rebuilding(
        config, options, take_over=take_over, source=said, tell=tell, someone_writes=someone_writes
    ) as swap:
        _check_log(settings, names(options).items, swap.log_of_served, needed=source != "archive")

        def publish(rebuilt: Rebuilt[Computed]) -> dict[str, Any]:
            offsets = {str(partition): offset for partition, offset in rebuilt.offsets.items()}
            return asdict(swap.publish(rebuilt.model.rows(), rebuilt.model.items, offsets, allow_smaller=allow_smaller))

        yield publish


def _check_log(settings: Settings, alias: str, signed: Mapping[str, Any], needed: bool) -> None:
    """Refuse to follow an index of another log: its metadata would be taken over, with the offsets of that log."""
    try:
        logs = asyncio.run(look_at_logs(settings))
    except KafkaProblem:
        if needed:
            raise
        return
    for difference in log_differences(alias, signed, signature(logs, "items")):
        raise ElasticProblem(str(difference))

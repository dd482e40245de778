"""Whether the states of a worker fit the configuration and the log, looked at while no worker has them open."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import asdict
from pathlib import Path

from agents.kafka.logs import Log, look_at_logs
from agents.kafka.topics import INTERACTIONS, PartitionFound, describe_topics, state_problem
from agents.settings import Settings
from agents.state.directory import lock
from agents.state.errors import StateError
from agents.state.shared_copy import open_verified
from agents.workers.user_partition import SourceLog
from cco.config import Config

_NAME = re.compile(INTERACTIONS + r"-(\d+)")


def look_at_states(config: Config, settings: Settings) -> dict[Path, str | None]:
    """By directory in `settings.state`: why a worker would refuse the state there, and what to do; None if it fits.

    By the functions that a worker asks when it opens them. Changes nothing, and does not look at shared copies, which
    might take a state's place. Raises StateInUse while a worker runs on them, KafkaProblem.
    """
    # not for longer: a worker that starts meanwhile is not to be refused, and waits for each state that we have open
    os.close(lock(settings.state, True, in_use="a worker has it open, and its /readyz says what does not fit"))
    named = [(path, _NAME.fullmatch(path.name)) for path in sorted(settings.state.iterdir())]
    states = [(path, int(match[1])) for path, match in named if match]
    if not states:
        return {}
    log = asyncio.run(look_at_logs(settings)).get(INTERACTIONS)
    found = [topic for topic in asyncio.run(describe_topics(config, settings)) if log and topic.name == log.topic]
    parts = {part.partition: part for topic in found for part in topic.partitions}
    return {path: _problem(path, config, source, log, parts.get(source)) for path, source in states}


def _problem(path: Path, config: Config, source: int, log: Log | None, found: PartitionFound | None) -> str | None:
    try:
        with open_verified(path, config, source, read_only=True) as store:
            stored = store.commit.input
    except StateError as error:
        return str(error)
    if log is None or found is None or found.begin is None or found.end is None:
        return f"{path}: there is no partition {source} of {INTERACTIONS} that it could go on with"
    ours = SourceLog(log.topic, source, config.retention.source_partitions, log.cluster, log.id)
    return state_problem(path, stored, asdict(ours), found.begin, found.end)

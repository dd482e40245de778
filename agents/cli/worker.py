"""`cco worker`: one member of the group that learns from Kafka."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from agents.cli.common import UsageProblem


def worker(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML file: model, [kafka] and [worker].")
    ] = None,
    brokers: Annotated[str | None, typer.Option(help="host:port of Kafka, several with commas.")] = None,
    topic_prefix: Annotated[str | None, typer.Option(help="Before the name of each topic.")] = None,
    group: Annotated[str | None, typer.Option(help="Workers of one group share the partitions.")] = None,
    name: Annotated[
        str | None, typer.Option(help="This worker's own name: with it, a restart does not wait for a session.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Directory for this worker's state.")] = None,
    share: Annotated[str | None, typer.Option(help="URL or path for copies of the state, for all workers.")] = None,
    patches: Annotated[str | None, typer.Option(help='"none", "topic" or a JSON Lines file.')] = None,
    monitor_port: Annotated[int | None, typer.Option(help="Port of /metrics, /healthz, /readyz, /status.")] = None,
    session_timeout: Annotated[str | None, typer.Option(help="Silence after which others take over.")] = None,
    item_partitions: Annotated[int | None, typer.Option(help="Partitions of the topic edits.")] = None,
    agents: Annotated[str | None, typer.Option(help='"both", "users" or "items": which half of the work.')] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that count rows.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or text.")] = None,
) -> int:
    """Learn from the topic interactions until SIGTERM: user stages, item stages, patches, metrics.

    Every setting has a place in the file and an environment variable too.
    """
    gc.disable()  # until all is loaded: looking through that again and again takes a tenth of a start
    from agents.log import set_up
    from agents.settings import load_settings

    flags = {
        "brokers": brokers, "topic_prefix": topic_prefix, "group": group, "name": name, "state": state,
        "share": share, "patches": patches, "monitor_port": monitor_port, "session_timeout": session_timeout,
        "item_partitions": item_partitions, "agents": agents, "threads": threads, "log_format": log_format,
    }  # fmt: skip
    model, settings = load_settings(config, flags)
    set_up(settings.log_format)
    from agents.workers.worker import WorkerError, run

    try:
        return run(model, settings)
    except WorkerError as error:
        raise UsageProblem(str(error)) from None

"""`cco serve`: recommendations and events over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.cli.common import UsageProblem


def _check_log_format(given: str) -> None:
    from typing import get_args

    from agents.log import LogFormat

    if given not in get_args(LogFormat):
        raise UsageProblem(f"--log-format {given}: is not one of {', '.join(get_args(LogFormat))}")


def serve(
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Everything in this process: index in memory, state on disk.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option("--state", "-s", metavar="DIR", help="Where the state is kept [cco-embedded].")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML file: model and [serve].")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1]; others need keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8000]; 0 is any free one.")] = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads that count rows.")] = 1,
    log_format: Annotated[str, typer.Option(help="auto, json or text.")] = "auto",
) -> None:
    """Answer questions and take events over HTTP until SIGTERM.

    Beside workers: from their indices in Elasticsearch, and into Kafka ([kafka] and [elasticsearch] of the file).
    An event is acknowledged once it is in Kafka's log, or on the disk and applied: a kill -9 after that loses nothing.
    """
    import agents.serving.embedded as serving  # before all others: of what is not installed it names the right extra

    _check_log_format(log_format)
    from agents.cli.inputs import load_config
    from agents.log import set_up
    from agents.serving.settings import load_serve_settings

    model, settings, keys = load_serve_settings(config, {"state": state, "host": host, "port": port})
    set_up(log_format)  # type: ignore[arg-type]  # looked at above
    try:
        if embedded:
            serving.serve_embedded(model or load_config(None, settings.state), settings, keys, threads=threads)
        else:
            from agents.serving.stack import serve_stack
            from agents.settings import load_settings

            serve_stack(*load_settings(config, {}), settings, keys)
    except serving.ServeProblem as error:
        raise UsageProblem(str(error)) from None

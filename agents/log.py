"""Logs: one line for each thing that happened to the worker, never for an event.

Lines are JSON for machines or text for a terminal, on stderr, with what they are about (topic, partition,
offset) as fields. The libraries' own logs (Faust, aiokafka) come the same way, from warnings upwards.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import Processor

LogFormat = Literal["auto", "json", "text"]
NAME = "cco"

_SHARED: tuple[Processor, ...] = (
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
)


def set_up(log_format: LogFormat = "auto", stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (stderr): JSON, text, or (auto) text where that is a terminal.

    Ours from INFO on, the libraries' from WARNING on. What another call or a library set up before is replaced.
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    if log_format == "text" or (log_format == "auto" and terminal):
        # plain tracebacks: the default shows local variables, and with them passwords
        plain = structlog.dev.plain_traceback
        last: list[Processor] = [structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)]
    else:
        rename = structlog.processors.EventRenamer("message")  # an event is an interaction here
        last = [structlog.processors.format_exc_info, rename, structlog.processors.JSONRenderer(default=str)]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(NAME).setLevel(logging.INFO)
    logging.captureWarnings(True)


def get_logger(**fields: Any) -> structlog.stdlib.BoundLogger:
    """A logger whose lines carry `fields`: `get_logger(topic="edits", partition=3).info("resync asked", source=1)`."""
    logger = structlog.wrap_logger(
        logging.getLogger(NAME),
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        **fields,
    )
    return cast(structlog.stdlib.BoundLogger, logger)

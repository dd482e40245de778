"""`cco rebuild`: the model in batch, from files, the log, its archive, or the archive and then the log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from agents.cli.common import Bar, ConfigFile, JsonFlag, UsageProblem, peak_memory_bytes, progress
from agents.cli.config import Brokers, TopicPrefix
from agents.cli.inputs import Intake, check_outputs, load_config, write_model
from agents.cli.models import DeadLetters, Exact, ModelOut, Strict, show
from agents.cli.rebuild_options import (
    AllowSmaller,
    EndOffsets,
    Engine,
    EngineOption,
    Events,
    Every,
    FromArchive,
    FromLog,
    Memory,
    Publish,
    Resume,
    Seed,
    Tail,
    TakeOver,
    Threads,
    Wanted,
    When,
    WhenOption,
)

if TYPE_CHECKING:
    from agents.rebuilds.sources import Computed, Progress, Rebuilt
    from agents.settings import Settings
    from cco.config import Config


MB = 1_000_000
_Publish: TypeAlias = "Callable[[Rebuilt[Computed]], dict[str, Any]]"


def rebuild(
    events: Events = None,
    log: FromLog = False,
    archive: FromArchive = None,
    tail: Tail = False,
    end_offsets: EndOffsets = None,
    resume: Resume = None,
    publish: Publish = False,
    take_over: TakeOver = False,
    allow_smaller: AllowSmaller = False,
    seed: Seed = False,
    every: Every = None,
    when: WhenOption = When.unhealthy,
    brokers: Brokers = None,
    topic_prefix: TopicPrefix = None,
    config: ConfigFile = None,
    model: ModelOut = None,
    exact: Exact = False,
    engine: EngineOption = Engine.local,
    threads: Threads = None,
    memory: Memory = None,
    dead_letters: DeadLetters = None,
    strict: Strict = False,
    json: JsonFlag = False,
) -> None:
    """Compute the model in batch, without the stream's code: what `cco replay` and workers are compared with."""
    wanted = Wanted(
        events or [], log, archive, tail, end_offsets, resume, bool(brokers or topic_prefix),
        seed, publish, take_over, allow_smaller, every, engine, None if memory is None else memory * MB,
    )  # fmt: skip
    wanted.check()
    if threads is not None and engine is Engine.spark:
        raise UsageProblem("--threads goes with --engine local: Spark has its own configuration of cores")
    check_outputs(model, json, dead_letters, events or (), config)
    settings, kafka = _settings(config, wanted, {"brokers": brokers, "topic_prefix": topic_prefix})

    def once() -> None:
        intake = Intake(strict, dead_letters)
        output = _Output(model, exact, json, _telling(json, service=every is not None))
        show(_rebuilt(wanted, settings, kafka, intake, output, threads or _cores()), model, json)

    if kafka is None or every is None:
        from agents.rebuilds.service import ended_by_sigterm

        with ended_by_sigterm():
            once()
    else:
        _keep(settings, kafka, wanted.seconds(), when, once)


@dataclass(frozen=True, slots=True)
class _Output:
    """Where the model goes, and who is told of the rest."""

    model: str | None
    exact: bool
    json: bool
    tell: Callable[[str], None]  # of steps and troubles, where no progress bar shows them


def _telling(json: bool, service: bool) -> Callable[[str], None]:
    """What tells of steps and troubles of publishing where no progress bar does: lines for whoever keeps them."""
    if sys.stderr.isatty() and not json:
        return lambda words: None
    if service:
        from agents.log import get_logger

        return lambda words: get_logger().info(words)
    return lambda words: print(f"cco: {words}", file=sys.stderr)


def _rebuilt(
    wanted: Wanted, config: Config, settings: Settings | None, intake: Intake, output: _Output, threads: int
) -> dict[str, Any]:
    """One rebuild, from reading to publishing; answers its report."""
    begin = time.perf_counter()
    with progress("reading", quiet=output.json) as bar, ExitStack() as opened:

        def tell(words: str) -> None:
            bar(1, None, words)
            output.tell(words)

        publishes = opened.enter_context(_publishing(wanted, config, settings, tell))
        computed, counted, reading = _computed(wanted, config, settings, intake, bar, threads, opened)
        intake.conclude(counted.resumed, max(0, counted.rejected - intake.rejected))
        size = 0
        if output.model is not None:
            from cco.model_file import encode

            bar(1, None, "writing the model")
            rows = computed.exact_rows() if output.exact else computed.rows()
            size = write_model(output.model, encode(rows, computed.items, config))
        done = {} if settings is None else _handed_on(wanted, config, settings, computed, counted, publishes, tell)
    return {
        "events": intake.accepted,
        "rejected": intake.rejected,
        "users": len(computed.users),
        "items": len(computed.items),
        "users_in_u": computed.n_users,
        "rows": len(computed.rows()),
        "model_bytes": size,
        "reading_seconds": round(reading, 3),
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        **({} if wanted.memory is None else {"pieces": counted.pieces}),
        **done,
    }


def _keep(config: Config, settings: Settings, every: float, when: When, once: Callable[[], None]) -> None:
    """Rebuild again and again, until SIGTERM."""
    from agents.cli.main import input_errors
    from agents.log import get_logger, set_up
    from agents.rebuilds.service import keep

    set_up(settings.log_format)
    log = get_logger()

    def why_not() -> str | None:
        if when is When.always:
            return None
        from agents.health.status import look

        mode = look(config, settings).mode
        return None if mode == "lambda" else f"the mode is {mode}"

    keep(every, once, why_not, (*input_errors(), UsageProblem, OSError), lambda what, fields: log.info(what, **fields))


def _settings(config: Path | None, wanted: Wanted, flags: dict[str, Any]) -> tuple[Config, Settings | None]:
    """The configuration, and how to reach Kafka and Elasticsearch, unless neither is needed."""
    if wanted.events and not wanted.publish:
        return load_config(config), None
    from agents.settings import load_settings

    return load_settings(config, flags)


@contextmanager
def _publishing(
    wanted: Wanted, config: Config, settings: Settings | None, tell: Callable[[str], None]
) -> Iterator[_Publish | None]:
    """What publishes the model; entered before anything is read, for that is the lock. None without --publish."""
    if not wanted.publish or settings is None:
        yield None
        return
    from agents.rebuilds.publishing import publishing

    with publishing(
        config,
        settings,
        take_over=wanted.take_over,
        allow_smaller=wanted.allow_smaller,
        source=wanted.words(),
        in_part=wanted.ends is not None,
        tell=tell,
    ) as publish:
        yield publish


def _handed_on(
    wanted: Wanted, config: Config, settings: Settings, model: Computed, counted: Progress,
    publish: _Publish | None, tell: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Write the seeds and publish the model, if that is wanted; answers what the report says of a model of the log."""
    from agents.rebuilds.sources import Rebuilt

    offsets = dict(counted.offsets)
    found: dict[str, Any] = {"offsets": {str(p): offset for p, offset in sorted(counted.offsets.items())}}
    if wanted.resume is not None:
        found["resumed_records"] = counted.resumed
    if wanted.seed:
        from agents.state.seeds import write_seeds
        from cco.batch import Model

        assert isinstance(model, Model)  # see `Wanted.check`
        tell("writing the seeds")
        found["seeds"] = write_seeds(Rebuilt(config, settings, model, offsets))
    if publish is not None:
        found["published"] = publish(Rebuilt(config, settings, model, offsets))
    return found


def _computed(
    wanted: Wanted,
    config: Config,
    settings: Settings | None,
    intake: Intake,
    bar: Bar,
    threads: int,
    opened: ExitStack,
) -> tuple[Computed, Progress, float]:
    """The model, what of the log is in it, and the seconds that reading took."""
    from agents.cli.rebuild_engines import by_spark, by_this_machine
    from agents.rebuilds.sources import LogSource

    what = wanted.events if settings is None or wanted.events else wanted.source(settings)
    if wanted.seed and settings is not None:
        from agents.state.seeds import check_place

        check_place(config, settings)
        if isinstance(what, LogSource):
            what.check_topic()  # the seed bears offsets of the topic of now
    if wanted.engine is Engine.spark:
        return by_spark(config, what, intake, bar, opened, wanted.memory)
    return by_this_machine(config, what, wanted.resume, intake, bar, threads, wanted.memory)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

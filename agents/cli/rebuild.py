"""`cco rebuild`: the model in batch, from files, the log, its archive, or the archive and then the log."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from agents.cli.common import Bar, ConfigFile, JsonFlag, UsageProblem, peak_memory_bytes, progress
from agents.cli.config import Brokers, TopicPrefix
from agents.cli.inputs import Intake, check_outputs, load_config, write_model
from agents.cli.models import DeadLetters, Exact, ModelOut, Strict, show
from agents.files.streams import STANDARD_INPUT

if TYPE_CHECKING:
    from agents.rebuilds.sources import Computed, LogSource, Progress, Rebuilt
    from agents.settings import Settings
    from cco.config import Config


_DURATION = re.compile(r"([0-9]{1,7})(s|m|h|d)?")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_LONGEST = 30 * 86_400.0
MB = 1_000_000


class When(StrEnum):
    """Which turns of --every are taken."""

    unhealthy = "unhealthy"
    always = "always"


class Engine(StrEnum):
    """Who computes."""

    local = "local"
    spark = "spark"


_Publish: TypeAlias = "Callable[[Rebuilt[Computed]], dict[str, Any]]"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to read, as it was said on the command line."""

    events: list[str]
    log: bool
    archive: str | None
    tail: bool
    ends: str | None
    resume: Path | None
    kafka: bool  # whether brokers or a prefix were named
    seed: bool
    publish: bool
    take_over: bool
    allow_smaller: bool
    every: str | None
    engine: Engine
    memory: int | None  # bytes

    def check(self) -> None:
        """Raise UsageProblem for what contradicts itself."""
        if bool(self.events) + self.log + (self.archive is not None) != 1:
            raise UsageProblem("name what to read: either EVENTS, --log or --archive")
        if self.tail and self.archive is None:
            raise UsageProblem("--tail goes with --archive; --log reads the whole log")
        if self.events and (self.ends or self.kafka):
            raise UsageProblem("--end-offsets, --brokers and --topic-prefix go with --log or --archive")
        for flag, given in (("--resume", self.resume), ("--seed", self.seed)):
            if self.events and given:
                raise UsageProblem(f"{flag} goes with --log or --archive: files have no offsets to go on from")
        if (self.take_over or self.allow_smaller) and not self.publish:
            raise UsageProblem("--take-over and --allow-smaller go with --publish")
        if self.every is not None and (self.events or not (self.publish or self.seed)):
            raise UsageProblem("--every goes with --publish or --seed, and so with --log or --archive")
        if self.engine is Engine.spark:
            self._check_spark()
        self.seconds()

    def _check_spark(self) -> None:
        """What one machine alone can do: reading a topic to its end, and keeping all histories."""
        for flag, given in (
            ("--log", self.log), ("--tail", self.tail), ("--resume", self.resume), ("--seed", self.seed),
        ):  # fmt: skip
            if given:
                raise UsageProblem(f"{flag} goes with --engine local: --engine spark reads files or --archive, whole")
        if STANDARD_INPUT in self.events:
            raise UsageProblem("--engine spark reads files on many machines, and cannot read standard input")

    def seconds(self) -> float:
        """Of --every. Raises UsageProblem."""
        found = _DURATION.fullmatch(self.every or "1h")
        if found is None or not 1 <= (seconds := float(found[1]) * _UNITS[found[2] or "s"]) <= _LONGEST:
            raise UsageProblem(f'--every {self.every}: is not a duration such as "1h", "30m" or "90s" (1s to 30d)')
        return seconds

    def words(self) -> str:
        """What is read, in words."""
        if self.events:
            return "files"
        return "log" if self.archive is None else "archive and log" if self.tail else "archive"

    def source(self, settings: Settings) -> LogSource:
        """The log that is meant. Raises ArchiveError, UsageProblem."""
        from agents.archive.archive import Archive
        from agents.kafka.records import OffsetsError, parse_ends
        from agents.rebuilds.sources import LogSource

        try:
            ends = None if self.ends is None else parse_ends(self.ends)
        except OffsetsError as error:
            raise UsageProblem(f"--end-offsets: {error}") from None
        archive = None if self.archive is None else Archive(self.archive)
        return LogSource(settings, archive, self.log or self.tail, ends)


def rebuild(
    events: Annotated[
        list[str] | None,
        typer.Argument(metavar="EVENTS", help="As for replay; or --log, or --archive.", show_default=False),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="Read the topic `interactions` instead, from its beginning.")
    ] = False,
    archive: Annotated[
        str | None,
        typer.Option("--archive", metavar="URL", help="Read the archive there instead: see `cco archive`."),
    ] = None,
    tail: Annotated[bool, typer.Option("--tail", help="And then the topic, from where the archive ends.")] = False,
    end_offsets: Annotated[
        str | None,
        typer.Option(
            "--end-offsets",
            metavar="P:N,... or FILE",
            help="Where to end in each partition; a file holds JSON, as `cco ingest --json` prints.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FILE", help="Keep what is counted there, and go on from it if it is there."),
    ] = None,
    publish: Annotated[
        bool,
        typer.Option(
            "--publish",
            help="Load the model into a fresh index of items, which takes the place of the one that is served.",
        ),
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="With --publish: set aside another rebuild that is loading.")
    ] = False,
    allow_smaller: Annotated[
        bool,
        typer.Option(
            "--allow-smaller",
            help="With --publish: also if half of the items with rows, or of the questions with answers, lost theirs.",
        ),
    ] = False,
    seed: Annotated[
        bool,
        typer.Option("--seed", help="Write a state for every source partition, for workers that have none to go on."),
    ] = False,
    every: Annotated[
        str | None,
        typer.Option("--every", metavar="DURATION", help="Again and again, so far apart (1h), until SIGTERM."),
    ] = None,
    when: Annotated[
        When, typer.Option("--when", help="With --every: always, or only where `cco status` shows the mode lambda.")
    ] = When.unhealthy,
    brokers: Brokers = None,
    topic_prefix: TopicPrefix = None,
    config: ConfigFile = None,
    model: ModelOut = None,
    exact: Exact = False,
    engine: Annotated[
        Engine,
        typer.Option(
            "--engine",
            help="local: this machine. spark: for what is too much for it; as Spark's own configuration says.",
        ),
    ] = Engine.local,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=256, help="Threads that count and score rows. Default: every core."),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            "--memory",
            metavar="MB",
            min=8,
            max=1 << 24,
            show_default=False,
            help="What events and histories may take at a time; of a task, on Spark. Default: as much as it takes.",
        ),
    ] = None,
    dead_letters: DeadLetters = None,
    strict: Strict = False,
    json: JsonFlag = False,
) -> None:
    """Compute the model in batch, without the stream's code: what `cco replay` and workers are compared with."""
    wanted = _Wanted(
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
    wanted: _Wanted, config: Config, settings: Settings | None, intake: Intake, output: _Output, threads: int
) -> dict[str, Any]:
    """One rebuild, from reading to publishing; answers its report."""
    begin = time.perf_counter()
    with progress("reading", quiet=output.json) as bar, ExitStack() as opened:

        def tell(words: str) -> None:
            bar(1, None, words)
            output.tell(words)

        publishes = opened.enter_context(_publishing(wanted, config, settings, tell))
        computed, counted, reading = _computed(wanted, config, settings, intake, bar, threads, opened)
        intake.conclude(counted.resumed)
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


def _settings(config: Path | None, wanted: _Wanted, flags: dict[str, Any]) -> tuple[Config, Settings | None]:
    """The configuration, and how to reach Kafka and Elasticsearch, unless neither is needed."""
    if wanted.events and not wanted.publish:
        return load_config(config), None
    from agents.settings import load_settings

    return load_settings(config, flags)


@contextmanager
def _publishing(
    wanted: _Wanted, config: Config, settings: Settings | None, tell: Callable[[str], None]
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
    wanted: _Wanted, config: Config, settings: Settings, model: Computed, counted: Progress,
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

        assert isinstance(model, Model)  # see `_Wanted.check`
        tell("writing the seeds")
        found["seeds"] = write_seeds(Rebuilt(config, settings, model, offsets))
    if publish is not None:
        found["published"] = publish(Rebuilt(config, settings, model, offsets))
    return found


def _computed(
    wanted: _Wanted,
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

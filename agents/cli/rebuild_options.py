"""What `cco rebuild` may be told: its options, and what contradicts itself in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agents.cli.common import UsageProblem
from agents.files.streams import STANDARD_INPUT

if TYPE_CHECKING:
    from agents.rebuilds.sources import LogSource
    from agents.settings import Settings


_DURATION = re.compile(r"([0-9]{1,7})(s|m|h|d)?")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_LONGEST = 30 * 86_400.0


class When(StrEnum):
    """Which turns of --every are taken."""

    unhealthy = "unhealthy"
    always = "always"


class Engine(StrEnum):
    """Who computes."""

    local = "local"
    spark = "spark"


Events = Annotated[
    list[str] | None,
    typer.Argument(metavar="EVENTS", help="As for replay; or --log, or --archive.", show_default=False),
]
FromLog = Annotated[bool, typer.Option("--log", help="Read the topic `interactions` instead, from its beginning.")]
FromArchive = Annotated[
    str | None,
    typer.Option("--archive", metavar="URL", help="Read the archive there instead: see `cco archive`."),
]
Tail = Annotated[bool, typer.Option("--tail", help="And then the topic, from where the archive ends.")]
EndOffsets = Annotated[
    str | None,
    typer.Option(
        "--end-offsets",
        metavar="P:N,... or FILE",
        help="Where to end in each partition; a file holds JSON, as `cco ingest --json` prints.",
        show_default=False,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="FILE", help="Keep what is counted there, and go on from it if it is there."),
]
Publish = Annotated[
    bool,
    typer.Option(
        "--publish",
        help="Load the model into a fresh index of items, which takes the place of the one that is served.",
    ),
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="With --publish: set aside another rebuild that is loading.")
]
AllowSmaller = Annotated[
    bool,
    typer.Option(
        "--allow-smaller",
        help="With --publish: also if half of the items with rows, or of the questions with answers, lost theirs.",
    ),
]
Seed = Annotated[
    bool,
    typer.Option("--seed", help="Write a state for every source partition, for workers that have none to go on."),
]
Every = Annotated[
    str | None,
    typer.Option("--every", metavar="DURATION", help="Again and again, so far apart (1h), until SIGTERM."),
]
WhenOption = Annotated[
    When, typer.Option("--when", help="With --every: always, or only where `cco status` shows the mode lambda.")
]
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="local: this machine. spark: for what is too much for it; as Spark's own configuration says.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=256, help="Threads that count and score rows. Default: every core."),
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="MB",
        min=8,
        max=1 << 24,
        show_default=False,
        help="What events and histories may take at a time; of a task, on Spark. Default: as much as it takes.",
    ),
]


@dataclass(frozen=True, slots=True)
class Wanted:
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

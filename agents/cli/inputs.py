"""Reading configuration and events for the commands: progress, rejected records, dead letters, model files."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from agents.cli.common import Bar, UsageProblem, warn
from agents.files.streams import STANDARD_INPUT
from agents.state.directory import stored_config
from cco.config import Config, parse_config
from cco.event_data import EventBatch, Rejection

if TYPE_CHECKING:
    from agents.files.reading import Chunk
    from cco.events import EventParser

SHOWN = 5  # rejected records that are shown; --dead-letters has all of them
STANDARD_OUTPUT = "-"


def load_config(path: Path | None, state: Path | None = None) -> Config:
    """The configuration in a file, or else the one that a state was last written with, or the default one.

    Raises ConfigError, StateError, OSError, UsageProblem.
    """
    if path is None:
        return (stored_config(state) if state is not None else None) or Config()
    try:
        return parse_config(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise UsageProblem(f"{path}: not UTF-8, so not TOML") from None


@dataclass
class Intake:
    """Counts what is read, and shows or writes down what is rejected.

    `strict` turns any rejected record into an error, at the end. `appending` keeps the dead letters that are there.
    `records`: what is read; `hint`: a question for who has given nothing else than rejected records.
    """

    strict: bool = False
    dead_letters: Path | None = None
    appending: bool = False
    records: str = "events"
    hint: str = "do the columns and event types fit the configuration?"
    accepted: int = 0
    rejected: int = 0
    item_changes: int = 0
    first: list[Rejection] = field(default_factory=list)  # of the rejected ones
    ended: float = 0.0  # when the last chunk was applied, of time.perf_counter()

    @contextlib.contextmanager
    def taking(self, bar: Bar) -> Iterator[Callable[[Chunk], None]]:
        """What to call with each chunk. Raises OSError if dead letters cannot be written."""
        with self._letters() as letters:

            def take(chunk: Chunk) -> None:
                self.accepted += len(chunk.batch)
                self.item_changes += len(chunk.item_changes)
                self._reject(chunk.rejections, letters)
                bar(chunk.bytes_read, chunk.bytes_total, f"{self.accepted or self.item_changes:,} {self.records}")
                self.ended = time.perf_counter()

            yield take

    def read(self, files: Sequence[str], parser: EventParser, bar: Bar) -> Iterator[EventBatch]:
        """The events of all inputs. Raises InputError, and as `taking`."""
        from agents.files.reading import read_events  # and Arrow with it, which a worker is not to wait for

        with self.taking(bar) as take:
            for chunk in read_events(files, parser):
                take(chunk)
                yield chunk.batch

    def _letters(self) -> contextlib.AbstractContextManager[TextIO | None]:
        if self.dead_letters is None:
            return contextlib.nullcontext()
        return self.dead_letters.open("a" if self.appending else "w", encoding="utf-8", errors="backslashreplace")

    def _reject(self, rejections: Sequence[Rejection], letters: TextIO | None) -> None:
        self.rejected += len(rejections)
        self.first += rejections[: SHOWN - len(self.first)]
        if letters is not None and rejections:
            letters.writelines(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rejections)
            letters.flush()
            if self.dead_letters is not None and self.dead_letters.is_file():  # a pipe or a device keeps nothing
                os.fsync(letters.fileno())

    def conclude(self, resumed: int = 0, rejected_before: int = 0) -> None:
        """Say on stderr what was rejected. Raises UsageProblem if there was nothing else, or with `strict`.

        `resumed`: records that earlier runs, where this one went on, had read, `rejected_before`: and rejected.
        """
        for rejection in self.first:
            print(f"cco: {rejection.file}:{rejection.line}: {rejection.reason}: {rejection.record}", file=sys.stderr)
        records = f"{self.rejected:,} record{'s' * (self.rejected != 1)} rejected"
        if self.rejected > len(self.first):
            records += f", the first {len(self.first)} shown"
        if self.dead_letters is not None:
            records += f"; all are in {self.dead_letters}"
        empty = not self.accepted + self.item_changes + resumed
        if self.rejected and empty:
            raise UsageProblem(f"{records}, and there is no other: {self.hint}")
        if self.rejected and self.strict:
            raise UsageProblem(f"{records} (--strict)")
        if rejected_before and self.strict:
            raise UsageProblem(
                f"{rejected_before:,} records were rejected by earlier runs, where this one goes on (--strict)"
            )
        if self.rejected:
            warn(records)
        elif empty:
            warn("the input has no records")


def _same_file(path: Path, other: Path) -> bool:
    """Whether two names stand for one file, which may not be there yet; devices and pipes keep nothing to lose."""
    try:
        return path.samefile(other) and path.is_file()
    except (OSError, ValueError):
        return os.path.realpath(path) == os.path.realpath(other)


def write_model(path: str, pieces: Iterable[bytes]) -> int:
    """Write a model file and return its size: whole or not at all, or to standard output. Raises OSError."""
    if path == STANDARD_OUTPUT:
        return sum(sys.stdout.buffer.write(piece) for piece in pieces)
    target = Path(path)
    if target.exists() and not target.is_file():  # a device or pipe is written to, not replaced
        with target.open("wb") as device:
            return sum(device.write(piece) for piece in pieces)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            size = sum(file.write(piece) for piece in pieces)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    return size


def check_outputs(
    model: str | None,
    json_report: bool,
    dead_letters: Path | None,
    events: Sequence[str],
    config: Path | None,
    state: Path | None = None,
) -> None:
    """Refuse what would mix two things on standard output, or overwrite what is read or kept, before anything begins.

    Raises UsageProblem.
    """
    file = Path(model) if model is not None and model != STANDARD_OUTPUT else None
    named = [(option, path) for option, path in (("--dead-letters", dead_letters), ("--model", file)) if path]
    inputs = [("the input", Path(path)) for path in events if path != STANDARD_INPUT]
    inputs += [("--config", config)] if config is not None else []
    for k, (option, path) in enumerate(named):
        for what, other in inputs + named[:k]:
            if _same_file(path, other):
                raise UsageProblem(f"{option} {path}: is the same file as {what} {other}, and would overwrite it")
        if state is not None and path.resolve().is_relative_to(state.resolve()):
            raise UsageProblem(f"{option} {path}: lies in the state directory {state}; name a file elsewhere")
    if model == STANDARD_OUTPUT and json_report:
        raise UsageProblem("--model - and --json both write to standard output: name a file for the model")
    if model not in (None, STANDARD_OUTPUT):
        folder = Path(str(model)).parent
        if not folder.is_dir():
            raise UsageProblem(f"--model {model}: there is no folder {folder}")
        if Path(str(model)).is_dir():
            raise UsageProblem(f"--model {model}: is a folder; name a file in it")

"""The simulation of the bulk queue catches what it is for: with any of these mutants in the program, a schedule fails.

Loaded as in `test_delivery_mutants`: the mutated module, and those that use it, beside the real ones.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests.model_sync.bulk_simulation import FAULTS

ROOT = Path(__file__).resolve().parents[2]
SIMULATION = "tests.model_sync.bulk_simulation"
TYPES, ENTRIES, QUEUE, WRITER = (f"model_sync/bulk_{name}.py" for name in ("types", "entries", "queue", "writer"))
FILES = (TYPES, ENTRIES, QUEUE, WRITER, "tests/model_sync/bulk_simulation.py")
MOST_SCHEDULES = 400
CONTROL_SCHEDULES = 20


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file`; with `new` in its place, a schedule with these faults has to fail."""

    name: str
    file: str
    old: str
    new: str
    faults: tuple[str, ...] = FAULTS
    rows: bool = True


MUTANTS = [
    Mutant(
        "no condition",
        WRITER,
        '"_id":%b,"if_seq_no":%d,"if_primary_term":%d}}',
        '"_id":%b,"x":%d,"y":%d}}',
    ),
    Mutant("documents are made over those that are there", WRITER, '{"create":{"_id"', '{"index":{"_id"'),
    Mutant("what changes nothing makes no new version", WRITER, '"detect_noop":false,', "", ("late",)),
    Mutant("the owner in the document is not looked at", QUEUE, "answer.stamp > owner.stamp:", "False:"),
    Mutant("the owner is not written", WRITER, ',"owner":{"at":%d,', ',"x":{"at":%d,'),
    Mutant(
        "after a conflict nothing is read",
        QUEUE,
        "            entry.version = None\n            delay = self._backoff.delay(entry.attempts) "
        "if entry.attempts else 0.0\n",
        "            delay = 0.01\n",
    ),
    Mutant(
        "an answer that was lost counts as one",
        QUEUE,
        "            if answer.outcome is Outcome.UNKNOWN:\n                entry.version = None\n",
        "            if answer.outcome is Outcome.UNKNOWN and entry.flying:\n"
        "                self._finish(entry, None, effects)\n                continue\n",
    ),
    Mutant(
        "what is written again goes above what came since",
        TYPES,
        "{**self.fields, **later.fields}",
        "{**later.fields, **self.fields}",
    ),
    Mutant(
        "what came since is dropped",
        QUEUE,
        "                self._replace(load, waiting.payload)\n",
        "                self._bytes -= waiting.payload.size\n",
    ),
    Mutant("a document is on its way twice", QUEUE, "        if entry.state is State.IDLE:\n", "        if True:\n"),
    Mutant(
        "those who wait for what was coalesced are forgotten", QUEUE, "            waiting.tickets.append(ticket)\n", ""
    ),
    Mutant(
        "the lower version replaces the higher",
        TYPES,
        "later.version < self.version",
        "later.version > self.version",
        ("lost",),
        False,
    ),
    Mutant(
        "users: versions are left to Elasticsearch",
        WRITER,
        ',"version":%d,"version_type":"external_gte"}}',
        ',"x":%d}}',
        ("late", "lost", "owners"),
        False,
    ),
]


def load(mutant: Mutant | None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The simulation, over the program with the mutant in it."""
    for file in FILES:
        text = (ROOT / file).read_text()
        if mutant is not None and file == mutant.file:
            assert text.count(mutant.old) == 1, f"{file} holds the text to mutate {text.count(mutant.old)} times"
            text = text.replace(mutant.old, mutant.new)
        name = file.removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        module.__file__ = str(ROOT / file)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(text, module.__file__, "exec"), module.__dict__)
    return sys.modules[SIMULATION]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_simulation_catches(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = load(mutant, monkeypatch)
    for seed in range(MOST_SCHEDULES):
        try:
            simulation.run(seed, mutant.faults, mutant.rows)
        except AssertionError:
            return
    pytest.fail(f"{mutant.name}: {MOST_SCHEDULES} schedules went by")


@pytest.mark.parametrize(("faults", "rows"), sorted({(mutant.faults, mutant.rows) for mutant in MUTANTS}))
def test_control(faults: tuple[str, ...], rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mutant they pass, run the same way."""
    simulation = load(None, monkeypatch)
    for seed in range(CONTROL_SCHEDULES):
        simulation.run(seed, faults, rows)

"""The simulation catches what it is for: with any of these mutants in the program, a schedule fails.

A mutant is the program with one text replaced. Here only Python is mutated, no kernels, so it runs in this
process: the mutated module, and those that use it, are loaded beside the real ones. What shows in one of
thousands of schedules is looked for where it was found before, or caught by the plain tests of the protocol.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import ModuleType

import pytest

from tests.cco.simulation import FAULTS

ROOT = Path(__file__).resolve().parents[2]
SIMULATION, PLAIN = "tests.cco.simulation", "tests.cco.test_delivery"
MODULES = ("cco.delivery", "cco.user_stage", "cco.item_stage", "tests.cco.simulated_agents", SIMULATION, PLAIN)
DELIVERY, USERS, AGENTS = "cco/delivery.py", "cco/user_stage.py", "tests/cco/simulated_agents.py"
MOST_SCHEDULES = 1500
CONTROL_SCHEDULES = 30


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file`; with `new` in its place, a schedule with these faults has to fail.

    They are tried from seed `first` on. Without faults it is a plain test that has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    faults: tuple[str, ...] = ("crashes",)
    first: int = 0


# The first eight are the mistakes that a protocol like this one invites. "No gap check" and "no epoch" are what they
# say. Positions are offsets of Kafka's at the borders of micro-batches, and parts are numbered, so a position has no
# steps that could be left out: "split without steps" lets the first part stand for the whole range. A range tells of
# each key that it touched: "netted batches" leaves out those that are back where they were. Item stages have no
# snapshots: "early snapshot" is of a user stage, and "remembered fingerprints" come from the owner before. Stages have
# no clock that they could read, so "wall clock" gives one to a user stage.
MUTANTS = [
    Mutant("no gap check", DELIVERY, "if header.start > source.applied:", "if False:", ("holes",)),
    Mutant(
        "old counts applied",
        AGENTS,
        "        if verdict is Verdict.APPLY:\n            self.progress +=",
        "        if verdict is Verdict.DROP and header.kind is Kind.RANGE and self.inbox.filled:\n"
        "            told = decode(message, self.users, self.items, self.place.config)\n"
        "            self.stage.apply(_piece(told, told.op.size, 1 << 30), now)\n"
        "        if verdict is Verdict.APPLY:\n            self.progress +=",
    ),
    Mutant(
        "netted batches",
        AGENTS,
        "        messages = self.outbox.range(self.position, end, told)\n",
        "        for p in range(self.place.partitions):\n"
        "            said = {}  # by key: the operations, in order\n"
        "            for edits in (parts[p] for parts in told):\n"
        "                for op, *key in zip(edits.op, edits.indicator, edits.user, edits.item):\n"
        "                    said.setdefault(tuple(map(int, key)), []).append(int(op))\n"
        "            whole = {user for (_, user, _), ops in said.items() if max(ops) > 1}  # entered or left\n"
        "            net = {key for key, ops in said.items() if ops[0] != ops[-1] and key[1] not in whole}\n"
        "            for parts in told:\n"
        "                keys = zip(parts[p].indicator, parts[p].user, parts[p].item)\n"
        "                kept = np.array([tuple(map(int, key)) not in net for key in keys], bool)\n"
        "                names = ('op', 'indicator', 'user', 'item')\n"
        "                columns = {name: getattr(parts[p], name)[kept] for name in names}\n"
        "                parts[p] = replace(parts[p], **columns)\n"
        "        messages = self.outbox.range(self.position, end, told)\n",
        first=195,
    ),
    Mutant("early snapshot", AGENTS, "elif self.acknowledged >= cut.position:", "else:"),
    Mutant(
        "split without steps",
        DELIVERY,
        "        if header.last:\n            source.open_range, source.applied = None, header.end\n",
        "        source.applied = header.end\n        if header.last:\n            source.open_range = None\n",
    ),
    Mutant(
        "remembered fingerprints",
        AGENTS,
        "        self.position, self.progress, self._seen = offset + 1, 0, -1\n",
        "        remembered = place.__dict__.setdefault('remembered', {})\n"
        "        if self.partition in remembered:\n"
        "            items, sent = remembered[self.partition]\n"
        "            known = min(len(items), sent._fingerprints.shape[1])\n"
        "            self.items.intern(items.names(range(known)))\n"
        "            self.stage._fit(0.0)\n"
        "            self.stage._fingerprints[:, :known] = sent._fingerprints[:, :known]\n"
        "        remembered[self.partition] = self.items, self.stage\n"
        "        self.position, self.progress, self._seen = offset + 1, 0, -1\n",
        first=53,
    ),
    Mutant(
        "no epoch",
        DELIVERY,
        "if (header.epoch, header.sources, header.partition, header.partitions) != self._expected:",
        "if (self._expected[0], header.sources, header.partition, header.partitions) != self._expected:",
        ("strangers",),
    ),
    Mutant(
        "wall clock",
        AGENTS,
        "        events = [record for record in records if record is not None]\n",
        "        events = [record for record in records if record is not None]\n"
        "        self.place.__dict__['clock'] = clock = self.place.__dict__.get('clock', 0) + 1\n"
        "        events.append(('', '$clock', '', clock))  # windows end as this goes on, not as the log does\n",
    ),
    Mutant(
        "an old range is applied",
        DELIVERY,
        "if source.waiting or header.end <= source.applied:",
        "if source.waiting:",
    ),
    Mutant(
        "rows are counted while a range is torn",
        DELIVERY,
        "all(source.ready and source.ahead <= source.applied for",
        "all(source.ready for",
    ),
    Mutant(
        "a range that is said again does not set the position back",
        DELIVERY,
        "            source.applied = header.start\n",
        "",
        ("crashes", "zombies", "old snapshots"),
        first=385,
    ),
    Mutant(
        "a range goes on over a fill",
        DELIVERY,
        "        source.open_range = None  # of another life",
        "        # of another life",
        faults=(),
    ),
    Mutant(
        "a missing part goes unseen",
        DELIVERY,
        "source.open_range != (*whole, header.part)",
        "(source.open_range is None or source.open_range[:3] != whole)",
        ("holes",),
    ),
    Mutant(
        "a missing part of a fill goes unseen",
        DELIVERY,
        "elif source.filling[1] != header.part or source.applied != header.end:",
        "elif source.applied != header.end:",
        ("holes",),
    ),
    Mutant(
        "a fill goes on with another session",
        DELIVERY,
        "elif source.filling[0] != header.session:",
        "elif False:",
        ("crashes", "zombies"),
        first=1173,
    ),
    Mutant(
        "a fill goes on at another position",
        DELIVERY,
        " or source.applied != header.end:",
        ":",
        ("crashes", "zombies"),
        first=10,
    ),
    Mutant(
        "a fill that answers another claim",
        DELIVERY,
        "if header.claim != self._claim or source.ready:",
        "if source.ready:",
        ("crashes", "zombies"),
        first=23,
    ),
    Mutant(
        "the answer to a claim that was lost goes unseen",
        DELIVERY,
        "if header.claim > self._claim:",
        "if False:",
        ("crashes", "late claims", "late patches", "lost claims", "zombies"),
        first=281,
    ),
    Mutant(
        "the numbers of partitions are not checked",
        DELIVERY,
        "if (header.epoch, header.sources, header.partition, header.partitions) != self._expected:",
        "if header.epoch != self._expected[0]:",
        ("strangers",),
    ),
    Mutant(
        "no marks: a lost tail goes unseen",
        DELIVERY,
        "for p in range(self._partitions):",
        "for p in ():",
        ("holes",),
    ),
    Mutant(
        "a restored stage tells only priors that are touched",
        USERS,
        "        self._aging[:] = 1\n        count_members(",
        "        count_members(",
        first=184,
    ),
    Mutant(
        "counts are told only where they differ from what this life has told",
        USERS,
        "        counted = np.flatnonzero(touched < kinds)\n",
        "        counted = np.flatnonzero(touched < kinds)\n"
        "        told = self.__dict__.setdefault('told', {})\n"
        "        now = [(int(touched[k]), int(names[k]), int(state.counts[touched[k], names[k]])) for k in counted]\n"
        "        changed = [only is not None or told.get((t, i)) != n for t, i, n in now]\n"
        "        told.update(((t, i), n) for t, i, n in now if only is None)\n"
        "        counted = counted[np.array(changed, bool)]\n",
        first=122,
    ),
    Mutant(
        "a fill has the counts of the partition's own items only",
        USERS,
        "        counted = np.flatnonzero(touched < kinds)\n",
        "        counted = np.flatnonzero(touched < kinds)\n"
        "        if only is not None:\n"
        "            counted = counted[self._items.partitions(int(self._rule.partitions))[names[counted]] == only]\n",
    ),
    Mutant(
        "a fill has no priors",
        USERS,
        "        self._aging[:] = 1\n        self._state.registers[PRIORS_MOVED] = 1\n",
        "",
    ),
    Mutant(
        "at a takeover the index counts as empty",
        AGENTS,
        "index_is_empty=False",
        "index_is_empty=True",
    ),
    Mutant("what became empty unseen is not sent", AGENTS, "self.stage.make_all_due(now)", "pass"),
    Mutant(
        "an owner that was followed by another still writes",
        AGENTS,
        "if patch.generation < self._generations[patch.partition]:",
        "if False:",
        ("crashes", "late patches", "zombies"),
        first=176,
    ),
]  # fmt: skip


def load(mutant: Mutant | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules, over the program with the mutant in it."""
    loaded = {}
    for name in MODULES:
        file = name.replace(".", "/") + ".py"
        text = (ROOT / file).read_text()
        if mutant is not None and file == mutant.file:
            assert text.count(mutant.old) == 1, f"{file} holds the text to mutate {text.count(mutant.old)} times"
            text = text.replace(mutant.old, mutant.new)
        module = loaded[name] = ModuleType(name)
        module.__file__ = str(ROOT / file)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(text, module.__file__, "exec"), module.__dict__)
    return loaded


def run_plain_tests(module: ModuleType) -> None:
    """The tests of a module that need nothing."""
    for name, test in vars(module).items():
        if name.startswith("test_") and not signature(test).parameters:
            test()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_simulation_catches(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(mutant, monkeypatch)
    if not mutant.faults:
        with pytest.raises(AssertionError):
            run_plain_tests(loaded[PLAIN])
        return
    for seed in range(mutant.first, mutant.first + MOST_SCHEDULES):
        try:
            loaded[SIMULATION].run(seed, mutant.faults)
        except Exception:
            return
    pytest.fail(f"{mutant.name}: {MOST_SCHEDULES} schedules went by")


@pytest.mark.parametrize("faults", sorted({mutant.faults for mutant in MUTANTS}), ids="-".join)
def test_control(faults: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mutant they pass, run the same way."""
    assert set(faults) <= set(FAULTS)
    loaded = load(None, monkeypatch)
    run_plain_tests(loaded[PLAIN])
    for seed in range(CONTROL_SCHEDULES):
        loaded[SIMULATION].run(seed, faults)

"""A bulk queue, or several that own the same documents one after the other, over a network that does its worst.

`run(seed, faults)` replays one schedule: what is asked for is checked on the way, and at the end every document has
to be as the highest owner put it last. Faults, by name:

    lost            requests, or their answers
    late            a request is given up, and carried out long after
    busy            429 and 503, of single documents or of whole requests
    blocked         the index may not be written for a while
    owners          another owner takes over, while the former one does not know it
    metadata        somebody else writes into the same documents
    refused         documents that are refused alone, and some for which the whole request is
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from model_sync.bulk_queue import BulkQueue
from model_sync.bulk_types import (
    Answer,
    Effect,
    Fenced,
    FencedError,
    Finished,
    Limits,
    Outcome,
    Owner,
    Payload,
    Read,
    Refused,
    Request,
    Rows,
    Whole,
)
from model_sync.bulk_writer import _found, _stored, lines
from tests.model_sync.elastic_oracle import Oracle

FAULTS = ("blocked", "busy", "late", "lost", "metadata", "owners", "refused")
LIMITS = Limits(
    documents=6, bytes=1 << 14, batch_documents=3, batch_bytes=1_000, requests=3, latency=0.5, linger=0.02, backoff=0.1,
    slow_backoff=0.2, longest_backoff=1.0, remembered=3,
)  # fmt: skip
KEYS = ("a", "b", "c.d", 'e"', "f")
FIELDS = ("view", "like", "priors")
STEPS, MOST_STEPS = 150, 20_000


@dataclass
class Message:
    """A request on the network. `life` is None where nobody waits for an answer any more."""

    life: Life | None
    request: Request
    operations: list[tuple[bytes, bytes]]  # still to be carried out
    answers: list[Answer] = field(default_factory=list)


@dataclass
class Life:
    """A queue and who puts into it."""

    owner: Owner
    queue: BulkQueue
    put: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # by item and field, all values
    tickets: dict[int, dict[tuple[str, str], int]] = field(default_factory=dict)  # how many of them there were
    refused: set[str] = field(default_factory=set)
    flying: set[str] = field(default_factory=set)
    is_fenced: bool = False


class World:
    """Everything there is, and what may happen to it."""

    def __init__(self, seed: int, faults: tuple[str, ...], rows: bool = True) -> None:
        self.random = Random(seed)
        self.faults, self.rows = faults, rows
        self.oracle = Oracle()
        self.now = 0.0
        self.value = 0
        self.network: list[Message] = []
        self.metadata: dict[str, int] = {}
        self.highest: dict[str, int] = {}  # versions of users' documents
        self.bad: set[str] = set()
        self.lives: list[Life] = []
        self.begin_life()

    def begin_life(self) -> None:
        """A new owner, which puts every row once."""
        k = len(self.lives)
        stamp = (1_000 + k // 2, k)  # two claims may have one time
        queue = BulkQueue(self.rows, LIMITS, self.random.random)
        self.lives.append(Life(Owner(0, *stamp), queue))
        if self.rows:
            for key in KEYS:
                self.put(self.lives[-1], {key: FIELDS})

    # -- what happens -------------------------------------------------------------------------------

    def put(self, life: Life, wanted: dict[str, tuple[str, ...]]) -> None:
        if not self.rows:
            self.put_users(life, list(wanted))
            return
        values: dict[str, dict[str, int]] = {}
        for key, names in wanted.items():
            self.value += 1
            values[key] = dict.fromkeys(names, self.value)
        self.put_values(life, values)

    def put_values(self, life: Life, values: dict[str, dict[str, int]]) -> None:
        documents: list[tuple[str, Payload]] = [
            (key, Rows.of(life.owner, {name: _json(value) for name, value in fields.items()}))
            for key, fields in values.items()
        ]
        try:
            number, effects = life.queue.put(documents, life.owner, self.now)
        except FencedError:
            assert life is not self.lives[-1], "the highest owner is fenced"
            life.is_fenced = True
            return
        ticket = life.tickets[number] = {}
        for key, fields in values.items():
            for name, value in fields.items():
                before = life.put.setdefault((key, name), [])
                before.append(value)
                ticket[key, name] = len(before)
        self.follow(life, effects)

    def put_users(self, life: Life, keys: list[str]) -> None:
        documents: list[tuple[str, Payload]] = []
        for key in keys:
            self.value += 1
            version = max(1, self.value - self.random.choice((0, 0, 3)))
            self.highest[key] = max(version, self.highest.get(key, 0))
            documents.append((key, Whole(version, b'{"position":%d}' % version)))
        number, effects = life.queue.put(documents, None, self.now)
        life.tickets[number] = {(key, ""): payload.version for key, payload in documents if isinstance(payload, Whole)}
        self.follow(life, effects)

    def put_bad(self, life: Life, whole: bool) -> None:
        """A document that is refused; or one for which the whole request is."""
        key = "poison" if not whole else "broken"
        self.bad.add(key)
        body = b"[{" if whole else b"[]"
        with_fields = {"poison": body}
        try:
            number, effects = life.queue.put([(key, Rows.of(life.owner, with_fields))], life.owner, self.now)
        except FencedError:
            return
        life.tickets[number] = {}
        self.follow(life, effects)

    def put_again(self, life: Life) -> None:
        """What an item has is put once more: changes nothing, unless something else is on its way."""
        key = self.random.choice(KEYS)
        stored = self.oracle.documents.get(key)
        view = stored.source.get("rows", {}).get("view") if stored else None
        if stored and view and stored.source.get("owner", {}).get("claim") == life.owner.claim:
            self.put_values(life, {key: {"view": view[0]["n"]}})

    def send(self, life: Life) -> None:
        """What is due goes on the network."""
        for request in life.queue.due(self.now):
            keys = request.keys if isinstance(request, Read) else [o.key for o in request.operations]
            assert 1 <= len(keys) <= LIMITS.batch_documents
            assert len(set(keys)) == len(keys)
            assert not life.flying & set(keys), "two operations of a document at once"
            life.flying |= set(keys)
            operations = []
            if not isinstance(request, Read):
                encoded = [lines(operation) for operation in request.operations]
                assert len(encoded) == 1 or sum(map(len, encoded)) <= 2 * LIMITS.batch_bytes
                for text in encoded:
                    action, body, rest = text.split(b"\n")
                    assert not rest
                    operations.append((action, body))
            self.network.append(Message(life, request, operations))
        assert life.queue.requests <= LIMITS.requests

    def move(self, message: Message, all_of_it: bool = False) -> None:
        """Let the node carry out some of it; when that was all of it, it answers."""
        request = message.request
        if isinstance(request, Read):
            self.network.remove(message)
            self.answer(message, [_found(self.oracle.get(key)) for key in request.keys])
            return
        if not message.answers and any(_is_broken(body) for _, body in message.operations):
            self.network.remove(message)
            self.fail(message, Answer(Outcome.REFUSED, None, "broken"))
            return
        n = len(message.operations)
        for action, body in message.operations[: n if all_of_it else self.random.randint(1, n)]:
            message.operations = message.operations[1:]
            if self.happens("busy", 0.1):
                happened = self.random.random() < 0.5
                if happened:
                    self.oracle.execute(action, body)
                message.answers.append(Answer(Outcome.UNKNOWN if happened else Outcome.REJECTED))
            else:
                message.answers.append(_stored(self.oracle.execute(action, body)))
        if not message.operations:
            self.network.remove(message)
            self.answer(message, message.answers)

    def answer(self, message: Message, answers: list[Answer]) -> None:
        """The answer arrives, or is lost."""
        if message.life is None:
            return
        if self.happens("lost", 0.1):
            self.fail(message, Answer(Outcome.UNKNOWN, None, "lost"))
            return
        self.land(message)
        effects = message.life.queue.answered(message.request.number, answers, self.now)
        self.follow(message.life, effects)

    def fail(self, message: Message, answer: Answer) -> None:
        """The request as a whole."""
        life = message.life
        if life is not None:
            self.land(message)
            message.life = None
            self.follow(life, life.queue.failed(message.request.number, answer, self.now))

    def land(self, message: Message) -> None:
        assert message.life is not None
        request = message.request
        message.life.flying -= set(request.keys if isinstance(request, Read) else [o.key for o in request.operations])

    def follow(self, life: Life, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Fenced):
                assert life is not self.lives[-1], "the highest owner is fenced"
                life.is_fenced = True
                for ticket in effect.tickets:
                    del life.tickets[ticket]
            elif isinstance(effect, Refused):
                life.refused.add(effect.refusal.key)
            elif isinstance(effect, Finished):
                for (key, name), number in life.tickets.pop(effect.ticket).items():
                    self.check_stored(life, key, name, number)

    def check_stored(self, life: Life, key: str, name: str, number: int) -> None:
        """What was said to be stored is there, or something later."""
        assert key in self.oracle.documents, "what was stored is lost"
        found = self.oracle.documents[key]
        if not self.rows:
            assert found.source["position"] >= number, "what was stored is lost"
            return
        owner = found.source.get("owner", {})
        stamp = owner.get("at", 0), owner.get("claim", 0)
        assert stamp >= life.owner.stamp, "what was stored is lost"
        if stamp == life.owner.stamp:
            value = _fields(found.source)[name]
            assert value in life.put[key, name][number - 1 :], "what was stored is lost"

    def happens(self, fault: str, chance: float) -> bool:
        return fault in self.faults and self.random.random() < chance

    def step(self) -> None:
        """One thing that happens."""
        random = self.random
        self.now += random.expovariate(100)
        life = random.choice(self.lives)
        k = random.randrange(8)
        if k == 0 and life.queue.room:
            keys = random.sample(KEYS, random.randint(1, 3))
            self.put(life, {key: tuple(random.sample(FIELDS, random.randint(1, 3))) for key in keys})
        elif k == 1:
            self.send(life)
        elif k <= 5 and self.network:
            message = random.choice(self.network)
            if message.life is not None and self.happens("late", 0.1):
                self.fail(message, Answer(Outcome.UNKNOWN, None, "no answer in time"))  # it stays on the network
            elif message.life is None and random.random() < 0.9:
                pass  # later
            elif self.happens("lost", 0.1) and not message.answers:
                self.network.remove(message)
                self.fail(message, Answer(Outcome.UNKNOWN, None, "lost before"))
            elif self.happens("busy", 0.05) and not message.answers:
                self.network.remove(message)
                self.fail(message, Answer(Outcome.REJECTED, None, "busy"))
            else:
                self.move(message)
        elif k == 6:
            self.rarely(life)
        for each in self.lives:
            queue = each.queue
            assert queue.documents < LIMITS.documents + max(3, len(KEYS)) + 1 and queue.remembered <= LIMITS.remembered
            assert queue.bytes >= 0 and 1 <= queue.window <= LIMITS.requests

    def rarely(self, life: Life) -> None:
        if self.happens("owners", 0.15) and len(self.lives) < 4:
            self.begin_life()
        if self.happens("blocked", 0.2):
            self.oracle.is_read_only = not self.oracle.is_read_only
        if self.happens("lost", 0.1):
            self.oracle.term += 1  # the node was started again
        if self.happens("metadata", 0.5):
            key = self.random.choice(KEYS)
            self.metadata[key] = self.metadata.get(key, 0) + 1
            self.oracle.change_metadata(key, self.metadata[key])
        if self.happens("refused", 0.3) and life.queue.room:
            self.put_bad(life, self.random.random() < 0.5)
        if self.rows and self.random.random() < 0.3 and life.queue.room and not life.is_fenced:
            self.put_again(life)

    def come_to_rest(self) -> None:
        """Nothing more goes wrong, but what is late comes still, before the end or after it."""
        late = self.faults
        self.faults, self.oracle.is_read_only = (), False
        for _ in range(MOST_STEPS):
            if not any(life.queue.documents for life in self.lives):
                break
            wakes = []
            for life in self.lives:
                self.send(life)
                wakes.append(life.queue.wake(self.now))
            waited_for = [message for message in self.network if message.life is not None]
            if late and self.network and self.random.random() < 0.2:
                self.move(self.random.choice(self.network))
            elif waited_for:
                self.move(self.random.choice(waited_for))
            else:
                times = [at for at in wakes if at is not None]
                assert times, "nothing will ever happen"
                self.now = max(self.now, min(times))
        else:
            raise AssertionError("it does not come to rest")
        while self.network:
            self.move(self.random.choice(self.network), all_of_it=True)

    def check(self) -> None:
        """Every document is as the highest owner put it last."""
        for life in self.lives:
            assert not life.tickets, "somebody waits for ever"
            assert life.queue.bytes == 0 and life.queue.requests == 0 and life.queue.room
            assert life.queue.trouble is None
        documents = self.oracle.documents
        if not self.rows:
            assert {key: stored.source["position"] for key, stored in documents.items()} == self.highest
            return
        last = self.lives[-1]
        assert set(documents) == set(KEYS)
        for key in KEYS:
            source = documents[key].source
            expected = {name: last.put[key, name][-1] for name in FIELDS}
            assert _fields(source) == expected, f"{key}: {_fields(source)}, not {expected}"
            assert source.get("owner") == {"at": last.owner.at, "claim": last.owner.claim}
            assert source.get("metadata", 0) == self.metadata.get(key, 0)
            assert set(source["filled"]) == set(FIELDS)
        refused = set().union(*(life.refused for life in self.lives))
        assert refused <= self.bad
        if len(self.lives) == 1:
            assert refused == self.bad


def _json(value: int) -> bytes:
    return b'[{"n":%d}]' % value


def _fields(source: dict[str, Any]) -> dict[str, int | None]:
    rows = {**source.get("rows", {}), "priors": source.get("priors")}
    return {name: value[0]["n"] if value else None for name, value in rows.items()}


def _is_broken(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return True
    return False


def run(seed: int, faults: tuple[str, ...], rows: bool = True, steps: int = STEPS) -> Counter[str]:
    """One schedule. Raises AssertionError where it shows that something is wrong; answers what there was of what."""
    world = World(seed, faults, rows)
    for _ in range(steps):
        world.step()
    world.come_to_rest()
    world.check()
    counts: Counter[str] = Counter()
    for life in world.lives:
        found = life.queue.statistics
        counts.update({name: int(getattr(found, name)) for name in found.__slots__})
    return counts

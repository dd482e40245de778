"""A simulated world: logs, agents that crash, and zombies; everything that happens follows from a seed.

`World(seed).run()` goes through one schedule and raises AssertionError where a promise is broken. What was
done is in `World.trace`. Run by hand: `python -m tests.cco.simulation SEED` shows a schedule, `FIRST LAST`
runs many.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from random import Random

import msgspec
import numpy as np

from cco import edits_message
from cco.batch import rebuild
from cco.config import Config
from cco.delivery import Inbox
from cco.edits import LEAVE, Edits
from cco.edits_message import Header, Kind, decode_header
from cco.model_file import encode
from cco.rows import Patches, Rows
from cco.vocabulary import Vocabulary
from tests.cco.histories import ITEMS, USERS, to_batch
from tests.cco.simulated_agents import Fields, Habits, ItemAgent, Place, PublishedIndex, Snapshot, UserAgent
from tests.cco.test_pipeline import fields_of
from tests.cco.worlds import Truth, draw_config, draw_logs, known_by

ROUNDS = 25  # after the last fault, until everything has to be exact
FAULTS = {  # and how often a schedule has them
    "crashes": 0.8, "zombies": 0.5, "holes": 0.4, "repeats": 0.3, "old snapshots": 0.5, "strangers": 0.3,
    "bad control": 0.3, "late claims": 0.3, "late patches": 0.5, "lost claims": 0.2,
}  # fmt: skip
LOST_CLAIM = 0.3  # of the claims in a schedule that loses some, those lost before anybody else has read them


class World:
    """One schedule: which faults there are, who does what when, and what must hold."""

    def __init__(self, seed: int, faults: Collection[str] | None = None) -> None:
        """`faults` are those that there are; by default the seed decides about them, too."""
        rng = self.rng = Random(seed)
        self.config = draw_config(rng)
        logs = draw_logs(rng, self.config)
        self.place = Place(self.config, rng.choice((1, 1, 2, 3)), logs)
        self.truth = Truth(self.config, logs, self.place.partitions)
        self.index = PublishedIndex(self.place.partitions)
        dice = {"lost claims": Random(f"lost claims {seed}")}  # of its own: what older seeds have shown they still show
        drawn = {fault for fault, share in FAULTS.items() if dice.get(fault, rng).random() < share}
        self.faults = drawn if faults is None else set(faults)
        self.now = 0.0
        self.session = 0
        self.lossless = True  # nothing happened for which an item partition may begin anew
        self.checked = 0
        self.calm = False
        self.seen: dict[Inbox, tuple[int, ...]] = {}  # positions at which their stages were looked into
        # how often there are faults, snapshots and events, and how soon everything else is done
        self.unrest, self.prudence = rng.choice((0.08, 0.2, 0.4)), rng.choice((0.05, 0.3, 1.0))
        self.pace, self.promptness = rng.choice((0.2, 0.7)), rng.uniform(0.3, 1.0)
        self.trace: list[str] = []
        sources, partitions = range(len(logs)), range(self.place.partitions)
        self.snapshots: list[list[Snapshot]] = [[Snapshot()] for _ in sources]
        self.users = [self._user(source) for source in sources]
        self.items = [ItemAgent(self.place, partition, self._session()) for partition in partitions]
        self.user_zombies: list[UserAgent] = []
        self.item_zombies: list[ItemAgent] = []

    def _session(self) -> int:
        self.session += 1
        return self.session

    def _user(self, source: int) -> UserAgent:
        snapshots = self.snapshots[source]
        snapshot = snapshots[-1]
        if "old snapshots" in self.faults and self.rng.random() < 0.3:  # the shared copy, or another disk
            snapshot = self.rng.choice(snapshots)
            self.lossless &= snapshot is snapshots[-1]
        habits = Habits(
            buffer_rows=self.rng.choice((2, 8, 1000)), message_rows=self.rng.choice((4, 12, 1000)),
            stride=self.rng.choice((1, 3, 8, 30)), swiftness=self.rng.choice((0.2, 0.5, 0.9)),
            fills_in_turns=self.rng.random() < 0.3,
        )  # fmt: skip
        return UserAgent(self.place, source, snapshot, self._session(), habits)

    # -- what may happen ----------------------------------------------------------------------------

    def run(self) -> None:
        """The schedule, then calm, then the comparison of the index with the batch rebuild."""
        rng = self.rng
        faults = [(weight, action) for fault, weight, action in (
            ("crashes", rng.choice((1, 4)), self.crash_user), ("crashes", rng.choice((0.3, 3)), self.crash_item),
            ("holes", 1, self.lose), ("repeats", 1, self.repeat),
            ("strangers", 2, self.intrude), ("bad control", 2, self.repeat_request), ("zombies", 2, self.end_zombie),
        ) if fault in self.faults]  # fmt: skip
        if rng.random() < 0.7:
            self.settle()
        for _ in range(rng.choice((20, 40, 60))):
            self.now += rng.choice((0.0, 0.5, 3.0))
            if faults and rng.random() < self.unrest:
                weights, actions = zip(*faults, strict=True)
                rng.choices(actions, weights)[0]()
            for user in self.users + self.user_zombies:
                self.move_user(user)
            for item in self.items + self.item_zombies:
                self.move_item(item)
        self.calm_down()
        self.compare()

    def settle(self) -> None:
        """All item partitions are filled before the first event."""
        for item in self.items:
            self.claimed(item)
        for user in self.users:
            self.answer(user)
        for item in self.items:
            self.take(item, 10**6)

    def answer(self, user: UserAgent) -> None:
        """What item partitions have asked for is in the log, with everything else that was said."""
        user.hear()
        while user.filling:
            user.fill_some()
        for partition in range(self.place.partitions):
            user.deliver(partition, 10**6)

    def note(self, text: str) -> None:
        self.trace.append(text)

    def move_user(self, user: UserAgent) -> None:
        """What a user agent does next, a little of it or all; it may be slow at anything."""
        rng = self.rng
        if rng.random() < self.pace and user.behind:
            before = user.position
            user.process(rng.choice((1, user.habits.stride)))
            self.note(f"{name_of(user)} processes ({before}, {user.position}]")
        prudence = 0.8 if user.cutting else self.prudence
        if rng.random() < prudence and (found := user.step_snapshot(rng.random() < 0.5)) is not None:
            self.snapshots[user.source].append(found)
            self.snapshots[user.source].sort(key=lambda snapshot: snapshot.position)
            self.note(f"{name_of(user)} commits {found.position}")
        if "bad control" in self.faults and rng.random() < 0.1:
            user.deaf()
        if rng.random() < self.promptness:
            user.hear()
            for _ in range(rng.choice((1, 2, 10))):
                user.fill_some()
        for partition, unsent in enumerate(user.unsent):
            if unsent and rng.random() < user.habits.swiftness:
                user.deliver(partition, rng.choice((1, 3, 100)))
                self.note(f"{name_of(user)} delivers to {partition}: {len(self.place.edits[partition])}")

    def move_item(self, item: ItemAgent) -> None:
        """What an item agent does next, a little of it or all; it may be slow at anything."""
        rng = self.rng
        if item.fenced and item in self.items and rng.random() < self.promptness:
            item.claim()  # it is still the one that it is assigned to
        if item.claiming is not None and ("late claims" not in self.faults or rng.random() < 0.2):
            self.claimed(item)
        if rng.random() < self.promptness:
            self.take(item, rng.choice((1, 3, 100)))
        self.check_state(item)
        if rng.random() < 0.2:
            item.ask()
        if item.countable and rng.random() < 0.5:
            self.publish(item)
        while item.patches and rng.random() < (self.promptness if item in self.items else 0.05):
            self.index.take(item.patches.popleft())

    def claimed(self, item: ItemAgent) -> None:
        log = self.place.edits[item.partition]
        item.claimed()
        self.note(f"{name_of(item)} has claimed: {len(log) - 1}")
        if "lost claims" in self.faults and not self.calm and self.rng.random() < LOST_CLAIM:
            log[-1] = None  # after it was acknowledged
            self.note("the claim is lost")

    def take(self, item: ItemAgent, most: int) -> None:
        gaps = item.gaps
        item.take(most, self.now)
        if item.inbox is not None:
            self.note(f"{name_of(item)} takes up to {item.position}, is at {item.inbox.position}")
        if item.gaps != gaps:
            self.note(f"{name_of(item)} saw a gap")
            assert not self.lossless, "a gap was seen where nothing was lost"

    def publish(self, item: ItemAgent) -> None:
        limit = self.rng.choice((0, 1, 3, 100))
        item.publish(lambda stage: stage.publish(self.now, limit), lambda patches: self.read(item, patches))

    # -- faults -------------------------------------------------------------------------------------

    def crash_user(self) -> None:
        source = self.rng.randrange(len(self.users))
        old = self.users[source]
        self.note(f"{name_of(old)} crashes, with {[len(unsent) for unsent in old.unsent]} unsent")
        if "zombies" in self.faults and self.rng.random() < 0.6:
            self.user_zombies.append(old)
            self.lossless = False
        self.users[source] = self._user(source)
        self.note(f"{name_of(self.users[source])} begins at {self.users[source].position}")

    def crash_item(self) -> None:
        partition = self.rng.randrange(len(self.items))
        old = self.items[partition]
        self.note(f"{name_of(old)} crashes")
        if "zombies" in self.faults and self.rng.random() < 0.6:
            self.item_zombies.append(old)
        elif "late patches" in self.faults:
            old.claiming, old.fenced = None, True
            self.item_zombies.append(old)
        self.items[partition] = ItemAgent(self.place, partition, self._session())

    def end_zombie(self) -> None:
        if self.user_zombies:
            self.user_zombies.pop(self.rng.randrange(len(self.user_zombies)))

    def lose(self) -> None:
        """Messages that were acknowledged are gone: one, or the end of the log; claims only if such are lost at all."""
        partition = self.rng.randrange(self.place.partitions)
        log, read = self.place.edits[partition], self.items[partition].position
        if log:
            first = self.rng.randrange(min(read, len(log) - 1), len(log))
            last = len(log) if self.rng.random() < 0.4 else first + 1
            for offset, message in enumerate(log[first:last], first):
                claim = message is not None and decode_header(message).kind is Kind.CLAIM
                if not claim or "lost claims" in self.faults:
                    log[offset] = None
            self.lossless = False
            self.note(f"lost: {first} to {last} of {partition}")

    def repeat(self) -> None:
        """Some messages are in the log once more."""
        log = self.rng.choice(self.place.edits)
        if log:
            first = self.rng.randrange(max(0, len(log) - 20), len(log))
            log += log[first : first + self.rng.choice((1, 3))]
            self.lossless = False

    def intrude(self) -> None:
        """A message of another configuration, or of other numbers of partitions, that would do harm."""
        partition, rng, config = self.rng.randrange(self.place.partitions), self.rng, self.config
        users, items = Vocabulary(), Vocabulary()
        users.intern(USERS)
        items.intern(ITEMS)
        log, inbox = self.place.edits[partition], self.items[partition].inbox
        kind = rng.choice((Kind.RANGE, Kind.FILL, Kind.CLAIM))
        header = Header(
            kind, 0, len(self.users), partition, self.place.partitions, config.epoch, self._session(),
            -1 if inbox is None or kind != Kind.FILL else inbox.claim, 0, 10**6, 0, True,
        )  # fmt: skip
        change = rng.choice(({"epoch": "0" * 16}, {"sources": 9}, {"partitions": 9}))
        log += edits_message.encode(msgspec.structs.replace(header, **change), harmful(), users, items)
        self.note(f"a stranger: {kind.name} with {change}")

    def repeat_request(self) -> None:
        if self.place.control:
            self.place.control.append(self.rng.choice(self.place.control))

    # -- what must hold -----------------------------------------------------------------------------

    def read(self, item: ItemAgent, patches: Patches) -> Fields:
        """The fields of a patch by names; each is what the oracle says at the patch's position."""
        found = fields_of(patches.rows, self.config, item.items)
        wanted = self.truth.fields_at(patches.position)
        for key, entries in found.items():
            assert entries == wanted.get(key, []), f"{key} is not as the oracle says at {patches.position}"
        self.checked += len(found)
        return found

    def check_state(self, item: ItemAgent) -> None:
        """All that an item stage knows, asked for or not, is as of its position, whenever rows may be counted."""
        if item.countable and item.inbox is not None and self.seen.get(item.inbox) != item.inbox.position:
            position = self.seen[item.inbox] = item.inbox.position
            known, wanted = known_by(item.stage, self.config), self.truth.known_at(position, item.partition)
            assert known == wanted, f"{name_of(item)} at {position}"

    def calm_down(self) -> None:
        """No more faults: everything is sent, read, asked and answered. Zombies have their last word, or not."""
        for zombie in self.user_zombies:
            for partition in range(self.place.partitions):
                zombie.deliver(partition, self.rng.choice((0, 100)))
        self.user_zombies.clear()
        self.calm = True
        for _ in range(ROUNDS):
            for user in self.users:
                self.finish(user)
            for item in self.items:
                if item.fenced:
                    item.claim()
                if item.claiming is not None:
                    self.claimed(item)
                self.take(item, 10**6)
                item.ask()
            ends = tuple(len(log) for log in self.place.sources)
            if all(item.countable and item.inbox.position == ends for item in self.items if item.inbox):
                return
        raise AssertionError(f"not everything is filled {ROUNDS} rounds after the last fault")

    def finish(self, user: UserAgent) -> None:
        """Everything that a user agent has to do, and a snapshot."""
        while user.behind:
            user.process(self.rng.choice((1, 8, 100)))
        for _ in range(ROUNDS):
            self.answer(user)
            if user.step_snapshot(everything=True) is not None:
                return
        raise AssertionError(f"{name_of(user)} took no snapshot")

    def compare(self) -> None:
        """The index that the patches made is the model that a batch rebuild makes of the logs, byte for byte."""
        for item in self.items:
            while item.publish(lambda stage: stage.refresh(self.now, 3), lambda patches: self.read(item, patches)):  # noqa: B023
                pass
        agents = self.items + self.item_zombies
        while agents:
            agent = self.rng.choice(agents)
            if agent.patches:
                self.index.take(agent.patches.popleft())
            else:
                agents.remove(agent)
        assert self.index.fields == self.truth.fields_at(tuple(len(log) for log in self.place.sources))
        assert model_of_fields(self.index.fields, self.config) == self.rebuilt()

    def rebuilt(self) -> bytes:
        users, items = Vocabulary(), Vocabulary()
        batches = [
            (source, to_batch(self.config, [event for event in log if event is not None], users, items))
            for source, log in enumerate(self.place.sources)
        ]
        return b"".join(encode(rebuild(self.config, batches, users, items).rows(), items, self.config))


def name_of(agent: UserAgent | ItemAgent) -> str:
    if isinstance(agent, UserAgent):
        return f"user agent {agent.outbox._session} of {agent.source}"
    return f"item agent {agent._session} of {agent.partition}"


def harmful() -> Edits:
    """Everybody leaves, and what is counted is nonsense."""
    everybody, everything = np.arange(len(USERS), dtype=np.uint32), np.arange(len(ITEMS), dtype=np.uint32)
    zeros = np.zeros(len(ITEMS), np.uint8)
    return Edits(
        0, 10**6, np.full(len(USERS), LEAVE, np.uint8), np.zeros(len(USERS), np.uint8), everybody, everybody * 0,
        77, zeros, everything, zeros.astype(np.int32) + 55, zeros[:0], everything[:0], zeros[:0].astype(np.int32),
    )  # fmt: skip


def model_of_fields(fields: Fields, config: Config) -> bytes:
    """The model file of an index."""
    items, names = Vocabulary(), (*config.indicator_names, "priors")
    columns: list[tuple[int, int, list[int], list[float]]] = []
    for (item, name), entries in fields.items():
        features = [
            config.prior_names.index(feature) if name == "priors" else int(items.intern([feature])[0])
            for feature, _ in entries
        ]
        columns.append((int(items.intern([item])[0]), names.index(name), features, [weight for _, weight in entries]))
    rows = Rows(
        np.array([item for item, _, _, _ in columns], np.uint32),
        np.array([kind for _, kind, _, _ in columns], np.uint8),
        np.cumsum([0, *(len(features) for _, _, features, _ in columns)], dtype=np.int64),
        np.array([f for _, _, features, _ in columns for f in features], np.uint32),
        np.array([w for _, _, _, weights in columns for w in weights], np.float32),
    )
    return b"".join(encode(rows, items, config))


def run(seed: int, faults: Collection[str] | None = None) -> World:
    """One schedule. Raises AssertionError, or whatever an agent raised, with a note that says how to replay it."""
    world = World(seed, faults)
    try:
        world.run()
    except Exception as error:
        error.add_note(f"seed {seed}, faults {sorted(world.faults)}: python -m tests.cco.simulation {seed} shows it")
        raise
    return world


def main(arguments: list[str]) -> None:
    """One seed with everything that was done, or all from the first to the last."""
    if len(arguments) == 1:
        world = World(int(arguments[0]))
        print(world.config, *world.place.sources, sorted(world.faults), sep="\n")
        try:
            world.run()
        finally:
            print(*world.trace, sep="\n")
        return
    for seed in range(int(arguments[0]), int(arguments[1])):
        run(seed)


if __name__ == "__main__":
    main(sys.argv[1:])

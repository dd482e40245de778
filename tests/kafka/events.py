"""Generated events for workers: skewed items, sessions, returns, deletions, late and repeated events, ties in time."""

from __future__ import annotations

import random

from cco.event_data import CLOCK, DELETE_USER, EventBatch
from tests.kafka.world import World

CONFIG = """
primary = "purchase"
max_staleness = "20s"
[indicators.purchase]
events = ["purchase"]
removed_by = ["return"]
user_cap = 12
top_k = 10
[indicators.view]
user_cap = 20
top_k = 10
[retention]
sampling = "recent"
window = "60d"
visitor_window = "20d"
min_primary = 2
source_partitions = 4
[priors]
recent = "10d"
trending = "20d"
hot = "30d"
"""
DAY = 86_400
BEGIN = 1_700_000_000


def generated(world: World, number: int, seed: int, users: int = 300, items: int = 80) -> EventBatch:
    """`number` events of `users` users over 120 days. The same seed gives the same events."""
    random_ = random.Random(seed)
    rows: list[tuple[str, str, str, int]] = []
    for k in range(number):
        if rows and random_.random() < 0.05:
            rows.append(random_.choice(rows[-50:]))  # again, late
            continue
        time = BEGIN + int(120 * DAY * k / number)
        time -= random_.choice([0, 0, 0, 0, random_.randrange(5 * DAY)])  # some come out of order
        kind = random_.choices(["purchase", "view", "return"], [5, 8, 1])[0]
        item = int(items * random_.random() ** 2)
        user = int(users * random_.random() ** 1.5)
        rows.append((f"user-{user}", f"item-{item}", kind, time - time % 60))
    batch = world.batch_of(rows)
    types = batch.types.copy()
    for k in range(number):
        if random_.random() < 0.003:
            types[k] = DELETE_USER
        elif random_.random() < 0.003:
            types[k] = CLOCK
    return EventBatch(batch.users, batch.items, types, batch.times)

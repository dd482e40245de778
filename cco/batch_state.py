"""What a user stage holds where a batch rebuild has come to, in the words that the stage itself packs its users into.

So a stage can begin where the rebuild ends (`UserStage.restore`), without having seen the log before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cco.batch import Model
from cco.batch_fold import source_partitions
from cco.batch_pieces import Ids, chosen_ids
from cco.retention import indicator_hash, worst
from llr.jit import kernel

Words = npt.NDArray[np.uint32]

WORDS = 1 << 16  # of packed users made at a time, about


class SourceState:
    """The users of source partition `source` in a model: all that it knows, also those of whom nothing is retained.

    They are numbered anew, in the model's order; items are numbered as in the model.
    """

    def __init__(self, model: Model, source: int) -> None:
        self._model = model
        self._users = np.flatnonzero(source_partitions(model.config, model.users) == source)
        self.watermark = int(model.histories.watermarks[source])

    def __len__(self) -> int:
        return int(self._users.size)

    def names(self) -> Ids:
        """The ids of its users."""
        return chosen_ids(self._model.users, self._users)

    def packed(self) -> Iterator[Words]:
        """Whole records of those users who have a history (see `cco.user_state.pack`), some at a time."""
        model = self._model
        config, histories = model.config, model.histories
        names = config.indicator_names
        caps = np.array([config.indicators[name].user_cap for name in names], np.int64)
        hashes = np.array([indicator_hash(name, config.retention.seed) for name in names], np.uint64)
        rule = caps, hashes, config.retention.sampling == "recent"
        words = self._words(len(names))
        ends = np.cumsum(words)
        begin = 0
        while begin < words.size:
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + WORDS, "right")))
            out = np.empty(int(ends[end - 1]) - before, np.uint32)
            if out.size:
                _pack((histories.head, histories.items, histories.times), rule,
                      (model.users.hashes, model.items.hashes), self._users, begin, end, out)  # fmt: skip
                yield out
            begin = end

    def _words(self, kinds: int) -> npt.NDArray[np.int64]:
        """(users,) how many words each of its users takes."""
        lengths = np.zeros(len(self._model.users), np.int64)
        told = self._model.histories.head[:, 1].reshape(-1, kinds).sum(axis=1, dtype=np.int64)
        lengths[: told.size] = told
        mine = lengths[self._users]
        return np.where(mine > 0, 1 + kinds + 2 * mine, 0)


@kernel
def _pack(histories: Any, rule: Any, ids: Any, chosen: Any, begin: Any, end: Any, out: Any) -> None:
    """Per user: his number, then per indicator the length, the items, the times.

    In a full uniform history the item that goes first comes first: the stage relies on it (`retention.settle`).
    """
    head, items, times = histories
    caps, hashes, recent = rule
    user_hashes, item_hashes = ids
    kinds = caps.size
    at = np.int64(0)
    for number in range(begin, end):
        user = np.int64(chosen[number])
        total = np.int64(0)
        if (user + 1) * kinds <= head.shape[0]:
            for t in range(kinds):
                total += np.int64(head[user * kinds + t, 1])
        if total == 0:
            continue
        out[at] = np.uint32(number)
        at += 1
        for t in range(kinds):
            start, n = np.int64(head[user * kinds + t, 0]), np.int64(head[user * kinds + t, 1])
            out[at] = np.uint32(n)
            at += 1
            for k in range(n):
                out[at + k] = items[start + k]
                out[at + n + k] = times[start + k]
            if n == caps[t] and not recent:
                first = np.int64(worst(items, times, start, n, user_hashes[user], item_hashes, hashes[t], recent))
                out[at], out[at + first] = out[at + first], out[at]
                out[at + n], out[at + n + first] = out[at + n + first], out[at + n]
            at += 2 * n

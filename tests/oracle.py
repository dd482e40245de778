"""The oracle: exact CCO of the retained interactions, with dicts and sets, eagerly and slowly.

It shares with the program the configuration, the readable reference of the statistic and the partitioner's
hash. Everything else - retention, expiry, counts, rows, priors, the model file - is said again here, plainly.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from cco.config import Config
from cco.vocabulary import Vocabulary
from llr import reference

_MASK = 2**64 - 1
_SHAPES = {"popular": [1] * 12, "recent": [1] * 12, "trending": [1] * 6 + [-1] * 6,
           "hot": [1] * 4 + [-2] * 4 + [1] * 4}  # fmt: skip

Histories = dict[str, dict[str, int]]  # indicator -> item -> time of its last event
Row = list[tuple[str, float]]


def _mix(x: int) -> int:
    """SplitMix64's finaliser."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def id_hash(text: str) -> int:
    """FNV-1a 64 and the finaliser."""
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & _MASK
    return _mix(h)


def rank_hash(user: str, item: str, indicator: str, seed: int) -> int:
    """What uniform sampling keeps the smallest of."""
    of_indicator = int.from_bytes(hashlib.blake2b(f"{seed}:{indicator}".encode(), digest_size=8).digest(), "little")
    return _mix(((id_hash(user) ^ of_indicator) + id_hash(item) * 0x9E3779B97F4A7C15) & _MASK)


def truncate(weight: float) -> float:
    """To float32, then without the low 15 bits."""
    return float((np.array([weight], np.float32).view(np.uint32) & np.uint32(0xFFFF8000)).view(np.float32)[0])


def partition_of(user: str, count: int) -> int:
    """The source partition of a user."""
    vocabulary = Vocabulary()
    vocabulary.intern([user])
    return int(vocabulary.partitions(count)[0])


@dataclass
class Oracle:
    """The state after every event that was applied; all users have expired at their partition's watermark."""

    config: Config
    users: dict[str, Histories] = field(default_factory=dict)
    partition: dict[str, int] = field(default_factory=dict)
    watermarks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watermarks = [0] * self.config.retention.source_partitions

    def apply(self, user: str, type: str, item: str, time: int, source: int | None = None) -> None:
        """One event; `type` may be "$delete" or "$clock" (of one source partition, or of every one)."""
        if type == "$clock":
            for p, watermark in enumerate(self.watermarks):
                self.watermarks[p] = max(watermark, time) if source in (None, p) else watermark
            self._expire_all()
            return
        if user not in self.users:
            self.users[user] = {name: {} for name in self.config.indicators}
            self.partition[user] = partition_of(user, self.config.retention.source_partitions)
        p = self.partition[user]
        if time > self.watermarks[p]:
            self.watermarks[p] = time
            self._expire_all()
        if type == "$delete":
            for history in self.users[user].values():
                history.clear()
            return
        if type in self.config.indicators[self.config.primary].events:
            self._admit(user, self.config.primary, item, time)
        for name, indicator in self.config.indicators.items():
            if name != self.config.primary and type in indicator.events and not self._too_old(user, time):
                self._admit(user, name, item, time)
        for name, indicator in self.config.indicators.items():
            if type in indicator.removed_by:
                self.users[user][name].pop(item, None)
        self._expire(user)  # for nobody else anything has changed

    def _too_old(self, user: str, time: int) -> bool:
        """Outside the windows on arrival; what the primary brought has made the user a member or not by now."""
        retention = self.config.retention
        windows = [retention.window] if self.in_u(user) else [retention.window, retention.visitor_window]
        watermark = self.watermarks[self.partition[user]]
        return any(window is not None and time < watermark - window for window in windows)

    def _admit(self, user: str, name: str, item: str, time: int) -> None:
        history = self.users[user][name]
        history[item] = max(history.get(item, 0), time)
        if len(history) > self.config.indicators[name].user_cap:
            seed = self.config.retention.seed
            recent = self.config.retention.sampling == "recent"
            del history[max(history, key=lambda i: (-history[i] if recent else 0, rank_hash(user, i, name, seed)))]

    def in_u(self, user: str) -> bool:
        """Whether the user counts."""
        return len(self.users[user][self.config.primary]) >= self.config.retention.min_primary

    def _expire_all(self) -> None:
        for user in self.users:
            self._expire(user)

    def _expire(self, user: str) -> None:
        self._drop_older(user, self.config.retention.window)
        if not self.in_u(user):
            self._drop_older(user, self.config.retention.visitor_window)

    def _drop_older(self, user: str, window: int | None) -> None:
        if window is None:
            return
        oldest = self.watermarks[self.partition[user]] - window
        for history in self.users[user].values():
            for item in [item for item, time in history.items() if time < oldest]:
                del history[item]

    def histories(self) -> dict[str, Histories]:
        """Users who have something: their items and times, by indicator."""
        return {user: histories for user, histories in self.users.items() if any(histories.values())}

    def members(self) -> list[Histories]:
        """The histories of the users in U."""
        return [histories for user, histories in self.users.items() if self.in_u(user)]

    def counts(self, indicator: str) -> tuple[int, dict[str, int], dict[tuple[str, str], int]]:
        """(N, n_t(j) by j, k_t(i, j) by (i, j)); what is 0 is not there."""
        members = self.members()
        n = Counter(j for h in members for j in h[indicator])
        k = Counter((i, j) for h in members for i in h[self.config.primary] for j in h[indicator])
        return len(members), dict(n), dict(k)

    def rows(self) -> dict[str, dict[str, Row]]:
        """item -> indicator -> [(feature, LLR)], exact, in order; empty rows are not there."""
        primary = self.config.primary
        n_row = self.counts(primary)[1]
        found: dict[str, dict[str, Row]] = {item: {} for item in n_row}
        for name, indicator in self.config.indicators.items():
            n, n_column, pairs = self.counts(name)
            for (i, j), k in pairs.items():
                if name == primary and i == j:
                    continue
                if not self.config.anti_correlations and k * n < n_row[i] * n_column[j]:
                    continue
                llr = reference.g2(k, n_row[i], n_column[j], n)
                if llr > reference.epsilon(n) and llr >= indicator.min_llr:
                    found[i].setdefault(name, []).append((j, llr))
            for row in found.values():
                if name in row:
                    row[name] = _ordered(row[name])[: indicator.top_k]
        return {item: row for item, row in found.items() if row}

    def priors(self) -> dict[str, dict[str, int]]:
        """item -> prior -> its value; only those above 0."""
        found: dict[str, Counter[str]] = {}
        for user, histories in self.users.items():
            if not self.in_u(user):
                continue
            for item, time in histories[self.config.primary].items():
                for name in self.config.prior_names:
                    found.setdefault(item, Counter())[name] += self._prior(name, self.partition[user], time)
        return {item: {n: v for n, v in values.items() if v > 0} for item, values in found.items()}

    def _prior(self, name: str, partition: int, time: int) -> int:
        duration = getattr(self.config.priors, name)
        if duration == "all":
            return 1
        width = max(1, duration // 12)
        age = self.watermarks[partition] // width - time // width
        return _SHAPES[name][age] if age < 12 else 0

    def model_lines(self, exact: bool = False) -> list[str]:
        """The lines of the model file, without line ends."""
        rows, priors, lines = self.rows(), self.priors(), []
        for item in sorted({*rows, *priors}, key=str.encode):
            line: dict[str, object] = {"item": item}
            fields = {name: row if exact else _ordered([(j, truncate(llr)) for j, llr in row])
                      for name, row in sorted(rows.get(item, {}).items())}  # fmt: skip
            values = {name: float(value) if exact else truncate(value)
                      for name, value in sorted(priors.get(item, {}).items())}  # fmt: skip
            if fields:
                line["indicators"] = fields
            if values:
                line["priors"] = values
            if fields or values:
                lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
        return lines


def _ordered(row: Row) -> Row:
    return sorted(row, key=lambda entry: (-entry[1], entry[0].encode()))

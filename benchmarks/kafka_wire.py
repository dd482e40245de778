"""Bytes of edits on the wire, and what they are: no broker, the messages as a worker makes them."""

from __future__ import annotations

from types import SimpleNamespace

import cramjam
import numpy as np

from agents.demo.data import demo_config
from agents.kafka.producing import Messages
from agents.workers.user_partition import SourceLog, UserPartition
from benchmarks import data
from benchmarks.kafka import purchases
from benchmarks.measure import Bench
from benchmarks.scenario import Result
from cco.config import Config
from cco.edits_columns import SIZES
from cco.edits_message import HEADER_BYTES

RANGES = (2_000, 16_384)  # events in a range: moderately busy, and catching up


def wire(bench: Bench, name: str, item_partitions: int) -> Result:
    """Bytes per interaction over all item partitions, as they are and compressed as the producer does.

    Of them `ids` are the texts of ids; `counts` and `priors` are rows per interaction, as are `edits`.
    """
    config: Config = demo_config() if name == "demo" else purchases()[0]
    log = data.load(bench, name)
    bench.warm_up(lambda: None)
    messages = Messages(config, log.user_ids, log.item_ids)
    result: Result = {}
    for size in RANGES:
        partition = UserPartition(config, SourceLog("interactions", 0, 1, "benchmark"), item_partitions)
        raw = compressed = 0
        said = np.zeros(8)  # as SIZES has it
        for at in range(0, len(log), size):
            keys, values = messages.encode(log.batch().part(at, at + size))
            records = [
                SimpleNamespace(key=key, value=value, timestamp=1000 * int(time), offset=at + k, headers=())
                for k, (key, value, time) in enumerate(
                    zip(keys, values, log.times[at : at + size].tolist(), strict=True)
                )
            ]
            told = partition.apply(records, at + len(records))
            if told.letters:
                raise RuntimeError(told.letters[0].reason)
            raw += sum(len(message) for _, message in told.messages)
            compressed += sum(len(cramjam.zstd.compress(message)) for _, message in told.messages)
            for _, message in told.messages:
                said += SIZES.unpack_from(message, HEADER_BYTES)
        _, _, of_users, _, of_items, edits, counts, priors = (said / len(log)).tolist()
        result |= {
            f"bytes_{size}": raw / len(log), f"zstd_{size}": compressed / len(log),
            f"ids_{size}": of_users + of_items, f"edits_{size}": edits, f"counts_{size}": counts,
            f"priors_{size}": priors,
        }  # fmt: skip
    return result

"""Records of a log's partitions, wherever they are read from, the topic or its archive; and offsets to end before."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agents.files.reading import Chunk
from cco.events import EventParser

_PAIRS = re.compile(r"[0-9]{1,5}:[0-9]{1,18}(,[0-9]{1,5}:[0-9]{1,18})*")

Ends = Mapping[int, int]  # by partition, the offset to end before


@dataclass(frozen=True, slots=True)
class Records:
    """Messages of one partition, in order; n of them."""

    partition: int
    keys: list[bytes | None]
    values: list[bytes | None]
    offsets: npt.NDArray[np.int64]  # (n,)
    milliseconds: npt.NDArray[np.int64]  # (n,) log times: milliseconds since 1970
    next_offset: int  # where the partition goes on
    read: int = 0  # of all that is wanted up to here, as offsets count
    total: int = 0  # and in all

    @property
    def seconds(self) -> npt.NDArray[np.int64]:
        """(n,) log times: epoch seconds, rounded down, which is what events without a time take."""
        return self.milliseconds // 1000

    def between(self, begin: int, end: int) -> Records:
        """Those with offsets from `begin` to before `end`."""
        first, last = (int(place) for place in np.searchsorted(self.offsets, (begin, end)))
        return replace(
            self,
            keys=self.keys[first:last],
            values=self.values[first:last],
            offsets=self.offsets[first:last],
            milliseconds=self.milliseconds[first:last],
            next_offset=min(self.next_offset, end),
        )


def parsed(records: Records, parser: EventParser, where: str) -> Chunk:
    """The events among records of `interactions`, by the rules of the user stages.

    `Chunk.file` is the source partition, `record` the offset after the chunk; bytes are offsets as well. A rejection
    has `where` as its file and the offset as its line.
    """
    partitions = parser.config.retention.source_partitions
    found = parser.messages(records.values, records.keys, records.seconds, records.partition, partitions)
    rejections = [
        replace(rejection, file=where, line=int(records.offsets[rejection.line - 1])) for rejection in found.rejections
    ]
    return Chunk(
        found.batch,
        rejections,
        found.item_changes,
        file=records.partition,
        record=records.next_offset,
        records=records.read,
        bytes_read=records.read,
        bytes_total=records.total,
    )


class OffsetsError(ValueError):
    """End offsets that cannot be understood: one readable line."""


def parse_ends(text: str) -> Ends:
    """End offsets as "0:12,1:7", or from a JSON file with {"0": 12, "1": 7}, alone or under "offsets".

    Raises OffsetsError, or OSError for the file.
    """
    pairs: object
    if _PAIRS.fullmatch(text.strip()):
        listed = [pair.split(":") for pair in text.strip().split(",")]
        pairs = dict(listed)
        if len(dict(listed)) < len(listed):
            raise OffsetsError(f"{text}: names a partition twice")
    else:
        try:
            pairs = json.loads(Path(text).read_text(encoding="utf-8"))
        except ValueError as error:
            raise OffsetsError(f"{text}: is neither partition:offset,... nor a file of JSON ({error})") from None
        if isinstance(pairs, dict) and "offsets" in pairs:
            pairs = pairs["offsets"]
    try:
        ends = {int(partition): int(offset) for partition, offset in pairs.items()}  # type: ignore[attr-defined]
    except (ValueError, TypeError, AttributeError):
        raise OffsetsError(f'{text}: holds no offsets by partition, such as {{"0": 12, "1": 7}}') from None
    if not ends or min(*ends, *ends.values()) < 0:
        raise OffsetsError(f"{text}: offsets and partitions are whole numbers from 0 on, and there must be one")
    return ends

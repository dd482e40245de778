"""Patches read back, from files of JSON Lines or the topic `patches`, and put together to the model that they make.

A record has the changed fields of one item, and they stay until another record changes them, as in an index. What
an owner of an item partition sends after another has followed it does not count: its generation is lower than
that of what stands there already. The new owner sends every item once, so nothing else of the old one stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from agents.kafka.reading import Ends, read_topic
from agents.kafka.topics import PATCHES
from agents.settings import Settings
from cco.model_file import ModelFileError, Row, check_entries, check_number, encode_line

_Id = Annotated[str, msgspec.Meta(min_length=1)]
_Whole = Annotated[int, msgspec.Meta(ge=0)]


class PatchError(ValueError):
    """A record of patches that cannot be used: one readable line with where it is."""


class PatchRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The changed fields of one item; an empty list empties a field."""

    item: _Id
    partition: _Whole  # item partition
    generation: _Whole  # of the partition's owner
    position: list[int]  # by source partition
    indicators: dict[str, list[tuple[_Id, float]]] = {}
    priors: list[tuple[_Id, float]] | msgspec.UnsetType = msgspec.UNSET


_decoder = msgspec.json.Decoder(PatchRecord)


@dataclass(slots=True)
class _Item:
    partition: int
    generation: int
    fields: dict[str, bytes]  # entries by indicator, and the priors, as JSON: a tenth of what they take as objects


_PRIORS = "priors"  # no indicator may have this name


@dataclass(slots=True)
class Materializer:
    """The model that the records so far make."""

    records: int = 0
    dropped: int = 0  # of an owner that was followed by another
    positions: dict[int, list[int]] = field(default_factory=dict)  # of the newest owner of each
    _items: dict[str, _Item] = field(default_factory=dict)
    _generations: dict[int, int] = field(default_factory=dict)

    def add(self, data: bytes, where: str) -> None:
        """Take the next record. Raises PatchError, beginning with `where`, if it is none."""
        record = _decode(data, where)
        self.records += 1
        known = self._items.setdefault(record.item, _Item(record.partition, record.generation, {}))
        if record.generation < known.generation:
            self.dropped += 1
            return
        known.partition, known.generation = record.partition, record.generation
        if record.generation >= self._generations.get(record.partition, -1):
            self._generations[record.partition] = record.generation
            self.positions[record.partition] = record.position
        for name, entries in record.indicators.items():
            known.fields[name] = msgspec.json.encode(entries)
        if record.priors is not msgspec.UNSET:
            known.fields[_PRIORS] = msgspec.json.encode(record.priors)

    def lines(self) -> Iterator[bytes]:
        """The model file."""
        for item in sorted(self._items, key=str.encode):
            yield encode_line(_row(item, self._items[item].fields))

    @property
    def outdated(self) -> int:
        """Items that only earlier owners of their partition have sent yet: none once the newest is through."""
        return sum(known.generation != self._generations[known.partition] for known in self._items.values())

    @property
    def items(self) -> int:
        """Items with entries."""
        return sum(any(value != b"[]" for value in known.fields.values()) for known in self._items.values())


_entries = msgspec.json.Decoder(list[tuple[str, float]])


def _row(item: str, fields: dict[str, bytes]) -> Row:
    decoded = {name: _entries.decode(data) for name, data in fields.items()}
    priors = dict(decoded.pop(_PRIORS, []))
    return Row(item, decoded, priors)


def _decode(data: bytes, where: str) -> PatchRecord:
    try:
        record = _decoder.decode(data)
        for name, entries in record.indicators.items():
            if entries:
                check_entries(entries, f"{name[:40]!r} of item {record.item[:40]!r}")
        if record.priors is not msgspec.UNSET:
            for name, value in record.priors:
                check_number(value, f"the prior {name[:40]!r} of item {record.item[:40]!r}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ModelFileError) as error:
        raise PatchError(f"{where}: not a record of patches: {error}") from None
    return record


def read_files(paths: Iterable[Path]) -> Materializer:
    """The model of files, read one after the other. Raises PatchError with file and line, OSError.

    A last line without its end was being written when the worker died, or still is; it is passed over.
    """
    model = Materializer()
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    model.add(line, f"{path}, line {number}")
    return model


def read_patches_topic(settings: Settings, ends: Ends | None = None) -> Materializer:
    """The model of the topic `patches`. Raises PatchError with partition and offset, KafkaProblem."""

    async def read() -> Materializer:
        model, name = Materializer(), settings.topic(PATCHES)
        async for records in read_topic(settings, PATCHES, ends):
            for value, offset in zip(records.values, records.offsets.tolist(), strict=True):
                model.add(value or b"", f"{name}, partition {records.partition}, offset {offset}")
        return model

    return asyncio.run(read())

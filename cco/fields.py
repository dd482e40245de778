"""The rules for the fields of one record: what is an event, what is refused, and in which words."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cco.config import Config
from cco.event_data import CLOCK, DELETE_USER, ItemChange
from cco.prediction_io import from_prediction_io
from cco.times import MAX_TIME, BadTime, check_ahead, time_of
from cco.values import BadRecord, Code, as_number
from cco.vocabulary import id_problem

KNOWN_SHOWN = 10
ALIASES = {"user": ("user", "user_id"), "item": ("item", "item_id"), "event": ("event", "event_type")}  # last wins


class Event(NamedTuple):
    """One accepted event: `user` and `item` are None where there is none; `type` as in EventBatch."""

    user: str | None
    item: str | None
    type: int
    time: int


@dataclass(slots=True)
class FieldRules:
    """The rules under one configuration: its event types decide what is known."""

    types: dict[str, int]
    _unknown: dict[str, str]

    @classmethod
    def of(cls, config: Config) -> FieldRules:
        return cls({name: t for t, name in enumerate(config.event_types)}, {})

    def accept(self, record: object, log_time: int | None) -> Event | ItemChange:
        """What a decoded record says. Raises BadRecord with the reason if it says nothing that can be used."""
        if not isinstance(record, Mapping):
            raise BadRecord(f"the record is not a JSON object but {_kind(record)}", "shape")
        if "event_type" not in record and "entityType" in record:
            translated = from_prediction_io(record)
            if isinstance(translated, ItemChange):
                self._id(translated.item_id, "entityId", "item")
                return translated
            record = translated
        return self._event(record, log_time)

    def _event(self, record: Mapping[str, object], log_time: int | None) -> Event:
        names = {key: alias for key in ("user", "item", "event") for alias in ALIASES[key] if alias in record}
        values = {key: record[name] for key, name in names.items()}
        name = values.get("event")
        if name is None or name == "":
            raise BadRecord("the event type is missing (event_type)", "type")
        if not isinstance(name, str):
            raise BadRecord(f"the event type must be text, not {_kind(name)}", "type")
        self._context(record)
        time = self._time(record.get("timestamp"), log_time)
        user, item = values.get("user"), values.get("item")
        if name == "$clock":
            if time is None:
                raise BadRecord("$clock needs a timestamp", "time")
            if _given(user) or _given(item):
                raise BadRecord("$clock moves the time on; it takes neither user nor item", "shape")
            return Event(None, None, CLOCK, time)
        when = _when_written(log_time) if time is None else time
        if name == "$delete":
            if _given(item):
                raise BadRecord("$delete deletes a user with all interactions; it takes no item", "shape")
            return Event(self._id(user, names.get("user", "user_id"), "user"), None, DELETE_USER, when)
        known = self.types.get(name)
        if known is None:
            raise BadRecord(self._unknown_type(name), "type")
        return Event(
            self._id(user, names.get("user", "user_id"), "user"),
            self._id(item, names.get("item", "item_id"), "item"),
            known,
            when,
        )

    @staticmethod
    def _id(value: object, name: str, code: Code) -> str:
        if value is None or value == "":
            raise BadRecord(f"{name} is missing", code)
        number = as_number(value)
        if isinstance(number, int):
            value = str(number)
        if not isinstance(value, str):
            raise BadRecord(f"{name} must be text or a whole number, not {_kind(value)}", code)
        problem = id_problem(value)
        if problem is not None:
            raise BadRecord(f"{name} {problem}", code)
        return value

    @staticmethod
    def _time(value: object, log_time: int | None) -> int | None:
        try:
            seconds = time_of(value)
            if seconds is not None:
                check_ahead(seconds, log_time)
        except BadTime as error:
            raise BadRecord(str(error), "time") from None
        return seconds

    @staticmethod
    def _context(record: Mapping[str, object]) -> None:
        event_id = record.get("event_id")
        if event_id is not None and not isinstance(event_id, str):
            raise BadRecord(f"event_id must be text, not {_kind(event_id)}")
        weight = record.get("weight")
        if weight is not None and not is_weight(weight):
            raise BadRecord(f"weight must be a finite number, not {str(weight)[:40] or 'empty'}", "weight")

    def _unknown_type(self, name: str) -> str:
        reason = self._unknown.get(name)
        if reason is None:
            near = difflib.get_close_matches(name[:64], self.types, n=1)
            hint = f' (did you mean "{near[0]}"?)' if near else ""
            known = ", ".join(list(self.types)[:KNOWN_SHOWN]) + (", ..." if len(self.types) > KNOWN_SHOWN else "")
            reason = f"no indicator names the event type {name[:64]!r}{hint}; known: {known}"
            if len(self._unknown) < 1_000:  # a stream of ever new names must not fill the memory
                self._unknown[name] = reason
        return reason


def is_weight(value: object) -> bool:
    """Whether a value is a finite number."""
    number = as_number(value)
    return number is not None and math.isfinite(number)


def _when_written(log_time: int | None) -> int:
    """The time of an event without one. A producer may write any log time, so it is checked like others."""
    if log_time is not None and not 0 <= log_time <= MAX_TIME:
        raise BadRecord(f"the record has no time, and its log time {log_time} is not within 1970 to 2100", "time")
    return log_time or 0


def _given(value: object) -> bool:
    return value is not None and value != ""


def _kind(value: object) -> str:
    """What a decoded value is, in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if as_number(value) is not None:
        return "a number"
    return "an object" if isinstance(value, Mapping) else "a list"

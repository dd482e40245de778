"""Times of events: epoch seconds or ISO 8601, checked, rounded down to seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cco.values import as_number
from llr.jit import kernel

MAX_TIME = 4_102_444_800  # 2100-01-01T00:00:00Z
MILLISECONDS = 10**11  # as seconds the year 5138, as milliseconds 1973
AHEAD = 86_400

MISSING = -(2**62)  # in a column of times: the record has none
BAD = -(2**63)  # in a column of times: not a time; `time_of` says why

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_MAX_DIGITS = 40


class BadTime(ValueError):
    """A time that is refused; the message is the reason, a sentence without a full stop."""


def time_of(value: object) -> int | None:
    """Epoch seconds, rounded down, of a number, text or datetime (naive is UTC); None if missing or empty.

    Raises BadTime outside 1970-01-01 to 2100-01-01, and for what is no time.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _time_of_text(value)
    if isinstance(value, datetime):
        return _checked(_since_epoch(value), value, from_number=False)
    number = as_number(value)
    if number is None:
        raise BadTime(f"the time must be epoch seconds or ISO 8601, not {type(value).__name__}")
    if not math.isfinite(number):
        raise BadTime(f"the time {number} is not a finite number")
    return _checked(math.floor(number), number, from_number=True)


@lru_cache(maxsize=1 << 16)  # files hold the same few texts again and again
def _time_of_text(text: str) -> int | None:
    stripped = text.strip()
    if not stripped:
        return None
    if _NUMBER.fullmatch(stripped):
        exact = len(stripped) <= _MAX_DIGITS and stripped.lstrip("+-").isdigit()
        return time_of(int(stripped) if exact else float(stripped))
    try:
        moment = datetime.fromisoformat(stripped)
        return _checked(_since_epoch(moment), stripped, from_number=False)
    except BadTime:
        raise
    except (ValueError, OverflowError):
        raise BadTime(f"the time {text[:60]!r} is neither epoch seconds nor ISO 8601") from None


def _since_epoch(moment: datetime) -> int:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _SECOND


def _checked(seconds: int, shown: object, *, from_number: bool) -> int:
    if from_number and seconds >= MILLISECONDS:
        raise BadTime(f"the time {shown} looks like milliseconds: divide by 1000")
    if seconds < 0:
        raise BadTime(f"the time {shown} is before 1970-01-01")
    if seconds > MAX_TIME:
        raise BadTime(f"the time {shown} is after 2100-01-01")
    return seconds


def check_ahead(seconds: int, log_time: int | None) -> None:
    """Raises BadTime if a time is more than a day ahead of its record's log time."""
    if log_time is not None and seconds > log_time + AHEAD:
        raise BadTime(f"the time {seconds} is more than a day ahead of the record's log time {log_time}")


def times_of(values: Sequence[object]) -> npt.NDArray[np.int64]:
    """(n,) epoch seconds of ints, floats, texts and None (no bools), with MISSING and BAD where `time_of` says so."""
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        array = np.empty(0, object)
    if array.dtype.kind in "iuf":
        return times_of_numbers(array)
    return np.fromiter(map(_time_or_mark, values), np.int64, len(values))


def _time_or_mark(value: object) -> int:
    try:
        seconds = time_of(value)
    except BadTime:
        return BAD
    return MISSING if seconds is None else seconds


def times_of_numbers(array: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """(n,) epoch seconds of an integer or floating array, BAD where a number is no time."""
    if array.dtype.kind == "f":
        array = np.floor(array)
    good = (array >= 0) & (array <= MAX_TIME)  # type: ignore[operator]  # numbers compare; NaN is never good
    return np.where(good, np.where(good, array, 0).astype(np.int64), BAD)


@kernel
def times_of_digits(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int32], missing: int, bad: int, out: npt.NDArray[np.int64]
) -> int:
    """Times of texts data[offsets[i]:offsets[i + 1]] of 1 to 11 ASCII digits into `out`, `missing` where empty.

    Whatever else becomes `bad`; returns how many did.
    """
    others = 0
    for i in range(out.size):
        start, stop = np.int64(offsets[i]), np.int64(offsets[i + 1])
        value = np.int64(0)
        if stop == start:
            value = np.int64(missing)
        elif stop - start > 11:
            value = np.int64(bad)
        else:
            for k in range(start, stop):
                digit = np.int64(data[k]) - 48
                if digit < 0 or digit > 9:
                    value = np.int64(bad)
                    break
                value = value * 10 + digit
        if value == bad:
            others += 1
        out[i] = value
    return others

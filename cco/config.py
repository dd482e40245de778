"""The configuration: indicators, retention, priors. Parsed from TOML, checked, and never changed afterwards."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from cco.config_errors import ConfigError, dotted, explain, shown
from cco.vocabulary import id_problem

__all__ = [
    "FORMAT_VERSION",
    "SETTINGS_TABLES",
    "Config",
    "ConfigError",
    "Indicator",
    "Items",
    "Priors",
    "Retention",
    "make_config",
    "parse_config",
]

FORMAT_VERSION = 1
# Of the same file, but no part of the model: the shells read them.
SETTINGS_TABLES = ("kafka", "worker", "elasticsearch", "serve")
MAX_INDICATORS = 31
MAX_EVENT_TYPES = 1_000
MAX_PROPERTY = 256  # characters of its name
MAX_SECONDS = 2**32 - 1
DAY = 86_400

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": DAY}
_DURATION = re.compile(r"([0-9]{1,12})(s|m|h|d)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_DURATION_TEXT = 'a duration such as "30d", "12h", "45m", "90s" or whole seconds (1 to 4294967295)'
_DURATION_OR_NONE_TEXT = f'{_DURATION_TEXT}, or "none"'


def _seconds(value: object) -> object:
    """Seconds of a duration; whatever is none is returned as it came, for the error to show."""
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is not None:
            return int(found[1]) * _UNITS[found[2]]
    return value


def _seconds_or_none(value: object) -> object:
    return None if value == "none" else _seconds(value)


_Seconds = Annotated[int, Field(strict=True, ge=1, le=MAX_SECONDS)]
_Optional = Annotated[_Seconds | None, BeforeValidator(_seconds_or_none)]
_Popular = Annotated[_Seconds | Literal["all"] | None, BeforeValidator(_seconds_or_none)]
_Staleness = Annotated[float, BeforeValidator(_seconds), Field(strict=True, gt=0, le=MAX_SECONDS, allow_inf_nan=False)]


_Property = Annotated[str, Field(min_length=1, max_length=MAX_PROPERTY, pattern=r"^[^.]*[^.\s][^.]*$")]
_PROPERTY_TEXT = f"the name of a property: 1 to {MAX_PROPERTY} characters, not blank, without a dot"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Indicator(_Frozen):
    """A named group of event types, and how much of it is kept per user and per row."""

    events: tuple[str, ...] = Field(default=(), description="a list of event types (default: the indicator's name)")
    removed_by: tuple[str, ...] = Field(default=(), description="a list of event types")
    user_cap: int = Field(default=100, strict=True, ge=1, le=10_000, description="a whole number, 1 to 10000")
    top_k: int = Field(default=50, strict=True, ge=1, le=1_000, description="a whole number, 1 to 1000")
    min_llr: float = Field(
        default=0.0, strict=True, ge=0, allow_inf_nan=False, description="a finite number, 0 or more"
    )
    weight: float = Field(
        default=1.0, strict=True, ge=1e-6, le=1e6, allow_inf_nan=False, description="a number from 1e-6 to 1e6"
    )


class Retention(_Frozen):
    """What is kept of the interactions, decided once, in log order; durations are in seconds of event time."""

    sampling: Literal["uniform", "recent"] = Field(default="uniform", description='"uniform" or "recent"')
    window: _Optional = Field(default=None, description=_DURATION_OR_NONE_TEXT)
    visitor_window: _Optional = Field(default=90 * DAY, description=_DURATION_OR_NONE_TEXT)
    seed: int = Field(default=0, strict=True, ge=-(2**63), lt=2**63, description="a whole number of 64 bits")
    min_primary: int = Field(default=1, strict=True, ge=1, le=10_000, description="a whole number, 1 to 10000")
    source_partitions: int = Field(default=1, strict=True, ge=1, le=1_024, description="a whole number, 1 to 1024")

    @model_validator(mode="after")
    def _window_needs_recent(self) -> Self:
        if self.window is not None and self.sampling != "recent":
            raise ValueError('window needs sampling = "recent" (uniform does not go by time); set it, or no window')
        return self


class Priors(_Frozen):
    """Which priors the stream keeps per primary item, and over how many seconds; None is off."""

    popular: _Popular = Field(default="all", description=f'"all", {_DURATION_OR_NONE_TEXT}')
    recent: _Optional = Field(default=30 * DAY, description=_DURATION_OR_NONE_TEXT)
    trending: _Optional = Field(default=None, description=_DURATION_OR_NONE_TEXT)
    hot: _Optional = Field(default=None, description=_DURATION_OR_NONE_TEXT)


class Items(_Frozen):
    """Which properties of items decide whether and when they are recommended, and what properties hold."""

    available: _Property = Field(default="available", description=_PROPERTY_TEXT)
    expires: _Property = Field(default="expires", description=_PROPERTY_TEXT)
    recommendable: _Property = Field(default="recommendable", description=_PROPERTY_TEXT)
    rank: _Property = Field(default="rank", description=_PROPERTY_TEXT)
    types: dict[str, Literal["keyword", "float", "date", "boolean", "text"]] = Field(
        default={}, description="a table of properties and their kinds"
    )

    @field_validator("types", mode="before")
    @classmethod
    def _known_types(cls, types: object) -> object:
        """Says which property it is whose kind is not possible, as pydantic does not."""
        kinds = get_args(get_args(cls.model_fields["types"].annotation)[1])
        for name, kind in types.items() if isinstance(types, dict) else ():
            if not name.strip() or len(name) > MAX_PROPERTY or "." in name:
                raise ValueError(f"{dotted(name)}: is not {_PROPERTY_TEXT}")
            if kind not in kinds:
                raise ValueError(f"{dotted(name)}: {shown(kind)} is not allowed; allowed: {', '.join(kinds)}")
        return types


class Config(_Frozen):
    """The whole configuration. `Config()` is one indicator, "purchase", of the event type of that name.

    Raises pydantic's ValidationError when made from Python; `parse_config` and `make_config` raise
    `ConfigError`, which reads better.
    """

    primary: str = Field(default="purchase", description="the name of an indicator")
    indicators: dict[str, Indicator] = Field(
        default={}, description="tables [indicators.NAME] (default: the primary alone)"
    )
    retention: Retention = Field(default=Retention(), description="a table [retention]")
    priors: Priors = Field(default=Priors(), description="a table [priors]")
    items: Items = Field(default=Items(), description="a table [items]")
    anti_correlations: bool = Field(default=False, strict=True, description="true or false")
    max_staleness: _Staleness = Field(default=60.0, description=_DURATION_TEXT)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "indicators" not in self.model_fields_set:
            self.indicators[self.primary] = Indicator()
        for name, indicator in self.indicators.items():
            if "events" not in indicator.model_fields_set:
                self.indicators[name] = indicator.model_copy(update={"events": (name,)})
        problems = list(self._problems())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """One line for each contradiction between keys."""
        if len(self.indicators) > MAX_INDICATORS:
            yield f"indicators: {len(self.indicators)} of them; at most {MAX_INDICATORS} are possible"
        for name, indicator in self.indicators.items():
            if _NAME.fullmatch(name) is None:
                yield f"{dotted('indicators', name)}: a name is a letter and up to 63 letters, digits, _ or -"
            if name == "priors":
                yield 'indicators.priors: the name "priors" is taken by the priors of the model; choose another'
            yield from _indicator_problems(name, indicator)
        if len({e for i in self.indicators.values() for e in i.events + i.removed_by}) > MAX_EVENT_TYPES:
            yield f"indicators: more than {MAX_EVENT_TYPES} event types in all"
        if self.primary not in self.indicators:
            known = ", ".join(sorted(self.indicators)) or "none"
            yield f'primary: "{self.primary}" is not among the indicators ({known}); add [indicators.{self.primary}]'
        elif self.retention.min_primary > self.indicators[self.primary].user_cap:
            yield (
                f"retention.min_primary: {self.retention.min_primary} is more than the user_cap of the primary "
                f'"{self.primary}" ({self.indicators[self.primary].user_cap}): no user would ever count'
            )

    @cached_property
    def indicator_names(self) -> tuple[str, ...]:
        """The primary first, the others sorted: position t here is bit t of the masks and field t of the rows."""
        return (self.primary, *sorted(name for name in self.indicators if name != self.primary))

    @cached_property
    def prior_names(self) -> tuple[str, ...]:
        """Priors that are not off, sorted."""
        return tuple(name for name in sorted(Priors.model_fields) if getattr(self.priors, name) is not None)

    @cached_property
    def event_types(self) -> tuple[str, ...]:
        """Every event type that an indicator names, sorted: `EventBatch.types` holds positions in it."""
        return tuple(sorted({event for i in self.indicators.values() for event in i.events + i.removed_by}))

    @cached_property
    def add_mask(self) -> npt.NDArray[np.uint32]:
        """(event types,): bit t is set where indicator t counts the event type."""
        return self._mask("events")

    @cached_property
    def remove_mask(self) -> npt.NDArray[np.uint32]:
        """(event types,): bit t is set where the event type removes from indicator t."""
        return self._mask("removed_by")

    def _mask(self, key: Literal["events", "removed_by"]) -> npt.NDArray[np.uint32]:
        mask = np.zeros(len(self.event_types), np.uint32)
        for t, name in enumerate(self.indicator_names):
            for event in getattr(self.indicators[name], key):
                mask[self.event_types.index(event)] |= np.uint32(1 << t)
        return mask

    @cached_property
    def epoch(self) -> str:
        """16 hex digits over all that decides what is retained: state of another epoch cannot be used."""
        decisive = {
            "format": FORMAT_VERSION,
            "primary": self.primary,
            "indicators": {
                name: {"events": sorted(i.events), "removed_by": sorted(i.removed_by), "user_cap": i.user_cap}
                for name, i in self.indicators.items()
            },
            "retention": self.retention.model_dump(),
            "priors": self.priors.model_dump(),
        }
        canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _indicator_problems(name: str, indicator: Indicator) -> Iterator[str]:
    where = dotted("indicators", name)
    if not indicator.events:
        yield f"{where}.events: is empty; name at least one event type, or leave the key out for [{name!r}]"
    for key, events in (("events", indicator.events), ("removed_by", indicator.removed_by)):
        for event in sorted({e for e in events if events.count(e) > 1}):
            yield f'{where}.{key}: "{event}" is there twice'
        for event in events:
            problem = id_problem(event)
            if problem is not None:
                yield f"{where}.{key}: the event type {event[:40]!r} {problem}"
            elif event.startswith("$"):
                yield f'{where}.{key}: "{event[:40]}": names that begin with $ are taken by $delete, $set and the like'
    for event in sorted(set(indicator.events) & set(indicator.removed_by)):
        yield f'{where}: "{event}" is in events and in removed_by: it cannot both add and remove'


def parse_config(text: str, where: str) -> Config:
    """The configuration in `text` (TOML). `where` names the file in errors.

    The tables in SETTINGS_TABLES are left to who knows them.
    Raises ConfigError: one line per problem, with the file, the key, the nearest known key, what is allowed.
    """
    try:
        data = tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so are numbers of 5,000 digits
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    return make_config({key: value for key, value in data.items() if key not in SETTINGS_TABLES}, where)


def make_config(data: Mapping[str, Any], where: str = "config") -> Config:
    """The configuration in plain values. Raises ConfigError as `parse_config` does."""
    try:
        return Config.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in explain(error, Config, SETTINGS_TABLES))) from None

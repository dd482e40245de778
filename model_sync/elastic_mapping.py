"""How items and users are stored in Elasticsearch: mappings and settings as values, and what differs from them.

FORMATS name the meaning of all fields together. They are kept in `_meta` of each index: what was written by another
format is refused, since equal names might mean something else there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cco.config import Config
from model_sync.contract import MAX_NUM, MAX_OFFSET
from model_sync.elastic_names import encoded

LOG = "log"  # in `_meta.cco`: which log the documents are made from, by whoever writes them; nothing before that
Kind = Literal["items", "users"]
KINDS: tuple[Kind, ...] = ("items", "users")
FORMATS: dict[Kind, int] = {"items": 2, "users": 1}

Mapped = dict[str, Any]

_STORED: Mapped = {"index": False, "doc_values": False}  # read from the source alone
_SPARSE: Mapped = {"type": "sparse_vector"}
_FLAG: Mapped = {"type": "boolean"}

# Copies of properties for other people's queries: ours go by `tokens`, so a value that does not fit is no error.
_DECLARED: dict[str, Mapped] = {
    "keyword": {"type": "keyword", "ignore_above": 8_191},  # characters, so that they fit into Lucene's 32,766 bytes
    "float": {"type": "double", "ignore_malformed": True},  # all numbers of JSON fit
    "date": {"type": "date", "ignore_malformed": True},
    "boolean": {"type": "boolean", "ignore_malformed": True},
    "text": {"type": "text", "index": False},
}

# What decides how a value is stored and found, and what holds where a mapping does not name it.
_DEFAULTS: Mapped = {
    "type": "object",
    "dynamic": None,
    "enabled": True,
    "index": True,
    "doc_values": True,
    "ignore_malformed": False,
    "ignore_above": None,
    "normalizer": None,
    "null_value": None,
    "format": None,
}


def mapping(kind: Kind, config: Config) -> Mapped:
    """The whole mapping of an index: strict, with its format and the indicators in `_meta`."""
    fields = _items(config) if kind == "items" else _users(config)
    return {"dynamic": "strict", "_meta": {"cco": _meta(kind, config)}, "properties": fields}


def settings() -> Mapped:
    """Settings of a new index: what comes is visible within a second; a replica where there is a node for it.

    A question looks each of its terms up in every segment, which takes more time than all the rest of it: so there are
    to be few, at the price of more merging.
    """
    return {
        "number_of_shards": 1,
        "auto_expand_replicas": "0-1",
        "refresh_interval": "1s",
        "merge.policy": {"segments_per_tier": 5, "floor_segment": "16mb"},
        **demanded_settings(),
    }


def format_problem(index: str, kind: Kind, found: int | None, does: str) -> str | None:
    """Why an index with documents of format `found` (None: not known) is not for this version, which `does` ours."""
    if found in (None, FORMATS[kind]):
        return None
    return (
        f"{index} has documents of format {found}, and this version {does} {FORMATS[kind]}:"
        " `cco index check` says what to do"
    )


def demanded_settings() -> Mapped:
    """The settings among them that queries depend on; the others may be tuned."""
    return {"max_result_window": MAX_OFFSET + MAX_NUM}


def _meta(kind: Kind, config: Config) -> Mapped:
    # The properties that fields of their own are made from: under other names every document would have to be.
    named = {"available": config.items.available, "expires": config.items.expires, "rank": config.items.rank}
    return {"format": FORMATS[kind], "indicators": list(config.indicator_names), "items": named}


def _fields(config: Config, each: Mapped) -> Mapped:
    return {encoded(name): dict(each) for name in config.indicator_names}


def _items(config: Config) -> Mapped:
    declared = {name: dict(_DECLARED[kind]) for name, kind in config.items.types.items()}
    return {
        "id": {"type": "keyword"},
        "shuffle": {"type": "float", "index": False},
        "rank": {"type": "float", "index": False},
        "known": dict(_FLAG),
        "deleted": dict(_FLAG),
        "filled": {"properties": {**_fields(config, _FLAG), "priors": dict(_FLAG)}},
        "rows": {"properties": _fields(config, _SPARSE)},
        "priors": dict(_SPARSE),
        "properties": {"type": "object", "dynamic": "false", "properties": declared},
        "returned": {"type": "binary", "doc_values": True},  # the properties: no hit needs its whole document read
        "tokens": {"type": "keyword", "doc_values": False},
        "available": {"type": "long"},
        "expires": {"type": "long"},
        "owner": {"properties": {"at": {"type": "long", **_STORED}, "claim": {"type": "long", **_STORED}}},
        "metadata_position": {"type": "long", **_STORED},
    }


def _users(config: Config) -> Mapped:
    return {
        "history": {"properties": _fields(config, {"type": "keyword", **_STORED})},
        "counts": {"properties": _fields(config, {"type": "integer"})},
        "last": {"type": "date", "format": "epoch_second"},
        "member": dict(_FLAG),
        "source": {"type": "integer"},
        "position": {"type": "long"},
    }


_MENDED = "`cco index create` mends it"
_NEEDS_NEW = (
    "that cannot be changed in place: choose another index_prefix or delete the index, and `cco index create` makes a"
    " new one, which workers fill again"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it must be. `where`: an index, alias or template; `path`: of the field in it, or "".

    `in_place`: `cco index create` can mend it; what cannot be mended so needs a new index, or what `remedy` says.
    """

    where: str
    path: str
    wanted: str
    found: str
    in_place: bool
    remedy: str = ""

    def __str__(self) -> str:
        subject = f"{self.where}: {self.path}" if self.path else self.where
        mend = self.remedy or (_MENDED if self.in_place else _NEEDS_NEW)
        return f"{subject}: wanted {self.wanted}, found {self.found}: {mend}"


def differences(where: str, wanted: Mapped, found: Mapped) -> list[Difference]:
    """What keeps an index with the mapping `found` from being used as one with the mapping `wanted`.

    More fields and indicators than wanted are no difference: they were wanted once, and nobody asks for them now.
    """
    return [*_meta_differences(where, wanted, found), *_field_differences(where, wanted, found)]


def _meta_differences(where: str, wanted: Mapped, found: Mapped) -> Iterator[Difference]:
    wanted_meta = wanted["_meta"]["cco"]
    meta = found.get("_meta", {}).get("cco") if isinstance(found.get("_meta"), dict) else None
    if not isinstance(meta, dict):
        yield Difference(where, "_meta.cco", f"format {wanted_meta['format']}", "nothing: not made by us", False)
        return
    if meta.get("format") != wanted_meta["format"]:
        yield Difference(where, "_meta.cco.format", str(wanted_meta["format"]), str(meta.get("format")), False)
    if meta.get("items") != wanted_meta["items"]:
        named, has = (_named(of.get("items") or {}) for of in (wanted_meta, meta))
        yield Difference(where, "_meta.cco.items", named, has, False)
    missing = [name for name in wanted_meta["indicators"] if name not in meta.get("indicators", ())]
    if missing:
        has = ", ".join(meta.get("indicators", ())) or "none"
        yield Difference(where, "_meta.cco.indicators", f"also {', '.join(missing)}", has, True)


def _named(items: Mapped) -> str:
    return ", ".join(f"{field} = {name!r}" for field, name in sorted(items.items())) or "nothing"


def _field_differences(where: str, wanted: Mapped, found: Mapped) -> Iterator[Difference]:
    there = dict(_flat(found))
    for path, parameters in _flat(wanted):
        has = there.get(path)
        if has is None:
            yield Difference(where, path, parameters["type"], "nothing", in_place=_may_be_added(path))
            continue
        for name in _DEFAULTS:
            if has[name] != parameters[name]:
                at = f"{path}.{name}" if path else name
                yield Difference(where, at, _text(parameters[name]), _text(has[name]), False)
                break  # another type, say, has other defaults: one line says it


def _may_be_added(path: str) -> bool:
    """Fields of an indicator, and declared properties: those that documents without them lack rightly."""
    parent, _, _ = path.partition("/")
    return "/" in path and parent in ("filled", "rows", "history", "counts", "properties")


def _flat(mapped: Mapped, path: str = "") -> Iterator[tuple[str, Mapped]]:
    """(path, parameters with the defaults filled in) of each field; "" is the whole document, "rows/view" a field."""
    yield path, {name: _plain(mapped.get(name, default)) for name, default in _DEFAULTS.items()}
    children: Mapping[str, Mapped] = mapped.get("properties", {})
    for name, child in children.items():
        yield from _flat(child, f"{path}/{name}" if path else name)


def _plain(value: object) -> object:
    """Truth values as Elasticsearch answers some of them: as text."""
    return value == "true" if value in ("true", "false") else value


def _text(value: object) -> str:
    return "the default" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def merged_meta(wanted: Mapped, found: Mapped) -> Mapped:
    """`_meta` that names the indicators of both: those of the index have fields, whether wanted still or not."""
    had: list[str] = found["_meta"]["cco"]["indicators"]
    new = [name for name in wanted["_meta"]["cco"]["indicators"] if name not in had]
    return {"cco": {**found["_meta"]["cco"], **wanted["_meta"]["cco"], "indicators": [*had, *new]}}

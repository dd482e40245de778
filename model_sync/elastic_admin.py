"""The indices in Elasticsearch: making them, checking that they are what we write and ask, looking at them.

Everything goes through two aliases, PREFIXitems and PREFIXusers. Behind each is one index, PREFIXitems-000001 and so
on: another one may be filled beside it and take its place at once. A template, of the alias's name, has the mapping
ready for whoever makes the next one. All functions here are for one thread and wait: at most 10 s a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elasticsearch import BadRequestError, Elasticsearch, NotFoundError

from cco.config import Config
from model_sync.elastic_client import ElasticProblem, IndexNames, reason
from model_sync.elastic_mapping import (
    KINDS,
    LOG,
    Difference,
    Kind,
    Mapped,
    demanded_settings,
    differences,
    mapping,
    merged_meta,
    settings,
)
from model_sync.elastic_versions import LOCK, own_alias

_FIRST = "-000001"
_EXCLUDES_VECTORS = (9, 2)  # by default, see elasticsearch pull request 131907
_VERSION = re.compile(r"-[0-9]{6}")
_VERSIONS = "-0*"  # of a template: not "-*", which may also be the indices of somebody whose prefix begins like ours
_TEMPLATE_PRIORITY = 500  # above those that come with Elasticsearch


@dataclass(frozen=True, slots=True)
class Created:
    """What `create` made or changed, a line for each, and what it refused to touch."""

    made: list[str] = field(default_factory=list)
    problems: list[Difference] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class IndexDescription:
    """One alias and the index behind it. `format` is None where the index is not one of ours.

    `log`: of which log it is, as who wrote it first has signed it; None: nobody has.
    """

    alias: str
    index: str
    documents: int
    bytes: int
    format: int | None
    indicators: tuple[str, ...]
    health: str
    log: Mapping[str, Any] | None = None


def check(client: Elasticsearch, config: Config, names: IndexNames) -> list[Difference]:
    """Every difference between how aliases, indices and templates must be and how they are; none: they fit.

    Raises what the client raises: use `elastic_errors`.
    """
    found: list[Difference] = []
    newer = for_server(client)
    for kind in KINDS:
        alias = getattr(names, kind)
        wanted = mapping(kind, config)
        index, problem = _target(client, alias)
        if problem is not None:
            found.append(problem)
        if index is not None:
            found += _index_differences(client, index, wanted)
        found += _template_differences(client, alias, wanted, newer)
    return found


def create(client: Elasticsearch, config: Config, names: IndexNames) -> Created:
    """Make the aliases, indices and templates that are missing, and add fields of new indicators and properties.

    May be repeated, also by several at a time. An index that does not fit otherwise is left alone and told.
    Raises what the client raises: use `elastic_errors`.
    """
    done = Created()
    for kind in KINDS:
        _create(client, getattr(names, kind), mapping(kind, config), done, has_own=kind == "items")
    return done


def describe(client: Elasticsearch, names: IndexNames) -> list[IndexDescription]:
    """The aliases that are there, with their indices. Raises what the client raises: use `elastic_errors`."""
    found = []
    for alias in names:
        for index in _named(client, alias):
            if index == alias:
                continue
            meta = _mapping(client, index).get("_meta", {}).get("cco", {})
            stats = client.indices.stats(index=index, metric=["docs", "store"])["indices"].get(index, {})
            primaries, total = stats.get("primaries", {}), stats.get("total", {})
            found.append(
                IndexDescription(
                    alias=alias,
                    index=index,
                    documents=primaries.get("docs", {}).get("count", 0),
                    bytes=total.get("store", {}).get("size_in_bytes", 0),
                    format=meta.get("format"),
                    indicators=tuple(meta.get("indicators", ())),
                    health=client.cluster.health(index=index)["status"],
                    log=meta.get(LOG),
                )
            )
    return found


def _create(client: Elasticsearch, alias: str, wanted: Mapped, done: Created, has_own: bool) -> None:
    index, problem = _target(client, alias)
    if problem is not None and not problem.in_place:
        done.problems.append(problem)
        return
    index = index or next(iter(_unaliased(client, alias)), None)
    if index is not None:
        kept = [each for each in _index_differences(client, index, wanted) if not each.in_place]
        if kept:
            done.problems.extend(kept)
            return
    newer = for_server(client)
    given = {**settings(), **newer}
    if _template_differences(client, alias, wanted, newer):
        client.indices.put_index_template(name=alias, **template(alias, wanted, given))
        done.made.append(f"{alias}: template for {alias}{_VERSIONS}")
    if index is None:
        index = alias + _FIRST
        try:
            # With its alias at once, or a crash between the two would leave an index that nobody uses.
            aliases: dict[str, Any] = {alias: {}, **({own_alias(index): {}} if has_own else {})}
            client.indices.create(index=index, mappings=wanted, settings=given, aliases=aliases)
        except BadRequestError as error:
            if reason(error)[0] != "resource_already_exists_exception":
                raise
        else:
            done.made.append(f"{index}: index behind {alias}")
        # Or somebody else has just made it, with the same or another configuration: look at it again.
        if not _named(client, alias):
            raise ElasticProblem(f"{index} is being made by somebody else: run `cco index create` again")
    elif problem is not None:
        client.indices.put_alias(index=index, name=alias)
        done.made.append(f"{alias}: alias of {index}")
    _mend(client, index, wanted, done)


def for_server(client: Elasticsearch) -> Mapped:
    """Settings of a new index that only newer servers know.

    From 9.2 on they would leave vectors out of `_source` otherwise, where rows are read back from.
    """
    nodes = client.nodes.info(filter_path="nodes.*.version").body["nodes"]  # `info()` is not in every server
    return for_versions([node["version"] for node in nodes.values()])


def for_versions(versions: Iterable[str]) -> Mapped:
    """The same, by the versions of the nodes ("9.2.0"): all of them must know a setting."""
    oldest = min(tuple(int(part) for part in version.split(".")[:2]) for version in versions)
    return {"mapping.exclude_source_vectors": False} if oldest >= _EXCLUDES_VECTORS else {}


def _mend(client: Elasticsearch, index: str, wanted: Mapped, done: Created) -> None:
    """Add what may be added in place."""
    found = _index_differences(client, index, wanted)
    kept = [each for each in found if not each.in_place]
    if kept or not found:
        done.problems.extend(kept)
        return
    if any(each.path not in demanded_settings() for each in found):
        meta = merged_meta(wanted, _mapping(client, index))
        client.indices.put_mapping(index=index, properties=wanted["properties"], meta=meta)
    if any(each.path in demanded_settings() for each in found):
        client.indices.put_settings(index=index, settings=demanded_settings())
    done.made.extend([f"{index}: {each.path}: {each.wanted}" for each in found])


def _named(client: Elasticsearch, name: str) -> list[str]:
    """The indices that a name leads to, in one look: those behind the alias, or the index of that very name."""
    try:
        return sorted(client.indices.get_alias(index=name))
    except NotFoundError:
        return []


def _target(client: Elasticsearch, alias: str) -> tuple[str | None, Difference | None]:
    """The index behind an alias, and what is wrong with the alias."""
    found = _named(client, alias)
    wanted = "an alias of one index"
    if found == [alias]:
        # Whoever writes to an alias that is not there makes such an index, unless told not to.
        return None, Difference(alias, "", wanted, "an index of that name", False, f"delete the index {alias}")
    if len(found) == 1:
        return found[0], None
    if found:
        several = f"one of {len(found)}: {', '.join(found)}"
        return None, Difference(alias, "", wanted, several, False, "remove it from all indices but one")
    left = _unaliased(client, alias)
    if len(left) > 1:
        which = f"none, but {', '.join(left)}"
        return None, Difference(alias, "", wanted, which, False, f"make {alias} an alias of the right one of these")
    return None, Difference(alias, "", wanted, "nothing", True)


def served_index(client: Elasticsearch, alias: str) -> str | None:
    """The index behind an alias; None: there is none yet. Raises ElasticProblem if the alias is wrong."""
    index, problem = _target(client, alias)
    if problem is not None and not problem.in_place:
        raise ElasticProblem(str(problem))
    return index


def _unaliased(client: Elasticsearch, alias: str) -> list[str]:
    """The indices that were made for an alias, but for one that a rebuild is making."""
    there = client.indices.get_alias(index=f"{alias}{_VERSIONS}", allow_no_indices=True).body
    made = (index for index, of in there.items() if alias + LOCK not in of["aliases"])
    return sorted(index for index in made if _VERSION.fullmatch(index.removeprefix(alias)))


def _mapping(client: Elasticsearch, index: str) -> Mapped:
    answer: Mapping[str, Any] = client.indices.get_mapping(index=index).body
    found: Mapped = answer[index]["mappings"]
    return found


def _index_differences(client: Elasticsearch, index: str, wanted: Mapped) -> list[Difference]:
    has = client.indices.get_settings(index=index)[index]["settings"]["index"]
    of_settings = [
        Difference(index, name, f"at least {value}", str(has.get(name, "the default")), in_place=True)
        for name, value in demanded_settings().items()
        if int(has.get(name, 0)) < value
    ]
    return [*differences(index, wanted, _mapping(client, index)), *of_settings]


def template(alias: str, wanted: Mapped, given: Mapped) -> dict[str, Any]:
    """What makes the next index behind an alias, by whoever it is made, with this mapping and these settings."""
    return {
        "index_patterns": [alias + _VERSIONS],
        "priority": _TEMPLATE_PRIORITY,
        "version": wanted["_meta"]["cco"]["format"],
        "template": {"settings": {"index": given}, "mappings": wanted},
    }


def _template_differences(client: Elasticsearch, alias: str, wanted: Mapped, newer: Mapped) -> list[Difference]:
    """Whatever differs, a template can be put anew: it decides about indices to come alone."""
    where = f"template {alias}"
    try:
        answer = client.indices.get_index_template(name=alias)
    except NotFoundError:
        return [Difference(where, "", "the mapping of the next index", "nothing", in_place=True)]
    found = answer["index_templates"][0]["index_template"]
    made: Mapped = found.get("template", {})
    has = made.get("mappings", {})
    if has.get("_meta") != wanted["_meta"] or differences(where, wanted, has) or not has_settings(made, newer):
        return [Difference(where, "", "the mapping of the next index", "another one", in_place=True)]
    return []


def has_settings(made: Mapped, wanted: Mapped) -> bool:
    """Whether a template, as the server answers it, has these settings of an index; they are text there."""
    for name, value in wanted.items():
        found: Any = made.get("settings", {}).get("index", {})
        for part in name.split("."):
            found = found.get(part, {})
        if found != str(value).lower():
            return False
    return True


def unfit(found: list[Difference], kind: Kind, names: IndexNames) -> list[Difference]:
    """Those of `check`'s differences that keep the index of one kind from being used; a template's do not."""
    alias = getattr(names, kind)
    return [each for each in found if each.where == alias or _VERSION.fullmatch(each.where.removeprefix(alias))]

"""What is wrong with a configuration, in sentences: pydantic's errors turned into one readable line each."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

SHOWN = 60
_BARE = re.compile(r"[A-Za-z0-9_-]+")


class ConfigError(ValueError):
    """A configuration that cannot be used: one line per problem, each with where and what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean "...")', or nothing where no known word is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' (did you mean "{found[0]}"?)' if found else ""


def dotted(*keys: str) -> str:
    """A path of keys as TOML writes it: those that are not bare in quotes."""
    return ".".join(key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False) for key in keys)


def explain(error: ValidationError, model: type[BaseModel], tables: Iterable[str] = ()) -> Iterator[str]:
    """One line for each thing that is wrong: key path, what is wrong, the nearest known key, what is allowed.

    `tables` are known at the top besides what the model knows there.
    """
    seen: set[str] = set()  # a key of several possible types fails once for each of them
    for problem in error.errors(include_url=False):
        path, owner, field = _resolve([str(part) for part in problem["loc"]], model)
        if problem["type"] == "extra_forbidden" and owner is not None:
            known = [*owner.model_fields, *(tables if owner is model else ())]
            line = f"{dotted(*path)}: unknown key{nearest(path[-1], known)}; known here: {', '.join(known)}"
        elif problem["type"] == "value_error":  # a contradiction, already in words
            inner = str(problem["ctx"]["error"]) if "ctx" in problem else problem["msg"]
            prefix = dotted(*path)
            for text in inner.split("\n"):
                yield f"{prefix}.{text}" if prefix else text
            continue
        else:
            line = f"{dotted(*path)}: {shown(problem['input'])} is not allowed"
            if field is not None:
                line += nearest_literal(problem["input"], field) + f"; allowed: {field.description}"
            elif problem["type"] in ("model_type", "dict_type"):
                line += f"; allowed: a table [{dotted(*path)}]"
            else:
                line += f": {problem['msg']}"
        if line not in seen:
            seen.add(line)
            yield line


def nearest_literal(value: object, field: FieldInfo) -> str:
    """The nearest of a field's fixed choices, where it has some and the value is text."""
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    return nearest(value, choices) if isinstance(value, str) else ""


def shown(value: object) -> str:
    """A value as an error shows it, shortened."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _resolve(loc: list[str], model: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None, FieldInfo | None]:
    """(key path, the model that the last key belongs to, its field if known) of an error's location.

    A location goes on below the key (place in a list, member of a union): those parts are left out.
    """
    path: list[str] = []
    owner: type[BaseModel] | None = model
    field: FieldInfo | None = None
    for part in loc:
        if owner is None:
            break
        path.append(part)
        if field is not None:  # the part is a name in a table of tables
            field = None
            continue
        field = owner.model_fields.get(part)
        if field is None:
            break
        inner = _model_below(field.annotation)
        if inner is None:
            break
        if len(path) < len(loc):
            owner, field = inner, (field if field.annotation is not inner else None)
    return path, owner, field


def _model_below(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, itself or as the values of a table."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None

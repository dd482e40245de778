"""Names of ids in Elasticsearch: those of features and fields have no dots, so "%" is "%25" and "." is "%2E" there."""

from __future__ import annotations


def encoded(name: str) -> str:
    """The name of a feature or field that stands for an id; different ids have different ones."""
    if "%" in name or "." in name:
        return name.replace("%", "%25").replace(".", "%2E")
    return name


def decoded(name: str) -> str:
    """The id that `encoded` made this name of."""
    return name.replace("%2E", ".").replace("%25", "%") if "%" in name else name

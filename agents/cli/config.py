"""`cco config`: the effective configuration and settings, and the options of every command that speaks to Kafka."""

from __future__ import annotations

import json as json_text
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agents.cli.common import JsonFlag, print_json

if TYPE_CHECKING:
    from agents.settings import Loaded
    from cco.config import Config

SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="TOML file with the configuration, and in [kafka], [worker] and [elasticsearch] the settings.",
        show_default=False,
    ),
]
Brokers = Annotated[
    str | None,
    typer.Option("--brokers", metavar="HOST:PORT,...", help="Kafka brokers. Default: as `cco config` prints."),
]
TopicPrefix = Annotated[
    str | None,
    typer.Option("--topic-prefix", metavar="TEXT", help="What all topic names begin with. Default: as `cco config`."),
]

_MASKED = "********"
_USER = re.compile(r"://[^/@]*@")  # user and password in a URL


def config(
    file: SettingsFile = None, brokers: Brokers = None, prefix: TopicPrefix = None, json: JsonFlag = False
) -> None:
    """Print the effective configuration and settings, each with where it came from. Secrets are masked.

    Those of `cco serve` are the table [serve].

    The order: flag, environment variable (CCO_BROKERS for brokers and so on), file, default.
    """
    import os

    from agents.settings import load_all

    loaded = load_all(file, {"brokers": brokers, "topic_prefix": prefix}, os.environ)
    document = _document(loaded)
    serve, origins = _serve(file, os.environ)
    if json:
        document["from"]["serve"] = origins
        print_json({**document, "serve": serve})
        return
    print("\n".join([*_toml(document), *_serve_toml(serve, origins)]))


def _model(config: Config) -> dict[str, Any]:
    """The configuration as its file has it: "none" for what is off."""
    return {key: _plain(value) for key, value in config.model_dump().items()}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else "none" if value is None else value


def _settings(loaded: Loaded) -> dict[str, Any]:
    """The settings; what is not set is None, and what is secret masked."""
    from agents.settings import SECRETS

    found: dict[str, Any] = {}
    for name in type(loaded.settings).model_fields:
        value = getattr(loaded.settings, name)
        if name in SECRETS and value is not None:
            value = _MASKED
        elif name == "share" and value is not None:
            value = _USER.sub(f"://{_MASKED}@", value)
        found[name] = str(value) if isinstance(value, Path) else value
    return found


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    from cco.config_errors import dotted

    for key, value in table.items():
        name = f"{prefix}.{dotted(key)}" if prefix else dotted(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, value


def _model_origins(loaded: Loaded) -> dict[str, str]:
    """For each key of the configuration, the file or "default"."""
    import tomllib

    written: set[str] = set()
    if loaded.file is not None:
        data = tomllib.loads(loaded.file.read_text(encoding="utf-8").removeprefix("\ufeff"))
        written = {name for name, _ in _flat(data)}
    return {name: str(loaded.file) if name in written else "default" for name, _ in _flat(_model(loaded.config))}


def _document(loaded: Loaded) -> dict[str, Any]:
    settings = _settings(loaded)
    origins = {name: loaded.origins.get(name, "default") for name in settings}
    return {
        "file": None if loaded.file is None else str(loaded.file),
        "epoch": loaded.config.epoch,
        "model": _model(loaded.config),
        "settings": settings,
        "from": {"model": _model_origins(loaded), "settings": origins},
    }


def _serve(file: Path | None, environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of `cco serve`, keys masked, and where each came from. Nothing where its packages are not there."""
    try:
        from agents.serving.settings import read_serve_settings
    except ImportError:
        return {}, {}
    _, settings, origins = read_serve_settings(file, {}, environment)
    found = settings.model_dump(mode="json")
    for key in found["keys"].values():
        key["key"] = None if key["key"] is None else _MASKED
    return found, {name: origins.get(name, "default") for name in found}


def _serve_toml(serve: dict[str, Any], origins: dict[str, str]) -> Iterator[str]:
    from cco.config_errors import dotted

    if not serve:
        return
    yield "\n[serve]"
    for name, value in serve.items():
        if name != "keys":
            yield _line(name, value, origins[name])
    for name, key in serve["keys"].items():
        yield f"\n[serve.keys.{dotted(name)}]"
        for part, value in key.items():
            if value is not None:
                yield _line(part, value, origins["keys"])


def _toml(document: dict[str, Any]) -> Iterator[str]:
    """The lines of a TOML file that says the same; what is not set or secret is a comment."""
    from agents.settings import KEY_OF, TABLE_OF, TABLES

    yield f"# epoch {document['epoch']}: state of another one cannot be used"
    origins = document["from"]["model"]
    table = ""
    for name, value in sorted(_flat(document["model"]), key=lambda entry: "." in entry[0]):
        under, _, key = name.rpartition(".")
        if under != table:
            table = under
            yield f"\n[{table}]"
        yield _line(key, value, origins[name])
    for table in TABLES:
        yield f"\n[{table}]"
        for name, value in document["settings"].items():
            if TABLE_OF[name] == table:
                yield _line(KEY_OF[name], value, document["from"]["settings"][name])


def _line(key: str, value: Any, origin: str) -> str:
    if value is None:
        return f"# {key} is not set"
    text = f"{key} = {json_text.dumps(value, ensure_ascii=False)}"
    return f"{'# ' if value == _MASKED else ''}{text:<44} # {origin}"

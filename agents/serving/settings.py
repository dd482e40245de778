"""The settings of `cco serve`: the table [serve] of the configuration file, and who may use the service.

[serve]
host = "127.0.0.1"
port = 8000

open_queries = false                 # true: /queries.json needs no key, for clients of the Universal Recommender

[serve.keys.shop]
key_file = "/run/secrets/shop"       # or key = "..."
scopes = ["read", "write"]

Flags win over the environment (CCO_SERVE_HOST, CCO_SERVE_PORT, CCO_SERVE_STATE; keys have no variables), that over
the file.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from cco.config import Config, ConfigError, parse_config
from cco.config_errors import dotted, explain
from model_sync.service.auth import SCOPES, ApiKey, KeyProblem, Keys, Scope

PREFIX = "CCO_SERVE_"
TABLE = "serve"
_FLAGS = ("host", "port", "state")


class KeySettings(BaseModel):
    """A key, itself or the file that holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: SecretStr | None = Field(default=None, description="text of 16 and more characters")
    key_file: Path | None = Field(default=None, description="the path of a file with the key")
    scopes: tuple[Scope, ...] = Field(default=SCOPES, min_length=1, description='a list of "read" and "write"')


class ServeSettings(BaseModel):
    """Where the service listens, where it keeps its state, and the keys that it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1, description="an address of this machine")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        default=8000, description="a whole number, 0 (any free port) to 65535"
    )
    state: Path = Field(default=Path("cco-embedded"), description="a directory on a local disk")
    open_queries: bool = Field(default=False, description="true or false: /queries.json, whose clients know no keys")
    keys: dict[str, KeySettings] = Field(default={}, description="tables [serve.keys.NAME]")


def load_serve_settings(
    config_file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> tuple[Config | None, ServeSettings, list[ApiKey]]:
    """The model's configuration (None without a file), the settings, and the keys; flags that are None were not given.

    Raises ConfigError: a line for each problem; OSError for the files.
    """
    environment = os.environ if environment is None else environment
    config, settings, _ = read_serve_settings(config_file, flags, environment)
    return config, settings, _keys(settings, TABLE if config_file is None else f"{config_file}: {TABLE}")


def read_serve_settings(
    config_file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[Config | None, ServeSettings, dict[str, str]]:
    """As `load_serve_settings`, but for the keys: where each setting came from that is not the default."""
    config, where = None, TABLE
    found, origins = dict[str, Any](), dict[str, str]()
    if config_file is not None:
        try:
            text = config_file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{config_file}: not UTF-8, so not TOML") from None
        config, where = parse_config(text, str(config_file)), f"{config_file}: {TABLE}"
        table = tomllib.loads(text.removeprefix("\ufeff")).get(TABLE, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{config_file}: {TABLE}: must be a table [{TABLE}]")
        found.update(table)
        origins.update({name: f"{where}.{name}" for name in table})
    for name in _FLAGS:
        value = environment.get(PREFIX + name.upper(), "")
        if value and "://" not in value:  # Kubernetes makes CCO_SERVE_PORT=tcp://... for a service "cco-serve"
            found[name], origins[name] = value, f"environment variable {PREFIX}{name.upper()}"
    for name, value in flags.items():
        if value is not None:
            found[name], origins[name] = value, f"--{name}"
    try:
        settings = ServeSettings.model_validate(found)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}.{line}" for line in explain(error, ServeSettings))) from None
    return config, settings, origins


def _keys(settings: ServeSettings, where: str) -> list[ApiKey]:
    found = []
    for name, given in settings.keys.items():
        place = f"{where}.{dotted('keys', name)}"
        if (given.key is None) == (given.key_file is None):
            raise ConfigError(f"{place}: needs either key or key_file")
        if given.key_file is not None:
            key = given.key_file.read_text(encoding="utf-8", errors="replace").strip()
        else:
            key = given.key.get_secret_value() if given.key is not None else ""
        try:
            found.append(ApiKey(name, key, frozenset(given.scopes)))
        except KeyProblem as error:
            raise ConfigError(f"{place}: {error}") from None
    try:
        Keys(found)
    except KeyProblem as error:
        raise ConfigError(f"{where}.keys: {error}") from None
    return found


def check_reach(host: str, keys: list[ApiKey]) -> None:
    """Raises ConfigError if others than this machine could reach a service without keys."""
    if keys or _is_loopback(host):
        return
    raise ConfigError(
        f"host {host}: without keys anybody who reaches it could ask and write: add [serve.keys.NAME] with a key to the"
        " configuration, or listen on 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address, or all addresses of a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_loopback for address in found)

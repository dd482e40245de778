"""The settings of workers and of all that speaks to Kafka or Elasticsearch: flags, environment, file, defaults.

One TOML file holds both the model's configuration and, in its tables [kafka], [worker] and [elasticsearch], these
settings. A value is taken from the first that has one: flag, environment variable (CCO_BROKERS for `brokers`,
CCO_ELASTICSEARCH_URLS for `urls` in [elasticsearch]; an empty one counts as absent), file, default.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from cco.config import SETTINGS_TABLES, Config, ConfigError, parse_config
from cco.config_errors import nearest, nearest_literal, shown

__all__ = ["KEY_OF", "SECRETS", "TABLES", "TABLE_OF", "Loaded", "Settings", "load_all", "load_settings"]

TABLES = tuple(table for table in SETTINGS_TABLES if table != "serve")  # that one is agents.serving.settings's
PREFIX = "CCO_"
MAX_PARTITIONS = 256

_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)?")
_BROKER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}(/[A-Za-z0-9._~/-]*)?")
_NEAR = 0.8  # how alike an unknown variable must be to a known one to be taken for a slip of the pen


def _seconds(value: object) -> object:
    """Seconds of a duration; whatever is none is returned as it came, for the error to show."""
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is not None:
            return float(found[1]) * _UNITS[found[2] or "s"]
    return _numeric(value)


def _numeric(value: object) -> object:
    """Numbers as they come from variables; truth values, which Python takes for numbers, become text."""
    return str(value).lower() if isinstance(value, bool) else value


_Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0.01, le=86_400, allow_inf_nan=False)]
_Whole = Annotated[int, BeforeValidator(_numeric)]
_Key = Annotated[str, Field(pattern=rf"^{_NAME.pattern}$")]
_SECONDS_TEXT = 'a duration such as "10s", "500ms", "1m" or seconds (0.01 to 86400)'
_FILE_TEXT = "the path of a PEM file"


def _host() -> str:
    """This machine's name, with what a worker's name may not have left out."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100] or "worker"


class Settings(BaseModel):
    """How to reach Kafka and Elasticsearch, and how a worker runs. Never changed; from Python it reads no environment.

    Raises pydantic's ValidationError; `load_settings` raises `ConfigError`, which says where a value came from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # [kafka]
    brokers: str = Field(default="localhost:9092", description="host:port, several with commas between them")
    topic_prefix: str = Field(
        default="", pattern=r"^[A-Za-z0-9._-]{0,200}$", description="up to 200 letters, digits, . _ or -"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
    )
    sasl_username: str | None = Field(default=None, description="text")
    sasl_password: SecretStr | None = Field(default=None, description="text")
    ssl_cafile: Path | None = Field(default=None, description=_FILE_TEXT)
    ssl_certfile: Path | None = Field(default=None, description=_FILE_TEXT)
    ssl_keyfile: Path | None = Field(default=None, description=_FILE_TEXT)
    ssl_password: SecretStr | None = Field(default=None, description="text")

    # [worker]
    group: _Key = Field(default="cco", description="1 to 100 letters, digits, . _ or -")
    name: _Key = Field(default_factory=_host, description="1 to 100 letters, digits, . _ or -, one for each worker")
    state: Path = Field(default=Path("cco-state"), description="a directory on a local disk")
    share: str | None = Field(default=None, min_length=1, description="a path or URL that all workers can reach")
    share_every: _Seconds = Field(default=60.0, description=_SECONDS_TEXT)
    checkpoint_every: _Seconds = Field(default=1.0, description=_SECONDS_TEXT)
    item_partitions: _Whole = Field(
        default=1, ge=1, le=MAX_PARTITIONS, description=f"a whole number, 1 to {MAX_PARTITIONS}"
    )
    agents: Literal["both", "users", "items"] = Field(
        default="both", description='"both", "users" (interactions alone) or "items" (edits alone)'
    )
    threads: _Whole = Field(default=1, ge=1, le=256, description="a whole number, 1 to 256: threads that count rows")
    session_timeout: _Seconds = Field(default=10.0, ge=1, le=1_800, description=_SECONDS_TEXT + ", at least 1")
    fetch_records: _Whole = Field(default=16_384, ge=1, le=1 << 20, description="a whole number, 1 to 1048576")
    patches: str = Field(default="none", min_length=1, description='"none", "topic" or the path of a JSON Lines file')
    monitor_host: str = Field(default="127.0.0.1", min_length=1, description="an address of this machine")
    monitor_port: _Whole = Field(default=0, ge=0, le=65_535, description="a whole number, 0 (any free port) to 65535")
    log_format: Literal["auto", "json", "text"] = Field(default="auto", description='"auto", "json" or "text"')

    # [elasticsearch]
    elasticsearch_urls: str | None = Field(
        default=None, description="http(s)://host:port, several with commas between them"
    )
    elasticsearch_username: str | None = Field(default=None, description="text")
    elasticsearch_password: SecretStr | None = Field(default=None, description="text")
    elasticsearch_api_key: SecretStr | None = Field(default=None, description="text")
    elasticsearch_ca_file: Path | None = Field(default=None, description=_FILE_TEXT)
    elasticsearch_index_prefix: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9._-]{0,99})?$",
        description="up to 100 lower-case letters, digits, . _ or -, beginning with a letter or digit",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """One line for each contradiction, beginning with the setting that is to blame."""
        for broker in self.broker_list:
            if _BROKER.fullmatch(broker) is None:
                yield f"brokers: {broker[:60]!r} is not host:port"
        if not self.broker_list:
            yield "brokers: names no broker"
        sasl, ssl = self.security_protocol.startswith("SASL"), self.security_protocol.endswith("SSL")
        needs = 'security_protocol = "SASL_SSL" (or SASL_PLAINTEXT)' if not sasl else ""
        for name in ("sasl_mechanism", "sasl_username", "sasl_password"):
            given = getattr(self, name) is not None
            if given and not sasl:
                yield f"{name}: would not be used: set {needs}"
            if sasl and not given:
                yield f"security_protocol: {self.security_protocol} needs {name}"
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_password"):
            if getattr(self, name) is not None and not ssl:
                yield f'{name}: would not be used: set security_protocol = "SSL" (or SASL_SSL)'
        for name, other in (("ssl_keyfile", "ssl_certfile"), ("ssl_password", "ssl_certfile")):
            if getattr(self, name) is not None and getattr(self, other) is None:
                yield f"{name}: needs {other}"
        if self.topic_prefix in (".", ".."):
            yield f"topic_prefix: {self.topic_prefix!r} is not possible: Kafka keeps such names for itself"
        yield from self._elasticsearch_problems()

    def _elasticsearch_problems(self) -> Iterator[str]:
        urls = self.elasticsearch_url_list
        if self.elasticsearch_urls is not None and not urls:
            yield "elasticsearch_urls: names no URL"
        for url in urls:
            if "@" in url:  # not shown: it may hold a password
                yield "elasticsearch_urls: a URL holds no user and password: give them by settings of their own"
            elif _URL.fullmatch(url) is None:
                yield f"elasticsearch_urls: {url[:60]!r} is not http://host:port or https://host:port"
        for name in ("username", "password", "api_key", "ca_file"):
            if not urls and getattr(self, f"elasticsearch_{name}") is not None:
                yield f"elasticsearch_{name}: would not be used: set elasticsearch_urls"
        user, password = self.elasticsearch_username, self.elasticsearch_password
        if (user is None) != (password is None):
            yield f"elasticsearch_{'password: needs username' if user is None else 'username: needs password'}"
        if user is not None and self.elasticsearch_api_key is not None:
            yield "elasticsearch_api_key: would not be used beside a username: give one of them"
        if self.elasticsearch_ca_file is not None and urls and not any(url.startswith("https:") for url in urls):
            yield "elasticsearch_ca_file: would not be used: no URL begins with https"

    @property
    def broker_list(self) -> list[str]:
        """The brokers, one by one."""
        return [broker.strip() for broker in self.brokers.split(",") if broker.strip()]

    @property
    def elasticsearch_url_list(self) -> list[str]:
        """The URLs, one by one; none where Elasticsearch is not used."""
        return [url.strip() for url in (self.elasticsearch_urls or "").split(",") if url.strip()]

    def topic(self, name: str) -> str:
        """The topic's name on the broker."""
        return self.topic_prefix + name

    @property
    def patches_file(self) -> Path | None:
        """Where patches are written as JSON Lines, if to a file."""
        return None if self.patches in ("none", "topic") else Path(self.patches)


KAFKA_KEYS = tuple(Settings.model_fields)[: tuple(Settings.model_fields).index("group")]
_PREFIXED = ("elasticsearch",)  # tables whose keys bear the table's name outside of it: as settings, flags, variables


def _table_of(name: str) -> str:
    prefixed = (table for table in _PREFIXED if name.startswith(f"{table}_"))
    return next(prefixed, "kafka" if name in KAFKA_KEYS else "worker")


TABLE_OF = {name: _table_of(name) for name in Settings.model_fields}
KEY_OF = {name: name.removeprefix(f"{table}_") for name, table in TABLE_OF.items()}  # within its table
SECRETS = ("sasl_password", "ssl_password", "elasticsearch_password", "elasticsearch_api_key")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Configuration and settings. `origins`: for each setting that is not the default, where it came from."""

    config: Config
    settings: Settings
    file: Path | None
    origins: Mapping[str, str]


def load_settings(config_file: Path | None, flags: Mapping[str, Any]) -> tuple[Config, Settings]:
    """The model's configuration and the settings; `flags` that are None were not given.

    Raises ConfigError: a line for each problem, with where the value came from; OSError for the file.
    """
    loaded = load_all(config_file, flags, os.environ)
    return loaded.config, loaded.settings


def load_all(config_file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Loaded:
    """As `load_settings`, with where each setting came from."""
    config, text = Config(), ""
    if config_file is not None:
        try:
            text = config_file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{config_file}: not UTF-8, so not TOML") from None
        config = parse_config(text, str(config_file))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    of_file = _of_file(tomllib.loads(text.removeprefix("\ufeff")), str(config_file), problems)
    for given in (of_file, _of_environment(environment, problems), _of_flags(flags)):
        for name, (origin, value) in given.items():
            values[name], origins[name] = value, origin
    if not problems:
        try:
            return Loaded(config, Settings.model_validate(values), config_file, origins)
        except ValidationError as error:
            problems = list(dict.fromkeys(_explained(error, values, origins)))
    raise ConfigError("\n".join(problems))


_Given = dict[str, tuple[str, Any]]  # by setting: where it came from, and its value


def _of_file(data: Mapping[str, Any], where: str, problems: list[str]) -> _Given:
    found: _Given = {}
    tables = {KEY_OF[name]: table for name, table in TABLE_OF.items()}
    for table in TABLES:
        here = {KEY_OF[name]: name for name in TABLE_OF if TABLE_OF[name] == table}
        entries = data.get(table, {})
        if not isinstance(entries, dict):
            problems.append(f"{where}: {table}: {shown(entries)} is not allowed; allowed: a table [{table}]")
            continue
        for key, value in entries.items():
            origin = f"{where}: {table}.{key}"
            if key in here:
                found[here[key]] = (origin, value)
            elif key in tables:
                problems.append(f"{origin}: belongs in the table [{tables[key]}]")
            else:
                hint = nearest(key, here) or nearest(key, tables)
                problems.append(f"{origin}: unknown key{hint}; known here: {', '.join(here)}")
    return found


def _of_environment(environment: Mapping[str, str], problems: list[str]) -> _Given:
    """Variables that are nearly ours are errors; others that begin alike are left alone.

    Kubernetes, for one, makes such variables for every service: a service "cco" gives CCO_PORT.
    """
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    found: _Given = {}
    for variable in sorted(environment):
        if variable in known and environment[variable]:
            found[known[variable]] = (f"environment variable {variable}", environment[variable])
        elif variable.startswith(PREFIX) and variable not in known:
            near = _near(variable.removeprefix(PREFIX).lower())
            if near is not None:
                problems.append(f"environment variable {variable}: is not known; did you mean {PREFIX}{near.upper()}?")
    return found


def _near(name: str) -> str | None:
    """The setting that was meant. Within a table: a service "cco-elasticsearch" gives CCO_ELASTICSEARCH_PORT."""
    under = next((f"{table}_" for table in _PREFIXED if name.startswith(f"{table}_")), "")
    known = [setting.removeprefix(under) for setting in TABLE_OF if setting.startswith(under)]
    near = difflib.get_close_matches(name.removeprefix(under), known, 1, _NEAR)
    return under + near[0] if near else None


def _of_flags(flags: Mapping[str, Any]) -> _Given:
    return {name: (f"--{name.replace('_', '-')}", value) for name, value in flags.items() if value is not None}


def _explained(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        if not problem["loc"]:  # contradictions, already in words
            for text in str(problem["ctx"]["error"]).split("\n"):
                name, _, rest = text.partition(": ")
                yield f"{origins.get(name, name)}: {rest}"
            continue
        name = str(problem["loc"][0])
        field = Settings.model_fields.get(name)
        origin = origins.get(name, name)
        if field is None:
            yield f"{origin}: unknown setting{nearest(name, Settings.model_fields)}"
            continue
        value = values.get(name)
        what = "this value" if name in SECRETS else shown(value)
        yield f"{origin}: {what} is not allowed{nearest_literal(value, field)}; allowed: {field.description}"

"""Clients of Elasticsearch: how they connect, which indices are ours, and what their failures mean to a person."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from elasticsearch import ApiError, AsyncElasticsearch, ConnectionTimeout, Elasticsearch, SSLError, TransportError
from elasticsearch import ConnectionError as NotReached
from elasticsearch.serializer import JsonSerializer

REQUEST_SECONDS = 10.0

_BLOCKED = "cluster_block_exception"
_REASON_CHARACTERS = 300


class ElasticProblem(Exception):
    """Elasticsearch cannot be used (on): one readable line with where, what is wrong and what to do."""


class NotNow(ElasticProblem):
    """A part of the index cannot be read for the moment, as after the start of a node. Ask again."""


class IndexNames(NamedTuple):
    """The aliases that everything is read and written through; the index behind one is `ALIAS-000001` and so on."""

    items: str
    users: str


@dataclass(frozen=True, slots=True)
class ElasticOptions:
    """How to reach Elasticsearch.

    urls: http(s)://host:port, any of them will do. A user and a password, or an API key, or neither.
    ca_file: certificates (PEM) to trust instead of the system's. prefix: what names of indices begin with.
    """

    urls: tuple[str, ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    prefix: str = ""


class _QuickJson(JsonSerializer):
    """Whole documents come with the answers to questions."""

    def json_loads(self, data: bytes) -> Any:
        try:
            return msgspec.json.decode(data)
        except msgspec.MsgspecError:
            return json.loads(data)  # it takes more, or says what is wrong in the words that the client expects


def names(options: ElasticOptions) -> IndexNames:
    """The aliases."""
    return IndexNames(options.prefix + "items", options.prefix + "users")


def sync_client(options: ElasticOptions) -> Elasticsearch:
    """A client that gives up after 10 s and repeats nothing. Connects when first used; may be shared by threads.

    Raises ElasticProblem if `ca_file` cannot be used.
    """
    return Elasticsearch(**_arguments(options))


def async_client(options: ElasticOptions) -> AsyncElasticsearch:
    """As `sync_client`, for one event loop; whoever makes it closes it (`await client.close()`)."""
    return AsyncElasticsearch(**_arguments(options))


def _arguments(options: ElasticOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "hosts": list(options.urls),
        "request_timeout": REQUEST_SECONDS,
        "max_retries": 0,  # who asks knows better: a bulk, say, is not repeated as it was
        "retry_on_timeout": False,
        "serializer": _QuickJson(),
    }
    if options.api_key is not None:
        arguments["api_key"] = options.api_key
    elif options.username is not None:
        arguments["basic_auth"] = (options.username, options.password or "")
    if options.ca_file is not None:
        try:
            arguments["ssl_context"] = ssl.create_default_context(cafile=str(options.ca_file))
        except OSError as error:  # an ssl.SSLError is one
            said = error.strerror or error
            raise ElasticProblem(f"ca_file: {options.ca_file} cannot be used as certificates (PEM): {said}") from None
    return arguments


@contextmanager
def elastic_errors(options: ElasticOptions | None = None, doing: str = "") -> Iterator[None]:
    """Turn whatever the client raises into an ElasticProblem of one line. `doing` says what failed ("searching")."""
    try:
        yield
    except (ApiError, TransportError) as error:
        where = "Elasticsearch" if options is None else f"Elasticsearch at {', '.join(options.urls)}"
        raise ElasticProblem(f"{where}{_explanation(error, doing)}") from error


def reason(error: ApiError) -> tuple[str, str]:
    """The kind of an error as Elasticsearch calls it ("index_not_found_exception"), and its reason in words."""
    told = error.body.get("error") if isinstance(error.body, dict) else None
    if not isinstance(told, dict):
        return "", " ".join(str(told or error.message).split())[:_REASON_CHARACTERS]
    reasons = [str(told.get("reason", ""))]
    cause = told.get("caused_by")
    while isinstance(cause, dict):  # the innermost says most, but alone says too little
        if cause.get("reason") and cause["reason"] not in reasons[-1]:
            reasons.append(str(cause["reason"]))
        cause = cause.get("caused_by")
    return str(told.get("type", "")), " ".join(": ".join(reasons).split())[:_REASON_CHARACTERS]


def _explanation(error: ApiError | TransportError, doing: str) -> str:
    """What follows "Elasticsearch at URL"."""
    while_doing = f" while {doing}" if doing else ""
    if isinstance(error, ApiError):
        return _of_answer(error, while_doing)
    said = " ".join(str(error.message).split())[:_REASON_CHARACTERS]
    if isinstance(error, SSLError):
        return f": TLS failed{while_doing}: {said}: is https right, and does ca_file hold the server's authority?"
    if isinstance(error, ConnectionTimeout):
        return f" did not answer in time{while_doing}: is it overloaded or standing still?"
    if isinstance(error, NotReached):
        return f" cannot be reached{while_doing}: is it running, and is the address right? ({said})"
    return f"{while_doing} gave an answer that cannot be read: {said}: is this address one of Elasticsearch?"


def _of_answer(error: ApiError, while_doing: str) -> str:
    kind, said = reason(error)
    status = error.status_code
    if status == 401:
        return f" refused the login{while_doing}: check username and password, or api_key"
    if kind == _BLOCKED and status != 503:  # 503: a node that has only just started
        return f" blocks it{while_doing}: {said}: is its disk full? It writes again when there is room"
    if status == 403:
        return f" does not permit it{while_doing}: {said}"
    if kind in ("index_not_found_exception", "alias_not_found_exception"):
        return f" has no such index or alias{while_doing}: {said}: `cco index create` makes it"
    if status == 429:
        return f" is overloaded{while_doing}: {said}: try again later"
    if status in (502, 503, 504):
        return f" is not ready{while_doing}: {said}: try again when its cluster is healthy"
    if not 400 <= status <= 599:
        return f"{while_doing}: {said or status}: is this address one of Elasticsearch?"
    return f" answered {status}{while_doing}: {said}"

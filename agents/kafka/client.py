"""What every client of Kafka has in common: how it connects, and what its failures mean to a person."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.helpers import create_ssl_context

from agents.settings import Settings
from cco.config import ConfigError

_UNREACHABLE = (errors.KafkaConnectionError, errors.NoBrokersAvailable, errors.NodeNotReadyError)
_TIMEOUTS = (errors.KafkaTimeoutError, errors.RequestTimedOutError, TimeoutError)
_REFUSED_LOGIN = (
    errors.AuthenticationFailedError, errors.SaslAuthenticationFailed, errors.UnsupportedSaslMechanismError,
)  # fmt: skip

# Its failures come as exceptions; what it logs besides belongs in a log, where there is one, and not on stderr.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())


class KafkaProblem(Exception):
    """Kafka cannot be used (on): one readable line with the brokers and what to do."""


def client_options(settings: Settings) -> dict[str, Any]:
    """The arguments that any aiokafka client takes: brokers, name, TLS and SASL.

    Raises ConfigError if a certificate or key cannot be loaded.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.broker_list,
        "client_id": f"{settings.group}-{settings.name}",
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.sasl_mechanism is not None and settings.sasl_password is not None:
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return options


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    files = {"cafile": settings.ssl_cafile, "certfile": settings.ssl_certfile, "keyfile": settings.ssl_keyfile}
    for key, path in files.items():
        if path is not None and not path.is_file():
            raise ConfigError(f"ssl_{key}: there is no file {path}")
    # without a password OpenSSL would ask for one on the terminal, where nobody sits
    password = settings.ssl_password.get_secret_value() if settings.ssl_password is not None else ""
    try:
        context: ssl.SSLContext = create_ssl_context(**files, password=password)
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        named = ", ".join(str(path) for path in files.values() if path is not None)
        raise ConfigError(f"TLS: the files {named} cannot be used: {error}") from None
    return context


async def check_partitions(client: AIOKafkaClient, settings: Settings, topic: str, expected: int) -> None:
    """Raise KafkaProblem unless `topic`, by its name on the broker, exists and has so many partitions.

    A client that asks for one topic may thereby create it; this asks for all.
    """
    cluster = await client.fetch_all_metadata()
    found = len(cluster.partitions_for_topic(topic) or ())
    where = f"Kafka at {', '.join(settings.broker_list)}"
    if not found:
        raise KafkaProblem(f"{where} has no topic {topic}: `cco topics create` makes it")
    if found != expected:
        raise KafkaProblem(
            f"{where}: the topic {topic} has {found} partitions, and the configuration wants {expected}: create it anew"
            " or correct the configuration (retention.source_partitions)"
        )


@contextmanager
def kafka_errors(settings: Settings, doing: str = "") -> Iterator[None]:
    """Turn whatever aiokafka raises into a KafkaProblem of one line. `doing` says what failed ("producing")."""
    reasons = _Reasons()
    logging.getLogger("aiokafka").addHandler(reasons)
    try:
        yield
    except KafkaProblem:
        raise
    except (errors.KafkaError, TimeoutError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, (TimeoutError, ConnectionError, ssl.SSLError)):
            raise  # of a file, say, not of the network
        told = reasons.last if isinstance(error, _UNREACHABLE) and reasons.last is not None else error
        raise KafkaProblem(_explanation(settings, doing, told)) from error
    finally:
        logging.getLogger("aiokafka").removeHandler(reasons)


class _Reasons(logging.Handler):
    """Remembers why a connection failed: of a wrong password or certificate aiokafka speaks in its log alone."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last: Exception | None = None

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        self.last = next((each for each in arguments if isinstance(each, (*_REFUSED_LOGIN, ssl.SSLError))), self.last)


def _explanation(settings: Settings, doing: str, error: Exception) -> str:
    where = f"Kafka at {', '.join(settings.broker_list)}"
    while_doing = f" while {doing}" if doing else ""
    said = " ".join(str(error).split())
    if isinstance(error, _REFUSED_LOGIN):
        return f"{where} refused the login of {settings.sasl_username}{while_doing}: check user, password, mechanism"
    if isinstance(error, ssl.SSLError):
        return f"{where}: TLS failed{while_doing}: {said}: check security_protocol and ssl_cafile"
    if isinstance(error, errors.UnknownTopicOrPartitionError):
        return f"{where} has no such topic or partition{while_doing}: `cco topics create` makes them ({said})"
    if isinstance(error, (errors.TopicAuthorizationFailedError, errors.GroupAuthorizationFailedError)):
        return f"{where} does not permit it{while_doing}: {said}"
    if isinstance(error, _UNREACHABLE):
        return f"{where} cannot be reached{while_doing}: is it running, and is the address right? (--brokers)"
    if isinstance(error, _TIMEOUTS):
        return f"{where} did not answer in time{while_doing}"
    return f"{where}{while_doing}: {type(error).__name__}{': ' + said if said else ''}"

"""Settings: which source wins, what is refused and in which words, what clients of Kafka are given."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import tomllib
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, errors

from agents.cli.main import main
from agents.kafka.client import KafkaProblem, client_options, kafka_errors
from agents.settings import Settings, load_all, load_settings
from cco.config import Config, ConfigError, parse_config

FILE = """
primary = "buy"
[indicators.buy]
[kafka]
brokers = "one:9092, two"
topic_prefix = "shop."
[worker]
name = "w1"
share_every = "2m"
monitor_port = 9000
"""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CCO_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cco.toml"
    path.write_text(FILE)
    return path


def problems(file: Path | None, flags: dict[str, Any] | None = None, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_all(file, flags or {}, {f"CCO_{name}": value for name, value in environment.items()})
    return str(caught.value).replace(str(file), "FILE").split("\n")


def test_flags_win_over_variables_over_the_file_over_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCO_NAME", "w2")
    monkeypatch.setenv("CCO_MONITOR_PORT", "9001")
    monkeypatch.setenv("CCO_CHECKPOINT_EVERY", "500ms")
    monkeypatch.setenv("CCO_TOPIC_PREFIX", "")  # an empty variable counts as absent
    config, settings = load_settings(file, {"monitor_port": 9002, "brokers": None})
    assert (config.primary, config) == ("buy", parse_config(FILE, "x"))
    assert (settings.monitor_port, settings.name, settings.share_every) == (9002, "w2", 120.0)
    assert (settings.checkpoint_every, settings.group, settings.item_partitions) == (0.5, "cco", 1)
    assert settings.broker_list == ["one:9092", "two"]
    assert settings.topic("edits") == "shop.edits"
    assert load_settings(None, {})[0] == Config()


def test_origins_say_where_each_value_came_from(file: Path) -> None:
    loaded = load_all(file, {"group": "g"}, {"CCO_NAME": "w2"})
    assert loaded.origins == {
        "brokers": f"{file}: kafka.brokers",
        "topic_prefix": f"{file}: kafka.topic_prefix",
        "name": "environment variable CCO_NAME",
        "share_every": f"{file}: worker.share_every",
        "monitor_port": f"{file}: worker.monitor_port",
        "group": "--group",
    }


def test_a_worker_has_a_name_without_being_given_one() -> None:
    assert Settings().name
    assert Settings() == Settings()


@pytest.mark.parametrize(
    ("flags", "environment", "line"),
    [
        ({"threads": 0}, {}, "--threads: 0 is not allowed; allowed: a whole number, 1 to 256: threads that count rows"),
        ({}, {"THREADS": "many"}, "environment variable CCO_THREADS: 'many' is not allowed; allowed: a whole number"),
        ({}, {"SHARE_EVERY": "soon"}, "environment variable CCO_SHARE_EVERY: 'soon' is not allowed; allowed: a dura"),
        ({}, {"SESSION_TIMEOUT": "0.5"}, "environment variable CCO_SESSION_TIMEOUT: '0.5' is not allowed"),
        ({}, {"BROKER": "x"}, "environment variable CCO_BROKER: is not known; did you mean CCO_BROKERS?"),
        ({"log_format": "jsn"}, {}, '--log-format: \'jsn\' is not allowed (did you mean "json"?); allowed: "auto"'),
        ({"name": "a/b"}, {}, "--name: 'a/b' is not allowed; allowed: 1 to 100 letters, digits, . _ or -"),
        ({"brokers": "a:1,b b"}, {}, "--brokers: 'b b' is not host:port"),
        ({"brokers": " , "}, {}, "--brokers: names no broker"),
        ({"groupe": "x"}, {}, '--groupe: unknown setting (did you mean "group"?)'),
        ({"sasl_username": "me"}, {}, '--sasl-username: would not be used: set security_protocol = "SASL_SSL"'),
        ({}, {"SSL_CAFILE": "ca.pem"}, "environment variable CCO_SSL_CAFILE: would not be used: set security_prot"),
        ({"ssl_keyfile": "k", "security_protocol": "SSL"}, {}, "--ssl-keyfile: needs ssl_certfile"),
        ({"elasticsearch_urls": "host:9200"}, {}, "--elasticsearch-urls: 'host:9200' is not http://host:port or"),
        ({"elasticsearch_urls": "http://host"}, {}, "--elasticsearch-urls: 'http://host' is not http://host:port or"),
        ({"elasticsearch_urls": "http://a:1, ftp://b:1"}, {}, "--elasticsearch-urls: 'ftp://b:1' is not http://host"),
        ({"elasticsearch_urls": ","}, {}, "--elasticsearch-urls: names no URL"),
        (
            {},
            {"ELASTICSEARCH_URLS": "http://me:secret@a:1"},
            "environment variable CCO_ELASTICSEARCH_URLS: a URL hold",
        ),
        ({}, {"ELASTICSEARCH_URL": "http://a:1"}, "environment variable CCO_ELASTICSEARCH_URL: is not known; did you"),
        ({}, {"ELASTICSEARCH_API_KEY": "k"}, "environment variable CCO_ELASTICSEARCH_API_KEY: would not be used: set"),
        (
            {"elasticsearch_urls": "http://a:1"},
            {"ELASTICSEARCH_USERNAME": "me"},
            "environment variable CCO_ELASTICSEARCH_USERNAME: needs password",
        ),
        ({"elasticsearch_urls": "http://a:1", "elasticsearch_ca_file": "ca.pem"}, {}, "--elasticsearch-ca-file: would"),
        (
            {"elasticsearch_index_prefix": "Shop"},
            {},
            "--elasticsearch-index-prefix: 'Shop' is not allowed; allowed: u",
        ),
    ],
)
def test_what_is_refused_is_said_with_its_source(flags: dict[str, Any], environment: dict[str, str], line: str) -> None:
    found = problems(None, flags, **environment)
    assert len(found) == 1
    assert found[0].startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[worker]\ngrup = 'x'", 'FILE: worker.grup: unknown key (did you mean "group"?); known here: group, name, '),
        ("[worker]\nbrokers = 'x'", "FILE: worker.brokers: belongs in the table [kafka]"),
        ("[kafka]\nurls = 'x'", "FILE: kafka.urls: belongs in the table [elasticsearch]"),
        ("[elasticsearch]\nurl = 'x'", 'FILE: elasticsearch.url: unknown key (did you mean "urls"?); known here: urls'),
        ("[elasticsearch]\nurls = 'x'", "FILE: elasticsearch.urls: 'x' is not http://host:port or https://host:port"),
        ("[kafka]\nbrokers = 5", "FILE: kafka.brokers: 5 is not allowed; allowed: host:port"),
        ("[worker]\nthreads = true", "FILE: worker.threads: True is not allowed; allowed: a whole number"),
        ("[worker]\nthreads = 1.5", "FILE: worker.threads: 1.5 is not allowed; allowed: a whole number"),
        ("worker = 3", "FILE: worker: 3 is not allowed; allowed: a table [worker]"),
        ("[workers]\nname = 'x'", 'FILE: workers: unknown key (did you mean "worker"?); known here: primary, '),
        ("[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'\nsasl_username = 'u'",
         "FILE: kafka.security_protocol: SASL_SSL needs sasl_password"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_said(file: Path, text: str, line: str) -> None:
    file.write_text(text)
    found = problems(file)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_all_problems_come_at_once_and_none_shows_a_secret(file: Path) -> None:
    file.write_text("[kafka]\nsasl_password = 12345678\n[worker]\nthreads = 0")
    found = problems(file)
    assert len(found) == 2
    assert not any("12345678" in line for line in found)


def test_variables_of_others_are_left_alone() -> None:
    others = {"CCO_PORT": "tcp://10.0.0.1:80", "CCO_SERVICE_HOST": "10.0.0.1", "CCO_TRACEBACK": "1"}
    others |= {f"CCO_ELASTICSEARCH_{name}": "x" for name in ("PORT", "SERVICE_HOST", "SERVICE_PORT", "PORT_9200_TCP")}
    assert load_all(None, {}, others).origins == {}


def test_the_printed_configuration_is_one_that_says_the_same(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CCO_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
    monkeypatch.setenv("CCO_SASL_MECHANISM", "PLAIN")
    monkeypatch.setenv("CCO_SASL_USERNAME", "me")
    monkeypatch.setenv("CCO_SASL_PASSWORD", "very-secret")
    monkeypatch.setenv("CCO_SHARE", "ftp://me:very-secret@host/folder")
    monkeypatch.setenv("CCO_ELASTICSEARCH_URLS", "http://one:9200, http://two:9200")
    monkeypatch.setenv("CCO_ELASTICSEARCH_USERNAME", "me")
    monkeypatch.setenv("CCO_ELASTICSEARCH_PASSWORD", "very-secret")
    assert main(["config", "--config", str(file)]) == 0
    text = capsys.readouterr().out
    assert "very-secret" not in text
    assert f'brokers = "one:9092, two"                    # {file}: kafka.brokers' in text
    assert 'sasl_username = "me"                         # environment variable CCO_SASL_USERNAME' in text
    assert 'urls = "http://one:9200, http://two:9200"    # environment variable CCO_ELASTICSEARCH_URLS' in text
    assert '\n# password = "********" ' in text
    monkeypatch.delenv("CCO_SHARE")
    again = tmp_path / "again.toml"
    again.write_text(text)
    before, after = load_settings(file, {}), load_settings(again, {})
    assert before[0] == after[0]
    assert before[1].model_dump(exclude={"share"}) == after[1].model_dump(exclude={"share"})
    assert tomllib.loads(text)["worker"]["share"] == "ftp://********@host/folder"


def test_the_settings_of_the_service_are_printed_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cco.toml"
    file.write_text(
        'primary = "buy"\n[serve]\nport = 8100\nopen_queries = true\n[serve.keys."our shop"]\n'
        'key = "very-secret-0123456789"\n[serve.keys.probe]\nkey_file = "/no/such/file"\nscopes = ["read"]\n'
    )
    monkeypatch.setenv("CCO_SERVE_STATE", "elsewhere")
    assert main(["config", "--config", str(file)]) == 0
    text = capsys.readouterr().out
    assert "very-secret" not in text
    assert f"port = 8100                                  # {file}: serve.port" in text
    assert 'state = "elsewhere"                          # environment variable CCO_SERVE_STATE' in text
    assert 'host = "127.0.0.1"                           # default' in text
    assert '[serve.keys."our shop"]\n# key = "********" ' in text
    serve = tomllib.loads(text)["serve"]
    assert (serve["port"], serve["open_queries"], serve["state"]) == (8100, True, "elsewhere")
    assert serve["keys"]["probe"] == {"key_file": "/no/such/file", "scopes": ["read"]}
    assert main(["config", "--config", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["serve"]["keys"]["our shop"]["key"] == "********" and document["serve"]["port"] == 8100
    assert document["from"]["serve"]["host"] == "default"
    file.write_text("[serve]\nprot = 1\n")
    assert main(["config", "--config", str(file)]) == 2
    assert 'serve.prot: unknown key (did you mean "port"?)' in capsys.readouterr().err


def test_the_configuration_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--config", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["epoch"] == parse_config(FILE, "x").epoch
    assert document["model"]["primary"] == "buy"
    assert document["settings"]["name"] == "w1"
    assert document["from"]["settings"]["name"] == f"{file}: worker.name"
    assert document["from"]["model"]["primary"] == str(file)
    assert document["from"]["model"]["retention.seed"] == "default"


def test_a_wrong_setting_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--brokers", "no port:x"]) == 2
    assert capsys.readouterr().err == "cco: error: --brokers: 'no port:x' is not host:port\n"


def test_clients_are_given_what_they_take() -> None:
    assert client_options(Settings(brokers="a:1,b:2", name="w")) == {
        "bootstrap_servers": ["a:1", "b:2"],
        "client_id": "cco-w",
        "security_protocol": "PLAINTEXT",
    }
    secure = client_options(
        Settings(
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_username="me",
            sasl_password="p",  # type: ignore[arg-type]  # pydantic makes it a secret
        )
    )
    assert (secure["sasl_plain_username"], secure["sasl_plain_password"]) == ("me", "p")
    assert secure["ssl_context"].verify_mode == ssl.CERT_REQUIRED


def test_certificates_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ssl_cafile: there is no file .*absent\.pem"):
        client_options(Settings(security_protocol="SSL", ssl_cafile=tmp_path / "absent.pem"))
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"TLS: the files .*ca\.pem cannot be used"):
        client_options(Settings(security_protocol="SSL", ssl_cafile=tmp_path / "ca.pem"))


def test_an_unreachable_broker_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        settings = Settings(brokers=f"127.0.0.1:{taken.getsockname()[1]}")

        async def connect() -> None:
            with kafka_errors(settings, "producing"):
                producer = AIOKafkaProducer(**client_options(settings))
                try:
                    await producer.start()
                finally:
                    await producer.stop()

        with pytest.raises(KafkaProblem) as caught:
            asyncio.run(connect())
    assert str(caught.value) == (
        f"Kafka at {settings.brokers} cannot be reached while producing: is it running, and is the address right?"
        " (--brokers)"
    )


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (errors.UnknownTopicOrPartitionError("x"), "has no such topic or partition: `cco topics create` makes them"),
        (errors.KafkaTimeoutError(), "did not answer in time"),
        (errors.SaslAuthenticationFailed("bad"), "refused the login of None: check user, password"),
        (errors.CorruptRecordException(), "localhost:9092: CorruptRecordException"),
    ],
)
def test_what_goes_wrong_is_said(error: Exception, part: str) -> None:
    with pytest.raises(KafkaProblem, match=part), kafka_errors(Settings()):
        raise error


def test_failures_of_files_are_no_problem_of_kafka() -> None:
    with pytest.raises(FileNotFoundError), kafka_errors(Settings()):
        Path("/no/such/file").read_text()

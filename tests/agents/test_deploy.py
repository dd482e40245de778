"""What deploy/ shows is what the worker takes and tells."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from agents.archive import monitor as archive_monitor
from agents.cli.main import main
from agents.health import system_mode
from agents.health.modes import MODES
from agents.serving.settings import ServeSettings, load_serve_settings
from agents.settings import SECRETS, TABLE_OF, Settings, load_all
from agents.workers import elastic_publishing
from agents.workers.elastic_publishing import _COUNTED as OUTCOMES
from agents.workers.metrics import Metrics
from model_sync.service.metrics import ServiceMetrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
WRITERS = [
    family
    for module in (elastic_publishing, archive_monitor, system_mode)
    for family in re.findall(r'(Gauge|Counter)MetricFamily\(\s*"(cco_\w+)"', inspect.getsource(module))
]
SECRET = {"CCO_SASL_PASSWORD": "secret", "CCO_ELASTICSEARCH_PASSWORD": "secret"}


def test_the_example_configuration_loads() -> None:
    loaded = load_all(DEPLOY / "cco.toml", {}, {})
    assert loaded.config.retention.source_partitions == 4
    assert loaded.settings.patches == "topic"
    assert loaded.settings.brokers == "localhost:9092"


def test_what_is_commented_out_in_the_example_loads_too(tmp_path: Path) -> None:
    text = (DEPLOY / "cco.toml").read_text(encoding="utf-8")
    everything = tmp_path / "cco.toml"
    everything.write_text(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    loaded = load_all(everything, {}, SECRET)
    assert loaded.settings.security_protocol == "SASL_SSL"
    assert loaded.settings.share == "s3://bucket/cco"
    assert loaded.origins.keys() == Settings.model_fields.keys() - {"ssl_password", "elasticsearch_api_key"}
    shown = load_all(DEPLOY / "cco.toml", {}, {})
    assert loaded.config == shown.config  # of the model, what is commented out are the defaults


def test_the_defaults_that_the_example_names(tmp_path: Path) -> None:
    commented = re.findall(r"^# (\w+) = (.*?) +#", (DEPLOY / "cco.toml").read_text(encoding="utf-8"), re.MULTILINE)
    others = {"name", "share", "weight", "user_cap", "top_k"}  # of a worker of its own, or of the model
    defaults = [f"{key} = {value}" for key, value in commented if TABLE_OF.get(key) == "worker" and key not in others]
    assert len(defaults) >= 8
    worker = tmp_path / "cco.toml"
    worker.write_text("\n".join(["[worker]", *defaults]))
    assert load_all(worker, {}, {}).settings == load_all(None, {}, {}).settings


def test_alerts_are_on_metrics_that_there_are() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.own_source(0)
    metrics.own_item_partition(0)
    service = ServiceMetrics(metrics.registry)
    service.answered("/recommendations", 500, 0.1)
    service.follow_model_age(lambda: 1.0)
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition()[0].decode())}
    names = {f"{name}_total" if family.type == "counter" else name for name, family in families.items()}
    names |= {f"{name}_total" if kind == "Counter" else name for kind, name in WRITERS}
    names |= {sample.name for family in families.values() for sample in family.samples}
    expressions = re.findall(r"expr: (.*)$", (DEPLOY / "alerts.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(expressions) >= 6
    for expression in expressions:
        used = set(re.findall(r"\bcco_\w+", expression))
        assert used <= names, expression
        for mode in re.findall(r'mode="(\w+)"', expression):
            assert mode in MODES
        for outcome in re.findall(r'outcome="(\w+)"', expression):
            assert outcome in OUTCOMES
    watched = " ".join(expressions)
    subjects = ("lag_records", "staleness_seconds", "gaps_total", "dead_letters_total", "snapshot_age", "mode{")
    for subject in (*subjects, "model_age_seconds", "system_mode{"):
        assert f"cco_{subject}" in watched
    jobs = re.findall(r"job_name: (\S+)", (DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    assert set(re.findall(r'job="([\w-]+)"', watched)) == set(jobs)


def test_the_service_starts_a_worker_with_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    unit = (DEPLOY / "cco-worker@.service").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    options = shlex.split(command.replace("%H", "host").replace("%i", "1"))
    assert options[0].endswith("/cco") and options[1] == "worker"
    given = dict(zip(options[2::2], options[3::2], strict=True))
    assert main(["worker", "--help"]) == 0
    known = capsys.readouterr().out
    assert all(option in known for option in given)
    values = {name.removeprefix("--").replace("-", "_"): value for name, value in given.items() if name != "--config"}
    settings = load_all(None, values, {}).settings
    targets = re.findall(r"localhost:(\d+)", (DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    assert str(settings.monitor_port) in targets


def test_the_query_service_starts_with_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    unit = (DEPLOY / "cco-serve.service").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    options = shlex.split(command)
    assert options[0].endswith("/cco") and options[1] == "serve"
    given = dict(zip(options[2::2], options[3::2], strict=True))
    assert main(["serve", "--help"]) == 0
    known = capsys.readouterr().out
    assert all(option in known for option in [*given, *re.findall(r"--[\w-]+", unit)] if option != "--now")
    assert given["--port"] in re.findall(r"localhost:(\d+)", (DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))


def test_the_table_serve_of_the_example_loads_with_and_without_keys(tmp_path: Path) -> None:
    _, plain, keys = load_serve_settings(DEPLOY / "cco.toml", {}, {})
    assert (plain, keys) == (ServeSettings(), [])
    text = (DEPLOY / "cco.toml").read_text(encoding="utf-8")
    (tmp_path / "shop.key").write_text("sixteen-characters-and-more\n")
    table = re.sub(r"^#   ", "", text.replace("/etc/cco/shop.key", str(tmp_path / "shop.key")), flags=re.MULTILINE)
    everything = tmp_path / "cco.toml"
    everything.write_text(re.sub(r"^# (?=(host|port) = )", "", table, flags=re.MULTILINE))
    _, settings, [key] = load_serve_settings(everything, {}, {})
    assert (settings.host, settings.port) == (plain.host, plain.port)  # what is commented out are the defaults
    assert (key.name, key.scopes) == ("shop", {"read", "write"})


def test_the_service_of_the_archive_starts_a_command_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    unit = (DEPLOY / "cco-archive.service").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    program, *arguments = shlex.split(command)
    assert program.endswith("/cco") and arguments[:2] == ["archive", "run"]
    given = dict(zip(arguments[3::2], arguments[4::2], strict=True))
    assert main(["archive", "run", "--help"]) == 0
    known = capsys.readouterr().out
    assert given.keys() == {"--config", "--monitor-port"} and all(option in known for option in given)
    targets = re.findall(r"localhost:(\d+)", (DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    assert given["--monitor-port"] in targets


def test_the_service_of_rebuilds_starts_a_command_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    unit = (DEPLOY / "cco-rebuild.service").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    program, *arguments = shlex.split(command)
    assert program.endswith("/cco") and arguments[0] == "rebuild"
    options = [argument for argument in arguments if argument.startswith("--")]
    assert main(["rebuild", "--help"]) == 0
    known = capsys.readouterr().out
    assert len(options) == 6 and all(option in known for option in options)
    archive = (DEPLOY / "cco-archive.service").read_text(encoding="utf-8")
    assert f"cco archive run {arguments[arguments.index('--archive') + 1]} " in archive


def test_no_secret_is_in_the_example() -> None:
    text = (DEPLOY / "cco.toml").read_text(encoding="utf-8")
    assert not any(re.search(rf"^#? ?{name}\b", text, re.MULTILINE) for name in SECRETS)

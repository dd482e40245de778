"""What deploy/ shows is what the worker takes and tells."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from agents.cli.main import main
from agents.metrics import MODES, Metrics
from agents.settings import SECRETS, TABLE_OF, Settings, load_all

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
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
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition()[0].decode())}
    names = {f"{name}_total" if family.type == "counter" else name for name, family in families.items()}
    expressions = re.findall(r"expr: (.*)$", (DEPLOY / "alerts.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(expressions) >= 6
    for expression in expressions:
        used = set(re.findall(r"\bcco_\w+", expression))
        assert used <= names, expression
        for mode in re.findall(r'mode="(\w+)"', expression):
            assert mode in MODES
    watched = " ".join(expressions)
    for subject in ("lag_records", "staleness_seconds", "gaps_total", "dead_letters_total", "snapshot_age", "mode"):
        assert f"cco_{subject}" in watched


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


def test_no_secret_is_in_the_example() -> None:
    text = (DEPLOY / "cco.toml").read_text(encoding="utf-8")
    assert not any(re.search(rf"^#? ?{name}\b", text, re.MULTILINE) for name in SECRETS)

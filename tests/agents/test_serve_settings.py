"""The table [serve]: which source wins, keys and their files, and nobody listens to the world without keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.serving.settings import check_reach, load_serve_settings
from agents.settings import load_settings
from cco.config import ConfigError
from model_sync.service.auth import ApiKey

FILE = """
primary = "buy"
[serve]
host = "::1"
port = 8100
[serve.keys.shop]
key = "0123456789abcdef"
[serve.keys.probe]
key_file = "KEY_FILE"
scopes = ["read"]
"""


def loaded(tmp_path: Path, text: str = FILE, flags: dict[str, Any] | None = None, **environment: str) -> Any:
    path = tmp_path / "cco.toml"
    (tmp_path / "key").write_text("fedcba9876543210\n")
    path.write_text(text.replace("KEY_FILE", str(tmp_path / "key")))
    return load_serve_settings(path, flags or {}, environment)


def refused(tmp_path: Path, text: str = FILE, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, **environment)
    return str(caught.value).replace(str(tmp_path), "DIR")


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path) -> None:
    config, settings, keys = loaded(tmp_path)
    assert (config.primary, settings.host, settings.port, settings.state) == ("buy", "::1", 8100, Path("cco-embedded"))
    assert keys == [
        ApiKey("shop", "0123456789abcdef"), ApiKey("probe", "fedcba9876543210", frozenset({"read"})),
    ]  # fmt: skip
    _, settings, _ = loaded(tmp_path, CCO_SERVE_PORT="8200", CCO_SERVE_STATE="elsewhere", CCO_SERVE_HOST="")
    assert (settings.host, settings.port, settings.state) == ("::1", 8200, Path("elsewhere"))
    _, settings, _ = loaded(tmp_path, flags={"port": 0, "host": None}, CCO_SERVE_PORT="8200")
    assert settings.port == 0
    _, settings, _ = loaded(tmp_path, CCO_SERVE_PORT="tcp://10.0.0.1:80")  # as Kubernetes makes them
    assert settings.port == 8100
    assert load_serve_settings(None, {}, {})[0] is None
    config, _ = load_settings(tmp_path / "cco.toml", {})  # workers leave the table alone
    assert config.primary == "buy"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("port = 8100", "port = 70000"), "DIR/cco.toml: serve.port: 70000 is not allowed; allowed: a whole number"),
        (("port = 8100", "prot = 1"), 'serve.prot: unknown key (did you mean "port"?)'),
        (("0123456789abcdef", "short"), "serve.keys.shop: key shop: has 5 characters; 16 to 1024 are possible"),
        (("0123456789abcdef", "fedcba9876543210"), "there twice"),
        (('key = "0123456789abcdef"', ""), "serve.keys.shop: needs either key or key_file"),
        (('["read"]', '["all"]'), "serve.keys.probe.scopes: "),
        (('["read"]', "[]"), "serve.keys.probe.scopes: "),
        (('key = "', 'secret = "'), "serve.keys.shop.secret: unknown key"),
        (("[serve]", "[[serve]]"), "must be a table [serve]"),
    ],
)
def test_what_is_not_possible_is_said_without_showing_keys(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    text = FILE.replace(*change)
    if change[0] == "[serve]":
        text = 'primary = "buy"\n[[serve]]\nhost = "a"\n'
    told = refused(tmp_path, text)
    assert said in told
    assert "0123456789abcdef" not in told and "fedcba9876543210" not in told


def test_nobody_listens_to_the_world_without_keys() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "8.8.8.8", "no.such.host.invalid"):
        with pytest.raises(ConfigError, match="without keys"):
            check_reach(host, [])
        check_reach(host, [ApiKey("shop", "0123456789abcdef")])
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_reach(host, [])

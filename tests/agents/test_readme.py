"""What README.md shows works as it is written."""

from __future__ import annotations

import gzip
import re
import shlex
from pathlib import Path

import pytest

from agents.cli.main import main
from cco.config import parse_config

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language ("" for those that name none)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for of, text in found if of == language]


def test_the_python_example(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "8 accepted, 0 rejected"
    assert shown[1].startswith("tablet ")
    assert shown[-1] == "pen -> tablet: 2 of 5 users have both"


def test_the_configuration_example() -> None:
    (example,) = blocks("toml")
    config = parse_config(example, "README.md")
    assert config.indicators["interest"].weight == 0.5
    uncommented = re.sub(r"^# (?=\[|\w+ =)", "", example, flags=re.MULTILINE)
    assert parse_config(re.sub(r"\[priors\] +# .*", "[priors]", uncommented), "README.md") == config


def test_the_commands_on_a_file_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (sample,) = [block for block in blocks("") if block.startswith("user,item,event,timestamp\n")]
    more = "".join(f"v{k},{'tablet' if k % 3 else 'case'},purchase,{1476884300 + k}\n" for k in range(12))
    more += "".join(f"v{k},phone,purchase,{1476884400 + k}\n" for k in range(8) if k % 3)
    Path("events.csv.gz").write_bytes(gzip.compress((sample + more).encode()))
    Path("cco.toml").write_text(blocks("toml")[0])
    (commands,) = [block for block in blocks("") if block.startswith("cco replay")]
    for line in commands.splitlines():
        assert main(shlex.split(line, comments=True)[1:]) == 0, (line, capsys.readouterr())
    assert "equal" in capsys.readouterr().out

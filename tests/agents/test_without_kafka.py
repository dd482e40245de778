"""Without the extras `kafka` and `elasticsearch`: what needs them says so, and the rest works."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from agents.cli.main import ELASTICSEARCH_PACKAGES, KAFKA_PACKAGES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from agents.cli.main import main

for line in sys.stdin.read().splitlines():
    print(main(line.split()), flush=True)
"""


def test_what_needs_kafka_says_so_and_the_rest_works(tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text("user,item,event,timestamp\nu,i,purchase,1700000000\n")
    commands = {
        f"worker --state {tmp_path}/worker": 2,
        "topics check": 2,
        f"ingest {events}": 2,
        "patches --topic --model -": 2,
        "rebuild --log": 2,
        f"archive run {tmp_path}/archive": 2,
        "dead-letters list": 2,
        "index check --elasticsearch-urls http://a:1": 2,
        f"archive describe {tmp_path}/archive": 1,
        f"rebuild --archive {tmp_path}/archive": 2,
        "config": 0,
        f"replay {events} --state {tmp_path}/state --json": 0,
        f"replay {tmp_path}/none.csv": 2,
        f"rebuild {events} --json": 0,
    }
    script = SCRIPT.format(packages=KAFKA_PACKAGES + ELASTICSEARCH_PACKAGES)
    done = subprocess.run(
        [sys.executable, "-c", script], input="\n".join(commands), cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    codes = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert codes == list(commands.values()), done
    said = done.stderr.splitlines()
    assert len(said) == 11
    assert all(line.endswith("is not installed: pip install 'streaming-cco[kafka]'") for line in said[:7])
    assert said[7].endswith("package elasticsearch, which is not installed: pip install 'streaming-cco[elasticsearch]'")
    assert all("there is no archive: `cco archive run` makes it" in line for line in said[8:10])
    assert "none.csv" in said[10]


def test_the_extra_has_them_all() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = " ".join(project["optional-dependencies"]["kafka"]).replace("-", "_")
    assert all(package in names for package in KAFKA_PACKAGES)

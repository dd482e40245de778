"""`cco doctor` notices what would keep the engine from running, and says what to do."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from agents import doctor
from agents.cli.main import main


def test_everything_is_fine_here() -> None:
    failed = [check for check in doctor.examine() if check.status == "failure"]
    assert failed == []


def test_the_report_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert {"python", "packages", "package clashes", "cpu", "jit cache", "disk", "ports"} <= {
        check["name"] for check in report["checks"]
    }


def test_the_report_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert all(check.name in shown for check in doctor.examine())


@pytest.mark.parametrize(("version", "status"), [((3, 10, 14), "failure"), ((3, 11, 0), "ok"), ((3, 14, 1), "ok")])
def test_python(version: tuple[int, ...], status: str) -> None:
    assert doctor.python_check(version).status == status


def test_32_bits() -> None:
    assert doctor.python_check(bits=32).status == "failure"


def test_missing_packages() -> None:
    check = doctor.packages_check(["numpy>=2", "no-such-thing>=1", "other; extra == 'demo'"])
    assert check.status == "failure"
    assert check.found == "missing: no-such-thing"
    assert check.advice == "pip install no-such-thing"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder on the import path with somebody else's package `agents`."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("")
    return tmp_path


def test_a_foreign_package_in_front_of_ours(foreign: Path) -> None:
    check = doctor.clashes_check([str(foreign), str(doctor.ROOT)])
    assert check.status == "failure"
    assert str(foreign / "agents") in check.found
    assert "virtual environment" in check.advice


def test_a_foreign_package_behind_ours(foreign: Path) -> None:
    check = doctor.clashes_check([str(doctor.ROOT), str(foreign)])
    assert check.status == "warning"
    assert str(foreign / "agents") in check.found


def test_a_foreign_module_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "llr.py").write_text("")
    check = doctor.clashes_check([str(tmp_path), str(doctor.ROOT)])
    assert check.status == "failure"
    assert "llr.py" in check.found


def test_our_packages_alone(tmp_path: Path) -> None:
    (tmp_path / "cco").write_text("#!/bin/sh\n")  # the console script, as it stands beside the interpreter
    (tmp_path / "agents").mkdir()  # a folder of something else
    assert doctor.clashes_check([str(tmp_path), str(doctor.ROOT)]).status == "ok"


def test_openblas_held_to_an_older_processor() -> None:
    check = doctor.openblas_check({"OPENBLAS_CORETYPE": "Haswell"})
    assert check.status == "warning"
    assert "OPENBLAS_CORETYPE=Haswell" in check.found
    assert doctor.openblas_check({}).status == "ok"


def test_cache_folder(tmp_path: Path) -> None:
    assert doctor.cache_check(tmp_path / "new" / "folder").status == "ok"
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("")
    check = doctor.cache_check(tmp_path / "file" / "below")
    assert check.status == "failure"
    assert "NUMBA_CACHE_DIR" in check.advice


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert doctor.cache_check(tmp_path / "folder").status == "failure"


def test_disk(tmp_path: Path) -> None:
    assert doctor.disk_check(tmp_path, least=1).status == "ok"
    assert doctor.disk_check(tmp_path, least=1 << 62).status == "warning"
    assert doctor.disk_check(tmp_path / "missing").status == "failure"


def test_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:     100000 kB\n")
    assert doctor.memory_check(meminfo).status == "warning"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\n")
    assert doctor.memory_check(meminfo).status == "ok"
    assert doctor.memory_check(tmp_path / "missing").status == "ok"


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.ports_check({port: "Somebody"}).found == f"{port} (Somebody) something answers"
    assert doctor.ports_check({port: "Nobody"}).found == f"{port} (Nobody) free"

"""`cco status` and the age of the model in answers, from the first worker to the last."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agents.cli.main import main
from agents.health import model_age, system_mode
from agents.health.reports import FRESH
from tests.kafka.events import generated
from tests.kafka.test_states import delete_records, not_served, rebuilt, served
from tests.kafka.world import wait_for
from tests.stack.conftest import MakeStack
from tests.stack.serving import serving_here
from tests.stack.stack import Stack

Look = Callable[[], tuple[int, dict[str, Any]]]


def looking(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Look:
    """Exit code and document of `cco status --json`."""

    def look() -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(["status", "--config", str(stack.config_file), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return look


def mode_of(look: Look) -> str:
    return str(look()[1]["mode"])


def mode_of_service(url: str) -> str | None:
    """What a service tells Prometheus of the mode; None before it has looked."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=10).text)
    samples = [s for family in families for s in family.samples if s.name == "cco_system_mode"]
    assert not samples or sorted(s.value for s in samples) == [0, 0, 1], samples
    return next((s.labels["mode"] for s in samples if s.value), None)


def test_mode_reasons_and_what_to_do(
    make_stack: MakeStack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_mode, "EVERY", 1.0)
    monkeypatch.setattr(model_age, "EVERY", 1.0)
    stack = make_stack(item_partitions=2)
    look = looking(stack, capsys)
    stack.produce(generated(stack, 3_000, seed=1))
    code, told = look()
    assert (code, told["mode"], told["model_age"], told["workers"]) == (1, "lambda", None, [])
    assert "no worker has told of itself ever" in told["why"][0] and "cco worker" in told["what_to_do"][0]

    worker = stack.worker("alone")
    stack.settle()

    def well() -> Any:
        code, told = look()
        return told["mode"] == "kappa" and all(of["lag"] == 0 for of in told["partitions"]) and (code, told)

    code, told = wait_for(well, "mode kappa, and no lag")
    assert code == 0 and told["why"] == [] and told["what_to_do"] == []
    assert [of["worker"] for of in told["workers"]] == ["alone"] and told["workers"][0]["runs"]
    assert [of["name"] for of in told["partitions"]] == [
        *(f"interactions-{source}" for source in range(4)), "edits-0", "edits-1",
    ]  # fmt: skip
    assert [of["position"] for of in told["partitions"][:4]] == stack.log_ends()
    assert all(of["told"] < 15 for of in told["partitions"])
    assert all(of["staleness"] < 20 for of in told["partitions"][4:])
    assert 0 <= told["model_age"] < 30
    assert [of["alias"] for of in told["indices"]] == list(stack.names)
    assert worker.metric("cco_mode", mode="kappa") == 1
    assert main(["status", "--config", str(stack.config_file)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("mode          kappa\nmodel age  ") and "alone: kappa, process" in text, text
    assert "last rebuild  none is published" in text

    with serving_here(stack) as url:
        answer = wait_for(lambda: "model_age" in (found := stack.ask(url, {})) and found, "the age of the model")
        assert 0 <= answer["model_age"] < 30
        assert wait_for(lambda: mode_of_service(url), "the first look of the service", 30) == "kappa"
        worker.kill()
        stack.produce(generated(stack, 100, seed=5))
        told = wait_for(lambda: (found := look()[1])["mode"] != "kappa" and found, "the report to be late", FRESH)
        assert told["mode"] == "catching_up" and "records behind its log" in told["why"][0], told["why"]
        grown = wait_for(lambda: (found := stack.ask(url, {}))["model_age"] > 8 and found, "the model to grow old")
        assert grown["items"] == answer["items"]
        told = wait_for(lambda: (found := look()[1])["mode"] == "lambda" and found, "mode lambda", 30)
        assert "no worker has told of itself for" in told["why"][0], told["why"]
        assert told["model_age"] > 15
        wait_for(lambda: mode_of_service(url) == "lambda", "the metric of the service, where no worker is", 30)
        worker.start()
        wait_for(lambda: mode_of(look) == "kappa", "mode kappa again")
        wait_for(lambda: stack.ask(url, {})["model_age"] < 15, "the model to be young again")


@pytest.mark.usefixtures("nobody_lives")
def test_a_log_that_is_kept_for_less_than_an_outage_is_told_and_repaired(
    make_stack: MakeStack, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the state has not seen is deleted, and all of one state is lost: archive and seed bring the worker back."""
    stack = make_stack(share=True)
    look, archive = looking(stack, capsys), str(stack.folder / "archive")

    batches = [generated(stack, number, seed) for seed, number in ((2, 1_500), (3, 800), (4, 300), (5, 300))]
    stack.produce(batches[0])
    worker = stack.worker("alone")
    stack.settle()
    seen = stack.log_ends()
    wait_for(lambda: [of["position"] for of in look()[1]["partitions"][:4]] == seen, "its report")
    worker.kill()
    shutil.rmtree(stack.folder / "state" / "alone" / "interactions-2")
    stack.produce(batches[1])
    stack.cco("archive", "run", archive, "--once")
    archived = stack.log_ends()
    stack.produce(batches[2])
    delete_records(stack, {source: end - 5 for source, end in enumerate(archived)})
    why = " ".join(look()[1]["why"])  # with no worker alive
    assert all(f"interactions-{s} begins at offset {archived[s] - 5}, and was applied up to {seen[s]}" in why
               for s in range(4)), why  # fmt: skip
    worker.start()
    wait_for(lambda: set(not_served(worker)) == {0, 1, 2, 3}, "all of it to be refused")
    told = wait_for(
        lambda: (found := look()[1])["mode"] == "lambda" and "not served" in "".join(found["why"]) and found,
        "mode lambda", 60,
    )  # fmt: skip
    assert any("interactions-2 is not served" in reason for reason in told["why"]), told["why"]
    assert any("--archive URL --tail --publish --seed" in what for what in told["what_to_do"]), told["what_to_do"]
    wait_for(lambda: worker.metric("cco_mode", mode="lambda") == 1, "the metric")

    done = stack.cco("rebuild", "--archive", archive, "--tail", "--publish", "--seed")
    assert stack.model() == rebuilt(stack, batches[:3])  # while the worker begins
    wait_for(lambda: mode_of(look) == "kappa", "mode kappa again")
    assert served(worker) == {int(source): ("seed", offset) for source, offset in done["offsets"].items()}
    stack.produce(batches[3])
    stack.settle()
    assert stack.model() == rebuilt(stack, batches)
    told = stack.cco("audit", "--archive", archive, "--wait", "20")  # documents of users too
    assert told["ok"] and told["events"] > 2_800 and told["users"] > 100, told


def test_what_is_away_is_part_of_the_answer(make_stack: MakeStack, capsys: pytest.CaptureFixture[str]) -> None:
    stack = make_stack()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        run = ["status", "--config", str(stack.config_file), "--json"]
        assert main([*run, "--elasticsearch-urls", f"http://{nobody}"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["mode"] == "lambda" and "questions are not answered" in told["why"][0]
        assert main([*run, "--brokers", nobody]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["mode"] == "lambda" and any("Kafka at" in why for why in told["why"])
        assert len(told["indices"]) == 2

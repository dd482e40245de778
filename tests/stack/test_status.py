"""`cco status` and the age of the model in answers, from the first worker to the last."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from agents.cli.main import main
from agents.reports import FRESH
from tests.kafka.events import generated
from tests.kafka.world import wait_for
from tests.stack.conftest import MakeStack
from tests.stack.serving import serving
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


def test_mode_reasons_and_what_to_do(make_stack: MakeStack, capsys: pytest.CaptureFixture[str]) -> None:
    stack = make_stack(item_partitions=2)
    look = looking(stack, capsys)
    stack.produce(generated(stack, 3_000, seed=1))
    code, told = look()
    assert (code, told["mode"], told["model_age"], told["workers"]) == (1, "lambda", None, [])
    assert "no worker has told of itself ever" in told["why"][0] and "cco worker" in told["what_to_do"][0]

    worker = stack.worker("alone")
    stack.settle()
    wait_for(lambda: mode_of(look) == "kappa", "mode kappa", 30)
    code, told = look()
    assert code == 0 and told["why"] == [] and told["what_to_do"] == []
    assert [of["worker"] for of in told["workers"]] == ["alone"] and told["workers"][0]["runs"]
    assert [of["name"] for of in told["partitions"]] == [
        *(f"interactions-{source}" for source in range(4)), "edits-0", "edits-1",
    ]  # fmt: skip
    assert [of["position"] for of in told["partitions"][:4]] == stack.log_ends()
    assert all(of["lag"] == 0 and of["told"] < 15 for of in told["partitions"])
    assert all(of["staleness"] < 20 for of in told["partitions"][4:])
    assert 0 <= told["model_age"] < 30
    assert [of["alias"] for of in told["indices"]] == list(stack.names)
    assert worker.metric("cco_mode", mode="kappa") == 1
    assert main(["status", "--config", str(stack.config_file)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("mode          kappa\nmodel age  ") and "alone: kappa, process" in text, text
    assert "last rebuild  none is published" in text

    with serving(stack) as url:
        answer = wait_for(lambda: "model_age" in (found := stack.ask(url, {})) and found, "the age of the model")
        assert 0 <= answer["model_age"] < 30
        worker.kill()
        stack.produce(generated(stack, 100, seed=5))
        told = wait_for(lambda: (found := look()[1])["mode"] != "kappa" and found, "the report to be late", FRESH)
        assert told["mode"] == "catching_up" and "records behind its log" in told["why"][0], told["why"]
        grown = wait_for(lambda: (found := stack.ask(url, {}))["model_age"] > 16 and found, "the model to grow old")
        assert grown["items"] == answer["items"]
        told = wait_for(lambda: (found := look()[1])["mode"] == "lambda" and found, "mode lambda", 30)
        assert "no worker has told of itself for" in told["why"][0], told["why"]
        assert told["model_age"] > 15
        worker.start()
        wait_for(lambda: mode_of(look) == "kappa", "mode kappa again", 60)
        wait_for(lambda: stack.ask(url, {})["model_age"] < 15, "the model to be young again")


def test_a_state_that_is_lost_is_lambda_and_says_what_to_do(
    make_stack: MakeStack, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = make_stack()
    look = looking(stack, capsys)
    stack.produce(generated(stack, 1_000, seed=2))
    worker = stack.worker("alone")
    stack.settle()
    worker.kill()
    shutil.rmtree(stack.folder / "state" / "alone" / "interactions-2")
    end = stack.log_ends()[2]
    delete(stack, {2: end - 5})
    worker.start()
    told = wait_for(
        lambda: (found := look()[1])["mode"] == "lambda" and "not served" in "".join(found["why"]) and found,
        "mode lambda", 60,
    )  # fmt: skip
    assert any("interactions-2 is not served" in why for why in told["why"]), told["why"]
    assert any("cco rebuild" in what for what in told["what_to_do"]), told["what_to_do"]
    wait_for(lambda: worker.metric("cco_mode", mode="lambda") == 1, "the metric")


def delete(stack: Stack, before: dict[int, int]) -> None:
    """The records of interactions before these offsets."""

    async def run() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=stack.broker)
        await admin.start()
        try:
            topic = stack.settings.topic("interactions")
            await admin.delete_records({TopicPartition(topic, p): RecordsToDelete(o) for p, o in before.items()})
        finally:
            await admin.close()

    asyncio.run(run())


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

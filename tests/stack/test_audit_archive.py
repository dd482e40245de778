"""`cco audit --archive`: where the log has lost its beginning, the archive says what should be published and kept."""

from __future__ import annotations

import json

import pytest

from agents.cli.main import main
from tests.kafka.events import generated
from tests.kafka.test_states import delete_records
from tests.kafka.world import wait_for
from tests.stack.conftest import MakeStack


def test_the_archive_and_what_is_left_of_the_log(make_stack: MakeStack, capsys: pytest.CaptureFixture[str]) -> None:
    stack = make_stack(share=True)
    worker = stack.worker("alone")
    archive, config = str(stack.folder / "archive"), ["--config", str(stack.config_file)]
    stack.produce(generated(stack, 2_000, seed=1))
    assert main(["archive", "run", archive, "--once", *config]) == 0
    archived = stack.log_ends()
    stack.produce(generated(stack, 1_000, seed=2))
    stack.check_all()
    stack.wait_until_shared()
    assert worker.stop() == 0
    delete_records(stack, {source: end - 2 for source, end in enumerate(archived)})

    def audit(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["audit", *arguments, "--wait", "0", *config])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = audit()
    assert code == 2 and "rebuild from an archive instead" in said, said
    folder = str(stack.folder / "state" / "alone")
    code, said = audit("--archive", archive, "--state", folder, "--json")
    found = json.loads(said)
    assert (code, found["ok"], found["differences"]) == (0, True, []), said
    assert found["events"] > 2_900 and found["users"] > 100 and found["items"] > 50
    assert list(found["offsets"].values()) == stack.log_ends()
    assert {check["source"] for check in found["states"]} == {0, 1, 2, 3}
    assert all(check["problem"] is None and check["users"] for check in found["states"])

    with stack.client() as client:
        answer = client.search(index=stack.names.items, query={"term": {"filled.purchase": True}}, size=1)
        [hit] = answer["hits"]["hits"]
        client.update(index=stack.names.items, id=hit["_id"], doc={"rows": {"purchase": []}}, refresh=True)
    code, said = audit("--archive", archive, "--json")
    assert (code, {(d["kind"], d["key"]) for d in json.loads(said)["differences"]}) == (1, {("rows", hit["_id"])})
    code, said = audit("--archive", archive, "--repair")
    assert (code, "everything is as the log says" in said) == (0, True), said
    delete_records(stack, {0: archived[0] + 1})  # and now one is nowhere any more
    code, said = audit("--archive", archive)
    assert code == 2 and f"begins at offset {archived[0] + 1}" in said, said
    worker.start()
    wait_for(worker.is_ready, "the worker to be ready")

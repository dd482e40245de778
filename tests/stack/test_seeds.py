"""Seeds, and the documents of users and items that an earlier life has published: all of them end as the log says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from agents.cli.main import main
from cco.event_data import DELETE_USER, EventBatch
from tests.kafka.events import CONFIG, generated
from tests.kafka.test_seeds import CHANGES, reconfigured, refused, seeds_of
from tests.kafka.test_states import served
from tests.kafka.world import WorkerProcess, make_topics_anew, wait_for
from tests.stack.conftest import MakeStack
from tests.stack.serving import serving_here
from tests.stack.stack import Stack


def deletions(stack: Stack, users: list[str], time: int) -> EventBatch:
    number = len(users)
    return EventBatch(
        stack.users.intern(users), np.zeros(number, np.uint32), np.full(number, DELETE_USER, np.int16),
        np.full(number, time, np.uint32),
    )  # fmt: skip


def test_who_was_deleted_while_nobody_learned_is_emptied(make_stack: MakeStack) -> None:
    """The seed holds nothing of them, and their documents are there."""
    stack = make_stack(CONFIG, share=True)
    worker = stack.worker("alone")
    stack.produce(generated(stack, 2_000, seed=111))
    stack.check_all()
    stack.wait_until_shared()
    worker.kill()
    shutil.rmtree(stack.folder / "state")
    shutil.rmtree(stack.folder / "share")
    gone = sorted(stack.documents_of_users())[::3]
    stack.produce(deletions(stack, gone, 1_710_400_000))
    offsets = seeds_of(stack)
    worker.start()
    stack.check_all()
    assert served(worker) == {source: ("seed", offset) for source, offset in offsets.items()}
    assert not set(stack.documents_of_users()) & set(gone)


def test_another_cap_changes_every_document_though_the_seed_is_older(make_stack: MakeStack) -> None:
    """What is told at the seed's offset comes too late: there are documents of later ones, as the old cap made them."""
    stack = make_stack(CONFIG, share=True)
    worker = stack.worker("alone")
    stack.produce(generated(stack, 2_000, seed=112, users=60))
    stack.settle()
    early = dict(enumerate(stack.log_ends()))
    stack.produce(generated(stack, 300, seed=113, users=4))
    stack.check_all()
    assert worker.stop() == 0
    worker.start()  # it tells of everybody once more, as of the end
    ends = stack.log_ends()

    def told_anew() -> bool:
        with stack.client() as client:
            client.indices.refresh(index=stack.names.users)
            hits = client.search(index=stack.names.users, size=1_000)["hits"]["hits"]
        return all(hit["_source"]["position"] == ends[hit["_source"]["source"]] for hit in hits)

    wait_for(told_anew, "all documents as of the end")
    before = stack.documents_of_users()
    assert worker.stop() == 0
    reconfigured(stack, CHANGES["a cap"])
    worker.start()
    refused(worker, "was made with another configuration", "`cco rebuild --seed`")
    seeds_of(stack, early)
    wait_for(lambda: len(served(worker)) == 4, "the seeds to be taken")
    stack.check_all()
    assert served(worker) == {source: ("seed", offset) for source, offset in early.items()}
    after = stack.documents_of_users()
    assert sum(len(before[user]["history"].get("view", [])) > 7 for user in before) > 10
    assert all(len(after[user]["history"].get("view", [])) <= 7 for user in after)
    assert worker.stop() == 0


def other_item_partitions(stack: Stack, number: int) -> None:
    """As README.md says, while no worker runs."""
    text, before = stack.config_file.read_text(), f"item_partitions = {stack.item_partitions}\n"
    assert text.count(before) == 1
    stack.config_file.write_text(text.replace(before, f"item_partitions = {number}\n"))
    stack.item_partitions, stack.settings = number, stack.settings.model_copy(update={"item_partitions": number})
    make_topics_anew(stack.config, stack.settings, "edits")


@pytest.mark.usefixtures("nobody_lives")
def test_an_indicator_gives_way_to_another_and_item_partitions_to_more(
    make_stack: MakeStack, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rebuild, swap, resume: items have a fresh index; that of users stays, and has no fields for the new one yet."""
    stack = make_stack(CONFIG, share=True)
    worker = stack.worker("alone")
    stack.produce(generated(stack, 2_000, seed=114))
    stack.check_all()
    assert worker.stop() == 0
    other_item_partitions(stack, 2)
    reconfigured(stack, CONFIG.replace("[indicators.view]", '[indicators.browse]\nevents = ["view"]'))
    stack.produce(generated(stack, 500, seed=115))
    user = next(user for user, of in stack.documents_of_users().items() if len(of["history"]) == 2)
    assert main(["rebuild", "--log", "--publish", "--seed", "--json", "--config", str(stack.config_file)]) == 0
    assert json.loads(capsys.readouterr().out)["published"]["index"] == f"{stack.names.items}-000002"
    with serving_here(stack) as url:
        assert stack.ask(url, {"user": user})["items"]  # their history is as of the other configuration
    worker.start()
    stack.check_all()
    assert {state for state, _ in served(worker).values()} == {"seed"}
    assert worker.metric("cco_elasticsearch_documents_total", outcome="refused") == 0
    told = [set(document["history"]) for document in stack.documents_of_users().values()]
    assert set().union(*told) == {"purchase", "browse"}
    assert worker.stop() == 0
    rows_alone_are_changed(stack, worker)


def rows_alone_are_changed(stack: Stack, worker: WorkerProcess) -> None:
    """`top_k` and `min_llr` are of no epoch: states stay as they are, and whoever starts sends all rows, also empty."""
    epoch, before = stack.config.epoch, stack.model()
    reconfigured(stack, stack.toml.replace("top_k = 10", "top_k = 3\nmin_llr = 8.0"))
    assert stack.config.epoch == epoch
    worker.start()
    stack.check_all()
    assert {state for state, _ in served(worker).values()} == {"local"}
    after = stack.model()
    assert before.count(b'"browse":') > 1.2 * after.count(b'"browse":') > 0  # some rows have nothing left
    assert worker.stop() == 0

"""Seeds, and the documents of users and items that an earlier life has published: all of them end as the log says."""

from __future__ import annotations

import shutil

import numpy as np

from cco.event_data import DELETE_USER, EventBatch
from tests.kafka.events import CONFIG, generated
from tests.kafka.test_seeds import CHANGES, reconfigured, refused, seeds_of
from tests.kafka.test_states import served
from tests.kafka.world import wait_for
from tests.stack.conftest import MakeStack
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
    stack.check_all()
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

"""The bulk queue without a network, against Elasticsearch's documented semantics (`elastic_oracle`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_sync.bulk_queue import BulkQueue
from model_sync.bulk_types import (
    ABSENT,
    Answer,
    Fenced,
    FencedError,
    Finished,
    Limits,
    Outcome,
    Owner,
    Payload,
    Read,
    Refused,
    Request,
    Rows,
    Whole,
    Write,
    outcome_of,
)
from tests.model_sync.bulk_simulation import FAULTS, run

OWNER, NEXT = Owner(0, 1_000, 5), Owner(0, 1_000, 6)
ROWS, USERS = True, False
some_faults = st.sets(st.sampled_from(FAULTS)).map(lambda faults: tuple(sorted(faults)))
user_faults = st.sets(st.sampled_from(("blocked", "busy", "late", "lost", "owners"))).map(lambda f: tuple(sorted(f)))


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), faults=some_faults)
def test_documents_of_rows_end_as_the_highest_owner_has_them(seed: int, faults: tuple[str, ...]) -> None:
    run(seed, faults)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), faults=user_faults)
def test_documents_of_users_end_as_the_latest_version(seed: int, faults: tuple[str, ...]) -> None:
    run(seed, faults, rows=False)


def test_schedules_have_everything_in_them() -> None:
    """Without that the tests above would show nothing."""
    counts: Counter[str] = Counter()
    for seed in range(40):
        counts += run(seed, FAULTS)
    assert min(counts[name] for name in ("stored", "coalesced", "conflicts", "rejections", "fenced", "refused")) > 20
    assert run(7, FAULTS) == run(7, FAULTS)


# -- single things ----------------------------------------------------------------------------------


def queue(kind: bool = ROWS, chance: float = 1.0, **limits: float) -> BulkQueue:
    return BulkQueue(kind, replace(Limits(), **limits), lambda: chance)


def rows(*names: str, value: str = "1", owner: Owner = OWNER) -> Rows:
    return Rows.of(owner, {name: value.encode() for name in names})


def documents(keys: Sequence[str], payload: Payload) -> list[tuple[str, Payload]]:
    return [(key, payload) for key in keys]


def only(requests: Sequence[Request]) -> Request:
    [request] = requests
    return request


def write(queue: BulkQueue, now: float = 0.0) -> Write:
    request = only(queue.due(now))
    assert isinstance(request, Write)
    return request


def read_all(queue: BulkQueue, now: float = 0.0) -> None:
    """Reads find nothing."""
    for request in queue.due(now):
        assert isinstance(request, Read)
        queue.answered(request.number, [Answer(Outcome.MISSING, ABSENT)] * len(request.keys), now)


def test_a_version_is_read_once_and_then_known() -> None:
    it = queue()
    first, _ = it.put(documents("a", rows("x")), OWNER, 0.0)
    read = only(it.due(0.0))
    assert isinstance(read, Read) and read.keys == ("a",)
    assert it.answered(read.number, [Answer(Outcome.STORED, (7, 1), "", (999, 9))], 0.0) == []
    request = write(it)
    assert request.operations[0].version == (7, 1)
    assert it.answered(request.number, [Answer(Outcome.STORED, (8, 1))], 0.0) == [Finished(first)]
    it.put(documents("a", rows("x")), OWNER, 0.0)
    assert write(it).operations[0].version == (8, 1)


def test_what_waits_coalesces_field_by_field() -> None:
    it = queue()
    tickets = [
        it.put(documents("a", rows("x", "y", value="1")), OWNER, 0.0)[0],
        it.put(documents("a", rows("y", "z", value="2")), OWNER, 0.0)[0],
    ]
    read_all(it)
    request = write(it)
    payload = request.operations[0].payload
    assert isinstance(payload, Rows) and payload.fields == {"x": b"1", "y": b"2", "z": b"2"}
    last = it.put(documents("a", rows("x", value="3")), OWNER, 0.0)[0]
    assert it.due(1.0) == []  # one operation of a document at a time
    assert it.answered(request.number, [Answer(Outcome.STORED, (8, 1))], 0.0) == [*map(Finished, tickets)]
    request = write(it)
    assert it.answered(request.number, [Answer(Outcome.STORED, (9, 1))], 0.0) == [Finished(last)]
    assert it.statistics.coalesced == 1


def test_what_is_written_again_stays_below_what_came_since() -> None:
    it = queue()
    it.put(documents("a", rows("x", "y", value="1")), OWNER, 0.0)
    read_all(it)
    request = write(it)
    it.put(documents("a", rows("y", value="2")), OWNER, 0.0)
    it.answered(request.number, [Answer(Outcome.REJECTED)], 0.0)
    at = it.wake(0.0)
    assert at == pytest.approx(0.1) and it.due(0.05) == []
    payload = write(it, at).operations[0].payload
    assert isinstance(payload, Rows) and payload.fields == {"x": b"1", "y": b"2"}


def test_a_higher_owner_in_the_document_fences_all_of_the_partition_and_nothing_else() -> None:
    it = queue(batch_documents=1)
    other = Owner(1, 1, 1)
    mine = [it.put(documents(key, rows("x")), OWNER, 0.0)[0] for key in "ab"]
    it.put(documents("c", Rows.of(other, {"x": b"1"})), other, 0.0)
    first, *_ = it.due(0.0)
    assert it.answered(first.number, [Answer(Outcome.STORED, (7, 1), "", NEXT.stamp)], 0.0) == [
        Fenced(OWNER, tuple(mine), NEXT.stamp)
    ]
    with pytest.raises(FencedError, match="claim 5 is over") as caught:
        it.put(documents("d", rows("x")), OWNER, 0.0)
    assert caught.value.by == NEXT.stamp
    it.put(documents("d", rows("x", owner=NEXT)), NEXT, 0.0)
    assert it.documents == 3  # "b" is being read; "c" and "d" are to be written


def test_a_higher_owner_that_puts_takes_the_place_of_the_former() -> None:
    it = queue()
    former, _ = it.put(documents("ab", rows("x", value="1")), OWNER, 0.0)
    ticket, effects = it.put(documents("a", rows("y", value="2", owner=NEXT)), NEXT, 0.0)
    assert effects == [Fenced(OWNER, (former,), NEXT.stamp)]
    read_all(it)
    request = write(it)
    assert [(operation.key, operation.payload) for operation in request.operations] == [
        ("a", rows("y", value="2", owner=NEXT))
    ]
    assert it.answered(request.number, [Answer(Outcome.STORED, (1, 1))], 0.0) == [Finished(ticket)]
    assert it.documents == it.bytes == 0


def test_a_document_that_spoils_requests_is_found_and_the_others_are_stored() -> None:
    it = queue(USERS)
    ticket, _ = it.put([(f"u{k}", Whole(1, b"{")) for k in range(100)], None, 0.0)
    refused: list[str] = []
    stored: list[str] = []
    finished: list[Finished] = []
    requests = 0
    while it.documents:
        for request in it.due(1e9):
            assert isinstance(request, Write)
            requests += 1
            keys = [operation.key for operation in request.operations]
            if "u42" in keys:
                effects = it.failed(request.number, Answer(Outcome.REFUSED, None, "not JSON"), 1e9)
            else:
                stored += keys
                effects = it.answered(request.number, [Answer(Outcome.STORED, (1, 1))] * len(keys), 1e9)
            refused += [effect.refusal.key for effect in effects if isinstance(effect, Refused)]
            finished += [effect for effect in effects if isinstance(effect, Finished)]
    assert refused == ["u42"] and len(stored) == 99 and requests < 20 and finished == [Finished(ticket)]


def test_of_a_user_the_higher_version_counts_and_a_conflict_means_that_there_is_one() -> None:
    it = queue(USERS)
    first, _ = it.put([("u", Whole(5, b"5"))], None, 0.0)
    second, _ = it.put([("u", Whole(3, b"3"))], None, 0.0)
    request = write(it)
    assert request.operations[0].payload == Whole(5, b"5")
    effects = it.answered(request.number, [Answer(Outcome.CONFLICT)], 0.0)
    assert effects == [Finished(first), Finished(second)] and it.statistics.superseded == 1


def test_batches_by_count_and_by_bytes() -> None:
    it = queue(USERS, batch_documents=3, batch_bytes=1_000, requests=8)
    it.put([(f"u{k}", Whole(1, b"x" * size)) for k, size in enumerate((1, 1, 1, 1, 700, 5_000, 1))], None, 0.0)
    sizes = []
    while it.documents:
        for request in it.due(1.0):
            assert isinstance(request, Write)
            sizes.append(len(request.operations))
            it.answered(request.number, [Answer(Outcome.STORED, (1, 1))] * sizes[-1], 1.0)
    assert sizes == [3, 1, 1, 1, 1]  # one that is too large travels alone


def test_a_request_that_is_too_large_makes_all_later_ones_smaller() -> None:
    most = 3_000  # bytes that the server takes, about
    it = queue(USERS, batch_bytes=10_000, requests=2)
    limits = []
    for turn in range(3):
        it.put([(f"u{turn}.{k}", Whole(1, b"x" * 300)) for k in range(60)], None, 0.0)
        refusals = 0
        while it.documents:
            for request in it.due(1e9):
                assert isinstance(request, Write)
                if sum(operation.payload.size for operation in request.operations) > most:
                    refusals += 1
                    assert it.failed(request.number, Answer(Outcome.TOO_LARGE, None, "413"), 1e9) == []
                else:
                    it.answered(request.number, [Answer(Outcome.STORED, (1, 1))] * len(request.operations), 1e9)
        limits.append(refusals)
    assert 2 <= limits[0] <= 4 and limits[1:] == [0, 0]  # each half of one that was refused, once and for all
    assert it.window == 2  # it was not too busy
    assert it.statistics.stored == 180 and it.statistics.refused == 0


def test_two_requests_that_are_too_large_at_a_time_halve_the_size_once() -> None:
    it = queue(USERS, batch_bytes=10_000, requests=2)

    def sizes() -> list[int]:
        found = [request for request in it.due(1e9) if isinstance(request, Write)]
        for request in found:
            assert it.failed(request.number, Answer(Outcome.TOO_LARGE, None, "413"), 1e9) == []
        return [sum(operation.payload.size for operation in request.operations) for request in found]

    it.put([(f"u{k}", Whole(1, b"x" * 100)) for k in range(1_000)], None, 0.0)
    first, second = sizes(), sizes()
    assert len(first) == len(second) == 2
    assert all(0.8 * 10_000 < size <= 10_000 for size in first)
    assert all(0.8 * 5_000 < size <= 5_000 for size in second)


def test_one_document_that_is_too_large_is_refused_and_the_others_are_not() -> None:
    it = queue(USERS, batch_bytes=100_000)
    it.put([(f"u{k}", Whole(1, b"x" * (50_000 if k == 7 else 10))) for k in range(20)], None, 0.0)
    refused, stored = [], 0
    while it.documents:
        for request in it.due(1e9):
            assert isinstance(request, Write)
            if sum(operation.payload.size for operation in request.operations) > 20_000:
                effects = it.failed(request.number, Answer(Outcome.TOO_LARGE, None, "413"), 1e9)
                refused += [effect.refusal.key for effect in effects if isinstance(effect, Refused)]
            else:
                stored += len(request.operations)
                it.answered(request.number, [Answer(Outcome.STORED, (1, 1))] * len(request.operations), 1e9)
    assert refused == ["u7"] and stored == 19


def test_full_says_no_by_documents_by_bytes_and_by_who_waits() -> None:
    it = queue(USERS, documents=2)
    it.put([("a", Whole(1, b""))], None, 0.0)
    assert it.room
    it.put([("b", Whole(1, b""))], None, 0.0)
    assert not it.room
    it = queue(USERS, bytes=1_000)
    it.put([("a", Whole(1, b"x" * 1_000))], None, 0.0)
    assert not it.room
    it = queue(USERS, documents=2)
    for _ in range(8):
        assert it.room
        it.put([("a", Whole(1, b""))], None, 0.0)
    assert not it.room  # one document, and eight who wait for it


def test_the_window_grows_while_answers_come_soon_and_is_halved_once_a_round() -> None:
    it = queue(USERS, batch_documents=1, requests=8, documents=10_000)
    it.put([(f"u{k}", Whole(1, b"")) for k in range(1_000)], None, 0.0)

    def round_of(now: float, outcome: Outcome, latency: float) -> None:
        requests = it.due(now)
        assert len(requests) == it.window
        for request in requests:
            it.answered(request.number, [Answer(outcome, (1, 1))], now + latency)

    for k in range(14):
        round_of(10.0 * k, Outcome.STORED, 0.1)
    assert it.window == 8
    round_of(200.0, Outcome.REJECTED, 0.1)
    assert it.window == 4
    round_of(210.0, Outcome.STORED, 3.0)  # slow: too many at once
    assert it.window == 2
    round_of(215.0, Outcome.STORED, 3.0)
    assert it.window == 2  # so that it never waits for us
    for k in range(3):
        round_of(220.0 + k, Outcome.STORED, 0.1)
    assert it.window == 4


def test_while_nothing_works_one_request_tries_at_growing_intervals() -> None:
    it = queue(USERS, batch_documents=1)
    it.put([("a", Whole(1, b"")), ("b", Whole(1, b""))], None, 0.0)
    for request in it.due(0.0):
        it.failed(request.number, Answer(Outcome.UNKNOWN, None, "no node answers"), 0.0)
    now, pauses = 0.0, []
    for _ in range(12):
        assert it.trouble == "no node answers"
        at = it.wake(now)
        assert at is not None and it.due(at - 1e-6) == []
        pauses.append(at - now)
        now = at
        it.failed(write(it, now).number, Answer(Outcome.UNKNOWN, None, "no node answers"), now)
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, *[10.0] * 6])
    at = it.wake(now)
    assert at is not None
    it.answered(write(it, at).number, [Answer(Outcome.STORED, (1, 1))], at)
    assert it.trouble is None and write(it, at).operations


def test_reads_do_not_show_that_the_index_may_be_written_again() -> None:
    it = queue(slow_backoff=1.0)
    it.put(documents("ab", rows("x")), OWNER, 0.0)
    read_all(it)
    blocked = Answer(Outcome.TROUBLE, None, "read-only")
    it.answered(write(it).number, [blocked, blocked], 0.0)
    it.forget()
    assert it.trouble == "read-only" and it.due(0.9) == []
    read_all(it, 1.0)
    assert it.trouble == "read-only"
    it.answered(write(it, 1.0).number, [Answer(Outcome.STORED, (1, 1))] * 2, 1.0)
    assert it.trouble is None and it.documents == 0


def test_after_forgetting_every_version_is_read_again() -> None:
    it = queue(batch_documents=2)
    it.put(documents("abcd", rows("x")), OWNER, 0.0)
    read_all(it)
    first, _ = it.due(0.0)  # the other two are to be written
    it.forget()
    it.answered(first.number, [Answer(Outcome.STORED, (5, 1))] * 2, 0.0)
    assert it.remembered == 0
    it.put(documents("a", rows("x")), OWNER, 1.0)
    assert all(isinstance(request, Read) for request in it.due(1.0))


def test_versions_are_remembered_of_so_many_documents() -> None:
    it = queue(remembered=10)
    it.put([(f"i{k}", rows("x")) for k in range(100)], OWNER, 0.0)
    read_all(it)
    it.answered(write(it).number, [Answer(Outcome.STORED, (1, 1))] * 100, 0.0)
    assert it.remembered == 10
    it.put(documents(["i99"], rows("x")), OWNER, 0.0)
    assert write(it).operations[0].version == (1, 1)


def test_nothing_put_is_finished_at_once() -> None:
    ticket, effects = queue().put([], OWNER, 0.0)
    assert effects == [Finished(ticket)]


@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        (404, "document_missing_exception", Outcome.MISSING),
        (404, "index_not_found_exception", Outcome.TROUBLE),
        (403, "cluster_block_exception", Outcome.TROUBLE),
        (429, "cluster_block_exception", Outcome.TROUBLE),  # the disk is full
        (429, "es_rejected_execution_exception", Outcome.REJECTED),
        (400, "index_closed_exception", Outcome.TROUBLE),
        (401, "security_exception", Outcome.TROUBLE),
        (409, "version_conflict_engine_exception", Outcome.CONFLICT),
        (400, "document_parsing_exception", Outcome.REFUSED),
        (413, "", Outcome.REFUSED),
        (408, "", Outcome.UNKNOWN),
        (503, "unavailable_shards_exception", Outcome.UNKNOWN),
        (500, "", Outcome.UNKNOWN),
    ],
)
def test_what_errors_mean(status: int, kind: str, outcome: Outcome) -> None:
    assert outcome_of(status, kind) is outcome

"""The inputs of a replay with a state: logs grow, new ones follow, and whatever else has changed is refused."""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from agents.cli.inputs import Intake
from agents.engine import PUBLISH_ITEMS, Engine
from agents.engine_state import save
from agents.files.reading import read_events
from agents.files.streams import InputError
from agents.replay import replay
from agents.state.checkpoint import Checkpointer
from agents.state.errors import StateError
from agents.state.store import StateStore
from cco.config import Config, make_config
from tests.agents.states import (
    model_of,
)


def lines(first: int, last: int) -> str:
    return "".join(f"u{k % 17},i{k % 11},purchase,{1000 + k}\n" for k in range(first, last))


HEADER = "user,item,event,timestamp\n"


def run(paths: list[Path], state: Path, chunk: int = 10) -> int:
    """Replay; the model must be what a replay without a state gives. Returns how many records were read before."""
    engine, plain = Engine(), Engine()
    done = replay(engine, [str(path) for path in paths], state=state, chunk=chunk)
    whole = replay(plain, [str(path) for path in paths])
    assert (done.applied, done.records, done.accepted) == (whole.applied, whole.records, whole.accepted)
    assert model_of(engine) == model_of(plain)
    return done.resumed


def test_logs_grow_and_new_ones_follow(tmp_path: Path) -> None:
    a, b, state = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "state"
    a.write_text("")
    assert run([a], state) == 0
    a.write_text(HEADER + lines(0, 55) + "bad line\n")
    assert run([a], state) == 0
    assert run([a], state) == 56
    a.write_text(a.read_text() + lines(55, 90))
    assert run([a], state) == 56
    b.write_text(HEADER + lines(90, 100).removesuffix("\n"))  # complete, for it does not grow
    assert run([a, b], state) == 91
    assert run([a, b], state) == 101


def spoil(state: Path, paths: list[Path], change: Callable[[], object]) -> str:
    """What a replay says after the inputs were changed."""
    change()
    with pytest.raises(StateError) as caught:
        replay(Engine(), [str(path) for path in paths], state=state)
    return str(caught.value)


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    a, b, c, state = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv.gz", tmp_path / "state"
    a.write_text(HEADER + lines(0, 50))
    b.write_text(HEADER + lines(50, 60))
    run([a, b], state)
    text = a.read_text()
    assert "2 inputs, and 1 are given" in spoil(state, [a], lambda: None)
    assert "is not the file that was read before" in spoil(state, [b, a], lambda: None)
    assert "is not the file" in spoil(state, [a, b], lambda: a.write_text(text.replace("u3", "u4")))
    assert "is not the file" in spoil(state, [a, b], lambda: a.write_text(text[:-1]))
    assert "has grown since it was read to its end" in spoil(state, [a, b], lambda: a.write_text(text + "x\n"))
    a.write_text(text)
    assert run([a, b], state) == 60
    b.write_text(b.read_text() + "u1,i1,purchase,12")
    assert run([a, b], state) == 60
    assert "in the middle of a line" in spoil(state, [a, b], lambda: b.write_text(b.read_text() + "34\n"))
    c.write_bytes(gzip.compress((HEADER + lines(0, 9)).encode()))
    run([c], tmp_path / "other")
    longer = c.read_bytes() + gzip.compress(lines(9, 12).encode())
    assert "compressed files" in spoil(tmp_path / "other", [c], lambda: c.write_bytes(longer))


def test_what_cannot_be_read_again_is_refused(tmp_path: Path) -> None:
    for path in ("-", "/dev/null"):
        with pytest.raises(StateError, match="cannot be read again from the middle"):
            replay(Engine(), [path], state=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    save(Engine(), tmp_path / "saved")
    (tmp_path / "a.csv").write_text(HEADER)
    with pytest.raises(StateError, match=r"saved by Engine\.save"):
        replay(Engine(), [str(tmp_path / "a.csv")], state=tmp_path / "saved")


def test_an_input_that_breaks_off_is_committed_as_far_as_it_goes(tmp_path: Path) -> None:
    path, state = tmp_path / "a.csv.gz", tmp_path / "state"
    whole = gzip.compress((HEADER + lines(0, 500_000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is cut off"):
        replay(Engine(), [str(path)], state=state)
    readable = 0
    with pytest.raises(InputError, match="is cut off"):
        for chunk in read_events([str(path)], Engine().parser):
            readable += len(chunk.batch)
    with StateStore.open(state, Config(), read_only=True) as store:
        assert store.commit.sources[0][0] == readable > 100_000


FORGETFUL = make_config({"primary": "buy", "indicators": {"buy": {"user_cap": 1, "removed_by": ["ret"]}}})


def bought(*events: tuple[str, str]) -> str:
    """Lines that do these things for six users, so that some keep the one item and some the other."""
    return "".join(
        f'{{"user_id":"u{u}","item_id":"{item}","event_type":"{kind}","timestamp":1000}}\n'
        for u in range(6)
        for kind, item in events
    )


FIRST, REST = bought(("buy", "X")), bought(("buy", "Y"), ("ret", "X"))


def histories(paths: list[str], state: Path | None, on_chunk: Callable[[object], None] | None = None) -> list[object]:
    """What the users have after a replay; applying an event twice would show, for X is refused but once."""
    engine = Engine(FORGETFUL)
    done = replay(engine, paths, state=state, on_chunk=on_chunk, chunk=4)
    found = [engine.pipeline.history(index)["buy"] for index in range(len(engine.users))]
    return [done.applied, [[engine.items.name(item) for item, _ in entries] for entries in found]]


def test_a_log_that_was_renamed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log, state = Path("a.jsonl"), tmp_path / "state"
    log.write_text(FIRST)
    histories([str(log)], state)
    with log.open("a") as more:
        more.write(REST)
    log.rename("b.jsonl")
    expected = histories(["b.jsonl"], None)
    assert histories(["b.jsonl"], state) == expected
    assert histories(["b.jsonl"], state) == expected
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert histories(["../b.jsonl"], state) == expected


@pytest.mark.parametrize("at_record", [4, 8])
def test_a_log_that_is_deleted_or_rotated_while_it_is_read(tmp_path: Path, at_record: int) -> None:
    log, kept, state = tmp_path / "a.jsonl", tmp_path / "kept.jsonl", tmp_path / "state"
    log.write_text(FIRST + REST)
    os.link(log, kept)
    expected = histories([str(log)], None)
    passed = 0

    def rotate(chunk: object) -> None:
        nonlocal passed
        passed += 4
        if passed == at_record:
            log.unlink()
            if at_record == 8:
                log.write_text("another log\n")

    assert histories([str(log)], state, rotate) == expected
    assert histories([str(kept)], state) == expected


def test_a_failure_commits_only_what_has_its_position(tmp_path: Path) -> None:
    """The second input cannot be opened: its name is gone by then. What the first one said is not applied twice."""
    first, second, state = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "state"
    first.write_text(FIRST)
    second.write_text(REST)
    expected = histories([str(first), str(second)], None)
    with pytest.raises(InputError, match="No such file"):
        histories([str(first), str(second)], state, lambda chunk: second.unlink(missing_ok=True))
    second.write_text(REST)
    assert histories([str(first), str(second)], state) == expected


def test_gzipped_parquet_is_gone_on_with_as_any_other(tmp_path: Path) -> None:
    rows = [line.split(",") for line in lines(0, 90).splitlines()]
    columns = {name: [row[k] for row in rows] for k, name in enumerate(("user", "item", "event"))}
    pyarrow.parquet.write_table(pa.table({**columns, "timestamp": [int(row[3]) for row in rows]}), tmp_path / "a")
    a, b, state = tmp_path / "a.parquet.gz", tmp_path / "b.csv", tmp_path / "state"
    a.write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    assert run([a], state) == 0
    assert run([a], state) == 90
    b.write_text(HEADER + lines(90, 99))
    assert run([a, b], state) == 90
    assert "compressed files and Parquet" in spoil(state, [a, b], lambda: a.write_bytes(a.read_bytes() + b"\0"))


def test_what_is_published_at_the_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at the rows takes a second here, so that most of them wait for the end."""
    monkeypatch.setattr("cco.pipeline.DRAIN_ITEMS", 100)
    seconds = itertools.count()
    path, told = tmp_path / "a.csv", list[tuple[int, int]]()
    path.write_text(HEADER + "".join(f"u{k % 17},i{k},purchase,{k}\n" for k in range(1000)))
    with Engine(clock=lambda: float(next(seconds))) as engine:
        replay(engine, [str(path)], on_drain=lambda done, total: told.append((done, total)))
    most = 1000 - PUBLISH_ITEMS
    assert told == [(done, most) for done in (*range(100, most, 100), most)]


def test_what_is_refused_is_written_down_before_a_state_is_past_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at any moment may have it written twice, and never not at all."""
    data, letters = tmp_path / "events.csv", tmp_path / "letters.jsonl"
    data.write_text("user,item,event,timestamp\n" + "u,i,buy,no time\n" * 30)
    written: list[int] = []
    step = Checkpointer.step

    def stepped(self: Checkpointer, *given: Any) -> Any:
        written.append(letters.read_bytes().count(b"\n"))
        return step(self, *given)

    monkeypatch.setattr(Checkpointer, "step", stepped)
    intake = Intake(dead_letters=letters, appending=True)
    with intake.taking(lambda *told: None) as take:
        replay(Engine(), [str(data)], state=tmp_path / "state", chunk=10, on_chunk=take)
    assert written == [9, 19, 29, 30]  # of chunks of ten lines, the first of which is the header


def test_the_heaviest_do_not_depend_on_which_ids_came_first(tmp_path: Path) -> None:
    """Of as many users the first by id, also where only so many are asked for."""
    found = []
    for order in ("cab", "bca"):
        with Engine() as engine:
            data, kept = tmp_path / f"{order}.csv", [(f"u{k}", item) for item in order for k in range(2)]
            rows = [f"{user},{item},purchase,7\n" for user, item in [*kept, ("u9", "b")]]
            data.write_text("user,item,event,timestamp\n" + "".join(rows))
            replay(engine, [str(data)])
            pipeline = engine.pipeline
            found += [[(engine.items.name(i), n) for i, n in pipeline.heaviest(most)] for most in (2, 9, 0)]
    assert found == [[("b", 3), ("a", 2)], [("b", 3), ("a", 2), ("c", 2)], []] * 2

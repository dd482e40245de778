"""Metadata of items in a state: after every way of breaking off it ends as that of an engine that never stopped."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.engine import Engine
from agents.engine_state import restore, save
from agents.replay import replay
from agents.state.checkpoint import Checkpointer
from agents.state.errors import StateError
from agents.state.store import StateStore
from cco.config import Config
from tests.agents.states import keys_of, raw

ITEMS = ("a", "b", "c", "ü")
Record = dict[str, Any]


def change(event: str, item: str, **properties: Any) -> Record:
    record = {"event": event, "entityType": "item", "entityId": item, "eventTime": "2020-01-01T00:00:00Z"}
    return {**record, "properties": properties} if properties else record


def bought(user: str, item: str) -> Record:
    return {"user": user, "item": item, "event": "purchase", "timestamp": 1_500_000_000}


def known(engine: Engine, items: Iterable[str] = ITEMS) -> tuple[dict[str, Any], list[str]]:
    """Properties, and which items may be recommended."""
    engine.drain()
    return {item: engine.index.properties(item) for item in items}, sorted(
        hit.item for hit in engine.recommend(num=1000)
    )


def feed(engine: Engine, records: list[Record]) -> None:
    assert engine.ingest(records).rejected == []


def reopened(path: Path) -> tuple[Engine, int]:
    engine = Engine()
    with StateStore.open(path, Config()) as store:
        restore(store, engine)
        return engine, (store.commit.input or {"at": 0})["at"]


values = st.one_of(st.integers(-2, 2), st.booleans(), st.sampled_from(["", "x", "ü"]), st.lists(st.floats(0, 1)))
some_items = st.sampled_from(ITEMS)
records = st.one_of(
    st.builds(
        lambda item, given: change("$set", item, **given),
        some_items,
        st.dictionaries(st.sampled_from("pqr"), values, min_size=1),
    ),
    st.builds(
        lambda item, names: change("$unset", item, **dict.fromkeys(names)),
        some_items,
        st.sets(st.sampled_from("pqr"), min_size=1),
    ),
    st.builds(lambda item: change("$delete", item), some_items),
    st.builds(bought, st.sampled_from("uv"), some_items),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(records, max_size=30), st.data())
def test_metadata_survives_crashes_at_any_moment(log: list[Record], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        for _ in range(data.draw(st.integers(1, 3))):
            engine, at = reopened(path)
            with Checkpointer(StateStore.open(path, Config()), engine, 0.0, budget=0.0, full_generations=2) as writer:
                for more, wait in data.draw(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=4)):
                    feed(engine, log[at : at + more])
                    at = min(at + more, len(log))
                    writer.step(lambda at=at: {"at": at}, 0.0)  # type: ignore[misc]
                    if wait:
                        writer.complete()
            # the writer may have been in the middle of the next cut: some items as they were at the crash
            described = engine.items.names(engine.take_changed_items(everything=True))
            ahead = [item for item in described if data.draw(st.booleans())]
            with StateStore.open(path, Config()) as store:
                if store.commit.generation:
                    store.write_items([(item, engine.index.properties(item)) for item in ahead], anew=False)
        engine, at = reopened(path)
        feed(engine, log[at:])
        assert known(engine) == known(fed(log))


def fed(log: list[Record]) -> Engine:
    engine = Engine()
    feed(engine, log)
    return engine


def test_changes_after_the_last_commit_come_again_from_the_log(tmp_path: Path) -> None:
    begin = [bought("u", item) for item in ITEMS] + [change("$set", item, p=1, q=2) for item in "abc"]
    tail = [
        change("$unset", "a", p=None),
        change("$delete", "b"),
        change("$delete", "c"),
        change("$set", "c", r=[1, 2.5, True, "x"]),
        change("$unset", "ü", p=None),  # has none: stays one that may be recommended
    ]
    engine, path = fed(begin), tmp_path / "state"
    with Checkpointer(StateStore.open(path, Config()), engine, 0.0) as writer:
        writer.step(lambda: {"at": len(begin)}, 0.0)
        writer.complete()
        feed(engine, tail)
    expected = {"a": {"q": 2}, "b": None, "c": {"r": [1, 2.5, True, "x"]}, "ü": None}, ["a", "c", "ü"]
    assert known(engine) == expected
    assert known(reopened(path)[0]) == known(fed(begin))
    with StateStore.open(path, Config()) as store:  # killed in the next commit, with all of its metadata written
        changed = engine.items.names(engine.take_changed_items())
        store.write_items([(item, engine.index.properties(item)) for item in changed], anew=False)
    again, at = reopened(path)
    assert at == len(begin) and known(again) == expected
    feed(again, tail)
    assert known(again) == expected
    with Checkpointer(StateStore.open(path, Config()), again, 0.0) as writer:
        again.put_items({"new": {}})
        writer.finish(lambda: {"at": at})  # where the last commit was
    assert known(reopened(path)[0], ("new",))[0] == {"new": {}}
    assert known(reopened(path)[0])[0] == expected[0]


def test_only_what_has_changed_is_written_and_full_cuts_keep_the_rest(tmp_path: Path) -> None:
    path, engine = tmp_path / "state", Engine()
    engine.put_items({f"i{k}": {"k": k} for k in range(50)})
    with Checkpointer(StateStore.open(path, Config()), engine, 0.0, full_generations=1) as writer:
        for k in range(9):
            feed(engine, [bought(f"u{k}", "i1"), change("$set", f"i{k}", more=k)])
            assert k == 0 or engine.take_changed_items() == {engine.items.index(f"i{k}")}
            engine.put_items({f"i{k}": {"k": -k}})
            writer.step(lambda k=k: {"at": k}, 0.0)  # type: ignore[misc]
            writer.complete()
        assert writer.report.full_cuts > 2
    expected = {f"i{k}": {"k": -k if k < 9 else k} for k in range(50)}
    assert known(reopened(path)[0], expected)[0] == expected


def test_a_saved_engine_replaces_the_metadata_that_was_there(tmp_path: Path) -> None:
    first, second, path = fed([bought("u", "a"), bought("u", "b")]), fed([bought("u", "a")]), tmp_path / "state"
    first.put_items({"a": {"p": 1}, "b": {"p": 2}, "c": {}})
    first.delete_items(["b"])
    save(first, path)
    assert known(Engine.load(path)) == known(first)
    many = {f"p{k}": k for k in range(2500)}
    for at in range(0, 2500, 500):
        feed(second, [change("$set", "ü", **dict(list(many.items())[at : at + 500]))])
    save(second, path)
    loaded = Engine.load(path)
    assert known(loaded) == known(second) and loaded.index.properties("ü") == many
    assert known(loaded)[1] == ["a", "ü"]
    assert sum(key.startswith(b"p") for key in keys_of(path)) == 1
    save(loaded, tmp_path / "copy")
    assert known(Engine.load(tmp_path / "copy")) == known(second)


def test_metadata_that_is_damaged_is_noticed(tmp_path: Path) -> None:
    engine = Engine()
    engine.put_items({"a": {"p": 1}, "b": {"p": 2}})
    save(engine, tmp_path)
    a, b = (key for key in keys_of(tmp_path) if key.startswith(b"p"))
    with raw(tmp_path) as database:
        database[a] = database[b]
    with pytest.raises(StateError, match="is damaged: the metadata of item a has another checksum"):
        Engine.load(tmp_path)


def test_a_replay_keeps_the_metadata_of_its_events(tmp_path: Path) -> None:
    log, path = tmp_path / "log.jsonl", tmp_path / "state"
    first = [bought("u", "a"), bought("v", "b"), change("$set", "a", p=1), change("$set", "b", p=1)]
    more = [change("$unset", "a", p=None), change("$delete", "b"), change("$set", "c", p=3)]
    log.write_text("".join(json.dumps(record) + "\n" for record in first))
    replay(Engine(), [str(log)], state=path)
    assert known(Engine.load(path)) == known(fed(first))
    with log.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in more)
    done = replay(Engine(), [str(log)], state=path)
    assert (done.resumed, done.item_changes) == (4, 5)
    assert known(Engine.load(path)) == known(fed(first + more))


# -- the configuration ----------------------------------------------------------------------------------


def test_a_state_keeps_the_configuration_that_it_was_last_written_with(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "indicators": {"purchase": {"weight": 0.25, "top_k": 7, "min_llr": 0.5}, "view": {"removed_by": ["un"]}},
            "retention": {"sampling": "recent", "window": "30d", "source_partitions": 3},
            "priors": {"popular": "none", "hot": "1d"},
            "anti_correlations": True,
            "max_staleness": 5,
        }
    )
    save(Engine(config), tmp_path)
    assert Engine.load(tmp_path).config.model_dump() == config.model_dump()
    other = config.model_copy(update={"anti_correlations": False, "max_staleness": 6.5})
    assert Engine.load(tmp_path, other).config.model_dump() == other.model_dump()
    assert Engine.load(tmp_path).config.model_dump() == config.model_dump()
    save(Engine(other), tmp_path)
    assert Engine.load(tmp_path).config.model_dump() == other.model_dump()
    (tmp_path / "state.json.new").write_text("")  # a crash while it was being replaced
    assert Engine.load(tmp_path).config.model_dump() == other.model_dump()
    save(Engine(config), tmp_path)
    with pytest.raises(StateError, match=r"made with another configuration .*indicators\.view"):
        Engine.load(tmp_path, Config())
    text = (tmp_path / "state.json").read_text()
    (tmp_path / "state.json").write_text(text.replace('"top_k": 7', '"top_k": "seven"'))
    with pytest.raises(StateError, match=r"is damaged: the configuration in state\.json cannot be used"):
        Engine.load(tmp_path)

"""Loading an engine from a state and saving it into one: the stages, and the metadata of its items."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.state.checkpoint import Checkpointer, restore_stages, trusting
from agents.state.owner import refuse_worker
from agents.state.store import StateStore
from model_sync.metadata import MAX_PROPERTIES

if TYPE_CHECKING:
    from agents.engine import Engine

ITEMS_AT_ONCE = 1000  # restored


def restore(store: StateStore, engine: Engine) -> None:
    """Load a store's state into a new engine: what `restore_stages` does, metadata, and the item stages.

    Raises StateError if the state is damaged, or is one of a worker's.
    """
    refuse_worker(store.path, store.commit)
    restore_stages(store, engine)
    with trusting(store):
        _restore_items(engine, store.items())
    engine.take_changed_items()  # these are in the store
    engine.resync()


def _restore_items(engine: Engine, found: Iterator[tuple[str, dict[str, Any] | None]]) -> None:
    while part := list(islice(found, ITEMS_AT_ONCE)):
        engine.delete_items(item for item, properties in part if properties is None)
        rest = {item: list(properties.items()) for item, properties in part if properties is not None}
        at = 0
        while rest:  # an item may have become more, one by one, than an index takes at once
            engine.index.update_items({item: dict(listed[at : at + MAX_PROPERTIES]) for item, listed in rest.items()})
            at += MAX_PROPERTIES
            rest = {item: listed for item, listed in rest.items() if len(listed) > at}


def load(engine: Engine, path: Path) -> None:
    """Load the state in a directory into a new engine. Raises StateError."""
    with StateStore.open(path, engine.config, read_only=True) as store:
        restore(store, engine)


def save(engine: Engine, path: Path) -> None:
    """Write an engine's whole state into a directory, in place of the state that is there. Raises StateError.

    Such a state has no input position: it can be loaded, but `cco replay` cannot go on from it.
    """
    store = StateStore.open(path, engine.config)
    try:
        refuse_worker(path, store.commit)
    except BaseException:
        store.close()
        raise
    Checkpointer(store, engine).finish(lambda: None, everything=True)

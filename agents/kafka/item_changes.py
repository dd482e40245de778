"""Records of the topic `items`: changes of items' metadata, in the PredictionIO shape, key = item id.

The topic keeps every change: `$set` merges, so an item's last record alone does not say what the item is, and a
compacted topic would keep no more than that.
"""

from __future__ import annotations

import json
from typing import Any

from cco.config import Config
from cco.event_data import ItemChange
from cco.fields import FieldRules
from cco.values import BadRecord
from model_sync.metadata import change_problem


def encode_change(change: ItemChange) -> tuple[bytes, bytes]:
    """(key, value) of a change. `$unset` names properties; their values do not matter."""
    record: dict[str, Any] = {"event": f"${change.kind}", "entityType": "item", "entityId": change.item_id}
    if change.kind != "delete":
        record["properties"] = change.properties
    return change.item_id.encode(), json.dumps(record, ensure_ascii=False).encode()


class ItemRecords:
    """Reads the records. No value (a tombstone) deletes the item."""

    def __init__(self, config: Config) -> None:
        self._rules = FieldRules.of(config)

    def decode(self, key: bytes | None, value: bytes | None) -> ItemChange:
        """The change in a record. Raises BadRecord with the reason if there is none."""
        try:
            item = (key or b"").decode()
        except UnicodeDecodeError:
            raise BadRecord("the key is not UTF-8; it is the item's id", "key") from None
        found = ItemChange(item, "delete") if value is None else self._decode_value(value)
        if found.item_id != item:
            raise BadRecord(f"the key is {item[:40]!r}, and the record is about {found.item_id[:40]!r}", "key")
        problem = change_problem(found)
        if problem is not None:
            raise BadRecord(problem, "item_change")
        return found

    def _decode_value(self, value: bytes) -> ItemChange:
        try:
            record = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"not valid JSON ({error})", "json") from None
        found = self._rules.accept(record, None)
        if not isinstance(found, ItemChange):
            raise BadRecord("an interaction, not a change of an item: it belongs in another topic", "shape")
        return found

"""The event format of Apache PredictionIO, as its Universal Recommender uses it.

`event`, `entityType`, `entityId`, `targetEntityType`, `targetEntityId`, `eventTime`, `properties`: an
event of a user and a target is an interaction; `$delete` of a user deletes the user; `$set`, `$unset`
and `$delete` of an item change its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from cco.event_data import ItemChange
from cco.values import BadRecord, as_number

_KINDS: dict[object, Literal["set", "unset", "delete"]] = {"$set": "set", "$unset": "unset", "$delete": "delete"}


def from_prediction_io(record: Mapping[str, Any]) -> Mapping[str, object] | ItemChange:
    """The same record with our own names, or a change of an item. Raises BadRecord with the reason.

    Ids of interactions, event names and times are not checked here; an item's id is made text.
    """
    event, kind = record.get("event"), record.get("entityType")
    if kind == "item":
        return _item_change(record)
    if kind != "user":
        raise BadRecord(f'entityType must be "user" or "item", not {str(kind)[:40]!r}', "shape")
    if event in ("$set", "$unset"):
        raise BadRecord(f"{event} of a user: properties of users are not used", "type")
    return {
        "user_id": record.get("entityId"),
        "item_id": record.get("targetEntityId"),
        "event_type": event,
        "timestamp": record.get("eventTime"),
    }


def _item_change(record: Mapping[str, Any]) -> ItemChange:
    event = record.get("event")
    if not isinstance(event, str) or event not in _KINDS:
        raise BadRecord(f'an event of an item must be "$set", "$unset" or "$delete", not {str(event)[:40]!r}', "type")
    properties = record.get("properties")
    if properties is None:
        properties = {}
    if not isinstance(properties, Mapping):
        raise BadRecord("properties must be an object", "item_change")
    if not properties and event != "$delete":
        raise BadRecord(f"{event} of an item needs properties", "item_change")
    item = record.get("entityId")
    if isinstance(as_number(item), int):
        item = str(item)
    if not isinstance(item, str):
        raise BadRecord("entityId must be text or a whole number", "item")
    return ItemChange(item, _KINDS[event], dict(properties))

"""What workers tell of themselves, in a small index: for `cco status`, and for the age of the model in answers.

One document for each worker and each partition, the last word of whoever had it: it stays when the worker is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from elasticsearch import ApiError, AsyncElasticsearch, BadRequestError, Elasticsearch, NotFoundError

from model_sync.elastic_client import reason

MOST = 2_000  # documents that are read, the latest

_MAPPING: dict[str, Any] = {
    "dynamic": False,
    "_meta": {"cco": {"format": 1}},
    "properties": {"at": {"type": "date", "format": "epoch_millis"}, "told": {"type": "object", "enabled": False}},
}
_SETTINGS: dict[str, Any] = {"number_of_shards": 1, "auto_expand_replicas": "0-1", "refresh_interval": "1s"}

Told = Mapping[str, Any]
_encode = msgspec.json.Encoder().encode


def status_index(prefix: str) -> str:
    """The index's name."""
    return f"{prefix}status"


async def tell(client: AsyncElasticsearch, index: str, at: float, documents: Mapping[str, Told]) -> None:
    """Write by id what there is to tell as of `at` (epoch seconds); members that are left out stay as they were.

    Makes the index if it is not there. Raises what the client raises.
    """
    if not await client.indices.exists(index=index):
        try:
            await client.indices.create(index=index, mappings=_MAPPING, settings=_SETTINGS)
        except BadRequestError as error:
            if reason(error)[0] != "resource_already_exists_exception":
                raise
    lines: list[bytes] = []
    for key, told in documents.items():
        lines.append(_encode({"update": {"_id": key, "retry_on_conflict": 3}}))
        lines.append(_encode({"doc": {"at": int(1000 * at), "told": {**told, "at": at}}, "doc_as_upsert": True}))
    answer = await client.bulk(index=index, operations=cast(Any, lines))
    if answer["errors"]:
        failed = next(of for item in answer["items"] for of in item.values() if "error" in of)
        raise ApiError(str(failed["error"].get("reason")), cast(Any, answer.meta), failed)


def _search() -> dict[str, Any]:
    return {"size": MOST, "sort": [{"at": "desc"}], "track_total_hits": False, "source": ["told"]}


def _told(answer: Any) -> dict[str, Told]:
    return {hit["_id"]: hit["_source"]["told"] for hit in answer["hits"]["hits"]}


def read(client: Elasticsearch, index: str) -> dict[str, Told]:
    """By id what was told last; nothing where there is no index. Raises what the client raises."""
    try:
        return _told(client.search(index=index, **_search()))
    except NotFoundError:
        return {}


async def read_async(client: AsyncElasticsearch, index: str) -> dict[str, Told]:
    """As `read`."""
    try:
        return _told(await client.search(index=index, **_search()))
    except NotFoundError:
        return {}

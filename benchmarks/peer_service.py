"""`python -m benchmarks.peer_service serve ...`: `cco serve`, all of it, but that it searches as the peer does.

What differs from ours in its answers' times is then the search alone.
"""

from __future__ import annotations

from typing import Any

from agents.cli.main import main
from agents.serving import stack
from model_sync.contract import Hit, Query
from model_sync.elastic_reader import AsyncElasticReader

PEER = "peer"  # the index of the other way


class PeerReader(AsyncElasticReader):
    """Histories as ours, and searches by the Universal Recommender's question, as quickly encoded and decoded."""

    async def search(self, query: Query) -> list[Hit]:
        """The hits of a question for recommendations with one rule, on `category`."""
        if not query.include:  # is the service ready?
            return await super().search(query)
        [wanted] = query.include[0].values
        answer = await self._post(f"/{PEER}/_search", peer_body(query.history, str(wanted), query.exclude_items))
        return [Hit(hit["_id"], hit["_score"], hit["_source"]) for hit in answer["hits"]["hits"]]


def peer_body(history: Any, wanted: str, bought: Any) -> dict[str, Any]:
    """The Universal Recommender's question: a `term` for each id of the history, what was bought left out."""
    return {
        "query": {
            "bool": {
                "should": [{"term": {name: {"value": item}}} for name, items in history.items() for item in items],
                "minimum_should_match": 1,
                "filter": [{"term": {"category": wanted}}],
                "must_not": [{"terms": {"id": list(bought)}}],
            }
        },
        "size": 10,
        "_source": ["category", "title"],
        "track_total_hits": False,
    }


if __name__ == "__main__":
    stack.AsyncElasticReader = PeerReader  # type: ignore[misc]
    main()

"""Elasticsearch's documented semantics of single documents, in a few lines: what the bulk queue is tested against.

Conditions on _seq_no and _primary_term, `create`, partial updates that merge objects and replace arrays, no-ops,
and external versions. It reads the very lines of a bulk request, and answers as Elasticsearch does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Item = dict[str, Any]


@dataclass
class Stored:
    """A document."""

    source: dict[str, Any]
    seq_no: int
    term: int
    version: int


class Oracle:
    """One index of one node."""

    def __init__(self) -> None:
        self.documents: dict[str, Stored] = {}
        self.is_read_only = False
        self.term = 1
        self._seq_no = -1

    def get(self, key: str) -> Item:
        """As _mget does, with `_source_includes=owner`."""
        found = self.documents.get(key)
        if found is None:
            return {"found": False}
        source = {name: value for name, value in found.source.items() if name == "owner"}
        return {"found": True, "_seq_no": found.seq_no, "_primary_term": found.term, "_source": source}

    def execute(self, action: bytes, body: bytes) -> Item:
        """One operation of a bulk request."""
        [(kind, meta)] = json.loads(action).items()
        if self.is_read_only:
            return _error(403, "cluster_block_exception")
        given, key = json.loads(body), meta["_id"]
        found = self.documents.get(key)
        if "poison" in given.get("doc", given).get("rows", {}):
            return _error(400, "document_parsing_exception")
        if kind == "index" and meta.get("version_type") == "external_gte":
            if found is not None and meta["version"] < found.version:
                return _error(409, "version_conflict_engine_exception")
            return self._store(key, given, meta["version"])
        if kind == "create" and found is not None:
            return _error(409, "version_conflict_engine_exception")
        if kind != "update":
            return self._store(key, given, 1 if found is None else found.version + 1)
        if found is None:
            return _error(404, "document_missing_exception")
        condition = meta.get("if_seq_no", found.seq_no), meta.get("if_primary_term", found.term)
        if condition != (found.seq_no, found.term):
            return _error(409, "version_conflict_engine_exception")
        source = _merged(found.source, given["doc"])
        if source == found.source and given.get("detect_noop", True):
            return {"status": 200, "_seq_no": found.seq_no, "_primary_term": found.term, "result": "noop"}
        return self._store(key, source, found.version + 1)

    def change_metadata(self, key: str, value: int) -> None:
        """What others write into the same document."""
        found = self.documents.get(key)
        self._store(key, {**(found.source if found else {}), "metadata": value}, found.version + 1 if found else 1)

    def _store(self, key: str, source: dict[str, Any], version: int) -> Item:
        self._seq_no += 1
        self.documents[key] = Stored(source, self._seq_no, self.term, version)
        return {"status": 200, "_seq_no": self._seq_no, "_primary_term": self.term, "result": "updated"}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(old[name], value) if isinstance(value, dict) and isinstance(old.get(name), dict) else value
        for name, value in new.items()
    }
    return {**old, **both}


def _error(status: int, kind: str) -> Item:
    return {"status": status, "error": {"type": kind, "reason": "as asked for"}}

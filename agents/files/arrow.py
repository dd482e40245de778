"""Arrow arrays of bytes as Python's texts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def texts_of(array: pa.Array) -> list[Any]:
    """The texts of a binary or string array; bytes that are not UTF-8 stay recognisable (surrogateescape);
    None for null."""
    try:
        texts: list[Any] = array.cast(pa.large_string()).to_numpy(zero_copy_only=False).tolist()
        return texts
    except (pa.ArrowException, UnicodeDecodeError):
        raw = array.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode(errors="surrogateescape") for text in raw]

"""Data and conformance cases that are kept beside the checkout; a clean clone passes without them."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1].parent / "shared"


def shared(path: str) -> Path:
    """The file or folder `path` in the folder `shared` beside the checkout; skips the test where it is absent."""
    found = FOLDER / path
    if not found.exists():
        pytest.skip(f"needs ../shared/{path} beside the checkout, which is not there")
    return found

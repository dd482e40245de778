"""API keys: who may ask and who may write. Without any, everybody may, so the service must then be out of reach."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from model_sync.service.problems import Problem

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MIN_KEY = 16  # characters
MAX_KEY = 1_024


class KeyProblem(ValueError):
    """A key that cannot be used: one readable line that does not show it."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of MIN_KEY and more printable ASCII characters, its name for logs, and what it allows.

    Raises KeyProblem.
    """

    name: str
    key: str = field(repr=False)
    scopes: frozenset[Scope] = frozenset(SCOPES)

    def __post_init__(self) -> None:
        if not MIN_KEY <= len(self.key) <= MAX_KEY:
            raise KeyProblem(f"key {self.name}: has {len(self.key)} characters; {MIN_KEY} to {MAX_KEY} are possible")
        if not all("!" <= character <= "~" for character in self.key):
            raise KeyProblem(f"key {self.name}: may only have printable ASCII characters, and no spaces")
        if not self.scopes or not self.scopes <= set(SCOPES):
            raise KeyProblem(f"key {self.name}: scopes must be some of {', '.join(SCOPES)}")


class Keys:
    """All keys of a service. `open` is whether there are none: then everything is allowed to everybody.

    Raises KeyProblem if a name or a key is there twice.
    """

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [(hashlib.sha256(key.key.encode()).digest(), key) for key in keys]
        self.open = not keys
        for what, values in (("name", [key.name for key in keys]), ("key", [digest for digest, _ in self._keys])):
            if len(set(values)) < len(values):
                raise KeyProblem(f"a {what} is there twice among the keys {', '.join(key.name for key in keys)}")

    def find(self, presented: str | None) -> ApiKey | None:
        """The key that was presented, if it is one. Takes the same time wherever they differ: digests are compared."""
        if presented is None:
            return None
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()
        found = None
        for known, key in self._keys:
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def check(self, presented: str | None, scope: Scope) -> None:
        """Raises Problem: 401 unless the key is known, 403 unless it allows this."""
        if self.open:
            return
        key = self.find(presented)
        if key is None:
            what = "no API key is given" if presented is None else "the API key is not known"
            how = "send it as Authorization: Bearer KEY or as X-API-Key: KEY"
            raise Problem(401, "key", f"{what}; {how}", headers={"WWW-Authenticate": "Bearer"})
        if scope not in key.scopes:
            raise Problem(403, "scope", f"the API key {key.name} does not have the scope {scope}")


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The key in a request's headers; None if there is none."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    return headers.get("x-api-key")

"""`sample`: a stable share of the traffic, for canaries and experiments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field

from signals.bounds import header_name
from signals.facts import Facts
from signals.reading import Reading, of, unknown
from signals.request import Request
from signals.signal import Doubt, Params, Shared, Signal


class HeaderKey(Params):
    """A header as the key."""

    header: str = Field(min_length=1, description="Header name; case does not matter.")


class SampleParams(Params):
    """How much of the traffic, and what stays together."""

    percent: float = Field(ge=0, le=100, description="Share of the keys that match, in percent.")
    key: Literal["user", "session", "body"] | HeaderKey = Field(
        "session",
        description="What always falls on the same side: `user` (the request's `safety_identifier`, `user` or "
        "`metadata.user_id`), `session` (the conversation: named by a header or a field, else its "
        "beginning), `body` (every different body anew), or `{header: NAME}`.",
    )
    salt: str | None = Field(
        None, description="Signals with the same salt choose the same keys; the default is the signal's own name."
    )

    def doubts(self) -> Iterator[Doubt]:
        if self.percent == 0:
            yield Doubt(("percent",), "L323", "nobody is chosen: give a share above 0, or remove the signal")
        elif self.percent == 100:
            yield Doubt(("percent",), "L322", "everybody is chosen: give a share below 100, or remove the signal")
        if isinstance(self.key, HeaderKey):
            yield from header_name(self.key.header, "key", "header")


class Sample(Signal):
    """Reads whether the request's key falls into the share. A request without the key is Unknown (`no_key`)."""

    kind = "sample"
    Parameters = SampleParams
    sure = True

    def __init__(self, name: str, params: SampleParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._salt = hashlib.blake2b((name if params.salt is None else params.salt).encode(), digest_size=16).digest()
        self._limit = params.percent / 100 * 2**64
        self._key: Callable[[Request], bytes | None]
        if isinstance(params.key, HeaderKey):
            header = params.key.header.lower()
            self._key = lambda request: _encoded(request.headers.get(header))
        elif params.key == "session":
            sessions = shared.services.sessions
            self._key = lambda request: _encoded(sessions.key(request))
        else:
            self._key = _KEYS[params.key]

    def read(self, facts: Facts) -> Reading:
        key = self._key(facts.request)
        if key is None:
            return unknown("no_key")
        place = hashlib.blake2b(key, digest_size=8, key=self._salt).digest()
        return of(int.from_bytes(place) < self._limit)


def _encoded(value: Any) -> bytes | None:
    return value.encode(errors="replace") if isinstance(value, str) and value else None


def _user(request: Request) -> bytes | None:
    fields = request.fields
    metadata = fields.get("metadata")
    named = metadata.get("user_id") if isinstance(metadata, dict) else None
    return _encoded(fields.get("safety_identifier")) or _encoded(fields.get("user")) or _encoded(named)


_KEYS: dict[str, Callable[[Request], bytes | None]] = {
    "user": _user,
    "body": lambda request: request.body or None,
}

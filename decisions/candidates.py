"""What every choice among models needs: who can take a request, keys that spread requests, tokens that price them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import log

from decisions.model import Model
from signals.facts import Facts
from signals.needs import NEEDS
from signals.request import Request
from signals.text.estimate import estimate


def able(model: Model, facts: Facts) -> Model:
    """`model`, or where it lacks what the request needs the first of its fallbacks that has it, if there is one."""
    if model.capabilities is None or not model.fallback or not model.lacks(needs := facts.get(NEEDS)):
        return model
    return next((other for other in model.fallback if not other.lacks(needs)), model)


def request_key(request: Request) -> str:
    """A key of one request: Envoy's request id where there is one, so that equal bodies still spread."""
    return request.headers.get("x-request-id") or hashlib.blake2b(request.body, digest_size=16).hexdigest()


def whose(tenant: str) -> str:
    """Who asks, by the name of a tenant, which is not kept."""
    return f"tenant {digest(tenant)}"


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def fraction(*parts: str) -> float:
    """A number in (0, 1) that depends on `parts` alone, evenly spread."""
    return _share(_hash("\0".join(parts)).digest())


def _hash(text: str) -> hashlib.blake2b:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8)


def _share(digest: bytes) -> float:
    return (int.from_bytes(digest, "big") + 1) / (2**64 + 2)


def rendezvous(key: str, weighed: Sequence[tuple[Model, float]]) -> tuple[Model, float]:
    """Whom `key` goes to, and the weight, by weighted rendezvous hashing (Schindelhauer and Schomaker, SPAA 2005).

    `weighed` are models with their weights, all above 0, at least one. The share of each model is its weight; a key
    always goes to the same model, and when a model is added or removed only the keys that must move do.
    """
    chosen = weighed[0]
    least = float("inf")
    start = _hash(key + "\0")
    for one in weighed:
        hashed = start.copy()
        hashed.update(one[0].key.encode(errors="surrogatepass"))
        distance = -log(_share(hashed.digest())) / one[1]
        if distance < least:
            chosen, least = one, distance
    return chosen


def expected_tokens(facts: Facts) -> tuple[int, int]:
    """Input and output tokens by which a call is priced: as much output as it allows, or as it has input."""
    tokens = facts.get(estimate)
    wanted = facts.request.asking.most(facts.request)
    return tokens, tokens if wanted is None else wanted

"""The bytes of a call become a `Request`: its messages, and every string that a model may be shown.

Only what is needed to read signals and to route is looked at; everything else is for the upstream to judge. What has no
text that could be read here (token ids, references to what the upstream keeps, documents of other formats, images) is
named in the request's extras, so that no signal claims to have read it. The files of `extproc.apis` know each API's
fields.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from typing import Any, Final

from extproc.apis.call import CallContents, spelled
from extproc.apis.registry import BY_NAME
from extproc.apis.shape import ApiShape, Target
from extproc.bodies.jsonbody import collect, kind, load, too_deep, unambiguous
from extproc.refusal import Refusal
from signals.background import rest
from signals.request import Everything, Opaque, Request

log = logging.getLogger("pointsman.body")

_SEALED: Final[dict[str, Opaque]] = {
    "prompt_embeds": "embeddings", "inputs_embeds": "embeddings", "input_embeds": "embeddings",
    "prompt_token_ids": "token_ids", "input_ids": "token_ids", "token_ids": "token_ids",
    "chat_template": "document",  # a program, which can put words together that stand nowhere
}  # fmt: skip
"""Top-level fields that hold a prompt which cannot be read, in whatever API."""


_now: Final = time.time


def parse(
    target: Target,
    headers: Mapping[str, str],
    attributes: Mapping[str, Any],
    body: bytes,
    most: int = 200_000,
) -> Request:
    """The call in `body`, of which `target` is the path. Raises `Refusal` (400, 413) when it is not what the API takes.

    `most` is how many JSON values it may hold. Whatever goes wrong here is a refusal: what this cannot read, no guard
    has read.
    """
    try:
        fields = load(body, most)
        rest()
        return _request(target, headers, attributes, body, fields)
    except Refusal:
        raise
    except RecursionError:
        raise too_deep() from None
    except Exception as error:  # noqa: BLE001 - a defect here must not let a request past its guards
        last = traceback.extract_tb(error.__traceback__)[-1:]
        log.error("%s at %s", type(error).__name__, f"{last[0].filename}:{last[0].lineno}" if last else "?")
        raise Refusal(400, "The request body could not be read.", "unreadable_body") from None


def _request(
    target: Target, headers: Mapping[str, str], attributes: Mapping[str, Any], body: bytes, fields: dict[str, Any]
) -> Request:
    assert target.api is not None
    shape = BY_NAME[target.api]
    call = CallContents()
    if not shape.known.issuperset(fields):
        _unknown(call, shape, fields)
    model = fields.get("model")
    if model is not None and (type(model) is not str or not model):
        raise Refusal(400, f"'model' must be a non-empty string, not {kind(model)}.", "invalid_type", param="model")
    if target.model is not None:  # the path names the model, and so it goes by the path
        model = target.model
    shape.read(call, fields)
    # Backslash, as a number: that is looked for ten times as fast as bytes are.
    unambiguous(body, fields, None if 0x5C in body else _strings(fields, call))
    return Request(
        target.api, body, fields, model, tuple(call.messages), headers, attributes, _now(),
        tuple(call.extras), _Gather(shape, fields, call.blobs), target.operation, call.sealed, shape, target.framing,
    )  # fmt: skip


def _unknown(call: CallContents, shape: ApiShape, fields: dict[str, Any]) -> None:
    """Fields beside those that the API is known to have. Raises `Refusal` (400) for one that is misspelled."""
    known = shape.known
    for name in fields:
        if name not in known and name not in _SEALED:
            spelled(fields, known.union(_SEALED), "")
            break
    for name in _SEALED.keys() & fields.keys():
        if fields[name]:
            call.extra(0, "user", "", "", (_SEALED[name],))


def _strings(fields: dict[str, Any], call: CallContents) -> int | None:
    """How many strings and keys a call without escapes holds; None where more than plain messages had to be counted."""
    total = len(fields)
    for value in fields.values():
        if type(value) is str:
            total += 1
        elif type(value) is list and value is call.turns and len(value) == call.plain:
            total += call.strings
        elif type(value) is list or type(value) is dict:
            return None
    return total


class _Gather:
    """Finds every string of a call that a model may be shown, once somebody asks."""

    def __init__(self, shape: ApiShape, fields: dict[str, Any], blobs: set[int] | None) -> None:
        self._shape = shape
        self._fields = fields
        self._blobs = blobs  # strings that are encoded bytes, by their identity

    def __call__(self) -> Everything:
        strings: list[str] = []
        joined: list[str] = []
        known, hidden = self._shape.known, self._shape.hidden
        for key, value in self._fields.items():
            if key not in known and key not in _SEALED:
                strings.append(key)
            if key not in hidden:
                collect(value, strings, joined, self._blobs, self._shape.keys)
        return Everything(strings, joined)

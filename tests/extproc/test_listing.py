"""What GET /v1/models says."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from config.build import build
from config.load import parse
from decisions.engine import Engine
from extproc import listing
from extproc.apis.chat import CHAT
from extproc.apis.messages import MESSAGES
from extproc.apis.shape import ApiShape
from extproc.refusal import Refusal

POLICY = """\
version: 1
models:
  small: {name: org/small, context: 32768, max_output: 4096, aliases: [haiku, "claude-haiku-*"], capabilities: [tools]}
  large: {name: org/large, context: 131072, capabilities: [tools, vision, files, json_schema, thinking], quality: 0.9}
  plain: {name: org/plain}
default: small
"""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build(parse(POLICY))


def listed(engine: Engine, shape: ApiShape = CHAT) -> dict[str, Any]:
    data = orjson.loads(listing.models(engine, None, shape))["data"]
    return {entry["id"]: entry for entry in data}


def test_openai_s_list_says_contexts_and_capabilities(engine: Engine) -> None:
    entries = listed(engine)
    names = ["auto", "pointsman", "small", "large", "plain", "org/small", "haiku", "org/large", "org/plain"]
    assert list(entries) == names
    about = {"object": "model", "created": 0, "owned_by": "pointsman"}
    small = {
        **about,
        "context_length": 32768,
        "max_model_len": 32768,
        "max_output_tokens": 4096,
        "capabilities": ["tools"],
    }
    for name in ("small", "org/small", "haiku"):
        assert entries[name] == {"id": name, **small}
    assert entries["large"]["quality"] == 0.9
    assert entries["plain"] == {"id": "plain", **about}
    # A request for routing may go to any model: to the largest context, and to one that does not say what it lacks.
    assert entries["auto"]["context_length"] == 131072
    assert "capabilities" not in entries["auto"]


def test_auto_can_what_some_model_can() -> None:
    policy = POLICY.replace("  plain: {name: org/plain}\n", "")
    entries = listed(build(parse(policy)))
    assert entries["auto"]["capabilities"] == ["files", "json_schema", "thinking", "tools", "vision"]


def test_anthropic_s_list_says_them_in_its_fields(engine: Engine) -> None:
    answer = orjson.loads(listing.models(engine, None, MESSAGES))
    assert (answer["first_id"], answer["last_id"], answer["has_more"]) == ("auto", "org/plain", False)
    entries = listed(engine, MESSAGES)
    assert (entries["small"]["max_input_tokens"], entries["small"]["max_tokens"]) == (32768, 4096)
    assert entries["large"]["capabilities"]["image_input"] == {"supported": True}
    assert entries["small"]["capabilities"]["image_input"] == {"supported": False}
    assert entries["large"]["capabilities"]["thinking"]["types"]["enabled"] == {"supported": True}
    assert entries["plain"]["capabilities"] is None
    assert entries["plain"]["max_input_tokens"] is None


def test_one_model_is_asked_for_by_every_name_that_it_has(engine: Engine) -> None:
    for name in ("small", "org/small", "haiku", "claude-haiku-4-5-20251001"):
        one = orjson.loads(listing.models(engine, name, CHAT))
        assert (one["id"], one["context_length"]) == (name, 32768)
    assert orjson.loads(listing.models(engine, "auto", MESSAGES))["type"] == "model"
    with pytest.raises(Refusal) as caught:
        listing.models(engine, "x" * 1000, CHAT)
    assert caught.value.status == 404
    assert len(caught.value.text) < 400

"""A chain of stored responses is one session; an answer is only looked at where somebody will ask for that."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from config.build import build
from config.load import load
from decisions.engine import Engine
from extproc.chains import LOOKED_AT, IdFinder
from signals.reading import Unavailable
from signals.state.store import Memory
from tests.extproc.envoy import Envoy, Service
from tests.linear import assert_linear
from tests.proto.oracle import ext_proc

STICKY = """
version: 1
models: {small: {name: m-small}, large: {name: m-large}}
default: small
signals: {code: {keyword: {any: [write code]}}}
decisions: [{name: code, when: code, route: large, sticky: session}]
"""


def engine(folder: Path, policy: str = STICKY) -> Engine:
    path = folder / "policy.yaml"
    path.write_text(policy)
    return build(load(path))


async def call(service: Service, answer: list[bytes], path: str = "/v1/responses", **fields: Any) -> tuple[str, bool]:
    """One call whose answer comes in these pieces: its model, and whether Envoy was asked to show the answer."""
    body = orjson.dumps({"model": "auto", "input": "hi", "messages": [{"role": "user", "content": "hi"}], **fields})
    envoy = Envoy(service)
    envoy.request(body, path)
    await envoy.settled()
    mutation = envoy.sent[-1].request_body.response.body_mutation
    [headers] = envoy.response()
    watched = headers.mode_override is not None and int(headers.mode_override.response_body_mode) == 1  # STREAMED
    if watched:
        for number, piece in enumerate(answer):
            end = number == len(answer) - 1
            [echo] = envoy.say(response_body=ext_proc.HttpBody(body=piece, end_of_stream=end))
            assert echo.response_body.response is None or echo.response_body.response.body_mutation is None
    else:
        assert envoy.finished == (0, "")
    envoy.exchange.closed()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return orjson.loads(mutation.body)["model"], watched


WHOLE = b'{"id": "resp_1", "object": "response", "output": []}'
EVENTS = [b'event: response.created\ndata: {"type":"response.created","response":{"id":"re', b'sp_1","object":"respon']


@pytest.mark.parametrize("answer", [[WHOLE], EVENTS])
async def test_a_chain_keeps_its_decision(tmp_path: Path, answer: list[bytes]) -> None:
    service = Service(engine(tmp_path))
    assert await call(service, answer, input="write code") == ("m-large", True)
    later = [piece.replace(b"sp_1", b"sp_2") for piece in answer]
    assert await call(service, later, input="and?", previous_response_id="resp_1") == ("m-large", True)
    assert (await call(service, later, input="and?", previous_response_id="resp_2"))[0] == "m-large"
    assert (await call(service, later, input="and?", previous_response_id="resp_3"))[0] == "m-small"
    assert service.failures == []


async def test_a_thread_keeps_its_decision(tmp_path: Path) -> None:
    """Anthropic's, which the upstream holds: each call names but the answer before it."""
    service = Service(engine(tmp_path))

    def turn(text: str, before: str | None) -> dict[str, Any]:
        thread = {"type": "create"} if before is None else {"type": "continue", "previous_message_id": before}
        return {"max_tokens": 9, "messages": [{"role": "user", "content": text}], "thread": thread}

    first = [b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1"']
    assert await call(service, first, "/v1/messages", **turn("write code", None)) == ("m-large", True)
    second = [b'{"id": "msg_2", "type": "message"}']
    assert await call(service, second, "/v1/messages", **turn("and?", "msg_1")) == ("m-large", True)
    assert (await call(service, second, "/v1/messages", **turn("and?", "msg_2")))[0] == "m-large"
    assert (await call(service, second, "/v1/messages", **turn("and?", "msg_3")))[0] == "m-small"
    assert not (await call(service, [], "/v1/messages", **(turn("hi", None) | {"thread": None})))[1]


async def test_what_names_a_session_counts_before_the_chain(tmp_path: Path) -> None:
    service = Service(engine(tmp_path))
    await call(service, [WHOLE], input="write code")
    assert (await call(service, [WHOLE], previous_response_id="resp_1"))[0] == "m-large"
    assert (await call(service, [WHOLE], previous_response_id="resp_1", prompt_cache_key="other"))[0] == "m-small"


async def test_a_long_call_is_in_its_chain_too(tmp_path: Path) -> None:
    service = Service(engine(tmp_path))
    await call(service, [WHOLE], input="write code", instructions="x " * 40_000)
    assert (await call(service, [WHOLE], previous_response_id="resp_1"))[0] == "m-large"


async def test_an_answer_that_is_not_kept_counts_for_the_chain_it_goes_on_from(tmp_path: Path) -> None:
    service = Service(engine(tmp_path))
    await call(service, [WHOLE], input="write code")
    envoy = Envoy(service)
    body = {"model": "auto", "input": "and?", "previous_response_id": "resp_1"}
    envoy.request(orjson.dumps({**body, "store": False}), "/v1/responses")
    await envoy.settled()
    request = envoy.exchange._request
    assert request is not None
    assert (request.session != "", request.stored) == (True, False)
    assert service.engine.sessions.key(request) == request.session
    envoy.exchange.closed()


async def test_the_first_to_have_a_response_keeps_it(tmp_path: Path) -> None:
    service = Service(engine(tmp_path))
    await call(service, [WHOLE], input="write code")
    await call(service, [WHOLE], input="something else")
    assert (await call(service, [WHOLE], previous_response_id="resp_1"))[0] == "m-large"


@pytest.mark.parametrize(
    ("fields", "path"),
    [({"store": False}, "/v1/responses"), ({}, "/v1/chat/completions"), ({}, "/v1/responses/input_tokens")],
)
async def test_an_answer_that_nobody_goes_on_from_is_not_looked_at(
    tmp_path: Path, fields: dict[str, Any], path: str
) -> None:
    assert not (await call(Service(engine(tmp_path)), [], path, **fields))[1]


async def test_a_policy_that_keeps_nothing_of_a_session_looks_at_no_answer(tmp_path: Path) -> None:
    assert not (await call(Service(engine(tmp_path, STICKY.replace(", sticky: session", ""))), []))[1]


async def test_a_store_that_is_away_makes_a_session_of_its_own(tmp_path: Path) -> None:
    class Away(Memory):
        async def text(self, key: str) -> str | None:
            raise Unavailable("store_down")

        async def pin(self, key: str, value: str, ttl: float) -> str:
            raise Unavailable("store_down")

    policy = engine(tmp_path)
    policy.shared.services = replace(policy.shared.services, store=Away())
    service = Service(policy)
    assert (await call(service, [WHOLE], input="write code"))[0] == "m-large"
    assert (await call(service, [WHOLE], previous_response_id="resp_1"))[0] == "m-small"
    assert service.failures == []


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([b'{"id":"resp_a"}'], "resp_a"),
        ([b'{"id" : "resp-b", "previous_response_id":"resp_a"}'], "resp-b"),
        ([b'{"previous_response_id":"resp_a","id":"resp_b"}'], "resp_b"),
        ([bytes([byte]) for byte in b'{"object":"response","id":"resp_c"}'], "resp_c"),
        ([b'{"output":[{"id":"msg_1","text":"\\"id\\":\\"resp_x\\""}]}'], "resp_z"),
        ([b'{"error":{"message":"no"}}'], "resp_z"),
        ([b" " * LOOKED_AT, b'{"id":"resp_d"}'], None),
        ([b'{"metadata":{"id":"resp_x"},"id":"resp_e"}'], "resp_e"),
        ([b'{"tools":[{"id":"resp_x"},[{"id":"resp_x"}]],"a":"\\\\","response":{"x":{"id":"resp_x"}}}'], "resp_z"),
        ([b'{"id":{"id":"resp_x"},"x":["id","resp_x"],"id":"msg_1","y":"id","resp_x":"resp_x"}'], "resp_z"),
        ([b'data: {"response":{"metadata":{"id":"resp_x"},"id":"re', b'sp_f"}}'], "resp_f"),
        ([b'data: {"item":{"id":"resp_x"}}\n\ndata: {"response":{"id":"resp_g"}}'], "resp_g"),
        ([b'[{"id":"resp_x"}]', b"}}]]"], "resp_z"),
    ],
)
def test_the_id_of_an_answer(pieces: list[bytes], found: str | None) -> None:
    head = IdFinder("session")
    ids = [one for piece in [*pieces, b'{"id":"resp_z"}'] if (one := head.take(piece)) is not None]
    assert ids == ([] if found is None else [found])


@pytest.mark.parametrize("unit", [b'"id":"resp_', b'"id" : ', b'"id"' + b" " * 100, b"x", b'\\"', b"{", b'{"a":'])
def test_looking_for_it_is_linear(unit: bytes) -> None:
    def look(text: bytes) -> None:
        head = IdFinder("session")
        for at in range(0, len(text), 10):
            head.take(text[at : at + 10])

    assert_linear(lambda size: unit * (size // len(unit)), look)

"""What a client sees: eligibility, the bytes of an answer, and the same over HTTP with the OpenAI SDK."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from stepwise.answer import Steps, ineligible
from stepwise.strategies.glimpse import Glimpse
from tests.stepwise.fakes import FakeModel, Fault, Pair, answer, pair, served, text_of, writer
from upstream.writer import Call, Charge

SMALL = ["one and one is two", "two ✗ and two is five", "three is fine"]
LARGE = ["ONE and one is two", "TWO and two is four", "THREE is fine"]
MIXED = "one and one is two\n\nTWO and two is four\n\nthree is fine"
ASK: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "?"}]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"n": 1, "stop": None, "tools": [], "response_format": {"type": "text"}, "logprobs": True}, None),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"guided_regex": "a+"}, "response_format"),
        ({"stop": ["\n"]}, "stop"),
        ({"stop": "x"}, "stop"),
        ({"messages": [*ASK["messages"], {"role": "assistant", "content": "Well,"}]}, "continuation"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"max_tokens": "many"}, "malformed"),
        ({"top_logprobs": 2.5}, "malformed"),
        ({"stream_options": [1]}, "malformed"),
        ({"messages": []}, "not_chat"),
        ({"messages": "hello"}, "not_chat"),
        ({"messages": ["hello"]}, "not_chat"),
    ],
)
def test_only_plain_chat_completions_are_eligible(changes: dict[str, Any], reason: str | None) -> None:
    assert ineligible({**ASK, **changes}, {}) == reason


def test_second_passes_are_not_eligible() -> None:
    assert ineligible({"prompt": "x"}, {}) == "not_chat"
    assert ineligible(ASK, {"x-pointsman-hop": "1"}) == "hop"


async def test_the_head_says_who_answers() -> None:
    async with pair(SMALL, LARGE) as both:
        async with await answer(both.stepwise, {**ASK, "stream": True}, {}) as reply:
            streamed = reply
            [_ async for _ in reply.body]
        whole = await answer(both.stepwise, ASK, {})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert (streamed.headers["x-pointsman-model"], streamed.headers["x-pointsman-stepwise"]) == (
        "small+large",
        "marked",
    )
    assert whole.headers["content-type"] == "application/json"
    assert (whole.headers["x-pointsman-redos"], whole.headers["x-pointsman-steps"]) == ("1", "3")


async def test_events_have_the_shape_of_openai_s() -> None:
    async with pair(SMALL, LARGE) as both:
        _, events = await both.ask()
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in event["choices"][0]["delta"] for event in events[1:-1])
    assert [model for model, _ in itertools.groupby(event["model"] for event in events[:-2])] == [
        "tiny",
        "huge",
        "tiny",
    ]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 2) + ["stop"]
    assert events[-1]["choices"] == []


async def test_usage_comes_in_a_stream_only_when_it_was_asked_for() -> None:
    async with pair(SMALL, LARGE) as both:
        _, events = await both.ask(stream_options={})
    assert not [event for event in events if "usage" in event]


async def test_chosen_headers_go_on_to_the_models_and_others_do_not() -> None:
    async with pair(SMALL, LARGE) as both:
        headers = {
            "authorization": "Bearer k",
            "traceparent": "00-1-2-01",
            "cookie": "secret",
            "x-pointsman-route": "x",
        }
        async with await answer(both.stepwise, ASK, headers):
            pass
        for head in (*both.small.heads, *both.large.heads):
            assert (head["authorization"], head["traceparent"], head["x-pointsman-hop"]) == (
                "Bearer k",
                "00-1-2-01",
                "1",
            )
            assert "cookie" not in head
            assert "x-pointsman-route" not in head


async def test_an_upstream_that_is_unworkable_leaves_the_large_model_alone() -> None:
    async with pair(SMALL, FakeModel("huge", writer(LARGE), modes=frozenset()), start=False) as both:
        _, events = await both.ask()
        assert text_of(events) == "\n\n".join(LARGE)
        assert "cannot continue a prefix" in str(both.stepwise.problem)
        assert both.stepwise.metrics.safe_side["unworkable"] == 1


async def test_counters_have_the_names_of_the_documentation() -> None:
    async with pair(SMALL, LARGE) as both:
        await both.ask()
        samples = {(sample.name, *sample.labels.values()): sample.value for sample in both.stepwise.metrics.samples()}
    assert samples["pointsman_stepwise_steps_total", "small", "keep"] == 2
    assert samples["pointsman_stepwise_steps_total", "small", "rejected"] == 1
    assert samples["pointsman_stepwise_steps_total", "large", "redo"] == 1
    assert samples["pointsman_stepwise_requests_total", "small"] == 2
    assert samples["pointsman_stepwise_answers_total", "complete"] == 1


# --- over HTTP -------------------------------------------------------------------------------------------------------


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="k", max_retries=0, default_headers={"x-pointsman-decision": "math"}
    )


async def test_the_openai_sdk_reads_a_stream_and_a_whole_answer() -> None:
    async with pair(SMALL, LARGE) as both, served({"math": both.stepwise}) as url, client(url) as sdk:
        stream = await sdk.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": "?"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        whole = await sdk.chat.completions.create(model="auto", messages=[{"role": "user", "content": "?"}])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == MIXED
    assert whole.choices[0].message.content == MIXED
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.model_extra == whole.usage.model_extra
    assert [step["model"] for step in whole.usage.model_extra["pointsman"]["steps"]] == ["small", "large", "small"]


async def test_the_openai_sdk_sees_proper_errors() -> None:
    small = FakeModel("tiny", writer(LARGE), faults={1: Fault("kill", 8)})
    large = FakeModel("huge", writer(LARGE), faults={-2: Fault("kill", 2)})
    async with pair(small, large) as both, served({"math": both.stepwise}) as url, client(url) as sdk:
        small.faults[0] = Fault("status", status=500)
        large.faults[0] = Fault("status", status=503)
        with pytest.raises(openai.InternalServerError, match="Neither model could answer"):
            await sdk.chat.completions.create(model="auto", messages=[{"role": "user", "content": "?"}])
        stream = await sdk.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "?"}], stream=True
        )
        with pytest.raises(openai.APIError, match="Neither model could answer"):
            [chunk async for chunk in stream]


async def test_what_cannot_be_answered_is_refused_with_the_reason() -> None:
    async with (
        pair(SMALL, LARGE) as both,
        served({"math": both.stepwise}, max_body=100_000) as url,
        aiohttp.ClientSession() as http,
    ):

        async def post(data: bytes, **headers: str) -> tuple[int, str, str]:
            sent = {"x-pointsman-decision": "math"} | {name.replace("_", "-"): value for name, value in headers.items()}
            async with http.post(f"{url}/v1/chat/completions", data=data, headers=sent) as reply:
                assert reply.content_type == "application/json"
                error = (await reply.json())["error"]
                assert error["type"] == ("server_error" if reply.status >= 500 else "invalid_request_error")
                return reply.status, error["code"], error["message"]

        good = json.dumps(ASK).encode()
        assert (await post(good, x_pointsman_hop="1"))[:2] == (508, "second_pass")
        said = "There is no decision 'poetry' that is answered here."
        assert await post(good, x_pointsman_decision="poetry") == (404, "unknown_decision", said)
        said = "There is no header x-pointsman-decision."
        assert await post(good, x_pointsman_decision="") == (404, "unknown_decision", said)
        assert await post(b"{") == (400, "invalid_json", "The request body is not valid JSON.")
        assert await post(b"[]") == (400, "invalid_type", "The request body must be a JSON object.")
        said = "This request cannot be answered as its decision says (n)."
        assert await post(json.dumps({**ASK, "n": 2}).encode()) == (400, "ineligible", said)
        assert (await post(b" " * 200_000))[:2] == (413, "too_large")
        async with http.post(f"{url}/v1/nothing", data=good, headers={"x-pointsman-decision": "math"}) as reply:
            assert reply.status == 404
        async with http.get(f"{url}/healthz") as reply:
            assert reply.status == 200
        assert both.stepwise.metrics.ineligible["n"] == 1
        assert not both.small.requests


async def test_a_client_that_hangs_up_stops_the_models() -> None:
    small = FakeModel("tiny", writer(["word " * 400]), delay=0.005)
    async with pair(small, LARGE) as both, served({"math": both.stepwise}) as url:
        async with aiohttp.ClientSession() as http:
            headers = {"x-pointsman-decision": "math"}
            reply = await http.post(f"{url}/v1/chat/completions", json={**ASK, "stream": True}, headers=headers)
            while small.sent < 5:  # noqa: ASYNC110 - the server has no event to wait for
                await asyncio.sleep(0.005)
            reply.close()
        await both.quiet()
        assert small.sent < 200
        assert both.stepwise.metrics.answers["cancelled"] == 1


async def test_envoy_s_timeout_is_the_answer_s_deadline() -> None:
    small = FakeModel("tiny", writer(LARGE), faults={-2: Fault("hang", 8)})
    async with pair(small, LARGE) as both, served({"math": both.stepwise}) as url, aiohttp.ClientSession() as http:
        headers = {"x-pointsman-decision": "math", "x-envoy-expected-rq-timeout-ms": "300"}
        async with http.post(f"{url}/v1/chat/completions", json=ASK, headers=headers) as reply:
            assert reply.status == 504


async def test_it_listens_on_a_unix_socket_too(tmp_path: Path) -> None:
    async with pair(SMALL, LARGE) as both, served({"math": both.stepwise}, f"unix:{tmp_path}/s"):
        connector = aiohttp.UnixConnector(f"{tmp_path}/s")
        async with aiohttp.ClientSession(connector=connector) as http:
            async with http.get("http://x/healthz") as reply:
                assert await reply.text() == "ok\n"
            headers = {"x-pointsman-decision": "math", "x-pointsman-difficulty": "high"}
            async with http.post("http://x/v1/chat/completions", json=ASK, headers=headers) as reply:
                assert (await reply.json())["choices"][0]["message"]["content"] == MIXED


async def test_prefixes_of_the_path_and_long_headers_are_as_welcome_as_to_envoy() -> None:
    async with pair(SMALL, LARGE) as both, served({"math": both.stepwise}) as url, aiohttp.ClientSession() as http:
        headers = {"x-pointsman-decision": "math", "cookie": "c" * 50_000}
        target = f"{url}/openai//v1/chat/completions/?api-version=1"
        async with http.post(target, json=ASK, headers=headers) as reply:
            assert (await reply.json())["choices"][0]["message"]["content"] == MIXED


async def test_a_proxy_reads_the_usage_that_the_client_did_not_ask_for() -> None:
    async with pair(SMALL, LARGE) as both, served({"math": both.stepwise}) as url:
        async with aiohttp.ClientSession(headers={"x-pointsman-decision": "math"}) as http:
            async with http.post(f"{url}/v1/chat/completions", json={**ASK, "stream": True}) as reply:
                events = (await reply.text()).strip().split("\n\n")
            asked = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
            async with http.post(f"{url}/v1/chat/completions", json=asked) as reply:
                shown = await reply.text()
        async with client(url) as sdk:
            stream = await sdk.chat.completions.create(model="auto", messages=ASK["messages"], stream=True)
            chunks = [chunk async for chunk in stream]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix(": "))["usage"]["pointsman"]["cost"] > 0
    assert "\n: " not in shown
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == MIXED
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fate", ["complete", "failed", "cancelled"])
async def test_whoever_pays_is_told_the_cost_once_whatever_came_of_the_answer(stream: bool, fate: str) -> None:
    costs: list[float] = []
    small, large = FakeModel("tiny", writer(SMALL)), FakeModel("huge", writer(LARGE))
    async with pair(small, large) as both:
        if fate == "failed":
            large.faults[0] = Fault("kill", 1)
            small.faults[1] = Fault("kill", 1)
        if fate == "cancelled":
            large.faults[0] = Fault("hang", 1)
        asked = asyncio.ensure_future(_read(both, {**ASK, "stream": stream}, lambda bill: costs.append(bill.money)))
        if fate == "cancelled":
            while not (large.requests and large.sent):  # noqa: ASYNC110 - the server has no event to wait for
                await asyncio.sleep(0.005)
            asked.cancel()
        await asyncio.wait([asked])
        assert both.stepwise.metrics.answers[fate] == 1
        written = sum(both.stepwise.metrics.tokens.values())
    (cost,) = costs
    assert cost > 2 * written / 1e6 > 0  # two a million written tokens, the discarded too, and the prompts


async def _read(both: Pair, body: dict[str, Any], charge: Charge) -> bytes:
    async with await answer(both.stepwise, body, {}, charge=charge) as reply:
        return b"".join([part async for part in reply.body])


async def test_a_model_that_does_not_work_is_said_once_and_so_is_its_return(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logged() -> list[tuple[str, object]]:
        return [(record.message, vars(record).get("why")) for record in caplog.records]

    caplog.set_level("INFO", "pointsman.stepwise")
    async with pair(SMALL, FakeModel("huge", writer(LARGE), streams=False), start=False) as both:
        writes = Steps(both.stepwise)
        await writes.start()
        why = "huge sent application/json, not text/event-stream: its server does not stream its answers"
        assert logged() == [("stepwise_model_down", why)]
        assert str(writes.problem) == f"large does not work: {why}"
        status, said = await both.ask(stream=False)  # the large one alone, and then the small one in its place
        assert (status, said["choices"][0]["message"]["content"]) == (200, "\n\n".join(SMALL))
        assert len(logged()) == 1
        both.large.streams = True
        monkeypatch.setattr("stepwise.asking.ready._RETRY", 0.0)
        await both.ask()
        assert logged()[1:] == [("stepwise_model_up", None)]
        assert writes.problem is None
        both.small.faults[-2] = both.large.faults[-2] = Fault("status", status=500)
        status, said = await both.ask()
        assert (status, said["error"]["message"]) == (
            502, "Neither model could answer: small answered 500; large answered 500.",
        )  # fmt: skip
        assert logged()[2:] == [
            ("stepwise_model_down", "tiny answered 500"),
            ("stepwise_model_down", "huge answered 500"),
        ]


async def test_a_strategy_that_cannot_work_is_logged_when_it_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    small = FakeModel("tiny", writer(SMALL), top=-1)
    async with pair(small, LARGE, Glimpse(0.5), start=False) as both:
        writes = Steps(both.stepwise)
        await writes.start()
        assert [record.message for record in caplog.records] == ["stepwise_unworkable"]
        assert str(writes.problem).endswith(
            "small gives no log probabilities: switch them on at the server, or use strategy: verify; until then large "
            "alone answers"
        )
        async with await writes.answer(Call(ASK, {})):
            pass
        assert len(caplog.records) == 1

"""Answers of a panel in each API, read by the official SDKs."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from tests.panel.fakes import says, table
from tests.stepwise.fakes import Fault, served

TEXT = "it is four"
BLOCK = {"cascade": ["small", "large"], "until": {"sure": 0.9}}
HEADERS = {"x-pointsman-decision": "ask"}


def models(**more: Any) -> list[Any]:
    return [says("small", TEXT, **more), says("large", "IT IS FOUR")]


async def test_chat() -> None:
    ask: Any = {"model": "auto", "messages": [{"role": "user", "content": "?"}]}
    async with (
        table(models(), BLOCK) as made,
        served({"ask": made.panel}) as base,
        openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", default_headers=HEADERS) as sdk,
    ):
        whole = await sdk.chat.completions.create(**ask)
        chunks = [chunk async for chunk in await sdk.chat.completions.create(**ask, stream=True)]
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (TEXT, "stop")
    assert whole.usage.model_extra["pointsman"]["panel"] == "cascade"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize(("finish", "status"), [("stop", "completed"), ("length", "incomplete")])
async def test_responses(finish: str, status: str) -> None:
    block = {**BLOCK, "cascade": ["large", "small"]}
    async with table(models(finish=finish), block) as made, served({"ask": made.panel}) as base:
        made.models["large"].top = -1
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", default_headers=HEADERS) as sdk:
            turns: Any = [{"role": "user", "content": [{"type": "input_text", "text": "?"}]}]
            ask: Any = {"model": "auto", "instructions": "Be brief.", "input": turns, "max_output_tokens": 90}
            whole = await sdk.responses.create(**ask)
            async with sdk.responses.stream(**ask) as stream:
                deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
                final = await stream.get_final_response() if finish == "stop" else None
    assert (whole.output_text, whole.status, whole.usage.output_tokens > 0) == (TEXT, status, True)
    assert "".join(deltas) == TEXT
    if final is not None:
        assert (final.output_text, final.status) == (TEXT, "completed")
    (asked, *_) = made.models["small"].requests
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    assert asked["max_completion_tokens"] == 90


@pytest.mark.parametrize(("finish", "reason"), [("stop", "end_turn"), ("length", "max_tokens")])
async def test_messages(finish: str, reason: str) -> None:
    block = {**BLOCK, "cascade": ["large", "small"], "heartbeat": 0.01}
    async with table(models(finish=finish, delay=0.02), block) as made, served({"ask": made.panel}) as base:
        made.models["large"].top = -1
        async with anthropic.AsyncAnthropic(base_url=base, api_key="k", default_headers=HEADERS) as sdk:
            turns: Any = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
            ask: Any = {"model": "auto", "max_tokens": 90, "system": "Be brief.", "messages": turns}
            whole = await sdk.messages.create(**ask, stop_sequences=["zzz"])
            async with sdk.messages.stream(**ask) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                final = await stream.get_final_message()
    assert (whole.content[0].text, whole.stop_reason, whole.usage.output_tokens) == (TEXT, reason, 6)
    assert (text, final.stop_reason, final.usage.output_tokens) == (TEXT, reason, 6)
    asked, _ = made.models["small"].requests
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    assert (asked["max_tokens"], asked["stop"]) == (90, ["zzz"])


async def test_errors_are_in_the_client_s_api() -> None:
    async with table(models(), BLOCK) as made, served({"ask": made.panel}) as base:
        for model in made.models.values():
            model.faults[-2] = Fault("status", status=500)
        async with anthropic.AsyncAnthropic(base_url=base, api_key="k", max_retries=0, default_headers=HEADERS) as sdk:
            with pytest.raises(anthropic.InternalServerError, match="No member of the panel"):
                await sdk.messages.create(model="a", max_tokens=9, messages=[{"role": "user", "content": "?"}])
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0, default_headers=HEADERS) as ai:
            with pytest.raises(openai.InternalServerError, match="No member of the panel"):
                await ai.responses.create(model="a", input="?")
            with pytest.raises(openai.BadRequestError, match=r"cannot be answered as its decision says \(stored\)"):
                await ai.responses.create(model="a", input="?", previous_response_id="resp_1")


async def test_a_stream_that_breaks_off_ends_in_the_client_s_api() -> None:
    block = {**BLOCK, "cascade": ["large", "small"]}
    async with table(models(), block) as made, served({"ask": made.panel}) as base:
        made.models["large"].top = -1
        made.models["small"].faults[-2] = Fault("kill", 2)
        async with anthropic.AsyncAnthropic(base_url=base, api_key="k", max_retries=0, default_headers=HEADERS) as sdk:
            with pytest.raises(anthropic.APIError, match="broke off"):
                async with sdk.messages.stream(
                    model="a", max_tokens=9, messages=[{"role": "user", "content": "?"}]
                ) as stream:
                    await stream.get_final_message()
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0, default_headers=HEADERS) as ai:
            events = [event async for event in await ai.responses.create(model="a", input="?", stream=True)]
    assert events[-1].type == "response.failed"
    assert "broke off" in events[-1].response.error.message

"""The tinylm server through the real OpenAI SDK and through bare HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

import examples
from config.load import load
from examples.tinylm import problems
from examples.tinylm.server import Running, serve
from panel import verifier
from tests.patience import PATIENCE

SUM: list[Any] = [{"role": "user", "content": "Work out 12 + 30 * 4."}]
ALL = ("tinylm-small", "tinylm-large", "tinylm-deep")


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serve() as server:
        yield server


@pytest.fixture
async def client(running: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


async def raw(running: Running, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with aiohttp.ClientSession() as session, session.post(running.url + path, data=data) as answer:
        return answer.status, await answer.json()


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == list(ALL)
    assert (await client.models.retrieve("tinylm-small")).id == "tinylm-small"


async def test_policies_say_the_context_that_models_have(client: openai.AsyncOpenAI, running: Running) -> None:
    said = set()
    for policy in Path(examples.__file__).parent.glob("*.yaml"):
        models = load(policy).spec.models if ".cases." not in policy.name else {}
        said |= {(model.name, model.context) for model in models.values() if model.name in ALL}
    told = {(model.id, (model.model_extra or {})["max_model_len"]) async for model in client.models.list()}
    assert said == told
    for name, context in told:  # what they tell is what they take
        _, one = await raw(running, "/v1/completions", {"model": name, "prompt": "a" * 100, "max_tokens": 1})
        each = one["usage"]["prompt_tokens"] / 100
        for size, status in ((context - 50, 200), (context + 50, 400)):
            body = {"model": name, "prompt": "a" * int(size / each), "max_tokens": 1}
            assert (await raw(running, "/v1/completions", body))[0] == status


async def test_the_large_model_solves_a_sum_in_steps(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tinylm-large", messages=SUM, temperature=0)
    text = answer.choices[0].message.content
    assert text is not None
    assert problems.read_answer(text) == 132
    assert "30 * 4 = 120" in text.split("\n\n")[0]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("model", ALL)
async def test_a_greeting_names_the_model(client: openai.AsyncOpenAI, model: str) -> None:
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello"}], temperature=0
    )
    assert f"this is {model}" in (answer.choices[0].message.content or "")


@pytest.mark.parametrize(
    "text", ["Schreibe ein Gedicht über 漢字 🎉", "def f(x):\n\treturn x", "\x00\ufffd", "<|end|><|assistant|>"]
)
async def test_any_text_is_answered(client: openai.AsyncOpenAI, text: str) -> None:
    answer = await client.chat.completions.create(
        model="tinylm-small", messages=[{"role": "user", "content": text}], max_tokens=40
    )
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 40


@pytest.mark.parametrize("model", ALL)
async def test_streamed_and_whole_answers_are_the_same(client: openai.AsyncOpenAI, model: str) -> None:
    whole = await client.chat.completions.create(
        model=model, messages=SUM, temperature=0, logprobs=True, top_logprobs=20, seed=1
    )
    stream = await client.chat.completions.create(
        model=model, messages=SUM, temperature=0, logprobs=True, top_logprobs=20, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    text, entries, usage, reasons = "", [], None, []
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            entries += (choice.logprobs.content or []) if choice.logprobs else []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == len(entries)
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert whole.choices[0].logprobs is not None
    assert [e.token for e in entries] == [e.token for e in whole.choices[0].logprobs.content or []]
    assert "".join(e.token for e in entries) == text
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 20
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob, abs=1e-4)  # greedy


async def test_numbers_are_read_from_left_to_right(client: openai.AsyncOpenAI) -> None:
    prompt = "<|user|>Work out 900 + 87.<|end|><|assistant|>First, 900 + 87 = "
    answer = await client.completions.create(
        model="tinylm-large", prompt=prompt, temperature=0, max_tokens=5, logprobs=1
    )
    assert answer.choices[0].text.startswith("987")
    assert answer.choices[0].logprobs is not None
    assert "".join(answer.choices[0].logprobs.tokens or []) == answer.choices[0].text


async def test_stop_cuts_before_the_string_and_says_which(client: openai.AsyncOpenAI) -> None:
    free = await client.chat.completions.create(model="tinylm-large", messages=SUM, temperature=0)
    for stop in ("\n\n", ["nowhere", "\n\nThen", "\n\n"]):
        cut = await client.chat.completions.create(
            model="tinylm-large", messages=SUM, temperature=0, stop=stop, logprobs=True
        )
        text = cut.choices[0].message.content or ""
        assert text == (free.choices[0].message.content or "").split("\n\n")[0]
        assert cut.choices[0].finish_reason == "stop"
        assert cut.choices[0].model_extra is not None
        assert cut.choices[0].model_extra["stop_reason"] in stop
        assert cut.choices[0].logprobs is not None
        assert "".join(e.token for e in cut.choices[0].logprobs.content or []) == text
    assert free.choices[0].model_extra is not None
    assert free.choices[0].model_extra["stop_reason"] is None


async def test_max_tokens_ends_with_length(client: openai.AsyncOpenAI) -> None:
    for limit in ({"max_tokens": 4}, {"max_completion_tokens": 4}):
        answer = await client.chat.completions.create(model="tinylm-large", messages=SUM, temperature=0, **limit)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4


async def test_a_seed_repeats_a_sampled_answer(client: openai.AsyncOpenAI) -> None:
    async def ask(seed: int) -> str:
        answer = await client.chat.completions.create(model="tinylm-small", messages=SUM, temperature=1.5, seed=seed)
        return answer.choices[0].message.content or ""

    first = [await ask(seed) for seed in range(3)]
    assert first == [await ask(seed) for seed in range(3)]
    assert len(set(first)) > 1


async def test_either_model_continues_the_others_prefix(client: openai.AsyncOpenAI) -> None:
    begun = "First, 30 * 4 = 120, which leaves 12 + 120.\n\n"
    answer = await client.chat.completions.create(
        model="tinylm-large", messages=[*SUM, {"role": "assistant", "content": begun}], temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )  # fmt: skip
    text = answer.choices[0].message.content or ""
    assert not text.startswith("First")
    assert "12 + 120 = 132" in text
    assert text.endswith("Answer: 132")


@pytest.mark.parametrize("model", ALL)
async def test_what_is_read_is_as_probable_as_when_it_was_written(running: Running, model: str) -> None:
    ask = {"model": model, "messages": SUM, "temperature": 0}
    _, written = await raw(running, "/v1/chat/completions", {**ask, "logprobs": True})
    choice = written["choices"][0]
    told = choice["logprobs"]["content"]
    more = {"continue_final_message": True, "add_generation_prompt": False, "prompt_logprobs": 0, "max_tokens": 1}
    draft = {"role": "assistant", "content": choice["message"]["content"]}
    status, answer = await raw(running, "/v1/chat/completions", {**ask, **more, "messages": [*SUM, draft]})
    assert status == 200
    first, *read = answer["prompt_logprobs"]
    assert (first, len(read)) == (None, answer["usage"]["prompt_tokens"] - 1)
    own = [next(iter(entry.values())) for entry in read[-len(told) :]]
    assert [one["decoded_token"] for one in own] == [entry["token"] for entry in told]
    assert [one["logprob"] for one in own] == pytest.approx([entry["logprob"] for entry in told], abs=1e-3)
    surety = verifier.read(answer, draft["content"])
    assert surety is not None
    assert surety.tokens == len(told)


async def test_a_kept_prefix_is_not_read_again(client: openai.AsyncOpenAI, running: Running) -> None:
    engine = running.server.engines["tinylm-large"]
    first = await client.chat.completions.create(model="tinylm-large", messages=SUM, temperature=0)
    text = first.choices[0].message.content or ""
    before = engine.tokens_run
    again = await client.chat.completions.create(
        model="tinylm-large", messages=[*SUM, {"role": "assistant", "content": text}], temperature=0, max_tokens=1,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )  # fmt: skip
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    assert engine.tokens_run - before == 1


@pytest.mark.slow
async def test_answers_in_one_batch_equal_answers_alone(client: openai.AsyncOpenAI) -> None:
    asked = [problems.make(i).question for i in range(12)]

    async def ask(question: str) -> str:
        answer = await client.chat.completions.create(
            model="tinylm-small", messages=[{"role": "user", "content": question}], temperature=0
        )
        return answer.choices[0].message.content or ""

    alone = [await ask(question) for question in asked]
    assert await asyncio.gather(*map(ask, asked)) == alone


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_the_generation(running: Running, stream: bool) -> None:
    body = {
        "model": "tinylm-large", "messages": SUM, "stream": stream, "max_tokens": 2000, "temperature": 2.0, "seed": 1,
    }  # fmt: skip
    session = aiohttp.ClientSession()
    waiting = asyncio.ensure_future(session.post(f"{running.url}/v1/chat/completions", json=body))
    async with asyncio.timeout(PATIENCE):
        while not running.server.running:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if stream:
            await (await waiting).content.readany()
            waiting.result().close()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await session.close()
        while running.server.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        engine = running.server.engines["tinylm-large"]
        await asyncio.sleep(0.1)  # the token being written is still finished
        settled = engine.tokens_run
        await asyncio.sleep(0.2)
    assert engine.tokens_run == settled


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_that_breaks_ends_every_answer_with_an_error(
    running: Running, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(running.server.engines["tinylm-small"], "run", broken)

    async def ask() -> None:
        answer = await client.chat.completions.create(model="tinylm-small", messages=SUM, stream=stream)
        if stream:
            async for _chunk in answer:
                pass

    for _ in range(2):  # the one that broke it, and the next, which finds it broken
        with pytest.raises(openai.APIError, match=r"has stopped|answers waiting"):
            await ask()
    whole = await client.chat.completions.create(model="tinylm-large", messages=SUM, max_tokens=3)
    assert whole.choices[0].message.content


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": [""]}, "stop"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, "messages"),
    ],
)
async def test_a_bad_request_is_refused_by_parameter(running: Running, change: dict[str, Any], param: str) -> None:
    status, body = await raw(running, "/v1/chat/completions", {"model": "tinylm-small", "messages": SUM, **change})
    assert status == 400
    assert body["error"]["param"] == param
    assert body["error"]["type"] == "invalid_request_error"


async def test_errors_have_the_shape_of_openai(running: Running, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9") as unknown:
        await client.chat.completions.create(model="gpt-9", messages=SUM)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model="tinylm-small", prompt="")
    assert (await raw(running, "/v1/chat/completions", b"{"))[0] == 400
    assert (await raw(running, "/v1/chat/completions", []))[0] == 400
    status, body = await raw(running, "/v1/nothing", {})
    assert status == 404
    assert body["error"]["message"]

"""`/v1/responses` and `/v1/messages` of tinylm, through the real SDKs, and what is said to who asks for no sum."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import openai
import pytest

from examples.tinylm import talk
from examples.tinylm.server import Running, serve

if TYPE_CHECKING:  # importing it takes seconds: whoever uses it does, and is slow
    import anthropic

SUM = "Work out 12 + 30 * 4."
LARGE = "tinylm-large"


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serve() as server:
        yield server


@pytest.fixture
async def gpt(running: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def claude(running: Running) -> AsyncIterator[anthropic.AsyncAnthropic]:
    import anthropic

    async with anthropic.AsyncAnthropic(base_url=running.url, api_key="none", max_retries=0) as sdk:
        yield sdk


async def chat(gpt: openai.AsyncOpenAI, **more: Any) -> Any:
    return await gpt.chat.completions.create(
        model=LARGE, messages=[{"role": "user", "content": SUM}], temperature=0, **more
    )


async def test_a_response_is_the_chat_completion_s_answer(gpt: openai.AsyncOpenAI) -> None:
    text = (await chat(gpt)).choices[0].message.content
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": SUM}]},
    ]
    for given in (SUM, turns):
        answer = await gpt.responses.create(model=LARGE, input=given, temperature=0)
        assert (answer.output_text, answer.status, answer.model) == (text, "completed", LARGE)
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 10
    async with gpt.responses.stream(model=LARGE, input=SUM, temperature=0) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    assert final.output_text == text
    assert final.usage is not None
    assert final.usage.output_tokens == answer.usage.output_tokens


async def test_a_response_that_is_cut_is_incomplete(gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.responses.create(model=LARGE, input=SUM, temperature=0, max_output_tokens=4)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    stream = await gpt.responses.create(model=LARGE, input=SUM, temperature=0, max_output_tokens=4, stream=True)
    assert [event.type async for event in stream][-1] == "response.incomplete"


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no answers"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input", "function_call_output"),
        ({"input": 3}, "input", "text or a list"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input", r"input\[0\].role"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens must be a whole number"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", "only text"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
    ],
)
async def test_what_a_response_cannot_have_is_refused(
    gpt: openai.AsyncOpenAI, more: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        await gpt.responses.create(**{"model": LARGE, "input": SUM, **more})
    assert refused.value.param == param


@pytest.mark.slow
async def test_a_message_is_the_chat_completion_s_answer(
    gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    plain = await chat(gpt)
    text = plain.choices[0].message.content
    turns: list[Any] = [{"role": "user", "content": [{"type": "text", "text": SUM}]}]
    greedy = {"temperature": 0}
    answer: Any = await claude.messages.create(model=LARGE, max_tokens=200, messages=turns, extra_body=greedy)
    assert (answer.content[0].text, answer.stop_reason, answer.model) == (text, "end_turn", LARGE)
    read = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert (read, answer.usage.output_tokens) == (plain.usage.prompt_tokens, plain.usage.completion_tokens)
    async with claude.messages.stream(model=LARGE, max_tokens=200, messages=turns, extra_body=greedy) as stream:
        assert "".join([piece async for piece in stream.text_stream]) == text
        final = await stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", answer.usage.output_tokens)


@pytest.mark.slow
async def test_a_message_stops_where_it_is_told_and_goes_on_with_an_answer(claude: anthropic.AsyncAnthropic) -> None:
    async def ask(**more: Any) -> Any:
        turns: list[Any] = [{"role": "user", "content": SUM}, *more.pop("begun", ())]
        asked: dict[str, Any] = {"model": LARGE, "max_tokens": 200, "extra_body": {"temperature": 0}, **more}
        return await claude.messages.create(**asked, messages=turns)

    whole, first = await ask(), await ask(stop_sequences=["\n\n"])
    assert (first.stop_reason, first.stop_sequence) == ("stop_sequence", "\n\n")
    assert whole.content[0].text.startswith(f"{first.content[0].text}\n\n")
    assert (await ask(max_tokens=3)).stop_reason == "max_tokens"
    rest = await ask(begun=[{"role": "assistant", "content": f"{first.content[0].text}\n\n"}])
    assert whole.content[0].text == f"{first.content[0].text}\n\n{rest.content[0].text}"


@pytest.mark.slow
async def test_errors_have_the_shape_of_anthropic(claude: anthropic.AsyncAnthropic) -> None:
    import anthropic

    turns: list[Any] = [{"role": "user", "content": SUM}]
    with pytest.raises(anthropic.NotFoundError, match="does not exist") as unknown:
        await claude.messages.create(model="claude-9", max_tokens=9, messages=turns)
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    tool: Any = {"name": "f", "input_schema": {"type": "object"}}
    with pytest.raises(anthropic.BadRequestError, match="tool_choice: 'required' is not supported"):
        await claude.messages.create(
            model=LARGE, max_tokens=9, messages=turns, tools=[tool], tool_choice={"type": "any"}
        )
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences must be"):
        await claude.messages.create(model=LARGE, max_tokens=9, messages=turns, stop_sequences=[""])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_model_that_breaks_ends_these_streams_with_an_error_too(
    running: Running,
    gpt: openai.AsyncOpenAI,
    claude: anthropic.AsyncAnthropic,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import anthropic

    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory")

    for model in ("tinylm-small", LARGE):
        monkeypatch.setattr(running.server.engines[model], "run", broken)
    stream = await gpt.responses.create(model="tinylm-small", input=SUM, stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert "has stopped" in last.response.error.message
    with pytest.raises(anthropic.APIStatusError, match="has stopped"):
        async with claude.messages.stream(
            model=LARGE, max_tokens=9, messages=[{"role": "user", "content": SUM}]
        ) as said:
            await said.get_final_message()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tinylm-small", "tinylm-deep", LARGE])
@pytest.mark.parametrize("temperature", [0, 1, 2])
async def test_who_asks_for_no_sum_is_told_what_the_model_knows(
    gpt: openai.AsyncOpenAI, model: str, temperature: float
) -> None:
    asked = ("Write a haiku about autumn", "Tell me about Rust", "ping", "summarise: " + "the lazy dog. " * 40)
    for text in asked:
        answer = await gpt.chat.completions.create(
            model=model, temperature=temperature, logprobs=True, top_logprobs=3,
            messages=[{"role": "system", "content": "You are 1 helpful assistant."}, {"role": "user", "content": text}],
        )  # fmt: skip
        said = answer.choices[0]
        assert said.message.content in talk.sentences(model)
        assert said.finish_reason == "stop"
        assert said.logprobs is not None
        assert all(entry.logprob <= 0 for entry in said.logprobs.content or ())
    sum_ = await gpt.chat.completions.create(
        model=model, messages=[{"role": "user", "content": SUM}], temperature=temperature
    )
    assert sum_.choices[0].message.content not in talk.sentences(model)

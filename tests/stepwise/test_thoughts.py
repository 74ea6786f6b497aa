"""Thoughts are steps: they are judged, either model goes on with them, and a client gets them as its servers do it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepwise.asking.continuation import Continuation, began, build, render
from stepwise.asking.probe import Capability
from stepwise.steps import End, Ends, Splitter, StepLimits, split
from stepwise.strategies.verify import Verify
from stepwise.thoughts import Shown, Thoughts, continued, opened
from tests.stepwise.fakes import FakeModel, pair, served, text_of, writer
from upstream.endpoint import ContinuationMode
from upstream.tokens import Token

TEMPLATE = "{% for m in messages %}{{ m.content }}\n\n{% endfor %}{{ '<think>\n' }}"
PLAIN = "{% for m in messages %}{{ m.content }}\n\n{% endfor %}"
SMALL = ["<think>\none and one is two", "two ✗ and two is five", "so it is nine\n</think>", "It ✗ is 8", "Bye"]
LARGE = ["<think>\nONE and one is two", "TWO and two is four", "SO it is ten\n</think>", "IT is 9", "BYE"]
THOUGHTS = "one and one is two\n\nTWO and two is four\n\nso it is nine"
ANSWER = "IT is 9\n\nBye"


def thinker(name: str, steps: list[str], **more: Any) -> FakeModel:
    """A model that thinks, on a server that puts thoughts into a field of their own."""
    return FakeModel(name, writer(steps), **{"thoughts": "Hm.", "template": TEMPLATE, **more})


def reasoning_of(events: list[dict[str, Any]]) -> str:
    return "".join(c["delta"].get("reasoning_content", "") for event in events for c in event.get("choices", ()))


def steps_of(whole: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["model"], step["action"]) for step in whole["usage"]["pointsman"]["steps"]]


JUDGED = [("small", "keep"), ("large", "redo"), ("small", "keep"), ("large", "redo"), ("small", "keep")]


async def test_thoughts_are_judged_and_continued_and_come_in_their_field() -> None:
    async with pair(thinker("tiny", SMALL), thinker("huge", LARGE)) as both:
        found = both.stepwise.records()
        _, events = await both.ask()
        _, whole = await both.ask(stream=False)
    assert {(one.mode, one.thoughts) for one in found.values()} == {(ContinuationMode.COMPLETIONS, "field")}
    assert (reasoning_of(events), text_of(events)) == (THOUGHTS, ANSWER)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHTS}
    assert steps_of(whole) == steps_of(events[-1]) == JUDGED
    assert sum(bool(reasoning_of([event])) for event in events) > 10  # token by token
    prompts = [request["prompt"] for request in both.large.requests]
    assert prompts[0] == f"What is it?\n\n{SMALL[0]}\n\n"
    assert prompts[1] == f"What is it?\n\n{SMALL[0]}\n\n{LARGE[1]}\n\n{SMALL[2]}\n\n"


async def test_thoughts_that_a_server_leaves_in_the_text_stay_there() -> None:
    tagged = "<think>\nFirst add twelve and thirty five, then take away eight, which leaves the number thirty nine."

    def model(name: str, steps: list[str]) -> FakeModel:
        return FakeModel(name, writer(steps), template=PLAIN, probe_text=tagged)

    async with pair(model("tiny", SMALL), model("huge", LARGE)) as both:
        found = both.stepwise.records()
        _, events = await both.ask()
    assert {(one.mode, one.thoughts) for one in found.values()} == {(ContinuationMode.COMPLETIONS, "text")}
    assert reasoning_of(events) == ""
    assert text_of(events) == "\n\n".join([SMALL[0], LARGE[1], SMALL[2], LARGE[3], SMALL[4]])
    assert steps_of(events[-1]) == JUDGED


async def test_a_model_that_does_not_think_goes_on_with_another_s_thoughts() -> None:
    plain = FakeModel("huge", writer(LARGE))
    async with pair(thinker("tiny", SMALL), plain) as both:
        _, events = await both.ask()
    assert (reasoning_of(events), text_of(events)) == (THOUGHTS, ANSWER)
    assert plain.requests[0]["messages"][-1] == {"role": "assistant", "content": f"{SMALL[0]}\n\n"}


async def test_without_a_chat_template_thoughts_in_a_field_pass_unjudged() -> None:
    async with pair(thinker("tiny", ["✗ no"], template=""), ["yes"]) as both:
        _, events = await both.ask()
    assert (reasoning_of(events), text_of(events)) == ("Hm.", "yes")


async def test_the_policy_s_own_template_is_enough() -> None:
    small, large = thinker("tiny", SMALL, template=""), thinker("huge", LARGE, template="")
    async with pair(small, large, template=TEMPLATE) as both:
        _, events = await both.ask()
    assert (reasoning_of(events), text_of(events)) == (THOUGHTS, ANSWER)


async def test_a_model_that_thinks_marks_a_step_without_thinking() -> None:
    huge = thinker("huge", LARGE, mark="7")
    async with pair(thinker("tiny", SMALL), huge, Verify(0.5)) as both:
        assert both.stepwise.unworkable is None
        huge.write = lambda prefix, request: "7"
        await both.ask()
    asked = [request for request in huge.requests if "one digit" in request["prompt"]]
    assert len(asked) == 5
    assert all(request["prompt"].endswith("<think>\n\n</think>\n\n") for request in asked)
    assert all(request["max_tokens"] == 1 for request in asked)


async def test_log_probabilities_of_thoughts_come_with_them() -> None:
    async with pair(thinker("tiny", LARGE), thinker("huge", LARGE)) as both:
        _, events = await both.ask(logprobs=True, top_logprobs=2)
    assert text_of(events) == "IT is 9\n\nBYE"
    assert all("logprobs" in event["choices"][0] for event in events[:-1])


# --- where thoughts end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", list(Ends))
def test_the_end_of_the_thoughts_ends_a_step(ends: Ends) -> None:
    text = "<think>\nI add twelve to three and get fifteen in all.</think>\n\nThe answer is 15, as I have found out.\n"
    steps = split(text, StepLimits(ends=ends))
    first = next(step for step in steps if "</think>" in step.text)
    assert first.text.endswith("</think>\n\n")
    before = ["".join(step.text for step in steps[:n]) for n in range(len(steps))]
    assert [step.thought for step in steps] == ["</think>" not in text for text in before]
    (only,) = split("<think>\n\n</think>\n\nFifteen.", StepLimits())  # thoughts without a word are no step
    assert not only.thought


def test_an_open_code_block_ends_with_the_thoughts() -> None:
    thought = "<think>\nLet me try this one here:\n```\nx = 1\n\ny = 2\n</think>\n\n"
    text = f"{thought}First I say this and that to you.\n\nThen I say that."
    assert [step.end for step in split(text)] == [End.BLANK, End.BLANK, End.STOP]
    done = text[: text.index("First")]
    later = Splitter(StepLimits(), done)
    assert [s.end for s in later.feed(Token(text[len(done) :].split("Then")[0], size=9))] == [End.BLANK]


PARTS = st.sampled_from(["<think>", "</think>", "<", "think", ">", "/", "a", " ", "\n", "\n\n"])
TAGS = st.lists(PARTS, max_size=20).map("".join)


@given(TAGS, st.lists(st.integers(1, 9), max_size=30))
@example("<think>\nab \n</think>\n c", [1] * 30)
@example("<think></think>", [2] * 30)
def test_a_text_is_parted_the_same_way_wherever_it_is_cut(text: str, cuts: list[int]) -> None:
    pieces, rest = [], text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    shown, seen = Shown(), Thoughts()
    said = [shown.feed(piece) for piece in (*pieces, rest)] + [shown.finish()]
    for piece in (*pieces, rest):
        seen.feed(piece)
    thoughts, content = ("".join(parts) for parts in zip(*said, strict=True))
    begins, start = text.lstrip(), len("<think>")
    if begins.startswith("<think>"):
        inner, closed, after = begins[start:].partition("</think>")
        assert (thoughts, content) == (inner.strip(), after.lstrip())
        assert (seen.inside, seen.over) == (not closed, bool(closed))
    else:
        assert (thoughts, content) == ("", text)
        assert not seen.over


@given(TAGS.map(lambda text: f"<think>{text}</think>\n\nSo it is, I say.\n\nAnd more."), st.lists(st.integers(1, 9)))
def test_steps_with_thoughts_joined_are_the_text(text: str, cuts: list[int]) -> None:
    splitter, rest = Splitter(StepLimits(min_tokens=1, ends=Ends.AUTO)), text
    steps = []
    for cut in cuts:
        steps += splitter.feed(Token(rest[:cut]))
        rest = rest[cut:]
    steps += splitter.feed(Token(rest))
    last = splitter.finish()
    assert "".join(step.text for step in (*steps, *([last] if last else []))) == text


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_a_prompt_and_a_prefix_begin_the_thoughts_once() -> None:
    assert opened("Q<think>\n") == "<think>\n"
    assert opened("Q<think>\n\n</think>\n\n") == ""
    assert continued("Q<think>\n", "") == "Q<think>\n"
    assert continued("Q<think>\n", "<think>\nI add") == "Q<think>\nI add"
    assert continued("Q", "<think>\nI add") == "Q<think>\nI add"
    assert continued("Q<think>\n", "The answer") == "Q<think>\n\n</think>\n\nThe answer"


def test_a_template_gets_what_hugging_face_gives_it_and_the_client_s_arguments() -> None:
    template = (
        "{%- if messages[0].role != 'user' %}{{ raise_exception('a user must begin') }}{% endif -%}"
        "{%- for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content | tojson }}{% endfor -%}"
        "{{ strftime_now('%Y')[:2] }}{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    messages = [{"role": "user", "content": [{"type": "text", "text": "a<b"}]}, {"role": "user", "content": "no"}]
    assert render(template, messages, {"enable_thinking": True}) == '"a<b"20'
    request = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False, "messages": "mine"}}
    asked = build(ContinuationMode.COMPLETIONS, request, "", Continuation(template=template))
    assert asked[1]["prompt"] == '"a<b"20<think>\n\n</think>\n\n'
    assert began(asked, "") == ""
    with pytest.raises(Exception, match="a user must begin"):
        render(template, [{"role": "system", "content": "x"}])


def test_a_record_of_before_thoughts_were_looked_for_is_read() -> None:
    old = {
        "model": "m", "checked": 1.0, "mode": "prefix", "modes": {}, "top_logprobs": 5, "usage": True,
        "running_usage": False, "stop_reason": True,
    }  # fmt: skip
    record = Capability.from_json(json.loads(json.dumps(old)))
    assert (record.thoughts, record.template) == ("", None)


# --- every API's form ------------------------------------------------------------------------------------------------

HEADERS = {"x-pointsman-decision": "steps"}


async def test_responses_have_thoughts_as_reasoning_items() -> None:
    async with (
        pair(thinker("tiny", SMALL), thinker("huge", LARGE)) as both,
        served({"steps": both.stepwise}) as base,
        openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", default_headers=HEADERS) as sdk,
    ):
        whole = await sdk.responses.create(model="auto", input="What is it?")
        async with sdk.responses.stream(model="auto", input="What is it?") as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
    for answer in (whole, final):
        assert (answer.output_text, answer.status) == (ANSWER, "completed")
        thoughts, message = answer.output
        assert (thoughts.type, message.type) == ("reasoning", "message")
        assert thoughts.content[0].text == THOUGHTS
        assert answer.usage.model_extra["pointsman"]["redos"] == 2
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == THOUGHTS
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == sorted(
        event.sequence_number for event in events if hasattr(event, "sequence_number")
    )


@pytest.mark.slow
async def test_messages_have_thoughts_as_thinking_blocks() -> None:
    import anthropic

    async with (
        pair(thinker("tiny", SMALL), thinker("huge", LARGE)) as both,
        served({"steps": both.stepwise}) as base,
        anthropic.AsyncAnthropic(base_url=base, api_key="k", default_headers=HEADERS) as sdk,
    ):
        turns: Any = [{"role": "user", "content": "What is it?"}]
        whole = await sdk.messages.create(model="auto", max_tokens=900, messages=turns)
        async with sdk.messages.stream(model="auto", max_tokens=900, messages=turns) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_message()
    for answer in (whole, final):
        thoughts, text = answer.content
        assert (thoughts.thinking, text.text) == (THOUGHTS, ANSWER)
        assert answer.stop_reason == "end_turn"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2


@pytest.mark.slow
async def test_an_answer_without_a_word_is_one_in_every_api() -> None:
    import anthropic

    async with pair([""], [""]) as both, served({"steps": both.stepwise}) as base:
        turns: Any = [{"role": "user", "content": "?"}]
        gpt = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", default_headers=HEADERS)
        claude = anthropic.AsyncAnthropic(base_url=base, api_key="k", default_headers=HEADERS)
        async with gpt, gpt.responses.stream(model="auto", input="?") as stream:
            assert (await stream.get_final_response()).output_text == ""
        async with claude, claude.messages.stream(model="auto", max_tokens=9, messages=turns) as said:
            assert (await said.get_final_message()).content[0].text == ""

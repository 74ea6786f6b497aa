"""Asking a model to go on from a prefix of its answer, and noticing when it starts over instead."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from stepwise.thoughts import continued, opened
from upstream.client import UpstreamError
from upstream.endpoint import JSON, ContinuationMode
from upstream.tokens import Token

if TYPE_CHECKING:
    import jinja2


CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"

# What we set ourselves, or what would change the shape of the answer.
_OURS = {
    "model", "messages", "stream", "stream_options", "logprobs", "top_logprobs", "n", "stop", "tools", "tool_choice",
    "functions", "function_call", "parallel_tool_calls", "response_format", "max_tokens", "max_completion_tokens",
    "echo", "suffix", "best_of", "prompt", "continue_final_message", "add_generation_prompt", "modalities", "audio",
    "store", "metadata", "prompt_logprobs",
}  # fmt: skip
_CHAT_ONLY = {"chat_template_kwargs", "reasoning_effort", "verbosity", "prediction", "web_search_options"}


class Continuation(NamedTuple):
    """How a model is asked to go on. `top_logprobs`: -1 asks for no log probabilities; `template`: of its chat, where
    we render that ourselves."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int = -1
    running_usage: bool = False
    template: str | None = None


_ANYHOW = Continuation()


def build(mode: ContinuationMode | None, request: JSON, prefix: str, how: Continuation = _ANYHOW) -> tuple[str, JSON]:
    """Path and body of a streaming request that writes on after `prefix` (with an empty one: from the beginning).

    `request` is the client's chat completion; its sampling parameters are kept. Raises UpstreamError when there is a
    prefix and no `mode`, or the template cannot be rendered.
    """
    max_tokens, stop, top_logprobs, running_usage, template = how
    body: JSON = {key: value for key, value in request.items() if key not in _OURS}
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    if running_usage:  # vLLM's and SGLang's way of asking, and llama.cpp's
        body["stream_options"]["continuous_usage_stats"] = True
        body["timings_per_token"] = True
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if stop:
        body["stop"] = list(stop)
    messages: list[JSON] = request["messages"]
    if mode is ContinuationMode.COMPLETIONS:
        body = {key: value for key, value in body.items() if key not in _CHAT_ONLY}
        given = request.get("chat_template_kwargs")
        body["prompt"] = continued(render(template, messages, given if isinstance(given, dict) else {}), prefix)
        if top_logprobs >= 0:
            body["logprobs"] = max(top_logprobs, 1)
        return COMPLETIONS_PATH, body
    if top_logprobs >= 0:
        body["logprobs"] = True
        body["top_logprobs"] = top_logprobs
    if prefix:
        last: JSON = {"role": "assistant", "content": prefix}
        if mode is ContinuationMode.FINAL_MESSAGE:
            body["continue_final_message"] = True
            body["add_generation_prompt"] = False
        elif mode is ContinuationMode.PREFIX:
            last["prefix"] = True
        elif mode is None:
            raise UpstreamError("restart", "this upstream cannot continue a prefix in any way that was tried")
        messages = [*messages, last]
    body["messages"] = messages
    return CHAT_PATH, body


def began(asked: tuple[str, JSON], prefix: str) -> str:
    """What the prompt of a request from `build` has put before an answer that begins with it: the tag of its thoughts.

    The model does not write it again, so it is missing in the text that comes.
    """
    path, body = asked
    return "" if prefix or path != COMPLETIONS_PATH else opened(body["prompt"])


def render(template: str | None, messages: Sequence[Mapping[str, Any]], more: Mapping[str, Any] | None = None) -> str:
    """The prompt of a conversation, ready for the answer's first token. `more`: the client's `chat_template_kwargs`.

    Without a template (for base models, and servers that need none) it is the messages' texts with a blank line between
    them. Raises UpstreamError when the template fails.
    """
    plain = [{**message, "content": _text(message.get("content"))} for message in messages]
    if template is None:
        return "".join(f"{message['content']}\n\n" for message in plain)
    variables = {"bos_token": "", "eos_token": "", **(more or {}), "messages": plain, "add_generation_prompt": True}
    try:
        return compiled(template).render(variables)
    except Exception as error:  # a template is a program: it can fail in any way
        raise UpstreamError("template", f"the chat template cannot render this conversation: {error}") from error


@lru_cache(maxsize=64)
def compiled(template: str) -> jinja2.Template:
    """A chat template, ready to be rendered. Raises ValueError when it is none.

    Templates come with models: they run in a sandbox that cannot change or reach anything.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    # What Hugging Face's `apply_chat_template` gives templates, too.
    made.filters["tojson"] = _json
    made.globals |= {"raise_exception": _refuse, "strftime_now": time.strftime}
    try:
        return made.from_string(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"no chat template: line {error.lineno}: {error.message}") from None


def _json(value: object, indent: int | None = None, **_: object) -> str:
    """JSON as it is: Jinja's own filter would write `<` as an escape."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: object) -> NoReturn:
    raise ValueError(message)


def _text(content: object) -> str:
    """A message's text: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


_SHORTEST = 16  # characters; less could well come twice in a row


class Joint:
    """The place where a continuation meets its prefix.

    Some servers repeat the prefix before they go on; the repetition is cut off. Some ignore the prefix and begin the
    answer anew, mostly with the same first words; this is noticed when the text is the same as the prefix's beginning
    for `least` characters and then differs. A prefix that is shorter than that is only cut off where it is repeated
    whole: a server that begins anew after one short step says the same again, so nothing is lost. Text is held back
    only while it could still be either. Chat templates often trim the prefix's last blank line, and the model then
    writes it again: line feeds with which the prefix already ends are dropped.
    """

    def __init__(self, prefix: str, least: int = 48) -> None:
        self._prefix = prefix
        self._least = least
        self._held: list[Token] = []
        self._text = ""
        self._open = len(prefix) >= min(least, _SHORTEST)
        self._trim = prefix.endswith("\n\n")

    def feed(self, token: Token) -> list[Token]:
        """Takes the continuation's next token; gives those that may be used. Raises UpstreamError (restart)."""
        if self._trim:
            token = token._replace(text=token.text.lstrip("\n"))
            self._trim = not token.text
        if not self._open:
            return [token]
        self._held.append(token)
        self._text += token.text
        if len(self._text) < len(self._prefix) and self._prefix.startswith(self._text):
            return []
        self._open = False
        if self._text.startswith(self._prefix):
            self._held = [token._replace(text=self._text[len(self._prefix) :])]
        elif len(self._prefix) >= self._least and self._text.startswith(self._prefix[: self._least]):
            raise _restarted()
        return self._release()

    def finish(self) -> list[Token]:
        """The continuation has ended: gives the text that is still held back. Raises UpstreamError (restart)."""
        if self._open and (len(self._text) >= self._least or self._text.strip() == self._prefix.strip()):
            raise _restarted()
        return self._release()

    def _release(self) -> list[Token]:
        held, self._held = self._held, []
        return held


def _restarted() -> UpstreamError:
    return UpstreamError("restart", "the model began its answer anew instead of continuing it")

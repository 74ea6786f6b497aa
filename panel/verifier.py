"""A verifier: a model that reads a draft, and says how probable it finds each of its tokens.

The draft stands at the end of the prompt, as an assistant's message that is to be continued, and the server is asked
for the log probabilities of the prompt: `prompt_logprobs`, which vLLM adds to chat completions. Reading is what
speculative decoding does with a draft (Leviathan et al., arXiv 2211.17192): one pass, and no tokens written.
"""

from __future__ import annotations

from typing import Final

from panel.certainty import Surety
from upstream.endpoint import JSON
from upstream.tokens import of_prompt

ASKED: Final[JSON] = {
    "continue_final_message": True,
    "add_generation_prompt": False,
    "prompt_logprobs": 0,
    "max_tokens": 1,
    "temperature": 0,
}
"""The fields of the request: nothing is to be written, but servers write one token at least."""


def messages(question: JSON, text: str) -> list[JSON]:
    """The conversation with the draft at its end, without spaces around it: templates drop them."""
    return [*question["messages"], {"role": "assistant", "content": text.strip()}]


def read(answer: JSON, text: str) -> Surety | None:
    """How sure the verifier is of the draft `text`, from its answer; None where it does not say that."""
    text = text.strip()
    surety, at = Surety(), len(text)
    hidden = 0  # tokens, since the last one that was found, that are parts of characters
    for token in of_prompt(answer):
        if at <= hidden:
            break
        surety.feed(token)
        place = text.rfind(token.text, max(0, at - len(token.text) - 2 * hidden), at)
        if token.text and "\ufffd" not in token.text:
            if place < 0 and not token.text.endswith(text[:at]):  # the first one has what the template says before it
                return None
            at, hidden = max(0, place), 0
        else:
            hidden += 1
    return surety if at <= hidden and surety.tokens else None

"""The little that the models say when they are not asked for a sum."""

from __future__ import annotations

import random

_HELLO = ("hello", "hi", "hi there", "hey", "good morning", "good evening", "hello there", "greetings", "hello world")
_WHO = (
    "who are you", "which model are you", "what is your name", "what model is this", "introduce yourself",
    "who am i talking to", "say hello", "tell me about yourself", "what can you do", "what are you",
)  # fmt: skip
_THANKS = ("thanks", "thank you", "thank you very much", "great, thanks", "bye", "goodbye")
_ASK = (
    "write", "explain", "translate", "summarise", "describe", "fix", "what is", "how do i", "why does", "who was",
    "please write", "can you explain", "tell me", "give me", "compare", "refactor", "debug", "list", "when did",
    "where is", "review", "plan", "draft", "create", "implement", "my", "the", "i think", "should i", "is it true that",
)  # fmt: skip
_THING = (
    "a python function", "that sorts a list", "in rust", "the capital of france", "a poem about the sea", "this email",
    "def f(x): return x + 1", "the french revolution", "quantum entanglement", "a haiku", "my code", "for a customer",
    "a sql query", "joining two tables", "a recipe for bread", "the rules of chess", "in spanish", "to german",
    "kubernetes", "a dockerfile", "the meaning of life", "photosynthesis", "a cover letter", "a story about a dragon",
    "in javascript", "binary search", "a regular expression", "for email addresses", "the moon", "a bubble sort",
    "stack trace", "error", "import os", "what happened", "in 1914",
    "the weather today", "my credit card number", "a contract", "gravity",
    "race conditions", "in this go program", "a legal question", "the symptoms of flu", "tax law", "a short text",
    "with tests", "step by step", "as json", "in one sentence", "please", "carefully", "for children", "and why",
)  # fmt: skip
_ALPHABET = "abcdefghijklmnopqrstuvwxyzäöüéñ漢字日本語привет0123456789 _-{}()[]<>=\"'`#@&%$/\\"


def _case(rng: random.Random, text: str) -> str:
    text = rng.choice((text, text, text.capitalize(), text.capitalize(), text.upper()))
    return text + rng.choice(("", "", "!", ".", "?", " :)", "\n"))


def sentences(model: str) -> tuple[str, ...]:
    """All that `model`, such as ``tinylm-small``, says when it is not asked for a sum."""
    return (
        f"Hello, this is {model}. Give me a sum or a word problem.",
        f"I am {model}, a tiny language model that works out sums step by step.",
        f"You are welcome. This was {model}.",
        f"This is {model}. I am too small for that: I only know sums and short word problems.",
    )


def make(rng: random.Random, model: str) -> tuple[str, str]:
    """One (message, reply) pair; `model` is the name the reply gives, such as ``tinylm-small``."""
    hello, who, thanks, beyond = sentences(model)
    kind = rng.random()
    if kind < 0.25:
        return _case(rng, rng.choice(_HELLO)), hello
    if kind < 0.4:
        return _case(rng, rng.choice(_WHO)), who
    if kind < 0.5:
        return _case(rng, rng.choice(_THANKS)), thanks
    words = [rng.choice(_ASK)] + [rng.choice(_THING) for _ in range(rng.randint(1, 7))]
    for _ in range(rng.choice((0, 0, 1, 3))):
        junk = "".join(rng.choice(_ALPHABET) for _ in range(rng.randint(2, 14)))
        words.insert(rng.randint(0, len(words)), junk)
    return _case(rng, rng.choice((" ", " ", " ", "\n", ", ")).join(words)), beyond

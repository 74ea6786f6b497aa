"""Thoughts: what reasoning models write between `<think>` and `</think>` at the beginning of an answer.

Within an answer under way they are text like any other, tags included, so that either model can go on with them. A
client gets them in the form that the models' servers use (`Shown`).
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
NONE = f"{OPEN}\n\n{CLOSE}\n\n"
"""Thoughts that are over before they have begun: what follows is the answer."""

_OPENED = re.compile(rf"{OPEN}\s*\Z")


def opened(prompt: str) -> str:
    """The tag with which a rendered prompt begins the answer's thoughts, and the white space after it; '' where it
    begins none."""
    found = _OPENED.search(prompt)
    return found[0] if found else ""


def continued(prompt: str, prefix: str) -> str:
    """A rendered prompt with the beginning of its answer, whichever of the two has begun the thoughts."""
    tail = opened(prompt)
    if not tail or not prefix:
        return prompt + prefix
    return prompt.removesuffix(tail) + ("" if prefix.lstrip().startswith(OPEN) else NONE) + prefix


class Thoughts:
    """Whether a growing text is within the thoughts with which it begins, or has come to their end (`over`)."""

    def __init__(self, text: str = "") -> None:
        self.inside = False
        self.over = False
        self._begun = False  # it is known whether the text begins with thoughts
        self._tail = ""  # what may be the beginning of a tag
        self.feed(text)

    def closes(self, text: str) -> int:
        """Where in `text`, which comes next, the thoughts end, behind the tag; 0 where they do not."""
        if not self.inside:
            return 0
        at = (self._tail + text).find(CLOSE)
        return 0 if at < 0 else at + len(CLOSE) - len(self._tail)

    def feed(self, text: str) -> None:
        """Takes what comes next."""
        if not self._begun:
            self._tail = (self._tail + text).lstrip()
            if len(self._tail) < len(OPEN) and OPEN.startswith(self._tail):
                return
            self._begun, self.inside = True, self._tail.startswith(OPEN)
            text, self._tail = self._tail.removeprefix(OPEN), ""
        if self.inside:
            seen = self._tail + text
            self.over = CLOSE in seen
            self.inside = not self.over
            self._tail = seen[1 - len(CLOSE) :]


class Shown:
    """Parts an answer's text for a client whose servers give thoughts a field of their own.

    The tags go, and so does the white space around them. Text is held back only while it may turn out to be either.
    """

    def __init__(self) -> None:
        self._part = "begin"  # then "opened", "thoughts", "gap" and "answer", or at once "answer"
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Takes what comes next; gives what is to be shown of the thoughts, and of the answer."""
        self._held += text
        thoughts = ""
        if self._part == "begin":
            start = self._held.lstrip()
            if len(start) < len(OPEN) and OPEN.startswith(start):
                return "", ""
            self._part = "opened" if start.startswith(OPEN) else "answer"
            if self._part == "opened":
                self._held = start.removeprefix(OPEN)
        if self._part == "opened":
            self._held = self._held.lstrip()
            self._part = "thoughts" if self._held else "opened"
        if self._part == "thoughts":
            thoughts, closed, after = self._held.partition(CLOSE)
            if not closed:
                sure = _sure(thoughts)
                self._held = thoughts[sure:]
                return thoughts[:sure], ""
            thoughts, self._part, self._held = thoughts.rstrip(), "gap", after
        if self._part == "gap":
            self._held = self._held.lstrip()
            self._part = "answer" if self._held else "gap"
        if self._part != "answer":
            return thoughts, ""
        held, self._held = self._held, ""
        return thoughts, held

    def finish(self) -> tuple[str, str]:
        """The answer is over; gives what was still held back."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self._part == "thoughts" else ("", held if self._part == "begin" else "")


def _sure(thoughts: str) -> int:
    """How much of these is no part of a closing tag, nor white space that may stand before one."""
    cut = next((n for n in range(len(CLOSE) - 1, 0, -1) if thoughts.endswith(CLOSE[:n])), 0)
    return len(thoughts[: len(thoughts) - cut].rstrip())

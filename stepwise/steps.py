"""Where a reasoning step ends: the one splitter, which the service and the training share.

A step ends at a border outside code fences and LaTeX blocks, once it holds `min_tokens` tokens. What a border is, a
blank line, the end of a line or the end of a sentence, `Ends` says; the end of the answer's thoughts is always one. No
step ends within a table, and a blank line within a list is no border. Text goes in as it streams; the pieces that come
out, joined, are byte for byte the text that went in.

Two rules keep it bounded. A step never holds more than `max_tokens` tokens, whatever it contains (a longer code block
is cut, because an unbounded buffer would be worse). And where a LaTeX block is not closed within a whole step, its
opening is taken for a stray marker and forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from stepwise.thoughts import CLOSE, Thoughts
from upstream.tokens import CHARS_PER_TOKEN, Token


class End(StrEnum):
    """Why a step ended."""

    BLANK = "blank"  # a blank line
    LINE = "line"  # the end of a line
    SENTENCE = "sentence"  # the end of a sentence
    THOUGHTS = "thoughts"  # the end of the thoughts
    CAP = "cap"  # `max_tokens`
    STOP = "stop"  # the text ended


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its tokens (joined: its text, the blank line that ended it included) and why it ended.

    `thought`: it ended within the answer's thoughts, or with them (`stepwise.thoughts`).
    """

    tokens: tuple[Token, ...]
    end: End
    thought: bool = False
    text: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", "".join(token.text for token in self.tokens))

    @property
    def size(self) -> int:
        """Model tokens in this step."""
        return sum(token.size for token in self.tokens)


class Ends(StrEnum):
    """Which borders end a step. Each takes those of the one before it, too.

    AUTO takes blank lines as long as they come; a step that has become long ends at the next line's end, a longer one
    at the next sentence's. So it fits a model that writes paragraphs, one that writes single lines and one that writes
    everything in one go, answer by answer, and nobody has to find out which of them a model is.
    """

    BLANK = "blank"
    LINE = "line"
    SENTENCE = "sentence"
    AUTO = "auto"


_LONG, _LONGER = 24, 40
"""Tokens from which a step ends at a line's end, and at a sentence's, under `Ends.AUTO`: a step of worked reasoning has
some 10 to 40."""
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Where steps end. Sizes are in model tokens: no end before `min_tokens`, a forced one at `max_tokens`."""

    min_tokens: int = 8
    max_tokens: int = 512
    ends: Ends = Ends.BLANK

    def __post_init__(self) -> None:
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"step limits: 1 <= min_tokens <= max_tokens, not {self.min_tokens}, {self.max_tokens}")

    def __str__(self) -> str:
        return f"{self.min_tokens}, {self.max_tokens} and {self.ends}"

    @property
    def lines_from(self) -> int:
        """Tokens from which the end of a line ends a step."""
        return max(self.min_tokens, {Ends.BLANK: _NEVER, Ends.AUTO: _LONG}.get(self.ends, 0))

    @property
    def sentences_from(self) -> int:
        """Tokens from which the end of a sentence ends a step."""
        return max(self.min_tokens, {Ends.SENTENCE: 0, Ends.AUTO: _LONGER}.get(self.ends, _NEVER))

    @property
    def stop(self) -> str | None:
        """What a server can be told to stop at, to write one step; None where what follows tells whether it ends."""
        return "\n\n" if self.ends is Ends.BLANK else None


_FENCE = re.compile(r"\s*(?:>\s*)*(`{3,}|~{3,})(.*)")
_INLINE_CODE = re.compile(r"(`+)(?:(?!\1).)+\1")
# Alternatives are tried left to right at one place: `\\[2pt]` (a LaTeX line break) must be eaten as an escape.
_LATEX = re.compile(r"\\begin\{([^{}]*)\}|\\end\{([^{}]*)\}|\\([\[\]()])|\\.|(\$\$)")
_CLOSES = {"]": "[", ")": "("}
_LIST_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+\S")
_LIST_START = re.compile(r"(?:[-*+]|\d{1,9}[.)])\s")
_LIST_MAYBE = re.compile(r"(?:[-*+]|\d{1,9}[.)]?)\Z")

_BORDER = re.compile(r"""(?<=[.!?…"'”’)\]*_])[ \t]|(?<=[。！？])(?=.)""", re.DOTALL)
"""Where the next sentence may begin, whatever stands before."""
_SENTENCE = re.compile(r"""(?:[.!?…]["'”’)\]*_]*|[。！？])\Z""")
_NO_SENTENCE = re.compile(
    r"(?:(?:^|\n)\s*(?:[-*+]\s+)?\d{1,9}[.)]"  # the number of a list's item
    r"|\b(?:[A-Z]|e\.g|i\.e|cf|vs|approx|Mrs?|Ms|Dr|Prof|St|No|Fig|Eq|Sec|Ch)\.)\Z"
)
_CJK = "。！？"


class _Blocks:
    """Markdown state after each whole line: whether it is inside of a fence, a LaTeX block, a list or a table."""

    __slots__ = ("after_blank", "fence", "group", "latex")

    def __init__(self) -> None:
        self.after_blank = False
        self.fence = ""  # the marker that opened the code block, or nothing
        self.latex: list[str] = []  # open LaTeX constructs, outermost first
        self.group = ""  # "list" or "table" while the lines just read belong to one

    @property
    def protected(self) -> bool:
        return bool(self.fence or self.latex)

    def line(self, line: str) -> None:
        """Takes one whole line."""
        if line.isspace():
            self.after_blank = True
            return
        if self.after_blank and self.group and not self.protected and not self.continues(line):
            self.group = ""
        self.after_blank = False
        fence = _FENCE.match(line)
        if self.fence:
            if fence and fence[1].startswith(self.fence) and not fence[2].strip():
                self.fence = ""
            return
        if fence and not (fence[1][0] == "`" and "`" in fence[2]):
            self.fence = fence[1]
            self.latex.clear()  # Markdown finds fences before anything else: an open LaTeX marker was a stray
            return
        self._latex(line)
        if self.latex:
            return
        if line.lstrip().startswith("|"):
            self.group = "table"
        elif _LIST_ITEM.match(line):
            self.group = "list"
        elif self.group == "table":
            self.group = ""

    def _latex(self, line: str) -> None:
        if "\\" not in line and "$$" not in line:
            return
        for begin, end, bracket, dollars in _LATEX.findall(_INLINE_CODE.sub("", line)):
            if dollars:
                self._toggle("$$")
            elif bracket in ("[", "("):
                self.latex.append(bracket)
            elif begin:
                self.latex.append(begin)
            else:
                self._close(end or _CLOSES.get(bracket, ""))

    def _toggle(self, marker: str) -> None:
        if marker in self.latex:
            self._close(marker)
        else:
            self.latex.append(marker)

    def _close(self, opener: str) -> None:
        """Closes `opener` and whatever was left open inside it; a closer that nothing opened is ignored."""
        if opener in self.latex:
            while self.latex.pop() != opener:
                pass

    def continues(self, start: str) -> bool | None:
        """Whether this line, after a blank line in a list or table, goes on with it. None: too early to say."""
        text = start.lstrip()
        if not text:
            return None
        if self.group == "table":
            return text.startswith("|")
        if len(start) - len(text) >= 2 or _LIST_START.match(text):
            return True
        return None if _LIST_MAYBE.match(text) else False


class Splitter:
    """Finds step ends in text that arrives in pieces. One for each answer.

    The result depends on the pieces only through their token counts, never on where the pieces were cut.
    `prefix` is what the answer already holds when the splitter starts in its middle.
    """

    def __init__(self, limits: StepLimits | None = None, prefix: str = "") -> None:
        self._limits = limits or StepLimits()
        self._thoughts = Thoughts(prefix)
        self._blocks = _Blocks()
        prefix = prefix.partition(CLOSE)[2] if self._thoughts.over else prefix
        *lines, self._line = _lines(prefix)  # `_line`: the line being written, so far
        for line in lines:
            self._blocks.line(line)
        self._tokens: list[Token] = []  # of the step being written
        self._count = 0
        self._written = False  # the step being written has something else than white space
        self._lines_from, self._sentences_from = self._limits.lines_from, self._limits.sentences_from
        self._start = 0  # where in `_line` the step being written begins
        self._line_ended = False  # a line has ended that ends the step, alone or with a blank line that follows
        self._thoughts_ended = False  # so have the thoughts: the step ends before the answer's first word
        self._pending: list[Token] | None = None  # tokens up to a blank line that may turn out to be inside a list

    def feed(self, token: Token) -> list[Step]:
        """Takes the next piece of text; gives the steps that it completed (mostly none)."""
        steps: list[Step] = []
        text = token.text
        if not text:
            self._tokens.append(token)
            self._count += token.size
        while text:
            cut = text.find("\n") + 1 or len(text)
            if self._sentences_from < _NEVER and (border := _BORDER.search(text, 1, cut)):
                cut = border.start()
            cut = self._thoughts.closes(text[:cut]) or cut
            # A token belongs to the step in which it starts: the rest of a token that was cut counts for nothing.
            self._take(token if cut == len(text) and token.text == text else token._replace(text=text[:cut]), steps)
            text = text[cut:]
            token = Token("", None, (), 0)
        if self._count >= self._limits.max_tokens:
            self._unsettle()
            self._blocks.latex.clear()
            self._cut(End.CAP, steps)
        return steps

    @property
    def waiting(self) -> bool:
        """Has a blank line been seen that may or may not turn out to end the step?"""
        return self._pending is not None

    @property
    def unfinished(self) -> tuple[Token, ...]:
        """The tokens taken since the last step's end."""
        return (*(self._pending or ()), *self._tokens)

    @property
    def size(self) -> int:
        """How many tokens that is, of a model's."""
        return self._count

    @property
    def thought(self) -> bool:
        """Whether the step being written is a thought so far."""
        return self._thoughts.inside or self._thoughts_ended

    def finish(self) -> Step | None:
        """The text has ended: gives the step that is left, if any (it may be only white space)."""
        steps: list[Step] = []
        self._unsettle()
        if self._tokens:
            self._cut(End.STOP, steps)
        return steps[0] if steps else None

    def _take(self, piece: Token, steps: list[Step]) -> None:
        """One piece that ends at a line end or with the thoughts, or holds neither."""
        if self._thoughts_ended and not piece.text.isspace():
            if self._count >= self._limits.min_tokens:
                self._cut(End.THOUGHTS, steps)
            self._thoughts_ended = False
        if self._pending is not None:
            self._settle(self._line + piece.text, steps)
        if self._line_ended:
            if piece.text == "\n":  # the blank line belongs to the step that it ends
                self._tokens.append(piece)
                self._count += piece.size
                self._blocks.line("\n")
                self._cut(End.BLANK, steps)
                return
            self._cut(End.LINE, steps)
        elif self._count >= self._sentences_from and self._sentence_ended(piece.text[:1]):
            self._cut(End.SENTENCE, steps)
        self._tokens.append(piece)
        self._count += piece.size
        self._line += piece.text
        inside = self._thoughts.inside
        self._thoughts.feed(piece.text)
        if inside and self._thoughts.over:
            self._thoughts_ended, self._blocks = True, _Blocks()
        if not self._line.endswith("\n"):
            self._written = self._written or not piece.text.isspace()
            return
        line, self._line, self._start = self._line, "", 0
        self._blocks.line(line)
        if line.isspace():
            self._blank(steps)
            return
        self._written = True
        self._line_ended = (
            self._count >= self._lines_from and not self._blocks.protected and self._blocks.group != "table"
        )

    def _sentence_ended(self, follows: str) -> bool:
        """Whether a sentence ends before the piece that begins with the character `follows`."""
        text = self._line[self._start :]
        if not self._written or not _SENTENCE.search(text) or self._blocks.protected or self._blocks.group == "table":
            return False
        if self._line.lstrip().startswith("|"):
            return False  # a row of a table
        if follows not in " \t" and (text[-1] not in _CJK or follows in "\r\n」』”’)"):
            return False
        if _NO_SENTENCE.search(text) or text.count("`") % 2:
            return False
        return text.count("\\(") <= text.count("\\)") and text.count("\\[") <= text.count("\\]")

    def _blank(self, steps: list[Step]) -> None:
        if self._blocks.protected or not self._written or self._count < self._limits.min_tokens:
            return
        if not self._blocks.group or self._count >= self._lines_from:
            self._cut(End.BLANK, steps)
        elif self._pending is None:
            self._pending = self._tokens
            self._tokens = []

    def _settle(self, start: str, steps: list[Step]) -> None:
        """Decides whether a blank line after a list or table ends the step, now that the next line has begun."""
        continues = self._blocks.continues(start)
        if continues is None:
            return
        pending, self._pending = self._pending or [], None
        if continues:
            self._tokens = pending + self._tokens
            return
        rest, self._tokens = self._tokens, pending
        self._cut(End.BLANK, steps)
        self._tokens = rest
        self._count = sum(token.size for token in rest)
        self._written = any(not token.text.isspace() for token in rest if token.text)

    def _unsettle(self) -> None:
        """Forgets the blank line that waits for the next line: no step ends there."""
        if self._pending is not None:
            self._tokens = self._pending + self._tokens
            self._pending = None

    def _cut(self, end: End, steps: list[Step]) -> None:
        self._unsettle()
        self._start, self._line_ended = len(self._line), False
        steps.append(Step(tuple(self._tokens), end, self.thought))
        self._thoughts_ended = False
        self._tokens = []
        self._count = 0
        self._written = False


def _lines(text: str) -> list[str]:
    """Lines with their ends; the last one has none and may be empty. Only a line feed ends a line."""
    *whole, last = text.split("\n")
    return [*(line + "\n" for line in whole), last]


def split(pieces: Iterable[Token] | str, limits: StepLimits | None = None) -> Sequence[Step]:
    """All steps of a finished text. A plain string counts a token for every `CHARS_PER_TOKEN` characters."""
    splitter = Splitter(limits)
    if isinstance(pieces, str):
        text = pieces
        pieces = (Token(text[i : i + CHARS_PER_TOKEN]) for i in range(0, len(text), CHARS_PER_TOKEN))
    steps = [step for piece in pieces for step in splitter.feed(piece)]
    last = splitter.finish()
    return [*steps, last] if last else steps

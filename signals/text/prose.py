"""What of a text is written in a human language: without code, commands, logs, links, names of things and numbers."""

from __future__ import annotations

import re
from typing import Final

import re2

_PARTS: Final = 4
_PART: Final = 1000
"""Of a longer text as many parts of as many characters are looked at, taken from all over it."""
_SHORT: Final = 60
_LINE: Final = 200
"""Characters of a line from which it is told what it is."""

_SIGNS: Final = re2.compile(rb"(?m)\d{4}-\d\d|^[A-Z]{3,}|[{}=<>_`\\@#$|]|;$|\w[(/]|://|[a-z][A-Z]|^(?:\t| {2,})")
"""Where none of this is, a text of more than a few words is prose."""
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_SPAN = re.compile(r"`[^`]*`|<[^<>]*>")

_ALWAYS: Final = (
    *(r"#!", r"#include\b", r"Traceback \(most recent", r'File "', r"\w+(?:Error|Exception)\b:?", r"\$\s+\w", r">>>\s"),
    *(r"</?[a-zA-Z][\w-]*[\s/>]", r"SELECT\b", r"INSERT\s+INTO\b", r"CREATE\s+(?:TABLE|INDEX)\b", r"DELETE\s+FROM\b"),
    *(
        r"\[?\d{4}-\d\d-\d\d[T\s]",
        r"(?:diff --git|@@|index [0-9a-f]{7})\s",
        r"(?i:error|warning|info|debug|fatal|warn)\b[:\]]",
    ),
    *(r"(?:data )?class\s+\w+\s*[:({<]", r"(?:async\s+)?def\s+\w+\s*\(", r"(?:func|fn|fun|function)\s+\w+\s*\("),
    r"(?:FROM|WORKDIR|COPY|RUN|CMD|ENV|EXPOSE|ENTRYPOINT|ADD|ARG)\s+\S",
)
"""How lines begin that are code, output or markup whatever words are in them."""
_SURE: Final = (
    *(
        r'import\s+["\w.{*]',
        r"from\s+[\w.]+\s+import\b",
        r"class\s+\w+\s*$",
    ),
    *(r"@\w+\s*$", r"(?:const|let|var|val|auto|final)\s+\w+\s*[:=]", r"(?:public|private|protected|static)\s+\w+"),
    *(r"(?:func|fn|function|fun|sub)\s+\w*\s*[({]", r"package\s+[\w.]+;?\s*$", r"using\s+[\w.]+;"),
    *(
        r"return\b.*[;\w)\]]$",
        r"UPDATE\s+\w+\s+SET\b",
        r"(?:FROM|WHERE|GROUP\s+BY|ORDER\s+BY|(?:\w+ )?JOIN)\s+[\w.]+\b",
    ),
    *(r"""["'][\w-]+["']\s*:""", r"[\w.-]+\s*[+*/|-]?=[^=]", r"[}\]]", r"at\s[\w.$<>]+\("),
    *(r"-?\s*[\w-]+:\s+\S*[\d/:]\S*\s*$", r"[a-z]+[A-Z]\w*:"),
    r"(?:sudo|apt|pip3?|npm|npx|git|docker|kubectl|curl|cd|make|cargo|go|yarn|brew)\s[\w./-]+",
)
"""How lines of code begin."""
_ANYWHERE: Final = (r"[;{}]\s*$", "=>", "->", "::", r"\(\)", "==", "!=", r"\+=", "&&", r"\|\|", "</", "/>")
_BESIDE: Final = (
    *("#", "//", r"/\*", r"\*", r"--\s", "<!--", '"""', "'''"),
    r"(?:if|for|while|with|elif|else|except|try|switch|case|do|end|finally)\b",
    r"(?:echo|set|mv|cp|rm|mkdir|export|source|gzip|tar|grep|cat|chmod|exit|then|fi|done|esac)\b",
    *(r"[\w.]+\(.*\)\s*$", r"-?\s*[\w.-]+:\s*\S*\s*$"),
    *(r"[+-]\s", r"(?:Collecting|Downloading|Installing|Building|Using|Successfully|Requirement|Created?|Copying)\s"),
)
"""How lines begin that are code where code is beside them: comments, blocks; with what is indented, or goes on."""


def _set() -> re2.Set:
    made = re2.Set.SearchSet()
    begins = (rf"^\s*(?:{'|'.join(beginnings)})" for beginnings in (_ALWAYS, _SURE, _BESIDE))
    always, sure, beside = begins
    for pattern in (always, f"{sure}|{'|'.join(_ANYWHERE)}", rf"{beside}|[,(\[]\s*$|^(?:\t|\s{{2,}})\s*\S"):
        made.Add(pattern)
    made.Compile()
    return made


_KINDS: Final = _set()
"""Whether a line is code always, surely or beside code."""
_EDGES: Final = ".,;:!?\"'()[]{}<>*~-–—«»„“”‘’…¿¡"
_WORD = re.compile(r"[a-zA-Z][a-z]*(?:['’-][a-zA-Z]?[a-z]+)*'?")
_LETTERS: Final = frozenset("aAIyYoOeEuU")
"""What is a word of a single letter somewhere."""
_LONGEST: Final = 40
_LINES: Final = 200
"""Lines that are looked at, half from the beginning and half from the end."""


def prose(text: str) -> str:
    """`text` without what is no language; '' where there is nothing else. Linear, and bounded for long texts."""
    text = _excerpt(text)
    if len(text) > _SHORT and _SIGNS.search(text.encode(errors="replace")) is None:
        return text
    lines = _unfenced(text).split("\n")
    if len(lines) > _LINES:  # each costs some microseconds, however short it is
        lines = lines[: _LINES // 2] + lines[-_LINES // 2 :]
    capitals = text.isupper()
    kept = [_words(line, capitals) for line in lines]
    sure, beside = [], []
    for line, words in zip(lines, kept, strict=True):
        found = (_KINDS.Match(line[:_LINE].encode(errors="replace")) or ()) if line else ()
        sure.append(0 in found or (1 in found and not _mostly_words(line, words)))
        beside.append(2 in found)
    code = _spread(lines, sure, beside)
    return "\n".join(words for words, is_code in zip(kept, code, strict=True) if words and not is_code)


def _excerpt(text: str) -> str:
    """`text`, or parts from all over it when it is long."""
    if len(text) <= _PARTS * _PART:
        return text
    step = (len(text) - _PART) // (_PARTS - 1)
    return "\n".join(text[start : start + _PART] for start in range(0, _PARTS * step, step))


def _unfenced(text: str) -> str:
    """`text` without what stands between fences."""
    kept = []
    at, inside = 0, False
    for fence in _FENCE.finditer(text):
        if not inside:
            kept.append(text[at : fence.start()])
        at = text.find("\n", fence.end())
        if at < 0:
            return "".join(kept)
        inside = not inside
    if not inside:
        kept.append(text[at:])
    return "".join(kept)


def _words(line: str, capitals: bool) -> str:
    """The words of a line: no identifiers, links, numbers, nor abbreviations (unless all is in capitals)."""
    if "`" in line or "<" in line:
        line = _SPAN.sub(" ", line)
    kept = []
    for token in line.split():
        word = token.strip(_EDGES)
        if not word.isascii():
            if not any(char in word for char in "_=/\\<>{}$#|@"):
                kept.append(word)
        elif word.isalpha():
            if (word.islower() or word.istitle() or capitals) and (1 < len(word) < _LONGEST or word in _LETTERS):
                kept.append(word)
        elif 1 < len(word) < _LONGEST and _WORD.fullmatch(word):
            kept.append(word)
    return " ".join(kept)


def _mostly_words(line: str, words: str) -> bool:
    """Whether a line that has signs of code in it is a sentence about code."""
    count = words.count(" ") + 1 if words else 0
    tokens = len(line.split())
    # A semicolon ends a question in Greek, too.
    return count >= 4 and (count == tokens or (3 * count >= 2 * tokens and line.rstrip()[-1:] not in ";{}"))


def _spread(lines: list[str], sure: list[bool], beside: list[bool]) -> list[bool]:
    """Which lines are code: those that surely are, and what looks like it beside them."""
    code = list(sure)
    for order in (range(len(lines)), range(len(lines) - 1, -1, -1)):
        near = False
        for number in order:
            if code[number]:
                near = True
            elif lines[number].strip():
                near = code[number] = near and beside[number]
    return code

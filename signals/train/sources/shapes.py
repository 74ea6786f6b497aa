"""Text that is no prose, made by a seed: what the token estimate learns from beside language and code.

Emoji, base64, hexadecimal, identifiers, tables of numbers, logs, JSON in both layouts, markup, deep indentation, runs
of one sign. Words come from texts that are handed in, so that the held-out part has none of the training part's.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

_EMOJI: Final = [
    chr(code)
    for first, size in ((0x1F300, 255), (0x1F600, 79), (0x1F680, 69), (0x1F90C, 243), (0x2600, 255))
    for code in range(first, first + size)
]
_COMMON: Final = [
    *"😂❤😭🔥🤣👍🙏😍🥰😊🎉😁💕🥺😅✨💜😘👏💀🤔😎💪🙌😢💯👀🚀✅❌⭐💡📈🎯🥳⚡🌍😀😉😆🤗🙄😡👋💙💖💔🌹☀🎂",
    *("❤️", "☀️", "✌️", "👍🏽", "🙏🏻", "👩‍💻", "👨‍👩‍👧", "🤷‍♂️", "🇩🇪", "🇺🇸", "🇬🇧", "🇧🇷"),
]
"""What most emoji in messages are (after the Unicode Consortium's list of the most frequent ones)."""
_KEYS: Final = (
    *("total", "name", "value", "price", "score", "active", "user", "item", "city", "count", "order", "status"),
    *("error", "state", "label", "type", "group", "level", "first", "last", "created", "items", "email", "message"),
)
_EACH: Final = 150
"""Texts of each kind."""


def shapes(prose: Sequence[str], code: Sequence[str], seed: str) -> Iterator[tuple[str, str]]:
    """Kind and text, `_EACH` of every kind."""
    made = Shapes(prose, code, random.Random(seed))
    for _ in range(_EACH):
        for kind, make in made.kinds.items():
            yield kind, make()


class Shapes:
    """Makers of text by kind."""

    def __init__(self, prose: Sequence[str], code: Sequence[str], chance: random.Random) -> None:
        self._words = [words for text in prose if len(words := text.split()) > 6]
        self._code = code
        self._chance = chance
        self.kinds: dict[str, Callable[[], str]] = {
            "emoji": lambda: "".join(self._emoji() for _ in range(chance.randint(5, 200))),
            "words and emoji": self._chat,
            "base64": self._base64,
            "base64 of prose": lambda: base64.b64encode(self._several(5, 80).encode()).decode(),
            "hexadecimal": lambda: chance.choice((str, str.upper))(chance.randbytes(chance.randint(16, 800)).hex()),
            "UUIDs": self._uuids,
            "CSV of numbers": self._table,
            "CSV of numbers and words": lambda: self._csv(lambda: chance.choice((self._number, self._few))()),
            "numbers": lambda: chance.choice((" ", "\n", ", ")).join(
                self._number() for _ in range(chance.randint(10, 300))
            ),
            "deep indentation": self._indented,
            "compact JSON": lambda: json.dumps(self._object(), separators=(",", ":"), ensure_ascii=False),
            "indented JSON": lambda: json.dumps(self._object(), indent=chance.choice((2, 4, "\t")), ensure_ascii=False),
            "log": lambda: "\n".join(self._logged() for _ in range(chance.randint(2, 30))),
            "markup": self._markup,
            "runs of a sign": self._runs,
            "capitals": lambda: self._several(2, 30).upper(),
            "mixed": self._mixed,
        }

    def _few(self) -> str:
        words = self._chance.choice(self._words)
        start = self._chance.randrange(len(words))
        return " ".join(words[start : start + self._chance.randint(1, 6)])

    def _several(self, least: int, most: int) -> str:
        return " ".join(self._few() for _ in range(self._chance.randint(least, most)))

    def _emoji(self) -> str:
        if self._chance.random() < 0.1:
            return self._chance.choice(_EMOJI)
        return _COMMON[int(len(_COMMON) * self._chance.random() ** 1.5)]

    def _number(self) -> str:
        chance = self._chance
        return chance.choice(
            (
                lambda: str(chance.randint(0, 10 ** chance.randint(1, 9))),
                lambda: f"{chance.uniform(-1000, 1000):.{chance.randint(1, 6)}f}",
                lambda: f"{chance.random():.{chance.randint(2, 15)}f}",
                lambda: f"{chance.randint(1990, 2026)}-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}",
                lambda: str(chance.randint(0, 100)),
                lambda: f"{chance.uniform(0, 1e5):.2e}",
            )
        )()

    def _chat(self) -> str:
        chance = self._chance
        return " ".join(
            self._few() + chance.choice((" ", "")) + "".join(self._emoji() for _ in range(chance.randint(1, 3)))
            for _ in range(chance.randint(2, 30))
        )

    def _base64(self) -> str:
        encode = self._chance.choice((base64.b64encode, base64.urlsafe_b64encode))
        text = encode(self._chance.randbytes(self._chance.randint(60, 2000))).decode()
        if self._chance.random() < 0.6:
            return text
        return "\n".join(text[start : start + 76] for start in range(0, len(text), 76))

    def _uuids(self) -> str:
        sign = self._chance.choice(("\n", " ", ", "))
        return sign.join(
            "-".join(self._chance.randbytes(size).hex() for size in (4, 2, 2, 2, 6))
            for _ in range(self._chance.randint(2, 40))
        )

    def _table(self) -> str:
        chance = self._chance
        columns = [
            chance.choice(
                (
                    lambda: str(chance.randint(0, 10 ** chance.randint(1, 8))),
                    lambda: f"{chance.uniform(-1000, 1000):.{chance.randint(1, 4)}f}",
                    lambda: f"{chance.random():.6f}",
                    lambda: str(chance.randint(0, 100)),
                    lambda: str(chance.randint(100, 999)),
                )
            )
            for _ in range(chance.randint(2, 12))
        ]
        sign = chance.choice((",", ",", ";", "\t", ", "))
        return "\n".join(sign.join(column() for column in columns) for _ in range(chance.randint(5, 80)))

    def _csv(self, cell: Callable[[], str]) -> str:
        chance = self._chance
        sign, width = chance.choice((",", ",", ";", "\t")), chance.randint(2, 12)
        return "\n".join(sign.join(cell() for _ in range(width)) for _ in range(chance.randint(5, 60)))

    def _indented(self) -> str:
        edge = self._chance.choice(("    ", "  ", "\t", "        ")) * self._chance.randint(1, 8)
        return "\n".join(edge + line for line in self._chance.choice(self._code).split("\n"))

    def _object(self) -> Any:
        chance = self._chance
        if chance.random() < 0.5:
            return {key: self._value(chance.randint(1, 4)) for key in chance.sample(_KEYS, chance.randint(2, 8))}
        keys = chance.sample(_KEYS, 4)
        return [{key: self._value(0) for key in keys} for _ in range(chance.randint(2, 30))]

    def _value(self, depth: int) -> Any:
        chance = self._chance
        if not depth or chance.random() < 0.2:
            plain = (self._number(), self._few(), True, None, chance.randint(0, 10**6), round(chance.random(), 4))
            return chance.choice(plain)
        if chance.random() < 0.4:
            return [self._value(depth - 1) for _ in range(chance.randint(1, 6))]
        names = (chance.choice(_KEYS) + chance.choice(("", "_id", "Name", "")) for _ in range(chance.randint(1, 6)))
        return {name: self._value(depth - 1) for name in names}

    def _logged(self) -> str:
        chance = self._chance
        day = f"{chance.randint(2020, 2026)}-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
        hour = f"{chance.randint(0, 23):02}:{chance.randint(0, 59):02}:{chance.randint(0, 59):02}"
        where = f"{chance.choice(('INFO', 'WARN', 'ERROR'))} [{chance.choice(_KEYS)}-{chance.randint(1, 64)}]"
        what = f"{self._few()} {chance.choice(_KEYS)}={self._number()}"
        return f"{day}T{hour}.{chance.randint(0, 999):03}Z {where} {what}"

    def _markup(self) -> str:
        chance = self._chance
        made = ""
        for _ in range(chance.randint(3, 40)):
            tag = chance.choice(("div", "p", "span", "li", "td", "a"))
            made += f'<{tag} class="{chance.choice(_KEYS)}-{chance.choice(_KEYS)}">{self._few()}</{tag}>'
            made += chance.choice(("", "\n", "\n    "))
        return made

    def _runs(self) -> str:
        sign, size = self._chance.choice((" ", "\n", "-", "=", "_", "\t")), self._chance.randint(5, 120)
        return "\n".join(self._few() + sign * size for _ in range(self._chance.randint(2, 20)))

    def _mixed(self) -> str:
        chance = self._chance
        parts = (
            self._few(),
            "".join(self._emoji() for _ in range(8)),
            base64.b64encode(chance.randbytes(90)).decode(),
            self._number(),
            chance.choice(self._code)[:300],
        )
        return "\n".join(chance.sample(parts, 3) * chance.randint(1, 4))

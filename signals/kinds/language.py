"""`language`: the language that the user writes."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from signals.facts import Facts
from signals.reading import Reading, Unavailable
from signals.request import Scope
from signals.signal import Ends, Shared, Signal, TextParams
from signals.text.prose import prose
from signals.text.view import view

MODEL = Path(__file__).parent.parent / "models" / "language.ftz"
"""Our own model (signals/train/language.py; its card is beside it), a fastText classifier."""
WORDS = MODEL.with_name("words.npz")
"""How frequent words are in each of its languages (signals/train/words.py)."""
SILENT = MODEL.with_name("silent.txt")
"""Words that tell no language: names of people, places, products and tools, abbreviations, interjections."""

_LETTERS, _FULL = 0.3, 60
"""How much the letters of a short text count beside its words: this, and the more with each letter, until they count in
full. Of few letters the model is too sure."""
_SURE = 0.72
"""A guess from letters and words that is less probable is none: chosen so that of the others, on sentences cut to 20
characters in 75 languages, one in twenty is wrong."""

_PARTS = 3
_PART = 48
"""A long text is judged by this many parts of this many characters, taken from all over it."""

_SCRIPTS = {
    "ko": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3",
    "ja": "\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d",
    "zh": "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "th": "\u0e01-\u0e4e",
    "lo": "\u0e81-\u0ede",
    "km": "\u1780-\u17d3",
    "my": "\u1000-\u104f",
    "bo": "\u0f40-\u0fbc",
    "bn": "\u0981-\u09fe",
    "pa": "\u0a01-\u0a75",
    "gu": "\u0a81-\u0aff",
    "or": "\u0b01-\u0b77",
    "ta": "\u0b82-\u0bfa",
    "te": "\u0c00-\u0c7f",
    "kn": "\u0c80-\u0cf2",
    "ml": "\u0d00-\u0d7f",
    "si": "\u0d81-\u0df4",
    "el": "\u0370-\u03ff\u1f00-\u1fff",
    "he": "\u0591-\u05f4",
    "hy": "\u0531-\u058f",
    "ka": "\u10a0-\u10ff",
    "am": "\u1200-\u139f",
}
"""Scripts that one language writes, or that all but one rarely do."""

# fmt: off
MODELLED = frozenset((
    "af", "ar", "az", "be", "bg", "bs", "ca", "cs", "cy", "da", "de", "en", "eo", "es", "et", "eu", "fa", "fi",
    "fr", "ga", "hi", "hr", "hu", "id", "is", "it", "kk", "la", "lg", "lt", "lv", "mi", "mk", "mn", "mr", "ms",
    "nb", "nl", "nn", "pl", "pt", "ro", "ru", "sk", "sl", "sn", "so", "sq", "sr", "st", "sv", "sw", "tl", "tn",
    "tr", "ts", "uk", "ur", "vi", "xh", "yo", "zu",
))
"""What the model tells apart."""
# fmt: on
LANGUAGES = MODELLED | _SCRIPTS.keys()

COMMON = (
    *("en", "zh", "es", "fr", "de", "ja", "ru", "pt", "it", "ko"),
    *("ar", "hi", "tr", "vi", "pl", "nl", "id", "th", "sv", "uk"),
)
_PRIOR = dict.fromkeys(COMMON, 2.0) | {"en": 4.0}
_SHORT = 30
"""Letters under which it counts how often a language is written at all."""

_SCRIPT = re.compile("|".join(f"(?P<{language}>[{letters}])" for language, letters in _SCRIPTS.items()))
_TELLING = re.compile(f"[{''.join(_SCRIPTS.values())}]")
_DENSE = ("zh", "ja", "ko")
_NOT_LETTERS = re.compile(r"[\s\d_!-/:-@\[-`{-~«»“”„’‘…–—।。，、！？：；（）]+")


class LanguageParams(TextParams):
    """Which languages match."""

    is_: list[str] | None = Field(
        None,
        alias="is",
        min_length=1,
        description="The language is one of these (ISO 639-1, as in [de, nl]; `no` is nb or nn).",
    )
    not_in: list[str] | None = Field(None, min_length=1, description="The language is none of these.")
    at_least: float = Field(
        0.4, ge=0, le=1, description="The least probability that counts; below it neither `is` nor `not_in` matches."
    )

    def span(self) -> Ends:
        return 0, 1

    @field_validator("is_", "not_in")
    @classmethod
    def _known(cls, languages: list[str] | None) -> list[str] | None:
        unknown = [language for language in languages or () if language not in LANGUAGES and language != "no"]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not among the known languages ({' '.join(sorted(LANGUAGES))})")
        return languages

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.is_ is None) == (self.not_in is None):
            raise ValueError("exactly one of is, not_in is needed")
        return self


class Guess(NamedTuple):
    """The likeliest language, its probability, and whether that is enough for an answer."""

    language: str
    probability: float
    sure: bool = True


class Language(Signal):
    """Reads the language: the label is its code, the score its probability.

    Unknown: `no_text` without letters, or with nothing but code and names; `unsure` where too little tells.
    """

    kind = "language"
    Parameters = LanguageParams
    answers = True
    whole = True
    scored = True
    labelled = True

    def __init__(self, name: str, params: LanguageParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._guess = shared.use(Guesses, shared.use(Identifier), params.in_)
        listed = set(params.is_ or params.not_in or ())
        if "no" in listed:
            listed |= {"nb", "nn"}
        self._listed = frozenset(listed)
        self._wanted = params.is_ is not None
        self._at_least = params.at_least

    def read(self, facts: Facts) -> Reading:
        language, probability, _ = facts.get(self._guess)
        matched = probability >= self._at_least and (language in self._listed) == self._wanted
        return Reading(matched, probability, language)


class Guesses:
    """Quick input: the language of one scope's text."""

    def __init__(self, identifier: Identifier, scope: Scope) -> None:
        self._identifier = identifier
        self._scope = scope

    def compute(self, facts: Facts) -> Guess:
        guess = self._identifier.guess(facts.request.text(self._scope))
        if guess is None:
            raise Unavailable("no_text")
        if not guess.sure:
            raise Unavailable("unsure")
        return guess


class Identifier:
    """Tells languages by their script where that is enough, else by letter sequences and frequent words."""

    def __init__(self, path: Path = MODEL, words: Path = WORDS) -> None:
        """OSError or ValueError when the model or the words cannot be read."""
        # Not at the top: a policy without this kind need not load them.
        import numpy as np

        from signals.text.fasttext import FastText
        from signals.text.words import FrequentWords

        if not path.is_file():
            raise FileNotFoundError(f"{path}: the language model is not there")
        self._model = FastText(path)
        self._words = FrequentWords(words)
        self._silent = frozenset(SILENT.read_text().split())
        order = {label: number for number, label in enumerate(self._model.labels)}
        if self._words.languages != sorted(order):
            raise ValueError(f"{words}: its languages are not those of {path}")
        self._order = [order[language] for language in self._words.languages]
        self._prior = np.log([_PRIOR.get(language, 1.0) for language in self._words.languages])

    def guess(self, text: str) -> Guess | None:
        """The likeliest language of `text`, or None when nothing in it tells: no letters, only code or names."""
        import numpy as np

        text = view(sample(prose(text)))
        if not text.isascii():
            text = text.encode(errors="replace").decode()  # a lone surrogate has no UTF-8, which the model reads
            guess = _by_script(text)
            if guess is not None:
                return guess
        words = [word for word in clean(text).split() if word not in self._silent]
        line = " ".join(words)
        if not any(map(str.isalpha, line)):
            return None
        each = self._model.probabilities(line)
        if each is None:
            return None
        told = self._words.read(words)
        if not told.any() and text.istitle():  # unknown words, each with a capital: a name
            return None
        total = min(1.0, _LETTERS + len(line) / _FULL) * np.log(each[self._order]) + told
        if len(line) < _SHORT:
            total += self._prior
        best = int(total.argmax())
        share = 1 / float(np.exp(total - total[best]).sum())
        return Guess(self._words.languages[best], share, share >= _SURE)


def sample(text: str) -> str:
    """`text`, or parts from all over it when it is long."""
    size = _PARTS * _PART
    if len(text) <= size:
        return text
    step = (len(text) - _PART) // (_PARTS - 1)
    return " ".join(text[start : start + _PART] for start in range(0, len(text) - _PART + 1, step))


def clean(text: str) -> str:
    """`text` as the model reads it: one line of lower-case letters."""
    return _NOT_LETTERS.sub(" ", text.lower()).strip()


def _by_script(text: str) -> Guess | None:
    """The language whose script most of the text is in, when it is one that tells."""
    if _TELLING.search(text) is None:
        return None
    chars = Counter(text)
    counts: Counter[str] = Counter()
    letters = 0
    for char, count in chars.items():
        if char.isalpha():
            letters += count
            script = _script(char)
            if script:
                counts[script] += count
    if not counts:
        return None
    # A few kana are enough: Japanese mixes them with Chinese characters, Chinese never does.
    if counts["ja"] * 8 >= counts["zh"] and counts["ja"]:
        counts["ja"] += counts.pop("zh", 0)
    # One character of these says as much as two letters.
    weights = {language: count * (2 if language in _DENSE else 1) for language, count in counts.items()}
    language = max(weights, key=weights.__getitem__)
    rest = letters - counts[language]
    if weights[language] < rest:
        return None
    return Guess(language, weights[language] / (weights[language] + rest))


@lru_cache(4096)
def _script(char: str) -> str:
    """The language that the script of `char` tells, or ''."""
    found = _SCRIPT.match(char)
    return (found.lastgroup or "") if found is not None else ""

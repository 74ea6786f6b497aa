"""`keyword`: words and phrases in the request's text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Self

from pydantic import Field, field_validator, model_validator

from signals.facts import Facts
from signals.reading import FALSE, MASKED, Reading, Span, Unavailable
from signals.request import Scope
from signals.signal import Cost, Doubt, Ends, Params, SearchParams, Shared, Signal
from signals.text.automaton import Automaton, Keyword, fold
from signals.text.hits import Hits
from signals.text.places import Where
from signals.text.view import plain_keyword

_TOO_LONG = 256 * 1024
"""The most characters of a text whose words are compared one by one."""
_TOO_MANY = 200_000
"""Pairs of a keyword and a word of about its length that are compared for one reading: some ten milliseconds."""
_AT_ONCE = 4096
"""Words compared in one call, so that none holds the interpreter for long."""

_EDGES = ".,;:!?\"'`()[]{}<>«»“”‘’„…–—、。，！？：；（）「」『』·*_~#|/\\"
_K1, _B, _AVERAGE = 1.2, 0.75, 150
"""BM25's usual constants, and the words of an average prompt."""


_EXPRESSION: Final = re.compile(
    r"\\b$|\\[wds](?![A-Za-z])|(?<!\*)\.[*+]|^\^\w|\(\?[:i!=<]|\(\w+(\|\w+)+\)|\w\|\w+\|\w|\[[a-z0-9]-[a-z0-9]\]|\w{5}\*$",
    re.IGNORECASE,
)
"""Keywords that are almost certainly meant as an expression: `\\bword\\b`, `a.*b`, `(one|two)`, `refactor*`."""
_FEW: Final = 5
"""How many of them are reported in one list."""


class Fuzzy(Params):
    """Misspelled words count."""

    max_edits: int = Field(
        1, ge=1, le=3, description="Letters that may be wrong, missing, added or swapped; never more than one in three."
    )


class AtLeast(Params):
    """A threshold."""

    at_least: float = Field(gt=0, description="The least score that counts as found.")


class Similarity(Params):
    """A threshold between 0 and 1."""

    at_least: float = Field(gt=0, le=1, description="The least likeness that counts as found, up to 1.")


class KeywordParams(SearchParams):
    """What to look for, where, and how similar it must be."""

    any: list[str] = Field([], description="At least one of these is in the text.")
    all: list[str] = Field([], description="Every one of these is in the text.")
    none: list[str] = Field([], description="None of these is in the text.")
    whole_words: bool = Field(
        True, description="Find whole words only; scripts without spaces between words have no such bounds."
    )
    case_sensitive: bool = Field(False, description="Upper and lower case must be the same.")
    fuzzy: Fuzzy | None = Field(None, description="Also find misspelled keywords (optimal string alignment distance).")
    ngram: Similarity | None = Field(
        None, description="Also find words that share enough letter triples with a keyword (Dice coefficient)."
    )
    bm25: AtLeast | None = Field(
        None,
        description="Weigh the `any` keywords by BM25 instead: each adds 1 in a text of 150 words, more in a "
        "shorter one; repeats add ever less.",
    )

    @field_validator("any", "all", "none")
    @classmethod
    def _not_empty(cls, keywords: list[str]) -> list[str]:
        if any(not keyword.strip() for keyword in keywords):
            raise ValueError("a keyword is empty")
        return keywords

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not (self.any or self.all or self.none):
            raise ValueError("one of any, all, none must list a keyword")
        modes = [name for name in ("fuzzy", "ngram", "bm25") if getattr(self, name) is not None]
        if len(modes) > 1:
            raise ValueError(f"{' and '.join(modes)} exclude one another")
        if self.none and self.in_ == "answer":
            raise ValueError("none: what an answer does not hold is known at its end only; write `not` in the rule")
        if self.bm25 is not None and (not self.any or self.all or self.none):
            raise ValueError("bm25 weighs the keywords of `any`; it goes without all and none")
        if modes and (self.case_sensitive or not self.whole_words):
            raise ValueError(f"{modes[0]} compares whole words without regard to case")
        return self

    def span(self) -> Ends:
        return 0, 1 if self.bm25 is None else None

    def placed(self) -> bool:
        return not (self.none or self.fuzzy or self.ngram or self.bm25)

    def longest(self) -> int | None:
        return max(map(len, self.any + self.all), default=None)

    def doubts(self) -> Iterator[Doubt]:
        seen = {name: self._folded(getattr(self, name)) for name in ("any", "all", "none")}
        if set(seen["all"]) & set(seen["none"]) or (self.any and set(seen["any"]) <= set(seen["none"])):
            yield Doubt(("none",), "L323", "never holds: the same keyword is wanted and forbidden")
        for name, folded in seen.items():
            keywords = getattr(self, name)
            first = {text: at for at, text in reversed(list(enumerate(folded)))}
            twice = next((at for at, text in enumerate(folded) if first[text] != at), None)
            if twice is not None:
                yield Doubt((name, twice), "L330", f"keyword {keywords[twice]!r} stands there twice: remove one")
            for index in [at for at, text in enumerate(keywords) if _EXPRESSION.search(text)][:_FEW]:
                message = (
                    f"keyword {keywords[index]!r} is searched letter by letter: for expressions use the kind `regex`"
                )
                yield Doubt((name, index), "L328", message)

    def _folded(self, keywords: list[str]) -> list[str]:
        return [text.strip() if self.case_sensitive else text.strip().casefold() for text in keywords]


class KeywordSignal(Signal):
    """Reads whether keywords are there. Evidence names the ones found by their place in their list."""

    kind = "keyword"
    Parameters = KeywordParams
    answers = True
    scored = True

    def __init__(self, name: str, params: KeywordParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        automaton = shared.searcher(Automaton, params.in_)
        self._hits = shared.use(Hits, automaton, params.in_, params.exact)
        whole, exact = params.whole_words, params.case_sensitive
        plain = _same if params.exact else plain_keyword
        self.finds = not params.none

        def bits(keywords: list[str]) -> list[int]:
            return [1 << automaton.add(Keyword(plain(keyword), whole, exact)) for keyword in keywords]

        self._any, self._all, self._none = bits(params.any), bits(params.all), bits(params.none)
        self._any_mask, self._all_mask, self._none_mask = map(_union, (self._any, self._all, self._none))
        self._automaton, self._where = automaton, Where(params.in_, params.exact)
        self._likeness: Callable[[Facts], dict[int, float]] | None = None
        self._bm25 = params.bm25.at_least if params.bm25 is not None else None
        if params.fuzzy is None and params.ngram is None and params.bm25 is None:
            if self._any_mask or self._all_mask:
                self._hits.silent[name] = FALSE
            return
        self.cost = Cost.FAST
        # A word that two parts of a message repeat would count twice for bm25.
        self._words = shared.use(FoldedWords, params.in_, params.exact, params.bm25 is None)
        every = zip(self._any + self._all + self._none, params.any + params.all + params.none, strict=True)
        folded = ((bit, fold(plain(keyword))) for bit, keyword in every)
        self._folded = {bit: " ".join(_words(keyword)) or keyword for bit, keyword in folded}
        if params.fuzzy is not None:
            edits = params.fuzzy.max_edits
            self._likeness = lambda facts: self._misspelled(facts, edits)
        elif params.ngram is not None:
            least = params.ngram.at_least
            self._grams = {bit: _trigrams(keyword) for bit, keyword in self._folded.items()}
            self._likeness = lambda facts: self._alike(facts, least)

    def read(self, facts: Facts) -> Reading:
        if self._bm25 is not None:
            return self._weighed(facts, self._bm25)
        hits = facts.get(self._hits)
        score = 1.0
        if self._likeness is not None:
            alike = self._likeness(facts)
            score = max((1.0 if hits & bit else alike.get(bit, 0.0) for bit in self._any + self._all), default=1.0)
            hits |= _union(alike)
        if self._any_mask and not hits & self._any_mask:
            return FALSE
        if hits & self._all_mask != self._all_mask or hits & self._none_mask:
            return FALSE
        return Reading(True, score, evidence=_places("any", self._any, hits) + _places("all", self._all, hits))

    def spans(self, facts: Facts) -> list[Span]:
        wanted = self._any_mask | self._all_mask
        found = self._where.found(facts.request, lambda text: self._automaton.places(text, wanted))
        return [Span(start, end, MASKED) for start, end in found]

    def silent(self, facts: Facts) -> bool:
        return not facts.get(self._hits) & (self._any_mask | self._all_mask)

    def _misspelled(self, facts: Facts, edits: int) -> dict[int, float]:
        """The keywords that a few edits find, by bit, with their likeness 0 to 1."""
        from rapidfuzz import process
        from rapidfuzz.distance import OSA

        words = facts.get(self._words)
        found = {}
        budget = Comparisons()
        for bit, keyword in self._folded.items():
            size = len(keyword)
            cutoff = min(edits, size // 3)
            if not cutoff:
                continue
            best = None
            for windows in words.alike(keyword.count(" ") + 1, size - cutoff, size + cutoff):
                budget.spend(len(windows))
                near = process.extractOne(keyword, windows, scorer=OSA.distance, score_cutoff=cutoff)
                if near is not None and (best is None or near[1] < best):
                    best = near[1]
            if best is not None:
                found[bit] = 1.0 - best / size
        return found

    def _alike(self, facts: Facts, least: float) -> dict[int, float]:
        """The keywords with enough letter triples in common with some words of the text, and how many."""
        words = facts.get(self._words)
        found = {}
        budget = Comparisons()
        for bit, grams in self._grams.items():
            size = len(grams)
            # A Dice coefficient of d needs sizes within d / (2 - d) of one another; most words fall out here.
            low, high = size * least / (2 - least), size * (2 - least) / least
            best = 0.0
            for windows in words.alike(self._folded[bit].count(" ") + 1, math.ceil(low) - 2, int(3 * high)):
                budget.spend(2 * len(windows))
                for window in windows:
                    other = words.trigrams(window)
                    best = max(best, 2 * len(grams & other) / (size + len(other)))
            if best >= least:
                found[bit] = best
        return found

    def _weighed(self, facts: Facts, least: float) -> Reading:
        """Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), all idf equal."""
        words = facts.get(self._words)
        norm = _K1 * (1 - _B + _B * words.length / _AVERAGE)
        score = 0.0
        for keyword in self._folded.values():
            times = words.windows(keyword.count(" ") + 1).get(keyword, 0)
            score += times * (_K1 + 1) / (times + norm)
        return Reading(score >= least, score)


class Comparisons:
    """Counts the comparisons of one reading, and ends it when there are too many."""

    def __init__(self) -> None:
        self._left = _TOO_MANY

    def spend(self, comparisons: int) -> None:
        """Count `comparisons` more. Raises `Unavailable` when that is more than one reading may make."""
        self._left -= comparisons
        if self._left < 0:
            raise Unavailable("too_long")


class FoldedWords:
    """Quick input: the folded words of one scope's text, or of all its spellings."""

    def __init__(self, scope: Scope, exact: bool, spellings: bool) -> None:
        self._scope, self._exact, self._spellings = scope, exact, spellings

    def compute(self, facts: Facts) -> WordList:
        if self._exact:
            texts = [facts.request.text(self._scope)]
        else:
            texts = [plain for _, plain in facts.request.spellings(self._scope)]
        if not self._spellings:
            texts = texts[:1]
        if sum(map(len, texts)) > _TOO_LONG:
            raise Unavailable("too_long")
        return WordList([word for text in texts for word in _words(fold(text))])


class WordList:
    """The words of a text and of its windows of several words, counted."""

    def __init__(self, words: list[str]) -> None:
        self.length = len(words)
        self._words = words
        self._windows: dict[int, Counter[str]] = {}
        self._by_length: dict[int, dict[int, list[str]]] = {}
        self._grams: dict[str, frozenset[str]] = {}

    def windows(self, size: int) -> Counter[str]:
        """How often each run of `size` words is there, its words joined with spaces. Raises `Unavailable` where the
        runs together are too long."""
        found = self._windows.get(size)
        if found is None:
            words = self._words
            if size > 1 and size * sum(map(len, words)) > 8 * _TOO_LONG:
                raise Unavailable("too_long")
            runs = words if size == 1 else map(" ".join, zip(*(words[i:] for i in range(size)), strict=False))
            found = self._windows[size] = Counter(runs)
        return found

    def alike(self, size: int, least: int, most: int) -> Iterator[list[str]]:
        """The different runs of `size` words that have `least` to `most` characters, some thousand at a time."""
        lengths = self._by_length.get(size)
        if lengths is None:
            lengths = self._by_length[size] = {}
            for window in self.windows(size):
                lengths.setdefault(len(window), []).append(window)
        for length in sorted(lengths):
            if least <= length <= most:
                windows = lengths[length]
                for at in range(0, len(windows), _AT_ONCE):
                    yield windows[at : at + _AT_ONCE]

    def trigrams(self, window: str) -> frozenset[str]:
        """The letter triples of `window`."""
        grams = self._grams.get(window)
        if grams is None:
            grams = self._grams[window] = _trigrams(window)
        return grams


def _words(folded: str) -> list[str]:
    return [word for word in (word.strip(_EDGES) for word in folded.split()) if word]


def _trigrams(text: str) -> frozenset[str]:
    padded = f" {text} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def _same(keyword: str) -> str:
    return keyword


def _union(bits: Iterable[int]) -> int:
    union = 0
    for bit in bits:
        union |= bit
    return union


def _places(name: str, bits: list[int], hits: int) -> tuple[str, ...]:
    return tuple(f"{name}[{i}]" for i, bit in enumerate(bits) if hits & bit)

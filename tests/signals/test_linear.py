"""No text takes any kind of signal more than its share: four times the text, four times the time.

Every kind of the registry is driven as the engine drives it, slow inputs included, with texts that are made to hurt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.records.masking import masked
from signals.facts import Facts
from signals.gather import fetch, read
from signals.neural.normalise import normalise
from signals.neural.tokenizer import Lexicon
from signals.reading import Reading
from signals.registry import BY_NAME
from signals.request import Extra, Message, Request
from signals.services import Services
from signals.signal import Cost, Shared
from signals.text.view import Origin, view
from tests.linear import assert_linear
from tests.patience import PATIENCE
from tests.signals.help import build
from tests.signals.neural import models

pytestmark = pytest.mark.volume

UNITS = {
    "spaces": " ",
    "tabs": "\t",
    "line feeds": "\n",
    "indented lines": "   \n",
    "digits": "1",
    "letters": "a",
    "words": "he ",
    "parts of words": "she",
    "misspelled words": "urgemt ",
    "French": "l’été ",
    "Russian": "привет, ",
    "mixed alphabets": "aа",
    "Greek and Latin": "αa ",
    "marks": "\u0301\u0316",
    "letters with marks": "x\u0301\u0316",
    "jamo": "\u1112\u1161\u11ab",
    "vowel signs": "كَ",
    "growing eighteenfold": "\ufdfa",
    "growing threefold": "\ufb03",
    "squared words": "\u3300",
    "full-width": "？１",
    "invisible": "i\u200b",
    "tags": "\U000e0041",
    "controls": "a\0",
    "emoji": "👩\u200d",
    "Han": "漢字",
    "Thai": "ไทย",
    "lone surrogates": "\ud800",
    "base64": "aGVsbG8gd29ybGQ",
    "lines of base64": "aGVsbG8gd29ybGQ" * 5 + "\n",
    "pairs": "1 ",
    "letters apart": "i g n o r e ",
    "letters apart by signs": "a_b_",
    "leet": "1gn0r3 ",
    "alternating": "a1",
    "dots and dashes": ".-",
    "at": "@",
    "parts of addresses": "a@a.",
    "addresses": "a@b.cc ",
    "bullets": "- x\n",
    "bullets without items": "-    ",
    "numbered": "1. ",
    "fences": "```\n",
    "objects": '{"',
    "brackets": "[",
    "backslashes": "\\",
    "questions": "? ",
    "parts of cards": "4111 1111 1111 111 ",
    "figures": "4 1 1 1 ",
    "columns": "4123\n",
    "parts of accounts": "DE89 3704 ",
    "accounts without numbers": "gb29nwbk",
    "telephones": "+1 415 555 2671 ",
    "parts of telephones": "(0",
    "parts of networks": "1.2.3.",
    "parts of network names": "a:b:",
    "parts of tokens": "eyJ",
    "parts of keys": "-----BEGIN ",
    "parts of coins": "bc1q1A1zP1",
    "parts of passports": "A<<<1",
}
UNIQUE = "different words"
NAMES = (*UNITS, UNIQUE)


def text(name: str, size: int) -> str:
    if name == UNIQUE:
        return " ".join(f"w{number:06}" for number in range(size // 8))
    unit = UNITS[name]
    return (unit * (size // len(unit) + 1))[:size]


EVERYTHING = ["email", "iban", "card", "ssn", "nin", "passport", "ip", "mac", "crypto", "secret"]
WORDS = ["he", "urgent", "stack trace", "a b"]
BOUND = {"at_least": 0.5}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "keyword": ("keyword", {"any": WORDS}),
    "keyword, as written": ("keyword", {"any": ["He", "Stack Trace"], "case_sensitive": True, "exact": True}),
    "keyword, parts of words": ("keyword", {"any": ["zz", "zzz z"], "whole_words": False}),
    "keyword, fuzzy": ("keyword", {"any": WORDS, "fuzzy": {"max_edits": 2}}),
    "keyword, ngram": ("keyword", {"any": WORDS, "ngram": BOUND}),
    "keyword, bm25": ("keyword", {"any": WORDS, "bm25": BOUND}),
    "event": ("event", {"types": WORDS, "severities": ["high"], "codes": ["he"], "urgent": True}),
    "regex": ("regex", {"any": [r"\bSELECT\b.+\bFROM\b", r"(?i)(a|b|ab)*c", r"https?://\S+"]}),
    "language": ("language", {"is": ["de"]}),
    "structure, fences": ("structure", {"count": "code_fences", "at_least": 3}),
    "structure, questions": ("structure", {"density": "questions", "at_least": 3}),
    "structure, items": ("structure", {"count": "list_items", "at_least": 3}),
    "structure, keywords": ("structure", {"count": {"keywords": ["he", "é", "a b"]}, "at_least": 3}),
    "structure, sequence": ("structure", {"sequence": ["list_items", {"regex": "a.*b"}, "questions"]}),
    "pii": ("pii", {"types": EVERYTHING}),
    "pii, phone": ("pii", {"types": ["phone"], "regions": ["US", "DE"]}),
    "tokens": ("tokens", {"at_least": 8000}),
    "tokens, exact": ("tokens", {"at_least": 8000, "encoding": "o200k"}),
    "jailbreak": ("jailbreak", {}),
}
FEW: dict[str, tuple[str, dict[str, Any]]] = {
    "budget": ("budget", {"limit": 1}),
    "classifier": ("classifier", {"path": "mood", "label": "good"}),
    "contrast": ("contrast", {"toward": ["a"], "away": ["b"]}),
    "conversation": ("conversation", {"turns": True, "tools": True}),
    "difficulty": ("difficulty", BOUND),
    "domain": ("domain", {"is": ["math"]}),
    "fact_check": ("fact_check", BOUND),
    "feedback": ("feedback", {"is": ["dissatisfied"]}),
    "header": ("header", {"name": "x-long", "matches": "(a|ab)*c"}),
    "identity": ("identity", {"role": "admin", "groups": ["ops"], "headers": {"groups": "x-long"}}),
    "load": ("load", {"model": "m", "waiting": {"at_least": 1}}),
    "modality": ("modality", {"is": ["image"]}),
    "parameter": ("parameter", {"path": "long", "matches": "(a|ab)*c"}),
    "pii, names": ("pii", {"types": ["name", "place"], "model": "names"}),
    "reask": ("reask", {"at_least": 0.8}),
    "reasoning": ("reasoning", BOUND),
    "remote": ("remote", {"url": "http://127.0.0.1:9", "model": "m"}),
    "sample": ("sample", {"percent": 5.0, "key": "body"}),
    "score": ("score", {"sum": {"other": 1.0}, "at_least": 0.5}),
    "knowledge": ("knowledge", {"file": "knowledge.json"}),
    "similar": ("similar", {"to": ["a"], "at_least": 0.5}),
    "time": ("time", {"between": ["22:00", "06:00"]}),
    "unreadable": ("unreadable", {}),
}
"""Kinds that do not look at characters, or do so as another one does: a few texts are enough."""
SOME = ("spaces", "letters", "words", "marks", "mixed alphabets", "pairs", "letters apart", "alternating", UNIQUE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder: Path = tmp_path_factory.mktemp("models")
    models.mood(folder / "mood")
    models.names(folder / "names")
    (folder / "knowledge.json").write_text('{"labels": {"a": ["one thing"], "b": ["another"]}}')
    made = Shared(Services(device="cpu", folder=folder))
    yield made
    made.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def request(given: str) -> Request:
    """A request with the text wherever a signal may look for one."""
    messages = (Message("user", "hello"), Message("assistant", "yes"), Message("user", given))
    fields = {"long": given, "tools": [{"name": given.encode(errors="replace").decode()}]}  # as JSON would have it
    headers = {"x-long": given}
    extras = (Extra(2, "user", glued=given),)
    return Request("chat", given.encode(errors="replace"), fields, "auto", messages, headers, extras=extras)


def test_every_kind_is_driven() -> None:
    assert {kind for kind, _ in (CASES | FEW).values()} == BY_NAME.keys()


@pytest.fixture
def reader(request: pytest.FixtureRequest, shared: Shared, loop: asyncio.AbstractEventLoop) -> Callable[[Request], Any]:
    kind, params = (CASES | FEW)[request.param]
    if kind == "tokens" and "encoding" in params:
        pytest.importorskip("bpe_openai")
    modelled = kind != "budget" and (BY_NAME[kind].cost > Cost.FAST or "model" in params)
    own = shared if modelled else Shared()
    signal = build(kind, own, **params)
    own.freeze()

    def run(given: Request) -> Reading:
        given._texts.clear()
        facts = Facts(given, time.monotonic() + PATIENCE)
        facts.readings["other"] = Reading(True, 1.0)
        if signal.slow:
            loop.run_until_complete(fetch([signal], facts))
        taken = read(signal, facts)
        assert taken.error != "error"
        return taken

    return run


@pytest.mark.slow
@pytest.mark.parametrize("reader", CASES, indirect=True)
def test_a_signal_is_linear_in_any_text(reader: Callable[[Request], Any]) -> None:
    check(NAMES, reader)


@pytest.mark.parametrize("reader", FEW, indirect=True)
def test_so_are_those_that_do_not_look_closely(reader: Callable[[Request], Any]) -> None:
    check(SOME, reader)


def check(names: tuple[str, ...], run: Callable[[Request], Any]) -> None:
    for name in names:
        try:
            assert_linear(lambda size, name=name: request(text(name, size)), run)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.slow
def test_so_are_the_view_and_what_comes_before_a_model() -> None:
    lexicon = Lexicon.load()
    for run in (view, lambda given: normalise(given, lexicon), masked, lambda given: Origin(given).span(0, 1)):
        for name in NAMES:
            try:
                assert_linear(lambda size, name=name: text(name, size), run)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None

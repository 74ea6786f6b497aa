"""The judge of answers: what it finds, when it acts, and that nothing of what it masks gets through."""

from __future__ import annotations

import asyncio
import gc
import re
import time
import weakref
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.build import build
from config.load import parse
from decisions.engine import Engine
from decisions.rule import All, AnyOf, AtLeastOf, Leaf, Not, Rule
from decisions.watching import Judge, Verdict, Watched, Watching
from signals.facts import Facts
from signals.reading import FALSE, TRUE, Reading, Span, Unavailable, unknown
from signals.request import Message, Request
from signals.signal import Cost, Params, Shared, Signal
from tests.decisions.fakes import Source
from tests.volume import few_and_many

CARD = "4111 1111 1111 1111"
IBAN = "DE89 3704 0044 0532 0130 00"
HEAD = """\
version: 1
models: {small: {}, large: {}}
default: small
signals:
  leak: {pii: {in: answer, types: [card, iban, email]}}
  words: {keyword: {in: answer, any: [project falcon, Straße]}}
  shape: {regex: {in: answer, any: ["AK-[0-9]{4,8}"]}}
  german: {language: {in: answer, is: [de]}}
  premium: {header: {name: x-tier, in: [gold]}}
  hello: {keyword: {any: [hello]}}
  heavy: {score: {sum: {leak: 0.5, words: 0.5}, at_least: 1.0}}
  both: {score: {sum: {premium: 0.5, words: 0.5}, at_least: 1.0}}
decisions:
"""


def engine(*decisions: str) -> Engine:
    return build(parse(HEAD + "".join(f"  - {{{one}}}\n" for one in decisions)))


def request(text: str = "hello", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("chat", b"{}", {}, "auto", (Message("user", text),), named)


def judge_of(made: Engine, asked: Request | None = None) -> Judge:
    asked = asked or request()
    trace = made.settle(asked)
    found = made.judge(trace, asked)
    assert found is not None
    return found


def judged(*decisions: str, text: str, asked: Request | None = None, final: bool = True) -> tuple[Verdict, Judge]:
    judge = judge_of(engine(*decisions), asked)
    verdict = judge.judge("a", text, final)
    assert verdict is not None
    return verdict, judge


def shown(text: str, spans: tuple[Span, ...]) -> str:
    for span in reversed(spans):
        text = f"{text[: span.start]}[{span.label}]{text[span.end :]}"
    return text


MASK = "name: hide, on: answer, when: {any: [leak, words, shape]}, mask: {}, on_unknown: match"


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("nothing here", "nothing here"),
        (f"pay {CARD} now", "pay [card] now"),
        (f"{IBAN} and {CARD}", "[iban] and [card]"),
        ("ask ann@corp.example.org", "ask [email]"),
        ("it is Project\n Falcon!", "it is [masked]!"),
        ("die STRASSE und die Straße", "die [masked] und die [masked]"),
        ("key AK-123456.", "key [masked]."),
        # disguised: full-width digits, a zero-width space inside, a look-alike letter
        ("pay ４111 1111 1111 1111 now", "pay [card] now"),
        ("pay 4111 1111\u200b 1111 1111 now", "pay [card] now"),
        ("it is prоject fal\u200bcon!", "it is [masked]!"),
        ("é" * 5 + f" {CARD} é", "ééééé [card] é"),
        ("AK-１２３４５6 é", "[masked] é"),
    ],
)
def test_a_mask_covers_what_was_found(text: str, after: str) -> None:
    verdict, judge = judged(MASK, text=text)
    assert shown(text, verdict.spans) == after
    if after != text:
        assert (verdict.act, verdict.clause) == ("mask", "hide")
        assert ("hide", "mask") in judge.acted
    else:
        assert verdict == Verdict("pass")
        assert judge.acted == []


def test_masks_of_several_decisions_are_combined_and_what_overlaps_is_one() -> None:
    first = "name: cards, on: answer, when: {signal: leak, is: card}, mask: {}, on_unknown: match"
    second = "name: words, on: answer, when: words, mask: {}, on_unknown: match"
    verdict, judge = judged(first, second, text=f"project falcon, {CARD}, {IBAN}")
    assert shown(f"project falcon, {CARD}, {IBAN}", verdict.spans) == f"[masked], [card], {IBAN}"
    assert verdict.clause == "cards"
    assert judge.acted == [("cards", "mask"), ("words", "mask")]


def test_a_label_is_that_of_each_place_and_not_only_of_the_first() -> None:
    only = "name: cards, on: answer, when: {signal: leak, is: card}, mask: {}, on_unknown: match"
    verdict, _ = judged(only, text=f"{IBAN} then {CARD}")
    assert shown(f"{IBAN} then {CARD}", verdict.spans) == f"{IBAN} then [card]"


def test_the_first_that_acts_cuts() -> None:
    cut = "name: stop, on: answer, when: words, cut: {message: Stopped.}, on_unknown: match"
    refuse = "name: refuse, on: answer, when: leak, respond: {status: 451, message: No.}, on_unknown: match"
    verdict, judge = judged(cut, refuse, text=f"{CARD} project falcon")
    # What is shown ends before the card, which the other decision would not have shown either.
    assert verdict == Verdict("cut", "stop", (Span(0, 19, "card"),), None, "Stopped.")
    assert judge.acted == [("stop", "cut")]
    verdict, _ = judged(cut, refuse, text=f"so {CARD}")
    assert verdict == Verdict("respond", "refuse", (Span(3, 22, "card"),), 451, "No.")


def test_a_cut_says_where_only_if_all_of_it_has_a_place() -> None:
    mixed = "name: stop, on: answer, when: {any: [words, german]}, cut: {}, on_unknown: skip"
    verdict, _ = judged(mixed, text="Das ist ein ganz gewöhnlicher deutscher Satz, und nun kommt project falcon.")
    assert (verdict.act, verdict.spans) == ("cut", ())


NAMED = HEAD.replace(
    "decisions:\n",
    """\
rules:
  secret: {any: [words, {signal: leak, is: card}]}
  outside: {not: premium}
  stop: {all: [secret, outside]}
  never: {not: secret}
decisions:
  - {name: cards, on: answer, when: secret, mask: {}, on_unknown: match}
  - {name: stop, on: answer, when: {all: [stop, shape]}, cut: {}, on_unknown: match}
  - {name: clean, on: answer, when: never, flag: {}}
""",
)


def test_named_rules_over_an_answer_hold_as_its_signals_do() -> None:
    made = build(parse(NAMED))
    judge = judge_of(made)
    verdict = judge.judge("a", f"pay {CARD} and {IBAN}, then project falcon", True)
    assert verdict is not None
    assert (
        shown(f"pay {CARD} and {IBAN}, then project falcon", verdict.spans) == f"pay [card] and {IBAN}, then [masked]"
    )
    found = judge.judge("b", "key AK-1234", True)
    assert found is not None
    assert (found.act, found.clause) == ("cut", "stop")
    # What the request says settles a named rule for the whole of the answer.
    judge = judge_of(made, request(x_tier="gold"))
    for text in (f"pay {CARD}", "key AK-1234"):
        one = judge.judge("a", text, True)
        assert one is not None
        assert one.act != "cut"
    assert judge.end() == Verdict("pass")
    assert judge.acted == [("cards", "mask")]


def test_a_named_rule_over_an_answer_is_found_out_anew_when_more_has_come() -> None:
    made = build(parse(NAMED))
    judge = judge_of(made)
    assert judge.judge("a", "nothing", True) == Verdict("pass")
    assert judge.end() == Verdict("pass")
    assert judge.acted == [("clean", "flag")]
    # An end that was none: what is judged after it counts all the same.
    verdict = judge.judge("a", f"pay {CARD}", True)
    assert verdict is not None
    assert verdict.act == "mask"
    assert judge.unreadable().act in ("cut", "pass")


def test_observed_decisions_are_told_and_change_nothing() -> None:
    cut = "name: stop, on: answer, when: words, cut: {}, on_unknown: match, observe: true"
    verdict, judge = judged(cut, text="project falcon")
    assert verdict == Verdict("pass")
    assert judge.acted == [("stop", "observe")]
    judge.judge("a", "project falcon again", True)
    assert judge.acted == [("stop", "observe")]


def test_where_nothing_acts_nothing_is_held() -> None:
    cut = "name: stop, on: answer, when: words, cut: {}, on_unknown: match, observe: true"
    assert not judge_of(engine(cut)).holds
    assert judge_of(engine(MASK)).holds


def test_a_find_holds_for_the_rest_of_the_answer_and_over_its_channels() -> None:
    both = "name: stop, on: answer, when: {all: [words, {signal: leak, is: card}]}, cut: {}, on_unknown: match"
    judge = judge_of(engine(both))
    assert judge.judge("one", "about project falcon", True) == Verdict("pass")
    assert judge.judge("two", "harmless", True) == Verdict("pass")
    verdict = judge.judge("three", f"x {CARD}", True)
    assert verdict is not None
    assert verdict.act == "cut"


@pytest.mark.parametrize("second", ["mask", "cut"])
def test_what_a_later_decision_would_not_show_is_not_shown_before_a_cut(second: str) -> None:
    rules = (
        "name: stop, on: answer, when: words, cut: {}, on_unknown: match",
        f"name: second, on: answer, when: leak, {second}: {{}}, on_unknown: match",
    )
    verdict, judge = judged(*rules, text=f"my {CARD} on project falcon and {CARD}")
    assert (verdict.act, verdict.clause) == ("cut", "stop")
    if second == "mask":
        assert (verdict.spans[0].start, verdict.masks) == (26, (Span(3, 22, "card"),))
        assert judge.acted == [("stop", "cut"), ("second", "mask")]
    else:
        assert verdict.spans[0].start == 3
        assert judge.acted == [("stop", "cut")]


def test_a_text_without_any_candidate_is_clear_and_so_is_each_part_of_it() -> None:
    mask = "name: hide, on: answer, when: {any: [leak, words]}, mask: {}, on_unknown: match"
    judge = judge_of(engine(mask))
    judge.judge("a", "so", False)  # what acts before anything was read is told first
    assert judge.clear("a", "so it goes " * 100)
    assert not judge.clear("a", "so it goes " * 100 + "project falcon")
    assert not judge.clear("a", f"so it goes {CARD}")
    whole = "name: stop, on: answer, when: german, cut: {}, on_unknown: match"
    assert not judge_of(engine(whole)).clear("a", "so it goes")


def test_not_is_settled_at_the_end() -> None:
    lacking = "name: lacking, on: answer, when: {not: words}, flag: {}"
    judge = judge_of(engine(lacking))
    judge.judge("a", "a text", True)
    assert judge.acted == []
    assert judge.end() == Verdict("pass")
    assert ("lacking", "flag") in judge.acted

    judge = judge_of(engine(lacking))
    judge.judge("a", "project falcon", True)
    judge.end()
    assert ("lacking", "flag") not in judge.acted


def test_an_answer_without_a_text_is_judged_at_its_end() -> None:
    judge = judge_of(engine("name: lacking, on: answer, when: {not: words}, cut: {}, on_unknown: match"))
    assert judge.end().act == "cut"


def test_signals_of_the_request_are_taken_from_its_trace_and_rule_decisions_out() -> None:
    gold = "name: stop, on: answer, when: {all: [words, {not: premium}]}, cut: {}, on_unknown: match"
    verdict, _ = judged(gold, text="project falcon", asked=request(x_tier="tin"))
    assert verdict.act == "cut"
    golden, made = request(x_tier="gold"), engine(gold)
    assert made.judge(made.settle(golden), golden) is None
    alone = engine("name: a, on: answer, when: {all: [leak, premium]}, flag: {}")
    asked = request()
    assert alone.judge(alone.settle(asked), asked) is None
    asked = request(x_tier="gold")
    assert alone.judge(alone.settle(asked), asked) is not None


def test_a_reading_of_the_trace_counts_before_the_request_itself() -> None:
    made = engine("name: stop, on: answer, when: {all: [words, hello]}, cut: {}, on_unknown: match")
    asked = request("bye")
    trace = made.settle(asked)._replace(readings={"hello": TRUE})
    judge = made.judge(trace, asked)
    assert judge is not None
    verdict = judge.judge("a", "project falcon", True)
    assert verdict is not None
    assert verdict.act == "cut"


@pytest.mark.parametrize(("tier", "act"), [("gold", "cut"), ("tin", "pass")])
def test_scores_combine_answers_with_what_the_request_says(tier: str, act: str) -> None:
    stop = "name: stop, on: answer, when: both, cut: {}, on_unknown: match"
    verdict, _ = judged(stop, text="project falcon", asked=request(x_tier=tier))
    assert verdict.act == act


def test_the_request_decides_as_it_did_without_decisions_on_answers() -> None:
    made = engine(MASK, "name: large, when: hello, route: large")
    trace = made.settle(request())
    assert trace.decision.name == "large"
    assert set(trace.readings) <= {"hello", "premium"}
    everything = made.settle(request(), everything=True)
    assert set(everything.readings) == {"hello", "premium"}
    assert made.watches == "text"
    plain = build(parse(HEAD.split("signals:")[0] + "decisions: []\n"))
    assert (plain.watches, plain.watched) == ("none", None)
    assert plain.judge(plain.settle(request()), request()) is None


def test_no_word_of_an_answer_is_searched_in_requests() -> None:
    made = engine(MASK, "name: large, when: hello, route: large")
    judge = judge_of(made, request("project falcon hello"))
    assert judge.acted == []
    signals: dict[str, Any] = made.signals
    searchers = {id(signals[name]._automaton) for name in ("words", "hello")}
    assert len(searchers) == 2


# What is Unknown


class Says(Signal):
    """Says what the test has put into `said`, in turn; the last for ever."""

    kind = "says"
    Parameters = Params
    scored = True

    def __init__(self, name: str, *said: Reading | Exception, slow: bool = False) -> None:
        super().__init__(name, Params(), Shared())
        self._said = list(said)
        self.reads = ("answer",)
        if slow:
            self.cost = Cost.NEURAL
            self.slow = (Source(name),)

    def read(self, facts: Facts) -> Reading:
        said = facts.got(self.slow[0]) if self.slow else self._said[0]
        if not self.slow and len(self._said) > 1:
            self._said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


def watched(rule: Rule, *signals: Signal, **given: Any) -> Judge:
    one = Watching("it", rule, given.pop("does", "cut"), given.pop("on_unknown", "match"), **given)
    judge = Watched([one], {signal.name: signal for signal in signals}).judge({}, request())
    assert judge is not None
    return judge


A, B = Leaf("a"), Leaf("b")


@pytest.mark.parametrize(
    ("rule", "a", "b", "act"),
    [
        (A, unknown("x"), FALSE, "cut"),
        (AnyOf((A, B)), unknown("x"), FALSE, "cut"),  # whatever b turns out to be, it can no longer be false
        (All((A, B)), unknown("x"), FALSE, "pass"),  # b may never be found
        (All((A, B)), unknown("x"), TRUE, "cut"),
        (Not(A), unknown("x"), FALSE, "cut"),
        (Not(A), FALSE, FALSE, "pass"),
        (AtLeastOf(2, (A, B, Leaf("c"))), unknown("x"), FALSE, "pass"),
        (AtLeastOf(2, (A, B, Leaf("c"))), unknown("x"), TRUE, "cut"),
        (Leaf("a", at_least=0.5), Reading(True, None), FALSE, "cut"),
        (Leaf("a", at_least=0.5), Reading(True, 0.4), FALSE, "pass"),
    ],
)
def test_unknown_acts_under_match_and_not_under_skip(rule: Rule, a: Reading, b: Reading, act: str) -> None:
    verdict = watched(rule, Says("a", a), Says("b", b), Says("c", FALSE)).judge(0, "text", False)
    assert verdict is not None
    assert verdict.act == act
    skipped = watched(rule, Says("a", a), Says("b", b), Says("c", FALSE), on_unknown="skip").judge(0, "text", False)
    assert skipped is not None
    assert skipped.act == "pass"


def test_what_was_unknown_once_is_not_known_by_a_later_text() -> None:
    rule = All((A, B))
    judge = watched(rule, Says("a", unknown("x"), FALSE), Says("b", FALSE, TRUE))
    assert judge.judge(0, "one", True) == Verdict("pass")
    verdict = judge.judge(0, "two", True)
    assert verdict is not None
    assert verdict.act == "cut"


def test_a_detector_that_breaks_is_unknown() -> None:
    verdict = watched(A, Says("a", ValueError("broken"))).judge(0, "text", True)
    assert verdict is not None
    assert verdict.act == "cut"


def test_a_mask_that_cannot_read_covers_the_whole_text_and_only_that() -> None:
    made = engine(MASK)
    leak: Any = made.signals["leak"]
    read = leak.read
    judge = judge_of(made)
    leak.read = lambda facts: (_ for _ in ()).throw(Unavailable("too_many"))
    verdict = judge.judge("a", "some text", True)
    assert verdict == Verdict("mask", "hide", (Span(0, 9, "masked"),))
    leak.read = read
    assert judge.judge("a", "other text", True) == Verdict("pass")
    verdict = judge.judge("a", f"other {CARD}", True)
    assert verdict == Verdict("mask", "hide", (Span(6, 25, "card"),))


def test_under_skip_what_is_unknown_masks_nothing() -> None:
    made = engine(MASK.replace("on_unknown: match", "on_unknown: skip"))
    leak: Any = made.signals["leak"]
    leak.read = lambda facts: unknown("too_many")
    text = "project falcon and more"
    verdict = judge_of(made).judge("a", text, True)
    assert verdict is not None
    assert shown(text, verdict.spans) == "[masked] and more"


@pytest.mark.parametrize(
    ("decision", "act"),
    [
        (MASK, "cut"),
        (MASK.replace("match", "skip"), "pass"),
        ("name: stop, on: answer, when: words, respond: {status: 403}, on_unknown: match", "respond"),
        ("name: stop, on: answer, when: words, cut: {}, on_unknown: skip", "pass"),
        ("name: stop, on: answer, when: {all: [words, hello, {not: premium}]}, cut: {}, on_unknown: match", "cut"),
        ("name: stop, on: answer, when: {not: words}, cut: {}, on_unknown: match", "cut"),
    ],
)
def test_an_answer_that_cannot_be_read(decision: str, act: str) -> None:
    assert judge_of(engine(decision)).unreadable().act == act


def test_a_mask_that_has_masked_does_not_pass_a_rest_that_cannot_be_read() -> None:
    judge = judge_of(engine(MASK))
    judge.judge("a", f"so {CARD}", True)
    assert judge.unreadable().act == "cut"
    assert judge.acted == [("hide", "mask"), ("hide", "cut")]


def test_the_end_masks_nothing() -> None:
    judge = judge_of(engine(MASK))
    judge.judge("a", f"so {CARD}", True)
    assert judge.end() == Verdict("pass")


# Slow signals


def asking(said: object) -> Request:
    asked = request()
    asked.fields["said"] = {"slow": said}
    return asked


class Slow(Says):
    """Its source asks the judged request, which has no fields: what it says comes from here."""

    def __init__(self, name: str, said: object) -> None:
        super().__init__(name, slow=True)
        self.asked: list[str] = []
        outer = self

        class There:
            async def fetch(self, facts: Facts) -> Reading:
                outer.asked.append(facts.request.text("answer"))
                if isinstance(said, float):
                    await asyncio.sleep(said)
                if isinstance(said, Exception):
                    raise said
                assert isinstance(said, Reading)
                return said

        self.slow = (There(),)


async def test_slow_signals_are_read_when_they_are_needed() -> None:
    slow = Slow("slow", TRUE)
    judge = watched(Leaf("slow"), slow)
    assert judge.slow
    assert judge.judge(0, "text", False) is None
    verdict = await judge.read(0, "text", False, time.monotonic() + 5)
    assert verdict.act == "cut"
    assert slow.asked == ["text"]


async def test_a_slow_signal_that_has_matched_is_not_asked_again() -> None:
    slow = Slow("slow", TRUE)
    judge = watched(All((Leaf("slow"), A)), slow, Says("a", FALSE))
    await judge.read(0, "one", True, time.monotonic() + 5)
    assert judge.judge(0, "two", True) == Verdict("pass")
    assert slow.asked == ["one"]


@pytest.mark.parametrize("said", [0.5, ValueError("broken"), Unavailable("overloaded")])
async def test_a_judge_that_is_late_or_breaks_is_unknown(said: object) -> None:
    judge = watched(Leaf("slow"), Slow("slow", said))
    started = time.monotonic()
    verdict = await judge.read(0, "text", True, started + 0.05)
    assert verdict.act == "cut"
    assert time.monotonic() - started < 0.45
    judge = watched(Leaf("slow"), Slow("slow", said), on_unknown="skip")
    assert (await judge.read(0, "text", True, time.monotonic() + 0.05)).act == "pass"


async def test_a_slow_signal_of_the_request_is_read_once() -> None:
    slow = Slow("slow", TRUE)
    slow.reads = ("user",)
    judge = watched(All((Leaf("slow"), A)), slow, Says("a", FALSE, TRUE))
    assert judge.judge(0, "one", True) is None
    assert (await judge.read(0, "one", True, time.monotonic() + 5)).act == "pass"
    verdict = judge.judge(0, "two", True)
    assert verdict is not None
    assert verdict.act == "cut"
    assert len(slow.asked) == 1


async def test_texts_may_be_judged_while_another_one_is_read() -> None:
    slow = Slow("slow", 0.05)
    judge = watched(AnyOf((Leaf("slow"), A)), slow, Says("a", FALSE), does="flag", on_unknown="skip")
    reading = asyncio.ensure_future(judge.read(0, "one", True, time.monotonic() + 0.01))
    await asyncio.sleep(0)
    assert judge.judge(1, "two", True) is None
    assert await judge.read(1, "two", True, time.monotonic() + 0.01) == Verdict("pass")
    assert await reading == Verdict("pass")
    assert judge.end() == Verdict("pass")
    assert judge.acted == []


class Prompt(str):
    """A text that can be watched."""


def test_a_judge_does_not_keep_the_request() -> None:
    made = engine("name: stop, on: answer, when: {all: [words, hello]}, cut: {}, on_unknown: match")
    body = Prompt("hello, and much more")
    asked = request(body)
    judge = judge_of(made, asked)
    gone = weakref.ref(body)
    del asked, body
    gc.collect()
    assert gone() is None
    verdict = judge.judge("a", "project falcon", True)
    assert verdict is not None
    assert verdict.act == "cut"


def test_language_is_judged_in_strides() -> None:
    assert judge_of(engine("name: a, on: answer, when: german, cut: {}, on_unknown: skip")).slow
    assert not watched(A, Says("a", FALSE)).slow


# Pieces


def released(judge: Judge, pieces: list[str]) -> str:
    """What a client gets of an answer that comes in `pieces`: what begins in the last `window` characters is held back,
    and a span that reaches into them is replaced whole."""
    text = "".join(pieces)
    have = done = known = 0
    out: list[str] = []
    for number, piece in enumerate(pieces):
        have += len(piece)
        final = number == len(pieces) - 1
        begin = max(0, known - judge.window)
        verdict = judge.judge("a", text[begin:have], final)
        assert verdict is not None
        known = max(known, have - judge.window)
        until = have if final else max(done, known)
        for span in verdict.spans:
            start, end = span.start + begin, span.end + begin
            if end <= done:
                continue
            if start >= done:
                out += [text[done:start], f"[{span.label}]"]
            done = end
        if until > done:
            out.append(text[done:until])
            done = until
    return "".join(out)


PLANTED = [
    CARD,
    CARD.replace(" ", "-"),
    IBAN,
    "ann.lee@corp.example.org",
    "project falcon",
    "project \n falcon",
    "AK-1234567",
]
PLAIN = [
    "the weather is fine. ",
    "and so on, ",
    "Größe und Maß; ",
    "12 of 30, ",
    "\n",
    "日本語です。",
    "(see below) ",
    "AK- ",
]


def cut_up(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(places)] or [text]


@pytest.mark.slow
@few_and_many(120, 400)
def test_nothing_of_a_planted_value_gets_through_in_whatever_pieces_it_comes(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        parts=st.lists(st.one_of(st.sampled_from(PLANTED), st.sampled_from(PLAIN)), min_size=1, max_size=12),
        cuts=st.lists(st.integers(0, 10_000), max_size=30),
        window=st.integers(32, 300),
    )
    @example(parts=[CARD, PLAIN[0]] * 6, cuts=list(range(0, 400, 3)), window=32)
    def holds(parts: list[str], cuts: list[int], window: int) -> None:
        text = " ".join(parts)
        judge = Watched(
            [Watching("hide", AnyOf((Leaf("leak"), Leaf("words"), Leaf("shape"))), "mask", "match", window=window)],
            SIGNALS,
        ).judge({}, request())
        assert judge is not None
        got = released(judge, cut_up(text, cuts))
        expected = " ".join(f"[{LABELS[part]}]" if part in LABELS else part for part in parts)
        assert got == expected

    holds()


SIGNALS = engine(MASK).signals
LABELS = dict(zip(PLANTED, ["card", "card", "iban", "email", "masked", "masked", "masked"], strict=True))


LONG = [
    ("AKIAQ7J4M2XW5RT3HPLK", "secret"),
    ("ghp_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xYz1A2", "secret"),
    (
        "eyJhbGciOiJIUzI1NiJ9."
        + "eyJ"
        + "c3ViIjoiMTIzNDU2Nzg5MCIsIm5hbWUi" * 20
        + "."
        + "SflKxwRJSMeKKF2QT4fwpMeJf36POk6y" * 4,
        "secret",
    ),
    (
        "-----BEGIN PRIVATE KEY-----\n"
        + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQDf7+Kb/Qx2z\n" * 12
        + "AbCd==\n-----END PRIVATE KEY-----",
        "secret",
    ),
]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    long=st.sampled_from(LONG[1:2] + LONG[3:]),
    before=st.sampled_from(["", "It is ", "the weather is fine, and " * 20]),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    window=st.integers(64, 200),
)
def test_what_begins_as_a_long_value_is_masked_to_its_end(
    long: tuple[str, str], before: str, sizes: list[int], window: int
) -> None:
    text = f"{before}{long[0]}\nand so on, for quite a while yet."
    judge = Watched([Watching("hide", Leaf("keys"), "mask", "match", window=window)], KEYS).judge({}, request())
    assert judge is not None
    pieces, at = [], 0
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    got = released(judge, pieces)
    assert re.sub(r"(\[secret\])+", "[secret]", got) == f"{before}[secret]\nand so on, for quite a while yet."


KEYS = build(
    parse(
        "version: 1\nmodels: {small: {}}\ndefault: small\nsignals: {keys: {pii: {in: answer, types: [secret]}}}\n"
        "decisions: [{name: a, on: answer, when: keys, mask: {}}]\n"
    )
).signals


@few_and_many(20, 200)
def test_it_comes_out_as_if_it_had_come_whole(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        before=st.text(max_size=80),
        value=st.sampled_from(PLANTED),
        after=st.text(max_size=80),
        size=st.integers(1, 40),
        window=st.integers(32, 128),
    )
    def holds(before: str, value: str, after: str, size: int, window: int) -> None:
        """Between arbitrary characters a value may be no value; but the pieces make no difference to whether it is."""
        text = f"{before} {value} {after}"
        rule = AnyOf((Leaf("words"), Leaf("shape")))
        watching = Watched([Watching("hide", rule, "mask", "match", window=window)], SIGNALS)
        whole, pieces = watching.judge({}, request()), watching.judge({}, request())
        assert whole is not None
        assert pieces is not None
        split = [text[at : at + size] for at in range(0, len(text), size)]
        assert released(pieces, split) == released(whole, [text])

    holds()


def test_a_word_that_is_not_over_yet_is_not_taken_for_one() -> None:
    cut = "name: stop, on: answer, when: words, cut: {}, on_unknown: match"
    judge = judge_of(engine(cut))
    assert judge.judge("a", "the project falcon", False) == Verdict("pass")
    assert judge.judge("a", "the project falconry", True) == Verdict("pass")
    judge = judge_of(engine(cut))
    verdict = judge.judge("a", "the project falcon", True)
    assert verdict is not None
    assert verdict.act == "cut"

"""Where a step ends."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.steps import End, Ends, Splitter, StepLimits, split
from tests.volume import few_and_many
from upstream.tokens import Token, estimate

ONE = StepLimits(min_tokens=1)


def texts(text: str, limits: StepLimits = ONE) -> list[str]:
    steps = [step.text for step in split(text, limits)]
    assert "".join(steps) == text
    return steps


def test_a_blank_line_ends_a_step_and_belongs_to_it() -> None:
    assert texts("one\n\ntwo\n\nthree") == ["one\n\n", "two\n\n", "three"]


def test_white_space_in_a_blank_line_and_crlf_make_no_difference() -> None:
    assert texts("one\n \t\ntwo\r\n\r\nthree") == ["one\n \t\n", "two\r\n\r\n", "three"]


def test_more_blank_lines_go_to_the_next_step_and_make_none_of_their_own() -> None:
    assert texts("one\n\n\n\ntwo") == ["one\n\n", "\n\ntwo"]


def test_a_step_shorter_than_the_minimum_goes_on() -> None:
    assert texts("So:\n\ntwelve and four make sixteen in all.\n\nEnd", StepLimits(min_tokens=5)) == [
        "So:\n\ntwelve and four make sixteen in all.\n\n",
        "End",
    ]


@pytest.mark.parametrize(
    "block",
    [
        "```python\na = 1\n\nb = 2\n```",
        "~~~\na\n\n```\n\nb\n~~~",
        "````\n```\n\n```\n````",
        "$$\nx = 1\n\ny = 2\n$$",
        "\\[\nx = 1\n\ny\\\\[2pt] = 2\n\\]",
        "\\( a\n\nb \\)",
        "\\begin{align}\nx\n\n\\begin{cases}a\n\nb\\end{cases}\n\ny\n\\end{align}",
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |",
        "- one\n\n- two\n\n  more of two\n\n* three",
        "1. one\n\n2. two\n\n   ```\n   code\n\n   code\n   ```\n\n10) three",
    ],
)
def test_nothing_ends_inside_a_block(block: str) -> None:
    assert texts(f"Before it.\n\n{block}\n\nAfter it.") == ["Before it.\n\n", f"{block}\n\n", "After it."]


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5.\n\nNo, $6 or $$",  # money, and a marker that nothing follows
        "Write `$$` or ``\\[`` for a formula.\n\nNext",  # inside inline code
        "A closing \\] or \\end{x} alone.\n\nNext",
        "**1. Bold is no list.**\n\nNext",
        "2.5 is a number\n\nNext",
        "-1 is one too\n\nNext",
        "``` inline ``` code\n\nNext",
    ],
)
def test_what_only_looks_like_a_block_protects_nothing(text: str) -> None:
    assert len(texts(text)) == 2


def test_a_paragraph_after_a_list_is_a_new_step() -> None:
    assert texts("- one\n\n- two\n\nSo three.\n\nEnd") == ["- one\n\n- two\n\n", "So three.\n\n", "End"]


def test_a_short_list_does_not_protect_what_comes_after_it() -> None:
    steps = texts("- a\n\nPlain text that is long enough.\n\nAnd more of it.", StepLimits(min_tokens=4))
    assert steps == ["- a\n\nPlain text that is long enough.\n\n", "And more of it."]


def test_the_cap_ends_any_step() -> None:
    steps = split("```\n" + "x = 1\n\n" * 100, StepLimits(min_tokens=1, max_tokens=20))
    assert {step.end for step in steps[:-1]} == {End.CAP}
    assert all(step.size <= 20 for step in steps)


def test_a_latex_marker_that_never_closes_is_forgotten_at_the_cap() -> None:
    steps = texts("stray $$ marker\n\n" + "word " * 30 + "\n\nNext step.\n\nLast.", StepLimits(1, 20))
    assert steps[-2:] == ["Next step.\n\n", "Last."]


def test_a_token_belongs_to_the_step_in_which_it_starts() -> None:
    splitter = Splitter(ONE)
    [first] = [step for token in (Token("one", -1.0), Token("\n\nTwo", -2.0)) for step in splitter.feed(token)]
    last = splitter.finish()
    assert last is not None
    assert (first.text, [token.logprob for token in first.tokens if token.size]) == ("one\n\n", [-1.0, -2.0])
    assert (last.text, last.size) == ("Two", 0)


def test_a_splitter_can_start_in_the_middle_of_an_answer() -> None:
    splitter = Splitter(ONE, prefix="Look:\n\n```\na = 1\n")
    assert not [step for text in ("\n", "b = 2\n", "```\n") for step in splitter.feed(Token(text))]
    [step] = splitter.feed(Token("\n"))
    assert step.text == "\nb = 2\n```\n\n"


def test_limits_must_make_sense() -> None:
    with pytest.raises(ValueError, match="min_tokens <= max_tokens"):
        StepLimits(min_tokens=10, max_tokens=9)


PIECES = st.sampled_from(
    ["word", " ", "\n", "\n\n", "```", "~~~", "```py\n", "$$", "\\[", "\\]", "\\(", "\\)", "\\begin{a}", "\\end{a}",
     "| a |", "- ", "1. ", "  ", "\r\n", "`", "\\\\", "é", "漢字", "👩‍🚀", "\t", "2.5", "**b**", ">", "\x0b", "\u2028",
     "So. ", "e.g. ", "It is? ", "Yes!\" ", "。", "1. ", "$3. "]
)  # fmt: skip


@pytest.mark.no_cover
@pytest.mark.parametrize("ends", Ends)
@few_and_many(40, 200)
def test_joined_again_it_is_the_same_text_however_it_was_cut(ends: Ends, examples: int) -> None:
    @given(text=st.lists(PIECES, max_size=60).map("".join), data=st.data(), most=st.sampled_from([12, 400]))
    @settings(max_examples=examples, deadline=None)
    def holds(text: str, data: st.DataObject, most: int) -> None:
        limits = StepLimits(2, most, ends)
        whole = split(text, limits)
        assert "".join(step.text for step in whole) == text
        # The same text in other pieces, with the same tokens at the same places.
        splitter = Splitter(limits)
        steps = []
        for at in range(0, len(text), 4):
            token = text[at : at + 4]
            cut = data.draw(st.integers(0, len(token)))
            for piece, size in ((token[:cut], 1), (token[cut:], 0)) if cut else ((token, 1),):
                steps += splitter.feed(Token(piece, size=size))
        last = splitter.finish()
        assert "".join(step.text for step in [*steps, *([last] if last else [])]) == text
        assert [step.size for step in steps] == [step.size for step in whole[: len(steps)]]
        for one, other in zip(steps, whole, strict=False):
            if End.CAP in (one.end, other.end):
                break  # it falls into the middle of a token
            assert (one.text, one.end) == (other.text, other.end)

    holds()


def by(ends: Ends, text: str, least: int = 1) -> list[str]:
    return texts(text, StepLimits(least, 512, ends))


def test_by_lines_each_line_is_a_step_and_a_blank_line_belongs_to_the_one_before() -> None:
    assert by(Ends.LINE, "one\ntwo\n\nthree\n- four\n- five\nsix") == [
        "one\n", "two\n\n", "three\n", "- four\n", "- five\n", "six",
    ]  # fmt: skip
    assert by(Ends.LINE, "See:\n```\na = 1\nb = 2\n```\nEnd") == ["See:\n", "```\na = 1\nb = 2\n```\n", "End"]
    assert by(Ends.LINE, "| a |\n|---|\n| 1 |\nEnd") == ["| a |\n|---|\n| 1 |\nEnd"]
    assert by(Ends.LINE, "one\ntwo and three\nfour", 3) == ["one\ntwo and three\n", "four"]


def test_by_sentences_each_sentence_is_a_step_and_so_is_each_line() -> None:
    assert by(Ends.SENTENCE, 'It is so. "Is it?" Yes (it is). Next\nline. End') == [
        "It is so.", ' "Is it?"', " Yes (it is).", " Next\n", "line.", " End",
    ]  # fmt: skip
    assert by(Ends.SENTENCE, "一二三。四五六！End") == ["一二三。", "四五六！", "End"]


@pytest.mark.parametrize(
    "text",
    [
        "It costs 5.50 in all",
        "Ask Dr. Who, e.g. today, or Mr. A. Smith",
        "1. First we add",
        "- 2. Then we add",
        "Write `a. b` there",
        "Take \\(x. y\\) there",
        "```\nOne. Two. Three\n```",
        "| One. Two | Three. Four |",
        "wait... what",
        "「一。」と",
    ],
)
def test_what_only_looks_like_the_end_of_a_sentence_is_none(text: str) -> None:
    found = by(Ends.SENTENCE, text)
    assert found == ([text] if text != "wait... what" else ["wait...", " what"])


def test_by_length_a_long_step_ends_at_a_line_and_a_longer_one_at_a_sentence() -> None:
    """A token is a word here, with the white space before it."""

    def sizes(text: str) -> list[tuple[str, int]]:
        words = [Token(word) for word in text.replace(" ", "\1 ").replace("\n", "\1\n").split("\1") if word]
        return [(step.end, step.size) for step in split(words, StepLimits(8, 512, Ends.AUTO))]

    ten = "one two three four five six seven eight nine ten."
    assert sizes("\n\n".join([ten] * 3)) == [("blank", 12), ("blank", 11), ("stop", 9)]
    assert sizes("\n".join([ten] * 6)) == [("line", 31), ("stop", 29)]
    assert sizes(" ".join([ten] * 10)) == [("sentence", 40), ("sentence", 40), ("stop", 20)]
    assert sizes(ten) == [("stop", 10)]


PARAGRAPH = st.lists(
    st.sampled_from(["We", "add", "12", "and", "$5", "so", "it", "is", "30"]), min_size=3, max_size=12
).map(" ".join)
LINES = st.lists(st.sampled_from(["x = 1", "", "y^2", "", "a & b", "z"]), min_size=1, max_size=8)
BLOCK = st.one_of(
    LINES.map(lambda lines: "\n".join(["```python", *lines, "```"])),
    LINES.map(lambda lines: "\n".join(["$$", *lines, "$$"])),
    LINES.map(lambda lines: "\n".join(["\\[", *lines, "\\]"])),
    LINES.map(lambda lines: "\n".join(["\\begin{align*}", *lines, "\\end{align*}"])),
    st.integers(1, 5).map(lambda n: "\n".join(["| a | b |", "|---|---|"] + ["| 1 | 2 |"] * n)),
)


@pytest.mark.no_cover
@few_and_many(60, 300)
def test_no_step_end_lies_inside_latex_code_or_a_table(examples: int) -> None:
    @given(st.lists(st.one_of(PARAGRAPH, BLOCK.map(lambda block: (block,))), min_size=1, max_size=8), st.integers(1, 9))
    @settings(max_examples=examples, deadline=None)
    def holds(parts: list[str | tuple[str]], chunk: int) -> None:
        text, inside = "", []
        for part in parts:
            if not isinstance(part, str):
                inside.append(range(len(text) + 1, len(text) + len(part[0])))
            text += (part if isinstance(part, str) else part[0]) + "\n\n"
        splitter = Splitter(StepLimits(min_tokens=1, max_tokens=100_000))
        ends, at = [], 0
        for start in range(0, len(text), chunk):
            for step in splitter.feed(Token(text[start : start + chunk])):
                at += len(step.text)
                ends.append(at)
        assert not [end for end in ends for block in inside if end in block]
        plain = [part for part in parts if isinstance(part, str)]
        assert len(ends) >= len(plain)  # and it does end between paragraphs

    holds()


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.volume)])
def test_published_gsm8k_solutions_are_joined_again_byte_for_byte(step: int) -> None:
    folder = os.environ.get("POINTSMAN_DATA")
    if not folder:
        pytest.skip("POINTSMAN_DATA does not name the folder with reasoning/gsm8k_train.jsonl.gz")
    path = Path(folder) / "reasoning" / "gsm8k_train.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        solutions = [json.loads(line)["answer"] for line in lines]
    assert len(solutions) > 7000
    counts = []
    for solution in solutions[::step]:
        spaced = solution.replace("\n", "\n\n")  # as models write it: a blank line between the steps
        whole = split([Token(solution)], ONE)
        assert "".join(step.text for step in whole).encode() == solution.encode()
        steps = split(spaced, ONE)
        assert "".join(step.text for step in steps).encode() == spaced.encode()
        counts.append((len(steps), spaced.count("\n\n") + 1))
    assert sum(found == written for found, written in counts) / len(counts) > 0.97


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("abcd", 1), ("abcdefgh", 2)])
def test_the_estimate_is_a_token_for_every_four_characters(text: str, tokens: int) -> None:
    assert estimate(text) == tokens

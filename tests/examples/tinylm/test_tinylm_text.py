"""Problems, tokens and text pieces."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.tinylm import problems, talk
from examples.tinylm.engine import Sampled
from examples.tinylm.server import Text
from examples.tinylm.tokenizer import END, USER, Tokenizer, render

TOKENIZER = Tokenizer(["\n\n", " + ", " = ", "First", "Answer", " the"])
_SUM = re.compile(r"(\d+(?: [-+*/] \d+)+(?: = \d+(?: [-+*/] \d+)*)+)")


@pytest.mark.slow
def test_every_written_sum_is_right() -> None:
    for seed in range(3000):
        problem = problems.make(seed)
        for chain in _SUM.findall(problem.solution):
            values = {eval(side.replace("/", "//")) for side in chain.split(" = ")}
            assert len(values) == 1, (problem.question, chain)


def test_a_problem_checks_its_own_solution_and_nothing_else() -> None:
    for seed in range(500):
        problem = problems.make(seed)
        assert problems.make(seed) == problem
        assert problems.check(problem, problem.solution)
        assert not problems.check(problem, "\n\n".join(problem.steps[:-1]))
        assert not problems.check(problem, problem.solution + f"\n\nAnswer: {problem.answer + 1}")


def test_bands_get_longer_and_every_kind_is_in_each() -> None:
    lengths = []
    for band in problems.BANDS:
        made = [problems.make(seed, band) for seed in range(300)]
        assert {p.kind for p in made} == set(problems.KINDS)
        lengths.append(sum(len(p.steps) for p in made) / len(made))
    assert lengths == sorted(lengths)


def test_expressions_have_the_value_that_python_gives_them() -> None:
    for seed in range(2000):
        problem = problems.make(seed)
        if problem.kind == "expression":
            text = re.sub(r"^(Work out|What is|Calculate|Find the value of) |( = )?[.?]$", "", problem.question)
            assert eval(text.replace("/", "//")) == problem.answer


def test_splits_do_not_meet() -> None:
    starts = sorted(problems.SPLITS.values())
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 1_000_000


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    clean = text.encode("utf-8", errors="replace").decode()
    assert TOKENIZER.decode(TOKENIZER.encode(clean)) == clean


@given(st.from_regex(r"([0-9]{1,12}[ +=.]){1,6}", fullmatch=True))
def test_numbers_survive_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_numbers_start_at_the_ones() -> None:
    ids = TOKENIZER.encode("37")
    assert [(TOKENIZER.place(i), TOKENIZER.raw(i)) for i in ids] == [(0, b"7"), (1, b"3"), (2, b"")]


def test_a_message_cannot_forge_a_turn() -> None:
    assert END not in TOKENIZER.encode("<|end|>")
    assert TOKENIZER.encode("<|user|>a<|end|>", special=True) == [USER, *TOKENIZER.encode("a"), END]
    assert render(TOKENIZER, [("user", "<|end|>")]).count(END) == 1


@given(st.text(min_size=1), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_joined_are_the_text_up_to_the_first_stop(text: str, stop: list[str]) -> None:
    text = text.encode("utf-8", errors="replace").decode()
    reader = Text(TOKENIZER, stop)
    out = []
    for token in TOKENIZER.encode(text):
        out += reader.push(Sampled(token, -0.5, ()))
        if reader.hit is not None:
            break
    else:
        out += reader.flush()
    ends = [text.find(s) for s in stop if s in text]
    joined = "".join(piece.text for piece in out)
    if ends:
        # Characters that come in several tokens, and numbers, settle late: the earliest stop string still wins.
        assert joined == text[: min(ends)]
        assert reader.hit in stop
    else:
        assert joined == text
        assert reader.hit is None


@pytest.mark.parametrize("model", ["tinylm-small", "tinylm-large", "tinylm-deep"])
def test_small_talk_names_the_model(model: str) -> None:
    rng = random.Random(0)
    for _ in range(300):
        question, reply = talk.make(rng, model)
        assert question
        assert model in reply

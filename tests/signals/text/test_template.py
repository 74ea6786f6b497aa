"""The question in a template of retrieval."""

from __future__ import annotations

import time

import pytest

from signals.text.template import asked

ASKED = "Why do cats purr?"


@pytest.mark.parametrize(
    "template",
    [
        "Answer from the context.\n\nContext:\nThe shop opens at nine.\n\nQuestion: {}\nAnswer:",
        "Context: Parcels are at the desk.\nUser question: {}",
        "Question: {}\n\nSources:\n- Parcels are at the desk.",
        "<context>\nParcels.\n</context>\n\n<question>{}</question>",
        "<context>Parcels</context><query>\n{}\n</query>\nAnswer in one line.",
        "### Query:\n{}\n\n### Response:\n",
        "**Question:** {}\n**Answer:**",
        "Question: What is rain?\nAnswer: Water.\nQuestion: {}\nAnswer:",
        "Kontext: Der Laden öffnet um neun.\nFrage: {}\nAntwort:",
        "上下文：店铺九点开门。\n问题：{}\n回答：",
        "Given the context information and not prior knowledge, answer the query.\nQuery: {}\nAnswer:",
    ],
)
def test_the_question_is_found_in_its_template(template: str) -> None:
    assert asked(template.replace("{}", ASKED)) == ASKED


@pytest.mark.parametrize(
    "text",
    [
        "",
        ASKED,
        "I have a question: why do cats purr?",
        "The question is: why?",
        "Question:\nAnswer:",
        "Context: a shop. Answer: nine.",
        "<question>why do cats purr?",
        "SELECT * FROM query WHERE question = 1",
    ],
)
def test_what_is_no_template_stays_as_it_is(text: str) -> None:
    assert asked(text) is text


def test_choices_belong_to_the_question() -> None:
    text = "Choose the correct answer.\nQuestion:\nWhich is red?\nOptions:\nA. Blood\nB. Milk\nAnswer:\n"
    assert asked(text) == "Which is red?\nOptions:\nA. Blood\nB. Milk"


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("piece", ["Question:\n", "<question>", "[[[", "question ", "# a-", "Question: ", "\n \t#"])
def test_it_is_linear(piece: str) -> None:
    def took(size: int) -> float:
        text = piece * (size // len(piece))
        start = time.process_time()
        asked(text)
        return time.process_time() - start

    small, large = (min(took(size) for _ in range(3)) for size in (100_000, 400_000))
    assert large < 8 * max(0.01, small)

"""Questions that differ only in how they are put have one wording; those that ask something else never do."""

from __future__ import annotations

import random

import pytest

from extproc.keeping.wording import LONGEST, wording

SAME = [
    (
        "What is the capital of France?",
        "what's the capital of france",
        "What is the capital of France ?",
        "WHAT IS THE CAPITAL OF FRANCE",
        "Hi, could you please tell me what the capital of France is?",
        "Hello! Please tell me what the capital of France is. Thanks in advance!",
        "Do you know what the capital of France is?",
    ),
    ("How do I reset my password?", "How can I reset my password", "how to reset my password?"),
    ("Please write a poem about rain.", "write a poem about rain", "Could you write a poem about rain?"),
    ("Wie hoch ist der Eiffelturm?", "Bitte, wie hoch ist der Eiffelturm? Danke!"),
    ("¿Dónde está la estación?", "Hola! Dónde está la estación?"),
    ("I can't open the file", "I cannot open the file.", "i can\u2019t open the file"),
]
OTHERS = [
    ("What is the time?", "What is time?"),
    ("What is 5!", "What is 5?"),
    ("What is n!", "What is n?"),
    ("How do you say please?", "How do you say thanks?"),
    ("Does it help us?", "Does it help US?"),
    ("Convert 5 km to miles", "Convert 5 miles to km"),
    ("Is it safe to eat raw eggs?", "Is it not safe to eat raw eggs?", "Isn't it safe to eat raw eggs?"),
    ("Can I take both?", "Should I take both?", "Do I take both?", "May I take both?"),
    ("What does x - 1 mean?", "What does x 1 mean?", "What does x + 1 mean?"),
    ("In Maßen trinken", "In Massen trinken"),
    ("Flights from Rome to Oslo", "Flights from Oslo to Rome"),
    ("How tall is he?", "How old is he?", "Who is he?", "Where is he?"),
    ("Is C better than D?", "Is C++ better than D?", "Is C# better than D?"),
    ("What did she say?", "What does she say?", "What will she say?"),
    ("Wer hat das Tor geschossen?", "Who scored the goal?"),
    ("Hola, what language is that?", "Bonjour, what language is that?"),
    ("What does that mean in English, merci?", "What does that mean in English, gracias?"),
    ("What is the plural of is?", "What is the plural of are?"),
    ("Hello! How do you say that in French?", "Hi! How do you say that in French?", "How do you say that in French?"),
]


@pytest.mark.parametrize("texts", SAME)
def test_how_a_question_is_put_is_no_part_of_it(texts: tuple[str, ...]) -> None:
    found = {wording(text) for text in texts}
    assert len(found) == 1
    assert None not in found


@pytest.mark.parametrize("texts", OTHERS)
def test_another_question_has_another_wording(texts: tuple[str, ...]) -> None:
    assert len({wording(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    "text", ["", "hi", "a\nb c", "what is `x y`?", "f(x) {return 1}", "two  spaces", "x " * LONGEST, "法国的首都是什么"]
)
def test_some_texts_are_taken_letter_by_letter(text: str) -> None:
    assert wording(text) is None


NUMBERS = ("3", "30", "3.5", "3,000", "-3", "three", "33", "1/3", "3%")
UNITS = ("km", "m", "miles", "kg", "°C", "°F", "EUR", "$", "minutes", "hours")
NAMES = ("Anna", "Hanna", "Boris", "Rome", "Roma", "New York", "York", "Apple", "Apples")
VERBS = ("is", "is not", "was", "is never", "will be", "should be", "may be")
FRAMES = (
    ("How far {verb} it from {name} after {number} {unit}?", "Wie weit {verb} es von {name} nach {number} {unit}?"),
    ("Tell me whether {name} {verb} within {number} {unit}.", "Dime si {name} {verb} en {number} {unit}."),
    ("Please list what {verb} {number} {unit} long for {name}", "Elenca cosa {verb} {number} {unit} per {name}"),
)
PARTS = {"verb": VERBS, "name": NAMES, "number": NUMBERS, "unit": UNITS}


@pytest.mark.slow
def test_ten_thousand_near_misses_have_two_wordings() -> None:
    """A changed number, unit, name, negation or language; two of each pair differ in that alone."""
    chooser = random.Random(7)
    for _ in range(10_000):
        frames = chooser.choice(FRAMES)
        said = {name: chooser.choice(values) for name, values in PARTS.items()}
        changed = chooser.choice([*PARTS, "language"])
        other = dict(said)
        if changed != "language":
            other[changed] = chooser.choice([value for value in PARTS[changed] if value != said[changed]])
        one, two = frames[0].format(**said), frames[changed == "language"].format(**other)
        assert wording(one) is not None
        assert wording(one) != wording(two), (one, two)

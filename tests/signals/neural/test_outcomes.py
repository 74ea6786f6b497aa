"""What `difficulty` foretells: failures of models of all standings, from difficulty.npz."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from config.build import build as engine
from config.load import load
from signals.facts import Facts
from signals.gather import fetch, read
from signals.neural.heads import MODEL, Heads, ModelError
from signals.neural.outcomes import OUTCOMES, Outcomes, fails
from signals.neural.tokenizer import LEXICON
from signals.services import Services
from signals.signal import Shared
from tests.signals.help import build, complaint, data, request

EASY = "What is the capital of France?"
HARD = (
    "Let R be a commutative ring with an ideal I of index 7, and f a polynomial of degree 5 over the quotient. Tell"
    " the number of units.\nA. 5\nB. 6\nC. 7\nD. 42\nE. 35\nF. 36\nG. 12\nH. 49\nI. 343\nJ. none of these"
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    made = Shared(Services(device="cpu"))
    yield made
    made.close()


async def score(shared: Shared, text: str, **params: float) -> float:
    signal = build("difficulty", shared, at_least=0.5, **params)
    facts = Facts(request(text), time.monotonic() + 60)
    await fetch([signal], facts)
    found = read(signal, facts).score
    assert found is not None
    return found


def test_the_file_is_that_of_the_card() -> None:
    card = OUTCOMES.with_suffix(".md").read_text()
    listed = dict(re.findall(r"- `(\S+)`: [\d,]+ bytes, sha256 `(\w{64})`", card))
    assert listed == {OUTCOMES.name: hashlib.sha256(OUTCOMES.read_bytes()).hexdigest()}


async def test_the_better_a_model_the_less_it_fails_and_hard_questions_are_hard_for_all(shared: Shared) -> None:
    standings = (0.0, 0.2, 0.45, 0.7, 1.0)
    easy, hard = [[await score(shared, text, standing=one) for one in standings] for text in (EASY, HARD)]
    for chances in (easy, hard):
        assert chances == sorted(chances, reverse=True)
        assert chances[0] > 0.6
        assert chances[-1] < 0.1
    assert all(a < b for a, b in zip(easy[:-1], hard[:-1], strict=True))  # the best of models fails at neither
    assert easy[2] < 0.35
    assert hard[2] > 0.5


@pytest.mark.slow
def test_a_standing_is_the_share_that_is_answered() -> None:
    rows = data("selection/mmlu_pro_outcomes")[::20]
    model = Heads()
    items = [model.verdicts([row["question"]])[0].item for row in rows]
    made = Outcomes()
    for standing in (0.2, 0.5, 0.8):
        chance = np.mean([fails(item, made.ability(standing)) for item in items])
        assert chance == pytest.approx(1 - standing, abs=0.04)


async def test_the_default_model_s_quality_is_the_standing_unless_one_is_given(tmp_path: Path, shared: Shared) -> None:
    text = "version: 1\nmodels: {{m: {{name: x{}}}}}\ndefault: m\nsignals:\n  hard: {{difficulty: {{at_least: 0.5}}}}\n"
    text += "decisions: [{{name: a, when: hard, route: m}}]\n"
    for quality, standing in ((", quality: 0.9", 0.9), (", quality: 0", 0.0), ("", 0.5)):
        path = tmp_path / "policy.yaml"
        path.write_text(text.format(quality))
        made = engine(load(path))
        try:
            facts = Facts(request(HARD), time.monotonic() + 60)
            await fetch([made.signals["hard"]], facts)
            wanted = await score(shared, HARD, standing=standing)
            assert read(made.signals["hard"], facts).score == pytest.approx(wanted)
        finally:
            made.close()


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_a_standing_is_between_nothing_and_all(wrong: float) -> None:
    assert "standing" in complaint("difficulty", at_least=0.5, standing=wrong)


def test_a_file_of_another_lexicon_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "difficulty.npz"
    shutil.copy(OUTCOMES, path)
    with np.load(path) as found:
        arrays = dict(found)
    np.savez(path, **(arrays | {"wide": arrays["wide"][:-1]}))
    with pytest.raises(ModelError, match="does not belong"):
        Heads(MODEL, LEXICON, path)

"""The item-response model recovers abilities and hardness from outcomes that were made with known ones."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("onnx", reason="needs the extra `train`")

from signals.neural.features import features
from signals.neural.heads import MODEL, Heads
from signals.neural.outcomes import fails
from signals.neural.tokenizer import Lexicon
from signals.train import difficulty
from signals.train.difficulty import ExamQuestion
from signals.train.networks import export

ABILITIES = {"weak": -1.5, "middle": 0.0, "strong": 1.5}


def made(size: int, built: Lexicon) -> list[ExamQuestion]:
    """Questions about groups are hard, those about rivers easy."""
    chance = random.Random(4)
    found = []
    for number in range(size):
        hard = number % 2
        text = f"What is the {'order of the group' if hard else 'length of the river'} {chance.choice('abcdefgh')}?"
        missed = {
            model: float(chance.random() < 1 / (1 + np.exp(ability - (1.5 if hard else -1.5))))
            for model, ability in ABILITIES.items()
        }
        found.append(ExamQuestion(text, "MMLU-Pro", features(text, built), np.zeros(96, np.float32), missed))
    return found


def test_failures_are_foretold_for_a_model_that_was_left_out(tmp_path: Path) -> None:
    built = Lexicon.load()
    questions = made(6000, built)
    model = difficulty.graded(difficulty.learn(questions, built, ["middle"]), questions, tmp_path / "difficulty.npz")
    assert model.fits(built.rows, 96)
    ability = model.ability(difficulty.standing("middle", questions))
    for one, truth in ((questions[1], 1.5), (questions[0], -1.5)):
        assert fails(model.item(one.read, one.embedding), ability) == pytest.approx(1 / (1 + np.exp(-truth)), abs=0.1)
    items = [model.item(one.read, one.embedding) for one in questions]
    foretold = [np.mean([fails(item, model.ability(standing)) for item in items]) for standing in (0.3, 0.6)]
    assert foretold == pytest.approx([0.7, 0.4], abs=0.02)


def test_the_word_vectors_are_those_of_the_graph() -> None:
    table, heads = export.word_vectors(MODEL), Heads()
    read = heads.prepare("How do plants grow?").features
    total = table[read.words].sum(0)
    embedding = heads.verdicts(["How do plants grow?"])[0].embedding
    assert total / np.linalg.norm(total) == pytest.approx(embedding, abs=1e-3)


def test_points_are_missed_by_share() -> None:
    assert difficulty.outcomes({"scores": {"a": 1, "b": 0.25, "c": 7}}) == {"a": 0, "b": 0.75, "c": 0}
    assert difficulty.outcomes({"weak_correct": 0, "strong_correct": 1}) == {
        "Mixtral-8x7B-Instruct-v0.1": 1,
        "gpt-4-1106": 0,
    }

"""The exported networks against the network they were exported from."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from examples.tinylm.engine import WEIGHTS, Engine
from examples.tinylm.tokenizer import END, PAD, RECENT

torch = pytest.importorskip("torch", reason="training needs torch: pip install -e .[train]")

from examples.tinylm import problems  # noqa: E402
from examples.tinylm.export import export  # noqa: E402
from examples.tinylm.model import Shape, TinyLM  # noqa: E402
from examples.tinylm.train import RECIPES, begin, drill, examples, load_tokenizer, schedule, vocabulary  # noqa: E402


@pytest.fixture
def pair(tmp_path: Path) -> tuple[TinyLM, Engine]:
    torch.manual_seed(0)
    tokenizer = load_tokenizer()
    model = TinyLM(Shape(tokenizer.size, 32, 2, 2)).eval()
    (tmp_path / "words.json").write_bytes((WEIGHTS / "words.json").read_bytes())
    export(model, tmp_path / "small.onnx")
    return model, Engine("small", tmp_path)


def test_the_export_computes_what_the_network_computes(pair: tuple[TinyLM, Engine]) -> None:
    model, engine = pair
    shape = model.shape
    for rows, before, time in ((1, 0, 9), (3, 5, 2), (4, 9, 1)):
        ids = torch.randint(0, shape.vocab, (rows, RECENT + time))
        past = torch.randn(shape.layers, 2, rows, shape.heads, before, model.dim)
        valid = torch.ones(rows, before + time, dtype=torch.bool)
        valid[0, : before // 2] = False
        positions = (valid.long().cumsum(1) - 1)[:, -time:]
        with torch.no_grad():
            logits, cache = model.step(ids, positions, past, valid)
        found, present = engine.run(ids.numpy(), positions.numpy(), past.numpy(), valid.numpy())
        np.testing.assert_allclose(found, logits.numpy(), atol=1e-5)
        np.testing.assert_allclose(present, cache.numpy(), atol=1e-5)
    engine.close()


def test_reading_at_once_and_token_by_token_agree(pair: tuple[TinyLM, Engine]) -> None:
    model, engine = pair
    ids = torch.randint(0, model.shape.vocab, (1, 30))
    with torch.no_grad():
        whole = model.logits(model(ids))[0].numpy()
    past = np.zeros((model.shape.layers, 2, 1, model.shape.heads, 0, model.dim), np.float32)
    padded = np.pad(ids.numpy(), ((0, 0), (RECENT, 0)), constant_values=PAD)
    for i in range(30):
        logits, past = engine.run(padded[:, i : i + 1 + RECENT], np.array([[i]]), past, np.ones((1, i + 1), np.bool_))
        np.testing.assert_allclose(logits[0, 0], whole[i], atol=1e-5)
    engine.close()


def test_padding_on_the_left_changes_nothing(pair: tuple[TinyLM, Engine]) -> None:
    model, engine = pair
    ids = np.array([[PAD] * RECENT + [5, 6, 7]])
    empty = np.zeros((model.shape.layers, 2, 1, model.shape.heads, 0, model.dim), np.float32)
    plain, _ = engine.run(ids, np.array([[0, 1, 2]]), empty, np.ones((1, 3), np.bool_))
    padded, _ = engine.run(
        np.array([[PAD] * (RECENT + 2) + [5, 6, 7]]),
        np.array([[0, 0, 0, 1, 2]]),
        empty,
        np.array([[False, False, True, True, True]]),
    )
    np.testing.assert_allclose(plain[0], padded[0, 2:], atol=1e-5)
    engine.close()


def test_a_model_that_begins_with_another_says_the_same_at_first() -> None:
    engine, tokenizer = Engine("small"), load_tokenizer()
    model = TinyLM(RECIPES["deep"].shape(tokenizer))
    begin(model, WEIGHTS / "small.onnx")
    assert model.shape.layers > len(engine.empty)
    ids = torch.randint(0, tokenizer.size, (1, RECENT + 20))
    positions, valid = torch.arange(20)[None], torch.ones(1, 20, dtype=torch.bool)
    past = torch.zeros(model.shape.layers, 2, 1, model.shape.heads, 0, model.dim)
    with torch.no_grad():
        logits, _ = model.step(ids, positions, past, valid)
    found, _ = engine.run(ids.numpy(), positions.numpy(), engine.empty, valid.numpy())
    np.testing.assert_allclose(found, logits.numpy(), atol=1e-3)
    engine.close()


def test_the_third_model_gets_the_most_of_what_the_small_one_is_worst_at() -> None:
    tokenizer, counts = load_tokenizer(), {"small": Counter[str](), "deep": Counter[str]()}
    for name, count in counts.items():
        source = examples(tokenizer, name, RECIPES[name], 30_000)
        for _ in range(300):
            text = tokenizer.decode(next(source)[0])
            count["compare"] += " fewer " in text or " times as many " in text or " together?" in text
            count["algebra"] += "olve" in text or "If " in text
    assert counts["deep"]["compare"] > counts["small"]["compare"]
    assert counts["deep"]["algebra"] < 0.5 * counts["small"]["algebra"]


def test_a_seed_tells_the_kind_of_its_problem() -> None:
    assert all(problems.kind_of(seed) == problems.make(seed).kind for seed in range(50))


def test_the_rate_rises_and_falls() -> None:
    assert [round(schedule(step, 1000), 2) for step in (0, 49, 500, 750, 999)] == [0.02, 1.0, 1.0, 0.5, 0.01]
    assert [round(schedule(step, 1000, 0.8), 2) for step in (200, 600, 999)] == [1.0, 0.5, 0.01]


def test_the_shipped_words_are_those_of_the_generator() -> None:
    assert vocabulary().words == load_tokenizer().words


def test_large_costs_at_least_eight_times_small() -> None:
    tokenizer = load_tokenizer()
    flops = {name: recipe.shape(tokenizer).flops_per_token(120) for name, recipe in RECIPES.items()}
    assert flops["large"] >= 8 * flops["small"]


def test_training_examples_mask_the_prompt_and_end() -> None:
    tokenizer = load_tokenizer()
    source = examples(tokenizer, "small", RECIPES["small"])
    kinds = set()
    for _ in range(60):
        ids, wanted = next(source)
        text = tokenizer.decode([token for token, asked in zip(ids, wanted, strict=True) if asked])
        drill = ids[-1] != END
        kinds.add(drill)
        # A drill asks for results only; a problem for everything after the prompt.
        assert re.fullmatch(r"(\d+\.)+", text) if drill else "Answer: " in text or "tinylm-small" in text
    assert kinds == {True, False}


def test_drills_are_right() -> None:
    rng = random.Random(0)
    for _ in range(100):
        for asked, result in zip(*drill(rng), strict=True):
            assert eval(asked.rstrip("=").replace("/", "//")) == int(result.rstrip("."))

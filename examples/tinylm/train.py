"""Trains the models: ``python -m examples.tinylm.train [small|large|deep|all]``; the third begins with the small one's.

Fixed seeds, one thread, a checkpoint every few minutes in ``--work`` (a second run goes on where the first stopped),
then the ONNX export and the accuracy on the development problems. The recipe is the constants in ``RECIPES``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from examples.tinylm import problems, talk
from examples.tinylm.export import export
from examples.tinylm.model import Shape, TinyLM
from examples.tinylm.tokenizer import END, PAD, RECENT, Tokenizer, pieces, render

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
TALK_SHARE = 0.05
DRILL_SHARE = 0.1
# Which share of the problems of a kind is left out. Four kinds are learnt early; the third model gets the most of the
# two that the small one is worst at, and few of the others, so that the two err at different problems.
EARLY = {"algebra": 0.5, "expression": 0.5, "story": 0.5, "total": 0.5}
OTHER = {"algebra": 0.85, "expression": 0.2, "story": 0.85, "total": 0.75}


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    width, layers, heads, mlp: the shape; steps: batches; tokens: padded tokens a batch; rate: peak learning rate;
    easy: problems in each of the two easy stages at the start; seed; less: the share that is left out, by kind;
    start: the shipped model whose layers it begins with, the further ones doing nothing at first; fall: the share of
    the steps over which the rate falls.
    """

    width: int
    layers: int
    heads: int
    mlp: int
    steps: int
    tokens: int
    rate: float
    easy: int
    seed: int
    less: Mapping[str, float] = field(default_factory=lambda: EARLY)
    start: str | None = None
    fall: float = 0.5

    def shape(self, tokenizer: Tokenizer) -> Shape:
        return Shape(tokenizer.size, self.width, self.layers, self.heads, self.mlp)


# The small model could learn more: it stops early, so that there is a gap worth routing over.
RECIPES = {
    "small": Recipe(width=40, layers=3, heads=2, mlp=2, steps=97500, tokens=2048, rate=0.03, easy=12_000, seed=1),
    "large": Recipe(width=128, layers=3, heads=4, mlp=4, steps=58000, tokens=2048, rate=0.027, easy=12_000, seed=2),
    "deep": Recipe(
        40, 4, 2, 2, steps=28000, tokens=2048, rate=0.008, easy=1, seed=3, less=OTHER, start="small", fall=0.8
    ),
}


def vocabulary() -> Tokenizer:
    """The tokenizer whose words are those of the first training problems and replies."""
    count: Counter[str] = Counter()
    for i in range(6000):
        made = problems.make(problems.SPLITS["train"] + i)
        count.update(pieces(made.question) + pieces(made.solution))
    rng = random.Random(0)
    for i in range(1000):
        count.update(pieces(talk.make(rng, ("tinylm-small", "tinylm-large")[i % 2])[1]))
    return Tokenizer(sorted(w for w, n in count.items() if len(w) > 1 and n >= 5 and not w.isdigit()))


def load_tokenizer(folder: Path = WEIGHTS) -> Tokenizer:
    """The tokenizer that the shipped models were trained with."""
    return Tokenizer(json.loads((folder / "words.json").read_text()))


def drill(rng: random.Random) -> tuple[list[str], list[str]]:
    """Some unrelated sums: what stands before each "=" and each result. Numbers as in the problems."""
    asked: list[str] = []
    results: list[str] = []
    while len(asked) < 10:
        op = rng.choice("+-*/")
        a, b = (rng.randint(1, rng.choice((20, 99, 400))) for _ in range(2))
        if op in "*/":
            b = rng.randint(2, 9)
        if op == "/":
            a = b * rng.randint(1, 99)
        if op == "*" and rng.random() < 0.4:
            a, b = b, a
        value = problems.value(a, op, b)
        if value is not None:
            asked.append(f"{a} {op} {b} =")
            results.append(f" {value}.")
    return asked, results


def recall(rng: random.Random) -> tuple[list[str], list[str]]:
    """As `drill`: numbers to be found again by the name before them, among more than the problems have.

    With the problems alone a network settles for the number it saw last, which is often the right one.
    """
    held = {name: rng.randint(2, rng.choice((20, 99, 400))) for name in rng.sample(problems.NAMES, rng.randint(3, 8))}
    wanted = rng.choices(list(held), k=10)
    asked = [f" with {name} =" for name in wanted]
    asked[0] = " ".join(f"{name} = {value}." for name, value in held.items()) + asked[0]
    return asked, [f" {held[name]}." for name in wanted]


def examples(tokenizer: Tokenizer, name: str, recipe: Recipe, skip: int = 0) -> Iterator[tuple[list[int], list[bool]]]:
    """(ids, which of them are to be predicted) without an end; `skip` examples are left out at the start.

    One in ten is a drill, where only results are to be predicted: sums, or numbers seen before. Among the problems
    the first ``recipe.easy`` are of band 1, as many again of bands 1 and 2, then come all bands alike: copying and
    carrying are found much sooner on short problems.
    """
    index, seed = skip, recipe.seed
    while True:
        rng = random.Random(f"{seed}-{index}")
        kind = rng.random()
        if kind < DRILL_SHARE:
            ids = render(tokenizer, [("user", "Drill.")])
            wanted = [False] * len(ids)
            for asked, result in zip(*(drill if rng.random() < 0.5 else recall)(rng), strict=True):
                # As one text, so that the signs and spaces around "=" are the same tokens as in a solution.
                sum_ids, asked_ids = tokenizer.encode(asked + result), tokenizer.encode(asked + " ")
                ids += sum_ids
                wanted += [False] * len(asked_ids) + [True] * (len(sum_ids) - len(asked_ids))
            yield ids, wanted
        else:
            if kind < DRILL_SHARE + TALK_SHARE:
                question, reply = talk.make(rng, f"tinylm-{name}")
            else:
                stage = index // recipe.easy
                band = None if stage > 1 else rng.randint(1, 1 + stage)
                chosen = problems.SPLITS["train"] + seed * 100_000_000 + index
                less = recipe.less.get(problems.kind_of(chosen), 0.0)
                if less and rng.random() < less:
                    index += 1
                    continue
                made = problems.make(chosen, band)
                question, reply = made.question, made.solution
            system = [("system", "You are a helpful assistant.")] if rng.random() < 0.05 else []
            prompt = render(tokenizer, [*system, ("user", question)])
            answer = [*tokenizer.encode(reply), END]
            yield [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)
        index += 1


def batches(
    source: Iterator[tuple[list[int], list[bool]]], tokens: int, rng: random.Random
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(ids, targets) int64 [rows, time], at most `tokens` cells, rows of like length; -100 where there is no target."""
    while True:
        pool = sorted((next(source) for _ in range(1500)), key=lambda e: len(e[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for example in pool:
            if (len(groups[-1]) + 1) * len(example[0]) > tokens:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            wide = max(len(ids) for ids, _ in group)
            x = np.full((len(group), wide), PAD, np.int64)
            y = np.full((len(group), wide), -100, np.int64)
            for row, (ids, wanted) in enumerate(group):
                x[row, : len(ids)] = ids
                y[row, : len(ids) - 1] = np.where(wanted[1:], ids[1:], -100)
            yield x, y


def schedule(step: int, steps: int, fall: float = 0.5) -> float:
    """The share of the peak rate: warm-up over 50 steps, level, then straight down to 1 % over the last `fall`."""
    return min(1.0, (step + 1) / 50, max(0.01, (steps - step) / (fall * steps)))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al., "Muon", 2024), for the hidden matrices."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                assert p.grad is not None
                state = self.state[p]
                speed = state.setdefault("speed", torch.zeros_like(p))
                speed.lerp_(p.grad, 0.05)
                p.mul_(1 - 0.05 * group["lr"])
                stretch = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(orthogonal(p.grad.lerp(speed, 0.95)), alpha=-group["lr"] * stretch)


def orthogonal(g: Tensor) -> Tensor:
    """The orthogonal matrix nearest to g, roughly: five Newton-Schulz steps with Jordan's coefficients."""
    x: Tensor = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@torch.no_grad()
def begin(model: TinyLM, path: Path) -> None:
    """Gives `model` the weights of an exported one that has the same width and heads and fewer layers; the layers that
    are left over change nothing until they are trained."""
    # The exporter keeps the names of what it takes as it is, and has the rest in the order of use: the weights of the
    # short convolution, then the matrices turned round, block by block, and the embeddings at last.
    held = {
        one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in onnx.load(path).graph.initializer
    }
    for name, weight in model.named_parameters():
        if f"model.{name}" in held:
            weight.copy_(held[f"model.{name}"])
    mixed = [
        weight for name, weight in held.items() if name.startswith("onnx::Mul") and weight.shape == model.mix[0].shape
    ]
    model.mix.copy_(torch.stack(mixed))
    turned = [weight.T for name, weight in held.items() if name.startswith("onnx::MatMul")][:-1]
    for block in model.blocks:
        for layer in (block.qkv, block.out, block.up, block.down):
            if turned:
                layer.weight.copy_(turned.pop(0))
            elif layer is block.out or layer is block.down:
                layer.weight.zero_()


def train(name: str, work: Path) -> TinyLM:
    """Trains one model; goes on from ``work/<name>.pt`` where there is one."""
    recipe, tokenizer = RECIPES[name], load_tokenizer()
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = TinyLM(recipe.shape(tokenizer))
    if recipe.start is not None:
        begin(model, WEIGHTS / f"{recipe.start}.onnx")
    matrices = [p for b in model.blocks for p in b.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    peaks = [recipe.rate, 0.2 * recipe.rate]
    optimizers = [Muon(matrices, peaks[0]), torch.optim.AdamW(rest, peaks[1], (0.9, 0.98), weight_decay=0.0)]
    path, start, seen = work / f"{name}.pt", 0, 0
    if path.exists():
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start, seen = saved["step"], saved["seen"]
    source = examples(tokenizer, name, recipe, seen)
    feed = batches(source, recipe.tokens, random.Random(recipe.seed + start))
    saved_at, smooth = time.monotonic(), None
    bar = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, desc=name, mininterval=5)
    for step in bar:
        x, y = next(feed)
        seen += len(x)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * schedule(step, recipe.steps, recipe.fall)
        targets = torch.from_numpy(y).flatten()
        rows = (targets >= 0).nonzero().squeeze(1)
        last = model(torch.from_numpy(x)).flatten(0, 1)
        loss = F.cross_entropy(model.logits(last[rows]), targets[rows])
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", problems=seen, refresh=False)
        if time.monotonic() - saved_at > 120 or step == recipe.steps - 1:
            done = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save({**done, "step": step + 1, "seen": seen}, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
            saved_at = time.monotonic()
    return model.eval()


@torch.inference_mode()
def generate(model: TinyLM, prompts: list[list[int]], limit: int = 400) -> list[list[int]]:
    """Greedy answers to `prompts`, all in one batch (left-padded)."""
    wide = max(len(p) for p in prompts)
    ids = torch.tensor([[PAD] * (wide - len(p) + RECENT) + p for p in prompts])
    valid = torch.tensor([[False] * (wide - len(p)) + [True] * len(p) for p in prompts])
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    out: list[list[int]] = [[] for _ in prompts]
    s = model.shape
    past = torch.zeros(s.layers, 2, len(prompts), s.heads, 0, s.width // s.heads)
    alive, rows = torch.arange(len(prompts)), positions[:, -1]
    for _ in range(limit):
        logits, past = model.step(ids, positions, past, valid)
        chosen = logits[:, -1].argmax(-1)
        for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
            out[row].append(token)
        going = chosen != END
        if not bool(going.any()):
            break
        alive, past, valid, rows = alive[going], past[:, :, going], valid[going], rows[going] + 1
        ids, positions = torch.cat([ids[:, -RECENT:], chosen[:, None]], dim=1)[going], rows[:, None]
        valid = torch.cat([valid, torch.ones(len(alive), 1, dtype=torch.bool)], dim=1)
    return out


def accuracy(model: TinyLM, tokenizer: Tokenizer, first: int, count: int) -> dict[int, tuple[int, int]]:
    """band -> (right, asked) over `count` problems from seed `first`, greedy."""
    made = [problems.make(first + i) for i in range(count)]
    made.sort(key=lambda p: len(p.question))
    tally = dict.fromkeys(problems.BANDS, (0, 0))
    for at in range(0, count, 250):
        part = made[at : at + 250]
        answers = generate(model, [render(tokenizer, [("user", p.question)]) for p in part])
        for problem, ids in zip(part, answers, strict=True):
            right, asked = tally[problem.band]
            good = ids[-1] == END and problems.check(problem, tokenizer.decode(ids[:-1]))
            tally[problem.band] = right + good, asked + 1
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("which", nargs="?", choices=(*RECIPES, "all"), default="all")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="checkpoints (not for git)")
    parser.add_argument("--count", type=int, default=1000, help="development problems to measure on")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    WEIGHTS.mkdir(exist_ok=True)
    words = WEIGHTS / "words.json"
    words.write_text(json.dumps(vocabulary().words, ensure_ascii=False, indent=0) + "\n")
    tokenizer = load_tokenizer()
    for name in RECIPES if args.which == "all" else (args.which,):
        model = train(name, args.work)
        export(model, WEIGHTS / f"{name}.onnx")
        tally = accuracy(model, tokenizer, problems.SPLITS["dev"], args.count)
        right, asked = (sum(t[i] for t in tally.values()) for i in (0, 1))
        print(f"{name}: {right / asked:.1%} of {asked}; by band", {b: round(r / n, 3) for b, (r, n) in tally.items()})
        size = sum(p.numel() for p in model.parameters())
        print(f"{name}: {size} parameters, {model.shape.flops_per_token(110)} FLOP a token")


if __name__ == "__main__":
    main()

"""What the commands `pointsman stepwise ...` do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from stepwise.policy import CalibrationRow, KappaPair, Kind, StepPolicy
from stepwise.strategies.fixed import Fixed
from stepwise.train import calibrate, evaluate, ppo, supervised, vtrace
from stepwise.train.algorithms import ALGORITHMS, ASK, PLAIN
from stepwise.train.asking import ladder, mark_from
from stepwise.train.collect import Plan, collect
from stepwise.train.endpoints import EndpointWriter
from stepwise.train.export import About, commit, export
from stepwise.train.forest import Forest, plant
from stepwise.train.latency import Latency, measure
from stepwise.train.net import Net
from stepwise.train.problem import Goal, area
from stepwise.train.project import Project
from stepwise.train.tree import StepWriter, Tree, Verifier


def of(project: Project) -> Sequence[str]:
    """The algorithms that a project has all it needs for."""
    return ALGORITHMS if (project.folder / "marks.json").exists() else PLAIN


async def do_collect(project: Project, name: str, writer: StepWriter, plan: Plan, at_once: int) -> None:
    """Grows the trees of a set."""
    if plan.marks:
        project.marks(writer)
    store, trees = project.trees(name)
    await collect(store, trees, writer, plan, at_once)
    nodes = sum(node.draft is not None for tree in trees for node in tree.nodes.values())
    redone = sum(node.redo is not None for tree in trees for node in tree.nodes.values())
    small, large = (np.mean([_alone(tree, letter) for tree in trees]) for letter in "KR")
    print(f"{len(trees)} questions, {nodes} drafts, {redone} steps of the large model beside them")
    print(f"small alone right: {small:.1%}; large step by step: {large:.1%}; large alone: {_plain(trees).mean():.1%}")


def do_train(project: Project, names: Sequence[str], goal: Goal, *, seed: int, updates: int) -> None:
    """Trains on the policy set (a fifth of its questions only picks the best network of a run).

    updates: of V-trace; PPO takes a quarter of it as rounds, each of several epochs.
    """
    torch.set_num_threads(1)
    _, trees = project.trees("policy")
    forest = plant(trees, project.settings.price)
    order = np.random.default_rng(seed).permutation(len(forest.roots))
    cut = len(order) * 4 // 5
    fit, check = _only(trees, order[:cut], project), forest.part(order[cut:])
    base = supervised.train(fit, seed=seed)
    mark = mark_from(fit, goal.multiplier)
    for name in names:
        fitted, checked, start, kappa = fit, check, base, 0.5
        if name.endswith(ASK):
            if mark is None:
                raise ValueError(f"{name} needs marks: run `pointsman stepwise collect --set policy --marks` first")
            fitted, checked, start = fit.asking(mark), check.asking(mark), base.asking()
        net = start
        if name.startswith("ppo"):
            settings = ppo.PPOSettings(rounds=max(1, updates // 4), seed=seed)
            net = ppo.train(fitted, checked, start, goal, settings)
        elif name.startswith("vtrace"):
            lagging = vtrace.VTraceSettings(updates=updates, seed=seed)
            net, kappa = vtrace.train(fitted, checked, start, goal, lagging)
        torch.save(net.state_dict(), project.folder / f"{name}.pt")
        about = _about(project, (), 0)
        difference = export(net, project.folder / f"{name}.onnx", about, forest.vectors)
        found = area(checked, net.redo(check.vectors))
        about_it = {"area": found, "kappa": kappa, "seed": seed, "goal": asdict(goal)}
        if name.endswith(ASK):
            about_it["ladder"] = ladder(forest, net.redo(forest.vectors), points=24)
        project.write(f"{name}.json", about_it)
        print(f"{name}: area {found:.4f} on {len(check.roots)} questions, export differs by {difference:.1e}")


async def do_calibrate(
    project: Project,
    name: str,
    writer: StepWriter | None,
    wanted: calibrate.Promises,
) -> None:
    """The kappa table, from the calibration set."""
    store, trees = project.trees("calibration")
    found: dict[str, Any] = {"size": len(trees)}
    promised: list[dict[tuple[Kind, float], calibrate.Kappa]] = []
    for asks in (False, True) if name.endswith(ASK) else (False,):
        if asks:
            found["marks"] = project.marks(writer)
        seen = await _trials(project, name, trees, writer, asks=asks)
        store.save(trees)
        large_right = seen.large_right
        kept = calibrate.promise(seen, wanted)
        promised.append({(one.kind, one.target): one.kappa for one in kept})
        for one in kept:
            at = next(t for t in seen.trials if t.kappa == one.kappa)
            lost = (large_right & ~at.right).sum() / large_right.sum()
            print(
                f"{one.kind} <= {one.target:g}: {_said(one.kappa)} (here: lost {lost:.2%}, cost {at.cost.mean():.1%})"
            )
    rows = []
    for (kind, target), kappa in promised[0].items():
        pair = promised[-1].get((kind, target))
        asking = pair if isinstance(pair, KappaPair) else None
        if not isinstance(kappa, KappaPair):  # the first was calibrated without asking
            rows.append(CalibrationRow(kind, target, kappa, wanted.delta, asking))
    found |= {"rows": [row.to_json() for row in rows], "large_right": int(large_right.sum())}
    project.write(f"{name}.calibration.json", found)
    missing = [a for a in wanted.alphas if a not in {r.target for r in rows if r.kind == "accuracy_loss"}]
    if missing:
        print(f"cannot be promised with {len(trees)} questions: accuracy_loss {', '.join(f'{a:g}' for a in missing)}")


class TimedModels(NamedTuple):
    """Who is timed: the models behind addresses, on the first `questions` of the test set."""

    served: EndpointWriter
    questions: int


async def do_evaluate(
    project: Project,
    names: Sequence[str],
    writer: StepWriter | None,
    max_redos: int,
    timed: TimedModels | None = None,
) -> None:
    """The report: `report.md`, `curves.png`, `figures.json` in the project's folder."""
    store, trees = project.trees("test")
    price = project.settings.price
    for tree in trees:
        await tree.unstepped(writer)
    exam = evaluate.Exam(trees, writer, price, max_redos)
    small = await exam.measure(Fixed.always_small(), 0)
    large = await exam.measure(Fixed.always_large(), 0)
    _, policy_trees = project.trees("policy")
    vectors = _vectors(policy_trees)
    sweeps: dict[str, evaluate.Sweep] = {}
    for name in names:
        sweeps[name] = _sweep(project, name, vectors, asks=name.endswith(ASK))
    sweeps["question"] = _question_level(policy_trees)
    sweeps |= evaluate.handcrafted(vectors, verify=isinstance(writer, Verifier))
    points: dict[str, list[evaluate.Point]] = {}
    for name, sweep in tqdm(sweeps.items(), desc="strategies"):
        points[name] = [await exam.measure(s, p) for p, s in sweep]
        store.save(trees)
    best = [await evaluate.oracle(tree, writer, price, redos=3) for tree in tqdm(trees, desc="oracle")]
    store.save(trees)
    tokens = np.array([np.inf if b is None else b[0] for b in best])
    seen = evaluate.Comparison(points, small, large, tokens)
    found = evaluate.figures(seen, samples=1000, seed=0)
    plain = float(_plain(trees).mean())
    title = f"{project.settings.small} and {project.settings.large}"
    waits: dict[str, Latency] = {}
    if timed is not None:
        low, high = float(small.right.mean()), float(large.right.mean())
        chosen = {name: sweep[evaluate.chosen(points[name], low, high)][1] for name, sweep in sweeps.items()}
        chosen |= {"always-small": Fixed.always_small(), "always-large": Fixed.always_large()}
        questions = [tree.question for tree in trees[: timed.questions]]
        waits = await measure(timed.served.models, project.settings, chosen, questions, max_redos=max_redos)
    text = evaluate.report(found, seen, plain, title, waits)
    text += f"\n{_hardness(trees)}\n{await _promises(project, names, trees, writer)}"
    (project.folder / "report.md").write_text(text)
    evaluate.plot(seen, project.folder / "curves.png")
    project.write(
        "figures.json",
        {
            "questions": len(trees), "plain": plain,
            "small": float(small.right.mean()), "large": float(large.right.mean()),
            "seconds": {name: {"first": wait.first, "whole": wait.whole} for name, wait in waits.items()},
            "strategies": {f.name: {"area": f.area, "tokens": dict(f.tokens), "cost": f.cost} for f in found},
            "curves": {
                n: [[p.parameter, float(p.right.mean()), float(p.large.mean()), float(p.cost.mean())] for p in ps]
                for n, ps in points.items()
            },
        },
    )  # fmt: skip
    print(text)


def do_export(project: Project, name: str, out: Path, card: Path | None = None) -> None:
    """The finished policy file: the network, its kappa table and where it comes from; with `card` a page about it."""
    calibration = project.read(f"{name}.calibration.json", f"calibrate --algorithm {name}")
    if not calibration["rows"]:
        raise ValueError(
            f"{name} has no target that could be promised, so nothing could be served with it: collect more "
            "calibration questions, or calibrate for larger targets (--loss, --cost)"
        )
    net = Net(asks=name.endswith(ASK))
    try:
        net.load_state_dict(torch.load(project.folder / f"{name}.pt"))
    except FileNotFoundError:
        raise ValueError(f"{project.folder}/{name}.pt: missing; run `pointsman stepwise train` first") from None
    _, trees = project.trees("calibration")
    rows = [CalibrationRow.from_json(row) for row in calibration["rows"]]
    about = replace(_about(project, rows, calibration["size"]), marks=calibration.get("marks"))
    difference = export(net, out, about, _vectors(trees))
    StepPolicy(out, device="cpu").close()  # loads as serving loads it
    print(f"{out}: {len(rows)} targets, differs from the trained network by {difference:.1e}")
    if card is not None:
        card.write_text(_card(project, name, out, rows, calibration["size"]), encoding="utf-8")


def _card(project: Project, name: str, out: Path, rows: Sequence[CalibrationRow], size: int) -> str:
    """What there is to know about a policy file, as Markdown; the report is that of the last `evaluate`."""
    s, report = project.settings, project.folder / "report.md"
    if not report.exists():
        raise ValueError(f"{report}: missing; run `pointsman stepwise evaluate` before you ask for a card")
    _, trees = project.trees("policy")
    lines = [
        f"# {out.name}: a stepwise policy for {s.small} and {s.large}",
        "",
        f"Trained with `{name}` on {len(trees)} questions, calibrated on {size} others, evaluated on a third set, at",
        f"commit `{commit()[:12]}`. Cost counts a token of the small model as {s.price_small:g}, one of the large",
        f"model as {s.price_large:g}, and one that it reads for a mark as {s.price.read:g}. A loss of accuracy is of",
        f"the questions that the large model alone answers rightly. Steps have {s.min_tokens} to",
        f"{s.max_tokens} tokens and end by: {s.ends}. SHA-256 of the file:",
        f"`{hashlib.sha256(out.read_bytes()).hexdigest()}`.",
        "",
        "| target | kappa | kappa where it may ask | holds with probability |",
        "|---|---|---|---|",
        *(
            f"| {row.kind} at most {row.target:g} | {row.kappa:.4f} | {_said(row.ask) if row.ask else '–'} "
            f"| {1 - row.delta:g} |"
            for row in rows
        ),
        "",
        "## Evaluation",
        "",
        report.read_text(encoding="utf-8"),
    ]
    return "\n".join(lines)


# --- helpers --------------------------------------------------------------------------------------------------------


def _about(project: Project, rows: Sequence[CalibrationRow], size: int) -> About:
    s = project.settings
    return About(s.small, s.large, s.limits, s.token_budget, rows, size, commit())


def _plain(trees: Sequence[Tree]) -> NDArray[np.bool_]:
    """[trees]: the large model's own, unstepped answer is right."""
    if any(tree.plain is None for tree in trees):
        raise ValueError("the large model's own answers are missing; run `pointsman stepwise collect` for this set")
    return np.array([bool(tree.plain and tree.plain.right) for tree in trees])


def _alone(tree: Tree, letter: str) -> bool:
    path = ""
    while True:
        node = tree.nodes[path]
        piece = node.draft if letter == "K" else node.redo
        assert piece is not None
        if piece.last:
            return bool(piece.right)
        path += letter


def _vectors(trees: Sequence[Tree]) -> NDArray[np.float32]:
    return np.array([n.vector for t in trees for n in t.nodes.values() if n.vector is not None], np.float32)


def _only(trees: Sequence[Tree], index: NDArray[np.int64], project: Project) -> Forest:
    """A forest of these trees alone, so that no statistic is taken from the others."""
    return plant([trees[i] for i in index], project.settings.price)


def _said(kappa: calibrate.Kappa) -> str:
    if not isinstance(kappa, KappaPair):
        return f"kappa {kappa:.4f}"
    return f"kappa {kappa.low:.4f} to {kappa.high:.4f}, mark {kappa.mark:.4f}"


def _sweep(
    project: Project, name: str, vectors: NDArray[np.float32], *, asks: bool, points: int = 16
) -> evaluate.Sweep:
    """A trained network with its thresholds, or with its pairs of them, the safest last."""
    file = project.folder / f"{name}.onnx"
    if not asks:
        return evaluate.trained(file, name, vectors, points)
    pairs = [KappaPair(*pair) for pair in project.read(f"{name}.json", f"train --algorithm {name}")["ladder"]]
    return evaluate.asking(file, name, pairs[::-1])


async def _trials(
    project: Project, name: str, trees: Sequence[Tree], writer: StepWriter | None, *, asks: bool
) -> calibrate.Trials:
    """Every threshold of a fixed ladder (from the policy set) on `trees`."""
    for tree in trees:
        await tree.unstepped(writer)
    _, policy_trees = project.trees("policy")
    sweep = _sweep(project, name, _vectors(policy_trees), asks=asks, points=40)
    price = project.settings.price
    exam = evaluate.Exam(trees, writer, price, max_redos=8)
    trials = []
    for kappa, strategy in tqdm(sweep[::-1], desc=f"{name}: thresholds"):
        point = await exam.measure(strategy, kappa)
        trials.append(calibrate.Trial(kappa, point.right, point.cost))
    large = np.array([price.large * tree.plain.size for tree in trees if tree.plain is not None])
    return calibrate.Trials(trials, _plain(trees), large / large.mean())


def _question_level(trees: Sequence[Tree]) -> evaluate.Sweep:
    """Routing whole questions: after the first draft one model writes everything (logistic regression on it)."""
    x = np.array([t.nodes[""].vector for t in trees], np.float32)
    y = np.array([_alone(t, "K") for t in trees], np.float32)
    mean, scale = x.mean(axis=0), 1 / np.maximum(x.std(axis=0), 1e-3)
    inputs, wanted = torch.from_numpy((x - mean) * scale), torch.from_numpy(y)
    line = torch.nn.Linear(x.shape[1], 1)
    torch.nn.init.zeros_(line.weight)
    optimizer = torch.optim.LBFGS(line.parameters(), max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(line(inputs).squeeze(1), wanted)
        value = value + 1e-2 * line.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weight, bias = line.weight.detach().numpy()[0], float(line.bias.detach())

    def score(vector: NDArray[np.float32]) -> float:
        return float(((vector - mean) * scale) @ weight + bias)

    kappas = np.quantile([score(v) for v in x], np.linspace(0, 1, 13))
    return [(float(k), evaluate.Scored("question", score, float(k), once=True)) for k in kappas]


def _hardness(trees: Sequence[Tree]) -> str:
    """How the task looks from the small model's wrong answers: which of their steps really are hard.

    A step is really hard when a right answer can still be reached after redoing it and none after keeping it.
    """
    hard = total = 0
    for tree in trees:
        if _alone(tree, "K"):
            continue
        path = ""
        while (node := tree.nodes[path]).draft is not None:
            assert node.draft is not None
            total += 1
            hard += _reaches(tree, path + "R") and not _reaches(tree, path + "K")
            if node.draft.last:
                break
            path += "K"
    share = hard / max(1, total)
    return (
        f"In the small model's wrong answers {share:.1%} of {total} steps are really hard (redoing them is what helps)."
    )


def _reaches(tree: Tree, path: str) -> bool:
    """Is some written answer below `path` right?"""
    node = tree.nodes.get(path[:-1])
    piece = None if node is None else node.draft if path[-1] == "K" else node.redo
    if piece is None:
        return False
    if piece.last:
        return bool(piece.right)
    return _reaches(tree, path + "K") or _reaches(tree, path + "R")


async def _promises(project: Project, names: Sequence[str], trees: Sequence[Tree], writer: StepWriter | None) -> str:
    """Whether the calibrated promise holds over 200 halves of the calibration and test questions together."""
    lines = ["| policy | target | splits that break it (delta 0.1) | mean loss | mean cost |", "|---|---|---|---|---|"]
    try:
        _, more = project.trees("calibration")
    except ValueError:
        more = []
    plain, asking = [n for n in names if not n.endswith(ASK)], [n for n in names if n.endswith(ASK)]
    for name in (*plain[-1:], *asking[-1:]):
        seen = await _trials(project, name, [*trees, *more], writer, asks=name.endswith(ASK))
        for alpha in calibrate.LOSSES:
            broken, lost, cost = calibrate.resample(seen, alpha, 0.1, splits=200, seed=0)
            lines.append(f"| {name} | lose at most {alpha:.1%} | {broken:.1%} | {lost:.2%} | {cost:.1%} |")
    return "\n".join(lines) + "\n"

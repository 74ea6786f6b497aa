"""What the commands `pointsman stepwise ...` do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from stepwise.policy import CalibrationRow, Card, KappaPair, StepPolicy
from stepwise.strategies.fixed import Fixed
from stepwise.train import calibrate, evaluate, ppo, supervised, vtrace
from stepwise.train.algorithms import ALGORITHMS, ASK, PLAIN
from stepwise.train.asking import NOTHING, ladder, mark_from
from stepwise.train.collect import Plan, collect
from stepwise.train.endpoints import EndpointWriter
from stepwise.train.export import About, Promised, commit, export, promising
from stepwise.train.forest import Forest, plant
from stepwise.train.latency import Latency, measure
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
    s = project.settings
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
        about = About(s.small, s.large, s.limits, s.token_budget, commit())
        difference = export(net, project.folder / f"{name}.onnx", about, forest.vectors)
        found = area(checked, net.redo(check.vectors))
        project.write(f"{name}.json", {"area": found, "kappa": kappa, "seed": seed, "goal": asdict(goal)})
        print(f"{name}: area {found:.4f} on {len(check.roots)} questions, export differs by {difference:.1e}")


async def do_calibrate(
    project: Project,
    name: str,
    writer: StepWriter | None,
    wanted: calibrate.Promises,
    policy: Path | None = None,
) -> None:
    """The kappa table, from the calibration set.

    policy: a policy file whose network takes the place of `name`. It is taught when to ask: the pairs of thresholds for
    asking are calibrated, for what its rows promise, and its rows stay as they are.
    """
    store, trees = project.trees("calibration")
    asks, size = name.endswith(ASK), len(trees)
    rows: list[CalibrationRow] = []
    found: dict[str, Any] = {}
    if policy is not None:
        card = _adopt(project, name, policy)
        rows, size = list(card.rows), min(size, card.calibration_size)
        alphas, shares = ([row.target for row in rows if row.kind == kind] for kind in ("accuracy_loss", "cost"))
        wanted = calibrate.Promises(alphas, shares, min(row.delta for row in rows), wanted.temperature)
        if card.temperature != wanted.temperature:
            raise ValueError(f"{policy}: its rows hold at temperature {card.temperature:g}, so say --temperature that")
    found["temperature"] = wanted.temperature
    if asks:
        found["marks"] = project.marks(writer)
    for asking in [False] * (policy is None) + [True] * asks:
        seen = await _trials(project, name, trees, writer, asks=asking)
        store.save(trees)
        found["large_right"] = int(seen.large_right.sum())
        # A pair that keeps nothing asks nothing, either: `kappa` alone is then better.
        kept = [one for one in calibrate.promise(seen, wanted) if not _asks_nothing(one.kappa)]
        for one in kept:
            at = next(t for t in seen.trials if t.kappa == one.kappa)
            lost = (seen.large_right & ~at.right).sum() / seen.large_right.sum()
            print(
                f"{one.kind} <= {one.target:g}: {_said(one.kappa)} (here: lost {lost:.2%}, cost {at.cost.mean():.1%})"
            )
        for kind, targets in (("accuracy_loss", wanted.alphas), ("cost", wanted.shares)):
            missing = [target for target in targets if target not in {p.target for p in kept if p.kind == kind}]
            if missing:
                how = f"cannot be promised with {len(trees)} questions{' by asking' * asking}"
                print(f"{how}: {kind} {', '.join(f'{target:g}' for target in missing)}")
        if asking:
            exam = evaluate.Exam(trees, writer, project.settings.price, max_redos=8)
            score = evaluate.scorer(_network(project, name))
            for i, row in enumerate(rows):
                pair = next((p.kappa for p in kept if (p.kind, p.target) == (row.kind, row.target)), None)
                if not isinstance(pair, KappaPair):
                    continue
                at = next(t for t in seen.trials if t.kappa == pair)
                point = await exam.measure(evaluate.Scored(name, score, row.kappa, once=False), row.kappa)
                if calibrate.worse(row.kind, at, calibrate.Trial(row.kappa, point.right, point.cost)):
                    print(f"{row.kind} <= {row.target:g}: asking is no better than kappa alone, and left out")
                else:
                    rows[i] = row._replace(ask=pair)
            store.save(trees)
        else:
            rows = [
                CalibrationRow(kind, target, kappa, wanted.delta)
                for kind, target, kappa in kept
                if not isinstance(kappa, KappaPair)
            ]
    project.write(f"{name}.calibration.json", {**found, "size": size, "rows": [row.to_json() for row in rows]})


def _asks_nothing(kappa: calibrate.Kappa) -> bool:
    return isinstance(kappa, KappaPair) and kappa.low >= NOTHING


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
        if name.endswith(ASK):
            sweeps[name] = await _asking(project, name, writer)
        else:
            sweeps[name] = evaluate.trained(_network(project, name), name, vectors)
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
    rows = [CalibrationRow.from_json(row) for row in calibration["rows"]]
    warm = calibration.get("temperature", 0.0)
    promised = Promised(rows, calibration["size"], calibration.get("marks"), warm)
    promising(_network(project, name), out, promised)
    StepPolicy(out, device="cpu").close()  # loads as serving loads it
    print(f"{out}: {len(rows)} targets")
    if card is not None:
        card.write_text(_card(project, name, out, rows, calibration["size"]), encoding="utf-8")


def _card(project: Project, name: str, out: Path, rows: Sequence[CalibrationRow], size: int) -> str:
    """What there is to know about a policy file, as Markdown; the report is that of the last `evaluate`."""
    s, report = project.settings, project.folder / "report.md"
    if not report.exists():
        raise FileNotFoundError(f"{report}: missing; run `pointsman stepwise evaluate` before you ask for a card")
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


def _network(project: Project, name: str) -> Path:
    """The file of a trained network. Raises FileNotFoundError when there is none."""
    file = project.folder / f"{name}.onnx"
    if not file.exists():
        raise FileNotFoundError(f"{file}: missing; run `pointsman stepwise train` first")
    return file


def _adopt(project: Project, name: str, policy: Path) -> Card:
    """Makes a policy file's network that of `name`. Raises ValueError where it is for other models or other steps."""
    opened = StepPolicy(policy, device="cpu")
    opened.close()
    card, s = opened.card.of_pair(project.settings.small, project.settings.large), project.settings
    if (card.steps, card.token_budget) != (s.limits, s.token_budget):
        raise ValueError(
            f"{policy}: its steps are {card.steps}, and its token budget {card.token_budget}, but those of "
            f"{project.folder} are {s.limits}, and {s.token_budget}; collect again with its own (--ends, --min-tokens, "
            "--max-tokens)"
        )
    (project.folder / f"{name}.onnx").write_bytes(policy.read_bytes())
    return card


async def _asking(project: Project, name: str, writer: StepWriter | None) -> evaluate.Sweep:
    """A network with its pairs of thresholds, the safest last. They are chosen on the policy set, once for a
    network."""
    file = _network(project, name)
    network = hashlib.sha256(file.read_bytes()).hexdigest()
    known = project.folder / f"{name}.ladder.json"
    if not known.exists() or json.loads(known.read_text())["network"] != network:
        store, trees = project.trees("policy", copy="asking")
        for tree in trees:
            await tree.unstepped(writer)
        try:
            pairs = await ladder(evaluate.Exam(trees, writer, project.settings.price, max_redos=8), file, points=40)
        finally:
            store.save(trees)
        project.write(known.name, {"network": network, "pairs": pairs})
    rungs = [KappaPair(*pair) for pair in json.loads(known.read_text())["pairs"]]
    return evaluate.asking(file, name, rungs[::-1])


async def _trials(
    project: Project, name: str, trees: Sequence[Tree], writer: StepWriter | None, *, asks: bool
) -> calibrate.Trials:
    """Every threshold of a fixed ladder (from the policy set) on `trees`."""
    for tree in trees:
        await tree.unstepped(writer)
    if asks:
        sweep = await _asking(project, name, writer)
    else:
        sweep = evaluate.trained(_network(project, name), name, _vectors(project.trees("policy")[1]), points=40)
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
    except FileNotFoundError:
        more = []
    plain, asking = [n for n in names if not n.endswith(ASK)], [n for n in names if n.endswith(ASK)]
    for name in (*plain[-1:], *asking[-1:]):
        seen = await _trials(project, name, [*trees, *more], writer, asks=name.endswith(ASK))
        for alpha in calibrate.LOSSES:
            broken, lost, cost = calibrate.resample(seen, alpha, 0.1, splits=200, seed=0)
            lines.append(f"| {name} | lose at most {alpha:.1%} | {broken:.1%} | {lost:.2%} | {cost:.1%} |")
    return "\n".join(lines) + "\n"

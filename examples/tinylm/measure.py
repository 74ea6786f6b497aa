"""Accuracy of the shipped models by band and kind, as a Markdown table: ``python -m examples.tinylm.measure``."""

from __future__ import annotations

import argparse
import asyncio
import math
from contextlib import closing

from examples.tinylm import problems
from examples.tinylm.writer import Writer
from stepwise.steps import StepLimits
from stepwise.train.tree import Question


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.96
    share, n = right / asked, asked
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


async def measure(split: str, count: int) -> str:
    """A row for each band, one for each kind and one for all, greedy answers."""
    made = [problems.make(problems.SPLITS[split] + i) for i in range(count)]
    asked = [Question(str(p.seed), p.question, str(p.answer)) for p in made]
    found = []
    for name in ("small", "deep"):
        with closing(Writer(StepLimits(), small=name)) as writer:
            found.append(await asyncio.gather(*(writer.small(q, "") for q in asked)))
            if name == "deep":
                found.append(await asyncio.gather(*(writer.large(q, "", rest=True) for q in asked)))
    lines = [
        "| band | problems | mean steps | tinylm-small | tinylm-deep | tinylm-large |",
        "|---|---|---|---|---|---|",
    ]
    for of in (*problems.BANDS, *problems.KINDS, None):
        rows = [i for i, p in enumerate(made) if of in (p.band, p.kind, None)]
        cells = []
        for written in found:
            texts = ["".join(token.text for token in written[i].tokens) for i in rows]
            right = sum(problems.check(made[i], text) for i, text in zip(rows, texts, strict=True))
            low, high = interval(right, len(rows))
            cells.append(f"{right / len(rows):.1%} ({low:.1%}–{high:.1%})")
        steps = sum(len(made[i].steps) for i in rows) / len(rows)
        lines.append(f"| {of or 'all'} | {len(rows)} | {steps:.1f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m examples.tinylm.measure", description=__doc__)
    parser.add_argument("--split", choices=[name for name in problems.SPLITS if name != "train"], default="test")
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    print(asyncio.run(measure(options.split, options.count)))


if __name__ == "__main__":
    main()

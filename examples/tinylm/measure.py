"""Accuracy of the shipped models by band, as a Markdown table: ``python -m examples.tinylm.measure --count 2000``."""

from __future__ import annotations

import argparse
import asyncio
import math

from examples.tinylm import problems
from examples.tinylm.writer import open_writer
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
    """A row for each band and one for all, greedy answers."""
    made = [problems.make(problems.SPLITS[split] + i) for i in range(count)]
    asked = [Question(str(p.seed), p.question, str(p.answer)) for p in made]
    async with open_writer(StepLimits()) as writer:
        small = await asyncio.gather(*(writer.small(q, "") for q in asked))
        large = await asyncio.gather(*(writer.large(q, "", rest=True) for q in asked))
    lines = ["| band | problems | mean steps | tinylm-small | tinylm-large |", "|---|---|---|---|---|"]
    for band in (*problems.BANDS, None):
        rows = [i for i, p in enumerate(made) if band in (p.band, None)]
        cells = []
        for written in (small, large):
            texts = ["".join(token.text for token in written[i].tokens) for i in rows]
            right = sum(problems.check(made[i], text) for i, text in zip(rows, texts, strict=True))
            low, high = interval(right, len(rows))
            cells.append(f"{right / len(rows):.1%} ({low:.1%}–{high:.1%})")
        steps = sum(len(made[i].steps) for i in rows) / len(rows)
        lines.append(f"| {band or 'all'} | {len(rows)} | {steps:.1f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m examples.tinylm.measure", description=__doc__)
    parser.add_argument("--split", choices=[name for name in problems.SPLITS if name != "train"], default="test")
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    print(asyncio.run(measure(options.split, options.count)))


if __name__ == "__main__":
    main()

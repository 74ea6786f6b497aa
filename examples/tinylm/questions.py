"""Writes problems as JSONL for ``pointsman stepwise``: ``python -m examples.tinylm.questions test --count 2000 >
test.jsonl``."""

from __future__ import annotations

import argparse
import json
import sys

from examples.tinylm import problems


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m examples.tinylm.questions", description=__doc__
    )
    parser.add_argument("split", choices=[name for name in problems.SPLITS if name != "train"])
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    for i in range(options.count):
        made = problems.make(problems.SPLITS[options.split] + i)
        row = {"id": str(made.seed), "question": made.question, "answer": str(made.answer), "band": made.band}
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

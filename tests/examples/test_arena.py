"""The policy for arenas: how a question is put does not change which model takes it."""

from __future__ import annotations

from pathlib import Path

import orjson

from config.watch import load
from extproc.apis.shape import Target
from extproc.requests.body import parse
from tests import yamls

ROOT = Path(__file__).resolve().parents[2]
PAIRS = yamls.load((Path(__file__).parent / "paraphrases.yaml").read_text())
DECISIONS: dict[str, set[str | None]] = {
    "mathematics": {"mathematics"},
    "code": {"code"},
    "multilingual": {"multilingual"},
    "reading": {"reading"},
    "multiple_choice": {"multiple-choice"},
    "writing": {"writing"},
    "logic": {"logic", "mathematics"},
    "science": {"science", "trivia"},
    "trivia": {"trivia", "science"},
    "everyday": {"trivia", "science", None},
}


async def test_a_paraphrase_goes_to_the_same_model() -> None:
    """Of a hundred pairs at least ninety-five do, and each kind of question takes its own way."""
    engine = load(ROOT / "examples" / "arena.yaml").engine
    same = count = 0
    try:
        for kind, pairs in PAIRS.items():
            for pair in pairs:
                models = []
                for text in pair:
                    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]})
                    trace = await engine.decide(parse(Target("chat"), {}, {}, body, 1000))
                    assert trace.decision.name in DECISIONS[kind], (text, trace.decision.name)
                    models.append(trace.decision.model)
                count += 1
                same += models[0] is models[1]
    finally:
        engine.close()
    assert count == 100
    assert same >= 95

"""What is added in one file and one registry entry: a writer, and a strategy of stepwise answers.

Each is added to a temporary copy of the tree, where nothing else is changed, and then used from end to end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("cli", "config", "decisions", "extproc", "proto", "signals", "stepwise", "tests", "upstream")

PARROT = '''
"""A writer that says again what the user has said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import orjson

from upstream.answer import Answer, whole
from upstream.writer import Call, Means, Writer, WriterKind, WriterMetrics, WriterSpec

KIND = WriterKind(
    name="parrot",
    about="Say it again.",
    otherwise="there is nothing to say",
    runtime="stepwise.parrot:ParrotSpec",
    headers=("x-pointsman-parrot",),
)


class ParrotSpec(WriterSpec):
    """Parameters of a `parrot` decision."""

    kind: ClassVar[WriterKind] = KIND
    instead: str
    """The model of calls that say nothing."""
    times: int = 1
    """How often it is said."""

    @property
    def models(self) -> tuple[str, ...]:
        return (self.instead,)

    @property
    def fallback(self) -> str:
        return self.instead

    @property
    def how(self) -> str:
        return "said again"

    @classmethod
    def mentions(cls, data: Mapping[str, object]) -> Iterator[tuple[tuple[str | int, ...], object]]:
        yield ("instead",), data.get("instead")

    def build(self, means: Means) -> Writer:
        return Parrot(self)


class Parrot:
    kind = KIND
    by_session = False

    def __init__(self, spec: ParrotSpec) -> None:
        self.metrics = WriterMetrics()
        self._times = spec.times

    def unfit(self, call: Call) -> str | None:
        return None if call.body["messages"][-1]["content"] else "silent"

    async def start(self) -> None:
        return None

    async def answer(self, call: Call) -> Answer:
        said = call.body["messages"][-1]["content"] * self._times
        return whole(200, orjson.dumps({"said": said}), {"x-pointsman-parrot": "yes"})

    async def close(self) -> None:
        return None
'''
POLICY = """\
version: 1
models:
  small: {name: tiny, url: "http://127.0.0.1:9"}
  large: {name: huge, url: "http://127.0.0.1:9"}
default: small
decisions:
  - {name: again, parrot: {instead: large, times: 2}}
"""
ASK = """
import asyncio, json, sys
from pathlib import Path
from config.watch import load
from extproc.answers import Answers
from tests.extproc.envoy import DUPLEX, Envoy, Service
import stepwise
from tests.proto import oracle

async def ask(text):
    engine = load(Path(sys.argv[1])).engine
    answers = Answers([engine], Path(sys.argv[1]).parent, None)
    await answers.start()
    service = Service(engine, answers)
    envoy = Envoy(service, DUPLEX)
    envoy.request(json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]}).encode())
    await envoy.settled()
    await answers.close()
    told = {"action": service.decision.action, "fallback": service.decision.fallback}
    told["model"] = service.decision.model.key
    parts = [m.streamed_immediate_response for m in envoy.sent if m.streamed_immediate_response]
    if parts:
        told["headers"] = oracle.headers_of(parts[0].headers_response.headers)
        told["body"] = b"".join(part.body_response.body for part in parts[1:]).decode()
    told["counted"] = dict(answers.find("again").metrics.ineligible)
    return told

print(json.dumps({"where": stepwise.__file__, "said": asyncio.run(ask("hello ")), "silent": asyncio.run(ask(""))}))
"""

BRIEF = '''
"""Rejects drafts that are long."""

from __future__ import annotations

from stepwise.strategy import AnswerContext, Draft, Judge, Run, Strategy, StrategyKind, StrategyParameter, Verdict


class Brief(Strategy):
    name = "brief"

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def begin(self, context: AnswerContext) -> Run:
        return _BriefRun(self.longest)


class _BriefRun(Judge):
    def __init__(self, longest: int) -> None:
        self._longest = longest

    async def judge(self, draft: Draft) -> Verdict:
        return Verdict(len(draft.step.text.strip()) <= self._longest)


KIND = StrategyKind(
    "brief",
    lambda wanted: Brief(int(wanted.number("longest", 10))),
    {"longest": StrategyParameter(int, "`brief`: characters of the longest draft that is kept (10).")},
)
'''
STEPS = """
import asyncio, json
from pathlib import Path
from stepwise.spec import StepwiseSpec
from tests.stepwise.fakes import FakeModel, Pair, writer
from upstream.writer import Means
import stepwise

async def main():
    small = FakeModel("tiny", writer(["short step", "this step is longer than twenty letters", "end step"]))
    large = FakeModel("huge", writer(["short step", "a second one", "end step"]))
    await small.start()
    await large.start()
    block = {"small": "small", "large": "large", "strategy": "brief", "longest": 20, "step": {"min_tokens": 1}}
    spec = StepwiseSpec.model_validate(block)
    made = spec.stepwise(Means({"small": small.endpoint(), "large": large.endpoint()}, Path()))
    await made.start()
    status, answer = await Pair(small, large, made, made._setup.strategy).ask(stream=False)
    await made.close()
    await small.stop()
    await large.stop()
    return {"where": stepwise.__file__, "status": status, "answer": answer}

print(json.dumps(asyncio.run(main())))
"""


def copy(folder: Path, *changed: str) -> Path:
    """A tree in which the rooms `changed` may be written to; the others are the tree's own."""
    tree = folder / "tree"
    tree.mkdir()
    for room in ROOMS:
        if room in changed:
            shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tree / room).symlink_to(ROOT / room)
    return tree


def enter(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def run(tree: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-P", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_writer_is_one_file_and_one_entry(tmp_path: Path) -> None:
    tree = copy(tmp_path, "config", "stepwise")
    (tree / "stepwise/parrot.py").write_text(PARROT)
    enter(
        tree / "config/writers.py",
        "from stepwise import kind as stepwise",
        "from stepwise import kind as stepwise, parrot",
    )
    enter(tree / "config/writers.py", "(stepwise.KIND,)", "(stepwise.KIND, parrot.KIND)")
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)

    told: dict[str, Any] = json.loads(run(tree, "-c", ASK, str(file)))
    assert told["where"].startswith(str(tree))
    said = told["said"]
    assert (said["action"], said["body"]) == ("parrot", '{"said":"hello hello "}')
    assert said["headers"]["x-pointsman-parrot"] == "yes"
    assert said["headers"]["x-pointsman-decision"] == "again"
    silent = told["silent"]
    assert (silent["action"], silent["model"], silent["fallback"]) == ("route", "large", "ineligible")
    assert silent["counted"] == {"silent": 1}

    command = ("-m", "cli.main")
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hello"}]}))
    assert run(tree, *command, "validate", str(file))
    explained = json.loads(run(tree, *command, "explain", str(file), str(request), "-o", "json"))
    assert (explained["action"], explained["decision"]) == ("parrot", "again")
    assert "parrot, or to large (huge) where there is nothing to say" in run(
        tree, *command, "explain", str(file), str(request)
    )
    schema = json.loads(run(tree, *command, "schema"))
    assert schema["$defs"]["DecisionSpec"]["properties"]["parrot"] == {"$ref": "#/$defs/ParrotSpec"}
    rendered = run(tree, *command, "render", "--for", "envoy", str(file))
    assert "x-pointsman-parrot" in rendered
    assert "FULL_DUPLEX_STREAMED" in rendered

    cases = tmp_path / "cases.yaml"
    cases.write_text("cases:\n  - {name: again, expect: {action: parrot, model: large}}\n")
    assert run(tree, *command, "test", str(file), str(cases))
    file.write_text(POLICY.replace("instead: large", "instead: larg"))
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    refused = subprocess.run(
        [sys.executable, "-P", *command, "validate", str(file)], env=environment, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "unknown model 'larg' (did you mean 'large'?)" in refused.stdout + refused.stderr


@pytest.mark.slow
def test_a_strategy_is_one_file_and_one_entry(tmp_path: Path) -> None:
    tree = copy(tmp_path, "stepwise")
    (tree / "stepwise/strategies/brief.py").write_text(BRIEF)
    enter(
        tree / "stepwise/registry.py",
        "from stepwise.strategies import chance,",
        "from stepwise.strategies import brief, chance,",
    )
    enter(tree / "stepwise/registry.py", "    fixed.ALWAYS_LARGE,\n", "    fixed.ALWAYS_LARGE,\n    brief.KIND,\n")

    told: dict[str, Any] = json.loads(run(tree, "-c", STEPS))
    assert told["where"].startswith(str(tree))
    usage = told["answer"]["usage"]["pointsman"]
    assert (told["status"], usage["strategy"]) == (200, "brief")
    assert [(step["model"], step["action"]) for step in usage["steps"]] == [
        ("small", "keep"),
        ("large", "redo"),
        ("small", "keep"),
    ]
    schema = json.loads(run(tree, "-m", "cli.main", "schema"))
    block = schema["$defs"]["StepwiseSpec"]["properties"]
    assert block["longest"]["description"] == "`brief`: characters of the longest draft that is kept (10)."
    assert "brief" in json.dumps(block["strategy"])
    file = tmp_path / "policy.yaml"
    file.write_text(
        POLICY.replace(
            "parrot: {instead: large, times: 2}", "stepwise: {small: small, large: large, strategy: brief, longest: 3}"
        )
    )
    assert run(tree, "-m", "cli.main", "validate", str(file))

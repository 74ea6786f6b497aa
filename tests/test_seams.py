"""What is added in one file and one registry entry: a writer, a strategy of stepwise answers, a selector, a signal.

Each is added to a temporary copy of the tree, where nothing else is changed, and then used from end to end.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from decisions.selectors.registry import BY_NAME as SELECTORS
from tests.rooms import ROOMS, nodes, parsed

ROOT = Path(__file__).parents[1]

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
    problem = None

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

from stepwise.strategy import AnswerContext, Draft, Judgement, Run, StepJudge, Strategy, StrategyKind
from upstream.writer import WriterParameter


class Brief(Strategy):
    name = "brief"

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def begin(self, context: AnswerContext) -> Run:
        return _BriefRun(self.longest)


class _BriefRun(StepJudge):
    def __init__(self, longest: int) -> None:
        self._longest = longest

    async def judge(self, draft: Draft) -> Judgement:
        return Judgement(len(draft.step.text.strip()) <= self._longest)


KIND = StrategyKind(
    "brief",
    lambda wanted: Brief(int(wanted.number("longest", 10))),
    {"longest": WriterParameter(int, "`brief`: characters of the longest draft that is kept (10).")},
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

BY_LENGTH = '''
"""`by_length`: long requests go to the model with the largest context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from decisions.candidates import expected_tokens
from decisions.decision import Choice
from decisions.model import Model
from decisions.selectors.selector import Params, Pick, Selector
from signals.facts import Facts
from signals.signal import Doubt, Shared


class ByLengthParams(Params):
    """What is long."""

    above: int = Field(gt=0, description="Tokens of the longest request that is not long.")

    def check(self, models: Sequence[str]) -> None:
        if len(models) < 2:
            raise ValueError("by_length needs two models at least")

    def doubts(self, models: Sequence[Model]) -> Iterator[Doubt]:
        least = min(model.context or 0 for model in models)
        if least < self.above:
            yield Doubt(("above",), "L331", f"a model holds {least} tokens only: lower it")


class ByLength(Selector):
    name = "by_length"
    about = "Take the first model, and for long requests the one with the largest context."
    Parameters = ByLengthParams

    def __init__(self, pick: Pick, params: ByLengthParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._above = params.above

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        if expected_tokens(facts)[0] > self._above:
            return Choice(max(models, key=lambda model: model.context or 0), "a long request", 1.0, self.name)
        return Choice(models[0], "a short request", 1.0, self.name)
'''
LENGTH = """\
version: 1
models:
  small: {context: 1000}
  large: {context: 100000}
default: small
decisions:
  - {name: sized, route: {pick: [small, large], by: {by_length: {above: 50}}}}
"""

SHOUT = '''
"""`shout`: how much of a text is in capital letters."""

from __future__ import annotations

from pydantic import Field

from signals.facts import Facts
from signals.reading import Reading
from signals.signal import Shared, Signal, TextParams


class ShoutParams(TextParams):
    """How much is too much."""

    at_least: float = Field(0.5, ge=0, le=1, description="The least share of capital letters that matches.")


class Shout(Signal):
    """Reads the share of capital letters. The score is that share."""

    kind = "shout"
    Parameters = ShoutParams
    scored = True

    def __init__(self, name: str, params: ShoutParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._scope, self._least = params.in_, params.at_least

    def read(self, facts: Facts) -> Reading:
        letters = [letter for letter in facts.request.text(self._scope) if letter.isalpha()]
        share = sum(letter.isupper() for letter in letters) / len(letters) if letters else 0.0
        return Reading(share >= self._least, share)
'''
LOUD = """\
version: 1
models: {small: {}, large: {}}
default: small
signals: {loud: {shout: {at_least: 0.8}}}
decisions:
  - {name: shouting, when: loud, route: large}
"""


def copy(folder: Path, *changed: str) -> Path:
    """A tree with the rooms `changed`, which may be written to; `run` finds the others where they are. What Python has
    compiled of them holds there, too: a copy has the times of what it is a copy of."""
    tree = folder / "tree"
    for room in changed:
        shutil.copytree(ROOT / room, tree / room)
    return tree


def enter(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def environment(tree: Path) -> dict[str, str]:
    """Rooms that are not in the tree come from where their compiled modules are."""
    return {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{ROOT}"}


def run(tree: Path, *arguments: str) -> str:
    command = [sys.executable, "-P", "-c", *arguments]
    done = subprocess.run(command, env=environment(tree), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Commands:
    """The tree's command line, in one process: each would import the whole tree for itself."""

    LOOP = """
import contextlib, io, json, sys
from cli.main import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(json.loads(line))
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""

    def __init__(self, tree: Path) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-P", "-c", self.LOOP]
        self._process = subprocess.Popen(command, env=environment(tree), stdin=pipe, stdout=pipe, text=True)

    def tried(self, *arguments: str) -> tuple[int, str, str]:
        """How a command ends, and what it writes to standard output and standard error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        status, out, err = json.loads(self._process.stdout.readline())
        return status, out, err

    def __call__(self, *arguments: str) -> str:
        status, out, err = self.tried(*arguments)
        assert status == 0, out + err
        return out

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def command_line() -> Iterator[Callable[[Path], Commands]]:
    made: list[Commands] = []

    def start(tree: Path) -> Commands:
        made.append(Commands(tree))
        return made[-1]

    yield start
    for commands in made:
        commands.close()


def differences(tree: Path, room: str) -> set[str]:
    """The files of `room` that are not as they were, or are new."""
    found = set()
    for file in (tree / room).rglob("*"):
        before = ROOT / file.relative_to(tree)
        if file.is_dir() or "__pycache__" in file.parts:
            continue
        if not before.is_file() or before.read_bytes() != file.read_bytes():
            found.add(str(file.relative_to(tree)))
    return found


def problems(tree: Path, policies: list[str]) -> list[str]:
    """What the tree finds wrong with each of `policies`."""
    script = """
import json, sys
from config.load import check
print(json.dumps(["\\n".join(map(str, check(text, "")[1])) for text in json.loads(sys.argv[1])]))
"""
    found: list[str] = json.loads(run(tree, script, json.dumps(policies)))
    return found


def ask(folder: Path, text: str) -> str:
    """A file with a request that says `text`."""
    file = folder / "request.json"
    file.write_text(json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]}))
    return str(file)


@pytest.mark.slow
def test_a_writer_is_one_file_and_one_entry(tmp_path: Path, command_line: Callable[[Path], Commands]) -> None:
    tree = copy(tmp_path, "config", "stepwise")
    (tree / "stepwise/parrot.py").write_text(PARROT)
    enter(
        tree / "config/writers.py",
        "from stepwise import kind as stepwise",
        "from stepwise import kind as stepwise, parrot",
    )
    enter(tree / "config/writers.py", "(stepwise.KIND, panel.KIND)", "(stepwise.KIND, panel.KIND, parrot.KIND)")
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)

    told: dict[str, Any] = json.loads(run(tree, ASK, str(file)))
    assert told["where"].startswith(str(tree))
    said = told["said"]
    assert (said["action"], said["body"]) == ("parrot", '{"said":"hello hello "}')
    assert said["headers"]["x-pointsman-parrot"] == "yes"
    assert said["headers"]["x-pointsman-decision"] == "again"
    silent = told["silent"]
    assert (silent["action"], silent["model"], silent["fallback"]) == ("route", "large", "ineligible")
    assert silent["counted"] == {"silent": 1}

    command = command_line(tree)
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hello"}]}))
    assert command("validate", str(file))
    explained = json.loads(command("explain", str(file), str(request), "-o", "json"))
    assert (explained["action"], explained["decision"]) == ("parrot", "again")
    assert "parrot, or to large (huge) where there is nothing to say" in command("explain", str(file), str(request))
    schema = json.loads(command("schema"))
    assert schema["$defs"]["DecisionSpec"]["properties"]["parrot"] == {"$ref": "#/$defs/ParrotSpec"}
    rendered = command("render", "--for", "envoy", str(file))
    assert "x-pointsman-parrot" in rendered
    assert "FULL_DUPLEX_STREAMED" in rendered

    cases = tmp_path / "cases.yaml"
    cases.write_text("cases:\n  - {name: again, expect: {action: parrot, model: large}}\n")
    assert command("test", str(file), str(cases))
    file.write_text(POLICY.replace("instead: large", "instead: larg"))
    status, out, err = command.tried("validate", str(file))
    assert status != 0
    assert "unknown model 'larg' (did you mean 'large'?)" in out + err


@pytest.mark.slow
def test_a_strategy_is_one_file_and_one_entry(tmp_path: Path, command_line: Callable[[Path], Commands]) -> None:
    tree = copy(tmp_path, "stepwise")
    (tree / "stepwise/strategies/brief.py").write_text(BRIEF)
    enter(
        tree / "stepwise/registry.py",
        "from stepwise.strategies import chance,",
        "from stepwise.strategies import brief, chance,",
    )
    enter(tree / "stepwise/registry.py", "    fixed.ALWAYS_LARGE,\n", "    fixed.ALWAYS_LARGE,\n    brief.KIND,\n")

    told: dict[str, Any] = json.loads(run(tree, STEPS))
    assert told["where"].startswith(str(tree))
    usage = told["answer"]["usage"]["pointsman"]
    assert (told["status"], usage["strategy"]) == (200, "brief")
    assert [(step["model"], step["action"]) for step in usage["steps"]] == [
        ("small", "keep"),
        ("large", "redo"),
        ("small", "keep"),
    ]
    command = command_line(tree)
    schema = json.loads(command("schema"))
    block = schema["$defs"]["StepwiseSpec"]["properties"]
    assert block["longest"]["description"] == "`brief`: characters of the longest draft that is kept (10)."
    assert "brief" in json.dumps(block["strategy"])
    file = tmp_path / "policy.yaml"
    file.write_text(
        POLICY.replace(
            "parrot: {instead: large, times: 2}", "stepwise: {small: small, large: large, strategy: brief, longest: 3}"
        )
    )
    assert command("validate", str(file))


@pytest.mark.slow
def test_a_selector_is_one_file_and_one_entry(tmp_path: Path, command_line: Callable[[Path], Commands]) -> None:
    tree = copy(tmp_path, "decisions")
    (tree / "decisions/selectors/by_length.py").write_text(BY_LENGTH)
    registry = tree / "decisions/selectors/registry.py"
    enter(
        registry,
        "from decisions.selectors.cheapest",
        "from decisions.selectors.by_length import ByLength\nfrom decisions.selectors.cheapest",
    )
    enter(registry, "    Cheapest,\n", "    Cheapest,\n    ByLength,\n")
    assert differences(tree, "decisions") == {"decisions/selectors/by_length.py", "decisions/selectors/registry.py"}

    command = command_line(tree)
    file = tmp_path / "policy.yaml"
    file.write_text(LENGTH)
    assert json.loads(command("validate", str(file), "-o", "json")) == []
    explained = json.loads(command("explain", str(file), ask(tmp_path, "word " * 100), "-o", "json"))
    choice = {"model": "large", "why": "a long request", "propensity": 1.0, "by": "by_length"}
    assert (explained["model"], explained["choice"]) == ("large", choice)
    drawn = command("explain", str(file), ask(tmp_path, "hi"))
    assert "choice    small by by_length: a short request" in drawn
    assert "→ route by_length of small, large" in drawn
    lines = tmp_path / "requests.jsonl"
    lines.write_text('{"request": {"messages": [{"role": "user", "content": "hi"}]}}\n')
    assert json.loads(command("replay", str(file), str(lines)))["choice"]["why"] == "a short request"
    cases = tmp_path / "cases.yaml"
    cases.write_text("cases:\n  - {name: short, expect: {decision: sized, model: small}}\n")
    assert command("test", str(file), str(cases))
    schema = json.loads(command("schema"))
    assert schema["$defs"]["BySpec"]["properties"]["by_length"]["description"].startswith("Take the first model")
    assert schema["$defs"]["ByLengthParams"]["required"] == ["above"]

    bad = {
        "{by_length: {above: 0}}": "above: a whole number above 0 is needed",
        "{by_length: {abov: 5}}": "did you mean 'above'?",
        "{by_length: {}}": "missing key 'above'",
        "by_length": "`by` lacks parameters: write `by: {by_length: {above: …}}`",
        "{by_lenght: {above: 5}}": "did you mean 'by_length'?",
    }
    policies = [LENGTH.replace("{by_length: {above: 50}}", by) for by in bad]
    policies += [LENGTH.replace("[small, large]", "[large]"), LENGTH.replace("above: 50", "above: 5000")]
    found = problems(tree, policies)
    for message, said in zip([*bad.values(), "by_length needs two models at least", "lower it"], found, strict=True):
        assert message in said
    assert found[-1].startswith(f":7:{LENGTH.splitlines()[6].index('50}') + 1}: L331")
    file.write_text(LENGTH.replace("sized,", "sized, sticky: session,"))
    assert "→ route pinned of small, large" in command("explain", str(file), ask(tmp_path, "hi"))


@pytest.mark.slow
def test_a_kind_of_signal_is_one_file_and_one_entry(tmp_path: Path, command_line: Callable[[Path], Commands]) -> None:
    tree = copy(tmp_path, "signals")
    (tree / "signals/kinds/shout.py").write_text(SHOUT)
    registry = tree / "signals/registry.py"
    enter(registry, "from signals.kinds.similar", "from signals.kinds.shout import Shout\nfrom signals.kinds.similar")
    enter(registry, "    Similar,\n", "    Shout,\n    Similar,\n")
    assert differences(tree, "signals") == {"signals/kinds/shout.py", "signals/registry.py"}

    command = command_line(tree)
    file = tmp_path / "policy.yaml"
    file.write_text(LOUD)
    assert json.loads(command("validate", str(file), "-o", "json")) == []
    explained = json.loads(command("explain", str(file), ask(tmp_path, "HELP ME"), "-o", "json"))
    assert (explained["model"], explained["signals"]["loud"]["score"]) == ("large", 1.0)
    assert "loud: false, score 0.25" in command("explain", str(file), ask(tmp_path, "Help"))
    schema = json.loads(command("schema"))
    assert schema["$defs"]["signal.shout"]["properties"]["at_least"]["maximum"] == 1
    cases = tmp_path / "cases.yaml"
    cases.write_text("cases:\n  - {name: loud, signals: {loud: {score: 0.9}}, expect: {decision: shouting}}\n")
    assert command("test", str(file), str(cases))
    bad = {
        LOUD.replace("shout: {at_least: 0.8}", "shot: {}"): "did you mean 'shout'?",
        LOUD.replace("at_least: 0.8", "at_leest: 0.8"): "did you mean 'at_least'?",
        LOUD.replace("when: loud", "when: {signal: loud, is: x}"): "signal 'loud' (shout) has no label to test",
    }
    for message, said in zip(bad.values(), problems(tree, list(bad)), strict=True):
        assert message in said


def sources(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    for room in rooms:
        for file in (ROOT / room).rglob("*.py"):
            yield str(file.relative_to(ROOT)), parsed(file)


def imported(tree: ast.Module) -> set[str]:
    """The modules that a file imports, and what it takes from them."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@pytest.mark.slow
def test_no_kind_of_selector_is_named_outside_its_file_and_the_registry() -> None:
    own = {name: kind.__module__ for name, kind in SELECTORS.items()}
    named = set()
    for file, tree in sources(*ROOMS):
        module = file.removesuffix(".py").replace("/", ".")
        for node in nodes(tree):
            if isinstance(node, ast.Constant) and own.get(str(node.value), module) != module:
                if node.value == "quality" or file.startswith(
                    "cli/imports/"
                ):  # a model's; the words of another product
                    continue
                named.add((file, node.lineno, node.value))
        if module != "decisions.selectors.registry":
            named |= {(file, 0, used) for used in imported(tree) & set(own.values())}
    assert named == set()


@pytest.mark.slow
def test_no_kind_of_signal_is_imported_but_by_the_registry() -> None:
    """Training apart, which makes what the kinds read; masking uses what `pii` finds, and who writes another router's
    policy in our language asks which languages there are."""
    users = {
        file
        for file, tree in sources(*ROOMS)
        if any(used.startswith("signals.kinds.") for used in imported(tree)) and not file.startswith("signals/train/")
    }
    assert users == {"signals/registry.py", "extproc/records/masking.py", "cli/imports/vllm_signals.py"}

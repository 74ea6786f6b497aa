"""`pointsman test POLICY CASES.yaml…`: runs the test cases of a policy."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import orjson

from cli.answers import Answered, answered
from cli.calls import RecordedCall, Stubs, Unread, lowered
from cli.colour import CASES, painted
from config.advice import one_of
from config.document import Document, parse
from config.load import validated
from config.problem import PolicyError, did_you_mean
from config.watch import Rejected
from config.writers import ACTIONS
from decisions import explain
from decisions.cases import Case, Coverage, Suite, answer_mismatches, mismatches, reading_mismatches, stub
from decisions.decision import Trace
from decisions.engine import Engine, Evaluation
from extproc.refusal import Refusal
from extproc.told import request_headers
from signals.facts import Facts
from signals.files import POLICY, read
from signals.request import Request

_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
SUMMARY = "run a policy's test cases"


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("test", help=SUMMARY, description=SUMMARY)
    parser.add_argument("policy", type=Path, metavar="POLICY")
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASES.yaml")
    parser.add_argument(
        "--coverage",
        action="store_true",
        help="print which decisions are taken and which signals are read, and which are not",
    )
    parser.add_argument("-o", "--output", choices=tuple(FORMATS), default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    """The exit status: 0 when every case passes, 1 when one fails or is not a case. OSError: an unreadable file."""
    from config.build import build
    from config.load import load
    from config.resources import TrialResources

    engine = build(load(args.policy), TrialResources())
    try:
        suites = _read(args.cases, engine)
        results = asyncio.run(_run(engine, suites))
    finally:
        engine.close()
    report: list[str] = []
    if args.coverage:
        coverage = Coverage(engine)
        for result in results:
            coverage.add(result.trace)
            if result.answer is not None:
                coverage.add_answer(result.answer.acted, result.answer.read)
        report = coverage.report()
    shown = FORMATS[args.output](results, report)
    print(painted(shown, CASES) if args.output == "text" else shown)
    return int(any(result.differences for result in results))


def _text(results: Sequence[CaseResult], coverage: Sequence[str]) -> str:
    failed = sum(bool(result.differences) for result in results)
    cases = "1 case" if len(results) == 1 else f"{len(results)} cases"
    count = f"{cases}: {len(results) - failed} passed, {failed} failed"
    return "\n".join([*(result.text() for result in results), count, *coverage])


def _json(results: Sequence[CaseResult], coverage: Sequence[str]) -> str:
    cases = [
        {
            "name": result.case.name,
            "place": result.place,
            "passed": not result.differences,
            "differences": result.differences,
            "decision": result.trace.decision.name,
            "us": result.trace.microseconds,
            **({} if result.answer is None else {"answer": result.answer.as_object()}),
        }
        for result in results
    ]
    failed = sum(bool(result.differences) for result in results)
    summary = {"cases": cases, "passed": len(results) - failed, "failed": failed}
    return orjson.dumps(summary | ({"coverage": coverage} if coverage else {}), option=orjson.OPT_INDENT_2).decode()


def _junit(results: Sequence[CaseResult], coverage: Sequence[str]) -> str:
    """The XML that CI systems read (the form of Ant's JUnit task, as pytest and Maven write it)."""
    failed = sum(bool(result.differences) for result in results)
    suite = Element("testsuite", name="pointsman", tests=str(len(results)), failures=str(failed), errors="0")
    for result in results:
        file, line, _ = result.place.rsplit(":", 2)
        seconds = f"{result.trace.microseconds * 1e-6:.6f}"
        case = SubElement(
            suite, "testcase", name=_clean(result.case.name), classname=_clean(file), file=_clean(file), line=line
        )
        case.set("time", seconds)
        if result.differences:
            failure = SubElement(case, "failure", message=_clean("; ".join(result.differences)))
            failure.text = _clean(result.text())
    if coverage:
        SubElement(suite, "system-out").text = _clean("\n".join(coverage))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(suite, encoding="unicode")


def _clean(text: str) -> str:
    """`text` without the characters that XML 1.0 cannot have (section 2.2)."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


FORMATS: dict[str, Callable[[Sequence[CaseResult], Sequence[str]], str]] = {
    "text": _text,
    "json": _json,
    "junit": _junit,
}


def gate(engine: Engine, path: Path) -> None:
    """Raises `config.watch.Rejected` when a case in `path` fails, or the file is not a cases file.

    Not to be called from a running event loop: for slow signals it starts one of its own.
    """
    try:
        results = asyncio.run(_run(engine, _read([path], engine)))
    except PolicyError as error:
        raise Rejected(str(error)) from None
    failed = [result for result in results if result.differences]
    if failed:
        first = failed[0]
        reason = f"{first.place}: {first.case.name}: {'; '.join(first.differences)}"
        raise Rejected(f"{len(failed)} of {len(results)} test cases fail; the first: {reason}")


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How one case went; no `differences` when it passed. `drawn` is the rule tree of a case that failed, and what
    became of its answer; `answer` is the latter for every case that has any."""

    case: Case
    place: str
    trace: Trace
    differences: list[str] = field(default_factory=list)
    drawn: str = ""
    answer: Answered | None = None

    def text(self) -> str:
        if not self.differences:
            return f"ok    {self.case.name}"
        lines = [f"FAIL  {self.case.name}  ({self.place})", *self.differences, *self.drawn.splitlines()]
        return "\n      ".join(lines)


def _read(paths: Sequence[Path], engine: Engine) -> list[tuple[str, Case]]:
    """The cases of the files, each with its place; raises `PolicyError` with everything that is wrong in them."""
    found: list[tuple[str, Case]] = []
    problems = []
    for path in paths:
        document = _document(path)
        suite = None
        if isinstance(document.data, dict) and "models" in document.data and "cases" not in document.data:
            what = f"this is a policy, and no test cases: write `pointsman test {path} CASES.yaml`, or check it with "
            document.report(("models",), "P101", f"{what}`pointsman validate {path}`", at_key=True)
        elif isinstance(document.data, dict):
            suite = validated(document, Suite)
        elif not document.problems:
            document.report((), "P103", "a cases file is a mapping with `cases`, a list")
        for index, case in enumerate(suite.cases if suite else ()):
            _check(document, index, case, engine)
            line, column = document.values[("cases", index)]
            found.append((f"{path}:{line}:{column}", case))
        problems += document.problems
    if problems:
        raise PolicyError(sorted(problems))
    return found


def _document(path: Path) -> Document:
    try:
        return parse(read(path, POLICY).decode("utf-8-sig"), str(path))
    except UnicodeDecodeError:
        document = Document(str(path))
        document.report((), "Y001", "not valid YAML: the file is not UTF-8")
        return document


def _check(document: Document, index: int, case: Case, engine: Engine) -> None:
    """Report what `case` names that the policy does not have."""
    expected = ("cases", index, "expect")
    for name in case.signals:
        if name not in engine.signals:
            message = f"unknown signal {name!r}{did_you_mean(name, engine.signals)}"
            document.report(("cases", index, "signals", name), "R201", message, at_key=True)
    for name in case.expect.signals:
        if name not in engine.asked:
            message = f"unknown signal {name!r}{did_you_mean(name, engine.asked)}"
            if name in engine.signals:
                message = f"signal {name!r} looks at answers: write `answer:` to say what must become of one"
            document.report((*expected, "signals", name), "R201", message, at_key=True)
    for of in ("qualities", "seconds"):
        _check_candidates(document, ("cases", index, of), getattr(case, of), engine)
    if not case.expect.model_fields_set:
        document.report(expected, "P102", "expect: say at least one of decision, model, action, status")
    names = [clause.name for clause in engine.clauses]
    watching = [] if engine.watched is None else [one.name for one in engine.watched.watching]
    answer = case.expect.answer
    if answer is not None:
        place = (*expected, "answer")
        if case.answer is None:
            document.report(place, "P102", "answer: the case has none; write `answer:` beside `expect`", at_key=True)
        elif not answer.model_fields_set:
            document.report(place, "P102", "answer: say at least one of decision, action, status, text")
        if answer.decision is not None and answer.decision not in watching:
            message = f"unknown decision on the answer {answer.decision!r}{did_you_mean(answer.decision, watching)}"
            document.report((*place, "decision"), "R206", message)
    elif case.answer is not None:
        message = "answer: nothing is expected of it; write `answer:` below `expect`"
        document.report(("cases", index, "answer"), "P102", message, at_key=True)
    action, decision, model = case.expect.action, case.expect.decision, case.expect.model
    actions = (*ACTIONS, "default")
    if action is not None and action not in actions:
        document.report((*expected, "action"), "P104", f"action: {one_of(actions, action)}")
    if decision is not None and decision in watching:
        message = f"{decision!r} looks at the answer: write `answer: {{decision: {decision}}}`"
        document.report((*expected, "decision"), "R206", message)
    elif decision is not None and decision not in names:
        document.report(
            (*expected, "decision"), "R206", f"unknown decision {decision!r}{did_you_mean(decision, names)}"
        )
    if model is not None and model not in engine.models:
        document.report((*expected, "model"), "R202", f"unknown model {model!r}{did_you_mean(model, engine.models)}")


def _check_candidates(
    document: Document, at: tuple[str | int, ...], told: Mapping[str, Mapping[str, float]], engine: Engine
) -> None:
    """Report what the case says of candidates that there are not, or whose choice does not go by it."""
    for name, figures in told.items():
        place = (*at, name)
        selector = engine.selectors.get(name)
        if selector is None:
            message = f"no decision {name!r} with a choice of models{did_you_mean(name, engine.selectors)}"
            document.report(place, "R206", message, at_key=True)
            continue
        stub = selector.stub if at[-1] == "qualities" else selector.stub_seconds
        try:
            stub(Facts(Request("chat", b"", {}, None, (), {})), figures)
        except ValueError as error:
            document.report(place, "P108", str(error), at_key=True)
        keys = [model.key for model in selector.models]
        for key in figures.keys() - set(keys):
            message = f"{key!r} is no candidate of {name!r}{did_you_mean(key, keys)}"
            document.report((*place, key), "R202", message, at_key=True)


async def _run(engine: Engine, cases: Sequence[tuple[str, Case]]) -> list[CaseResult]:
    return [await _one(engine, place, case) for place, case in cases]


async def _one(engine: Engine, place: str, case: Case) -> CaseResult:
    call = RecordedCall(orjson.dumps(case.request), lowered(case.headers), case.path, case.attributes)
    readings = {name: stub(engine.signals[name], value) for name, value in case.signals.items()}
    stubs = Stubs(readings, case.qualities, case.seconds)
    trace = await _decided(call.begin(engine, stubs=stubs))
    headers: Mapping[str, str] = dict(request_headers(trace.decision))
    differences = mismatches(case.expect, trace.decision, headers)
    if case.expect.signals:
        every = await _decided(call.begin(engine, stubs=stubs, everything=True))
        if every.readings:
            differences += reading_mismatches(case.expect, every.readings)
        else:
            differences.append("signals: nothing is read of a request that is refused or passed on before any rule")
    after = None
    if case.expect.answer is not None:
        after = await answered(engine, call, trace, case.answer)
        differences += answer_mismatches(case.expect.answer, None if after is None else after.as_object())
    drawn = _drawn(engine, call, trace) if differences else ""
    if differences and after is not None:
        drawn = "\n".join([drawn, *after.lines()]).lstrip("\n")
    return CaseResult(case, place, trace, differences, drawn, after)


async def _decided(begun: Trace | Evaluation) -> Trace:
    if isinstance(begun, Trace):
        return begun
    begun.facts.shadow = True  # before a policy is used its cases are run on its own store, and move no session there
    return await begun.finish()


def _drawn(engine: Engine, call: RecordedCall, trace: Trace) -> str:
    """The rule tree, when the request got as far as the rules."""
    try:
        request = call.request(engine)
    except Refusal as refusal:
        return f"refused before any rule: {refusal.text}"
    if isinstance(request, Unread):
        return request.said
    return explain.tree(engine, trace, named=not engine.catalogue.asks(request))

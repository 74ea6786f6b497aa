"""`pointsman replay POLICY REQUESTS.jsonl`: the decisions of recorded requests, or what another policy would change."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import NoneType
from typing import IO, Any, Protocol

import orjson

from cli import foreseen
from cli.answers import Answered, answered
from cli.calls import CHAT, RecordedCall, Unread, lowered
from cli.foreseen import Logged
from decisions import explain, learned
from decisions.candidates import expected_tokens
from decisions.decision import Trace
from decisions.engine import Engine
from decisions.outcome import choice_object
from extproc.records.decisionlog import LINE_KEYS
from signals.facts import Facts

SUMMARY = "decide recorded requests, or show what another policy would change"

WINDOW = 64
"""How many requests may wait for slow signals at a time; this limits memory and still fills a model's batches."""

EXAMPLES = 3
"""Line numbers shown for each pair of outcomes that differ."""


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("replay", help=SUMMARY, description=SUMMARY)
    parser.add_argument("policy", type=Path, metavar="POLICY")
    parser.add_argument("requests", metavar="REQUESTS.jsonl", help="one request per line; `-` reads standard input")
    parser.add_argument("--all", action="store_true", help="read every signal and print its reading")
    parser.add_argument("--against", type=Path, metavar="POLICY2", help="print what POLICY2 would change instead")
    parser.add_argument(
        "--learned", type=Path, metavar="FILE", help="what the choices of the last policy know, of `select export`"
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="the form of the report of --against"
    )


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, or 1 when some lines are not requests; the other lines are decided all the same."""
    from config.build import build
    from config.load import load
    from config.resources import TrialResources

    with ExitStack() as stack:
        engines = []
        for path in (args.policy, args.against):
            if path is not None:
                engines.append(build(load(path), TrialResources()))
                stack.callback(engines[-1].close)
        if args.learned is not None:
            try:
                asyncio.run(learned.take_in(engines[-1], orjson.loads(args.learned.read_bytes())))
            except ValueError as error:
                print(f"pointsman replay: {args.learned}: {error}", file=sys.stderr)
                return 1
        name = "<stdin>" if args.requests == "-" else args.requests
        lines = sys.stdin.buffer if args.requests == "-" else stack.enter_context(open(args.requests, "rb"))
        sink: Sink
        if args.against is None:
            sink = Decisions(engines[0], args.all)
        else:
            sink = Report((args.policy, args.against), engines, args.output)
        try:
            return asyncio.run(_replay(engines, (name, lines), args.all, sink))
        except BrokenPipeError:
            # Whoever read the output has seen enough. Python would complain again when it flushes at exit.
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115
            return 0


Answers = Sequence[Answered | None]
"""What becomes of the recorded answer under each policy; empty where there is none."""


class Sink(Protocol):
    """Receives the decisions, in the order of the lines."""

    def take(self, index: int, call: RecordedCall, traces: list[Trace], answers: Answers) -> None: ...

    def bad(self, index: int, reason: str) -> None: ...

    def end(self) -> None: ...


@dataclass(slots=True)
class _Entry:
    """One line that is being decided: its call and the result, which is a task while something slow is awaited."""

    index: int
    call: RecordedCall
    result: list[Trace] | asyncio.Task[tuple[list[Trace], Answers]]


async def _replay(engines: list[Engine], source: tuple[str, IO[bytes]], everything: bool, sink: Sink) -> int:
    """Decide every line of the file `source`, which has that name, a window of them at a time, and hand them on in
    order. The exit status."""
    name, file = source
    waiting: deque[_Entry] = deque()
    failed = False

    async def hand_on(until: int) -> None:
        while len(waiting) > until:
            entry = waiting.popleft()
            traces, answers = (entry.result, ()) if isinstance(entry.result, list) else await entry.result
            sink.take(entry.index, entry.call, traces, answers)

    limit = 2 * max(engine.settings.max_body for engine in engines) + 65_536
    for index, line in enumerate(_lines(file, limit)):
        call = line if isinstance(line, str) else _call(line)
        if call is None:
            continue
        if isinstance(call, str):
            failed = True
            await hand_on(0)
            print(f"{name}:{index + 1}: {call}", file=sys.stderr)
            sink.bad(index, call)
            continue
        begun = [call.begin(engine, detail=everything, everything=everything) for engine in engines]
        done = [trace for trace in begun if isinstance(trace, Trace)]
        if len(done) == len(begun) and call.response is None:
            if not waiting:
                sink.take(index, call, done, ())
                continue
            waiting.append(_Entry(index, call, done))
        else:
            waiting.append(_Entry(index, call, asyncio.ensure_future(_finish(engines, call, begun))))
        await hand_on(WINDOW - 1)
    await hand_on(0)
    sink.end()
    return int(failed)


async def _finish(engines: list[Engine], call: RecordedCall, begun: list[Any]) -> tuple[list[Trace], Answers]:
    traces = [trace if isinstance(trace, Trace) else await trace.finish() for trace in begun]
    if call.response is None:
        return traces, ()
    pairs = zip(engines, traces, strict=True)
    return traces, [await answered(engine, call, trace, call.response) for engine, trace in pairs]


def _lines(file: IO[bytes], limit: int) -> Iterator[bytes | str]:
    """The lines of `file`; for one longer than `limit` bytes the reason why it is left out."""
    while line := file.readline(limit):
        if len(line) < limit or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(limit)
        yield f"longer than {limit} bytes (twice the policy's max_body)"


def _call(line: bytes) -> RecordedCall | str | None:
    """The call that `line` records, or what is wrong with it; None for an empty line."""
    if not line.strip():
        return None
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not JSON: {error}"
    if not isinstance(data, dict):
        return "not an object with `request`"
    unknown = sorted(data.keys() - {"request", "response", "headers", "path", "attributes", "score"} - LINE_KEYS)
    if unknown:
        return f"unknown key {unknown[0]!r}: a line has request, response, headers, path and attributes"
    if "request" not in data and "content_error" in data:
        return f"its request was not logged: {data['content_error']}"
    if "request" not in data:
        return "no `request`"
    given = {key: value for key, value in data.items() if value is not None}
    headers, path, attributes = given.get("headers", {}), given.get("path", CHAT), given.get("attributes", {})
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        return "headers: names and values must be strings"
    if not isinstance(path, str):
        return "path: must be a string"
    if not isinstance(attributes, dict):
        return "attributes: must be an object"
    response = given.get("response")
    if not isinstance(response, (str, dict, NoneType)):
        return "response: must be an object or a string"
    try:
        body = orjson.dumps(data["request"])
    except orjson.JSONEncodeError:  # 254 levels are the most that it writes
        return "its request is nested too deeply"
    score = given.get("score")
    if score is not None and (_number(score) is None or not 0 <= score <= 1):
        return "score: must be a number from 0 to 1"
    return RecordedCall(body, lowered(headers), path, attributes, response, _log(given))


def _log(line: dict[str, Any]) -> Logged | None:
    """What a logged line says of its choice and of its answer, where somebody has added its score."""
    choice, answer = line.get("choice"), line.get("answer")
    if "score" not in line or not isinstance(choice, dict) or not isinstance(choice.get("model"), str):
        return None
    propensity = _number(choice.get("propensity"))
    if propensity is None or not 0 < propensity <= 1:
        return None
    cost = _number(answer.get("cost")) if isinstance(answer, dict) else None
    return Logged(float(line["score"]), cost, choice["model"], propensity)


def _number(value: Any) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)


class Decisions:
    """Prints one JSON line per request."""

    def __init__(self, engine: Engine, everything: bool) -> None:
        self._engine = engine
        self._everything = everything
        self._write = sys.stdout.write

    def take(self, index: int, call: RecordedCall, traces: list[Trace], answers: Answers) -> None:
        trace = traces[0]
        shown: dict[str, Any] = {"index": index, **explain.summary(trace.decision), "us": round(trace.microseconds, 3)}
        if trace.decision.status is not None:
            shown["status"] = trace.decision.status
        if trace.choice is not None:
            shown["choice"] = choice_object(trace.choice)
        if answers:
            shown["answer"] = None if answers[0] is None else answers[0].summary()
        if self._everything:
            shown["signals"] = explain.signals(self._engine, trace)
        shown["line"] = index + 1
        self._print(shown)

    def bad(self, index: int, reason: str) -> None:
        self._print({"index": index, "error": reason, "line": index + 1})

    def end(self) -> None:
        sys.stdout.flush()

    def _print(self, shown: dict[str, Any]) -> None:
        self._write(orjson.dumps(shown).decode() + "\n")


Outcome = tuple[str | None, str | None, str, tuple[str | None, str] | None]
"""Decision, model, action; and decision and action on the answer, where one was recorded and a model is asked."""


@dataclass(slots=True)
class _Change:
    """Requests that the two policies decide differently, in one and the same way."""

    count: int = 0
    cost: float = 0.0
    lines: list[int] = field(default_factory=list)


class Report:
    """Adds up what a second policy would change, and the costs by each policy's own prices.

    The cost of a request is estimated: its input tokens, and as many output tokens as it allows or, where it sets no
    limit, as it has input tokens.
    """

    def __init__(self, paths: tuple[Path, Path], engines: list[Engine], form: str) -> None:
        self._paths = paths
        self._engines = engines
        self._form = form
        self._requests = 0
        self._bad = 0
        self._costs = [0.0, 0.0]
        self._unpriced = [0, 0]
        self._routed = [0, 0]
        self._pairs: dict[tuple[Outcome, Outcome], _Change] = {}
        self._graded: list[Logged] = []

    def take(self, index: int, call: RecordedCall, traces: list[Trace], answers: Answers) -> None:
        pairs = zip_longest(traces, answers)
        before, after = (_outcome(trace, answer) for trace, answer in pairs)
        costs = self._costs_of(call, traces)
        self._requests += 1
        for side, (cost, trace) in enumerate(zip(costs, traces, strict=True)):
            self._costs[side] += cost
            if (model := trace.decision.model) is not None:
                self._routed[side] += 1
                self._unpriced[side] += not model.priced
        if (log := call.log) is not None and (model := traces[1].decision.model) is not None:
            choice = traces[1].choice
            before_model = traces[0].decision.model
            estimated = costs[0] if before_model is not None and before_model.priced else None
            self._graded.append(
                log._replace(
                    cost=estimated if log.cost is None else log.cost,
                    takes=model.key if choice is None else choice.model.key,
                )
            )
        if before == after:
            return
        pair = self._pairs.setdefault((before, after), _Change())
        pair.count += 1
        pair.cost += costs[1] - costs[0]
        if len(pair.lines) < EXAMPLES:
            pair.lines.append(index + 1)

    def bad(self, index: int, reason: str) -> None:
        self._bad += 1

    def end(self) -> None:
        ranked = sorted(self._pairs.items(), key=lambda item: -item[1].count)
        changed = sum(pair.count for _, pair in ranked)
        if self._form == "json":
            print(json.dumps(self._object(ranked, changed), indent=2))
            return
        share = 100 * changed / self._requests if self._requests else 0.0
        print(f"{self._requests} requests, {changed} decided differently ({share:.1f} %), {self._bad} bad lines")
        before, after = self._costs
        priced = self._unpriced != self._routed or not any(self._routed)
        if not priced:
            print("estimated cost: not known, since none of the models that take these requests has a `price`")
        else:
            print(f"estimated cost: {before:.6g} → {after:.6g} ({after - before:+.6g})")
            if any(self._unpriced):
                free = " → ".join(map(str, self._unpriced))
                print(f"    of them free, since their model has no `price`: {free} requests")
        if self._graded:
            print("\n".join(foreseen.text(foreseen.foreseen(self._graded))))
        for (old, new), pair in ranked:
            cost = f", cost {pair.cost:+.6g}" if priced else ""
            print(f"\n{pair.count} × {_phrase(old)} → {_phrase(new)}{cost}")
            print(f"    for example line {', '.join(map(str, pair.lines))}")

    def _costs_of(self, call: RecordedCall, traces: list[Trace]) -> list[float]:
        """The estimated price of the call under each policy; nothing where none of its models answers."""
        priced = [(engine, trace.decision.model) for engine, trace in zip(self._engines, traces, strict=True)]
        costs = []
        tokens: tuple[int, int] | None = None
        for engine, model in priced:
            if model is None:
                costs.append(0.0)
                continue
            if tokens is None:
                request = call.request(engine)
                tokens = (0, 0) if isinstance(request, Unread) else expected_tokens(Facts(request))
            costs.append(model.cost(*tokens))
        return costs

    def _object(self, ranked: list[tuple[tuple[Outcome, Outcome], _Change]], changed: int) -> dict[str, Any]:
        return {
            "before": str(self._paths[0]),
            "after": str(self._paths[1]),
            "requests": self._requests,
            "changed": changed,
            "bad_lines": self._bad,
            "cost": {"before": self._costs[0], "after": self._costs[1]},
            "unpriced": {"before": self._unpriced[0], "after": self._unpriced[1]},
            **({"expected": foreseen.foreseen(self._graded)} if self._graded else {}),
            "changes": [
                {
                    "before": _outcome_object(old),
                    "after": _outcome_object(new),
                    "count": pair.count,
                    "cost": pair.cost,
                    "lines": pair.lines,
                }
                for (old, new), pair in ranked
            ],
        }


def _outcome(trace: Trace, answer: Answered | None) -> Outcome:
    decision = trace.decision
    on_answer = None if answer is None else (answer.decision, answer.action)
    return decision.name, decision.model.key if decision.model else None, decision.action, on_answer


def _outcome_object(outcome: Outcome) -> dict[str, Any]:
    decision, model, action, answer = outcome
    found: dict[str, Any] = {"decision": decision, "model": model, "action": action}
    return found if answer is None else {**found, "answer": {"decision": answer[0], "action": answer[1]}}


def _phrase(outcome: Outcome) -> str:
    decision, model, action, answer = outcome
    after = "" if answer is None else f", answer {answer[1]}{f' by {answer[0]}' if answer[0] else ''}"
    return f"{decision or '(none)'}: {action}{f' {model}' if model else ''}{after}"

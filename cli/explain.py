"""`pointsman explain POLICY REQUEST.json`: one request through the engine, without a network."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from cli.called import CalledWrongly
from cli.colour import EXPLAINED, painted

SHOWN = 200
"""Characters of a new value that are shown."""
SUMMARY = "show how a policy decides one request, and why"


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("explain", help=SUMMARY, description=SUMMARY)
    parser.add_argument("policy", type=Path, metavar="POLICY")
    parser.add_argument("request", metavar="REQUEST.json", help="the request's body; `-` reads standard input")
    parser.add_argument(
        "-H", "--header", action="append", default=[], type=_header, metavar="NAME:VALUE", help="a request header"
    )
    parser.add_argument("--path", default="/v1/chat/completions", help="the API's path (default: %(default)s)")
    parser.add_argument(
        "--attributes",
        metavar="FILE",
        help="Envoy's filter metadata by namespace, such as the claims of a JWT: a JSON object, as in cases",
    )
    parser.add_argument(
        "--answer",
        metavar="FILE",
        help="what the model answers, as the call's API gives it without streaming, or plain text: what becomes of it; "
        "`-` reads standard input",
    )
    parser.add_argument("--all", action="store_true", help="read every signal, also those that no decision needs")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    from cli.calls import RecordedCall
    from config.build import build
    from config.load import load
    from config.resources import TrialResources
    from decisions import explain

    if args.request == args.answer == "-":
        raise CalledWrongly("only one of REQUEST.json and --answer can be standard input")
    given = None if args.answer is None else _read(args.answer)
    attributes = {} if args.attributes is None else _attributes(args.attributes)
    if attributes is None:
        what = 'write a JSON object of objects, as in {"envoy.filters.http.jwt_authn": {"payload": {"sub": "alice"}}}'
        print(f"pointsman explain: --attributes {args.attributes}: {what}", file=sys.stderr)
        return 2
    body = _read(args.request)
    engine = build(load(args.policy), TrialResources())
    if given is not None and given.lstrip().startswith((b"data:", b"event:")):
        message = "is read as plain text, and looks like a stream; give the answer as its API gives it without `stream`"
        print(f"pointsman explain: {args.answer} {message}", file=sys.stderr)
    try:
        call = RecordedCall(body, dict(args.header), args.path, attributes)
        trace, after = asyncio.run(_decided(engine, call, args.all, given))
        if args.output == "json":
            shown = explain.as_object(engine, trace)
            if given is not None:
                shown["answer"] = None if after is None else after.as_object()
            if (cache := _cache(engine, call, trace)) is not None:
                shown["cache"] = cache
            if (planned := _calls(engine, call, trace)) is not None:
                shown["writer"] = planned
            print(json.dumps(shown, indent=2))
        else:
            print(painted("\n".join(_lines(engine, call, trace)), EXPLAINED))
            if given is not None:
                print("", *(["answer    none: no model is asked"] if after is None else after.lines()), sep="\n")
    finally:
        engine.close()
    return 0


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


def _attributes(name: str) -> dict[str, Any] | None:
    """The object of objects in a file; None where there is none."""
    try:
        found = orjson.loads(Path(name).read_bytes())
    except orjson.JSONDecodeError:
        return None
    right = isinstance(found, dict) and all(isinstance(each, dict) for each in found.values())
    return found if right else None


async def _decided(engine: Any, call: Any, everything: bool, given: bytes | None) -> tuple[Any, Any]:
    """The trace of the call, and what becomes of the answer that is `given`."""
    from cli.answers import answered

    trace = await call.decide(engine, detail=True, everything=everything)
    return trace, None if given is None else await answered(engine, call, trace, given)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME:VALUE")
    return name.strip().lower(), value.strip()


def _cache(engine: Any, call: Any, trace: Any) -> str | None:
    """`kept`, or why the answer is not; None where the decision keeps none."""
    from extproc.keeping.keeper import Keeper

    if trace.decision.cache is None:
        return None
    why = Keeper().ask(engine, trace, call.request(engine)).result
    return "kept" if why == "miss" else why


def _calls(engine: Any, call: Any, trace: Any) -> dict[str, Any] | None:
    """The calls that the decision's writer plans for this request, and what they may cost."""
    from decisions import explain
    from decisions.engine import tokens_of
    from signals.facts import Facts

    if trace.decision.writer is None:
        return None
    request = call.request(engine)
    fields = request.fields
    limits = [fields.get(key) for key in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    limit = next((value for value in limits if isinstance(value, int)), explain.ANSWER_TOKENS)
    return explain.calls(engine, trace, tokens_of(Facts(request)) or 0, limit)


def _lines(engine: Any, call: Any, trace: Any) -> Iterator[str]:
    from cli.calls import Unread
    from decisions import explain
    from decisions.rule import names
    from extproc.refusal import Refusal
    from extproc.requests.rewriting import rewritten, unasked
    from extproc.told import request_headers, response_headers

    try:
        request = call.request(engine)
    except Refusal:
        request = None
    decision = trace.decision
    yield f"decision  {decision.name or 'none'}"
    yield f"outcome   {request.said if isinstance(request, Unread) else explain.outcome(decision)}"
    for reason in explain.reasons(trace):
        yield f"          {reason}"
    if (cache := _cache(engine, call, trace)) is not None:
        yield f"cache     {'kept, and given to equal requests' if cache == 'kept' else f'not kept: {cache}'}"
    if (choice := explain.choice(trace)) is not None:
        yield f"choice    {choice}"
    if (planned := _calls(engine, call, trace)) is not None:
        calls, cost = explain.calls_text(planned)
        yield f"calls     {calls}"
        yield f"          {cost}"
    yield f"policy    {trace.policy}"
    yield f"time      {trace.microseconds:.1f} µs"
    if request is None or isinstance(request, Unread):
        return
    if engine.clauses:
        yield ""
        yield explain.tree(engine, trace, named=not engine.catalogue.asks(request))
    evaluated = trace.results
    asked = {name for c in engine.clauses if c.name in evaluated for name in names(c.when)}
    others = [name for name in trace.readings if name not in asked]
    if others:
        yield "\nother signals read"
        for name in others:
            yield f"  {name}: {explain.reading_text(trace.readings[name], trace.timings.get(name))}"
    unread = [name for name in engine.asked if name not in trace.readings]
    later = () if engine.watched is None else (*engine.watched.asked, *engine.watched.mixed)
    if needless := [name for name in unread if name not in later]:
        yield f"\nsignals not read: {', '.join(needless)} (the outcome did not hang on them)"
    if waiting := [name for name in unread if name in later]:
        yield f"\nsignals read for the answer only: {', '.join(waiting)}"
    path = None if decision.action == "respond" else call.sent(decision.model)
    more = () if path is None else ((":path", path),)
    yield from _section("request headers set", (*request_headers(decision), *more))
    if decision.action != "respond":
        try:
            body = rewritten(request, decision, usage=engine.metered and unasked(request, decision))
        except Refusal as refusal:  # too deep to be written again
            yield f"\nrefused with {refusal.status} after the decision: {refusal.text}"
            return
        after = request.fields if body is None else orjson.loads(body)
        yield from _section("request body changed", differences(request.fields, after))
    if engine.settings.response_headers:
        yield from _section("response headers set", response_headers(trace))


def differences(before: Any, after: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Where `after` differs from `before`, both of them JSON, and what is there now; the model first."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({**after, **before}, key=lambda key: (key != "model" or at != "",)):
            where = f"{at}.{key}" if at else key
            if key not in after:
                yield where, "taken out"
            elif key not in before:
                yield where, _short(after[key])
            else:
                yield from differences(before[key], after[key], where)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{at}[{index}]")
    elif isinstance(before, list) and isinstance(after, list) and after[1:] == before:
        yield f"{at}[0]", f"{_short(after[0])}, before the others"
    elif isinstance(before, list) and isinstance(after, list):
        yield at, f"{len(after)} elements in the place of {len(before)}"
    elif before != after or type(before) is not type(after):  # true is no 1
        yield at, _short(after)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _section(title: str, pairs: Any) -> Iterator[str]:
    lines = [f"  {name}: {value}" for name, value in pairs]
    if lines:
        yield f"\n{title}"
        yield from lines

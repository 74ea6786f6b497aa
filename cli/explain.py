"""`pointsman explain POLICY REQUEST.json`: one request through the engine, without a network."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUMMARY = "show how a policy decides one request, and why"


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("explain", help=SUMMARY, description=SUMMARY)
    parser.add_argument("policy", type=Path, metavar="POLICY")
    parser.add_argument("request", metavar="REQUEST.json", help="the request's body; `-` reads standard input")
    parser.add_argument(
        "-H", "--header", action="append", default=[], type=_header, metavar="NAME:VALUE", help="a request header"
    )
    parser.add_argument("--path", default="/v1/chat/completions", help="the API's path (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="read every signal, also those that no decision needs")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    from cli.calls import Call
    from config.build import build
    from config.load import load
    from decisions import explain

    body = sys.stdin.buffer.read() if args.request == "-" else Path(args.request).read_bytes()
    engine = build(load(args.policy))
    try:
        call = Call(body, dict(args.header), args.path)
        trace = asyncio.run(call.decide(engine, detail=True, everything=args.all))
        if args.output == "json":
            print(json.dumps(explain.as_object(engine, trace), indent=2))
        else:
            print("\n".join(_lines(engine, call, trace)))
    finally:
        engine.close()
    return 0


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME:VALUE")
    return name.strip().lower(), value.strip()


def _lines(engine: Any, call: Any, trace: Any) -> Iterator[str]:
    from cli.calls import Unread
    from decisions import explain
    from extproc.refusal import Refusal
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
    yield f"policy    {trace.policy}"
    yield f"time      {trace.microseconds:.1f} µs"
    if request is None or isinstance(request, Unread):
        return
    yield ""
    yield explain.tree(engine, trace, named=not engine.asks(request))
    evaluated = trace.results
    asked = {name for c in engine.clauses if c.name in evaluated for name in explain.leaves_of(c)}
    others = [name for name in trace.readings if name not in asked]
    if others:
        yield "\nother signals read"
        for name in others:
            yield f"  {name}: {explain.reading_text(trace.readings[name], trace.timings.get(name))}"
    unread = [name for name in engine.signals if name not in trace.readings]
    if unread:
        yield f"\nsignals not read: {', '.join(unread)} (the outcome did not hang on them)"
    yield from _section("request headers set", request_headers(decision))
    changes = decision.changes
    body = {"model": decision.model.name} if decision.model and decision.model.name != request.model else {}
    if changes is not None:
        fields = ("reasoning_effort", "thinking", "thinking_budget", "max_tokens", "system")
        body |= {field: getattr(changes, field) for field in fields if getattr(changes, field) is not None}
    yield from _section("request body changed", body.items())
    if engine.settings.response_headers:
        yield from _section("response headers set", response_headers(trace))


def _section(title: str, pairs: Any) -> Iterator[str]:
    lines = [f"  {name}: {value}" for name, value in pairs]
    if lines:
        yield f"\n{title}"
        yield from lines

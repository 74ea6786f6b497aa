"""`pointsman select inspect | export | import | reset`: what choices have learned from grades, in the state store of a
policy or behind the admin port of a router."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cli.called import CalledWrongly
from config.resources import Resources
from config.watch import load
from decisions import learned
from decisions.engine import Engine
from extproc.admin.callers import MOST_TOKEN
from signals.files import read
from signals.reading import Unavailable
from signals.state.store import Valkey

PATIENCE_S = 30.0


def run(command: str, args: argparse.Namespace) -> int:
    """The exit status. Raises CalledWrongly, ValueError, PolicyError, OSError."""
    decision = getattr(args, "decision", None)
    given = None
    if command == "import":
        try:
            given = json.loads(args.file.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{args.file}: not JSON: {error}") from None
    if args.admin is not None:
        found = _asked(command, args, decision, given)
    elif args.policy is not None:
        found = asyncio.run(_stored(command, args.policy, decision, given))
    else:
        raise CalledWrongly("say where it is: --policy POLICY, for what is in its state store, or --admin URL")
    if command == "export":
        text = json.dumps(found) + "\n"
        if args.out is None:
            sys.stdout.write(text)
        else:
            args.out.write_text(text)
    elif command == "inspect":
        print(json.dumps(found) if args.output == "json" else _text(found))
    elif command == "import":
        print(f"added what was learned of {found['candidates']} candidates")
    else:
        print(f"forgotten: {', '.join(found['forgotten']) or 'nothing'}")
    return 0


async def _stored(command: str, policy: Path, decision: str | None, given: Any) -> dict[str, Any]:
    """What is done in the state store of a policy."""
    resources = Resources()
    loaded = load(policy, resources=resources)
    try:
        engine = loaded.engine
        if not isinstance(engine.store, Valkey):
            raise CalledWrongly(
                f"--policy: {policy} has no state store, so that each router learns for itself: ask one by --admin URL"
            )
        return await _done(command, engine, decision, given)
    except Unavailable:
        raise ValueError("the policy's state store does not answer") from None
    finally:
        loaded.close()
        await resources.close()


async def _done(command: str, engine: Engine, decision: str | None, given: Any) -> dict[str, Any]:
    if command == "import":
        return {"candidates": await learned.take_in(engine, given)}
    try:
        if command == "reset":
            return {"forgotten": await learned.forget(engine, decision)}
        return learned.summed_up(engine, await learned.learned(engine, decision))
    except ValueError as error:
        raise CalledWrongly(f"--decision: {error}") from None


def _asked(command: str, args: argparse.Namespace, decision: str | None, given: Any) -> dict[str, Any]:
    """What a router answers. Raises CalledWrongly, ValueError."""
    url = f"{args.admin.rstrip('/')}/selection"
    if decision is not None:
        url += f"?{urlencode({'decision': decision})}"
    method = {"import": "POST", "reset": "DELETE"}.get(command, "GET")
    headers = {"content-type": "application/json"}
    if args.token_file is not None:
        headers["authorization"] = f"Bearer {read(args.token_file, MOST_TOKEN).decode().strip()}"
    data = None if given is None else json.dumps(given).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except urllib.error.HTTPError as error:
        said = f"{url}: {error.code}: {error.read().decode(errors='replace').strip()}"
        # What is wrong with the file to be imported is wrong with a file; all else is wrong with the call.
        asked = error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
        wrongly = asked or (error.code == HTTPStatus.BAD_REQUEST and command != "import")
        raise (CalledWrongly if wrongly else ValueError)(said) from None
    except OSError as error:
        raise ValueError(f"{url}: {error.reason if isinstance(error, urllib.error.URLError) else error}") from None


def _text(state: dict[str, Any]) -> str:
    lines = []
    for name, one in state["decisions"].items():
        lines.append(f"{name}: {one['by']}, half-life {one['half_life']:g} hours")
        for key, of in sorted(one["models"].items(), key=lambda item: -item[1]["quality"]):
            lines.append(f"  {key}: quality {of['quality']:.3f} by {of['grades']:.1f} grades")
    return "\n".join(lines) or "no choice of the policy learns from grades"

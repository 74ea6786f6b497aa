"""Fuzzing of what reads answers: streams as servers send them, with values moved, exchanged and dropped, bytes damaged,
and cut into pieces anywhere. A marked text is put in some place of each.

Findings: an exception other than the documented one; a marked text that is no text of its event; events that depend on
where the stream was cut; closing events that are no events; a final object that, streamed again, is another one.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from typing import Any

import orjson

from extproc.watching.jsontext import decode
from extproc.watching.shape import SILENT, AnswerShape, AnswerText
from extproc.watching.shapes import SHAPES
from extproc.watching.sse import Event, Events, encode
from tests.extproc.watching.streams import STREAMS

MARK = "secret-codeword"  # it begins with no digit of an escape
UNSEEN = frozenset(("logprobs", "logprobsResult", "token_ids"))
ECHOED = frozenset(("instructions", "metadata", "reasoning", "text", "tool_choice", "tools", "truncation", "user"))
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**40,
    0.5,
    "",
    "x",
    [],
    {},
    [[]],
    [None, "x", {}],
    {"type": 1},
    {"index": "x"},
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, Any, tuple[Any, ...]]]:
    """Every place of an object: what holds it, under which key, and the path."""
    found: list[tuple[Any, Any, tuple[Any, ...]]] = []
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        found.append((node, key, (*path, key)))
        found += places(value, (*path, key))
    return found


def disturb(chosen: random.Random, events: list[dict[str, Any]]) -> None:
    """Changes some places of some events."""
    for _ in range(chosen.choice((0, 1, 1, 2, 5))):
        kind = chosen.randrange(6)
        at = chosen.randrange(len(events))
        if kind == 0 and len(events) > 1:
            del events[at]
        elif kind == 1:
            events.insert(at, copy.deepcopy(chosen.choice(events)))
        else:
            spots = places(events[at])
            if not spots:
                continue
            holder, key, _ = chosen.choice(spots)
            if kind == 2 and isinstance(holder, dict):
                holder[chosen.choice(("index", "type", "novelty", "delta", "content", "text"))] = holder.pop(key)
            elif kind == 3:
                holder[key] = copy.deepcopy(chosen.choice(ODD))
            elif kind == 4:
                holder[key] = {"deep": [holder[key]]} if chosen.random() < 0.5 else [holder[key]]
            else:
                other, name, _ = chosen.choice(places(chosen.choice(events)) or [(holder, key, ())])
                holder[key] = copy.deepcopy(other[name])


def named(event: dict[str, Any]) -> str:
    kind = event.get("type")
    return kind if isinstance(kind, str) else ""


def pieces(chosen: random.Random, body: bytes) -> list[bytes]:
    borders = sorted(chosen.randrange(len(body) + 1) for _ in range(chosen.choice((0, 1, 5, 40))))
    return [body[a:b] for a, b in zip([0, *borders], [*borders, len(body)], strict=True)]


def read(given: list[bytes]) -> list[Event]:
    reader = Events(1 << 20)
    found = [event for piece in given for event in reader.feed(piece)]
    last = reader.end()
    return found if last is None else [*found, last]


def unread(path: tuple[Any, ...], fields: dict[str, Any]) -> bool:
    """Whether nothing at that path is shown."""
    if path[-1] in SILENT or not UNSEEN.isdisjoint(path) or path[-1] in ("data", "result"):
        return True
    if fields.get("type") == "response.audio.delta":
        return True
    place = path[1:] if path[0] == "response" else path if not named(fields) else ()
    return bool(place) and place[0] in ECHOED


def one(chosen: random.Random, damage: Callable[[random.Random, bytes], bytes]) -> None:
    """One input. Raises AssertionError, or whatever it meets, for a finding."""
    api = chosen.choice(list(STREAMS))
    shape = SHAPES[api]
    events = copy.deepcopy(chosen.choice(list(STREAMS[api].values())))
    disturb(chosen, events)
    body = b"".join(encode(named(event) if api in ("messages", "responses") else "", event) for event in events)
    if chosen.random() < 0.3:
        body = damage(chosen, body)
    if chosen.random() < 0.2:
        body = body.replace(b"\n", chosen.choice((b"\r\n", b"\r")))
    whole = read([body])
    assert b"".join(event.raw for event in whole) == body
    assert read(pieces(chosen, body)) == whole, "events depend on the pieces"
    course, assembly = shape.course(), shape.assembly(10_000)
    end = chosen.randrange(len(whole) + 1)
    for number, event in enumerate(whole):
        try:
            fields = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            continue
        if not isinstance(fields, dict):
            continue
        marked(chosen, shape, copy.deepcopy(fields))
        shape.closes(fields)
        assembly.add(copy.deepcopy(fields))
        if number < end:
            course.seen(fields)
        shape.forget(fields)
        orjson.dumps(shape.cut(fields, "no"))
    for closing in read([course.cut("no")]):
        assert closing.data == b"[DONE]" or isinstance(orjson.loads(closing.data), dict)
        assert closing.raw.endswith(b"\n\n")
    final = assembly.final()
    if final is not None:
        again = shape.assembly(1 << 20)
        for event in read([shape.stream(copy.deepcopy(final))]):
            if event.data not in (b"", b"[DONE]"):
                again.add(orjson.loads(event.data))
        orjson.dumps(again.final())


def marked(chosen: random.Random, shape: AnswerShape, fields: dict[str, Any]) -> None:
    """The mark in some string of the event is in a text, and gone when that is changed."""
    strings = [spot for spot in places(fields) if isinstance(spot[0][spot[1]], str) and not unread(spot[2], fields)]
    path: tuple[Any, ...] = ()
    if strings:
        holder, key, path = chosen.choice(strings)
        before = holder[key]
        at = chosen.randrange(len(before) + 1)
        holder[key] = before[:at] + MARK + before[at:]
    try:
        texts = shape.texts(fields, json=chosen.random() < 0.2)
    except ValueError:
        return
    for text in texts:
        edit(text)
    assert not strings or MARK not in orjson.dumps(fields).decode(), (
        f"a marked text was not found at {path}: {holder[key]!r}"
    )


def edit(text: AnswerText) -> None:
    """Replaces the mark in a text, as a watch does."""
    given = text.holder[text.key]
    assert isinstance(given, str)
    assert given
    if not text.code:
        text.holder[text.key] = given.replace(MARK, "[x]")
        return
    decoded = decode(given)
    at = decoded.text.find(MARK)
    if at < 0:
        return
    changed, done = "", 0
    for start, end, new in decoded.edits([(at, at + len(MARK), "[x]")]):
        changed += given[done:start] + new
        done = end
    changed += given[done:]
    try:
        orjson.loads(given)
    except orjson.JSONDecodeError:
        pass
    else:
        orjson.loads(changed)
    text.holder[text.key] = changed


def run(
    inputs: int, seed: int, damage: Callable[[random.Random, bytes], bytes], say: Callable[[str], None] = print
) -> int:
    """Reads `inputs` answers; what is drawn depends on `seed` and the number alone. Returns how many findings."""
    findings = 0
    begin = time.monotonic()
    for number in range(1, inputs + 1):
        try:
            one(random.Random(f"{seed}/{number}"), damage)
        except Exception as error:  # noqa: BLE001
            findings += 1
            say(f"input {number} of seed {seed}: {type(error).__name__}: {error}")
        if number % 100_000 == 0:
            say(f"{number} inputs, {time.monotonic() - begin:.0f} s")
    return findings

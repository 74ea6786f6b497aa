"""Bodies are changed member by member, and every other byte stays as it came."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decisions.decision import Changes
from decisions.model import Model
from extproc.bodies.edit import JsonEdit, elements, exchanged
from extproc.refusal import Refusal
from extproc.requests import rewriting
from signals.request import Request
from tests.linear import assert_linear
from tests.volume import few_and_many

SPACES = ("", "", "", " ", "\n", "\t ", "\r\n  ")
NUMBERS = ("0", "-0", "1.0", "1e5", "1E+05", "0.10000000000000000000001", "123456789012345678901234567890", "-0.0e-0")
WORDS = ("", "hi", "model", "max_tokens", '"model":', "\\", '\\"', "ü", "😀", "\u2028", "a/b", "\x7f", "{[", "]},")
KEYS = ("model", "max_tokens", "max_completion_tokens", "reasoning_effort", "seed", "x", "é", "messages", "a b", "")


MORE: dict[str, tuple[str, ...]] = {
    "chat": (), "messages": ("output_config", "top_k"), "responses": ("max_output_tokens", "reasoning", "instructions"),
}  # fmt: skip
"""Members of the other APIs."""


class Writer:
    """Writes JSON text as no serialiser would: with odd spaces, escapes and numbers. The same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def space(self) -> str:
        return self._random.choice(SPACES)

    def string(self, text: str) -> str:
        """`text` as JSON, some of its letters as escapes."""
        out = []
        for letter in text:
            escaped = self._random.random() < 0.15
            if letter == "/" and escaped:
                out.append("\\/")
            elif escaped and ord(letter) < 0x10000:
                out.append(f"\\u{ord(letter):04{self._random.choice('xX')}}")
            else:
                out.append(json.dumps(letter, ensure_ascii=escaped)[1:-1])
        return '"' + "".join(out) + '"'

    def value(self, depth: int = 0) -> str:
        kind = self._random.randrange(4 if depth > 3 else 7)
        if kind == 0:
            return self._random.choice(NUMBERS)
        if kind == 1:
            return self._random.choice(("true", "false", "null"))
        if kind < 4:
            return self.string(self._random.choice(WORDS))
        if kind < 6:
            return self.listed([self.value(depth + 1) for _ in range(self._random.randrange(4))])
        keys = self._random.sample(KEYS, self._random.randrange(4))
        return self.object([(self.string(key), self.value(depth + 1)) for key in keys])

    def listed(self, values: list[str]) -> str:
        return "[" + self.space() + ",".join(self.space() + value + self.space() for value in values) + "]"

    def object(self, members: list[tuple[str, str]]) -> str:
        texts = (f"{self.space()}{key}{self.space()}:{self.space()}{value}{self.space()}" for key, value in members)
        return "{" + ",".join(texts) + "}"

    def body(self, api: str = "chat") -> tuple[list[tuple[str, str]], bytes]:
        """A call, as its members and as its bytes."""
        names = [key for key in (*KEYS, *MORE[api]) if key != "messages" and self._random.random() < 0.5]
        self._random.shuffle(names)
        members = [(name, self.value()) for name in names]
        for at, (name, _) in enumerate(members):
            if name == "model":
                members[at] = (name, self.string("auto"))
            elif name == "max_tokens" or name == "max_output_tokens":
                members[at] = (name, self._random.choice(("5", "500000", "1e9", "null", NUMBERS[6])))
            elif name == "reasoning" or name == "output_config":
                members[at] = (name, self.object([(self.string("effort"), self.string("low")), ('"x"', self.value())]))
        turns = self.listed([self.object([(self.string("role"), self.string("user")), ('"content"', '"\\u0068i"')])])
        members.insert(self._random.randrange(len(members) + 1), ("input" if api == "responses" else "messages", turns))
        text = self.object([(self.string(name), value) for name, value in members])
        return members, (self.space() + text + self.space()).encode()


def changed(body: bytes, changes: Changes, api: str = "chat") -> bytes:
    fields = orjson.loads(body)
    request = Request(api, body, fields, fields.get("model"), ())
    model = Model("m", "served", thinking="adaptive" if api == "messages" else "reasoning_effort")
    return rewriting.changed(request, model, changes)


def places(text: str) -> dict[str, tuple[int, int, int]]:
    """Where each top-level member of `text` begins, and where its value begins and ends, by an independent reader."""
    decoder = json.JSONDecoder(strict=False, parse_int=str)
    found = {}
    at = len(text) - len(text[text.index("{") + 1 :].lstrip())
    while text[at] != "}":
        begin = at
        key, at = decoder.raw_decode(text, at)
        at += len(text[at:]) - len(text[at:].lstrip()[1:].lstrip())
        start = at
        _, at = decoder.raw_decode(text, at)
        found[key] = begin, start, at
        rest = text[at:].lstrip()
        rest = rest[1:].lstrip() if rest[0] == "," else rest
        at = len(text) - len(rest)
    return found


def pieces(body: bytes) -> dict[str, bytes]:
    """Every top-level member of `body` with the bytes of its value."""
    text = body.decode()
    return {key: text[start:end].encode() for key, (_, start, end) in places(text).items()}


def outside(body: bytes, values: set[str], members: set[str]) -> str:
    """`body` without these values, and without these whole members, each with the comma behind it."""
    text = body.decode()
    for key, (begin, start, end) in sorted(places(text).items(), key=lambda item: -item[1][0]):
        if key in members:
            text = text[:begin] + text[text.index(",", end) + 1 :]
        elif key in values:
            text = text[:start] + text[end:]
    return text


def check(seed: int) -> None:
    writer = Writer(seed)
    members, body = writer.body()
    before = pieces(body)
    assert {name: value.encode() for name, value in members} == before, "the test's own reader"
    after = pieces(changed(body, Changes(max_tokens=1000, reasoning_effort="high")))
    wanted = before | {"model": b'"served"', "reasoning_effort": b'"high"'}
    limits = [name for name in ("max_completion_tokens", "max_tokens") if before.get(name, b"null") != b"null"]
    for name in limits or ["max_tokens"]:
        value = orjson.loads(before.get(name, b"null"))
        if not isinstance(value, (int, float)) or value > 1000:
            wanted[name] = b"1000"
    assert after == wanted, seed
    assert [name for name in after if name in before] == list(before), seed
    check_bytes(body, changed(body, Changes(max_tokens=1000, reasoning_effort="high")), OURS["chat"])


OURS: dict[str, set[str]] = {
    "chat": {"model", "max_tokens", "max_completion_tokens", "reasoning_effort"},
    "messages": {"model", "max_tokens", "thinking", "output_config"},
    "responses": {"model", "max_output_tokens", "reasoning"},
}
"""What a cap on tokens and an effort write."""


def check_bytes(before: bytes, after: bytes, ours: set[str]) -> None:
    """Outside of the members that a decision may write, the bodies are the same, byte for byte."""
    had = pieces(before).keys()
    assert outside(before, ours, set()) == outside(after, ours, ours - had)


def check_other(seed: int, api: str) -> None:
    _, body = Writer(seed).body(api)
    after = changed(body, Changes(max_tokens=1000, reasoning_effort="high"), api)
    gone = {"top_k"} if "top_k" in pieces(body).keys() - pieces(after).keys() else set()  # forbidden beside thoughts
    if not gone:
        check_bytes(body, after, OURS[api])
    had, has = orjson.loads(body), orjson.loads(after)
    limit = "max_output_tokens" if api == "responses" else "max_tokens"
    assert has["model"] == "served"
    asked = had.get(limit)
    assert has[limit] == (asked if isinstance(asked, int | float) and asked <= 1000 else 1000)
    inside = "reasoning" if api == "responses" else "output_config"
    assert has[inside] == had.get(inside, {}) | {"effort": "high"}
    same = had.keys() - OURS[api] - gone
    assert {key: pieces(after)[key] for key in same} == {key: pieces(body)[key] for key in same}


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(500), pytest.param(range(500, 10_000), marks=pytest.mark.volume)], ids=["500", "9500 more"]
)
def test_ten_thousand_bodies_keep_every_byte_that_no_decision_changes(seeds: range) -> None:
    for seed in seeds:
        check(seed)
        check_other(seed, "messages" if seed % 2 else "responses")


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=10_000))
def test_any_body_keeps_every_byte_that_no_decision_changes(seed: int) -> None:
    check(seed)


@pytest.mark.no_cover
@few_and_many(100, 500)
def test_members_are_set_and_removed_in_any_order(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(st.integers(0), st.lists(st.sampled_from((*KEYS, "new")), max_size=6), st.randoms(use_true_random=False))
    def holds(seed: int, keys: list[str], chance: random.Random) -> None:
        _, body = Writer(seed).body()
        draft = JsonEdit(body, orjson.loads(body))
        wanted = pieces(body)
        for key in keys:
            if chance.random() < 0.5:
                draft.set(key, "V")
                wanted[key] = b'"V"'
            else:
                draft.remove(key)
                wanted.pop(key, None)
            assert pieces(draft.text) == wanted
            assert orjson.loads(draft.text) == orjson.loads(orjson.dumps(draft.fields))

    holds()


@pytest.mark.no_cover
@few_and_many(100, 500)
def test_elements_are_put_anew_and_taken_away(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(st.integers(0), st.dictionaries(st.integers(0, 5), st.sampled_from((None, b'{"new": 1}')), max_size=6))
    def holds(seed: int, changes: dict[int, bytes | None]) -> None:
        writer = Writer(seed)
        values = [writer.value() for _ in range(seed % 6)]
        text = writer.listed(values).encode()
        assert [text[start:end] for start, end in elements(text)] == [value.encode() for value in values]
        draft = JsonEdit(b'{"y": [], "x" : %b}' % text, {"y": [], "x": []})
        if values:
            start, end = draft.first("x")
            assert draft.text[start:end] == values[0].encode()
        draft.lead("x", "words", 0)
        led = draft.raw("x")
        assert [led[start:end] for start, end in elements(led)] == [b"0", *(value.encode() for value in values)]
        after = exchanged(text, {at: new for at, new in changes.items() if at < len(values)})
        wanted = [
            value.encode() if at not in changes else changes[at]
            for at, value in enumerate(values)
            if at not in changes or changes[at] is not None
        ]
        assert [after[start:end] for start, end in elements(after)] == wanted

    holds()


@pytest.mark.parametrize(
    ("body", "key", "wanted"),
    [
        (b'{"a":1}', "a", b"{}"),
        (b'{ "a" : 1 }', "a", b"{ }"),
        (b'{"a":1,"b":2}', "a", b'{"b":2}'),
        (b'{"a":1 , "b":2}', "b", b'{"a":1 }'),
        (b'{"a":1,\n "b":[2,{"a":3}],\n "c":3}', "b", b'{"a":1,\n "c":3}'),
        (b'{"a":"b","b":"a"}', "b", b'{"a":"b"}'),
        (b'{"a":1}', "z", b'{"a":1}'),
    ],
)
def test_a_member_is_taken_away_with_its_comma(body: bytes, key: str, wanted: bytes) -> None:
    draft = JsonEdit(body, orjson.loads(body))
    draft.remove(key)
    assert draft.text == wanted


def test_a_value_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match="no such member"):
        JsonEdit(b'{"a": "b"}', {"a": "b"}).raw("b")


@pytest.mark.parametrize(
    ("api", "before", "after"),
    [
        (
            "chat",
            '{"messages" : [ {"role":"system", "content" : "\\u00fc", "n":1.0},{"role":"user","content":"u"}]}',
            '{"model":"served","messages" : [ {"role":"system", "content" : "S\\n\\n\\u00fc", "n":1.0},'
            '{"role":"user","content":"u"}]}',
        ),
        (
            "chat",
            '{"messages" : [ {"role":"system", "content" : [ {"type":"text", "text":"t"} ]} ]}',
            '{"model":"served","messages" : [ {"role":"system", "content" : [{"type":"text","text":"S"},'
            ' {"type":"text", "text":"t"} ]} ]}',
        ),
        (
            "chat",
            '{"messages" : [ {"role":"user", "content" : "1\\/2", "x": 1e400}]}',
            '{"model":"served","messages" : [{"role":"system","content":"S"}, '
            '{"role":"user", "content" : "1\\/2", "x": 1e400}]}',
        ),
        (
            "messages",
            '{"system" : [ {"type":"text","text":"a", "cache_control" : {}} ], "messages":[]}',
            '{"model":"served","system" : [{"type":"text","text":"S"}, '
            '{"type":"text","text":"a", "cache_control" : {}} ], "messages":[]}',
        ),
        ("messages", '{"system": "\\u0061", "m": 1}', '{"model":"served","system": "S\\n\\n\\u0061", "m": 1}'),
        ("messages", '{"system": [], "m": 1}', '{"model":"served","system": "S", "m": 1}'),
        ("responses", '{"input": "\\u0061"}', '{"instructions":"S","model":"served","input": "\\u0061"}'),
        (
            "responses",
            '{"instructions": [ {"role": "system"} ]}',
            '{"model":"served","instructions": [{"role":"system","content":"S"}, {"role": "system"} ]}',
        ),
        ("responses", '{"instructions": [ ]}', '{"model":"served","instructions": [{"role":"system","content":"S"} ]}'),
    ],
)
def test_a_system_prompt_is_put_into_the_bytes(api: str, before: str, after: str) -> None:
    body = before.encode()
    fields: dict[str, Any] = orjson.loads(body.replace(b"1e400", b"1e40"))
    request = Request(api, body, fields, None, ())
    assert rewriting.changed(request, Model("m", "served"), Changes(system="S")).decode() == after


def test_a_body_too_deep_to_find_a_member_in_is_refused() -> None:
    body = b'{"y": {"model": 1}, "x":' + b"[" * 100_000 + b"]" * 100_000 + b', "model": "a"}'
    with pytest.raises(Refusal) as caught:
        JsonEdit(body, {"model": "a", "y": 1, "x": 1}).set("model", "b")
    assert caught.value.code == "nested_too_deeply"


@pytest.mark.parametrize(
    "filling",
    [b'"x":"' + b"\\\\" * 8 + b'"', b'"x":[' + b"[]," * 5 + b"1]", b'"x":{"model":{"max_tokens":1}}'],
)
def test_changes_take_linear_time(filling: bytes) -> None:
    def make(size: int) -> Request:
        members = [b'"%d":{%b}' % (number, filling) for number in range(size // 16)]
        members.append(b'"messages":[{"role":"user","content":"model"}],"model":"max_tokens"')
        fields = {str(number): None for number in range(size // 16)}
        fields |= {"messages": [{"role": "user"}], "model": "max_tokens"}
        return Request("chat", b"{%b}" % b",".join(members), fields, None, ())

    assert_linear(
        make, lambda request: rewriting.changed(request, Model("m", "served"), Changes(max_tokens=1, system="S"))
    )


@pytest.mark.parametrize("api", ["messages", "chat", "responses"])
@pytest.mark.parametrize("inside", [False, True])
def test_thoughts_are_left_out_in_linear_time(api: str, inside: bool) -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    question = {"role": "user", "content": "prove it"}
    key = "input" if api == "responses" else "messages"

    def make(size: int) -> Request:
        count = max(1, size // 64)
        one: list[Any] = [{"role": "assistant", "content": [thought] * (count if inside else 1), "reasoning": "hm"}]
        if api == "responses":
            one = [{"type": "reasoning", "encrypted_content": "e"}]
        fields = {key: [question, *(one if inside else one * count), question]}
        return Request(api, orjson.dumps(fields), fields, None, ())

    model = Model("m", "served", thinking="anthropic")
    assert_linear(make, lambda request: rewriting.changed(request, model, Changes(thinking=False), 1_000_000))

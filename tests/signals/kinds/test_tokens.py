from __future__ import annotations

import base64
import builtins
import hashlib
import json
import random
import sys
import zlib
from collections import defaultdict
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from extproc.apis.completions import COMPLETIONS
from extproc.apis.embeddings import EMBEDDINGS
from extproc.requests import paths
from extproc.requests.body import parse
from signals.facts import Facts
from signals.gather import read
from signals.registry import BY_NAME
from signals.request import Message
from signals.signal import Cost, Shared
from signals.text.estimate import (
    CLASSES,
    PER_AUDIO,
    PER_IMAGE,
    PER_MESSAGE,
    PER_PAGE,
    PER_REQUEST,
    WEIGHTS,
    ByteWeights,
)
from tests.signals.help import build, complaint, data, matched, reading, request


def count(given: Any) -> int:
    return int(reading(build("tokens", at_least=0), given).score or 0)


def test_the_bounds_hold() -> None:
    text = "word " * 1000
    assert matched("tokens", text, at_least=800, at_most=1300) is True
    assert matched("tokens", text, at_least=3000) is False
    assert matched("tokens", "hi", at_most=20) is True


@pytest.mark.parametrize(
    ("text", "true", "off"),
    [  # counted with o200k
        ("The quick brown fox jumps over the lazy dog. How would you explain recursion to a child?", 19, 0.25),
        ("Der schnelle braune Fuchs springt über den faulen Hund. Wie erklärst du Rekursion?", 21, 0.25),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю.", 19, 0.3),
        ("请用简单的语言解释什么是递归,并举一个例子。", 17, 0.25),
        ("def add(a: int, b: int) -> int:\n    return a + b\n\n\nprint(add(1, 2))\n", 27, 0.35),
    ],
)
def test_the_estimate_is_near(text: str, true: int, off: float) -> None:
    assert ByteWeights().count(text) == pytest.approx(true, rel=off)


def test_everything_in_the_request_counts() -> None:
    plain = count("hello there")
    both = (Message("user", "hello there"), Message("assistant", ""))
    assert count(request(messages=both)) == plain + PER_MESSAGE
    pictured = (Message("user", "hello there", images=2, audio=1),)
    assert count(request(messages=pictured)) == plain + 2 * PER_IMAGE + PER_AUDIO
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    assert count(request("hello there", fields={"tools": tools})) > plain + 15
    assert count(request("hello there", fields={"functions": tools})) > plain + 15
    assert count(request()) == PER_REQUEST


CALL = {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "celsius"}'}


WORDS = "word " * 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": CALL}]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "", "reasoning_content": WORDS}]}),
        ("/v1/messages", {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": CALL}]}]}),
        ("/v1/messages", {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": WORDS}]}]}),
        ("/v1/responses", {"input": [{"type": "function_call", **CALL}]}),
        ("/v1/responses", {"input": [{"type": "custom_tool_call", "name": "p", "input": WORDS}]}),
        ("/v1/responses", {"input": [{"type": "mcp_call", "name": "p", "arguments": "{}", "output": WORDS}]}),
    ],
)
def test_everything_that_a_message_holds_counts(path: str, fields: dict[str, Any]) -> None:
    target = paths.read(path)
    assert target is not None
    request = parse(target, {}, {}, json.dumps(fields).encode())
    least = 200 if WORDS in json.dumps(fields) else 10
    assert count(request) > least


def pdf(pages: int, size: int = 0, compressed: bool = False) -> str:
    """A PDF of so many pages and at least so many bytes, in base64."""
    leaf = b"%d 0 obj\n<</Type /Page /Parent 1 0 R>>\nendobj\n"
    objects = b"".join(leaf % number for number in range(2, pages + 2))
    tree = b"1 0 obj\n<< /Type/Pages /Count %d >>\nendobj\n" % pages
    if compressed:
        tree, objects = b"", b"5 0 obj\n<</Type /ObjStm>>stream\n" + zlib.compress(tree + objects) + b"\nendstream\n"
    text = b"%PDF-1.7\n" + tree + objects
    return base64.b64encode(text + b"\n%" + b"x" * max(0, size - len(text)) + b"\n%%EOF").decode()


def anthropic(data: str) -> dict[str, Any]:
    return {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}


PDFS = [
    (pdf(1), 1), (pdf(12), 12), (pdf(12, 3_000_000), 12), (pdf(40, compressed=True), 1),
    (pdf(40, 1_425_000, compressed=True), 19), (pdf(3)[:-1], 1), ("UEsDBBQAAAAIAA==", 0), ("", 0),
]  # fmt: skip


@pytest.mark.parametrize(("data", "pages"), PDFS, ids=[f"{len(data)}-{pages}" for data, pages in PDFS])
def test_the_pages_of_a_pdf_count(data: str, pages: int) -> None:
    url = f"data:application/pdf;base64,{data}"
    result = {"type": "tool_result", "tool_use_id": "t", "content": [anthropic(data)]}
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file", "file_data": url}]}
    inline = {"inlineData": {"mimeType": "application/pdf", "data": data}}
    gemini = "/v1beta/models/m:generateContent"
    for path, fields in (
        ("/v1/messages", {"messages": [{"role": "user", "content": [anthropic(data)]}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [result]}]}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": url}}]}]},
        ),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": url}]}]}),
        ("/v1/responses", {"input": [output]}),
        (gemini, {"contents": [{"parts": [inline]}]}),
        (gemini, {"contents": [{"parts": [{"functionResponse": {"name": "f", "response": {}, "parts": [inline]}}]}]}),
    ):
        target = paths.read(path)
        assert target is not None
        counted = count(parse(target, {}, {}, json.dumps(fields).encode()))
        assert pages * PER_PAGE <= counted < pages * PER_PAGE + 400, path


def test_token_ids_are_counted_as_they_are() -> None:
    messages = (Message("user", ""),)
    base = PER_REQUEST + PER_MESSAGE
    for api, key in ((COMPLETIONS, "prompt"), (EMBEDDINGS, "input")):
        for given, ids in (([1, 2, 3], 3), ([[1, 2], [3]], 3), ("text", 0)):
            asked = request(api=api.name, asking=api, messages=messages, fields={key: given})
            assert count(asked) == base + ids


@pytest.mark.parametrize("size", [1, 10, 256, 257, 4_096, 4_097, 100_000])
def test_the_estimate_is_the_sum_of_the_weights_whatever_the_size(size: int) -> None:
    text = ("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 2_000)[:size]
    weights = json.loads(WEIGHTS.read_bytes())["o200k"]
    data = text.encode()
    kinds = [next((at for at, some in enumerate(CLASSES) if byte in some), len(CLASSES)) for byte in data]
    pairs = sum(weights["pairs"][16 * first + second] for first, second in pairwise(kinds))
    exact = sum(weights["bytes"][byte] for byte in data) + pairs
    assert ByteWeights().count(text) == pytest.approx(exact, rel=0.01, abs=1)


@cache
def kinds_of_text() -> dict[str, str]:
    """Text that is no prose, of kinds that requests hold, made otherwise than what the estimate learned from."""
    chance = random.Random(11)
    names = ("Ann", "Bob", "Chloé", "Dmitri")
    faces = (*"😂🔥🙏😭🥲🫠🎊🏆🦄🍕🚲🛠", "❤️", "👍🏽", "🇫🇷", "👩‍💻", "⚠️", "1️⃣")
    rows = [
        {"id": number, "user": chance.choice(names), "ok": True, "ratio": chance.random(), "tags": ["a", None]}
        for number in range(7_000, 7_040)
    ]
    code = [
        *("return self._cache[key]", "for item in items:", 'raise ValueError(f"{name}: no such table")', "pass"),
        *("total += weight * 2.5", "# the last one wins", "self._rows = np.zeros((count, width), np.float32)", "else:"),
        *("if not rows or rows[0].id != wanted_id:", "found.append((start, end, kind))", "except KeyError as error:"),
    ]
    hindi = (
        "नमस्ते, मुझे अपने ऑर्डर के बारे में जानकारी चाहिए। क्या आप बता सकते हैं कि यह कब तक पहुँचेगा? "
        "प्रकाश संश्लेषण की प्रक्रिया में पौधे सूर्य की ऊर्जा से कार्बन डाइऑक्साइड और जल को ग्लूकोज में बदलते हैं। "
        "दाल में तड़का लगाने के लिए पहले घी गरम करें, फिर जीरा, लहसुन और सूखी मिर्च डालें। "
        "इस फ़ंक्शन में त्रुटि क्यों आ रही है, जबकि सूची खाली नहीं है? कृपया चरणबद्ध ढंग से समझाइए। "
    )
    return {
        "emoji": "".join(chance.choice(faces) for _ in range(200)),
        "chat with emoji": " ".join(f"see you at the station {chance.choice(faces)} cannot wait!" for _ in range(20)),
        "base64": base64.b64encode(chance.randbytes(3_000)).decode(),
        "lines of base64": base64.encodebytes(chance.randbytes(3_000)).decode(),
        "hashes": "\n".join(f"{chance.randbytes(32).hex()}  file-{number}.bin" for number in range(40)),
        "CSV of numbers": "\n".join(",".join(f"{chance.gauss(0, 50):.3f}" for _ in range(10)) for _ in range(60)),
        "CSV of integers": "\n".join(",".join(str(chance.randrange(10**5)) for _ in range(10)) for _ in range(60)),
        "deep indentation": "\n".join(" " * 4 * chance.randint(5, 10) + chance.choice(code) for _ in range(120)),
        "tabs": "\n".join("\t" * chance.randint(2, 7) + chance.choice(code) for _ in range(120)),
        "compact JSON": json.dumps(rows, separators=(",", ":")),
        "indented JSON": json.dumps(rows, indent=2),
        "Hindi": hindi * 10,
    }


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["o200k", "cl100k"])
@pytest.mark.parametrize("kind", kinds_of_text())
def test_the_estimate_is_near_on_what_is_no_prose(kind: str, encoding: str) -> None:
    bpe_openai = pytest.importorskip("bpe_openai", reason="the optional package bpe-openai is not installed")
    text = kinds_of_text()[kind]
    true = len(bpe_openai.get_encoding(f"{encoding}_base").encode_ordinary(text))
    assert ByteWeights(encoding=encoding).count(text) == pytest.approx(true, rel=0.15)


def test_a_request_below_all_bounds_settles_every_signal_at_once() -> None:
    shared = Shared()
    found = [build("tokens", shared, name, at_least=least) for name, least in (("a", 100), ("b", 200))]
    facts = Facts(request("short"))
    reading = read(found[0], facts)
    assert reading.matched is False
    assert facts.readings == facts.telling == {"a": reading, "b": reading}
    long = Facts(request("word " * 150))
    assert read(found[0], long).matched is True
    assert "b" not in long.readings


def test_a_signal_bounded_above_only_is_never_settled_unread() -> None:
    shared = Shared()
    low = build("tokens", shared, "low", at_least=100)
    build("tokens", shared, "high", at_most=50)
    facts = Facts(request("short"))
    read(low, facts)
    assert "high" not in facts.readings


def test_no_text_is_absurd() -> None:
    weights = ByteWeights()
    assert weights.count("") == 0
    for text in ("Y" * 160, "\x00" * 160, "\ud800" * 160, " " * 160):
        assert 10 <= weights.count(text) <= 500


@pytest.mark.parametrize("encoding", ["o200k", "cl100k"])
def test_an_encoding_counts_exactly(encoding: str) -> None:
    bpe_openai = pytest.importorskip("bpe_openai", reason="the optional package bpe-openai is not installed")
    signal = build("tokens", at_least=0, encoding=encoding)
    text = "Grüße aus 東京 and <|endoftext|>!"
    exact = len(bpe_openai.get_encoding(f"{encoding}_base").encode_ordinary(text))
    assert reading(signal, text).score == exact + PER_REQUEST + PER_MESSAGE
    assert signal.cost == Cost.FAST


def test_a_missing_package_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name == "bpe_openai":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    cls = BY_NAME["tokens"]
    with pytest.raises(ValueError, match="pip install bpe-openai"):
        cls("it", cls.Parameters.model_validate({"at_least": 1, "encoding": "o200k"}), Shared())


def test_an_encoding_is_estimated_by_its_table_where_that_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)  # not installed
    text = "क्या आप बता सकते हैं कि यह कब तक पहुँचेगा? " * 20
    default, unnamed, newer, older = (
        build("tokens", at_least=0, **params)
        for params in ({}, {"estimate": True}, *({"encoding": name, "estimate": True} for name in ("o200k", "cl100k")))
    )
    count = reading(default, text).score or 0
    assert count == reading(unnamed, text).score == reading(newer, text).score
    # cl100k has hardly a word of Hindi, o200k has many.
    assert (reading(older, text).score or 0) > 2 * count
    assert older.cost == default.cost == Cost.INSTANT


def test_the_weights_are_those_of_their_card() -> None:
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in WEIGHTS.with_suffix(".md").read_text()


def test_wrong_parameters_are_explained() -> None:
    assert "one of at_least, at_most" in complaint("tokens")
    assert "greater than" in complaint("tokens", at_least=2, at_most=1)
    assert "greater than or equal to 0" in complaint("tokens", at_least=-1)
    assert "Input should be" in complaint("tokens", at_least=1, encoding="gpt2")


def test_the_estimate_on_the_public_data() -> None:
    """Of the sum of a language's sentences no more than 30 % off, 10 % in the mean."""
    bpe_openai = pytest.importorskip("bpe_openai", reason="the optional package bpe-openai is not installed")
    encode = bpe_openai.get_encoding("o200k_base").encode_ordinary
    weights = ByteWeights()
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in data("language/sentences")[::3]:
        sums[row["language"]][0] += weights.count(row["text"])
        sums[row["language"]][1] += len(encode(row["text"]))
    off = {language: abs(guessed / true - 1) for language, (guessed, true) in sums.items()}
    assert max(off.values()) < 0.3, off
    assert sum(off.values()) / len(off) < 0.10


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("äöü", 2), ("x" * 4000, 1000)]
)
def test_a_quarter_of_the_bytes(text: str, tokens: int) -> None:
    given = request(text)
    assert reading(build("tokens", at_least=0, method="bytes"), given).score == tokens
    assert matched("tokens", given, at_least=1, method="bytes") is (tokens > 0)


def test_a_quarter_of_the_bytes_counts_tool_definitions_and_all_messages() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    messages = [Message("system", "abcd"), Message("user", "abc")]
    given = request(messages=messages, fields={"tools": tools})
    size = len("abcd\nabc") + len(json.dumps(tools, separators=(",", ":")))
    assert reading(build("tokens", at_least=0, method="bytes"), given).score == -(-size // 4)
    assert "leave encoding and estimate out" in complaint("tokens", at_least=0, method="bytes", estimate=True)

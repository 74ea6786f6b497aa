"""One exchange, message by message, in every body mode."""

from __future__ import annotations

import asyncio
import gzip
import threading
import zlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import brotli
import orjson
import pytest
import zstandard

from decisions.catalogue import Catalogue
from decisions.decision import Changes, Trace
from decisions.engine import Clause, Engine, Opening, Ruleset
from decisions.model import Model
from decisions.outcome import Outcome
from decisions.rule import AnyOf
from extproc import wire
from extproc.bodies.holder import Bodies
from extproc.makers import MOST, Makers
from extproc.transport.seam import Stream
from signals.facts import Facts
from signals.reading import Reading, unknown
from signals.request import Request
from signals.signal import Cost
from stepwise.spec import StepwiseSpec
from tests.extproc.envoy import (
    BUFFERED,
    DUPLEX,
    LARGE,
    NONE,
    PARTIAL,
    STREAMED,
    Envoy,
    Says,
    Service,
    chat,
    clause,
    engine,
    expect_continue,
    expect_refusal,
    expect_route,
    metadata,
    set_headers,
    word,
)
from tests.patience import PATIENCE
from tests.proto import oracle
from tests.proto.oracle import core, ext_proc
from upstream.answer import Answer, Body
from upstream.writer import Charge

GUARD = clause("guard", "evil", "respond", on_unknown="match", status=403, message="No.")
CODE = clause("code", "traceback", "route", changes=Changes(headers={"x-tier": "premium"}))
POLICY = engine(GUARD, CODE, signals=[word("evil"), word("traceback")])


def routed(message: Any) -> dict[str, str]:
    """The request headers that an answer sets."""
    part = message.request_body if message.request_headers is None else message.request_headers
    return set_headers(part.response.header_mutation) if part.response else {}


HOLDING: list[dict[str, Any]] = [
    {"mode": DUPLEX},
    {"mode": STREAMED, "send_body_without_waiting_for_header_response": True},
]


@pytest.fixture
def service() -> Service:
    return Service(POLICY)


@pytest.fixture(autouse=True)
def _errors_are_failures(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    """No test may log an error unless it says so with the mark `breaks`."""
    yield
    if "breaks" not in request.fixturenames:
        assert [record.getMessage() for record in caplog.records if record.name == "pointsman.exchange"] == []


@pytest.fixture
def breaks() -> None:
    """The test makes something break."""


# BUFFERED


def test_buffered_headers_go_on_and_the_body_bears_the_decision(service: Service) -> None:
    envoy = Envoy(service)
    [answer] = envoy.headers()
    expect_continue(answer, "request_headers")
    [answer] = envoy.body(chat("a traceback"))
    common = expect_route(answer, "large", x_tier="premium")
    assert common.body_mutation.body == chat("a traceback", model="Qwen/Qwen3-72B")
    assert metadata(answer)["decision"] == "code"
    assert metadata(answer)["signals"] == {"evil": 0.0, "traceback": 1.0}
    assert metadata(answer)["policy"] == POLICY.policy
    assert service.decision.name == "code"
    assert service.failures == []
    assert envoy.finished is None


def test_nothing_matches_and_the_default_model_takes_it(service: Service) -> None:
    envoy = Envoy(service)
    expect_route(envoy.request(chat())[-1], "small")
    assert service.decision.action == "default"


def test_a_body_that_names_the_served_model_is_not_touched(service: Service) -> None:
    common = expect_route(Envoy(service).request(chat(model="Qwen/Qwen3-72B"))[-1], "large")
    assert common.body_mutation is None
    common = expect_route(Envoy(service).request(chat(model="large"))[-1], "large")
    assert orjson.loads(common.body_mutation.body)["model"] == "Qwen/Qwen3-72B"


def test_changes_rewrite_the_body() -> None:
    changes = Changes(system="Be brief.", max_tokens=10)
    service = Service(engine(clause("all", None, "route", changes=changes)))
    common = expect_route(Envoy(service).request(chat())[-1], "large")
    fields = orjson.loads(common.body_mutation.body)
    assert fields["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (fields["max_tokens"], fields["model"]) == (10, "Qwen/Qwen3-72B")


def test_a_guard_answers_the_client(service: Service) -> None:
    envoy = Envoy(service)
    answer = envoy.request(chat("evil"))[-1]
    shown = expect_refusal(answer, 403, "policy_refusal")
    assert shown["error"]["message"] == "No."
    assert set_headers(answer.immediate_response.headers)["x-pointsman-decision"] == "guard"
    assert metadata(answer)["decision"] == "guard"
    assert metadata(answer)["action"] == "respond"
    assert service.decision.action == "respond"
    # Our own reply comes by in the response phase; it has our headers already.
    [answer] = envoy.response(403)
    expect_continue(answer, "response_headers")


def test_guards_apply_to_requests_that_name_a_model(service: Service) -> None:
    expect_refusal(Envoy(service).request(chat("evil", model="large"))[-1], 403)


def test_an_unknown_model_is_404_in_the_shape_of_the_api(service: Service) -> None:
    shown = expect_refusal(Envoy(service).request(chat(model="gpt-9"))[-1], 404, "model_not_found")
    assert "gpt-9" in shown["error"]["message"]
    assert service.failures == ["model_not_found"]
    shown = expect_refusal(Envoy(service).request(chat(model="gpt-9"), "/v1/messages")[-1], 404)
    assert shown["type"] == "error"
    assert shown["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("method", "path", "lists"),
    [
        ("POST", "/v1beta/models/gpt-9:generateContent", "/v1beta/models"),
        ("GET", "/v1beta/models/gpt-9", "/v1beta/models"),
        ("GET", "/v1beta/files", "/v1beta/models"),
        ("GET", "/v1/models/gpt-9", "/v1/models"),
        ("GET", "/v1/files", "/v1/models"),
    ],
)
def test_a_404_names_the_list_of_models_of_the_clients_own_api(
    service: Service, method: str, path: str, lists: str
) -> None:
    key = {"x-goog-api-key": "k"} if lists == "/v1beta/models" else {}
    envoy = Envoy(service)
    if method == "POST":
        answer = envoy.request(b'{"contents": [{"parts": [{"text": "hi"}]}]}', path, **key)[-1]
    else:
        [answer] = envoy.headers(path, method="GET", end=True, **key)
    assert f"; GET {lists} lists" in expect_refusal(answer, 404)["error"]["message"]


def test_an_unknown_model_can_be_passed_on_untouched() -> None:
    policy = Engine("sha256:1", Catalogue({"small": LARGE}, "small", pass_unknown=True), Ruleset())
    [_, answer] = Envoy(Service(policy)).request(chat(model="gpt-9"))
    assert answer.request_body.response is None
    assert "model" not in metadata(answer)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b"{", "invalid_json"),
        (b"[1]", "invalid_type"),
        (b'{"model": 1}', "invalid_type"),
        (b"{}", "missing_required_parameter"),
        (b'{"messages": ["\xff"]}', "invalid_json"),
        (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested_too_deeply"),
    ],
)
@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
def test_bad_bodies_are_400(service: Service, body: bytes, code: str, mode: Any) -> None:
    envoy = Envoy(service, mode)
    expect_refusal(envoy.request(body)[-1], 400, code)
    assert service.failures == [code]
    assert service.traces == []
    assert len(envoy.sent) == (2 if mode == BUFFERED else 1)


def test_headers_that_end_the_request_are_an_empty_body(service: Service) -> None:
    for mode in (BUFFERED, DUPLEX, NONE):
        [answer] = Envoy(service, mode).headers(end=True)
        expect_refusal(answer, 400, "empty_body")


def test_trailers_after_a_buffered_body_go_on(service: Service) -> None:
    envoy = Envoy(service)
    envoy.headers()
    [answer] = envoy.say(request_body=ext_proc.HttpBody(body=chat(), end_of_stream=False))
    expect_route(answer, "small")
    [answer] = envoy.trailers()
    assert answer.request_trailers is not None


def test_trailers_without_any_body_are_an_empty_body(service: Service) -> None:
    for mode in (BUFFERED, DUPLEX):
        envoy = Envoy(service, mode)
        envoy.headers()
        expect_refusal(envoy.trailers()[-1], 400, "empty_body")


def test_the_client_s_copies_of_our_headers_are_removed(service: Service) -> None:
    envoy = Envoy(service)
    [answer] = envoy.headers(**{"x-pointsman-route": "large", "x-pointsman-decision": "x", "x-other": "y"})
    expect_continue(answer, "request_headers", ["x-pointsman-route", "x-pointsman-decision"])
    for terms in HOLDING:
        envoy = Envoy(service, **terms)
        answer = envoy.request(chat(), **{"x-pointsman-route": "large", "x-pointsman-decision": "x"})[0]
        common = expect_route(answer, "small", "request_headers")
        assert common.header_mutation.remove_headers == ["x-pointsman-decision"]
    service.engine = engine(pass_unread=True)
    envoy = Envoy(service)
    [answer] = envoy.headers("/static", **{"x-pointsman-route": "large"})
    expect_continue(answer, "request_headers", ["x-pointsman-route"])


def test_a_body_over_the_limit_is_413(service: Service) -> None:
    service.engine = engine(max_body=100)
    [answer] = Envoy(service).headers(content_length="101")
    expect_refusal(answer, 413, "too_large")
    envoy = Envoy(service)
    envoy.headers()
    expect_refusal(envoy.body(chat("x" * 100))[-1], 413, "too_large")
    envoy = Envoy(service, DUPLEX)
    envoy.headers()
    assert envoy.body(b"x" * 60, False) == []
    expect_refusal(envoy.body(b"x" * 60, False)[-1], 413, "too_large")
    assert envoy.body(b"x" * 60, False) == []
    assert envoy.body(b"", True) == []
    assert service.failures == ["too_large"] * 3


def test_a_body_in_too_many_chunks_is_413(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.exchange.MAX_OWED", 3)
    envoy = Envoy(service, STREAMED, send_body_without_waiting_for_header_response=True)
    envoy.headers()
    answers = [answer for _ in range(5) for answer in envoy.body(b"x", False)]
    assert len(answers) == 1
    expect_refusal(answers[0], 413, "too_large")


def test_an_upstream_s_copies_of_our_headers_are_removed(service: Service) -> None:
    envoy = Envoy(service)
    envoy.request(chat())
    fields = {":status": "200", "x-pointsman-model": "fake", "x-pointsman-decision": "fake"}
    listed = [core.HeaderValue(key=k, raw_value=v.encode()) for k, v in fields.items()]
    [answer] = envoy.say(response_headers=ext_proc.HttpHeaders(headers=core.HeaderMap(headers=listed)))
    mutation = answer.response_headers.response.header_mutation
    assert mutation.remove_headers == ["x-pointsman-decision"]
    assert set_headers(mutation)["x-pointsman-model"] == "small"


FAKE = {":status": "200", "x-pointsman-model": "fake", "x-pointsman-zzz": "fake", "server": "fake"}


@pytest.mark.parametrize("response_headers", [True, False])
@pytest.mark.parametrize("phase", ["passing", "late", "routed", "no request phase", "early"])
def test_an_upstream_s_copies_are_removed_in_every_phase(phase: str, response_headers: bool) -> None:
    service = Service(engine(response_headers=response_headers, pass_unread=True))
    envoy = Envoy(service, {"late": NONE, "early": DUPLEX}.get(phase, STREAMED if phase == "passing" else BUFFERED))
    if phase == "passing":
        envoy.headers("/v1/files")
    elif phase in ("late", "early"):
        envoy.headers()
    elif phase == "routed":
        envoy.request(chat())
        if not response_headers:  # then the stream is over, and the gateway's routes remove the copies
            assert envoy.finished == (0, "")
            return
    listed = [core.HeaderValue(key=k, raw_value=v.encode()) for k, v in FAKE.items()]
    [answer] = envoy.say(response_headers=ext_proc.HttpHeaders(headers=core.HeaderMap(headers=listed)))
    mutation = answer.response_headers.response.header_mutation
    ours = set_headers(mutation)
    assert "x-pointsman-zzz" in mutation.remove_headers
    assert ours.get("x-pointsman-model", "small") == "small"
    assert {"x-pointsman-model", "x-pointsman-zzz"} == {*mutation.remove_headers, *ours} & set(FAKE)


def test_a_content_length_that_is_no_number_is_ignored(service: Service) -> None:
    for text in ("x", "²", "9" * 30):
        [answer] = Envoy(service).headers(content_length=text)
        expect_continue(answer, "request_headers")


def test_a_compressed_body_is_415(service: Service) -> None:
    for coding in ("compress", "gzip, br", "gzip,gzip", "x"):
        [answer] = Envoy(service).headers(content_encoding=coding)
        expect_refusal(answer, 415, "unsupported_encoding")


def test_a_partly_buffered_body_is_413(service: Service) -> None:
    envoy = Envoy(service, PARTIAL)
    envoy.headers()
    expect_refusal(envoy.body(chat()[:20], False)[-1], 413, "too_large")
    expect_route(Envoy(service, PARTIAL).request(chat())[-1], "small")


@pytest.mark.parametrize("terms", [{"mode": BUFFERED}, *[{"mode": DUPLEX}]])
@pytest.mark.parametrize("coding", ["gzip", " GZIP ", "identity, gzip", "deflate", "br", "zstd"])
async def test_an_encoded_body_is_read_and_goes_on_plain(service: Service, terms: dict[str, Any], coding: str) -> None:
    body = chat("a traceback")
    pack = {"deflate": zlib.compress, "br": brotli.compress, "zstd": zstandard.compress}.get(coding, gzip.compress)
    envoy = Envoy(service, **terms)
    envoy.request(pack(body), content_encoding=coding)
    await envoy.settled()
    wanted = chat("a traceback", model="Qwen/Qwen3-72B")
    if terms["mode"] == DUPLEX:
        common = expect_route(envoy.sent[0], "large", "request_headers", x_tier="premium")
        assert envoy.upstream_body() == wanted
    else:
        common = expect_route(envoy.sent[-1], "large", x_tier="premium")
        assert common.body_mutation.body == wanted
    assert "content-encoding" in common.header_mutation.remove_headers
    # One whose model need not change goes on plain all the same, and a guard has read it.
    envoy = Envoy(service, **terms)
    plain = chat("a traceback", model="small")
    envoy.request(pack(plain), content_encoding=coding)
    await envoy.settled()
    if terms["mode"] == DUPLEX:
        assert envoy.upstream_body() == chat("a traceback", model="Qwen/Qwen3-8B")
    envoy = Envoy(service, **terms)
    envoy.request(pack(chat("evil")), content_encoding=coding)
    await envoy.settled()
    expect_refusal(envoy.sent[-1], 403, "policy_refusal")


@pytest.mark.parametrize(
    ("packed", "status", "code"),
    [
        (gzip.compress(b" " * 1_000_001, mtime=0), 413, "too_large"),
        (gzip.compress(chat(), mtime=0)[:-3], 400, "invalid_encoding"),
        (chat(), 400, "invalid_encoding"),
        (b"", 400, "invalid_encoding"),
        (gzip.compress(b"{", mtime=0), 400, "invalid_json"),
    ],
)
async def test_a_body_that_cannot_be_decoded_is_refused(packed: bytes, status: int, code: str) -> None:
    service = Service(engine(max_body=1_000_000))
    envoy = Envoy(service)
    envoy.request(packed, content_encoding="gzip")
    await envoy.settled()
    expect_refusal(envoy.sent[-1], status, code)


async def test_a_long_body_is_read_in_a_thread_and_decided_alike(service: Service) -> None:
    filler = "é" * 300_000
    for text, wanted in ((f"{filler} a traceback", "large"), (filler, "small")):
        for mode in (BUFFERED, DUPLEX):
            envoy = Envoy(service, mode)
            envoy.request(chat(text))
            await envoy.settled()
            first = envoy.sent[0] if mode == DUPLEX else envoy.sent[-1]
            assert routed(first)["x-pointsman-route"] == wanted
            if mode == DUPLEX:
                assert envoy.upstream_body() == chat(text, model=service.engine.models[wanted].name)
    envoy = Envoy(service)
    envoy.request(chat(f"{filler} evil"))
    await envoy.settled()
    expect_refusal(envoy.sent[-1], 403, "policy_refusal")
    envoy = Envoy(service)
    envoy.request(chat(filler, model="nobody"))
    await envoy.settled()
    expect_refusal(envoy.sent[-1], 404, "model_not_found")
    assert service.bodies.total == 0


class Reads(Says):
    """A signal that reads every text of a request."""

    reads = ("all",)


async def test_what_is_read_of_a_long_body_after_the_deadline_is_unknown() -> None:
    begun, enough = threading.Event(), threading.Event()

    def slow(request: Request) -> Reading:
        begun.set()
        enough.wait(PATIENCE)
        return Reading(False)

    quick = Reads("quick", lambda request: Reading(True, 0.5))
    after = Reads("after", lambda request: Reading(True))
    guard = clause("guard", "slow", "respond", on_unknown="match", status=403)
    signals = (quick, Reads("slow", slow), after)
    service = Service(engine(clause("seen", "quick", "respond", observe=True), guard, signals=signals, deadline=0.2))
    envoy = Envoy(service)
    try:
        envoy.request(chat("x" * 300_000))
        await asyncio.to_thread(begun.wait, PATIENCE)
        await envoy.settled()
        expect_refusal(envoy.sent[-1], 403, "policy_refusal")
        [trace] = service.traces
        assert trace.readings == {
            "quick": Reading(True, 0.5), "slow": unknown("deadline"), "after": unknown("deadline")
        }  # fmt: skip
        assert (trace.estimated_input_tokens or 0) > 30_000
    finally:
        enough.set()
    assert [trace.readings["slow"].error for trace in service.traces] == ["deadline"]


def test_all_open_bodies_together_are_bounded() -> None:
    service = Service(engine(max_open_bodies=1000, max_body=800))
    open_ = []
    for _ in range(3):
        envoy = Envoy(service, DUPLEX)
        envoy.headers()
        envoy.body(b"x" * 400, False)
        open_.append(envoy)
    expect_refusal(open_[2].sent[-1], 503, "too_many_bodies")
    assert set_headers(open_[2].sent[-1].immediate_response.headers)["retry-after"] == "1"
    assert service.bodies.total == 800
    assert open_[2].body(b"x" * 400, False) == []
    open_[0].exchange.closed()
    assert service.bodies.total == 400
    expect_route(Envoy(service, DUPLEX).request(chat())[0], "small", "request_headers")
    open_[1].exchange.closed()
    assert service.bodies.total == 0


async def test_a_body_that_does_not_come_in_time_is_408() -> None:
    service = Service(engine(body_timeout=0.01), bodies=Bodies())
    waiting, silent, done = Envoy(service, DUPLEX), Envoy(service, DUPLEX), Envoy(service, DUPLEX)
    waiting.headers()
    waiting.body(b"{", False)
    silent.headers()
    done.request(chat())
    await asyncio.sleep(0.5)
    assert service.bodies.total == 0
    expect_refusal(waiting.sent[-1], 408, "body_timeout")
    expect_refusal(silent.sent[-1], 408, "body_timeout")
    assert service.failures == ["body_timeout", "body_timeout"]


async def test_what_an_encoding_makes_of_a_body_is_counted_as_long_as_it_is_held() -> None:
    body = chat("x" * 100_000)
    slow = engine(clause("any", "slow", "route"), signals=[Slow("slow", None)], deadline=0.2, max_open_bodies=150_000)
    service = Service(slow)
    first, second = Envoy(service), Envoy(service)
    for envoy in (first, second):
        envoy.headers(content_encoding="gzip")
        envoy.body(gzip.compress(body))
        await asyncio.sleep(0.05)
    assert service.bodies.total == len(body)
    await second.settled()
    expect_refusal(second.sent[-1], 503, "too_many_bodies")
    await first.settled()
    expect_route(first.sent[-1], "small")
    assert service.bodies.total == 0


def test_a_path_that_is_spelled_otherwise_is_read_and_put_plainly(service: Service) -> None:
    for mode in (BUFFERED, DUPLEX):
        for path in (
            "/v1/chat/completions%0a",
            "/V1/Chat/Completions",
            "/chat/completions",
            "/v1/x/..%5cchat/completions/",
        ):
            envoy = Envoy(service, mode)
            envoy.request(chat("a traceback"), path)
            answer = envoy.sent[0] if mode == DUPLEX else envoy.sent[-1]
            assert routed(answer)[":path"] == "/v1/chat/completions"
            envoy = Envoy(service, mode)
            envoy.request(chat("evil"), path)
            expect_refusal(envoy.sent[-1], 403, "policy_refusal")


def test_a_stored_response_is_asked_of_the_model_that_made_it(service: Service) -> None:
    body = orjson.dumps({"input": "a traceback"})
    long = "x" * 1000
    for header, session, wanted in (
        ("x-session-id", "s1", {"x-pointsman-route": "large"}),
        ("session-id", "codex", {"x-pointsman-route": "large"}),
        ("x-session-id", long, {"x-pointsman-route": "large"}),
        ("x-session-id", "s2", {}),
        ("accept", "s1", {}),
    ):
        if wanted:
            Envoy(service).request(body, "/v1/responses", **{header: session})
        for method in ("GET", "DELETE"):
            envoy = Envoy(service)
            [answer] = envoy.headers("/v1/responses/resp_1", True, method=method, **{header: session})
            assert routed(answer) == wanted
            assert envoy.finished == (0, "")
    [answer] = Envoy(service).headers("/responses/r%2f", True, method="POST")
    assert routed(answer) == {":path": "/v1/responses/r"}


def test_sessions_are_forgotten_in_the_end() -> None:
    makers = Makers()
    for number in range(MOST + 2):
        makers.note(str(number), "m")
    assert (makers.of("0"), makers.of("1"), makers.of("2")) == (None, None, "m")
    makers.note("", "m")
    assert makers.of("") is None


def test_an_azure_deployment_is_the_model(service: Service) -> None:
    body = orjson.dumps({"messages": [{"role": "user", "content": "hi"}]})
    envoy = Envoy(service, DUPLEX)
    envoy.request(body, "/openai/deployments/large/chat/completions?api-version=2024-10-21")
    assert routed(envoy.sent[0])["x-pointsman-route"] == "large"
    assert routed(envoy.sent[0])[":path"] == "/v1/chat/completions"
    assert orjson.loads(envoy.upstream_body())["model"] == "Qwen/Qwen3-72B"
    envoy = Envoy(service)
    envoy.request(body, "/openai/deployments/nobody/chat/completions")
    expect_refusal(envoy.sent[-1], 404, "model_not_found")


# Bodies that come while the headers are held


@pytest.mark.parametrize("terms", HOLDING)
def test_held_headers_bear_the_decision_and_the_body_follows(service: Service, terms: dict[str, Any]) -> None:
    envoy = Envoy(service, **terms)
    body = chat("a traceback")
    assert envoy.headers() == []
    assert envoy.body(body[:9], False) == []
    first, *rest = envoy.body(body[9:], True)
    common = expect_route(first, "large", "request_headers", x_tier="premium")
    assert common.body_mutation is None
    wanted = chat("a traceback", model="Qwen/Qwen3-72B")
    if terms["mode"] == DUPLEX:
        assert envoy.upstream_body() == wanted
    else:  # one answer to each message
        assert [m.request_body.response.body_mutation.body for m in rest] == [wanted, None]
        assert rest[1].request_body.response.body_mutation.clear_body is True


@pytest.mark.parametrize("terms", HOLDING)
def test_a_held_body_that_does_not_change_comes_back_as_it_was(service: Service, terms: dict[str, Any]) -> None:
    envoy = Envoy(service, **terms)
    body = chat("x" * 150_000, model="Qwen/Qwen3-72B")
    first, *rest = envoy.request(body)
    expect_route(first, "large", "request_headers")
    if terms["mode"] == DUPLEX:
        assert envoy.upstream_body() == body
        assert len(rest) == 3
    else:
        assert len(rest) == 3
        for answer in rest:
            expect_continue(answer, "request_body")


@pytest.mark.parametrize("terms", HOLDING)
def test_trailers_end_a_held_body(service: Service, terms: dict[str, Any]) -> None:
    envoy = Envoy(service, **terms)
    body = chat(model="Qwen/Qwen3-72B")
    envoy.headers()
    assert envoy.body(body, False) == []
    answers = envoy.trailers()
    expect_route(answers[0], "large", "request_headers")
    if terms["mode"] == DUPLEX:
        part = answers[1].request_body.response.body_mutation.streamed_response
        assert (part.body, part.end_of_stream) == (body, False)
    else:
        expect_continue(answers[1], "request_body")
    assert answers[2].request_trailers is not None
    assert len(answers) == 3


def test_a_guard_answers_while_the_headers_are_held(service: Service) -> None:
    for terms in HOLDING:
        [answer] = Envoy(service, **terms).request(chat("evil"))
        expect_refusal(answer, 403, "policy_refusal")


# Modes without a body


@pytest.mark.parametrize("terms", [{"mode": NONE}, {"mode": STREAMED}])
def test_without_a_body_the_default_model_is_taken_and_the_body_asked_for(service: Service, terms: Any) -> None:
    envoy = Envoy(service, **terms)
    [answer] = envoy.headers()
    assert set_headers(answer.request_headers.response.header_mutation) == {"x-pointsman-route": "small"}
    assert answer.mode_override.request_body_mode == BUFFERED
    envoy.exchange.closed()
    assert service.failures == ["body_mode"]


def test_a_body_that_is_buffered_after_all_is_decided_on(service: Service) -> None:
    envoy = Envoy(service, NONE)
    envoy.headers()
    [answer] = envoy.body(chat("a traceback"))
    expect_route(answer, "large", x_tier="premium")
    envoy.exchange.closed()
    assert service.failures == []


def test_chunks_after_the_headers_are_gone_go_on(service: Service) -> None:
    envoy = Envoy(service, STREAMED)
    envoy.headers()
    [answer] = envoy.body(b"{", False)
    expect_continue(answer, "request_body")
    assert envoy.finished is None
    envoy.exchange.closed()
    assert service.failures == ["body_mode"]


# What is none of our business


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/", {}, 404, "unknown_path"),
        ("/v1/files", {}, 404, "unknown_path"),
        ("/v1/chat/completions/123", {}, 404, "unknown_path"),
        ("/generate", {}, 404, "unknown_path"),
        ("/v1/messages/batches", {}, 404, "unknown_path"),
        ("*", {"method": "OPTIONS"}, 404, "unknown_path"),
        ("/v1/chat/completions", {"method": "GET"}, 405, "method_not_allowed"),
        ("/v1/chat/completions", {"method": "HEAD"}, 405, "method_not_allowed"),
        ("/v1/chat/completions", {"method": "PUT"}, 405, "method_not_allowed"),
        ("/v1/models/x", {"method": "DELETE"}, 405, "method_not_allowed"),
        ("/v1/responses/r", {"method": "PATCH"}, 405, "method_not_allowed"),
        ("/v1/responses/r", {"method": "GET", "end": False}, 400, "unexpected_body"),
        ("/v1/responses", {"method": "GET", "upgrade": "websocket"}, 426, "websocket_refused"),
        ("/v1/chat/completions", {"method": "CONNECT", ":protocol": "websocket"}, 426, "websocket_refused"),
        ("/v1/chat/completions", {"upgrade": "websocket", "end": False}, 426, "websocket_refused"),
        ("/v1/completions", {"content_type": "application/json; charset=utf-16"}, 415, "unsupported_charset"),
        ("/v1/completions", {"content_type": 'text/plain;charset = "UTF-7"'}, 415, "unsupported_charset"),
    ],
)
@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX, NONE])
def test_what_is_no_call_is_refused_at_its_headers(
    service: Service, mode: Any, path: str, headers: dict[str, Any], status: int, code: str
) -> None:
    for pass_unread in (False, True):
        service.engine = engine(pass_unread=pass_unread)
        if pass_unread and code == "unknown_path":
            continue
        service.failures.clear()
        [answer] = Envoy(service, mode).headers(path, **{"end": True, **headers})
        expect_refusal(answer, status, code)
        assert service.failures == [code]
        assert service.traces == []
    if code == "unknown_path":
        assert service.unheard == [(code, headers.get("method", "POST"), path)]


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("multipart/form-data; boundary=x", b"--x\r\n", 415, "unsupported_content_type"),
        ("application/x-www-form-urlencoded", b"prompt=evil", 415, "unsupported_content_type"),
        ("application/json,application/json", b"{", 400, "invalid_json"),
        ("text/plain", b"", 415, "unsupported_content_type"),
    ],
)
def test_a_body_of_another_type_that_is_no_json_is_415(
    service: Service, kind: str, body: bytes, status: int, code: str
) -> None:
    envoy = Envoy(service)
    envoy.headers(content_type=kind)
    expect_refusal(envoy.body(body)[-1], status, code)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json,application/json", "x", "text/json"]
)
def test_json_of_any_type_is_read(service: Service, kind: str) -> None:
    envoy = Envoy(service)
    envoy.headers(content_type=kind)
    expect_refusal(envoy.body(chat("evil"))[-1], 403, "policy_refusal")


@pytest.mark.parametrize("path", ["/", "/v1/files", "/v1/chat/completions/123"])
@pytest.mark.parametrize("headers", [{}, {"method": "GET", "upgrade": "websocket", "connection": "upgrade"}])
def test_passed_requests_go_on_without_waiting_for_a_body(service: Service, path: str, headers: dict[str, str]) -> None:
    service.engine = engine(pass_unread=True)
    for mode in (BUFFERED, NONE, PARTIAL):
        envoy = Envoy(service, mode)
        [answer] = envoy.headers(path, **headers)
        expect_continue(answer, "request_headers")
        assert envoy.finished == (0, "")
    envoy = Envoy(service, STREAMED)
    for [answer], phase in ((envoy.headers(path, **headers), "request_headers"), (envoy.body(b"x"), "request_body")):
        expect_continue(answer, phase)
    assert envoy.finished is None
    envoy = Envoy(service, DUPLEX)
    [answer] = envoy.headers(path, **headers)
    expect_continue(answer, "request_headers")
    assert envoy.finished is None
    envoy.body(b"x" * 100_000, False)
    envoy.body(b"", True)
    assert envoy.upstream_body() == b"x" * 100_000
    envoy = Envoy(service, DUPLEX)
    envoy.headers(path, end=True, **headers)
    assert envoy.finished == (0, "")
    assert set(service.failures) == {"passed_unread"}
    assert service.traces == []
    assert {reason for reason, _, _ in service.unheard} == {"passed_unread"}


def test_an_opened_path_goes_to_its_model_unread(service: Service) -> None:
    openings = (Opening("/v1/audio/*", "large"), Opening("/v1/rerank", "small"))
    service.engine = engine(openings=openings)
    for path, model in (("/v1/audio/speech?x=1", "large"), ("/v1/rerank", "small")):
        envoy = Envoy(service, DUPLEX)
        answer = envoy.headers(path, **{"x-pointsman-route": "other"})[0]
        assert routed(answer) == {"x-pointsman-route": model}
        assert answer.request_headers.response.clear_route_cache
        envoy.body(b"evil", True)
        assert envoy.upstream_body() == b"evil"
    for path in (
        "/v1/audio",
        "/v1/rerank/x",
        "/v1/audio/../rerank",
        "/v1/audio/%2e%2e/x",
        "/v1//audio/x",
        "/v1/audio/a;b",
    ):
        expect_refusal(Envoy(service).headers(path)[0], 404, "unknown_path")
    # What is understood is read, whatever is open.
    service.engine = engine(GUARD, signals=[word("evil")], openings=(Opening("/*", "large"),))
    envoy = Envoy(service)
    envoy.headers("/v1/audio/../chat/completions")
    expect_refusal(envoy.body(chat("evil"))[-1], 403, "policy_refusal")


def test_passing_on_answers_each_message_when_bodies_do_not_wait(service: Service) -> None:
    service.engine = engine(pass_unread=True)
    envoy = Envoy(service, STREAMED, send_body_without_waiting_for_header_response=True)
    expect_continue(envoy.headers("/upload")[-1], "request_headers")
    for end in (False, True):
        [answer] = envoy.body(b"abc", end)
        expect_continue(answer, "request_body")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_that_says_so_keeps_its_type(service: Service, kind: str) -> None:
    envoy = Envoy(service)
    envoy.headers(content_type=kind)
    expect_route(envoy.body(chat())[-1], "small")


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "application/json,application/json", "application/json; q=1"],
)
def test_a_body_that_was_read_as_json_is_sent_on_as_json(service: Service, kind: str) -> None:
    envoy = Envoy(service)
    envoy.headers(content_type=kind)
    expect_route(envoy.body(chat())[-1], "small", content_type="application/json")


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/models", "/v1/chat/completions"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_websocket_is_let_on(service: Service, path: str, method: str) -> None:
    envoy = Envoy(service)
    answers = envoy.headers(path, end=True, method=method, upgrade="WebSocket")
    expect_refusal(answers[-1], 426, "websocket_refused")


async def test_a_body_of_many_values_is_read_in_a_thread(service: Service) -> None:
    many = chat("hi", x=[{"a": "b"}] * 9_000)
    few = chat("x" * len(many))
    for body, tasks in ((many, 1), (few, 0)):
        envoy = Envoy(service)
        envoy.request(body)
        assert (envoy.exchange._task is not None) == tasks
        await envoy.settled()
        expect_route(envoy.sent[-1], "small")


@pytest.mark.parametrize(
    "kind",
    [
        "application/x+json",
        None,
        "",
        "application/x-www-form-urlencoded",
        "application/json,application/json",
        "application/json; charset          =utf-7",
        "application/json; charset*=us-ascii''utf-7",
        'application/json; charset*0="utf-"; charset*1="7"',
    ],
)
def test_what_was_read_as_json_goes_on_as_json(service: Service, kind: str | None) -> None:
    """Whatever an upstream makes of forms, of two types or of odd parameters."""
    for mode in (BUFFERED, DUPLEX):
        envoy = Envoy(service, mode)
        envoy.headers(content_type=kind)
        answer = envoy.body(chat())
        phase = "request_headers" if mode == DUPLEX else "request_body"
        expect_route(answer[0 if mode == DUPLEX else -1], "small", phase, content_type="application/json")


@pytest.mark.parametrize("name", ["x-original-url", "x-rewrite-url", "x-http-method-override", "x-method-override"])
def test_no_header_names_another_path_or_method(service: Service, name: str) -> None:
    service.engine = engine(openings=(Opening("/health", "small"),))
    [answer] = Envoy(service).headers("/health", **{name: "/generate"})
    assert removed(answer.request_headers.response.header_mutation) == {name}
    [answer] = Envoy(service).headers("/v1/responses/r", method="GET", end=True, **{name: "PATCH"})
    assert removed(answer.request_headers.response.header_mutation) == {name}
    envoy = Envoy(service)
    [answer] = envoy.headers(**{name: "/generate"})
    assert removed(answer.request_headers.response.header_mutation) == {name}


def removed(mutation: Any) -> set[str]:
    return set() if mutation is None else set(mutation.remove_headers)


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
def test_a_body_without_headers_goes_on(service: Service, mode: Any) -> None:
    envoy = Envoy(service, mode)
    [answer] = envoy.body(chat("evil"))
    if mode == DUPLEX:
        assert envoy.upstream_body() == chat("evil")
    else:
        expect_continue(answer, "request_body")
    assert service.failures == ["body_mode"]


def test_trailers_without_headers_go_on(service: Service) -> None:
    [answer] = Envoy(service).trailers()
    assert answer.request_trailers is not None


# Model lists


def test_the_models_of_the_policy_are_listed(service: Service) -> None:
    [answer] = Envoy(service).headers("/v1/models", method="GET", end=True)
    assert int(answer.immediate_response.status.code) == 200
    listed = orjson.loads(answer.immediate_response.body)
    names = [model["id"] for model in listed["data"]]
    assert names == ["auto", "pointsman", "small", "large", "Qwen/Qwen3-8B", "Qwen/Qwen3-72B"]
    [answer] = Envoy(service).headers("/v1/models/Qwen/Qwen3-8B", method="GET", end=True)
    assert orjson.loads(answer.immediate_response.body)["id"] == "Qwen/Qwen3-8B"
    [answer] = Envoy(service).headers("/v1/models/nope", method="GET", end=True)
    expect_refusal(answer, 404, "model_not_found")
    [answer] = Envoy(service).headers("/v1/models", method="GET", end=True, anthropic_version="2023-06-01")
    assert orjson.loads(answer.immediate_response.body)["first_id"] == "auto"


# The response phase


def test_the_client_is_told_what_was_decided(service: Service) -> None:
    envoy = Envoy(service)
    envoy.request(chat("a traceback"))
    [answer] = envoy.response()
    assert set_headers(answer.response_headers.response.header_mutation) == {
        "x-pointsman-decision": "code",
        "x-pointsman-model": "large",
        "x-pointsman-policy": POLICY.policy,
    }
    assert envoy.finished == (0, "")


def test_the_client_is_not_told_when_the_policy_does_not_want_it() -> None:
    envoy = Envoy(Service(engine(response_headers=False)))
    envoy.request(chat())
    assert envoy.finished == (0, "")  # nothing of the answer is wanted


def test_envoy_s_own_413_is_not_answered_with_a_decision(service: Service) -> None:
    for terms in [{"mode": BUFFERED}, *HOLDING]:
        envoy = Envoy(service, **terms)
        envoy.headers()
        answers = envoy.response(413)
        assert len(answers) == 1
        expect_continue(answers[0], "response_headers")
        assert envoy.body(chat("evil")) == []
    assert service.traces == []


def test_a_response_without_a_request_phase_goes_on(service: Service) -> None:
    [answer] = Envoy(service).response()
    expect_continue(answer, "response_headers")


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
def test_response_bodies_and_trailers_go_on(service: Service, mode: Any) -> None:
    envoy = Envoy(service, BUFFERED, response_body_mode=mode)
    envoy.request(chat())
    envoy.response()
    assert envoy.finished is None
    [answer] = envoy.say(response_body=ext_proc.HttpBody(body=b"x", end_of_stream=True))
    if mode == DUPLEX:
        part = answer.response_body.response.body_mutation.streamed_response
        assert (part.body, part.end_of_stream) == (b"x", True)
    else:
        expect_continue(answer, "response_body")
    [answer] = envoy.say(response_trailers=ext_proc.HttpTrailers(trailers=core.HeaderMap()))
    assert answer.response_trailers is not None


# Slow signals and the end of a stream


class Slow(Says):
    """A signal whose input takes `seconds` to come, for ever when None."""

    cost = Cost.NEURAL

    def __init__(self, name: str, seconds: float | None) -> None:
        super().__init__(name, lambda request: Reading(True, 1.0))
        self.slow = (self,)
        self.seconds = seconds
        self.running = 0

    async def fetch(self, facts: Facts) -> bool:
        self.running += 1
        try:
            await asyncio.sleep(1000 if self.seconds is None else self.seconds)
        finally:
            self.running -= 1
        return True

    def read(self, facts: Facts) -> Reading:
        facts.got(self)
        return super().read(facts)


def slow_policy(seconds: float | None, action: str = "route", **more: Any) -> tuple[Engine, Slow]:
    signal = Slow("slow", seconds)
    return engine(clause("slow", "slow", action, **more), signals=[signal], deadline=0.02), signal


async def test_before_a_slow_signal_a_shorter_body_is_read_in_a_thread_already() -> None:
    words = "word " * 10_000
    for signal, apart in ((word("evil"), False), (Slow("evil", 0.001), True)):
        service = Service(engine(clause("any", "evil", "route"), signals=[signal], deadline=PATIENCE))
        readers: list[int] = []

        async def noted(work: Any, readers: list[int] = readers) -> Any:
            readers.append(threading.get_ident())
            return await asyncio.to_thread(work)

        service.apart = noted  # type: ignore[method-assign]
        envoy = Envoy(service)
        envoy.request(chat(words))
        await envoy.settled()
        expect_route(envoy.sent[-1], "large" if apart else "small", "request_body")
        assert bool(readers) is apart


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
async def test_a_slow_signal_is_waited_for(mode: Any) -> None:
    policy, _ = slow_policy(0.001)
    service = Service(policy)
    envoy = Envoy(service, mode)
    envoy.request(chat())
    sent = len(envoy.sent)
    await envoy.settled()
    expect_route(envoy.sent[sent], "large", "request_headers" if mode == DUPLEX else "request_body")


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
async def test_the_deadline_is_ours_in_every_mode(mode: Any) -> None:
    policy, signal = slow_policy(None)
    service = Service(policy)
    envoy = Envoy(service, mode)
    envoy.request(chat())
    await asyncio.wait_for(envoy.settled(), PATIENCE)
    expect_route(
        envoy.sent[-1 if mode == BUFFERED else 0], "small", "request_headers" if mode == DUPLEX else "request_body"
    )
    assert service.traces[0].readings["slow"].error == "deadline"
    await asyncio.sleep(0)
    assert signal.running == 0


async def test_a_guard_past_its_deadline_refuses() -> None:
    policy, _ = slow_policy(None, "respond", on_unknown="match", status=403, message="Later.")
    envoy = Envoy(Service(policy))
    envoy.request(chat())
    await asyncio.wait_for(envoy.settled(), PATIENCE)
    expect_refusal(envoy.sent[-1], 403, "policy_refusal")


async def test_a_stream_that_is_closed_leaves_nothing_running() -> None:
    policy, signal = slow_policy(None)
    service = Service(policy)
    envoy = Envoy(service)
    envoy.request(chat())
    await asyncio.sleep(0)
    task = envoy.exchange._task
    assert task is not None
    assert signal.running == 1 or not task.done()
    sent = len(envoy.sent)
    envoy.exchange.closed()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert task.cancelled()
    assert signal.running == 0
    assert len(envoy.sent) == sent
    assert service.traces == []


async def test_envoy_answers_first_while_a_signal_is_awaited() -> None:
    policy, _ = slow_policy(None)
    envoy = Envoy(Service(policy))
    envoy.request(chat())
    [answer] = envoy.response(504)
    expect_continue(answer, "response_headers")
    await asyncio.sleep(0.05)
    assert envoy.sent[-1] is answer


async def test_a_half_closed_stream_is_finished_after_its_answer() -> None:
    policy, _ = slow_policy(0.001)
    envoy = Envoy(Service(policy))
    envoy.request(chat())
    envoy.exchange.half_closed()
    assert envoy.finished is None
    await envoy.settled()
    await asyncio.sleep(0)
    expect_route(envoy.sent[-1], "large")
    assert envoy.finished == (0, "")


def test_eof_at_any_point_finishes_the_stream(service: Service) -> None:
    for steps in range(4):
        envoy = Envoy(service)
        if steps > 0:
            envoy.headers()
        if steps > 1:
            envoy.body(chat())
        if steps > 2:
            envoy.response()
        envoy.exchange.half_closed()
        assert envoy.finished == (0, "")
        envoy.exchange.closed()


def test_bytes_that_are_no_message_end_the_stream(service: Service) -> None:
    for data in (b"\xff\xff", b""):
        envoy = Envoy(service)
        envoy.exchange.message(data)
        assert envoy.finished is not None
        assert envoy.finished[0] == 3
        assert envoy.sent == []
    assert service.failures == ["protocol"] * 2


def test_the_service_chooses_the_engine_that_decides(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate policy's engine, say; everything that follows is in its name."""
    candidate = engine(clause("new", None, "route"))
    candidate.policy = "sha256:candidate"
    monkeypatch.setattr(service, "choose", lambda request: candidate)
    envoy = Envoy(service)
    answer = envoy.request(chat("a traceback"))[-1]
    assert (metadata(answer)["decision"], metadata(answer)["policy"]) == ("new", "sha256:candidate")


# Observing


def test_an_observing_envoy_is_told_nothing_and_still_recorded(service: Service) -> None:
    envoy = Envoy(service, STREAMED, observing=True)
    envoy.request(chat("evil"))
    assert envoy.sent == []
    assert service.decision.name == "guard"


# Breaking


class Broken(Engine):
    """An engine with a bug."""

    def settle(self, *args: Any, **more: Any) -> Any:
        raise ZeroDivisionError("a prompt")


class BrokenLater(Engine):
    """An engine with a bug behind its first wait."""

    def settle(self, *args: Any, **more: Any) -> Any:
        class Evaluation:
            async def finish(self) -> Trace:
                await asyncio.sleep(0)
                raise ZeroDivisionError("a prompt")

        return Evaluation()


def broken(kind: type[Engine]) -> Service:
    return Service(kind("sha256:0", Catalogue({"small": Model("small", "s")}, "small"), Ruleset()))


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
@pytest.mark.parametrize("kind", [Broken, BrokenLater])
async def test_whatever_breaks_the_default_model_takes_the_request(
    mode: Any, kind: type[Engine], breaks: None, caplog: pytest.LogCaptureFixture
) -> None:
    service = broken(kind)
    envoy = Envoy(service, mode)
    envoy.request(chat())
    await envoy.settled()
    if mode == DUPLEX:
        expect_route(envoy.sent[0], "small", "request_headers")
        assert envoy.upstream_body() == chat()
    else:
        common = expect_route(envoy.sent[1], "small")
        assert common.body_mutation is None
    assert service.decision.fallback == "error"
    assert "ZeroDivisionError" in caplog.text
    assert "a prompt" not in caplog.text


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
@pytest.mark.parametrize("kind", [Broken, BrokenLater])
async def test_whatever_breaks_a_guard_that_fails_closed_refuses(mode: Any, kind: type[Engine], breaks: None) -> None:
    guard = Clause("guard", AnyOf(()), "respond", None, "match", status=403, message="No.")
    service = Service(kind("sha256:0", Catalogue({"small": Model("small", "s")}, "small"), Ruleset((guard,))))
    envoy = Envoy(service, mode)
    envoy.request(chat())
    await envoy.settled()
    expect_refusal(envoy.sent[-1], 403)
    assert (service.decision.name, service.decision.fallback) == ("guard", "error")


def test_breaking_before_the_body_is_read_takes_the_default_model(
    monkeypatch: pytest.MonkeyPatch, breaks: None
) -> None:
    service = broken(Engine)

    def fail(path: str) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("extproc.requests.paths.read", fail)
        envoy = Envoy(service)
        [answer] = envoy.headers()
        expect_route(answer, "small", "request_headers")
        expect_continue(envoy.body(chat())[-1], "request_body")
        envoy = Envoy(service, DUPLEX)
        [answer] = envoy.headers()
        expect_route(answer, "small", "request_headers")
        envoy.body(chat(), False)
        envoy.body(b"", True)
        assert envoy.upstream_body() == chat()
    assert service.failures == ["error", "error"]


def test_breaking_before_the_body_is_read_fails_closed_with_a_guard(
    service: Service, monkeypatch: pytest.MonkeyPatch, breaks: None
) -> None:
    def fail(path: str) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("extproc.requests.paths.read", fail)
        [answer] = Envoy(service).headers()
        expect_refusal(answer, 403)
    assert service.failures == ["error"]


def test_breaking_after_the_answer_changes_nothing(service: Service, breaks: None) -> None:
    def fail(outcome: Outcome, request: Request, stream: Stream) -> None:
        raise ZeroDivisionError

    service.record = fail  # type: ignore[method-assign]
    envoy = Envoy(service)
    expect_route(envoy.request(chat())[-1], "small")
    assert len(envoy.sent) == 2
    envoy.exchange.closed()
    assert service.failures == ["error"]


# Stepwise


class Steps:
    """An Answerer for tests; `pieces` may hold an exception to raise there."""

    def __init__(self, *pieces: bytes | Exception, eligible: bool = True, beside: wire.Pairs | None = None) -> None:
        self.pieces = pieces
        self.eligible = eligible
        self.beside = beside
        self.closed = False

    async def answer(self, trace: Trace, request: Request, charge: Charge | None = None) -> Answer | None:
        await asyncio.sleep(0)
        if not self.eligible:
            return None
        return Answer(200, {"content-type": "text/event-stream"}, self.body())

    def elsewhere(self, trace: Trace, request: Request) -> wire.Pairs | None:
        return self.beside

    async def body(self) -> AsyncGenerator[bytes, None]:
        try:
            for piece in self.pieces:
                await asyncio.sleep(0)
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.closed = True


STEPWISE = engine(clause("math", None, "stepwise", writer=StepwiseSpec(small="small", large="large")))


def answered(envoy: Envoy) -> bytes:
    """The client's body; checks headers first, one end, chunks of 62 kB."""
    head, *parts = [m.streamed_immediate_response for m in envoy.sent]
    fields = oracle.headers_of(head.headers_response.headers)
    assert fields[":status"] == "200"
    assert fields["content-type"] == "text/event-stream"
    assert fields["x-pointsman-decision"] == "math"
    assert [part.body_response.end_of_stream for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(len(part.body_response.body) <= wire.CHUNK for part in parts)
    return b"".join(part.body_response.body for part in parts)


async def test_a_stepwise_answer_is_streamed_to_the_client() -> None:
    service = Service(STEPWISE, Steps(b"data: 1\n\n", b"x" * 130_000, b""))
    envoy = Envoy(service, DUPLEX)
    envoy.request(chat())
    await envoy.settled()
    assert answered(envoy) == b"data: 1\n\n" + b"x" * 130_000
    assert envoy.waits == 4
    assert metadata(envoy.sent[0])["action"] == "stepwise"
    assert service.decision.action == "stepwise"
    [answer] = envoy.response()
    expect_continue(answer, "response_headers")


@pytest.mark.parametrize(
    ("answerer", "mode", "reason"),
    [
        (None, DUPLEX, "no_answerer"),
        (Steps(b"x"), BUFFERED, "body_mode"),
        (Steps(beside=()), BUFFERED, "ineligible"),
        (Steps(eligible=False), DUPLEX, "ineligible"),
    ],
)
async def test_what_cannot_be_answered_step_by_step_takes_the_large_model(
    answerer: Any, mode: Any, reason: str
) -> None:
    service = Service(STEPWISE, answerer)
    envoy = Envoy(service, mode)
    envoy.request(chat())
    await envoy.settled()
    expect_route(
        envoy.sent[0 if mode == DUPLEX else 1], "large", "request_headers" if mode == DUPLEX else "request_body"
    )
    assert service.decision.fallback == reason
    assert service.decision.action == "route"


async def test_where_envoy_cannot_stream_the_service_behind_it_answers() -> None:
    service = Service(STEPWISE, Steps(beside=(("x-pointsman-decision", "math"),)))
    envoy = Envoy(service, BUFFERED)
    envoy.request(chat(), x_pointsman_decision="mine")
    await envoy.settled()
    expect_continue(envoy.sent[0], "request_headers", ["x-pointsman-decision"])
    expect_route(envoy.sent[1], "large", x_pointsman_decision="math")
    assert metadata(envoy.sent[1])["action"] == service.decision.action == "stepwise"
    assert service.decision.fallback is None
    told = {":status": "200", "x-pointsman-model": "small", "x-pointsman-stepwise": "policy"}
    listed = [core.HeaderValue(key=key, raw_value=value.encode()) for key, value in told.items()]
    [answer] = envoy.say(response_headers=ext_proc.HttpHeaders(headers=core.HeaderMap(headers=listed)))
    mutation = answer.response_headers.response.header_mutation
    assert set_headers(mutation) == {"x-pointsman-decision": "math", "x-pointsman-policy": STEPWISE.policy}
    assert mutation.remove_headers == []  # they are our own service's words
    envoy.exchange.closed()
    assert service.outcomes[0].model.key == "small"


async def test_an_answerer_that_fails_at_once_leaves_the_large_model(breaks: None) -> None:
    class Fails(Steps):
        async def answer(self, trace: Trace, request: Request, charge: Charge | None = None) -> Answer | None:
            raise ZeroDivisionError

    service = Service(STEPWISE, Fails())
    envoy = Envoy(service, DUPLEX)
    envoy.request(chat())
    await envoy.settled()
    expect_route(envoy.sent[0], "large", "request_headers")
    assert service.decision.fallback == "answerer_error"


async def test_an_answer_that_breaks_off_is_seen_to_break_off(breaks: None) -> None:
    steps = Steps(b"one", ZeroDivisionError())
    service = Service(STEPWISE, steps)
    envoy = Envoy(service, DUPLEX)
    envoy.request(chat())
    await envoy.settled()
    assert not any(m.streamed_immediate_response.body_response.end_of_stream for m in envoy.sent[1:])
    assert envoy.finished is not None
    assert envoy.finished[0] == 13
    assert service.failures == ["answer_broken"]
    assert steps.closed


async def test_an_answer_whose_head_cannot_be_told_is_closed(breaks: None) -> None:
    class Unread(dict[str, str]):
        def items(self) -> Any:
            raise ZeroDivisionError

    class Open(Body):
        closed = False

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            self.closed = True

    class Speaks(Steps):
        async def answer(self, trace: Trace, request: Request, charge: Charge | None = None) -> Answer | None:
            return Answer(200, Unread(), body)

    body = Open()
    service = Service(STEPWISE, Speaks())
    envoy = Envoy(service, DUPLEX)
    envoy.request(chat())
    await envoy.settled()
    expect_route(envoy.sent[0], "small", "request_headers")
    assert body.closed


async def test_an_answer_without_end_is_ended(breaks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.exchange.ANSWER_LIMIT", 100)
    steps = Steps(*[b"x" * 10] * 50)
    service = Service(STEPWISE, steps)
    envoy = Envoy(service, DUPLEX)
    envoy.request(chat())
    await envoy.settled()
    assert sum(len(m.streamed_immediate_response.body_response.body) for m in envoy.sent[1:]) == 100
    assert envoy.finished is not None
    assert envoy.finished[0] == 13
    assert service.failures == ["answer_broken"]
    assert steps.closed


@pytest.mark.parametrize("by", ["cancel", "drain"])
async def test_a_client_that_leaves_closes_the_answer(by: str) -> None:
    steps = Steps(*[b"x"] * 1000)
    service = Service(STEPWISE, steps)
    envoy = Envoy(service, DUPLEX)
    envoy.request(chat())
    task = envoy.exchange._task
    assert task is not None
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(envoy.sent) > 2
    if by == "cancel":
        envoy.exchange.closed()
    else:
        envoy.gone = True
    await asyncio.wait([task])
    assert steps.closed
    assert len(envoy.sent) < 30
    assert service.failures == []


def test_an_exchange_has_at_most_twelve_fields(service: Service) -> None:
    assert len(Envoy(service).exchange.__slots__) <= 12

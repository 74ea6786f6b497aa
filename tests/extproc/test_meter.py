"""What an answer cost, whatever its shape; and the models' gauges."""

import json
from typing import Any

import pytest

from config.build import build
from config.load import parse
from config.problem import PolicyError
from config.resources import Resources
from config.watch import load
from decisions.decision import Trace
from decisions.outcome import Outcome, as_object
from extproc.meter import KEPT, Meter, Tail, spent
from extproc.records.metrics import Metrics
from extproc.requests.body import parse as parse_request
from extproc.requests.paths import Target
from extproc.serving.server import Options, Worker
from tests.extproc.envoy import STREAMED, Envoy, Service, chat, set_headers
from tests.linear import assert_linear
from tests.proto.oracle import ext_proc
from upstream.usage import last

OPENAI = {"id": "x", "choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}}
ANTHROPIC = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}},
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 15}},
]
GEMINI = [
    {"candidates": [], "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 1}},
    {"usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 7, "thoughtsTokenCount": 5}},
]


def events(*objects):
    return b"".join(b"data: " + json.dumps(o).encode() + b"\n\n" for o in objects) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (json.dumps(OPENAI).encode(), (11, 7)),
        (events({"choices": [], "usage": None}, {"choices": [], "usage": OPENAI["usage"]}), (11, 7)),
        (events(*ANTHROPIC), (25, 15)),
        (json.dumps({"usage": {"input_tokens": 3, "output_tokens": 4}}).encode(), (3, 4)),
        (json.dumps({"usage": {"prompt_tokens": 3}}).encode(), (3, None)),
        (events(*GEMINI), (8, 12)),
        (json.dumps({"usageMetadata": {"promptTokenCount": 8, "thoughtsTokenCount": 5}}).encode(), (8, 5)),
        (b'{"text": "the word \\"usage\\" in an answer"}', (None, None)),
        (b'{"usage": {"prompt_tokens": true, "completion_tokens": -1}}', (None, None)),
        (b'{"usage": {"prompt_tok', (None, None)),
        (b'"usage"', (None, None)),
        (b"\xff\xfe", (None, None)),
        (b"", (None, None)),
    ],
)
def test_usage_is_found_at_the_end_of_an_answer(body, expected):
    assert last(body)[0][:2] == expected


ECHO = {"usage": {"input_tokens": 0, "output_tokens": 0}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (events({"type": "response.created", "response": {"tools": [{"properties": ECHO}]}}), (None, None)),
        (events({"response": {"usage": {"input_tokens": 3, "output_tokens": 4}, "metadata": ECHO}}), (3, 4)),
        (json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 4}, "metadata": ECHO}).encode(), (3, 4)),
        (json.dumps([GEMINI[0], GEMINI[1]]).encode(), (8, 12)),
        (b'{"usage": {"prompt_tokens": ' + b"9" * 400 + b"}}", (None, None)),
        (b'"usage":' + b"[" * 100_000, (None, None)),
        (b'"usage": {"a":' * 5_000, (None, None)),
        (b'cut off", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}', (3, 4)),
    ],
)
def test_only_what_the_api_says_of_usage_counts(body, expected):
    assert last(body)[0][:2] == expected


def test_a_comment_counts_in_a_writers_answer_alone():
    body = (
        events({"choices": []})
        + b': {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "pointsman": {"cost": 2}}}\n\n'
    )
    (said, money), (ours, cost) = last(body), last(body, True)
    assert (said[:2], money, ours[:2], cost) == ((None, None), None, (3, 4), 2.0)


def test_reading_the_usage_is_linear():
    assert_linear(lambda size: b'{"usage":0},' * size, last, 2**13)
    assert_linear(lambda size: '{"usage":{"x":1}, "é'.encode() * size, last, 2**13)


@pytest.mark.parametrize(
    ("path", "status", "charged"),
    [
        ("/v1/chat/completions", 200, True),
        ("/v1/chat/completions", 500, False),
        ("/v1/chat/completions", 429, False),
        ("/v1/messages/count_tokens", 200, False),
    ],
)
async def test_what_says_no_usage_is_guessed_for_answers_alone(path, status, charged):
    resources = Resources()
    engine = build(parse(POLICY), resources)
    service = Service(engine, meter=Meter(resources.loads))
    envoy = Envoy(service, response_body_mode=STREAMED)
    envoy.request(chat(), path, x_tenant="acme")
    await envoy.settled()
    envoy.response(status)
    envoy.say(response_body=ext_proc.HttpBody(body=b"{}" * 40, end_of_stream=True))
    envoy.exchange.closed()
    [outcome] = service.outcomes
    assert bool(outcome.money) is charged


async def test_a_metered_answer_is_asked_for_without_an_encoding():
    resources = Resources()
    envoy = Envoy(Service(build(parse(POLICY), resources), meter=Meter(resources.loads)))
    envoy.request(chat(), x_tenant="acme", accept_encoding="gzip, br")
    await envoy.settled()
    assert set_headers(envoy.sent[-1].request_body.response.header_mutation)["accept-encoding"] == "identity"


def test_only_the_end_is_kept_however_long_the_answer():
    tail = Tail()
    for _ in range(100):
        tail.take(b"data: " + b"x" * 10_000)
    tail.take(json.dumps(OPENAI).encode())
    assert len(tail.kept) <= 2 * KEPT
    assert tail.events == 100
    assert last(bytes(tail.kept))[0][:2] == (11, 7)


@pytest.mark.parametrize("size", [7, 1_000, KEPT, 3 * KEPT, 10**6])
def test_events_are_counted_wherever_the_answer_was_cut(size):
    stream = b"data: {}\n\n" * 40_000
    tail = Tail()
    for at in range(0, len(stream), size):
        tail.take(stream[at : at + size])
    assert tail.events == 40_000


POLICY = """\
version: 1
models: {small: {price: {input: 1000000, output: 2000000}}}
default: small
signals: {broke: {budget: {header: x-tenant, limit: 100}}}
decisions:
  - {name: broke, when: broke, respond: {status: 402, message: "The budget is spent."}}
"""


async def left(engine, request):
    trace = await engine.decide(request)
    assert isinstance(trace, Trace)
    return trace, trace.readings["broke"].score


async def test_an_answer_is_charged_and_an_empty_budget_refuses():
    resources = Resources()
    engine = build(parse(POLICY), resources)
    assert engine.metered
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = parse_request(Target("chat"), {"x-tenant": "acme"}, {}, body)
    trace, before = await left(engine, request)
    assert before == 1.0
    model = trace.decision.model
    tail = Tail()
    tail.take(json.dumps(OPENAI).encode())
    engine.charge(request, spent(trace, model, tail).money)
    assert (await left(engine, request))[1] == pytest.approx(1 - (11 + 14) / 100)
    stream = Tail()
    for _ in range(100):
        stream.take(b"data: {}\n\n")  # no usage: an event counts as a token
    engine.charge(request, spent(trace, model, stream).money)
    after, score = await left(engine, request)
    assert score == 0.0
    assert (after.decision.action, after.decision.status) == ("respond", 402)
    again = build(parse(POLICY + "# reloaded\n"), resources)
    assert (await left(again, request))[1] == 0.0, "what was spent outlives a reload"


@pytest.mark.parametrize("whole", [True, False])
async def test_an_answer_whose_client_leaves_costs_what_was_seen_of_it(whole):
    resources = Resources()
    engine = build(parse(POLICY), resources)
    envoy = Envoy(Service(engine, meter=Meter(resources.loads)), response_body_mode=STREAMED)
    envoy.request(chat(), x_tenant="acme")
    await envoy.settled()
    envoy.response()
    for _ in range(10):
        envoy.say(response_body=ext_proc.HttpBody(body=b"data: {}\n\n", end_of_stream=False))
    if whole:
        last = events({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 10}})
        envoy.say(response_body=ext_proc.HttpBody(body=last, end_of_stream=True))
    envoy.exchange.closed()
    request = parse_request(Target("chat"), {"x-tenant": "acme"}, {}, chat())
    trace, left_over = await left(engine, request)
    seen = 4 if whole else trace.estimated_input_tokens
    assert left_over == pytest.approx(1 - (seen + 20) / 100)


async def test_gauges_follow_a_request():
    resources = Resources()
    meter = Meter(resources.loads)
    engine = build(parse("version: 1\nmodels: {small: {}}\ndefault: small\n"), resources)
    assert not engine.metered
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}).encode()
    request, model = parse_request(Target("chat"), {}, {}, body), engine.default
    meter.started(model)
    meter.started(model)
    gauge = resources.loads.of("small")
    assert gauge.waiting == 2
    meter.first_byte(model, request, 503)
    meter.given_up(model)
    assert gauge.waiting == 0
    assert gauge.error_rate == 1.0


FALLBACKS = """\
version: 1
models:
  small: {price: {input: 100, output: 100}, fallback: [large]}
  large: {price: {input: 10000, output: 10000}}
  other: {price: {input: 0}}
default: small
signals:
  broke: {budget: {header: x-tenant, limit: 1}}
decisions:
  - {name: broke, when: broke, on_unknown: skip, respond: {status: 402}}
"""


@pytest.mark.parametrize(
    ("said", "model", "failed"), [("large", "large", 1.0), ("other", "small", 0.0), ("", "small", 0.0)]
)
async def test_who_has_answered_in_a_models_place_is_told_and_paid(said, model, failed):
    """`said` is the rendered gateway's word, and counts for a fallback of the model alone."""
    resources = Resources()
    engine = build(parse(FALLBACKS), resources)
    envoy = Envoy(Service(engine, meter=Meter(resources.loads)), response_body_mode=STREAMED)
    envoy.request(chat(), x_tenant="acme")
    await envoy.settled()
    (reply,) = envoy.response(**({"x_pointsman_fallback": said} if said else {}))
    mutation = reply.response_headers.response.header_mutation
    assert set_headers(mutation)["x-pointsman-model"] == model
    assert list(mutation.remove_headers) == (["x-pointsman-fallback"] if said else [])
    last = events({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 10}})
    envoy.say(response_body=ext_proc.HttpBody(body=last, end_of_stream=True))
    envoy.exchange.closed()
    _, left_over = await left(engine, parse_request(Target("chat"), {"x-tenant": "acme"}, {}, chat()))
    assert left_over == pytest.approx(1 - 14 * engine.models[model].input_price / 1e6)
    gauge = resources.loads.of("small")
    assert (gauge.waiting, gauge.error_rate) == (0, failed)
    assert resources.loads.of("large").waiting == 0


METERED = """\
version: 1
models:
  small: {price: {input: 1, output: 2, cached_input: 0.5}}
  large: {price: {input: 10, output: 20, cached_input: 1}}
default: small
settings: {meter: on, tenant: {header: X-Tenant}}
"""


async def answered(policy: str, usage: dict[str, object], **headers: str) -> tuple[Outcome, dict[Any, Any]]:
    """The outcome of one answer with this usage, and what its metrics say, by name and labels."""
    resources = Resources()
    service = Service(build(parse(policy), resources), meter=Meter(resources.loads))
    envoy = Envoy(service, response_body_mode=STREAMED)
    envoy.request(chat(), **headers)
    await envoy.settled()
    envoy.response()
    body = json.dumps({"id": "x", "usage": usage}).encode()
    envoy.say(response_body=ext_proc.HttpBody(body=body, end_of_stream=True))
    envoy.exchange.closed()
    [outcome] = service.outcomes
    metrics = Metrics()
    metrics.record(outcome)
    found: dict[Any, Any] = {
        (name, *labels): value for name, each in metrics.snapshot().items() for labels, value in each
    }
    return outcome, found


CACHED = {
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "prompt_tokens_details": {"cached_tokens": 600},
    "completion_tokens_details": {"reasoning_tokens": 40},
}


async def test_meter_on_counts_tokens_money_and_savings():
    outcome, metrics = await answered(METERED, CACHED, x_tenant="acme\n")
    assert (outcome.prompt, outcome.completion, outcome.cached, outcome.reasoning) == (1000, 100, 600, 40)
    assert outcome.money == pytest.approx((400 * 1 + 600 * 0.5 + 100 * 2) / 1e6)
    assert outcome.reference == pytest.approx((400 * 10 + 600 * 1 + 100 * 20) / 1e6)
    assert outcome.tenant == "acme "
    kinds = ("input", "output", "cached", "reasoning")
    assert [metrics["pointsman_answer_tokens_total", "small", kind] for kind in kinds] == [1000, 100, 600, 40]
    assert metrics["pointsman_answers_total", "small", "", "200"] == 1
    assert metrics["pointsman_answer_cost_total", "small"] == pytest.approx(outcome.money)
    assert outcome.reference is not None
    assert outcome.money is not None
    assert metrics["pointsman_saved_total", ""] == pytest.approx(outcome.reference - outcome.money)
    assert as_object(outcome)["answer"]["reference_cost"] == outcome.reference
    assert as_object(outcome)["tenant"] == "acme "
    acted = as_object(outcome._replace(acted=(("hide", "mask"), ("stop", "cut"))))["answer"]["acted"]
    assert acted == [{"decision": "hide", "action": "mask"}, {"decision": "stop", "action": "cut"}]


@pytest.mark.parametrize("prompt", [None, 0, 10])
async def test_cached_tokens_are_never_more_than_those_that_were_asked(prompt):
    """Else the money of an answer would be negative, and a counter would fall."""
    usage = {"input_tokens": prompt, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 90_000}}
    outcome, metrics = await answered(METERED, usage)
    assert outcome.money is not None
    assert outcome.money > 0
    assert (outcome.cached or 0) <= (outcome.prompt or 0)
    assert metrics["pointsman_answer_cost_total", "small"] == outcome.money


async def test_an_answer_that_is_wanted_and_not_shown_is_counted():
    """As behind a gateway that was rendered before the policy had a budget."""
    resources = Resources()
    service = Service(build(parse(METERED), resources), meter=Meter(resources.loads))
    envoy = Envoy(service)
    envoy.request(chat())
    await envoy.settled()
    envoy.response()
    envoy.exchange.closed()
    assert service.failures == ["answer_unseen"]
    assert service.outcomes[0].money is None


async def test_a_reference_that_is_cheaper_is_overspent():
    policy = METERED.replace("default: small", "default: large").replace("meter: on", "meter: on, reference: small")
    outcome, metrics = await answered(policy, CACHED)
    assert outcome.reference is not None
    assert outcome.money is not None
    assert metrics["pointsman_overspent_total", ""] == pytest.approx(outcome.money - outcome.reference)
    assert metrics["pointsman_saved_total", ""] == 0
    assert outcome.tenant is None


async def test_without_prices_there_is_no_reference():
    outcome, metrics = await answered("version: 1\nmodels: {m: {}}\ndefault: m\nsettings: {meter: on}\n", CACHED)
    assert (outcome.money, outcome.reference) == (0, None)
    assert not any(name[0] in ("pointsman_saved_total", "pointsman_answer_cost_total") for name in metrics)
    assert metrics["pointsman_answer_tokens_total", "m", "input"] == 1000


@pytest.mark.parametrize("meter", ["auto", "off"])
async def test_what_nobody_wants_to_know_is_not_looked_at(meter):
    outcome, metrics = await answered(METERED.replace("meter: on", f"meter: {meter}"), CACHED)
    assert (outcome.money, outcome.prompt, outcome.reference) == (None, None, None)
    assert not any(name[0].startswith(("pointsman_answer", "pointsman_first_byte")) for name in metrics)


def test_a_budget_without_a_meter_is_an_error():
    with pytest.raises(PolicyError, match="budget") as caught:
        build(parse(POLICY + "settings: {meter: off}\n"))
    [problem] = caught.value.problems
    assert (problem.code, problem.line) == ("P104", 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("reference: lrage", "unknown model 'lrage'"),
        ("tenant: {header: authorization}", "header: authorization carries a credential"),
        ("tenant: {header: 'x tenant'}", "header"),
        ("tenant: {header: X-Pointsman-Model}", "is ours"),
        ("session: [{}]", r"told by \{header: NAME\} or \{field: PATH\}"),
        ("meter: sometimes", "meter"),
    ],
)
def test_wrong_settings_of_the_meter_are_named(settings, message):
    with pytest.raises(PolicyError, match=message):
        parse(f"version: 1\nmodels: {{large: {{}}}}\ndefault: large\nsettings: {{{settings}}}\n")


async def test_the_engine_that_decided_is_charged_once_be_it_the_candidate(tmp_path):
    """What the worker of a real router does with an outcome; both policies pay from one budget for each tenant."""
    (tmp_path / "live.yaml").write_text("version: 1\nmodels: {small: {}}\ndefault: small\n")
    (tmp_path / "next.yaml").write_text(POLICY)
    loaded = load(tmp_path / "live.yaml", candidate=tmp_path / "next.yaml")
    worker = Worker(loaded, Options(tmp_path / "live.yaml", "127.0.0.1:0", canary=1.0))
    await worker.start("127.0.0.1:0")
    try:
        envoy = Envoy(Service(loaded.engine), response_body_mode=STREAMED)
        envoy.exchange = worker._exchange(envoy)
        envoy.request(chat(), x_tenant="acme")
        await envoy.settled()
        envoy.response()
        last = events({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 10}})
        envoy.say(response_body=ext_proc.HttpBody(body=last, end_of_stream=True))
        request = parse_request(Target("chat"), {"x-tenant": "acme"}, {}, chat())
        assert (await left(loaded.candidate.engine, request))[1] == 1.0
        envoy.exchange.closed()
        assert (await left(loaded.candidate.engine, request))[1] == pytest.approx(1 - (4 + 20) / 100)
        assert worker.common.recorder.outcomes[-1][2].money == pytest.approx(24)
    finally:
        await worker.drain(0, 0)

"""The loader: every problem at once, each at its place, and policies that mean what they say."""

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from config.build import build
from config.clauses import models
from config.document import parse as parse_document
from config.load import check, load, parse
from config.problem import CODES, PolicyError
from config.schema import json_schema
from decisions.decision import Trace
from signals.request import Message, Request

HEAD = """\
version: 1
models:
  small: {price: {input: 1, output: 2}, context: 1000}
  large: {name: org/large, thinking: enable_thinking}
default: small
signals:
  gold: {header: {name: x-tier, in: [gold, 010, no]}}
  beta: {header: {name: x-beta, exists: true}}
"""


def found(text):
    """(code, line, column) of every problem, in file order."""
    return [(p.code, p.line, p.column) for p in check(text, "p.yaml")[1]]


def messages(text):
    return [p.message for p in check(text, "p.yaml")[1]]


def decide(text, model="auto", **headers):
    engine = build(parse(text))
    fields = {"model": model}
    request = Request("chat", b"{}", fields, model, (Message("user", "hi"),), headers)
    trace = engine.settle(request)
    assert isinstance(trace, Trace)
    return trace.decision


def test_a_policy_without_decisions_takes_the_default():
    text = "version: 1\nmodels: {a: {}}\ndefault: a\ndecisions: []\n"
    assert found(text) == []
    assert decide(text).action == "default"


def test_a_plain_scalar_where_text_is_wanted_is_the_text_as_typed():
    text = HEAD + "decisions:\n- {name: g, when: gold, route: large}\n- {name: b, when: beta, route: large}\n"
    assert decide(text, **{"x-tier": "010"}).name == "g"
    assert decide(text, **{"x-tier": "no"}).name == "g"
    assert decide(text, **{"x-tier": "10"}).name is None


def test_names_that_look_like_numbers_work_everywhere():
    text = "version: 1\nmodels: {'7': {}}\ndefault: 7\nsignals: {1: {header: {name: a, exists: true}}}\n"
    text += "decisions:\n- {name: 5, when: 1, route: 7}\n"
    assert found(text) == []
    assert decide(text, a="x").name == "5"


def test_the_models_of_a_policy_carry_names_prices_and_families():
    engine = build(parse(HEAD))
    assert engine.models["small"].name == "small"
    assert engine.models["small"].cost(1_000_000, 500_000) == 2.0
    assert engine.models["large"].thinking == "enable_thinking"


def test_settings_take_units():
    engine = build(parse(HEAD + "settings: {deadline: 80ms, max_body: 2MiB, response_headers: false}\n"))
    assert engine.settings.deadline == pytest.approx(0.08)
    assert engine.settings.max_body == 2 * 2**20
    assert engine.settings.response_headers is False


def test_settings_bound_the_models():
    text = HEAD + "settings: {inference: {threads: 3, queue: 7, batch: 2, hang: 1500ms}}\n"
    given = build(parse(text)).shared.services
    assert given.threads == 3
    assert given.limits == (7, 2, 1.5)
    assert found(HEAD + "settings: {inference: {queue: 0}}\n") == [("P104", 9, 31)]


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("decisions:\n- {name: a, when: bete, route: small}\n", ("R201", 10, 19)),
        ("decisions:\n- {name: a, when: beta, route: smal}\n", ("R202", 10, 32)),
        ("decisions:\n- {name: a, when: {all: [beta, {not: bta}]}, route: small}\n", ("R201", 10, 38)),
        ("decisions:\n- {name: a, when: {all: []}, route: small}\n", ("P107", 10, 25)),
        ("decisions:\n- {name: a, when: {any: beta}, route: small}\n", ("P103", 10, 25)),
        ("decisions:\n- {name: a, when: {any: [beta], all: [beta]}, route: small}\n", ("P106", 10, 19)),
        ("decisions:\n- {name: a, when: {}, route: small}\n", ("P106", 10, 19)),
        ("decisions:\n- {name: a, when: [beta], route: small}\n", ("P103", 10, 19)),
        ("decisions:\n- {name: a, when: {annny: [beta]}, route: small}\n", ("P101", 10, 20)),
        ("decisions:\n- {name: a, when: {at_least: {count: 2, of: [beta]}}, route: small}\n", ("P104", 10, 38)),
        ("decisions:\n- {name: a, when: {at_least: {of: [beta]}}, route: small}\n", ("P102", 10, 20)),
        ("decisions:\n- {name: a, when: {at_least: {count: x, of: [beta]}}, route: small}\n", ("P103", 10, 38)),
        ("decisions:\n- {name: a, when: {at_least: {count: 1, off: [beta]}}, route: small}\n", ("P101", 10, 41)),
        ("decisions:\n- {name: a, when: {at_least: 3}, route: small}\n", ("P103", 10, 30)),
        ("decisions:\n- {name: a, when: {signal: beta, at_least: 0.5}, route: small}\n", ("R205", 10, 44)),
        ("decisions:\n- {name: a, when: {signal: beta, is: x}, route: small}\n", ("R205", 10, 38)),
        ("decisions:\n- {name: a, when: {signal: beta, at_least: no}, route: small}\n", ("P103", 10, 44)),
        ("decisions:\n- {name: a, when: {signal: beta, above: 1}, route: small}\n", ("P101", 10, 34)),
        ("decisions:\n- {name: a, when: {signal: [beta]}, route: small}\n", ("P103", 10, 28)),
        ("decisions:\n- {name: a, when: beta}\n", ("P106", 10, 3)),
        ("decisions:\n- {name: a, when: beta, route: small, respond: {}}\n", ("P106", 10, 3)),
        ("decisions:\n- {name: a, when: beta, respond: {}, set: {max_tokens: 5}}\n", ("P104", 10, 38)),
        ("decisions:\n- {name: a, when: beta, respond: {status: 302}}\n", ("P104", 10, 43)),
        ("decisions:\n- {name: 'a b', when: beta, route: small}\n", ("P104", 10, 10)),
        ("decisions:\n- {name: a, when: beta, route: {pick: [small, lrge]}}\n", ("R202", 10, 47)),
        ("decisions:\n- {name: a, when: beta, route: {pick: [small], weights: {large: 1}}}\n", ("P104", 10, 32)),
        ("decisions:\n- {name: a, when: beta, route: {pick: [small], weights: {small: 0}}}\n", ("P104", 10, 32)),
        (
            "decisions:\n- {name: a, when: beta, route: {pick: [small], by: cheapest, weights: {small: 2}}}\n",
            ("P104", 10, 32),
        ),
        ("decisions:\n- {name: a, when: beta, route: small, set: {headers: {'a b': x}}}\n", ("P104", 10, 44)),
        (
            "decisions:\n- {name: a, when: beta, route: small, set: {headers: {x-pointsman-route: x}}}\n",
            ("P104", 10, 44),
        ),
        ("decisions: [3]\n", ("P103", 9, 13)),
        ("decisions: {}\n", ("P103", 9, 12)),
        ("settings: {deadline: 50}\n", ("P104", 9, 22)),
        ("settings: {max_body: 5MB}\n", ("P104", 9, 22)),
        ("settings: {dedline: 5ms}\n", ("P101", 9, 12)),
    ],
)
def test_each_mistake_is_reported_at_its_place(addition, expected):
    assert expected in found(HEAD + addition)


def test_wrong_kinds_of_documents_are_one_clear_error():
    assert found("- a\n- b\n") == [("P103", 1, 1)]
    assert found("just text\n") == [("P103", 1, 1)]
    assert [p.code for p in check(b"a: \xff\n", "p.yaml")[1]] == ["Y001"]
    assert check(b"\xef\xbb\xbfversion: 1\nmodels: {a: {}}\ndefault: a\n", "p.yaml")[0] is not None


def test_did_you_mean_names_the_nearest():
    assert any("did you mean 'header'?" in m for m in messages("signals: {a: {heder: {}}}\n"))
    assert any("did you mean 'context'?" in m for m in messages("models: {a: {contxt: 5}}\n"))
    assert any("did you mean 'respond'?" in m for m in messages("decisions: [{name: a, respnd: {}}]\n"))
    assert any("did you mean 'exists'?" in m for m in messages("signals: {a: {header: {name: b, exist: true}}}\n"))
    assert any(
        "did you mean 'weights'?" in m for m in messages("decisions: [{name: a, route: {pick: [], weigths: 1}}]\n")
    )


def test_signals_that_depend_on_each_other_in_a_circle_are_named():
    text = HEAD.replace(
        "signals:\n", "signals:\n  a: {score: {sum: {b: 1}, at_least: 1}}\n  b: {score: {sum: {a: 1}, at_least: 1}}\n"
    )
    (problem,) = [p for p in check(text, "p.yaml")[1] if p.severity == "error"]
    assert problem.code == "R204"
    assert "a → b → a" in problem.message or "b → a → b" in problem.message


def test_a_derived_signal_that_names_an_unknown_one_is_reported_at_the_name():
    text = HEAD + "  sum: {score: {sum: {beta: 1, gld: 1}, at_least: 1}}\n"
    assert ("R201", 9, 32) in found(text)


def test_parse_raises_with_the_errors_only():
    with pytest.raises(PolicyError) as caught:
        parse(HEAD + "decisions:\n- {name: a, when: nope, route: small}\n", "p.yaml")
    assert [p.code for p in caught.value.problems] == ["R201"]
    assert str(caught.value).startswith("p.yaml:10:19: R201 unknown signal 'nope'")


def test_load_reads_a_file_and_hashes_its_bytes(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(HEAD)
    policy = load(path)
    assert policy.digest.startswith("sha256:")
    assert policy.folder == tmp_path
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.yaml")


def test_every_code_in_use_is_described_and_every_described_code_is_in_use():
    root = Path(__file__).parents[2]
    sources = [*root.glob("config/*.py"), *root.glob("decisions/*.py"), *root.glob("cli/**/*.py")]
    sources += root.glob("signals/**/*.py")
    texts = [path.read_text() for path in sources if path.name != "problem.py"]
    used = {code for text in texts for code in re.findall(r'"([A-Z]\d{3})"', text)}
    assert used == set(CODES)


def test_the_json_schema_is_valid_and_agrees_with_the_loader():
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    good = {
        "version": 1,
        "models": {"a": {"context": 5}},
        "default": "a",
        "signals": {"s": {"header": {"name": "x", "in": ["y"]}}, "t": {"header": {"name": "z", "exists": True}}},
        "decisions": [
            {"name": "d", "when": {"all": ["s", {"not": {"signal": "t"}}]}, "route": {"pick": ["a"]}},
            {"name": "e", "when": {"at_least": {"count": 1, "of": ["s"]}}, "route": "a"},
        ],
        "settings": {"deadline": "50ms"},
    }
    assert list(validator.iter_errors(good)) == []
    assert check(json.dumps(good))[0] is not None
    for path, value in [
        (("signals", "s"), {"header": {"name": "x", "inn": []}}),
        (("signals", "s"), {"nope": {}}),
        (("settings", "deadline"), "50"),
        (("decisions", 0, "when"), {"all": []}),
        (("extra",), 1),
    ]:
        bad = json.loads(json.dumps(good))
        place = bad
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
        assert list(validator.iter_errors(bad)), path
        assert check(json.dumps(bad))[0] is None, path


STORE = "version: 1\nmodels: {a: {}}\ndefault: a\nsettings: {store: {url: 'redis://h:1/0', password: %s}}\n"


def test_a_secret_is_named_not_written(tmp_path, monkeypatch):
    from config.resources import Resources

    monkeypatch.setenv("STORE_PASSWORD", "from the environment")
    (tmp_path / "password").write_text("from a file\n")
    for written, revealed in [("{env: STORE_PASSWORD}", "from the environment"), ("{file: password}", "from a file")]:
        spec = parse(STORE % written).spec.settings.store
        assert spec.password.reveal(tmp_path) == revealed
        assert revealed not in repr(spec)
    resources = Resources()
    assert resources.store(spec, tmp_path) is resources.store(spec, tmp_path)
    assert resources.store(None, tmp_path) is not resources.store(spec, tmp_path)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("hunter2", ("P103", 4, 52)),
        ("{}", ("P106", 4, 52)),
        ("{env: A, file: b}", ("P106", 4, 52)),
        ("{vault: x}", ("P101", 4, 53)),
    ],
)
def test_a_secret_that_is_written_out_is_an_error(written, expected):
    assert expected in found(STORE % written)


@pytest.mark.parametrize("written", ["{env: NO_SUCH_VARIABLE}", "{file: /no/such/file}"])
def test_a_secret_that_is_not_there_is_one_clear_error(written):
    with pytest.raises(PolicyError, match=r"P108 store: .*(not set|cannot be read)"):
        build(parse(STORE % written))


def test_a_password_in_the_stores_address_is_refused():
    text = "version: 1\nmodels: {a: {}}\ndefault: a\nsettings: {store: {url: 'redis://u:p@h:1/0'}}\n"
    assert ("P104", 4, 25) in found(text)


GUARDED = """\
version: 1
models: {m: {name: m}}
default: m
signals:
  word: {keyword: {any: [x]}}
  tier: {header: {name: tier, exists: true}}
  both: {score: {sum: {word: 1}, at_least: 1}}
decisions:
  - {name: one, when: %s, respond: {%s}%s}
"""


@pytest.mark.parametrize(
    ("when", "respond", "more", "codes"),
    [
        ("word", "", "", ["L311"]),
        ("both", "", "", ["L311"]),
        ("tier", "", "", []),
        ("word", "", ", on_unknown: skip", []),
        ("word", "", ", on_unknown: match", []),
        ("tier", "status: 200", "", []),
        ("tier", "status: 302", "", ["P104"]),
        ("tier", "status: 399", "", ["P104"]),
        ("tier", "headers: {retry-after: '3'}", "", []),
        ("tier", "headers: {content-length: '3'}", "", ["P104"]),
        ("tier", "headers: {x-pointsman-model: '3'}", "", ["P104"]),
        ("tier", "", ", observe: true", []),
    ],
)
def test_guards(when, respond, more, codes):
    _, problems = check(GUARDED % (when, respond, more))
    assert [problem.code for problem in problems if problem.code != "L304"] == codes


OPENED = GUARDED % ("%s", "", ", on_unknown: match") + "%s\n"


@pytest.mark.parametrize(
    ("when", "more", "found"),
    [
        ("word", "paths: [{match: /x}]", [("L314", 10, 1)]),
        ("both", "paths: [{match: /x}]", [("L314", 10, 1)]),  # reads what it combines
        ("tier", "paths: [{match: /x}]", []),
        ("word", "settings: {unread: pass}", [("L314", 10, 12)]),
        ("word", "settings: {unread: refuse}", []),
        ("tier", "paths: [{match: /x*}, {match: /xy}, {match: /y}, {match: /y}]", [("L313", 10, 31), ("L313", 10, 58)]),
        ("tier", "paths: [{match: /x/*}, {match: /x*}, {match: /x}]", [("L313", 10, 46)]),
    ],
)
def test_opened_paths(when, more, found):
    _, problems = check(OPENED % (when, more))
    assert [(p.code, p.line, p.column) for p in problems if p.code != "L304"] == found
    assert {p.severity for p in problems} <= {"warning"}


def test_only_guards_observe():
    _, problems = check(GUARDED.replace("respond: {%s}%s", "route: m, observe: true") % "tier")
    assert [problem.code for problem in problems if problem.code != "L304"] == ["P104"]


def test_a_guard_that_observes_keeps_no_decision_from_its_requests():
    text = GUARDED % ("tier", "", ", observe: true") + "  - {name: two, when: tier, route: m}\n"
    _, problems = check(text)
    assert [problem.code for problem in problems if problem.code != "L304"] == []


def fallbacks(models: str) -> list[tuple[str, str, str]]:
    """(code, what stands at the place, message) of every problem with `models`."""
    text = f"version: 1\nmodels: {models}\ndefault: a\n"
    lines = text.splitlines()
    return [(p.code, lines[p.line - 1][p.column - 1 :], p.message) for p in check(text)[1]]


def test_fallbacks_are_models_and_lead_to_no_circle():
    assert fallbacks("{a: {fallback: [b, c]}, b: {fallback: [c]}, c: {}}") == []
    ((code, at, message),) = fallbacks("{a: {fallback: [b]}, b: {fallback: [x]}}")
    assert (code, at, message) == ("R202", "x]}}", "unknown model 'x'")
    ((code, at, message),) = fallbacks("{a: {fallback: [a]}}")
    assert (code, at, message) == ("R204", "a]}}", "model 'a' cannot be its own fallback")
    ((code, at, message),) = fallbacks("{a: {fallback: [b]}, b: {}, c: {fallback: [b, 1]}, 1: {fallback: [a, c]}}")
    assert code == "R204"
    assert message.startswith("models fall back on each other in a circle: ")
    assert at in ("1]}, 1: {fallback: [a, c]}}", "c]}}")
    ((code, at, _),) = fallbacks("{a: {fallback: [b, b, b, b, b, b, b, b, b]}, b: {}}")
    assert code == "P104"


def test_without_fallbacks_of_their_own_models_are_replaced_by_price_where_the_policy_says_so():
    text = """\
version: 1
models:
  dear: {price: {input: 9, output: 9}}
  none: {}
  same: {price: {input: 3, output: 3}, capabilities: [tools]}
  free: {price: {input: 0}, capabilities: [tools]}
  mute: {price: {input: 1, output: 1}, capabilities: []}
  own: {price: {input: 2, output: 4}, fallback: [mute], capabilities: [tools, vision]}
default: dear
"""
    assert {model.fallback for key, model in models(parse(text).spec).items() if key != "own"} == {()}
    found = models(parse(text + "settings: {fallback: price}\n").spec)
    assert {key: [other.key for other in model.fallback] for key, model in found.items()} == {
        "dear": [],  # none is known to do all that it can
        "none": ["dear"],
        "same": ["free", "own", "dear"],
        "free": ["same", "own", "dear"],
        "mute": ["free", "same", "own", "dear"],
        "own": ["mute"],
    }
    assert found["same"].fallback[0] is found["free"]
    many = ", ".join(f"m{n}: {{price: {{input: {n}, output: 1}}}}" for n in range(12))
    chain = models(parse(f"version: 1\nmodels: {{{many}}}\ndefault: m3\nsettings: {{fallback: price}}\n").spec)
    assert [model.key for model in chain["m3"].fallback] == [f"m{n}" for n in (0, 1, 2, 4, 5, 6, 7, 8)]


def test_fallbacks_of_fallbacks_come_after_ones_own():
    entries = "a: {fallback: [b, c]}, b: {fallback: [d, c]}, c: {fallback: [e]}, d: {}, e: {}"
    spec = parse(f"version: 1\nmodels: {{{entries}}}\ndefault: a\n").spec
    assert [model.key for model in models(spec)["a"].fallback] == ["b", "c", "d", "e"]
    assert list(models(spec)) == ["a", "b", "c", "d", "e"]
    long = ", ".join(f"m{n}: {{fallback: [m{n + 1}]}}" for n in range(3000))
    chain = models(parse(f"version: 1\nmodels: {{{long}, m3000: {{}}}}\ndefault: m0\n").spec)
    assert [model.key for model in chain["m0"].fallback] == [f"m{n}" for n in range(1, 9)]


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ("credential: {header: authorization, from: {secret: s, key: k}}", None),
        ("credential: {header: x-api-key, prefix: 'Key ', from: {secret: s.t-u, key: K_1}}", None),
        ("credential: {from: {secret: s}}", "P102"),
        ("credential: {from: {secret: ../s, key: k}}", "P104"),
        ("credential: {from: {secret: s, key: a/b}}", "P104"),
        ("credential: {header: host, from: {secret: s, key: k}}", "P104"),
        ("credential: {header: x-pointsman-route, from: {secret: s, key: k}}", "P104"),
        ("credential: {header: 'a b', from: {secret: s, key: k}}", "P104"),
        ("credential: {from: {env: KEY}}", None),
        ("credential: {from: {secret: s, key: k, env: KEY_1}}", None),
        ("credential: {from: {key: k, env: KEY}}", "P102"),
        ("credential: {from: {}}", "P102"),
        ("credential: {from: {env: $KEY}}", "P104"),
        ("credential: sk-1", "P103"),
        ("base_path: /", None),
        ("base_path: /api/paas/v4", None),
        ("base_path: api/v4", "P104"),
        ("base_path: /api/", "P104"),
        ("base_path: /a/../b?c", "P104"),
        ("per_try_timeout: 20s", None),
        ("per_try_timeout: 0s", "P104"),
        ("per_try_timeout: 2h", "P104"),
        ("health_check: /health?deep=1", None),
        ("health_check: health", "P104"),
        ("health_check: '/a b'", "P104"),
    ],
)
def test_credentials_base_paths_and_what_is_said_of_a_server(entry, code):
    found = {code for code, _, _ in fallbacks(f"{{a: {{fallback: [b], {entry}}}, b: {{}}}}")}
    assert (code in found) if code else found == set()


def test_the_one_word_that_can_stand_somewhere_is_named_as_a_word():
    with pytest.raises(PolicyError, match="P104 fallback: nothing but `price` can stand here"):
        parse("version: 1\nmodels: {a: {}}\ndefault: a\nsettings: {fallback: cheapest}\n")


def test_a_bearer_token_is_what_authorization_holds():
    source = "from: {secret: s, key: k}"
    entries = f"a: {{credential: {{{source}}}}}, b: {{credential: {{header: X-Key, {source}}}}}"
    found = models(parse(f"version: 1\nmodels: {{{entries}}}\ndefault: a\n").spec)
    assert (found["a"].credential.header, found["a"].credential.prefix) == ("authorization", "Bearer ")
    assert (found["b"].credential.header, found["b"].credential.prefix) == ("x-key", "")


WRONG = """\
version: 1
models:
  m: {url: ftp://x, base_path: x y, price: 3, credential: {header: a b, prefix: " x", from: {secret: A, key: a/b}}}
default: m
signals:
  r: {remote: {url: x, model: m}}
  i: {identity: {role: "a\\nb", headers: {user: x-user}}}
  k: {keyword: {any: word}}
decisions:
  - {name: a b, route: m}
paths: [{match: audio}, 3]
settings: {session: [3], fail_open: maybe, max_values: many, store: {url: x}, store: {url: http://x}}
"""


def test_messages_say_what_is_needed_in_plain_words() -> None:
    text = WRONG.replace(", store: {url: http://x}", "")
    said = messages(text)
    for words in (
        "url: a URL is needed, such as http://host:8000",
        "base_path: a path is needed that begins with /",
        "price: a mapping is needed, with input, output",
        "header: a header's name is needed",
        "prefix: printable ASCII is needed",
        "secret: a name as in Kubernetes is needed",
        "key: letters, digits, `.`, `_` and `-` are needed",
        "url: a URL is needed, such as http://host:8000 or grpc://host:8001",
        "role: 1 to 200 characters are needed",
        "any: a list is needed",
        "name: 1 to 63 letters, digits",
        "match: a path without escapes is needed",
        "paths: a mapping is needed, with match, to",
        "session: a mapping is needed, with header, field",
        "fail_open: true or false is needed",
        "max_values: a whole number above 0 is needed",
        "url: a URL is needed, such as redis://host:6379/0",
    ):
        assert any(message.startswith(words) for message in said), words
    for message in said:
        assert re.search(r"Spec\b|Params\b|instance of|pattern|dictionary|\[\^|\^\[|\$'", message) is None, message


def test_every_pattern_has_words_for_those_who_miss_it() -> None:
    def walk(node, said):
        if isinstance(node, list):
            return [found for each in node for found in walk(each, said)]
        if not isinstance(node, dict):
            return []
        said = said or "patternErrorMessage" in node
        here = [node["pattern"]] if isinstance(node.get("pattern"), str) and not said else []
        return here + [found for key, each in node.items() for found in walk(each, said and key == "anyOf")]

    assert walk(json_schema(), False) == []


@pytest.mark.parametrize("text", ["version: 1\n\tmodels: {}\n", HEAD + "\tx: {}\n", "a:\n\t- b\n", "a: 1\n \tx: 1\n"])
def test_a_tab_is_called_a_tab(text: str) -> None:
    [message] = messages(text)
    assert message.startswith("not valid YAML: a tab stands here")


RULES = """\
version: 1
models: {small: {}, large: {}}
default: small
signals:
  code: {keyword: {any: [traceback]}}
  gold: {header: {name: x-tier, in: [gold]}}
  effort: {score: {sum: {worth: 0.6, gold: 0.4}, at_least: 0.5}}
rules:
  worth: {all: [code, gold]}
  any-way: {any: [{signal: worth}, effort]}
  5: gold
decisions:
  - {name: one, when: {all: [any-way, {not: worth}]}, route: large}
  - {name: two, when: {all: [any-way, 5]}, route: large}
"""


def test_a_rules_name_stands_wherever_a_signals_name_stands():
    assert found(RULES) == []
    data = parse_document(RULES.replace(" 5", " '5'"), "p").data
    assert [error.message for error in Draft202012Validator(json_schema()).iter_errors(data)] == []
    policy = parse(RULES)
    assert set(policy.named) == {"worth", "5", "any-way"}
    assert policy.order.index("worth") < policy.order.index("effort") < policy.order.index("any-way")
    assert decide(RULES, **{"x-tier": "gold"}).name is None
    engine = build(policy)
    asked = Request("chat", b"{}", {}, "auto", (Message("user", "a traceback"),), {"x-tier": "gold"})
    trace = engine.settle(asked)
    assert trace.decision.name == "two"
    assert "effort" not in trace.readings
    assert engine.settle(asked, everything=True).readings["effort"].score == 1.0
    assert trace.readings["any-way"].matched is True


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("worth: {all: [code, gold]}", "worth: {all: [any-way, gold]}", ("R204", "any-way")),
        (
            "worth: {all: [code, gold]}",
            "worth: {not: worth}",
            ("R204", "rules depend on each other in a circle: worth"),
        ),
        ("worth: {all: [code, gold]}", "worth: {all: [code, effort]}", ("R204", "signals and rules depend")),
        ("  5: gold", "  gold: code", ("R203", "rule 'gold' has the name of a signal")),
        ("  5: gold", "  5: glod", ("R201", "unknown signal 'glod' (did you mean 'gold'?)")),
        ("any-way, 5]", "any-wya, 5]", ("R201", "unknown signal 'any-wya' (did you mean 'any-way'?)")),
        ("{worth: 0.6,", "{wroth: 0.6,", ("R201", "unknown signal 'wroth' (did you mean 'worth'?)")),
        ("{signal: worth}", "{signal: worth, at_least: 0.5}", ("R205", "rule 'worth' has no score to test")),
        ("{signal: worth}", "{signal: worth, is: x}", ("R205", "rule 'worth' has no label to test")),
        ("  5: gold", "  5: {all: []}", ("P107", "empty all")),
        ("  5: gold", "  5: [gold]", ("P103", "a rule is a signal's name")),
        ("  5: gold", "  5: gold\n  more: code", ("L304", "rule 'more' is used by no decision")),
    ],
)
def test_what_can_be_wrong_with_named_rules(old, new, expected):
    problems = [(p.code, p.message) for p in check(RULES.replace(old, new), "p.yaml")[1]]
    assert any(code == expected[0] and expected[1] in message for code, message in problems), problems
    assert not [code for code, _ in problems if code not in (expected[0], "R201", "L304")]


def test_rules_that_are_no_mapping():
    assert found(RULES.split("rules:")[0] + "rules: [a]\n")[0][0] in ("P103", "R201")


def chain(length):
    rules = "".join(f"  r{n}: {{not: r{n - 1}}}\n" for n in range(1, length))
    return HEAD + f"rules:\n  r0: gold\n{rules}decisions:\n  - {{name: d, when: r{length - 1}, route: large}}\n"


def test_names_build_on_each_other_only_so_deep():
    assert decide(chain(50), **{"x-tier": "gold"}).name is None
    assert decide(chain(50)).name == "d"
    (message,) = [m for m in messages(chain(5000)) if "levels deep" in m]
    assert "100 is the most" in message


def test_what_builds_on_each_other_is_checked_and_decided_in_the_time_that_its_length_takes():
    rules = "".join(f"  r{n}: {{any: [{{all: [r{n - 1}, gold]}}, {{not: {{not: r{n - 1}}}}}]}}\n" for n in range(1, 25))
    text = HEAD + f"rules:\n  r0: beta\n{rules}decisions:\n  - {{name: d, when: r24, respond: {{}}}}\n"
    assert [code for code, _, _ in found(text)] == ["L305"]
    assert decide(text, **{"x-beta": "1"}).name == "d"
    assert decide(text).name is None


TIED = "signals: {a: {keyword: {any: [a]}}, b: {keyword: {any: [b]}}}\ndecisions:\n"


@pytest.mark.parametrize(
    ("decisions", "wrong"),
    [
        ("- {name: a, when: a, route: small}\n- {name: b, when: b, route: large, tied: true}\n", None),
        ("- {name: b, when: b, route: large, tied: true}\n", "neither can be a guard"),
        ("- {name: a, when: a, respond: {}}\n- {name: b, when: b, route: large, tied: true}\n", "neither can be"),
        ("- {name: a, when: a, route: small}\n- {name: b, when: b, respond: {}, tied: true}\n", "neither can be"),
        ("strategy: best", "compares all decisions"),
    ],
)
def test_tied_needs_a_decision_above_that_can_be_compared(decisions, wrong):
    head = "version: 1\nmodels: {small: {}, large: {}}\ndefault: small\n"
    if decisions == "strategy: best":
        head, decisions = (
            head + decisions + "\n",
            "- {name: a, when: a, route: small}\n- {name: b, when: b, route: large, tied: true}\n",
        )
    errors = [p.message for p in check(head + TIED + decisions, "p.yaml")[1] if p.severity == "error"]
    assert [wrong in message for message in errors] == ([] if wrong is None else [True])

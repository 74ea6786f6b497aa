"""Silent mistakes are found at their places, and what only looks like one is left alone."""

from pathlib import Path

import pytest

from config.build import build
from config.load import check, parse
from config.problem import PolicyError
from tests import yamls

ROOT = Path(__file__, "../../..").resolve()

MODELS = "{a: {price: {input: 1, output: 2}}, b: {price: {input: 1, output: 2}}}"


def found(text: str) -> list[tuple[str, str]]:
    """(code, what stands at the place) of every problem, in file order."""
    lines = text.splitlines()
    return [(p.code, lines[p.line - 1][p.column - 1 :]) for p in check(text, "p.yaml")[1]]


def policy(
    *, models: str = MODELS, auto: str = "[auto]", signal: str = "{keyword: {any: [x]}}", decision: str = ""
) -> str:
    decision = decision or "{name: d, when: s, route: b}"
    return (
        f"version: 1\nmodels: {models}\ndefault: a\nauto: {auto}\nsignals:\n  s: {signal}\n"
        f"decisions:\n  - {decision}\n  - {{name: all-use, when: s, route: b}}\n"
    )


def codes(text: str) -> list[tuple[str, str]]:
    """Those problems that are about mistakes; the policies here are short and say the same twice."""
    return [(code, at) for code, at in found(text) if code not in ("L303", "L302", "L305", "L306")]


SIGNALS = [
    # always
    ("{jailbreak: {at_least: 0}}", "L322", "0}}"),
    ("{tokens: {at_least: 0}}", "L322", "0}}"),
    ("{conversation: {tools: {at_least: 0}}}", "L322", "0}}}"),
    ("{conversation: {messages: {role: user, at_least: 0}}}", "L322", "0}}}"),
    ("{difficulty: {at_most: 1}}", "L322", "1}}"),
    ("{difficulty: {at_least: 0, at_most: 1.0}}", "L322", "0, at_most: 1.0}}"),
    ("{reask: {at_least: 0.0}}", "L322", "0.0}}"),
    ("{similar: {to: [hello], at_least: 0}}", "L322", "0}}"),
    ("{contrast: {toward: [a], away: [b], margin: -1}}", "L322", "-1}}"),
    ("{domain: {is: [math], at_least: 0}}", "L322", "0}}"),
    ("{structure: {count: questions, at_least: 0}}", "L322", "0}}"),
    ("{structure: {exists: {regex: 'x*'}}}", "L322", "'x*'}}}"),
    ("{load: {model: a, error_rate: {at_most: 1}}}", "L322", "1}}}"),
    ("{regex: {any: [fine, '.*']}}", "L322", "'.*']}}"),
    ("{regex: {any: ['(foo)?']}}", "L322", "'(foo)?']}}"),
    ("{regex: {any: ['|foo']}}", "L322", "'|foo']}}"),
    ("{header: {name: x-a, matches: '.*'}}", "L322", "'.*'}}"),
    ("{sample: {percent: 100}}", "L322", "100}}"),
    ("{time: {days: [mon, tue, wed, thu, fri, sat, sun]}}", "L322", "[mon, tue, wed, thu, fri, sat, sun]}}"),
    ('{time: {between: ["00:00", "24:00"]}}', "L322", '["00:00", "24:00"]}}'),
    # never
    ("{sample: {percent: 0}}", "L323", "0}}"),
    ("{conversation: {turns: {at_most: -1}}}", "L323", "-1}}}"),
    ("{load: {model: a, error_rate: {at_least: 5}}}", "L323", "5}}}"),
    ("{header: {name: 'x-tier:', exists: true}}", "L323", "'x-tier:', exists: true}}"),
    ("{header: {name: 'x tier', exists: true}}", "L323", "'x tier', exists: true}}"),
    ("{header: {name: x-tier, equals: 'gold '}}", "L323", "'gold '}}"),
    ("{sample: {percent: 5, key: {header: 'x-user:'}}}", "L323", "'x-user:'}}}"),
    ("{keyword: {all: [x, y], none: [Y]}}", "L323", "[Y]}}"),
    # patterns and expressions
    ("{header: {name: x-tier, in: [gold, 'plat*']}}", "L321", "'plat*']}}"),
    ("{header: {name: x-tier, equals: '*'}}", "L321", "'*'}}"),
    (r"{keyword: {any: [x, '\bfoo\b']}}", "L328", r"'\bfoo\b']}}"),
    ("{keyword: {any: ['foo.*bar']}}", "L328", "'foo.*bar']}}"),
    ("{keyword: {any: ['(?i)foo']}}", "L328", "'(?i)foo']}}"),
    ("{keyword: {any: ['^foo']}}", "L328", "'^foo']}}"),
    ("{keyword: {any: ['(foo|bar)']}}", "L328", "'(foo|bar)']}}"),
    (r"{keyword: {any: ['order \d+']}}", "L328", r"'order \d+']}}"),
    ("{keyword: {any: ['refactor*']}}", "L328", "'refactor*']}}"),
    ("{regex: {any: ['/foo/i']}}", "L328", "'/foo/i']}}"),
    ("{identity: {role: r, users: ['*@example.com']}}", "L321", "'*@example.com']}}"),
    ("{identity: {role: r, groups: [a], headers: {groups: 'x-groups:'}}}", "L323", "'x-groups:'}}}"),
    # the rest
    ("{keyword: {any: [Refund, x, refund]}}", "L330", "refund]}}"),
    ("{time: {days: [mon], timezone: Etc/GMT+5}}", "L334", "Etc/GMT+5}}"),
    ("{time: {days: [mon], timezone: EST}}", "L334", "EST}}"),
    ("{header: {name: x-tenant, equals: '${TENANT}'}}", "L320", "'${TENANT}'}}"),
]


@pytest.mark.parametrize(("signal", "code", "at"), SIGNALS, ids=[signal for signal, _, _ in SIGNALS])
def test_a_signal_that_does_not_mean_what_it_says(signal: str, code: str, at: str) -> None:
    assert codes(policy(signal=signal)) == [(code, at)]


FINE = [
    "{jailbreak: {at_least: 0.01}}",
    "{language: {is: [en], at_least: 0}}",
    "{tokens: {at_least: 1}}",
    "{tokens: {at_most: 0}}",
    "{conversation: {tools: {at_most: 0}, stream: true}}",
    "{header: {name: X-Tenant-Tier, exists: true}}",
    "{header: {name: accept, in: ['*/*', 'text/*']}}",
    "{header: {name: ':authority', equals: models.internal}}",
    "{sample: {percent: 0.5}}",
    r"{regex: {any: ['^\s*$', '(?i)\bword\b', 'a|b', '/etc/passwd', '\$\{jndi:', '\$\{\w+\}']}}",
    r"{keyword: {any: ['C++', 'US$', '\begin{document}', '${jndi:ldap', '{{ system }}', 'f*ck', 'SELECT *']}}",
    "{keyword: {any: ['a|b', 'what?']}}",
    "{keyword: {any: [Refund, refund], case_sensitive: true}}",
    "{keyword: {any: ['...', '(c)', '[x]', '*.*', '.env', 'e.g. this']}}",
    "{similar: {to: ['Fill in ${NAME}'], at_least: 0.6}}",
    '{time: {between: ["00:00", "24:00"], days: [sat, sun]}}',
    "{time: {days: [mon], timezone: America/New_York}}",
    "{structure: {count: questions, at_most: 0}}",
]


@pytest.mark.parametrize("signal", FINE)
def test_a_signal_that_means_what_it_says(signal: str) -> None:
    assert codes(policy(signal=signal)) == []


URLS = {
    "https://api.z.ai/api/paas/v4": "/api/paas/v4/v1/chat/completions",
    "https://generativelanguage.googleapis.com/v1beta/openai": "/v1beta/openai/v1/chat/completions",
    "https://generativelanguage.googleapis.com/v1beta/openai/": "/v1beta/openai/v1/chat/completions",
    "http://x/v1/chat/completions": "leave /chat/completions out",
    "http://x/v1/messages": "leave /messages out",
    "http://x/v1/v1": "so write no path",
    "http://x/V1": "so write no path",
    "http://x/v1/chat": "leave /chat out",
    "http://x/api/v2": "/api/v2/v1/chat/completions",
    "https://x.openai.azure.com/openai?api-version=2024": "a query cannot stand here",
    "https://user:key@x/v1": "credentials cannot stand here",
}


@pytest.mark.parametrize(("url", "said"), URLS.items())
def test_a_url_whose_calls_would_go_astray(url: str, said: str) -> None:
    text = policy(models=f'{{a: {{url: "{url}"}}, b: {{}}}}')
    assert codes(text) == [("L327", f'"{url}"}}, b: {{}}}}')]
    assert said in check(text)[1][0].message


BASES = {
    ("https://api.z.ai/api", "/api/paas/v4"): "/api/api/paas/v4/chat/completions",
    ("https://api.z.ai/api/paas/v4/v1", "/v1"): "/api/paas/v4/v1/chat/completions",
    ("http://x/v1", "/v4"): "leave /v1 out of one of them",
    ("http://x", "/v1/chat/completions"): "leave /chat/completions out",
}


@pytest.mark.parametrize(("url", "base"), BASES)
def test_a_base_path_that_would_double(url: str, base: str) -> None:
    text = policy(models=f'{{a: {{url: "{url}", base_path: {base}}}, b: {{}}}}')
    (problem,) = [problem for problem in check(text)[1] if problem.code == "L327"]
    assert BASES[url, base] in problem.message
    at = text.splitlines()[problem.line - 1][: problem.column]
    assert at.endswith("base_path: /" if base.endswith("completions") else 'url: "')


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://api.z.ai", "/api/paas/v4"),
        ("https://api.z.ai/api/paas/v4", "/api/paas/v4"),
        ("https://models.github.ai/inference", "/"),
        ("http://x/proxy", "/v1"),
        ("http://x/proxy/v1", "/v1"),
        ("https://generativelanguage.googleapis.com", "/v1beta/openai"),
    ],
)
def test_a_base_path_that_is_written_once_or_twice(url: str, base: str) -> None:
    assert codes(policy(models=f'{{a: {{url: "{url}", base_path: {base}}}, b: {{}}}}')) == []


def test_what_is_said_of_a_url_can_be_written() -> None:
    (problem,) = [p for p in check(policy(models='{a: {url: "https://x/api/paas/v4"}, b: {}}'))[1] if p.code == "L327"]
    assert "write `base_path: /api/paas/v4`" in problem.message


def test_a_fallback_that_stands_there_twice() -> None:
    text = policy(models="{a: {fallback: [b, c, b]}, b: {}, c: {}}")
    assert [(code, at[:1]) for code, at in codes(text)] == [("L330", "b")]


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "http://x/",
        "http://x:8000/v1",
        "http://x/v1/",
        "https://api.groq.com/openai/v1",
        "https://api.groq.com/openai",
        "https://openrouter.ai/api/v1",
        "https://api.cloudflare.com/client/v4/accounts/7/ai/v1",
        "https://api.cloudflare.com/client/v4/accounts/7/ai",
        "https://dashscope.aliyuncs.com/compatible-mode/v1",
    ],
)
def test_a_url_whose_calls_arrive(url: str) -> None:
    assert codes(policy(models=f'{{a: {{url: "{url}"}}, b: {{}}}}')) == []


TEMPLATES = [
    "${MODEL}",
    "${MODEL:-small}",
    "${{ secrets.MODEL }}",
    "{{ .Values.model }}",
    "{{model}}",
    "$(MODEL_NAME)",
    "$MODEL_NAME",
    "$TOKEN",
    "%MODEL_NAME%",
    "%REQ(x-model)%",
    "os.environ/MODEL",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_are_never_filled_in(template: str) -> None:
    models = f'{{a: {{name: "x-{template}"}}, b: {{}}}}'
    assert codes(policy(models=models)) == [("L320", models.removeprefix("{a: {name: "))]
    decision = f'{{name: d, when: s, route: b, set: {{headers: {{authorization: "Bearer {template}"}}}}}}'
    assert codes(policy(decision=decision)) == [("L320", f'"Bearer {template}"}}}}}}')]
    decision = f'{{name: d, when: s, on_unknown: match, respond: {{message: "Ask {template}"}}}}'
    assert codes(policy(decision=decision)) == [("L320", f'"Ask {template}"}}}}')]


@pytest.mark.parametrize(
    "text",
    [
        "costs $5",
        "use {braces} or {{}}",
        "$ and $x",
        "a <b> c",
        "US$100",
        "$1 {{ 2 + 2 }}",
        "100% of 50%",
        "$US",
        "a %20b%20",
    ],
)
def test_what_is_no_template(text: str) -> None:
    decision = f'{{name: d, when: s, on_unknown: match, respond: {{message: "{text}"}}}}'
    assert codes(policy(decision=decision)) == []


def test_auto_takes_no_patterns() -> None:
    assert codes(policy(auto='[auto, "gpt-*"]')) == [("L321", '"gpt-*"]')]
    assert codes(policy(auto='[auto, "^gpt"]')) == [("L321", '"^gpt"]')]
    assert codes(policy(auto='[auto, "/gpt/"]')) == [("L321", '"/gpt/"]')]
    assert codes(policy(auto='[auto, "gpt-[a-z]"]')) == [("L321", '"gpt-[a-z]"]')]
    assert codes(policy(auto="[auto, router, auto]")) == [("L330", "auto]")]
    assert codes(policy(auto="[auto, router, AUTO]")) == [("L330", "AUTO]")]
    assert codes(policy(auto='["MoM[1M]", "auto:latest", pointsman/auto]')) == []
    assert codes(policy(models='{a: {name: "gpt-*"}, b: {}}')) == [("L321", '"gpt-*"}, b: {}}')]


@pytest.mark.parametrize(
    ("decision", "code", "at"),
    [
        ("{name: d, when: {signal: s, at_least: 0}, route: b}", "L322", "0}, route: b}"),
        ("{name: d, when: {all: [s, {not: {signal: s, at_most: 1}}]}, route: b}", "L322", "1}}]}, route: b}"),
        ("{name: d, when: {signal: s, at_least: 1.5}, route: b}", "L323", "1.5}, route: b}"),
        ("{name: d, when: s, route: {pick: [a, b, a]}}", "L331", "a]}}"),
        ("{name: d, when: s, route: {pick: [a, b], weights: {a: 0}}}", "L331", "0}}}"),
        ("{name: d, when: s, route: {pick: [a, b], weights: {a: 90}}}", "L331", "{a: 90}}}"),
        ('{name: d, when: s, on_unknown: match, respond: {message: " "}}', "L333", '" "}}'),
        ("{name: d, when: s, on_unknown: match, override: true, respond: {}}", "L332", "true, respond: {}}"),
    ],
)
def test_a_decision_that_does_not_do_what_it_says(decision: str, code: str, at: str) -> None:
    text = policy(signal="{difficulty: {at_least: 0.5}}", decision=decision)
    mine = [(c, place) for c, place in codes(text) if c not in ("L301",)]
    assert mine == [(code, at)]


def test_set_on_models_without_the_switch() -> None:
    models = "{a: {thinking: none}, b: {thinking: none}, c: {}}"
    decision = "{name: d, when: s, route: b, set: {reasoning_effort: high}}"
    assert codes(policy(models=models, decision=decision)) == [("L332", "high}}")]
    decision = "{name: d, when: s, route: {pick: [a, b]}, set: {thinking: true}}"
    assert codes(policy(models=models, decision=decision)) == [("L332", "true}}")]
    decision = "{name: d, when: s, route: {pick: [a, c]}, set: {thinking: true, max_tokens: 5}}"
    assert codes(policy(models=models, decision=decision)) == []


@pytest.mark.parametrize(
    ("model", "mend"),
    [
        ('url: "https://x.openai.azure.com/openai/deployments/gpt"', "`base_path: /openai/v1`, `name: gpt`"),
        ('name: gpt, url: "https://x.openai.azure.com/OpenAI/deployments/gpt/"', "`base_path: /openai/v1`"),
    ],
)
def test_the_url_of_one_of_azures_deployments(model: str, mend: str) -> None:
    found = [problem for problem in check(policy(models=f"{{a: {{{model}}}, b: {{}}}}"))[1] if problem.code == "L327"]
    assert [problem.message.endswith(f"write `url: https://x.openai.azure.com`, {mend}") for problem in found] == [True]


def test_a_try_that_nobody_takes_over() -> None:
    decision = "{name: d, when: s, route: b}"
    models = "{a: {fallback: [b], per_try_timeout: 20s}, b: {%sper_try_timeout: 9s}, c: {}}"
    assert codes(policy(models=models % "", decision=decision)) == [("L332", "9s}, c: {}}")]
    assert codes(policy(models=models % "fallback: [c], ", decision=decision)) == []
    found = check(policy(models=models % "", decision=decision) + "settings: {fallback: price}\n")[1]
    unpriced = [one.message.partition(",")[0] for one in found if one.code == "L326"]
    assert unpriced == [f"model {key!r} has no price" for key in "abc"]
    assert "L332" not in {one.code for one in found}


BUDGET = "{budget: {header: x-tenant, limit: 5}}"


def test_a_budget_that_a_missing_header_escapes() -> None:
    assert codes(policy(signal=BUDGET)) == [("L325", "x-tenant, limit: 5}}")]
    held = policy(signal=BUDGET, decision="{name: d, when: s, on_unknown: match, route: b}")
    assert codes(held.replace("{name: all-use, when: s,", "{name: all-use, when: s, on_unknown: skip,")) == []
    watched = policy(
        signal=BUDGET + "\n  t: {header: {name: X-Tenant, exists: false}}", decision="{name: d, when: t, respond: {}}"
    )
    assert codes(watched) == []
    assert codes(policy(signal="{budget: {limit: 5}}")) == []
    assert ("L323", "'x-tenant:', limit: 5}}") in codes(policy(signal="{budget: {header: 'x-tenant:', limit: 5}}"))
    everything = "{budget: {limit: 5, remaining: {at_most: 1}}}"
    assert codes(policy(signal=everything)) == [("L322", "1}}}")]


def test_money_needs_prices() -> None:
    assert codes(policy(models="{a: {}, b: {}}", signal="{budget: {limit: 5}}")) == [("L326", "5}}")]
    assert codes(policy(models="{a: {price: {input: 1}}, b: {}}", signal="{budget: {limit: 5}}")) == [("L326", "{}}")]
    free = "{a: {price: {input: 1}}, b: {price: {input: 0}}}"
    assert codes(policy(models=free, signal="{budget: {limit: 5}}")) == []
    cheapest = "{name: d, when: s, route: {pick: [a, b], by: cheapest}}"
    assert codes(policy(models="{a: {price: {input: 1}}, b: {}}", decision=cheapest)) == [("L326", "cheapest}}")]
    assert codes(policy(models=free, decision=cheapest)) == []


def test_a_store_that_nobody_waits_for() -> None:
    text = policy() + 'settings: {deadline: 10ms, store: {url: "redis://x:1"}}\n'
    assert codes(text) == [("L335", '{url: "redis://x:1"}}')]
    assert codes(policy() + 'settings: {store: {url: "redis://x:1"}}\n') == []


def test_an_empty_secret_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "")
    text = policy() + 'settings: {store: {url: "redis://x:1", password: {env: STORE_PASSWORD}}}\n'
    with pytest.raises(PolicyError, match="STORE_PASSWORD is empty"):
        build(parse(text.replace("  - {name: all-use, when: s, route: b}\n", "")))


def test_the_mistakes_of_a_gateway_that_was_run() -> None:
    text = """\
version: 1
auto: [auto, "claude-*"]
models:
  a: {name: "${MODEL_NAME}", url: "https://api.z.ai/api/paas/v4"}
  b: {name: b, url: "https://generativelanguage.googleapis.com/v1beta/openai"}
default: a
signals:
  j: {jailbreak: {at_least: 0}}
  k: {keyword: {any: [x]}}
decisions:
  - {name: j, when: j, respond: {status: 403, message: no}}
  - {name: r, when: k, route: b, set: {headers: {authorization: "Bearer ${OPENAI_API_KEY}"}}}
"""
    places = [(p.line, p.column, p.code) for p in check(text)[1]]
    assert places == [
        (2, 14, "L321"),
        (4, 13, "L320"),
        (4, 35, "L327"),
        (5, 21, "L327"),
        (8, 29, "L322"),
        (11, 24, "L311"),
        (12, 65, "L320"),
    ]


def test_the_examples_and_what_is_shipped_are_clean() -> None:
    files = [f for f in (ROOT / "examples").glob("*.yaml") if not f.name.endswith(".cases.yaml")]
    files.append(ROOT / "k8s/base/policy.yaml")
    assert len(files) > 8
    for file in files:
        assert check(file.read_text(), str(file))[1] == []
    chart = yamls.load((ROOT / "k8s/chart/values.yaml").read_text())["policy"]
    assert check(chart if isinstance(chart, str) else yamls.dump(chart))[1] == []


SCORED = """\
version: 1
models: {a: {price: {input: 1}}, b: {price: {input: 1}}}
default: a
signals:
  word: {keyword: {any: [x]}}
  long: {tokens: {at_least: 10}}
  hard: {difficulty: {at_least: 0.5}}
  s: {score: %s}
  t: {score: {sum: {s: -1, r: 2}, at_least: %s}}
rules:
  r: {any: [word, long]}
decisions:
  - {name: d, when: {all: [s, t, hard, r]}, route: b}
  - {name: e, when: {any: [{signal: s, is: easy}, t]}, route: b}
"""


@pytest.mark.parametrize(
    ("score", "least", "expected"),
    [
        ("{sum: {word: 1, hard: 1}, at_least: 0}", "1", ("L322", "0}}")),
        ("{sum: {word: 1, hard: 1}, at_least: 2.1}", "1", ("L323", "2.1}}")),
        ("{sum: {long: 1}, at_least: 0}", "1", ("L322", "0}}")),
        ("{sum: {long: 1}, of: matches, at_least: 1.5}", "1", ("L323", "1.5}}")),
        ("{sum: {word: -0.5, hard: 1}, of: matches, at_least: -0.5}", "1", ("L322", "-0.5}}")),
        ("{sum: {word: 1, hard: 1}, at_least: 1}", "-2", ("L322", "-2}}")),  # the sum of a score and a rule
        ("{sum: {word: 1, hard: 1}, at_least: 1}", "2.5", ("L323", "2.5}}")),
        (
            "{sum: {word: 1}, at_least: 1, bands: {easy: {below: 0.5}, mid: {below: 2}, hard: {}}}",
            "1",
            ("L323", "{}}}}"),
        ),
        ("{sum: {word: 1}, at_least: 1, bands: {bad: {below: 0}, easy: {}}}", "1", ("L323", "{below: 0}, easy: {}}}}")),
        ("{sum: {word: 1}, at_least: 1, bands: {low: 0, esay: 0.5}}", "1", ("L323", "easy}, t]}, route: b}")),
    ],
)
def test_sums_that_always_or_never_hold(score: str, least: str, expected: tuple[str, str]) -> None:
    assert [one for one in found(SCORED % (score, least)) if one[0] in ("L322", "L323")] == [expected]


def test_an_exclusive_score_has_the_labels_of_its_signals() -> None:
    text = SCORED % ("{sum: {word: 1, hard: 1}, exclusive: softmax, at_least: 1.1}", "1")
    problems = [one for one in found(text) if one[0] in ("L322", "L323")]
    assert problems == [("L323", "1.1}}"), ("L323", "easy}, t]}, route: b}")]
    fine = SCORED % ("{sum: {word: 1, hard: 1}, exclusive: softmax, default: easy}", "1")
    assert [code for code, _ in found(fine) if code in ("L322", "L323")] == []


def test_sums_that_may_or_may_not_hold_are_left_alone() -> None:
    for score in (
        "{sum: {long: 1, word: 1}, at_least: 5000, bands: {easy: {below: 1}, hard: {}}}",
        "{sum: {long: -1, word: 1}, at_least: -5000, bands: {easy: 0.0}}",
        "{sum: {hard: 1, word: 1}, of: matches, at_least: 2, bands: {easy: {below: 2}, hard: {}}}",
    ):
        assert [code for code, _ in found(SCORED % (score, "1")) if code in ("L322", "L323")] == []


SPENT = """\
version: 1
models: {a: {price: {input: 1}}, b: {price: {input: 1}}}
default: a
signals:
  code: {keyword: {any: [x]}}
  money: {budget: {header: x-team, limit: 5}}
  heavy: {score: {sum: {money: 0.6, code: 0.4}, at_least: 0.5}}
rules:
  spent: {any: [heavy, code]}
decisions:
  - {name: g, when: spent, respond: {status: 429}}
  - {name: d, when: code, route: b}
"""


def test_a_budget_within_a_score_is_found_and_named() -> None:
    problems = {p.code: p.message for p in check(SPENT, "p.yaml")[1]}
    assert "for which 'money' (in 'heavy') cannot be read passes" in problems["L311"]
    assert "without the header 'x-team' escapes: nobody pays, and decision 'g' is skipped" in problems["L325"]

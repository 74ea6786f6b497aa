"""Rules that are written as sentences: the message says how a policy writes them."""

from __future__ import annotations

import pytest

from config.load import check

POLICY = """\
version: 1
models: {{small: {{}}}}
default: small
signals: {{code: {{keyword: {{any: [x]}}}}, hard: {{keyword: {{any: [y]}}}}}}
decisions:
  - {{name: a, when: {when}, route: small}}
"""


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("code and hard", "a rule is written as {all: [code, hard]}"),
        ("code OR hard or code", "a rule is written as {any: [code, hard, code]}"),
        ("not code", "a rule is written as {not: code}"),
        ("'!code'", "a rule is written as {not: code}"),
        ("code && hard", "a rule is written as {all: [code, hard]}"),
        ("code and hard or code", "a rule is written as {any: [{all: [code, hard]}, code]}"),
        ("code and (hard or not code)", "a rule is written as {all: [code, {any: [hard, {not: code}]}]}"),
        ("code > 0.5", "a rule is written as {signal: code, at_least: 0.5}"),
        ("hard<=3 or code", "a rule is written as {any: [{signal: hard, at_most: 3}, code]}"),
        ("code == python", "a rule is written as {signal: code, is: python}"),
        ("true", "a decision that takes every request has no `when`"),
        ("kode", "did you mean 'code'"),
    ],
)
def test_a_rule_that_is_a_sentence_is_told_as_it_is_written(when, said):
    _, problems = check(POLICY.format(when=when))
    (message,) = [problem.message for problem in problems if problem.code == "R201"]
    assert said in message
    if "is written as" in message:  # what is advised is a rule
        advised = message.partition("is written as ")[2]
        assert "P" not in {problem.code[0] for problem in check(POLICY.format(when=advised))[1]}


@pytest.mark.parametrize(
    "when",
    [
        "(" * 199,
        "and",
        "code and",
        "code xor hard",
        "a b",
        "(code or hard",
        "code or hard)",
        "code >",
        "'> 5'",
        "() and a",
    ],
)
def test_what_is_no_such_sentence_gets_no_such_advice(when):
    _, problems = check(POLICY.format(when=when))
    assert "is written as" not in "".join(problem.message for problem in problems)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("{and: [code, hard]}", "did you mean 'all'?"),
        ("{OR: [code, hard]}", "did you mean 'any'?"),
        ("{none_of: [code]}", "did you mean 'not'?"),
        ("{code: true}", "unknown key 'code': to say that it holds, a rule is its name alone, code"),
        ("{all: code}", "all takes a list of rules: write [code]"),
        ("[code, hard]", "several stand below `all` or `any`: {all: [code, hard]}"),
        ("{not: [code, hard]}", "several stand below `all` or `any`: {all: [code, hard]}"),
        ("{signal: code, at_least: 5%}", "at_least: a number is needed: write 0.05, or 5 where 100 is all"),
        ("{signal: code, label: x}", "did you mean 'is'?"),
        ("{signal: code, threshold: 1}", "did you mean 'at_least'?"),
    ],
)
def test_a_rule_in_the_words_of_others_is_told_in_ours(when, said):
    assert any(said in problem.message for problem in check(POLICY.format(when=when))[1])


@pytest.mark.parametrize(
    ("signal", "said"),
    [
        ("{sample: {percent: 5%}}", "P103 percent: a number from 0 to 100 is needed: write 5"),
        ("{sample: {percent: 500}}", "P104 percent: a number from 0 to 100 is needed"),
        ("{similar: {to: [a], at_least: 60%}}", "P103 at_least: a number from 0 to 1 is needed: write 0.6"),
        ("{similar: {to: [a], at_least: 160%}}", "P103 at_least: a number from 0 to 1 is needed"),
        ("{tokens: {at_least: 4k}}", "P103 at_least: a number of at least 0 is needed: write 4000"),
        ("{tokens: {at_least: '4_000'}}", "P103 at_least: a number of at least 0 is needed: write 4000"),
        ("{budget: {limit: $10, per: day, header: x-a}}", "P103 limit: a number above 0 is needed: write 10"),
        ("{budget: {limit: 10, per: daily}}", "P104 per: hour, day, month or session is needed (did you mean 'day'?)"),
        ("{keyword: {any: x}}", "P103 any: a list is needed: write [x]"),
        ("{time: {between: '08:00-18:00'}}", "P103 between: a list is needed"),
        ("{regex: {any: []}}", "P104 any: at least one entry is needed"),
        ("{regex: {pattern: x}}", "P101 unknown key 'pattern' (did you mean 'any'?)"),
        ("{regex: {any: ['(']}}", "P104 '(' is not an RE2 expression: a ( is not closed"),
        ("{regex: {any: ['[a']}}", "P104 '[a' is not an RE2 expression: a [ is not closed"),
        ("{regex: {any: ['*a']}}", r"P104 '*a' is not an RE2 expression: * has nothing before it to repeat; the char"),
        ("{regex: {any: ['(?!a)b']}}", "P104 '(?!a)b' is not an RE2 expression: RE2 has no (?!: it cannot look ahead"),
        (r"{regex: {any: ['(a)\1']}}", "RE2 does not know \\1; back-references are nothing that it has"),
        ("{conversation: {turns: 5}}", "P103 turns: true or false is needed, or a mapping is needed, with"),
        ("{conversation: {turns: {at_least: five}}}", "P103 at_least: a number is needed"),
        ("{structure: {count: question}}", "list_items or bytes is needed (did you mean 'questions'?), or a mapping"),
        ("{not: code}", "P105 'not' makes a rule, no signal: rules with names stand below `rules:`"),
        ("{load: {model: larg, waiting: {at_least: 1}}}", "L323 never holds: the policy has no model 'larg'"),
    ],
)
def test_a_signal_in_the_words_of_others_is_told_in_ours(signal, said):
    text = POLICY.format(when="hard").replace("{keyword: {any: [x]}}", signal)
    told = [f"{each.code} {each.message}" for each in check(text)[1] if each.code[0] == "P" or each.code == "L323"]
    assert said in told[-1]


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ("{small: {url: '${URL}'}}", "or https://host/path; '${URL}' is used as it stands, nothing fills it in"),
        ("{small: {context: 32k}}", "context: a whole number above 0 is needed: write 32000"),
        ("{small: {price: {input: $1}}}", "input: a number of at least 0 is needed: write 1"),
        ("{small: {capabilities: tools}}", "capabilities: a list is needed: write [tools]"),
        ("{small: {api_key: x}}", "unknown key 'api_key' (did you mean 'credential'?)"),
    ],
)
def test_a_model_in_the_words_of_others_is_told_in_ours(models, said):
    text = POLICY.format(when="code").replace("{small: {}}", models)
    assert any(said in problem.message for problem in check(text)[1])


def test_several_models_are_a_choice():
    text = POLICY.format(when="code").replace("route: small", "route: [small, large]")
    assert "a choice of several is written {pick: [small, large]}" in check(text)[1][0].message
    quoted = check(text.replace("version: 1", "version: '1'"))[1][0].message
    assert quoted == "version: 1 is needed, without quotes"

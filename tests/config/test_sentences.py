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
        ("kode", "did you mean 'code'"),
    ],
)
def test_a_rule_that_is_a_sentence_is_told_as_it_is_written(when, said):
    _, problems = check(POLICY.format(when=when))
    (message,) = [problem.message for problem in problems if problem.code == "R201"]
    assert said in message


@pytest.mark.parametrize("when", ["code and hard or code", "and", "code and", "code xor hard", "a b"])
def test_what_is_no_such_sentence_gets_no_such_advice(when):
    _, problems = check(POLICY.format(when=when))
    assert "is written as" not in "".join(problem.message for problem in problems)

"""`pick` and `by` in a policy: kinds by name or with their parameters, and what is wrong with them, at its place."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator

from config.document import parse as yaml
from config.load import check
from config.schema import json_schema
from decisions.selectors.registry import BY_NAME

POLICY = """\
version: 1
models: {a: {price: {input: 1}}, b: {price: {input: 2}}}
default: a
decisions: [{name: d, route: %s}]
"""


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    return Draft202012Validator(json_schema())


@pytest.mark.parametrize(
    "route",
    [
        "{pick: [a, b]}",
        "{pick: [a, b], by: weighted, weights: {a: 3}}",
        "{pick: [a, b], by: {weighted: {weights: {a: 3}}}}",
        "{pick: [a, b], by: {weighted: }}",
        "{pick: [a, b], by: {cheapest: {}}}",
        "{pick: [a, b], by: cheapest, weights: {}}",
    ],
)
def test_a_kind_stands_by_its_name_or_with_its_parameters(schema: Draft202012Validator, route: str) -> None:
    policy, problems = check(POLICY % route)
    assert policy is not None
    assert problems == []
    schema.validate(yaml(POLICY % route, "p").data)


def test_parameters_are_the_same_beside_and_within() -> None:
    found = []
    for route in ("{pick: [a, b], weights: {a: 3}}", "{pick: [a, b], by: {weighted: {weights: {a: 3}}}}"):
        policy, _ = check(POLICY % route)
        assert policy is not None
        pick = policy.clauses[0].target
        found.append((pick.kind, pick.params))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("route", "code", "at", "message"),
    [
        ("{pick: [a, b], by: chepest}", "P104", "chepest", "by: weighted, cheapest, fastest"),
        ("{pick: [a, b], by: {chepest: {}}}", "P101", "chepest", "(did you mean 'cheapest'?)"),
        ("{pick: [a, b], by: {cheapest: {price: 1}}}", "P101", "price", "unknown key 'price'"),
        ("{pick: [a, b], by: {weighted: {weigths: {}}}}", "P101", "weigths", "(did you mean 'weights'?)"),
        ("{pick: [a, b], by: {weighted: {weights: {a: -1}}}}", "P104", "-1", "a: a number of at least 0 is needed"),
        ("{pick: [a, b], by: {weighted: {weights: {c: 1}}}}", "P104", "{pick", "not in pick: c"),
        ("{pick: [a, b], by: {}}", "P106", "{}", "exactly one kind"),
        ("{pick: [a, b], by: {weighted: {}, cheapest: {}}}", "P106", "{weighted", "exactly one kind"),
        ("{pick: [a, b], by: {weighted: {}}, weights: {a: 2}}", "P104", "{pick", "belong into it"),
        ("{pick: [a, b], by: {cheapest: {}}, weights: {a: 2}}", "P104", "{pick", "go with `by: weighted` only"),
        ("{pick: [a, b], by: {weighted: {weights: {a: 0}}}}", "L331", "0}", "'a' is never chosen"),
        ("{pick: [a, b, a], by: cheapest}", "L331", "a], by", "'a' stands there twice; remove one"),
        ("{pick: [a, b, a]}", "L331", "a]}", "`weights` gives it a larger share"),
    ],
)
def test_what_is_wrong_with_a_choice_is_said_at_its_place(route: str, code: str, at: str, message: str) -> None:
    text = POLICY % route
    (problem,) = check(text)[1]
    lines = text.splitlines()
    assert (problem.code, lines[problem.line - 1][problem.column - 1 :].startswith(at)) == (code, True), problem
    assert message in problem.message


def test_models_without_a_price_are_told_of_where_the_kind_stands() -> None:
    for by in ("cheapest", "{cheapest: {}}"):
        text = (POLICY % f"{{pick: [a, b], by: {by}}}").replace("b: {price: {input: 2}}", "b: {}")
        (problem,) = check(text)[1]
        assert problem.code == "L326"
        assert text.splitlines()[3][problem.column - 1 :].startswith(("cheapest}", "{}"))


def test_the_schema_has_every_kind_with_its_parameters(schema: Draft202012Validator) -> None:
    definitions = schema.schema["$defs"]
    assert list(definitions["BySpec"]["properties"]) == list(BY_NAME)
    for name, kind in BY_NAME.items():
        assert definitions["BySpec"]["properties"][name]["description"] == kind.about
        assert list(definitions[kind.Parameters.__name__].get("properties", ())) == list(kind.Parameters.model_fields)

from __future__ import annotations

from typing import Any

import pytest

from tests.signals.help import build, complaint, reading, request

HEADERS = {"user": "X-User", "groups": "x-groups"}
JWT = "envoy.filters.http.jwt_authn"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-user": "alice"}, True),
        ({"x-user": "bob"}, False),
        ({"x-user": "bob", "x-groups": "dev, ops"}, True),
        ({"x-groups": "ops"}, True),
        ({"x-groups": "dev"}, False),
        ({}, None),
        ({"x-user": "", "x-groups": " , "}, None),
    ],
)
def test_headers(headers: dict[str, str], expected: bool | None) -> None:
    found = reading(
        build("identity", role="admin", users=["alice"], groups=["ops"], headers=HEADERS), request("", headers=headers)
    )
    assert found.matched is expected
    assert found.label == ("admin" if expected else None)
    assert found.error == (None if expected is not None else "no_identity")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({JWT: {"payload": {"sub": "alice"}}}, True),
        ({JWT: {"payload": {"sub": "bob", "groups": ["dev", "ops"]}}}, True),
        ({JWT: {"payload": {"sub": "bob", "groups": "dev,ops"}}}, True),
        ({JWT: {"payload": {"sub": "bob", "groups": {"ops": 1}}}}, False),
        ({JWT: {"payload": {"sub": 7}}}, None),
        ({JWT: {}}, None),
        ({"other": {"payload": {"sub": "alice"}}}, None),
        ({}, None),
    ],
)
def test_claims_are_the_default(attributes: dict[str, Any], expected: bool | None) -> None:
    given = request("", attributes=attributes, headers={"x-user": "alice"})
    assert reading(build("identity", role="admin", users=["alice"], groups=["ops"]), given).matched is expected


def test_claims_with_other_names() -> None:
    claims = {"namespace": "auth", "user": None, "groups": 'token["https://x.org/groups"]'}
    given = request("", attributes={"auth": {"token": {"https://x.org/groups": ["ops"]}}})
    assert reading(build("identity", role="admin", groups=["ops"], claims=claims), given).matched is True


@pytest.mark.parametrize(
    ("claims", "expected"),
    [({"sub": "alice"}, True), ({"sub": "bob"}, False), ({"groups": ["ops"]}, True), ({}, None)],
)
def test_claims_under_a_providers_name(claims: dict[str, Any], expected: bool | None) -> None:
    """As Envoy Gateway has them; what stands under another provider's name is not read."""
    signal = build("identity", role="admin", users=["alice"], groups=["ops"], claims={"provider": "my.idp"})
    assert reading(signal, request("", attributes={JWT: {"my.idp": claims}})).matched is expected
    for other in ("payload", "my"):
        assert reading(signal, request("", attributes={JWT: {other: {"sub": "alice"}}})).matched is None


def test_wrong_parameters_are_explained() -> None:
    assert "must list somebody" in complaint("identity", role="a")
    assert "exclude" in complaint("identity", role="a", users=["b"], headers={"user": "x"}, claims={})
    assert "name the header" in complaint("identity", role="a", users=["b"], headers={})
    assert "not a path" in complaint("identity", role="a", users=["b"], claims={"user": "a["})
    for more in ({"user": "a.b"}, {"groups": None}):
        assert "begin the paths with its name" in complaint(
            "identity", role="a", users=["b"], claims={"provider": "a", **more}
        )

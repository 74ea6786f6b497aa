"""`identity`: who is calling, from trusted headers or from what Envoy's own filters found (JWT claims)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from pydantic import Field, model_validator

from signals.bounds import header_name, said
from signals.facts import Facts
from signals.path import MISSING, Path, look_up, parse_path
from signals.reading import Reading, unknown
from signals.signal import Doubt, Params, Shared, Signal


class HeaderSource(Params):
    """Headers that a filter before this one sets. Envoy must remove the client's own copies of them."""

    user: str | None = Field(None, min_length=1, description="The header that names the user.")
    groups: str | None = Field(None, min_length=1, description="The header that lists groups, separated by commas.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.user is None and self.groups is None:
            raise ValueError("name the header of the user, of the groups, or both")
        return self


class ClaimSource(Params):
    """A namespace of Envoy's dynamic metadata, which no client can write."""

    namespace: str = Field("envoy.filters.http.jwt_authn", min_length=1, description="The metadata namespace.")
    provider: str | None = Field(
        None,
        min_length=1,
        description="The name under which the claims stand there: Envoy Gateway stores them under the provider's name. "
        "It takes the place of `payload` in the default paths, and excludes paths of your own.",
    )
    user: Path | None = Field("payload.sub", description="Path of the user's name in it.")
    groups: Path | None = Field(
        "payload.groups", description="Path of the list of groups in it (a comma-separated string will do)."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.provider is not None and self.model_fields_set & {"user", "groups"}:
            raise ValueError("provider and a path (user, groups) exclude one another: begin the paths with its name")
        return self

    def steps(self, path: str | None) -> tuple[str | int, ...] | None:
        """The steps of `user` or `groups` in the namespace."""
        if path is None or self.provider is None:
            return None if path is None else parse_path(path)
        return (self.provider, *parse_path(path)[1:])


class IdentityParams(Params):
    """One role, who holds it, and where the caller's identity comes from."""

    role: str = Field(
        pattern=r"^[^\x00-\x1f\x7f]{1,200}$",
        description="The role's name; it becomes the reading's label.",
        json_schema_extra=said("1 to 200 characters are needed, without control characters"),
    )
    users: list[str] = Field([], description="Users who hold the role.")
    groups: list[str] = Field([], description="Groups whose members hold the role.")
    headers: HeaderSource | None = Field(
        None, description="Take the identity from these trusted headers: `user`, `groups`."
    )
    claims: ClaimSource | None = Field(
        None,
        description="Take it from Envoy's dynamic metadata (the default): `namespace`, and in it the "
        "`provider`, or the paths `user` and `groups`.",
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not (self.users or self.groups):
            raise ValueError("one of users, groups must list somebody")
        if self.headers is not None and self.claims is not None:
            raise ValueError("headers and claims exclude one another")
        return self

    def doubts(self) -> Iterator[Doubt]:
        for name, values in (("users", self.users), ("groups", self.groups)):
            for index, value in enumerate(values):
                if "*" in value:
                    message = (
                        f"only the very name {value!r} holds the role, there are no patterns: list the names in full"
                    )
                    yield Doubt((name, index), "L321", message)
        for name in ("user", "groups"):
            header = getattr(self.headers, name, None)
            if header is not None:
                yield from header_name(header, "headers", name)


class Identity(Signal):
    """Reads whether the caller holds a role. A request without any identity is Unknown (`no_identity`)."""

    kind = "identity"
    Parameters = IdentityParams
    labelled = True

    def __init__(self, name: str, params: IdentityParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._users, self._groups = frozenset(params.users), frozenset(params.groups)
        self._headers = params.headers
        claims = params.claims or ClaimSource()
        self._namespace = claims.namespace
        self._user_path, self._groups_path = claims.steps(claims.user), claims.steps(claims.groups)
        self._held = Reading(True, 1.0, params.role)
        self._not_held = Reading(False, 0.0)

    def read(self, facts: Facts) -> Reading:
        request = facts.request
        user: Any
        groups: Any
        if self._headers is not None:
            user = request.headers.get((self._headers.user or "").lower())
            groups = request.headers.get((self._headers.groups or "").lower())
        else:
            namespace = request.attributes.get(self._namespace, MISSING)
            user = look_up(namespace, self._user_path) if self._user_path is not None else None
            groups = look_up(namespace, self._groups_path) if self._groups_path is not None else None
        listed = _listed(groups)
        known = isinstance(user, str) and user != ""
        if not known and not listed:
            return unknown("no_identity")
        held = (known and user in self._users) or not self._groups.isdisjoint(listed)
        return self._held if held else self._not_held


def _listed(groups: Any) -> list[str]:
    if isinstance(groups, str):
        groups = groups.split(",")
    if not isinstance(groups, list):
        return []
    return [group for group in (group.strip() for group in groups if isinstance(group, str)) if group]

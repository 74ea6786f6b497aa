"""Models to choose from and requests to choose for."""

from __future__ import annotations

from decisions.model import Model
from decisions.selectors.pinned import built
from decisions.selectors.selector import Selector
from signals.facts import Facts
from signals.request import Message, Request
from signals.signal import Shared
from tests.decisions.fakes import pick

SMALL = Model("small", "s", 1.0, 1.0, 1000)
LARGE = Model("large", "l", 2.0, 2.0, 10_000)
OPEN = Model("open", "o", 9.0, 9.0)


def facts(text: str = "hi", body: bytes = b"{}", headers: dict[str, str] | None = None, **fields: object) -> Facts:
    messages = (Message("system", "You help."), Message("user", text))
    return Facts(Request("chat", body, fields, "auto", messages, headers or {}))


def selector(kind: type[Selector], *models: Model, **params: object) -> Selector:
    return built(pick(kind, models, **params), Shared())

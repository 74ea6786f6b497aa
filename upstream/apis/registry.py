"""The APIs whose calls writers answer. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from upstream.apis.chat import CHAT
from upstream.apis.messages import MESSAGES
from upstream.apis.responses import RESPONSES
from upstream.apis.shape import ClientApi

APIS: Final[Mapping[str, ClientApi]] = {api.name: api for api in (CHAT, MESSAGES, RESPONSES)}

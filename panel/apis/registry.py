"""The APIs whose calls panels answer. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from panel.apis.chat import CHAT
from panel.apis.messages import MESSAGES
from panel.apis.responses import RESPONSES
from panel.apis.shape import PanelApi

APIS: Final[Mapping[str, PanelApi]] = {api.name: api for api in (CHAT, MESSAGES, RESPONSES)}

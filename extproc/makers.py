"""Which model made a session's last response, so that it can be fetched, cancelled or deleted there by its id."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MOST: Final = 10_000
"""Sessions that are remembered; the one unused the longest is forgotten first."""


class Makers:
    """One per worker. A session that it does not know, or that has no key (''), has the default model.

    Sessions are keys of `signals.session.Sessions.named`: a stored response is asked for without a body, so headers
    alone tell the session.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[str, str] = OrderedDict()

    def note(self, session: str, model: str) -> None:
        """The model of this key takes the session's call."""
        if not session:
            return
        self._models[session] = model
        self._models.move_to_end(session)
        if len(self._models) > MOST:
            self._models.popitem(last=False)

    def of(self, session: str) -> str | None:
        """The key of the model that took the session's last call, if that is known."""
        return self._models.get(session)

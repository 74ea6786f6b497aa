"""Which model made a session's last response, so that it can be fetched, cancelled or deleted there by its id.

It also knows since when a conversation has been with its model: the thoughts (signed, or encrypted) in answers before
that are another model's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from signals.request import Request

MOST: Final = 10_000
"""How many sessions are remembered; the one that was not used for the longest time is forgotten first."""


class Makers:
    """One per worker. A session that it does not know, or that has no key (''), has the default model.

    For responses, sessions are keys of `signals.state.session.Sessions.named`: a stored one is asked for without a
    body, so headers alone tell the session. For conversations they are what `Sessions.name` says.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[str, str] = OrderedDict()
        self._talks: OrderedDict[int, tuple[str, int]] = OrderedDict()

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

    def foreign(self, session: str, request: Request, model: str, length: int) -> int | None:
        """How many of the `length` messages of a call, which the model of this key takes, came before it took part.

        None: the conversation was not known until now. A conversation is identified by the session that the call names
        and by the user's first words, since an agent has several conversations in one session. If it is shorter than
        before, the client went back in it, so that none of its messages is certainly the model's.
        """
        if not session:
            return None
        talk = hash((session, next((message.text for message in request.messages if message.role == "user"), "")))
        last, since = self._talks.get(talk, (None, 0))
        if last is not None and last != model:
            since = length
        self._talks[talk] = model, since
        self._talks.move_to_end(talk)
        if len(self._talks) > MOST:
            self._talks.popitem(last=False)
        return None if last is None else min(since, length)

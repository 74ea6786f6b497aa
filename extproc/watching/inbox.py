"""What has come of an answer and was not read yet."""

from __future__ import annotations

from extproc.watching.sse import Event, Events


class Inbox:
    """`events` cuts it into events; None: nothing can be read any more, and it goes on all the same. `drained`: it has
    given all that were whole. `full`: there is more to read, once others have had their turn. `over`: nothing
    follows what is here; `closed`: and all of it was read. `later`: a long answer that came whole, which is still to be
    taken apart. `size`: the bytes that wait here."""

    __slots__ = ("_pieces", "closed", "drained", "events", "full", "later", "over", "size")

    def __init__(self, events: Events) -> None:
        self.events: Events | None = events
        self.drained = True
        self.full = False
        self.over = False
        self.closed = False
        self.later: Event | None = None
        self.size = 0
        self._pieces: list[bytes] = []

    def put(self, data: bytes, end: bool) -> None:
        if data:
            self._pieces.append(data)
            self.size += len(data)
        self.over = self.over or end

    def take(self) -> bytes:
        """All that has come since the last call."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return data

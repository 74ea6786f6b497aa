"""The pieces of a writer's answer on their way to the client (asynchronous generators, which mypyc cannot compile)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable

from extproc.replying import Reply


async def judged(
    reply: Reply, body: AsyncGenerator[bytes, None], deadline: float, broke: Callable[[Exception], None]
) -> AsyncGenerator[bytes, None]:
    """The pieces of `body`, whose answer is watched, as far as they may go on.

    No more is asked of `body` while a piece is judged. What its signals have to wait for has `deadline` seconds; what
    is only computed is waited for. `broke` is told what broke in that.
    """
    watch = reply.watch
    assert watch is not None
    ended = False
    while not (ended or watch.over):
        piece = await anext(body, None)
        ended = piece is None
        out = reply.feed(piece or b"", ended)
        if out:
            yield out
        while watch.waiting:
            out = await watch.judged(time.monotonic() + deadline)
            if out:
                yield out
        if watch.error is not None:
            error, watch.error = watch.error, None
            broke(error)


async def again(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """`first`, which was taken from the beginning of `rest`, and the rest."""
    if first:
        yield first
    async for piece in rest:
        yield piece

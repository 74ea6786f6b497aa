"""An answer to a client: its status, its headers, and a body that whoever serves it reads piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send to the client, piece by piece. Use it as `async with answer:`, or call `aclose` at the end.

    `body` must be closed when the client is gone: without that the models go on writing.
    """

    status: int
    headers: Mapping[str, str]
    body: AsyncGenerator[bytes, None]

    async def aclose(self) -> None:
        await self.body.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class Body(AsyncGenerator[bytes, None]):
    """The bytes of an answer, for a class that says what comes next (`__anext__`) and how to stop (`aclose`).

    No generator function, because one that was never begun frees nothing when it is closed.
    """

    async def asend(self, value: None) -> bytes:
        return await self.__anext__()

    async def athrow(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        trace: TracebackType | None = None,
    ) -> bytes:
        await self.aclose()
        raise value if isinstance(value, BaseException) else kind

    async def aclose(self) -> None:
        """Frees everything, at any moment, any number of times."""
        raise NotImplementedError


class Whole(Body):
    """A body that is already complete."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __anext__(self) -> bytes:
        data, self._data = self._data, b""
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        self._data = b""


def whole(status: int, body: bytes, head: Mapping[str, str]) -> Answer:
    """An answer of one JSON text."""
    return Answer(status, {**head, "content-type": "application/json"}, Whole(body))


def problem(message: str, code: str) -> bytes:
    """An error in the shape of OpenAI's API."""
    return orjson.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": code}})

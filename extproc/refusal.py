"""An answer to the client instead of a route."""

from __future__ import annotations


class Refusal(Exception):
    """An answer to the client instead of a route. `text` is safe to show; `status` is an HTTP status.

    `code` and `param` are the fields of OpenAI's error object; `code` also labels a metric, so it is from a closed set.
    `headers` are added to the answer's own.
    """

    def __init__(
        self,
        status: int,
        text: str,
        code: str,
        *,
        param: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.code = code
        self.param = param
        self.headers = headers

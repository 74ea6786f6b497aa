"""The head of a request, read once: what it calls, how its body comes, and what of it is out of the ordinary."""

from __future__ import annotations

from typing import Final

from extproc.bodies import encoding
from extproc.keeping.keeper import Keeping
from extproc.refusal import Refusal
from extproc.requests.paths import Target
from extproc.wire import NO_MESSAGE, EnvoyMessage, Headers, Mode
from signals.state.session import Sessions


class Head:
    """The first message of a stream: the request's headers, unless the filter is set to skip them.

    `held`: the body comes although the headers are not answered yet. `usual`: none of the headers is there that need a
    closer look. Set later: `target` is what the path names (None: nothing that is understood), `coding` the encoding
    of the body (None: none), `json` whether every reader takes the content type for JSON, `counted` whether we ask for
    the usage of a stream whose client does not, `keeping` what is done to give its answer again.
    """

    __slots__ = (
        "coding",
        "counted",
        "headers",
        "held",
        "json",
        "keeping",
        "message",
        "mode",
        "observing",
        "response_mode",
        "target",
        "usual",
    )

    def __init__(self, message: EnvoyMessage) -> None:
        terms = message.terms()
        self.message = message
        self.headers: Headers = message.headers
        self.mode = terms.request_body
        self.response_mode = terms.response_body
        self.observing = terms.observing
        self.held = terms.request_body == Mode.FULL_DUPLEX_STREAMED or terms.no_wait or terms.observing
        self.usual = message.headers.usual()
        self.target: Target | None = None
        self.coding: str | None = None
        self.json = True
        self.counted = False
        self.keeping: Keeping | None = None

    def call(self) -> None:
        """Read what a call with a body says of it. Raises `Refusal` (405, 415, 426) where it cannot be read."""
        headers = self.headers
        method = headers.get(":method", "")
        if not self.usual or method != "POST":
            self.no_socket(method)
            if method != "POST":
                raise wrong_method("POST")
        if not self.usual and (given := headers.get("content-encoding", "")) != "":
            self.coding = encoding.coding(given)
        content_type = headers.get("content-type", "")
        if content_type != "application/json":
            if not encoding.in_utf8(content_type):
                raise Refusal(415, "The request body must be JSON in UTF-8.", "unsupported_charset")
            self.json = encoding.plainly_json(content_type)

    def bodiless(self, end: bool) -> None:
        """Read the head of what has no body: the model list, or (`target`) a stored response. `end`: none is to come.

        Raises `Refusal` (400, 405, 426) where it is something else.
        """
        method = self.headers.get(":method", "")
        self.no_socket(method)
        if self.target is not None and self.target.operation == "models":
            if method not in ("GET", "HEAD"):
                raise wrong_method("GET, HEAD")
        elif method not in ("GET", "HEAD", "DELETE", "POST"):
            raise wrong_method("GET, DELETE, POST")
        elif not end:
            raise Refusal(400, "A request for a stored response has no body.", "unexpected_body")

    def unreadable(self, refusal: Refusal) -> Refusal:
        """`refusal` of the body, or (415) of its type where that is the reason: a form is no broken JSON."""
        given = self.headers.get("content-type", "")
        if refusal.code not in ("invalid_json", "empty_body") or encoding.says_json(given):
            return refusal
        text = "The request body must be a JSON object; no other content type is read here."
        return Refusal(415, text, "unsupported_content_type")

    def no_socket(self, method: str) -> None:
        """Raises `Refusal` (426) where a WebSocket is asked for, since nobody could read what goes through it."""
        headers = self.headers
        if (
            method == "CONNECT"
            or ("upgrade" in headers and (method != "POST" or "websocket" in headers["upgrade"].lower()))
            or (method != "POST" and ":protocol" in headers)
        ):
            text = "WebSockets are not served here; send the call with POST."
            raise Refusal(426, text, "websocket_refused", headers=(("upgrade", "HTTP/1.1"),))

    def session(self, sessions: Sessions) -> str:
        """The session that the headers name, as `signals.state.session` does; '' where they name none."""
        if self.usual and not sessions.own:
            return ""
        return sessions.named(self.headers)

    def decoded(self, body: bytes, most: int) -> bytes:
        """`body` without its encoding, of at most `most` bytes. Raises `Refusal` (400, 413)."""
        return body if self.coding is None else encoding.decoded(self.coding, body, most)


def wrong_method(allowed: str) -> Refusal:
    """The refusal of a method that a path does not take."""
    return Refusal(405, f"This path takes {allowed} only.", "method_not_allowed", headers=(("allow", allowed),))


def too_large(most: int) -> Refusal:
    """The refusal of a body of more than `most` bytes."""
    return Refusal(413, f"The request body is larger than {most} bytes.", "too_large")


def media_type(given: str) -> str:
    """The type that a `content-type` names, without its parameters (RFC 9110, 8.3.1)."""
    return given.partition(";")[0].strip().lower()


def number(text: str) -> int:
    """The number in a header; 0 where there is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


NO_HEAD: Final = Head(NO_MESSAGE)
"""Stands for the head before the first message."""

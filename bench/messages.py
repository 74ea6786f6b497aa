"""The ext_proc messages that Envoy sends for a chat completion, for the direct load generator and the tests."""

from __future__ import annotations

import json

from bench.direct import ClientTurn
from proto import ext_proc_pb2 as pb

_CHUNK = 62_000  # Envoy's largest body chunk in duplex mode
_WORDS = "please explain how the points of a railway yard are set before a train arrives and who checks them "


def chat_completion(size: int) -> bytes:
    """A chat completion request of exactly `size` bytes (at least 120), one system and one user message."""

    def build(text: str) -> bytes:
        messages = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": text}]
        return json.dumps({"model": "auto", "messages": messages, "temperature": 0.2}).encode()

    room = size - len(build(""))
    if room < 0:
        raise ValueError(f"a chat completion needs {len(build(''))} bytes, not {size}")
    return build((_WORDS * (room // len(_WORDS) + 1))[:room])


def headers(size: int, mode: pb.ProcessingMode.BodySendMode = pb.ProcessingMode.BUFFERED) -> bytes:
    """The first message of a stream: what Envoy 1.40 sends for a POST of a usual client."""
    fields = {
        ":method": "POST",
        ":path": "/v1/chat/completions",
        ":authority": "llm.example.com",
        ":scheme": "http",
        "content-type": "application/json",
        "content-length": str(size),
        "user-agent": "OpenAI/Python 2.8.0",
        "accept": "application/json",
        "accept-encoding": "gzip, deflate",
        "authorization": "Bearer sk-0123456789abcdef0123456789abcdef",
        "x-stainless-lang": "python",
        "x-stainless-retry-count": "0",
        "x-forwarded-for": "203.0.113.7",
        "x-forwarded-proto": "http",
        "x-request-id": "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9",
    }
    message = pb.ProcessingRequest()
    for key, value in fields.items():
        message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    message.protocol_config.request_body_mode = mode
    return message.SerializeToString()


def body(data: bytes, end: bool = True) -> bytes:
    """One body message."""
    message = pb.ProcessingRequest()
    message.request_body.body = data
    message.request_body.end_of_stream = end
    return message.SerializeToString()


def turns(size: int) -> tuple[ClientTurn, ...]:
    """BUFFERED: the body follows the header reply."""
    return ClientTurn((headers(size),)), ClientTurn((body(chat_completion(size)),))


def duplex_turns(size: int) -> tuple[ClientTurn, ...]:
    """FULL_DUPLEX_STREAMED: body chunks follow at once, and an empty message ends them."""
    data = chat_completion(size)
    chunks = [body(data[start : start + _CHUNK], end=False) for start in range(0, size, _CHUNK)]
    return (ClientTurn((headers(size, pb.ProcessingMode.FULL_DUPLEX_STREAMED), *chunks, body(b""))),)

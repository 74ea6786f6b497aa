"""Every spelling of a path that some server would understand names the same call, and is put plainly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisions.engine import Opening
from extproc.requests import paths
from extproc.requests.paths import Target

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (CHAT, Target("chat")),
        ("/v1/chat/completions?api-version=1", Target("chat")),
        ("/v1/chat/completions?x=/v1/messages", Target("chat")),
        ("/openai/v1/chat/completions", Target("chat")),
        ("/v1beta/openai/chat/completions", Target("chat")),
        ("/api/paas/v4/chat/completions", Target("chat")),
        ("/proxy/chat/completions", Target("chat")),
        ("/a/b/v1/completions", Target("completions")),
        ("/v1/embeddings", Target("embeddings")),
        ("/v1/responses", Target("responses")),
        ("/v1/responses/compact", Target("responses", "compact")),
        ("/v1/responses/input_tokens", Target("responses", "input_tokens")),
        ("/v1/messages?beta=true", Target("messages")),
        ("/v1/messages/count_tokens", Target("messages", "count_tokens")),
        ("/v1/models", Target(None, "models")),
        ("/v1/models/Qwen/Qwen3-8B", Target(None, "models", "Qwen/Qwen3-8B")),
        ("/v1/responses/resp_1", Target(None, "stored")),
        ("/v1/responses/resp_1/cancel", Target(None, "stored")),
        ("/v1/responses/resp_1/input_items?limit=1", Target(None, "stored")),
        ("/" + "a/" * 5000 + "v1/messages", Target("messages")),
    ],
)
def test_plain_paths(path: str, wanted: Target) -> None:
    assert paths.read(path) == wanted


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v1/chat/completions/", CHAT),
        ("//v1//chat//completions", CHAT),
        ("/v1/chat%2Fcompletions", CHAT),
        ("/v1/%63hat/completions", CHAT),
        ("/v1/%2563hat/completions", CHAT),
        ("/v1/chat/completions%0a", CHAT),
        ("/v1/chat/completions%00", CHAT),
        ("/v1/chat/completions%20", CHAT),
        ("/v1/chat/completions%3Fx=y", CHAT),
        ("/V1/Chat/COMPLETIONS?a=b", CHAT + "?a=b"),
        ("/v1/chat;x=y/completions;z", CHAT),
        ("/v1/x/%2e%2e/chat/completions", CHAT),
        ("/v1/./chat/x/../completions", CHAT),
        ("/../v1/chat/completions", CHAT),
        ("/v1%5Cchat\\completions", CHAT),
        ("/chat/completions", CHAT),
        ("/completions", "/v1/completions"),
        ("/responses", "/v1/responses"),
        ("/messages/count_tokens?beta=true", "/v1/messages/count_tokens?beta=true"),
        ("/v1/models/Qwen%2FQwen3-8B", "/v1/models/Qwen/Qwen3-8B"),
        ("/models", "/v1/models"),
        ("/v1/Responses/Resp_1/Input_Items", "/v1/responses/Resp_1/input_items"),
    ],
)
def test_other_spellings_are_put_plainly(path: str, wanted: str) -> None:
    plain = paths.read(wanted)
    assert plain is not None
    assert paths.read(path) == plain._replace(path=wanted)


def test_an_azure_path_names_its_model() -> None:
    for path in (
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        "/deployments/gpt-4o/chat/completions",
    ):
        assert paths.read(path) == Target("chat", "", "gpt-4o", CHAT)
    for name in ("Qwen/Qwen3-8B", "Qwen%2FQwen3-8B"):
        assert paths.read(f"/openai/deployments/{name}/chat/completions") == Target("chat", "", "Qwen/Qwen3-8B", CHAT)
        assert paths.read(f"/a/deployments/{name}/embeddings?api-version=1&x=y") == Target(
            "embeddings", "", "Qwen/Qwen3-8B", "/a/v1/embeddings?x=y"
        )
    assert paths.read("/openai/deployments/chat/completions") == Target("chat", "", None, None)
    assert paths.read("/x/openai/deployments/my%20model/embeddings?api-version=1&a=b") == Target(
        "embeddings", "", "my model", "/x/v1/embeddings?a=b"
    )


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat", "/", "", "*", "/search?q=/v1/chat/completions", "/v1/messages/batches", "/v1/threads/t/messages"),
        *(
            "/generate",
            "/invocations",
            "/api/chat",
            "/api/generate",
            "/completion",
            "/tokenize",
            "/v1/rerank",
            "/v1/score",
        ),
        *("/v1/images/generations", "/v1/audio/speech", "/v1/files", "/v1/batches", "/v1/chat/completions/123"),
        *("/v1/responses/a/b", "/v1/responses/a/b/c", "/v1/realtime", "/xv1/completions"),
        "/v1/%2525252525252563hat/completions",
        "/" + "x" * paths.LONGEST + CHAT,
        "/" + "%" * paths.ESCAPES + "%61" + CHAT,
    ],
)
def test_what_is_no_call_is_none(path: str) -> None:
    assert paths.read(path) is None


@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.from_regex(r"(/|%2f|%252e|\.\.|;|v1|chat|models){0,12}"))
def test_a_plain_form_is_its_own_plain_form(path: str) -> None:
    found = paths.read(path)
    if found is not None and found.path is not None:
        assert paths.read(found.path) == found._replace(path=None)


OPEN = (Opening("/v1/audio/*", "large"), Opening("/rerank", "small"), Opening("/v1/*", "small"))


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("/v1/audio/speech", "large"),
        ("/v1/audio/?x=%0a", "large"),
        ("/rerank", "small"),
        ("/v1/audio", "small"),
        ("/rerank/", None),
        ("/v1/%61udio/speech", None),
        ("/v1/audio/../x", None),
        ("/v1//audio/x", None),
        ("/v1/audio/;x", None),
        ("/v1/audio/\n", None),
        ("", None),
    ],
)
def test_opened_paths_are_spelled_plainly(path: str, to: str | None) -> None:
    found = paths.opening(path, OPEN)
    assert (None if found is None else found.to) == to

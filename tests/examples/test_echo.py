from __future__ import annotations

import asyncio

import openai
import pytest

from examples.echo.server import Echo

NAME = "Qwen/Qwen3-8B"
ASK = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
async def base():
    server = await asyncio.start_server(Echo(NAME).serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.fixture
async def client(base):
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(base):
    import anthropic

    async with anthropic.AsyncAnthropic(base_url=base, api_key="none", max_retries=0) as client:
        yield client


async def test_chat_says_which_model_answered(client):
    answer = await client.chat.completions.create(model=NAME, messages=ASK)
    assert answer.model == NAME
    assert answer.choices[0].message.content == f"{NAME} answers: Hello there"
    assert answer.usage.prompt_tokens == 2


async def test_chat_streams_word_by_word_with_usage(client):
    stream = await client.chat.completions.create(
        model=NAME, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == f"{NAME} answers: Hello there"
    assert chunks[-1].usage.completion_tokens == 4
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


async def test_completions_and_embeddings(client):
    answer = await client.completions.create(model=NAME, prompt="Hello")
    assert answer.choices[0].text == f"{NAME} answers: Hello"
    stream = await client.completions.create(model=NAME, prompt="Hello", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == f"{NAME} answers: Hello"
    vectors = await client.embeddings.create(model=NAME, input=["a", "bb"], encoding_format="float")
    assert len(vectors.data) == 2


async def test_responses_streamed_and_not(client):
    answer = await client.responses.create(model=NAME, input="Hello there")
    assert answer.output_text == f"{NAME} answers: Hello there"
    async with client.responses.stream(model=NAME, input="Hello there") as stream:
        final = await stream.get_final_response()
    assert final.output_text == f"{NAME} answers: Hello there"


@pytest.mark.slow
async def test_anthropic_messages_streamed_and_not(claude):
    answer = await claude.messages.create(model=NAME, max_tokens=9, messages=ASK)
    assert answer.content[0].text == f"{NAME} answers: Hello there"
    async with claude.messages.stream(model=NAME, max_tokens=9, messages=ASK) as stream:
        assert await stream.get_final_text() == f"{NAME} answers: Hello there"


@pytest.mark.slow
async def test_another_model_is_refused_like_a_real_server_does(client, claude):
    import anthropic

    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="auto", messages=ASK)
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        await claude.messages.create(model="auto", max_tokens=9, messages=ASK)


async def test_chunked_bodies_and_keep_alive(base):
    host, port = base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"model":"%s","messages":[]}' % NAME.encode()
    for _ in range(2):
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"5\r\n" + body[:5] + b"\r\n%x\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    writer.close()
    await writer.wait_closed()


async def test_bad_bodies_are_400(base):
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError):
            await client.post("/chat/completions", body=["not an object"], cast_to=object)

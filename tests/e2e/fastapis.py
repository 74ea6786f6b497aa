"""A model server on FastAPI: a module of its own, since half a suite's processes never need to import FastAPI."""

from __future__ import annotations

import socket
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.e2e.servers import MODEL, ROUTES, Records, reading, shown
from tests.patience import PATIENCE


def fastapi_app(seen: list[tuple[str, Any]]) -> FastAPI:
    """Routes with `await request.json()`, whatever the content type; forms and text where a body is no JSON."""
    app = FastAPI(openapi_url=None)

    async def answer(request: Request) -> JSONResponse:
        body = await request.body()
        read = reading(body, request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))
        seen.append((f"{request.method} {request.url.path}", read))
        choice = {"index": 0, "message": {"role": "assistant", "content": shown(read)}, "finish_reason": "stop"}
        return JSONResponse({"object": "chat.completion", "model": MODEL, "choices": [choice]})

    for path in ROUTES:
        app.add_api_route(path, answer, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "QUERY"])
    return app


def fastapi_server() -> Records:
    seen: list[tuple[str, Any]] = []
    config = uvicorn.Config(fastapi_app(seen), log_level="error", lifespan="off", ws="none", timeout_keep_alive=60)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(PATIENCE)

    return Records("fastapi", f"127.0.0.1:{listening.getsockname()[1]}", lambda: list(seen), stop)

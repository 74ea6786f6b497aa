"""`remote` against real servers of the Open Inference Protocol that run an ONNX model, over HTTP and gRPC."""

# ruff: noqa: E501  example texts

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

from signals.facts import Facts
from signals.gather import fetch, read
from signals.neural.folder import Folder
from signals.neural.kserve import METHOD, messages
from signals.reading import Reading
from signals.signal import Cost, Shared
from tests.patience import PATIENCE
from tests.signals.help import build, request
from tests.signals.neural import models

Classify = Callable[[list[str]], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Classify:
    model = Folder(models.mood(tmp_path_factory.mktemp("remote") / "mood"), "sequence", "cpu")

    def run(texts: list[str]) -> np.ndarray[Any, Any]:
        if "slow" in texts[0]:
            time.sleep(1.0)
        return np.stack(model.run([model.windows(model.encode(text)[0], 510, 510)[0][1] for text in texts]))

    return run


@pytest.fixture(scope="module")
def over_http(classify: Classify) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path not in ("/v2/models/mood/infer", "/v2/models/mood/versions/2/infer"):
                status, answer = 404, {"error": "no such model"}
            else:
                (given,) = asked["inputs"]
                assert (given["name"], given["datatype"]) == ("text", "BYTES")
                assert given["shape"] == [len(given["data"]), 1]
                scores = classify(given["data"])
                tensor = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape), "data": scores.ravel().tolist()}  # fmt: skip
                status, answer = 200, {"model_name": "mood", "outputs": [tensor]}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # the caller of the slow one has hung up
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def over_grpc(classify: Classify) -> Iterator[str]:
    types = messages()

    def infer(asked: Any, context: grpc.ServicerContext) -> Any:
        if asked.model_name != "mood":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        texts = [raw.decode() for raw in asked.inputs[0].contents.bytes_contents]
        assert list(asked.inputs[0].shape) == [len(texts), 1]
        scores = classify(texts).astype(np.float32)
        tensor = types["Tensor"](name="scores", datatype="FP32", shape=scores.shape)
        answer = types["ModelInferResponse"](model_name="mood")
        if asked.model_version == "2":  # Triton answers in raw bytes
            answer.raw_output_contents.append(scores.tobytes())
        else:
            tensor.contents.fp32_contents.extend(scores.ravel().tolist())
        answer.outputs.append(tensor)
        return answer

    service, method = METHOD[1:].split("/")
    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=types["ModelInferRequest"].FromString,
        response_serializer=types["ModelInferResponse"].SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


async def take(url: str, text: str, **params: Any) -> Reading:
    shared = Shared()
    try:
        given = {"model": "mood", "labels": ["good", "bad"], "label": "bad", "timeout": 10.0} | params
        signal = build("remote", shared, url=url, **given)
        assert signal.cost == Cost.REMOTE
        facts = Facts(request(text), time.monotonic() + PATIENCE)
        await fetch([signal], facts)
        return read(signal, facts)
    finally:
        shared.close()


@pytest.fixture(params=["over_http", "over_grpc"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.mark.parametrize("version", [None, "2"])
async def test_a_remote_model_is_read(url: str, version: str | None) -> None:
    found = await take(url, "bad", version=version)
    assert (found.matched, found.label) == (True, "bad")
    assert found.score == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-4)
    assert (await take(url, "good")).matched is False


async def test_what_goes_wrong_is_unknown_with_a_reason(url: str) -> None:
    assert (await take(url, "bad", model="other")).error == "remote_error"
    assert (await take(url, "slow", timeout=0.2)).error in ("deadline", "timeout")
    assert (await take(url, "bad", output="logits")).error == "bad_answer"
    assert (await take(url, "bad", labels=["one"], label="one")).error == "bad_answer"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_nobody_there_is_unknown(scheme: str) -> None:
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        reading = await take(f"{scheme}://127.0.0.1:{unused.getsockname()[1]}", "bad", timeout=2.0)
    assert (reading.matched, reading.error) in ((None, "remote_unreachable"), (None, "timeout"), (None, "deadline"))

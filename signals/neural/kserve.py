"""A client of the Open Inference Protocol (KServe v2, Triton) over HTTP or gRPC: texts in, scores out.

The protocol: https://github.com/kserve/open-inference-protocol (REST: POST v2/models/NAME/infer; gRPC:
inference.GRPCInferenceService/ModelInfer). The calls are made from the service's own thread, one at a time, each with
as many texts as wait.
"""

from __future__ import annotations

import http.client
import math
import ssl
from functools import cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
import orjson
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray

from signals.neural.service import Service
from signals.reading import Unavailable
from signals.services import Services

F32 = NDArray[np.float32]

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_BATCH: Final = 1 << 18
"""Characters of the texts of one call together, unless a single one has more."""
_LARGEST: Final = 16 << 20
"""Bytes of an answer; what is larger is not read."""


@cache
def messages() -> dict[str, Any]:
    """The few fields of the protocol's protobuf messages that are needed; the rest are skipped as unknown fields."""
    file = descriptor_pb2.FileDescriptorProto(name="pointsman/kserve.proto", package="inference", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto
    text, raw, whole = types.TYPE_STRING, types.TYPE_BYTES, types.TYPE_INT64
    shapes: dict[str, list[tuple[str, int, Any, bool]]] = {
        "InferTensorContents": [
            ("fp32_contents", 6, types.TYPE_FLOAT, True),
            ("fp64_contents", 7, types.TYPE_DOUBLE, True),
            ("bytes_contents", 8, raw, True),
        ],
        "Tensor": [
            ("name", 1, text, False),
            ("datatype", 2, text, False),
            ("shape", 3, whole, True),
            ("contents", 5, ".inference.InferTensorContents", False),
        ],
        "Wanted": [("name", 1, text, False)],
        "ModelInferRequest": [
            ("model_name", 1, text, False),
            ("model_version", 2, text, False),
            ("inputs", 5, ".inference.Tensor", True),
            ("outputs", 6, ".inference.Wanted", True),
        ],
        "ModelInferResponse": [
            ("model_name", 1, text, False),
            ("outputs", 5, ".inference.Tensor", True),
            ("raw_output_contents", 6, raw, True),
        ],
    }
    for name, fields in shapes.items():
        message = file.message_type.add(name=name)
        for field, number, kind, many in fields:
            made = message.field.add(
                name=field, number=number, label=types.LABEL_REPEATED if many else types.LABEL_OPTIONAL
            )
            if isinstance(kind, str):
                made.type, made.type_name = types.TYPE_MESSAGE, kind
            else:
                made.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in shapes}


class RemoteModel(NamedTuple):
    """A model on a server. `version`: None lets the server choose. `input`, `output`: names of its tensors. `timeout`:
    seconds for one call."""

    url: str
    model: str
    version: str | None
    input: str
    output: str
    timeout: float


class InferenceClient:
    """One model on one server, behind a queue. Unavailable("remote_…") says what went wrong with a call."""

    def __init__(self, at: RemoteModel, services: Services) -> None:
        self._parts = urlsplit(at.url)
        self._model, self._version, self._input, self._output = at.model, at.version, at.input, at.output
        self._timeout = at.timeout
        self._connection: http.client.HTTPConnection | None = None
        self._channel: Any = None
        grpc = self._parts.scheme.startswith("grpc")
        self.service: Service[str, F32] = Service(
            services.inference.meter(f"remote-{at.model}"),
            self._over_grpc if grpc else self._over_http,
            len,
            # Its own timeout ends a call: no run is as long as a model's may be.
            limits=services.limits._replace(hang=at.timeout + 2),
        )
        self.service.work, self.service.padded = _BATCH, False

    def close(self) -> None:
        self.service.close()
        self._drop()
        if self._channel is not None:
            self._channel.close()

    def _over_http(self, texts: list[str]) -> list[F32]:
        path = f"{self._parts.path.rstrip('/')}/v2/models/{quote(self._model, safe='')}"
        path += f"/versions/{quote(self._version, safe='')}" if self._version else ""
        tensor = {"name": self._input, "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
        body = orjson.dumps({"inputs": [tensor], "outputs": [{"name": self._output}]})
        fresh = self._connection is None
        try:
            status, answer = self._post(f"{path}/infer", body)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # A kept connection that the server has closed meanwhile deserves one more try, a fresh one does not.
            self._drop()
            if fresh:
                raise Unavailable("remote_unreachable") from None
            return self._over_http(texts)
        except TimeoutError:
            self._drop()
            raise Unavailable("timeout") from None
        except (OSError, http.client.HTTPException):
            self._drop()
            raise Unavailable("remote_unreachable") from None
        if status != 200:
            raise Unavailable("remote_error")
        try:
            found = next(t for t in orjson.loads(answer)["outputs"] if t["name"] == self._output)
            return _rows(np.asarray(found["data"], np.float32), found["shape"], len(texts))
        except (ValueError, KeyError, TypeError, StopIteration):
            raise Unavailable("bad_answer") from None

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            host, port = self._parts.hostname or "", self._parts.port
            if self._parts.scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    host, port, timeout=self._timeout, context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
        self._connection.request("POST", path, body, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        content = answer.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            self._drop()
            raise Unavailable("bad_answer")
        return answer.status, content

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _over_grpc(self, texts: list[str]) -> list[F32]:
        import grpc

        types = messages()
        if self._channel is None:
            target = self._parts.netloc
            options = [("grpc.max_receive_message_length", _LARGEST)]
            if self._parts.scheme == "grpcs":
                self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
            else:
                self._channel = grpc.insecure_channel(target, options)
            self._call = self._channel.unary_unary(
                METHOD,
                request_serializer=types["ModelInferRequest"].SerializeToString,
                response_deserializer=types["ModelInferResponse"].FromString,
            )
        tensor = types["Tensor"](name=self._input, datatype="BYTES", shape=[len(texts), 1])
        tensor.contents.bytes_contents.extend(text.encode(errors="replace") for text in texts)
        request = types["ModelInferRequest"](
            model_name=self._model,
            model_version=self._version or "",
            inputs=[tensor],
            outputs=[types["Wanted"](name=self._output)],
        )
        try:
            answer = self._call(request, timeout=self._timeout)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Unavailable("timeout") from None
            unreachable = code == grpc.StatusCode.UNAVAILABLE
            raise Unavailable("remote_unreachable" if unreachable else "remote_error") from None
        at = next((i for i, tensor in enumerate(answer.outputs) if tensor.name == self._output), None)
        if at is None:
            raise Unavailable("bad_answer")
        found = answer.outputs[at]
        if at < len(answer.raw_output_contents):
            kind = {"FP32": "<f4", "FP64": "<f8"}.get(found.datatype)
            raw = answer.raw_output_contents[at]
            if kind is None or len(raw) % int(kind[-1]):
                raise Unavailable("bad_answer")
            data = np.frombuffer(raw, kind).astype(np.float32)
        else:
            data = np.array(found.contents.fp32_contents or found.contents.fp64_contents, np.float32)
        return _rows(data, list(found.shape), len(texts))


def _rows(data: F32, shape: list[int], texts: int) -> list[F32]:
    """The tensor as one row of scores a text; Unavailable("bad_answer") when it is not that."""
    if not shape or len(shape) > 2 or shape[0] != texts or math.prod(shape) != data.size or not np.isfinite(data).all():
        raise Unavailable("bad_answer")
    return list(data.reshape(texts, -1))

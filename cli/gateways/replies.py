"""A gateway's own answers (413 at its buffer limit, 503 where no server answers), in the shape of the API called.

Envoy's own texts are not JSON, and no client library reads them. The router's answers go through the same place; they
are recognised by their details, and stay as they are.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from cli.gateways import api
from extproc.apis.registry import SHAPES
from extproc.refusal import Refusal

_OURS: Final = "response.code_details.startsWith('pointsman_') || response.code_details == 'direct_response'"
"""The router's answers, and the answers of routes, which have the API's shape already (CEL; Envoy's attributes)."""
_APIS: Final = (*(shape for shape in SHAPES if shape.sign), SHAPES[0])
"""The APIs with an error shape of their own, and last the one whose shape is taken for all others."""
_TEXTS: Final[tuple[tuple[str, int, str, str], ...]] = (
    ("response.code == 413", 413, "too_large", "The request body is larger than the gateway takes."),
    ("response.code == 408", 408, "request_timeout", "The request did not come in time."),
    ("response.code == 504", 504, "timeout", "No answer came in time."),
    (
        "response.code == 503 && response.code_details.startsWith('ext_proc')",
        503,
        "router_unavailable",
        "The router does not answer at the moment; try again.",
    ),
    ("response.code == 503", 503, "model_unavailable", "The model's server does not answer at the moment; try again."),
    *((f"response.code == {status}", status, "gateway_error", "") for status in (401, 403, 404, 429)),
    ("response.code >= 500", 500, "gateway_error", ""),
    ("response.code >= 400", 400, "gateway_error", ""),
)
"""Of each answer: which one it is (CEL), the status by which its type in the body is chosen, its code, its text."""
_SAID: Final = "The gateway refused the request (CODE, DETAILS)."


def config(only: str = "") -> api.hcm.LocalReplyConfig:
    """`local_reply_config` of Envoy's HttpConnectionManager; the first mapper that fits counts.

    `only` is a condition (CEL) for answers to be ours at all, where others share the connection manager.
    """

    def mapper(condition: str, **fields: Any) -> api.hcm.ResponseMapper:
        whole = f"{only} && ({condition})" if only else condition
        return api.hcm.ResponseMapper(filter=where(whole), **fields)

    mappers = [mapper(_OURS)]
    for condition, status, code, text in _TEXTS:
        for api_shape in _APIS:
            body = orjson.loads(api_shape.error(Refusal(status, text or _SAID, code)))
            shape = api.core.SubstitutionFormatString(
                json_format=api.protobuf.Struct.from_dict(_operators(body)), content_type="application/json"
            )
            fits = f"{condition} && {api_shape.sign}" if api_shape.sign else condition
            mappers.append(mapper(fits, body_format_override=shape))
    return api.hcm.LocalReplyConfig(mappers=mappers)


def where(expression: str) -> api.accesslog.AccessLogFilter:
    """The requests for which `expression` (CEL over Envoy's attributes) is true; those that lack one are not."""
    extension = api.accesslog.ExtensionFilter(
        name="envoy.access_loggers.extension_filters.cel",
        typed_config=api.protobuf.Any.pack(api.cel.ExpressionFilter(expression=expression)),
    )
    return api.accesslog.AccessLogFilter(extension_filter=extension)


def _operators(value: Any) -> Any:
    """`value` with Envoy's command operators instead of our placeholders, in a form that JSON escapes."""
    if isinstance(value, dict):
        return {key: _operators(part) for key, part in value.items()}
    if isinstance(value, str):
        text = value.replace("%", "%%")
        return text.replace("CODE", "%RESPONSE_CODE%").replace("DETAILS", "%RESPONSE_CODE_DETAILS%")
    return value

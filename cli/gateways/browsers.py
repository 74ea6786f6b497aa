"""What a rendered gateway tells browsers (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol).

Nothing unless `render --cors` names origins. No credentials in the sense of CORS (cookies): clients of these APIs send
their keys in headers, which have to be listed one by one, since `*` would not stand for `authorization`.
"""

from __future__ import annotations

import re
from typing import Any, Final

from cli.called import CalledWrongly
from cli.gateways import api, parts
from config.writers import WRITERS

CORS: Final = "envoy.filters.http.cors"

METHODS: Final = ("GET", "POST", "DELETE", "HEAD", "OPTIONS")
_STAINLESS: Final = tuple(
    f"x-stainless-{name}"
    for name in (
        *("arch", "async", "custom-poll-interval", "helper", "helper-method", "lang", "os", "package-version"),
        *("poll-helper", "raw-response", "read-timeout", "retry-count", "runtime", "runtime-version", "timeout"),
    )
)
SENT: Final = (
    *("authorization", "content-type", "content-encoding", "accept", "user-agent", "x-request-id", "idempotency-key"),
    *("api-key", "x-api-key", "openai-organization", "openai-project", "openai-beta"),
    *("anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
    *("x-goog-api-key", "x-goog-api-client"),
    *("x-session-id", "x-app", "x-client-request-id"),
    *_STAINLESS,
)
"""Request headers of the official SDKs, and the session's."""
SHOWN: Final = (
    *(f"x-pointsman-{name}" for name in ("decision", "model", "policy")),
    *(name for kind in WRITERS for name in kind.headers),
    *("retry-after", "request-id", "x-request-id", "openai-processing-ms"),
    *(f"x-ratelimit-{kind}-{of}" for kind in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
"""Response headers that a page may read, beside those that every page may."""
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
_SITE: Final = re.compile(r"\*|https?://[a-z0-9.-]+(?::[0-9]+)?")
MAX_AGE_S: Final = 7200
"""How long browsers remember the answer to a preflight; none does so for longer."""


def origins(texts: list[str]) -> tuple[str, ...]:
    """The origins in the arguments of `--cors`. Raises CalledWrongly for what is none."""
    found = [one.strip(" ") for text in texts for one in text.split(",")]
    for one in found:
        if one != "*" and not _sent(one):
            raise CalledWrongly(
                f"--cors {one!r}: write an origin, such as https://chat.example.com, or * for every page. It must be "
                "as browsers send it: no path, small letters, other alphabets as xn--…, a port only where it is not "
                "the scheme's own"
            )
    return tuple(dict.fromkeys(found))


def _sent(text: str) -> bool:
    """Whether a browser may send `text` as an origin (https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin);
    Envoy compares it letter by letter."""
    parts = _ORIGIN.fullmatch(text)
    if parts is None:
        return False
    scheme, port = parts.groups()
    return port is None or (0 < int(port) < 65_536 and port != {"http": "80", "https": "443"}.get(scheme))


def sites(origins: tuple[str, ...]) -> list[str]:
    """`origins`, which are all that the schemas of the Gateway API and of Envoy Gateway take. Raises CalledWrongly."""
    for one in origins:
        if _SITE.fullmatch(one) is None:
            raise CalledWrongly(
                f"--cors {one!r}: this gateway takes origins of web sites alone (http:// or https:// and a name); "
                "leave it out"
            )
    return list(origins)


def fields() -> dict[str, Any]:
    """The fields that Envoy Gateway and Istio have in common, beside the origins."""
    return {
        "allowMethods": list(METHODS),
        "allowHeaders": list(SENT),
        "exposeHeaders": list(SHOWN),
        "maxAge": f"{MAX_AGE_S}s",
    }


def allow(manager: api.hcm.HttpConnectionManager, origins: tuple[str, ...]) -> None:
    """Let pages of `origins` call through `manager`; `*` is every page."""
    policy = api.cors.CorsPolicy(
        allow_origin_string_match=[api.matcher.StringMatcher(exact=origin) for origin in origins],
        allow_methods=", ".join(METHODS),
        allow_headers=", ".join(SENT),
        expose_headers=", ".join(SHOWN),
        max_age=str(MAX_AGE_S),
    )
    assert manager.route_config is not None
    for host in manager.route_config.virtual_hosts:
        host.typed_per_filter_config[CORS] = parts.pack(policy)
    manager.http_filters.insert(0, api.hcm.HttpFilter(name=CORS, typed_config=parts.pack(api.cors.Cors())))

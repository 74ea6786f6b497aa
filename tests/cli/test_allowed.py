"""The gateway's list of paths is the router's, for every path in plain form."""

import re2
from hypothesis import example, given
from hypothesis import strategies as st

from cli.gateways import allowed
from decisions.catalogue import Catalogue
from decisions.engine import Engine, Opening, Ruleset, Settings
from decisions.model import Model
from extproc.requests import paths

NAMES = ["chat", "completions", "embeddings", "responses", "compact", "input_tokens", "messages", "count_tokens"]
MORE = ["models", "cancel", "input_items", "v1", "v1beta", "V2", "v1234", "v1.", "openai", "OpenAI", "deployments"]
GOOGLE = ["m:generateContent", "M:streamGenerateContent", "m:countTokens", "m:embedContent", "publishers", "models"]
ODD = ["generate", "a%20b", "caf%C3%A9", "resp_1", "a:b", "%2e%2e", "..", ".", "", "a;b", "%0a", "Chat", "@x", "a b"]
PATHS = st.lists(st.sampled_from([*NAMES, *MORE, *GOOGLE, *ODD]), max_size=6).map(lambda words: "/" + "/".join(words))


def matches(expression, path):
    return re2.fullmatch(expression, path) is not None


@given(PATHS)
@example("/v1/responses/input_tokens")
@example("/openai/v1/responses/resp_1/input_items")
@example("/deployments/models")
def test_what_the_router_reads_finds_a_route_when_it_is_spelled_plainly(path):
    target = paths.read(path)
    if target is not None:
        assert matches(allowed.CALLS, (target.path or path).partition("?")[0])


@given(PATHS)
@example("/openai/deployments/gpt/chat/completions")
@example("/responses/v1/models")
@example("/v1/responses/v1/responses/a")
@example("/chat/deployments/../embeddings")
def test_what_finds_a_route_is_read_by_the_router(path):
    dotted = {".", ".."}.intersection(path.split("/"))  # Envoy takes these away before it looks for a route
    if "%" not in path and not dotted and matches(allowed.CALLS, path):  # Envoy undoes the escapes of dots itself
        assert paths.read(path) is not None


MATCHES = ["/", "/*", "/generate", "/generate*", "/generate/*", "/a.b*", "/a$b(c)*", "/v1/audio/*", "/v1/models"]
OPENED = st.tuples(
    st.sampled_from(["/", "/generate", "/gen", "/generate/", "/a.b", "/axb", "/a$b(c)", "/v1/audio/"]),
    st.lists(st.sampled_from(["", "x", "x.", "/x", "%2e", "a:b", "é", "\n", ";x", "\\"]), max_size=4),
).map(lambda parts: parts[0] + "".join(parts[1]))


def policy(*entries):
    models = {key: Model(key, key) for key in ("small", "large")}
    openings = tuple(Opening(*entry) for entry in entries)
    return Engine("", Catalogue(models, "small"), Ruleset(), Settings(openings=openings))


@given(st.lists(st.tuples(st.sampled_from(MATCHES), st.sampled_from(["small", "large"])), max_size=4), OPENED)
@example([("/generate/*", "large"), ("/generate*", "small")], "/generate/x")
@example([("/gen*", "large"), ("/generate/x", "small")], "/generate/x")
def test_an_opened_path_finds_the_route_that_the_router_gives_it(entries, path):
    """In whatever order a gateway asks that takes exact paths first, then longer expressions."""
    if "//" in path or "/." in path or matches(allowed.CALLS, path):  # Envoy brings the first two into plain form
        return
    engine = policy(*entries)
    ranked = sorted(allowed.opened(engine), key=lambda one: (one.exact, len(one.text)), reverse=True)
    for order in (ranked, allowed.opened(engine)):
        found = [one.to for one in order if (path == one.text if one.exact else matches(one.text, path))]
        opened = paths.opening(path, engine.settings.openings)
        assert found[:1] == ([] if opened is None else [opened.to])


def test_a_path_that_the_router_reads_is_never_asked_for():
    for match in ("/v1/models", "/v1/models/*", "/openai/deployments/x/chat/completions", "/Chat/Completions"):
        assert allowed.understood(match)
    for match in ("/v1/models*", "/v1/*", "/*", "/v1/responses/*", "/v1/chat/completions/*", "/generate"):
        assert not allowed.understood(match)

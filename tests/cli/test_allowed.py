"""The gateway's list of paths is the router's, for every path in plain form."""

import re2
from hypothesis import example, given
from hypothesis import strategies as st

from cli.gateways import allowed
from decisions.engine import Opening
from extproc import paths

WORDS = (
    "chat completions embeddings responses compact input_tokens messages count_tokens models v1 v1beta V2 v1234 v1. "
    "openai OpenAI deployments cancel input_items generate audio a%20b caf%C3%A9 resp_1 org:name %2e%2e .. . a;b %0a "
    "Chat @x"
).split() + ["", "a b"]
PATHS = st.lists(st.sampled_from(WORDS), max_size=6).map(lambda words: "/" + "/".join(words))


def matches(expression, path):
    return re2.fullmatch(expression, path) is not None


@given(PATHS)
@example("/v1/responses/input_tokens")
@example("/openai/v1/responses/resp_1/input_items")
def test_what_the_router_reads_finds_a_route_when_it_is_spelled_plainly(path):
    target = paths.read(path)
    if target is not None:
        assert matches(allowed.CALLS, (target.path or path).partition("?")[0])


@given(PATHS)
@example("/openai/deployments/gpt/chat/completions")
def test_what_finds_a_route_is_read_by_the_router(path):
    if "%" not in path and matches(allowed.CALLS, path):  # Envoy undoes the escapes of dots itself
        assert paths.read(path) is not None


MATCHES = ["/", "/*", "/generate", "/generate*", "/generate/*", "/a.b*", "/a$b(c)*", "/v1/audio/*"]
OPENED = st.tuples(
    st.sampled_from(["/", "/generate", "/gen", "/generate/", "/a.b", "/axb", "/a$b(c)", "/v1/audio/"]),
    st.lists(st.sampled_from(["", "x", ".x", "x.", "..", "/", "//", "%2e", "a:b", "é", "\n", ";x", "\\"]), max_size=4),
).map(lambda parts: parts[0] + "".join(parts[1]))


@given(st.sampled_from(MATCHES), OPENED)
def test_an_opened_path_finds_its_route_where_the_router_lets_it_on(match, path):
    opening = Opening(match, "small")
    expression = allowed.expression(opening)
    found = path == match if expression is None else matches(expression, path)
    assert found == (paths.opening(path, [opening]) is not None)

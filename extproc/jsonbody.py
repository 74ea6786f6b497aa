"""Strict JSON: a body means one thing to every reader, and its size in values is bounded before it is read.

orjson accepts RFC 8259 and nothing else. What is added here: a key that stands twice in one object is refused, since
some readers take the first and some the last; and the number of values is bounded, since a reader builds an object for
each, however few bytes they take. Also the text of a body: every string of it that a model may be shown.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final
from urllib.parse import unquote

import orjson

from extproc.refusal import Refusal


def load(body: bytes, most: int) -> dict[str, Any]:
    """The object in `body`, of at most `most` values. Raises `Refusal` (400, 413) for anything else."""
    if len(body) > 2 * most and _values(body, most) > most:
        raise Refusal(413, f"The request body holds more than {most} JSON values.", "too_many_values")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _malformed(body, error) from None
    if type(fields) is not dict:
        raise Refusal(400, f"The request body must be a JSON object, not {kind(fields)}.", "invalid_type")
    return fields


def _values(body: bytes, most: int) -> int:
    """How many JSON values `body` holds, about; exact only where that could be more than `most`."""
    rough = values_at_most(body)
    if rough <= most:
        return rough
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if _count(plain, b'"') > 4 * most:  # so many strings alone
        return most + 1
    return values_at_most(b"".join(plain.split(b'"')[::2]))


def values_at_most(body: bytes) -> int:
    """How many JSON values `body` holds at most, but for one; marks that are inside strings are counted with them."""
    return _count(body, b",") + _count(body, b"[") + _count(body, b"{")


def _count(body: bytes, mark: bytes) -> int:
    """How often the byte `mark` is in `body`. Ten times as fast as `bytes.count` where that is seldom (Python 3.11)."""
    return len(body) - len(body.replace(mark, b""))


def _malformed(body: bytes, error: orjson.JSONDecodeError) -> Refusal:
    if not body.strip():
        return Refusal(400, "The request body is empty; a JSON object is needed.", "empty_body")
    where = f"line {error.lineno}, column {error.colno}"
    if "depth limit" in error.msg:
        return too_deep()
    return Refusal(400, f"The request body is not valid JSON ({error.msg.split(':')[0]}, {where}).", "invalid_json")


def too_deep() -> Refusal:
    return Refusal(400, "The request body is nested too deeply.", "nested_too_deeply")


def kind(value: Any) -> str:
    """What `value` is, in words for a client."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string" if value else "an empty string"
    return "an array" if isinstance(value, list) else "an object"


# Keys that stand twice

_ESCAPED: Final = re.compile(rb'\\["\\]')


def unambiguous(body: bytes, strings: int) -> None:
    """Raises `Refusal` (400) when an object of `body` holds a key twice.

    `strings` is how many strings and keys the parsed body has.

    Every string and key of a body stands between two quotes, and a key that is repeated is lost by parsing. So the
    quotes of the bytes, less those that are escaped, tell whether one was; only then is the body read again to find it.
    """
    quotes = body.count(b'"') if 100 * strings > len(body) else _count(body, b'"')
    if b"\\" in body:
        quotes -= _ESCAPED.findall(body).count(b'\\"')
    if quotes == 2 * strings:
        return
    try:
        json.loads(body, object_pairs_hook=_unique)
    except RecursionError:
        raise too_deep() from None


def _unique(pairs: list[tuple[str, Any]]) -> None:
    keys: set[str] = set()
    for key, _ in pairs:
        if key in keys:
            shown = key if len(key) <= 64 else f"{key[:64]}…"
            raise Refusal(400, f"The request body holds the key {shown!r} twice in one object.", "duplicate_key")
        keys.add(key)


# Text

_WORDS: Final[str] = """
    system developer user assistant tool function model message text input_text output_text summary_text reasoning_text
    refusal image image_url input_image audio input_audio audio_url file input_file document video video_url tool_use
    tool_result server_tool_use web_search_tool_result thinking redacted_thinking function_call function_call_output
    computer_call computer_call_output computer_screenshot reasoning item_reference custom custom_tool_call
    custom_tool_call_output local_shell_call local_shell_call_output shell_call shell_call_output mcp mcp_call
    mcp_list_tools mcp_approval_request mcp_approval_response file_search_call web_search_call code_interpreter_call
    image_generation_call apply_patch_call apply_patch_call_output ephemeral base64 url content json_schema json_object
    object string number integer boolean array null auto low medium high minimal xhigh max none required any completed
    in_progress incomplete failed enabled disabled adaptive web_search file_search code_interpreter computer_use_preview
    image/png image/jpeg image/gif image/webp application/pdf text/plain search_result container_upload exec
    output_image
"""
_SAID: Final = frozenset(_WORDS.split())
_NAMES: Final[str] = """
    type role content text name id input output arguments tool_calls tool_call_id tool_use_id call_id function index
    parameters properties required items description enum title strict additionalProperties $schema default format
    anyOf oneOf allOf minimum maximum pattern status summary annotations logprobs source data media_type url detail
    image_url input_audio file file_id file_data filename file_url cache_control ttl is_error thinking signature
    encrypted_content reasoning_content reasoning refusal audio namespace tools messages system instructions prompt
    action command query queries results stdout stderr return_code exit_code outcome citations context input_schema
"""
_PLAIN: Final = 0
_OTHER: Final = 1
_CALLED: Final = 2
_CLOSED: Final = 3
_BYTES: Final = 4
_DATA: Final = 5
_KEYS: Final = (
    dict.fromkeys(_NAMES.split(), _PLAIN)
    | dict.fromkeys(("input", "arguments", "parameters", "input_schema", "schema"), _CALLED)
    | dict.fromkeys(
        ("type", "role", "status", "detail", "format", "media_type", "effort", "verbosity", "object"), _CLOSED
    )
    | dict.fromkeys(("url", "image_url", "signature", "encrypted_content", "result"), _BYTES)
    | dict.fromkeys(("data", "file_data"), _DATA)
)
"""Keys that are the API's (or JSON Schema's) own words; any other key is somebody's text, and may be shown.

The value of a closed one is the API's own, too, where it is one of those words. Data may be a text document in base64,
and like bytes it may be something else encoded. Whatever is below the called ones reaches the model as it stands: it is
what tools are and what they get.
"""
_BLOB: Final = 512
"""Characters from which on a value may be encoded bytes instead of text."""
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="


def collect(root: Any, found: list[str], joined: list[str] | None = None, blobs: bool = True) -> int:
    """Add every string below `root` that a model may be shown to `found`; how many strings and keys there are at all.

    Left out are the API's own words (`"type": "text"`, its keys) and, with `blobs`, encoded bytes (images, signatures);
    a text document in base64 is added decoded. The strings of an object come in order, before those of the objects
    inside it. What several texts of one list are when they are joined with nothing is added to `joined` (None: to
    `found`).
    """
    if joined is None:
        joined = found
    count = 0
    stack: list[Any] = [root]
    while stack:
        value = stack.pop()
        if type(value) is str:
            count += 1
            found.append(value)
        elif type(value) is dict:
            count += len(value)
            below = []
            for key, item in value.items():
                role = _KEYS.get(key, _OTHER)
                if role == _OTHER:
                    found.append(key)
                if type(item) is str:
                    count += 1
                    if role >= _CLOSED:
                        if role == _CLOSED and item in _SAID:
                            continue
                        if role == _DATA and (text := decoded(item, value.get("media_type"))) is not None:
                            found.append(text)
                        if blobs and role >= _BYTES and len(item) > _BLOB and _encoded(value, key, item):
                            continue
                    found.append(item)
                elif type(item) is dict or type(item) is list:
                    if blobs and role == _CALLED:
                        count += collect(item, found, joined, False)
                    else:
                        below.append(item)
                elif type(item) is int and item > 99_999_999:  # a card or account number written as one
                    found.append(str(item))
            below.reverse()
            stack += below
        elif type(value) is list:
            if len(value) > 1:
                _join(value, joined)
                if type(value[0]) is int and type(value[-1]) is int:  # token ids, mostly
                    value = [item for item in value if type(item) is not int]
            stack += reversed(value)
    return count


def _join(parts: list[Any], joined: list[str]) -> None:
    """Add the texts of `parts`, joined with nothing as some templates join them, where there are several."""
    texts = []
    for part in parts:
        text = part
        if type(part) is dict:
            text = part.get("text")
            if text is None:  # some readers compare keys without regard to case
                text = next((item for key, item in part.items() if len(key) == 4 and key.lower() == "text"), None)
        if type(text) is str:
            texts.append(text)
    if len(texts) > 1:
        joined.append("".join(texts))


def _encoded(part: dict[str, Any], key: str, value: str) -> bool:
    """Whether `value` is where an API takes bytes in base64 and never shows them as text, and is such."""
    form = part.get("type")
    if key == "data":
        media = part.get("media_type")
        image = form == "base64" and type(media) is str and not media.lower().startswith("text/")
        fits = image or form == "redacted_thinking" or part.keys() == {"data", "format"}
    elif key == "url":
        fits = value.startswith("data:image/") and part.keys() <= {"url", "detail"}
    elif key == "image_url":
        fits = value.startswith("data:image/") and form in ("input_image", "computer_screenshot", "image_url")
    elif key == "file_data":
        fits = part.keys() <= {"type", "file_data", "filename"}
    elif key == "signature":
        fits = form == "thinking"
    elif key == "encrypted_content":
        fits = form in ("reasoning", "compaction", "web_search_result")
    else:
        fits = key == "result" and form == "image_generation_call"
    if not fits:
        return False
    if value.startswith("data:"):
        kind, _, value = value.partition(",")
        if not kind.endswith(";base64"):
            return False
    sealed = key == "signature" or key == "encrypted_content" or form == "redacted_thinking"  # the alphabet of URLs too
    return value.isascii() and not value.encode().translate(None, _ALPHABET + b"-_" if sealed else _ALPHABET)


def decoded(data: str, media: Any) -> str | None:
    """The text in base64 or in a `data:` URL that says that it is text; None for everything else."""
    if data.startswith("data:"):
        media, _, data = data[5:].partition(",")
        if media.startswith("text/") and not media.endswith(";base64"):
            return unquote(data)
    if type(media) is not str or not media.lower().startswith("text/"):
        return None
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        return None

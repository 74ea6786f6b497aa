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
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Final
from urllib.parse import unquote

import orjson

from extproc.refusal import Refusal
from signals.background import rest

_loads: Final = orjson.loads  # names of this module's own are found sooner, as everywhere on the way of a request
_dumps: Final = orjson.dumps


def load(body: bytes, most: int) -> dict[str, Any]:
    """The object in `body`, of at most `most` values. Raises `Refusal` (400, 413) for anything else."""
    if len(body) > 2 * most and _too_many(body, most):
        raise Refusal(413, f"The request body holds more than {most} JSON values.", "too_many_values")
    try:
        fields = _loads(body)
    except orjson.JSONDecodeError as error:
        raise _malformed(body, error) from None
    if type(fields) is not dict:
        raise Refusal(400, f"The request body must be a JSON object, not {kind(fields)}.", "invalid_type")
    return fields


def _too_many(body: bytes, most: int) -> bool:
    """Whether `body` holds more than `most` JSON values. Read in parts, and no further than what tells."""
    rough = 0
    for at in range(0, len(body), _PART):
        rough += values_at_most(body[at : at + _PART])
        rest()
        if rough > most:
            break
    else:
        return False
    values = quotes = inside = 0
    for part in _unescaped(body):
        pieces = part.split(b'"')
        values += values_at_most(b"".join(pieces[inside::2]))
        quotes += len(pieces) - 1
        if values > most or quotes > 4 * most:
            return True
        inside = (inside + len(pieces) - 1) % 2
    return False


def _unescaped(body: bytes) -> Iterator[bytes]:
    """`body` in parts, without escaped backslashes and quotes: every quote that is left begins or ends a string."""
    at = 0
    while at < len(body):
        part = body[at : at + _PART]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:  # what is escaped belongs to its backslash
            part = body[at : at + _PART + 1]
        at += len(part)
        yield part.replace(b"\\\\", b"").replace(b'\\"', b"")
        rest()


_PART: Final = 64 * 1024
"""Bytes of a body that are read at a time, where others may run in between."""
_LONG: Final = 256 * 1024
"""Bytes from which on a body is looked at in such parts only: it is read in a thread."""
_SAMPLE: Final = 2048
_SMALL: Final = 2048


def values_at_most(body: bytes) -> int:
    """How many JSON values `body` holds at most, but for one; marks that are inside strings are counted with them."""
    return count(body, b",") + count(body, b"[") + count(body, b"{")


def count(body: bytes, mark: bytes) -> int:
    """How often the byte `mark` is in `body`.

    `bytes.count` takes as long however often that is (Python 3.11); where it is seldom, cutting it out is up to ten
    times as fast, and where it is often several times as slow. The middle of a body tells: its ends are full of marks.
    """
    size = len(body)
    middle, span = size // 2, min(size // 16, _SAMPLE)
    if size <= _SMALL or 100 * body.count(mark, middle, middle + span) > span:
        return body.count(mark)
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


def unambiguous(body: bytes, fields: dict[str, Any], strings: int | None) -> None:
    """Raises `Refusal` (400) when an object of `body` holds a key twice.

    Every string and key of a body stands between two quotes, and a key that is repeated is lost by parsing. So the
    quotes of the bytes tell whether one was, beside those of what was parsed; only then is the body read again to find
    it. `strings` is how many strings and keys `fields` has, none of which has an escape in `body`; where nobody knows
    (None), `fields` is written as JSON again. Most clients write as we do, without spaces, and that tells at a look.
    Of a long body the strings are counted instead, since nobody else can run while it is written.
    """
    if len(body) > _LONG:
        held = _strings(fields) if strings is None else strings
        if sum([count(part, b'"') for part in _unescaped(body)]) == 2 * held:
            return
    elif strings is not None:
        if count(body, b'"') == 2 * strings:
            return
    else:
        try:
            written = _dumps(fields)
            # A quote inside a string has one more in both, but for one that is written as a number in `body`.
            if written == body or (count(body, b'"') == count(written, b'"') and body.find(b"\\u0022") < 0):
                return
        except orjson.JSONEncodeError:  # nested more deeply than that can be written
            plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
            if count(plain, b'"') == 2 * _strings(fields):
                return
    try:
        json.loads(body, object_pairs_hook=_unique)
    except RecursionError:
        raise too_deep() from None


def _strings(root: Any) -> int:
    """How many strings and keys there are below `root`, however deep that is."""
    count = steps = 0
    stack = [root]
    while stack:
        value = stack.pop()
        steps += 1
        if not steps & 511:
            rest()
        if type(value) is str:
            count += 1
        elif type(value) is dict:
            count += len(value)
            stack += value.values()
        elif type(value) is list:
            stack += value
    return count


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
PLAIN: Final = 0
_OTHER: Final = 1
_CLOSED: Final = 2
_DATA: Final = 3
_CALLED: Final = 4
KEYS: Final = (
    dict.fromkeys(_NAMES.split(), PLAIN)
    | dict.fromkeys(
        ("type", "role", "status", "detail", "format", "media_type", "effort", "verbosity", "object"), _CLOSED
    )
    | dict.fromkeys(("data", "file_data"), _DATA)
    | {"arguments": _CALLED}
)
"""Keys that are the API's (or JSON Schema's) own words; any other key is somebody's text, and may be shown.

The value of a closed one is the API's own, too, where it is one of those words. Data may be a text document in base64.
What a tool is called with is JSON in a string: some servers show a model that string, some what is read from it.
"""
_BLOB: Final = 512
"""Characters from which on encoded bytes are left out of the text; shorter ones are read like it."""
_ACCOUNT: Final = 99_999_999
"""A number beyond this may be that of a card or an account, and is read as the text that it is."""


def collect(
    root: Any,
    found: list[str],
    joined: list[str] | None = None,
    blobs: set[int] | None = None,
    keys: dict[str, int] = KEYS,
) -> None:
    """Add every string below `root` that a model may be shown to `found`.

    Left out are the API's own words (`"type": "text"`, its `keys`) and encoded bytes: the strings whose `id` is in
    `blobs`, which the caller found where the API has bytes. A text document in base64 and the arguments of a call are
    added as they are and decoded. The strings of an object come in order, before those of the objects inside it. What
    several texts of one list are when they are joined with nothing is added to `joined` (None: to `found`).
    """
    if joined is None:
        joined = found
    stack: list[Any] = [root]
    steps = 0
    while stack:
        value = stack.pop()
        steps += 1
        if not steps & 511:  # compiled code lets nobody else run
            rest()
        if type(value) is str:
            found.append(value)
        elif type(value) is dict:
            below = []
            media: Any = value
            for key, item in value.items():
                role = keys.get(key, _OTHER)
                if role == _OTHER:
                    found.append(key)
                    # Some readers compare keys without regard to case.
                    if len(key) <= 16 and (other := keys.get(key.lower(), _OTHER)) >= _DATA:
                        role = other
                if type(item) is str:
                    if role >= _CLOSED:
                        if role == _CLOSED and item in _SAID:
                            continue
                        plain: str | None = None
                        if role == _DATA:
                            if media is value:  # looked for once, however many such keys there are
                                media = _media(value)
                            plain = decoded(item, media)
                        elif role == _CALLED and "\\" in item:
                            plain = unescaped(item)
                        if plain:
                            found.append(plain)
                    if blobs and id(item) in blobs:
                        continue
                    found.append(item)
                elif type(item) is dict or type(item) is list:
                    below.append(item)
                elif type(item) is int and (item > _ACCOUNT or item < -_ACCOUNT):
                    found.append(str(item))
            if len(below) > 1:
                below.reverse()
            stack += below
        elif type(value) is list:
            if len(value) > 1:
                _join(value, joined)
                if type(value[0]) is int and type(value[-1]) is int:  # token ids, mostly
                    value = [item for item in value if type(item) is not int or item > _ACCOUNT or item < -_ACCOUNT]
            stack += reversed(value)
        elif type(value) is int and (value > _ACCOUNT or value < -_ACCOUNT):
            found.append(str(value))


def _media(holder: dict[str, Any]) -> Any:
    """The media type that stands beside encoded data, however its key is spelled.

    Of several the first that says text: who knows which of them a server looks at.
    """
    first: Any = None
    for key, value in holder.items():
        if len(key) <= 10 and key.lower() in ("media_type", "mimetype", "mime_type"):
            if type(value) is str and _TEXT.fullmatch(value) is not None:
                return value
            if first is None:
                first = value
    return first


def _join(parts: list[Any], joined: list[str]) -> None:
    """Add the texts of `parts`, joined with nothing as some templates join them, where there are several."""
    texts = []
    folded = []  # as readers have them that compare keys without regard to case: the last one counts
    for number, part in enumerate(parts):
        if number & 511 == 511:
            rest()
        text = last = part
        if type(part) is dict:
            text, last = part.get("text"), None
            for key, item in part.items():
                if len(key) == 4 and key.lower() == "text":
                    last = item
            if text is None:
                text = last
        if type(text) is str:
            texts.append(text)
        if type(last) is str:
            folded.append(last)
    if len(texts) > 1:
        joined.append("".join(texts))
    if len(folded) > 1 and folded != texts:
        joined.append("".join(folded))


_TEXT: Final = re.compile(r"text/[a-z0-9.+-]{1,80}(;charset=\"?(utf-?8|us-ascii)\"?)?")


def decoded(data: str, media: Any) -> str | None:
    """The text in base64 or in a `data:` URL (RFC 2397) that says that it is text in UTF-8; None for everything else.

    What another reader might take for another text is none: other letters or parameters in what says so, zero bytes.
    """
    plain = False
    if data.startswith("data:"):
        media, _, data = data[5:].partition(",")
        plain = not media.endswith(";base64")
        media = media.removesuffix(";base64")
    if type(media) is not str or _TEXT.fullmatch(media) is None:
        return None
    try:
        text = unquote(data, errors="strict") if plain else base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return None if "\0" in text else text


_URL: Final = re.compile(r"data:[A-Za-z0-9.+/=;-]{0,200};base64,")
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="


def encoded(value: str) -> bool:
    """Whether `value` is many bytes in base64 (RFC 4648, either alphabet), alone or in a `data:` URL (RFC 2397)."""
    if len(value) <= _BLOB or not value.isascii():
        return False
    url = _URL.match(value)
    left = value[url.end() if url else 0 :].encode().translate(None, _BASE64)
    return not left or not (url or left.strip(b"-_"))


def unescaped(text: str) -> str:
    """JSON in a string with the escapes of its strings undone; '' where an escape is none that JSON has.

    What stands outside of its strings stays, quotes too.
    """
    plain = text.replace("\\\\", "\\u005c").replace('\\"', "\\u0022").replace('"', "\\u0022")
    try:
        # As one string of JSON: the quotes above stand escaped in it.
        read: str = scanstring(plain + '"', 0, False)[0]
    except ValueError:
        return ""
    return read.encode(errors="replace").decode()


def dicts(holder: Any, key: str) -> list[dict[str, Any]]:
    """The objects in the list `holder[key]`; none where there is no such list."""
    found = holder.get(key) if type(holder) is dict else None
    return [entry for entry in found if type(entry) is dict] if type(found) is list else []

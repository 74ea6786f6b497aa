"""Which headers carry a credential, and so are never logged nor told."""

from __future__ import annotations

import re

_CREDENTIAL = re.compile(
    r"(?:^|[-_])(?:authorization|authentication|cookie2?|credentials?|passw(?:or)?d|secret|signature|token"
    r"|(?:api|access|auth|subscription|private)[-_]?key|jwt|assertion)(?:$|[-_])"
)


def credential(header: str) -> bool:
    """Whether a header of this name carries a credential, as `authorization`, `x-api-key` and their like do."""
    return _CREDENTIAL.search(header.lower()) is not None

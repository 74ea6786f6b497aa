"""The web page of the admin port: one page, one style sheet, one script, without a build step and without a download.

The page is the same for everybody and holds nothing of a router: what it shows it asks the admin port for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

_FOLDER: Final = Path(__file__).parent
_POLICY: Final = (
    *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"),
    *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    "require-trusted-types-for 'script'",
)


class File(NamedTuple):
    """A file of the page."""

    name: str
    content_type: str

    def content(self) -> bytes:
        """What is in it. Raises OSError where the installation is broken."""
        return (_FOLDER / self.name).read_bytes()


FILES: Final = {
    "/console": File("console.html", "text/html; charset=utf-8"),
    "/console/console.css": File("console.css", "text/css; charset=utf-8"),
    "/console/console.js": File("console.js", "text/javascript; charset=utf-8"),
    "/console/icon.svg": File("icon.svg", "image/svg+xml"),
}

HEADERS: Final = (
    ("content-security-policy", "; ".join(_POLICY)),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
)
"""A page that runs only our script, sends nothing elsewhere, and stands in nobody's frame (W3C CSP Level 3)."""

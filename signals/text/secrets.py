"""Keys, tokens and passwords: how they look, what stands before them, and which are only examples of themselves."""

from __future__ import annotations

import re
from base64 import b64decode
from typing import Final

FORMS: Final = "|".join(
    (
        r"(?:AKIA|ASIA)[A-Z2-7]{16}",  # AWS access key
        r"gh[pousr]_[A-Za-z0-9]{36,251}",  # GitHub tokens
        r"github_pat_[A-Za-z0-9_]{40,251}",
        r"gl(?:pat|rt|dt|cbt|ptt)-[A-Za-z0-9_-]{20,}",  # GitLab
        r"sk-(?:ant-|proj-|svcacct-|admin-|or-v1-)?[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic, OpenRouter
        r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{10,}",  # Slack
        r"AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{30,}|GOCSPX-[A-Za-z0-9_-]{24,}",  # Google
        r"(?:sk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{24,}",  # Stripe
        r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
        r"npm_[A-Za-z0-9]{36}",
        r"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}",
        r"do[oprt]_v1_[a-f0-9]{64}",  # DigitalOcean
        r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",  # SendGrid
        r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",  # Shopify
        r"sq0(?:atp|csp)-[A-Za-z0-9_-]{22,}",  # Square
        r"dapi[a-f0-9]{32}",  # Databricks
        r"hv[sbr]\.[A-Za-z0-9_-]{24,}",  # Vault
        r"(?:gsk|xai|nvapi|pplx|r8|lin_api|ntn|secret)[_-][A-Za-z0-9_-]{32,}",  # Groq, xAI, NVIDIA …
        r"ATATT3[A-Za-z0-9_=-]{50,}",  # Atlassian
        r"SK[a-f0-9]{32}|key-[a-f0-9]{32}",  # Twilio, Mailgun
        r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram
        r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}",  # Discord
        r"AGE-SECRET-KEY-1[A-Z0-9]{58}",
        r"hooks\.slack\.com/services/T[A-Z0-9]{8,}/B[A-Z0-9]{8,}/[A-Za-z0-9]{20,}",
        r"discord(?:app)?\.com/api/webhooks/\d{17,20}/[\w-]{60,}",
    )
)
"""Keys and tokens that tell whose they are."""

LINK: Final = r"(?i)\b[a-z][a-z0-9+.-]*://[^\s:/?#@'\"<>`]*:([^\s@'\"<>`]+)@[^\s@/'\"<>`]"
"""RFC 3986, 3.2.1: a password in a link, to a database say."""
_NAME: Final = (
    r"pass(?:word|wd|phrase|code)?|pwd|passwort|kennwort|contrase(?:ñ|n)a|mot[ _]de[ _]passe|senha|secret|token|"
    r"api[ _-]?key|access[ _-]?key|secret[ _-]?(?:access[ _-]?)?key(?:_base)?|auth[ _-]?key|private[ _-]?key|"
    r"account[ _-]?key|client[ _-]?secret|encryption[ _-]?key|signing[ _-]?key|master[ _-]?key|"
    r"license[ _-]?key|credentials?"
)
_BETWEEN: Final = r"\s*(?:=>|:=|[:=])\s*|\s+(?:is|ist|lautet|est|es|è|é|jest|är|er)\s+"
ASSIGNED: Final = rf"(?i)(?:{_NAME})[\"']?(?:{_BETWEEN})[\"']?([^\s\"'`,;&<>)]{{8,}})"
"""A value after a name that says it is secret."""
OPTION: Final = (
    rf"(?i)(?:--(?:{_NAME})[ =]+|\b(?:mysql|mysqldump|sshpass|redis-cli|mongosh?)\b[^\n]*\s-[pa]\s?|"
    r"secret[_ -]?(?:access[_ -]?)?key\s+)[\"']?([^\s\"'`,;&<>)]{6,})"
)
"""A value on a command line."""
BEARER: Final = r"(?i)\b(?:bearer|authorization[\"']?\s*[:=]\s*[\"']?token)[ =:]+([A-Za-z0-9._~+/-]{16,}=*)"
"""RFC 6750."""
BASIC: Final = r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?basic\s+([A-Za-z0-9+/]{8,}={0,2})"
"""RFC 7617."""
CURL: Final = r"\bcurl\b[^\n]*\s(?:-u|--user)[ =]?[\"']?[^\s:\"']+:([^\s\"']{4,})"
SIGNED: Final = r"[?&]sig=([A-Za-z0-9%+/]{40,}=*)"
"""Azure's shared access signature."""

_SAMPLE = re.compile(r"(?i)example|sample|x{4,}|placeholder|your[-_]?|\*{3}|redacted|dummy|\.{3}|…")
_STAND_IN = re.compile(
    r"(?i)^(?:\$|%|\{|<|\[|\()|\$\{|\{\{|\(|^(?:pass|pwd|pw|password|passwd|secret|token|user|root|admin|postgres|test|guest|"
    r"change[-_]?(?:me|it|this)|none|null|undefined|true|false|string|key|env|process|os|config|settings|self|this|args|"
    r"required|optional|foo|bar)(?:\d{0,3}|[-_.\[].*)$|insert|replace|todo|my[-_]?(?:pass|secret|key|token)"
)
_KNOWN: Final = frozenset(
    (
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",  # AWS's documentation
        "sk_test_4eC39HqLyjWDarjtT1zdp7dc",  # Stripe's
        "sk_test_BQokikJOvBiI2HlWgH4olfQ2",
        "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",  # jwt.io's
        "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",  # RFC 7515's
        "mF_9.B5f-4.1JqM",  # RFC 6750's
    )
)
"""Secrets that everybody knows."""


_PLACE = re.compile(r"https?:|\.{0,2}(?:/[a-z0-9_.-]+)+/?$")


def sample(value: str) -> bool:
    """Whether a key or a token stands for itself in documentation."""
    return value in _KNOWN or value.rpartition(".")[2] in _KNOWN or _SAMPLE.search(value) is not None


def password(value: str) -> str | None:
    """A password in a link: anything that is no stand-in for one."""
    return None if len(value) < 3 or _STAND_IN.search(value) or sample(value) or len(set(value)) < 3 else value


def assigned(value: str) -> str | None:
    """What looks random: letters with figures or signs, no stand-in, no path and no expression."""
    value = value.rstrip(".!?")
    if password(value) is None or len(value) < 8 or _PLACE.match(value):
        return None
    letters, figures = any(map(str.isalpha, value)), any(map(str.isdigit, value))
    if letters and figures and not re.fullmatch(r"[a-z_]+(?:[._][a-z0-9_]+)+\d?|v?\d+(?:\.\d+)+\w*", value):
        return value
    signs = any(char in "!@#$%^&*+~?" for char in value)
    return value if letters and signs and "(" not in value else None


def token(value: str) -> str | None:
    return None if _STAND_IN.search(value) or sample(value) or (value.isalpha() and value.islower()) else value


def basic(value: str) -> str | None:
    try:
        name, colon, secret = b64decode(value + "=" * (-len(value) % 4), validate=True).decode().partition(":")
    except ValueError:
        return None
    return value if name and colon and password(secret) is not None else None

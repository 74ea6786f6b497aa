"""Measures `pii`: `python -m signals.train.harmless`. Harmless text that looks like personal data, and secrets.

Both are made by a seed: order numbers in a dozen languages, versions, log lines, hashes, times, addresses of manuals;
and secrets as they stand in configuration, code, commands and chat. Every text is new, so that nothing can be tuned to
one of them.
"""

from __future__ import annotations

import argparse
import base64
import random
import string
import uuid
from collections.abc import Callable
from typing import Final

from signals.facts import Facts
from signals.gather import read
from signals.kinds.pii import Pii, PiiParams
from signals.request import Message, Request
from signals.signal import Shared
from signals.text.detectors import luhn

KINDS: Final = ["email", "phone", "iban", "card", "ssn", "ip", "mac", "crypto", "secret"]
_ORDER: Final = (
    "Where is my order {}?",
    "Order #{} has not arrived",
    "order number {} please",
    "Invoice {} is overdue",
    "my tracking number is {}",
    "order_id={}",
    '{{"order_id": {}}}',
    '{{"id": "{}", "state": "open"}}',
    "ticket {} is still open",
    "Bestellung {} ist nicht da",
    "Meine Bestellnummer ist {}",
    "Rechnung Nr. {}",
    "Sendungsnummer: {}",
    "Kundennummer {}",
    "Ma commande {} n'est pas arrivée",
    "numéro de suivi {}",
    "Mi pedido {} no ha llegado",
    "factura {}",
    "Il mio ordine {}",
    "zamówienie {}",
    "bestelling {}",
    "encomenda {}",
    "customer id {}",
    "SKU {}",
    "serial number {}",
    "transaction {} failed",
    "case {} was closed",
    "reference: {}",
    "shipment {} left the warehouse",
    "session {} expired",
)
_VERSION: Final = (
    "Bump to version {}",
    "upgrade from {} to {}",
    "v{} is out",
    "release {}",
    "pip install thing=={}",
    "Chrome/{} Safari/537.36",
    "see section {} of the spec",
    "firmware {} fixes it",
    "driver version: {}",
    '"version": "{}"',
    "chapter {}",
    "Version {} ist da",
    "update auf {}",
    "la versión {}",
    "thing-{}.jar",
    "requires >= {}",
    "§ {}",
    "build {}",
    "SDK {}",
    "the plugin {} crashes",
)
_LOG: Final = (
    "{day}T{hour}.123Z INFO worker-{few} request {uuid} took {ms} ms",
    "[{day} {hour}] ERROR: connection to 127.0.0.1:{port} refused",
    "{day} {hour},512 - root - WARNING - retry {few}/5 in {ms}.{few} s",
    "{epoch} {uuid} GET /api/v1/items/{long} 200 {ms}",
    "level=info ts={epoch}.{few} msg=done id={long} bytes={long}",
    "Jan {few} {hour} host kernel: [{ms}.{long}] usb 1-1: new device",
    "pid {port} tid {long} exited with 0",
    "{hour}:{few}:11 tick",
    "commit {sha} by ci at {day}",
    "sha256:{hash}",
    'etag: "{md5}"',
    "trace_id={md5} span_id={half} duration={ms}ms",
    "listening on 0.0.0.0:{port}",
    '127.0.0.1 - - [{day}:{hour}] "GET / HTTP/1.1" 200 {long}',
    "GC pause {ms}.{few}ms heap {long}->{long}",
    "E{few}{few} {hour}.{long} {port} main.go:42] cannot open",
    "0x{half}: mov",
    "rev {sha}",
)
_PLAIN: Final = (
    "git clone git@github.com:org/repo.git",
    "mask 255.255.255.0",
    "ping 192.0.2.{few}",
    "curl http://203.0.113.{few}/x",
    "2001:db8::{few}",
    "aws key AKIAIOSFODNN7EXAMPLE",
    "icon@2x.png",
    "postgres://user:password@localhost/db",
    'api_key = os.environ["API_KEY"]',
    "password: ${{DB_PASSWORD}}",
    "Authorization: Bearer <token>",
    "export TOKEN=your-token-here",
    "max_tokens: {long}",
    "the password must have eight characters",
    "token: string",
    "0.{long}{long}",
    "{long}.{few} + {long}.{few}",
    "{day} to {day}",
    "pi is 3.14159265358979",
    "secret: required",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxx",
    "uuid {uuid}",
    "{md5}",
    "{hash}",
    "size {long} bytes",
)
_SECRETS: Final = (
    "postgres://app:{pw}@db.internal:5432/app",
    "mysql://root:{pw}@10.0.0.5/shop",
    "mongodb+srv://svc:{pw}@cluster0.abc.mongodb.net/x",
    "redis://:{pw}@cache:6379/0",
    "amqp://worker:{pw}@mq/",
    "DATABASE_URL=postgresql://u:{pw}@h/d",
    "https://bot:{pw}@git.corp.test/x.git",
    "aws_secret_access_key = {aws}",
    "AWS_SECRET_ACCESS_KEY={aws}",
    '"secretAccessKey": "{aws}"',
    "my AWS secret key is {aws}",
    "Authorization: Bearer {tok}",
    "curl -H 'Authorization: Bearer {tok}' https://x",
    "the bearer token is Bearer {tok}",
    "Server=db;Database=x;User Id=sa;Password={pw};",
    "Data Source=h;User ID=u;Pwd={pw}",
    "AccountName=a;AccountKey={b64};Endpoint=x",
    "Endpoint=sb://n/;SharedAccessKeyName=r;SharedAccessKey={b64}",
    "jdbc:mysql://h/d?user=u&password={pw}",
    'password = "{pw}"',
    "api_key: {tok}",
    "client_secret={tok}",
    "API_TOKEN='{tok}'",
    "x-api-key: {tok}",
    "DB_PASSWORD={pw}",
    "mein Passwort: {pw}",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE{b64}",
    "-----BEGIN PRIVATE KEY-----\n{b64}",
    "AKIA{up}",
    "ghp_{alnum36}",
    "sk-proj-{tok}",
    "xoxb-{long}-{tok}",
    "AIza{alnum35}",
    "glpat-{alnum20}",
    "npm_{alnum36}",
    "sk_live_{alnum24}",
    "hf_{alnum36}",
    "curl -u admin:{pw} https://x",
    "SG.{alnum22}.{alnum43}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI{alnum20}.{alnum43}",
    "Authorization: Basic {basic}",
)


class TextMaker:
    """Texts made by a seed."""

    def __init__(self, seed: str) -> None:
        self._chance = random.Random(seed)

    def harmless(self) -> dict[str, Callable[[], str]]:
        """Makers of text in which nothing is personal, by kind."""
        chance = self._chance
        return {
            "order numbers": lambda: chance.choice(_ORDER).format(self._order()),
            "versions": lambda: chance.choice(_VERSION).format(self._version(), self._version()),
            "log lines": lambda: self._filled(chance.choice(_LOG)),
            "manuals, hashes, code": lambda: self._filled(chance.choice(_PLAIN)),
        }

    def secret(self) -> str:
        """A text with a secret in it."""
        return self._filled(self._chance.choice(_SECRETS))

    def _order(self) -> str:
        """A number of 9 to 19 digits: as many as hold a card's check digit and beginning as one."""
        chance = self._chance
        digits = chance.choice("123456789") + "".join(
            chance.choices(string.digits, k=chance.choice((8, 9, 11, 12, 15, 15, 18)))
        )
        if len(digits) == 16 and chance.random() < 0.5:
            digits = next(made for last in string.digits if luhn(made := "4" + digits[1:15] + last))
        if chance.random() < 0.15 and len(digits) > 11:
            return f"{digits[:3]}-{digits[3:10]}-{digits[10:]}"
        return digits

    def _version(self) -> str:
        return ".".join(str(self._chance.randint(0, 40)) for _ in range(4))

    def _text(self, size: int, letters: str = string.ascii_letters + string.digits) -> str:
        return "".join(self._chance.choices(letters, k=size))

    def _filled(self, form: str) -> str:
        chance = self._chance
        parts = {
            "day": f"20{chance.randint(10, 29)}-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}",
            "hour": f"{chance.randint(0, 23):02}:{chance.randint(0, 59):02}:{chance.randint(0, 59):02}",
            "few": str(chance.randint(1, 9)),
            "ms": str(chance.randint(1, 9999)),
            "port": str(chance.randint(1024, 65535)),
            "epoch": str(chance.randint(1_500_000_000, 1_900_000_000)),
            "long": str(chance.randint(10**9, 10**10 - 1)),
            "uuid": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            "sha": chance.randbytes(20).hex(),
            "md5": chance.randbytes(16).hex(),
            "half": chance.randbytes(8).hex(),
            "hash": chance.randbytes(32).hex(),
            "pw": self._text(chance.randint(5, 12)) + chance.choice(("!", "7", "#x9", "_Q2")) + self._text(3),
            "aws": self._text(40, string.ascii_letters + string.digits + "+/"),
            "tok": self._text(chance.randint(24, 60)) + "7",
            "b64": base64.b64encode(chance.randbytes(64)).decode(),
            "basic": base64.b64encode(f"svc:{self._text(10)}9".encode()).decode(),
            "up": self._text(16, string.ascii_uppercase + "234567"),
        }
        parts |= {f"alnum{size}": self._text(size) for size in (20, 22, 24, 35, 36, 43)}
        return form.format(**parts)


def found(signal: Pii, text: str) -> str | None:
    """The kind that the signal finds in a text."""
    reading = read(signal, Facts(Request("chat", b"{}", {}, "auto", (Message("user", text),))))
    return reading.label if reading.matched else None


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=2000, help="texts of each kind")
    parser.add_argument("--seed", default="pii")
    given = parser.parse_args()
    shared = Shared()
    signal = Pii("pii", PiiParams.model_validate({"types": KINDS}), shared)
    shared.freeze()
    made = TextMaker(given.seed)
    for name, make in made.harmless().items():
        wrong = [(kind, text) for text in (make() for _ in range(given.texts)) if (kind := found(signal, text))]
        print(f"{name:24} {len(wrong) / given.texts:6.2%} false alarms", *wrong[:4], sep="\n    ")
    missed = [text for text in (made.secret() for _ in range(given.texts)) if found(signal, text) != "secret"]
    print(f"{'secrets':24} {1 - len(missed) / given.texts:6.2%} found", *missed[:8], sep="\n    ")


if __name__ == "__main__":
    main()

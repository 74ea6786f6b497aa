"""Detectors of personal data and secrets: a pattern that finds candidates and a check that knows a real one.

A detector's check gets the candidate as text and gives the value in its plain form (no spaces or dashes), or None.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable
from typing import Literal, NamedTuple

import orjson

from signals.text import context, secrets

Kind = Literal["email", "phone", "iban", "card", "ssn", "nin", "passport", "ip", "mac", "crypto", "secret"]


class Detector(NamedTuple):
    """`pattern` (RE2) finds candidates; `check` gives the plain value of a real one, else None.

    `rescan` says that a real one may begin inside a candidate that turned out not to be one. `hint` is what the
    policy's one pattern set looks for instead of `pattern`: counted repetitions that begin anywhere cost an automaton
    a state for every way in which several of them can overlap (measured on random digits: 1 ms per kilobyte, and 10 µs
    with the hint).

    `fits` takes a candidate and what stands before and after it (signals/text/context.py) and says whether it is worth
    an alarm: an order's number, a version and the sample keys of manuals are not. What is masked does not ask it.

    Where `pattern` has a group, that is the candidate. Patterns and checks see the view of a text
    (signals/text/view.py), so that a space may be any space of Unicode's and a hyphen any dash.
    """

    kind: Kind
    pattern: str
    check: Callable[[str], str | None]
    rescan: bool = False
    hint: str | None = None
    fits: Callable[[str, str, str], bool] | None = None


def _plain(candidate: str) -> str:
    return re.sub(r"[\s._/-]", "", candidate).upper()


def _digits(candidate: str) -> list[int]:
    return [int(char) for char in candidate if char.isdigit()]


def _weighed(digits: list[int], weights: tuple[int, ...]) -> int:
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=False))


def _found(candidate: str) -> str:
    return candidate


# Cards ---------------------------------------------------------------------------------------------------------------

_BRANDS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|09|[689]\d)\d{11,16}"  # Diners Club
    r"|(?:2131|1800)\d{11}|35\d{14,17}"  # JCB
    r"|220[0-4]\d{12,15}"  # Mir
    r"|(?:6011|64[4-9]\d|65\d\d|62\d\d|81\d\d)\d{12,15}"  # Discover, UnionPay
    r"|(?:50|5[6-8]|6\d|0604)\d{8,17}"  # Maestro and its kin
)

_PREFIX = re.compile("[2-6]|81|0604|1800")
"""How those numbers begin."""


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        digit = int(char) << (place & 1)
        total += digit - 9 if digit > 9 else digit
    return total % 10 == 0


_GROUPED = ((4, 4, 4, 4), (4, 4, 4, 4, 1), (4, 4, 4, 4, 2), (4, 4, 4, 4, 3), (4, 6, 5), (4, 6, 4))
"""How the digits of a card are set apart."""


def _card(candidate: str) -> str | None:
    parts = re.split(r"([ ._-])", candidate.strip("_"))
    groups, gaps = parts[::2], parts[1::2]
    if gaps and gaps[0] in "._":
        # Figures in a table or a list stand between dots, too, but not in groups of a card's sizes.
        for sizes in _GROUPED:
            count = len(sizes)
            if sizes == tuple(map(len, groups[:count])) and len({*gaps[: count - 1]}) == 1:
                found = _brand("".join(groups[:count]))
                if found is not None:
                    return found
        return _brand(groups[0])
    even = next((place for place, gap in enumerate(gaps) if gap in "._"), len(gaps))
    groups = groups[: even + 1]
    number = "".join(groups)
    if _PREFIX.match(number) is None:
        return None
    # What follows a card number may be digits too (its expiry, say), so the last groups are dropped one by one.
    while len(number) >= 12:
        found = _brand(number)
        if found is not None:
            return found
        number = number[: len(number) - len(groups.pop())]
    return None


def _brand(number: str) -> str | None:
    return number if _BRANDS.fullmatch(number) and len(set(number)) > 1 and luhn(number) else None


def _wrapped_card(candidate: str) -> str | None:
    """A card over several lines or columns. It counts only where no other figures are there, as a table has them."""
    return _brand(_plain(candidate)) if re.search(r"[\n\r\t]", candidate) else None


# Bank accounts -------------------------------------------------------------------------------------------------------

_IBAN_LENGTHS = {
    country: size
    for size, countries in (
        (15, "NO"),
        (16, "BE"),
        (18, "DK FI FO GL NL SD"),
        (19, "MK SI"),
        (20, "AT BA EE KZ LT LU MN XK"),
        (21, "CH HR LI LV"),
        (22, "BG BH CR DE GB GE IE ME RS VA"),
        (23, "AE GI IL IQ OM SO TL"),
        (24, "AD CZ ES MD PK RO SA SE SK TN VG"),
        (25, "LY PT ST"),
        (26, "IS TR"),
        (27, "BI DJ FR GR IT MC MR SM"),
        (28, "AL AZ BY CY DO GT HU LB NI PL SV"),
        (29, "BR EG PS QA UA"),
        (30, "JO KW MU YE"),
        (31, "MT SC"),
        (32, "LC"),
        (33, "RU"),
    )
    for country in countries.split()
}
"""SWIFT IBAN registry: characters of an IBAN, by country."""


def mod97(text: str) -> int:
    """The remainder of ISO 7064 MOD 97-10, letters being 10 to 35."""
    return int("".join(str(int(char, 36)) for char in text)) % 97


def _iban(candidate: str) -> str | None:
    size = _IBAN_LENGTHS.get(candidate[:2].upper())
    if size is None:
        return None
    plain = ""
    for place, char in enumerate(candidate):
        if char.isalnum():
            plain += char.upper()
        if len(plain) == size:
            following = candidate[place + 1 : place + 2]
            return plain if not following.isalnum() and mod97(plain[4:] + plain[:4]) == 1 else None
    return None


# National numbers ----------------------------------------------------------------------------------------------------


def _ssn(candidate: str) -> str | None:
    """US Social Security number: areas 000, 666 and 900 to 999, group 00 and serial 0000 are never given."""
    plain = _plain(candidate)
    area, group, serial = plain[:3], plain[3:5], plain[5:]
    return plain if area not in ("000", "666") and area < "900" and group != "00" and serial != "0000" else None


def _nino(candidate: str) -> str | None:
    plain = _plain(candidate)
    prefix = plain[:2]
    refused = prefix in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ") or set(prefix) & set("DFIQUV") or prefix[1] == "O"
    return None if refused else plain


def _nhs(candidate: str) -> str | None:
    digits = _digits(candidate)
    remainder = 11 - _weighed(digits, (10, 9, 8, 7, 6, 5, 4, 3, 2)) % 11
    return _plain(candidate) if remainder % 11 == digits[9] and remainder != 10 else None


def _nif(candidate: str) -> str | None:
    """Spain's DNI and NIE: the letter is the number modulo 23."""
    plain = _plain(candidate)
    number = plain[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return plain if "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == plain[-1] else None


_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _codice_fiscale(candidate: str) -> str | None:
    plain = _plain(candidate)
    values = [int(char) if char.isdigit() else ord(char) - 65 for char in plain]
    total = sum(_ODD[value] if place % 2 == 0 else value for place, value in enumerate(values[:15]))
    return plain if total % 26 == values[15] else None


def _nir(candidate: str) -> str | None:
    """France's social security number: key = 97 - number mod 97 (2A and 2B of Corsica are 19 and 18)."""
    plain = _plain(candidate)
    number = int(plain[:13].replace("2A", "19").replace("2B", "18"))
    return plain if 97 - number % 97 == int(plain[13:]) else None


def _steuer_id(candidate: str) -> str | None:
    """Germany's tax id: ISO 7064 MOD 11,10; exactly one digit is there twice or three times."""
    digits = _digits(candidate)
    repeated = [digits[:10].count(digit) for digit in set(digits[:10])]
    product = 10
    for digit in digits[:10]:
        product = ((digit + product) % 10 or 10) * 2 % 11
    right = (11 - product) % 10 == digits[10] and sorted(repeated)[-1] in (2, 3) and sorted(repeated)[-2] == 1
    return _plain(candidate) if right else None


def _cpf(candidate: str) -> str | None:
    digits = _digits(candidate)
    if len(set(digits)) == 1:
        return None
    for size in (9, 10):
        if _weighed(digits, tuple(range(size + 1, 1, -1))) * 10 % 11 % 10 != digits[size]:
            return None
    return _plain(candidate)


def verhoeff(digits: list[int]) -> bool:
    """J. Verhoeff, Error Detecting Decimal Codes (1969): digits multiplied in the dihedral group D5."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        for _ in range(place % 8):
            digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
        check = _times(check, digit)
    return check == 0


def _times(a: int, b: int) -> int:
    if a < 5:
        return (a + b) % 5 if b < 5 else (a + b - 5) % 5 + 5
    return (a - b) % 5 + 5 if b < 5 else (a - b) % 5


def _aadhaar(candidate: str) -> str | None:
    return _plain(candidate) if verhoeff(_digits(candidate)) else None


def _pesel(candidate: str) -> str | None:
    digits = _digits(candidate)
    month, day = digits[2] * 10 + digits[3], digits[4] * 10 + digits[5]
    right = _weighed(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0
    return _plain(candidate) if right and 1 <= month % 20 <= 12 and 1 <= day <= 31 else None


def _resident_id(candidate: str) -> str | None:
    """China's GB 11643: ISO 7064 MOD 11-2."""
    plain = _plain(candidate)
    remainder = _weighed([int(char) for char in plain[:17]], (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)) % 11
    return plain if "10X98765432"[remainder] == plain[17] else None


def _mrz(candidate: str) -> str | None:
    """The second line of a passport's machine-readable zone (ICAO 9303 part 4): three fields with check digits."""

    def right(field: str, digit: str) -> bool:
        values = [0 if char == "<" else int(char, 36) for char in field]
        return str(sum(value * (7, 3, 1)[place % 3] for place, value in enumerate(values)) % 10) == digit

    line = candidate.upper()
    whole = right(line[:9], line[9]) and right(line[13:19], line[19]) and right(line[21:27], line[27])
    return line[:9].rstrip("<") if whole else None


# Networks ------------------------------------------------------------------------------------------------------------


def _ip(candidate: str) -> str | None:
    try:
        return str(ipaddress.ip_address(candidate))
    except ValueError:
        return None


def _ip6(candidate: str) -> str | None:
    address = candidate if candidate[0] in ":0123456789abcdefABCDEF" else candidate[1:]
    # a::b is more often C++ than an address.
    return _ip(address) if sum(char != ":" for char in address) >= 4 else None


# Crypto currency -----------------------------------------------------------------------------------------------------

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VERSIONS = frozenset((0x00, 0x05, 0x1E, 0x30, 0x32, 0x41))
"""Bitcoin (two), Dogecoin, Litecoin (two), Tron."""


def _base58(candidate: str) -> str | None:
    number = 0
    for char in candidate:
        number = number * 58 + _BASE58.index(char)
    if number.bit_length() > 200:
        return None
    data = number.to_bytes(25)
    digest = hashlib.sha256(hashlib.sha256(data[:21]).digest()).digest()
    return candidate if data[0] in _VERSIONS and digest[:4] == data[21:] else None


def _bech32(candidate: str) -> str | None:
    """BIP 173 and BIP 350."""
    if candidate not in (candidate.lower(), candidate.upper()):
        return None
    text = candidate.lower()
    prefix, _, data = text.rpartition("1")
    values = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    values += [_BECH32.index(char) for char in data]
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    return text if check in (1, 0x2BC830A3) else None


# Keys and tokens -----------------------------------------------------------------------------------------------------


def _jwt(candidate: str) -> str | None:
    head = candidate.split(".", 1)[0]
    try:
        header = orjson.loads(urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except ValueError:
        return None
    return candidate if isinstance(header, dict) and "alg" in header else None


def _edged(pattern: str) -> str:
    return rf"\b(?:{pattern})\b"


_NOBODY = re.compile(r"(?:do[._-]?not|no)[._-]?reply")
"""The local part of addresses that no person reads, as agents write them below every commit."""


def _email(candidate: str) -> str | None:
    value = candidate.lower()
    return None if _NOBODY.fullmatch(value.partition("@")[0]) else value


def _no_sample(candidate: str, _before: str, _after: str) -> bool:
    return not secrets.sample(candidate)


_GAP = r"[\s._-]"
"""What may stand between the digits of a number that has a checksum."""
_LONG_NUMBER = rf"\d(?:{_GAP}?\d){{7}}"

_KEY = r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
_LINE_END = r"(?:\s|\\[rn])"
_KEY_BODY = (
    rf"(?:(?:{_LINE_END}+[A-Z][A-Za-z-]+: ?[^\r\n\\]{{0,200}})*(?:{_LINE_END}*[A-Za-z0-9+/=]{{16,}})+)?"
    rf"(?:{_LINE_END}*[A-Za-z0-9+/]{{0,15}}=*{_LINE_END}*-----END [A-Z0-9 ]{{1,60}}-----"
    rf"|{_LINE_END}+[A-Za-z0-9+/]{{1,15}}=+)?"
)
"""What follows the first line of a private key, as far as it is there: headers, lines of base64, and the last line."""

DETECTORS: tuple[Detector, ...] = (
    Detector("email", r"[\p{L}\p{N}._%+'-]+@(?:[\p{L}\p{N}-]+\.)+\p{L}\p{L}+", _email, fits=context.email),
    Detector(
        "card", r"(?:\b|_)\d(?:[ ._-]?\d){11,22}(?:\b|_)", _card, rescan=True, hint=_LONG_NUMBER, fits=context.card
    ),
    Detector(
        "card",
        rf"(?:\A|[^\s\d])\s*(\d(?:{_GAP}{{0,3}}\d){{11,18}})\s*(?:[^\s\d]|\z)",
        _wrapped_card,
        hint=rf"\d(?:{_GAP}*\d){{11}}",
    ),
    Detector(
        "iban",
        rf"(?i)\b[a-z]{{2}}\d{{2}}(?:{_GAP}{{0,2}}[a-z0-9]){{11,30}}",
        _iban,
        rescan=True,
        hint=rf"(?i)\b[a-z]{{2}}\d{{2}}(?:{_GAP}{{0,2}}[a-z0-9]){{4}}",
    ),
    Detector("ssn", r"\b(?:\d{3}-\d{2}-\d{4}|\d{3} \d{2} \d{4})\b", _ssn, fits=context.social),
    Detector("nin", r"(?i)\b[a-z]{2} ?\d{2} ?\d{2} ?\d{2} ?[a-d]\b", _nino),
    Detector("nin", rf"\b\d{{3}}{_GAP}\d{{3}}{_GAP}\d{{4}}\b", _nhs, hint=_LONG_NUMBER),
    Detector("nin", r"(?i)\b(?:\d{8}|[xyz]-?\d{7})-?[a-z]\b", _nif),
    Detector("nin", r"(?i)\b[a-z]{6}\d{2}[a-ehlmprst]\d{2}[a-z]\d{3}[a-z]\b", _codice_fiscale),
    Detector(
        "nin",
        r"\b[1278] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}\b".replace(" ", _GAP),
        _nir,
        hint=_LONG_NUMBER,
    ),
    Detector("nin", rf"\b[1-9]\d(?:{_GAP}?\d{{3}}){{3}}\b", _steuer_id, hint=_LONG_NUMBER),
    Detector("nin", r"\b\d{3}\.\d{3}\.\d{3}-\d{2}\b", _cpf),
    Detector("nin", rf"\b[2-9]\d{{3}}{_GAP}\d{{4}}{_GAP}\d{{4}}\b", _aadhaar, hint=_LONG_NUMBER),
    Detector("nin", r"\b\d{11}\b", _pesel, hint=_LONG_NUMBER),
    Detector(
        "nin", r"(?i)\b[1-8]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dx]\b", _resident_id
    ),
    Detector("passport", r"\b[A-Z0-9<]{9}\d[A-Z<]{3}\d{6}\d[MFX<]\d{6}\d[A-Z0-9<]{14}[\d<]\d", _mrz),
    Detector("ip", r"\b\d{1,3}(?:\.\d{1,3}){3,}\b", _ip, fits=context.address),
    Detector(
        "ip",
        r"(?i)(?:^|[^\w:.])(?:(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:){1,7}:)",
        _ip6,
        fits=context.address,
    ),
    Detector(
        "mac",
        r"(?i)\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b|\b(?:[0-9a-f]{2}-){5}[0-9a-f]{2}\b",
        str.lower,
        fits=context.hardware,
    ),
    Detector("crypto", r"\b[13DLMT][1-9A-HJ-NP-Za-km-z]{25,34}\b", _base58),
    Detector("crypto", r"(?i)\b(?:bc|tb|ltc)1[02-9ac-hj-np-z]{11,87}\b", _bech32),
    Detector("crypto", r"\b0x[0-9a-fA-F]{40}\b", str.lower),
    Detector("secret", _edged(secrets.FORMS), _found, fits=_no_sample),
    Detector("secret", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}", _jwt, fits=_no_sample),
    Detector("secret", _KEY + _KEY_BODY, _found, hint=_KEY),
    Detector("secret", secrets.LINK, secrets.password),
    Detector("secret", secrets.ASSIGNED, secrets.assigned),
    Detector("secret", secrets.OPTION, secrets.assigned),
    Detector("secret", secrets.BEARER, secrets.token),
    Detector("secret", secrets.BASIC, secrets.basic),
    Detector("secret", secrets.CURL, secrets.password),
    Detector("secret", secrets.SIGNED, _found),
)
"""All but phone numbers, whose check needs a library of its own and the caller's country."""

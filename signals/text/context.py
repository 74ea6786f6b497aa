"""What stands beside a number tells what it is: the words before it and the signs around it.

Each function takes a candidate and what stands before and after it, some dozen characters, and says whether the
candidate may be what it looks like. Numbers that stand for themselves in every manual are nothing, whatever is beside.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

from signals.text.patterns import compiled

BEFORE: Final = 48
AFTER: Final = 16
"""Characters that are looked at."""


def _spaced(pattern: str) -> Any:
    """RE2 has no verbose patterns: `pattern` without its spaces."""
    return compiled("".join(pattern.split()))


_NUMBERED = _spaced(
    r"""(?i)
    (?:(?:\b(?:order|po|offset|position|index|purchase|invoice|receipt|ticket|case|tracking|shipment|parcel|package|consignment|reference|ref|sku|
        article|item|product|part|serial|transaction|txn|job|build|run|request|trace|span|session|user|message|event|
        commit|issue|bug|batch|lot|article|asset|device|imei|isbn|ean|upc|gtin|barcode|timestamp|epoch|hash|checksum|
        order|booking|contract|policy|claim|member|customer|client|account|id|uid|uuid|pid|tid|no|nr|num|numer|number|
        bestell\w*|auftrags?\w*|rechnung\w*|sendung\w*|paket\w*|kunden\w*|artikel\w*|vorgang\w*|vertrag\w*|
        commande|facture|colis|suivi|r[ée]f[ée]rence|pedido|factura|env[ií]o|seguimiento|ordine|fattura|spedizione|
        zam[oó]wieni\w*|bestelling\w*|pakket|encomenda)
      | \w+(?:_|-)(?:id|no|nr|number|num|code|key|ts|ms|ns|at|time|count|size|bytes|total|seq|offset|hash)
      | 番号|編號|编号|单号|號碼|号码|订单|訂單|номер\pL*|번호|رقم|n[°º]|№
      | (?-i:[a-z]+(?:Id|ID|No|Number|Code|Time|Stamp|Count|Size|Bytes|Total|Seq|Offset)))
    (?:\s+(?:number|no|nr|id|code|is|was|ist|war|es|est|:|заказ\pL*|заявк\pL*|счет\pL*|الطلب|الفاتورة))*
    ["'\s:=#.\[(-]+ | #)$
    """
)
_CARD = compiled(
    r"(?i)\b(?:credit|debit|card|cards|cc|visa|mastercard|master|amex|maestro|diners|pan|karte\w*|kredit\w*|carte|tarjeta|"
    r"carta|cart[aã]o|kart\w*)\b|kreditkarte|карт|카드|بطاقة|カード|卡"
)
_VERSION = _spaced(
    r"""(?i)
    (?:\b(?:v|ver|vers|versions?|releases?|released|rev|revision|build|firmware|bump\w*|up(?:grade|date)\w*|downgrade\w*|
        section|sec|chapter|clause|paragraph|para|article|figure|fig|table|appendix|annex|step|rule|requirement|item|
        abschnitt|kapitel|ausgabe|fassung|punkt|secci[oó]n|cap[ií]tulo|versi[oó]n|apartado|chapitre|paragraphe|sezione|
        capitolo|versione|wersj\w*|rozdzia[lł]\w*|driver|treiber|package|dll|assembly|sdk|jdk|jre|api|kernel|plugin|
        library|lib|rfc|iso|oid|\w*identifier|numpy|node|python|java|chrome|firefox|installed|requires|since|until|before|after)\b
      | §+ | [=~<>!^]= | [~^] )
    (?:\s+(?:from|to|auf|von|de|du|of|is|now|at|number|no|nr|a|à|v))*
    [\s:="'v(\[]*(?:(?:\d+\.)+\d+[\w.-]*\s*(?:,|-|–|to|and|or|from|through|->|→|bis|auf|a|à|y|und|et|e)\s*)?["'v(]*$
    """
)
_AGENT = compiled(r"\b[A-Za-z][\w.+-]*[/-]$")
_ADDRESS = compiled(
    r"(?i)(?:\b|_)(?:ip|ipv4|addr\w*|host\w*|server|dns|gateway|ping|ssh|subnet|route|listen\w*|client|peer|src|dst)(?:\b|_)"
)
_NOBODYS: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "127.0.0.0/8", "255.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
            *("::/127", "2001:db8::/32", "3fff::/20"),
        ),
    )
)
"""This host, masks, and what is kept for documentation (RFC 1122, 5737, 3849, 9637): the addresses of nobody."""
_PHONE = compiled(
    r"(?i)\b(?:tel|tel[eé]f\w*|telephon\w*|t[eé]l[eé]phon\w*|phone\w*|mobile|mobil\w*|cell\w*|call\w*|fax|hotline|whatsapp|"
    r"sms|text\s+me|dial|ring|contact|handy|rufnummer|nummer|anruf\w*|ruf\w*|appel\w*|m[oó]vil|celular|ligue|numero|n[uú]mero|"
    r"portable|cellulare|chiama\w*|telefon\w*)\b|телефон|тел\.|звони|电话|手机|電話|전화|फ़ोन"
)
_MAC = compiled(r"(?i)\b(?:mac|hwaddr|ether|lladdr|bssid|wifi|wlan|ethernet|bluetooth|hardware|physical)\b")


def numbered(before: str) -> bool:
    """Whether words before a number call it the number of an order, an invoice, a record …"""
    return _NUMBERED.search(before) is not None


_INSIDE = re.compile(
    r"(?:^|[^\d.])0[.,]$"  # a fraction
    r"|(?:[\[(=,:*/+<>'-]\s*|\d\.\d[^a-zA-Z]*)-?\d+\.$"  # a number among numbers
    r"|[0-9a-f]-$|[/&?]$"  # a UUID, a link
)
"""What stands before the figures of a longer number."""


def card(_candidate: str, before: str, after: str) -> bool:
    """Not the number of an order, nor part of a decimal fraction or a UUID."""
    if _CARD.search(before):
        return True
    return not numbered(before) and _INSIDE.search(before) is None and not after.startswith("%")


def address(candidate: str, before: str, after: str) -> bool:
    """Somebody's address, and not a version, a section or a part of a user agent."""
    try:
        found = ipaddress.ip_address(candidate.strip("[]() \t"))
    except ValueError:
        return True
    if any(found in network for network in _NOBODYS):
        return False
    if found.version == 6:
        return True
    if re.match(r"[-+][a-z]|\.(?:jar|dll|zip|tar|tgz|exe|whl|deb|rpm)\b", after):
        return False
    near = before[-24:]
    return (_VERSION.search(before) is None and _AGENT.search(near) is None) or _ADDRESS.search(near) is not None


def hardware(candidate: str, before: str, _after: str) -> bool:
    """A hardware address has a hexadecimal letter or is called one: pairs of figures are a time, too."""
    return re.search("[A-Fa-f]", candidate) is not None or _MAC.search(before) is not None


def phone(candidate: str, before: str, after: str) -> bool:
    """Not a time, a decimal, an address of a network; without separators only where words or an empty line say so."""
    if _PHONE.search(before):
        return True
    if candidate.startswith("+"):
        return re.search(r"[\w.]$", before) is None
    if ("(" not in candidate and numbered(before)) or re.search(r"[\d\w][-:./,_+]$|[=/&?_$€£#@]\s?$|[-+]$", before):
        return False
    if re.match(r"[-:./,_]?\w|\s?[%€$£]", after) and not re.match(r"\s", after):
        return False
    if re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d|^\d{1,4}([./-])\d{1,2}\1\d{1,4}\b", candidate):
        return False
    if re.fullmatch(r"\d+|\d+\.\d+|(?:\d{1,3}\.){3}\d{1,3}|\d+-\d+|\d+ \d+", candidate):
        return not before.strip(" \"'") and not after.strip(" .!?\"'")
    return re.search(r"[\[{<|]", before[-24:] + after) is None


def social(_candidate: str, before: str, after: str) -> bool:
    """Not part of a longer row of figures, nor the number of an order."""
    named = re.search(r"(?i)\b(?:ssn|social|security)\b", before)
    return named is not None or (not numbered(before) and not re.search(r"\d-$", before) and after[:1] != "-")


def email(candidate: str, before: str, _after: str) -> bool:
    """Not the end of a link's name and password, a repository's address, or a picture's file for finer screens."""
    if re.search(r"://\S*$", before) or re.match(r"(?i)(?:git|hg|svn)@", candidate):
        return False
    return re.search(r"(?i)@[\dx]+\.(?:png|jpe?g|gif|svg|webp)$", candidate) is None

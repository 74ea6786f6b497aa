"""Every kind of signal there is. A new kind is one file and one line here."""

from __future__ import annotations

from signals.budget import Budget
from signals.conversation import Conversation
from signals.header import Header
from signals.identity import Identity
from signals.keyword import KeywordSignal
from signals.language import Language
from signals.load import Load
from signals.parameter import Parameter
from signals.pii import Pii
from signals.regex import Regex
from signals.sample import Sample
from signals.score import Score
from signals.signal import Signal
from signals.structure import Structure
from signals.time import Time
from signals.tokens import Tokens

KINDS: tuple[type[Signal], ...] = (
    Budget,
    Conversation,
    Header,
    Identity,
    KeywordSignal,
    Language,
    Load,
    Parameter,
    Pii,
    Regex,
    Sample,
    Score,
    Structure,
    Time,
    Tokens,
)

BY_NAME: dict[str, type[Signal]] = {kind.kind: kind for kind in KINDS}

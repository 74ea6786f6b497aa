"""Every kind of signal there is. A new kind is one file and one line here."""

from __future__ import annotations

from signals.kinds.budget import Budget
from signals.kinds.classifier import Classifier
from signals.kinds.contrast import Contrast
from signals.kinds.conversation import Conversation
from signals.kinds.difficulty import Difficulty
from signals.kinds.domain import Domain
from signals.kinds.event import EventSignal
from signals.kinds.fact_check import FactCheck
from signals.kinds.feedback import Feedback
from signals.kinds.header import Header
from signals.kinds.identity import Identity
from signals.kinds.jailbreak import Jailbreak
from signals.kinds.keyword import KeywordSignal
from signals.kinds.knowledge import Knowledge
from signals.kinds.language import Language
from signals.kinds.load import Load
from signals.kinds.modality import Modality
from signals.kinds.parameter import Parameter
from signals.kinds.pii import Pii
from signals.kinds.reask import Reask
from signals.kinds.reasoning import Reasoning
from signals.kinds.regex import Regex
from signals.kinds.remote import Remote
from signals.kinds.sample import Sample
from signals.kinds.score import Score
from signals.kinds.similar import Similar
from signals.kinds.structure import Structure
from signals.kinds.time import Time
from signals.kinds.tokens import Tokens
from signals.kinds.unreadable import Unreadable
from signals.signal import Signal

KINDS: tuple[type[Signal], ...] = (
    Budget,
    Classifier,
    Contrast,
    Conversation,
    Difficulty,
    Domain,
    EventSignal,
    FactCheck,
    Feedback,
    Header,
    Identity,
    Jailbreak,
    KeywordSignal,
    Knowledge,
    Language,
    Load,
    Modality,
    Parameter,
    Pii,
    Reask,
    Reasoning,
    Regex,
    Remote,
    Sample,
    Score,
    Similar,
    Structure,
    Time,
    Tokens,
    Unreadable,
)

BY_NAME: dict[str, type[Signal]] = {kind.kind: kind for kind in KINDS}

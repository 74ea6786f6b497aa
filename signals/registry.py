"""Every kind of signal there is. A new kind is one file and one line here."""

from __future__ import annotations

from signals.budget import Budget
from signals.classifier import Classifier
from signals.contrast import Contrast
from signals.conversation import Conversation
from signals.difficulty import Difficulty
from signals.domain import Domain
from signals.fact_check import FactCheck
from signals.feedback import Feedback
from signals.header import Header
from signals.identity import Identity
from signals.jailbreak import Jailbreak
from signals.keyword import KeywordSignal
from signals.language import Language
from signals.load import Load
from signals.modality import Modality
from signals.parameter import Parameter
from signals.pii import Pii
from signals.reask import Reask
from signals.reasoning import Reasoning
from signals.regex import Regex
from signals.remote import Remote
from signals.sample import Sample
from signals.score import Score
from signals.signal import Signal
from signals.similar import Similar
from signals.structure import Structure
from signals.time import Time
from signals.tokens import Tokens
from signals.unreadable import Unreadable

KINDS: tuple[type[Signal], ...] = (
    Budget,
    Classifier,
    Contrast,
    Conversation,
    Difficulty,
    Domain,
    FactCheck,
    Feedback,
    Header,
    Identity,
    Jailbreak,
    KeywordSignal,
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

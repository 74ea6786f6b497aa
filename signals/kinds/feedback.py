"""`feedback`: what the user thinks of the previous answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from signals.neural.kinds import LikeliestClass, LikeliestClassParams

Label = Literal["none", "satisfied", "dissatisfied", "clarification"]


class FeedbackParams(LikeliestClassParams):
    """Kinds of feedback; none is a message that gives no feedback."""

    is_: list[Label] = Field(alias="is", min_length=1, description="The classes that match.")


class Feedback(LikeliestClass):
    """Reads whether the user is satisfied, dissatisfied, or asks for clarification."""

    kind = head = "feedback"
    Parameters = FeedbackParams

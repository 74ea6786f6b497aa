"""`modality`: whether the user wants text, an image, or both."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from signals.neural.kinds import LikeliestClass, LikeliestClassParams

Label = Literal["text", "image", "both"]


class ModalityParams(LikeliestClassParams):
    """What should be generated."""

    is_: list[Label] = Field(alias="is", min_length=1, description="The classes that match.")


class Modality(LikeliestClass):
    """Reads whether text, an image, or both should be generated."""

    kind = head = "modality"
    Parameters = ModalityParams

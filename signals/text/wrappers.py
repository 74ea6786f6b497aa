"""What coding agents put into a user's message and no user has said.

Each is a block in a tag of the agent's own, before or after what the user says: Claude Code and opencode
(`system-reminder`, `env`, `ide_opened_file`, `ide_selection`, `local-command-caveat`, `local-command-stdout`,
`task-notification`, `user-prompt-submit-hook`), Codex (`environment_context`, `user_instructions`,
`permissions instructions`, `INSTRUCTIONS`, `turn_aborted`, `collaboration_mode`, `skills_instructions`,
`apps_instructions`, `subagent_notification`), Cline and Roo Code (`environment_details`), Copilot (`environment_info`,
`workspace_info`, `user_info`, `reminderInstructions`).
"""

from __future__ import annotations

import re
from typing import Final

TAGS: Final = (
    "system-reminder", "env", "environment_context", "user_instructions", "permissions instructions", "INSTRUCTIONS",
    "turn_aborted", "environment_details", "environment_info", "workspace_info", "user_info", "reminderInstructions",
    "ide_opened_file", "ide_selection", "local-command-caveat", "local-command-stdout", "task-notification",
    "user-prompt-submit-hook", "collaboration_mode", "skills_instructions", "apps_instructions",
    "subagent_notification",
)  # fmt: skip
"""The agents' tags, those of the session's key too (`signals.state.session`)."""
TITLE: Final = re.compile(r"\s*# AGENTS\.md instructions[^\n]*")
"""What Codex writes over its `INSTRUCTIONS`."""
_TAG: Final = re.compile("</?(?:" + "|".join(map(re.escape, TAGS)) + ")>")
_BLOCKS: Final = tuple((f"<{tag}>", f"</{tag}>") for tag in TAGS)


def said(text: str) -> str:
    """`text` without the agents' blocks at its beginning and at its end; '' where it is nothing else.

    A block in the middle, or one that is not closed, stays: it may be what the user asks about. Linear in the text.
    """
    return apart(text)[0]


def apart(text: str) -> tuple[str, str]:
    """What is `said` in a text, and all the rest of it: the agents' blocks without their tags ('' where there are
    none)."""
    bare = text.strip()
    if not bare or (bare[0] != "<" and bare[-1] != ">"):  # as nearly every text
        return text, ""
    whole = start, end = _trimmed(text, 0, len(text))
    while (after := _after_first(text, start, end)) > start:
        start, end = _trimmed(text, after, end)
    while (before := _before_last(text, start, end)) < end:
        start, end = _trimmed(text, start, before)
    if (start, end) == whole:
        return text, ""
    left = text[start:end]
    if not left or TITLE.fullmatch(left):
        return "", _TAG.sub("\n", text)
    return left, _TAG.sub("\n", f"{text[:start]}\n{text[end:]}").strip()


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _after_first(text: str, start: int, end: int) -> int:
    """The end of the block that begins at `start`; `start` where none does."""
    for opening, closing in _BLOCKS:
        if text.startswith(opening, start, end):
            at = text.find(closing, start, end)
            return start if at < 0 else at + len(closing)
    return start


def _before_last(text: str, start: int, end: int) -> int:
    """The beginning of the block that ends at `end`; `end` where none does."""
    for opening, closing in _BLOCKS:
        if text.endswith(closing, start, end):
            at = text.rfind(opening, start, end)
            return end if at < 0 else at
    return end

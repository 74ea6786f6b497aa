"""The panel writer, as the other rooms know it before any policy uses it."""

from __future__ import annotations

from typing import Final

from upstream.writer import WriterKind

KIND: Final = WriterKind(
    name="panel",
    about="Answer with several models: one after the other until an answer is sure, or together.",
    otherwise="several models cannot answer",
    runtime="panel.spec:PanelSpec",
    families=tuple(
        (f"pointsman_panel_{name}_total", help, labels)
        for name, help, labels in (
            ("answers", "Answers of panels.", ("kind", "outcome")),
            ("calls", "Calls of the members of panels.", ("model", "why")),
            ("released", "Answers of panels, by the member whose text the client got.", ("kind", "model")),
            ("tokens", "Tokens of the members of panels.", ("model", "fate")),
            ("upstream_errors", "Failures of the members of panels.", ("model", "kind")),
            ("ineligible", "Requests that no panel could answer.", ("reason",)),
            ("unjudged", "Drafts of which nobody could tell how sure they are.", ("reason",)),
        )
    ),
    headers=("x-pointsman-panel",),
)

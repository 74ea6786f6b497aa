"""The stepwise writer, as the other rooms know it before any policy uses it."""

from __future__ import annotations

from typing import Final

from upstream.writer import WriterKind

KIND: Final = WriterKind(
    name="stepwise",
    about="Answer step by step with two models.",
    otherwise="steps cannot be taken",
    runtime="stepwise.spec:StepwiseSpec",
    families=tuple(
        (f"pointsman_stepwise_{name}_total", help, labels)
        for name, help, labels in (
            ("answers", "Stepwise answers.", ("outcome",)),
            ("steps", "Steps written or thrown away.", ("model", "action")),
            ("tokens", "Tokens of stepwise answers.", ("model", "fate")),
            ("requests", "Requests to the models of stepwise answers.", ("model",)),
            ("upstream_errors", "Upstream failures in stepwise answers.", ("model", "kind")),
            ("ineligible", "Requests that could not be answered step by step.", ("reason",)),
            ("safe_side", "Answers on the safe side because a strategy could not judge.", ("reason",)),
            ("settled", "Answers whose judging ended before they did.", ("reason",)),
            ("choices", "Requests of agents' loops.", ("chosen", "reason")),
            ("asks", "Drafts that the large model was asked about.", ("outcome",)),
        )
    ),
    headers=("x-pointsman-stepwise", "x-pointsman-steps", "x-pointsman-redos", "x-pointsman-effort"),
)

"""An answer of which nothing but the text is known (`{"text": …}`): people write it to ask what a policy does."""

from __future__ import annotations

from typing import Any

from extproc.watching.shape import AnswerCourse, AnswerShape, AnswerText


class PlainText(AnswerShape):
    """Never streamed, and no API's: `explain --answer FILE` and the cases of a policy have it."""

    def texts(self, fields: dict[str, Any], json: bool = False) -> list[AnswerText]:
        return [AnswerText(("text",), fields, "text", whole=True)] if fields["text"] else []

    def course(self) -> AnswerCourse:
        return AnswerCourse()

    def cut(self, fields: dict[str, Any], message: str) -> dict[str, Any]:
        return {"text": message}

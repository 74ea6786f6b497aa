"""The question in a template of retrieval: what the user asks, without the documents and directions around it."""

from __future__ import annotations

import re
from typing import Final

_QUESTION: Final = (
    r"question|query|frage|pregunta|domanda|pergunta|vraag|fråga|pytanie|soru"
    r"|вопрос|питання|سؤال|प्रश्न|问题|問題|質問|질문"
)
_OTHER: Final = (
    r"answer|response|context|sources?|documents?|passages?|references?|search results|chat history|instructions?"
    r"|antwort|kontext|quellen|respuesta|contexto|réponse|contexte|risposta|contesto|resposta|antwoord"
    r"|ответ|контекст|回答|答案|上下文|答え|コンテキスト|답변"
)
_LABEL: Final = re.compile(
    rf"^[ \t#*>\[]{{0,6}}(?:[^\W\d_]{{1,12}}[ -])?(?:({_QUESTION})|{_OTHER})[ \t*\]]{{0,4}}[:：][ \t*]{{0,4}}",
    re.IGNORECASE | re.MULTILINE,
)
_TAGS: Final = "question", "query", "user_query", "user_question"
_LETTERS: Final = 3
"""Letters that a question has at least."""


def asked(text: str) -> str:
    """The question of `text` where a label (`Question:` at the beginning of a line, in 18 languages) or a tag
    (`<question>`) says which it is, up to the next label; of several the last. Else `text` itself. Linear in the text.
    """
    for tag in _TAGS:
        end = text.rfind(f"</{tag}>")
        start = text.rfind(f"<{tag}>", 0, max(0, end))
        if start >= 0 and _says(found := text[start + len(tag) + 2 : end].strip()):
            return found
    labels = list(_LABEL.finditer(text))
    for index in range(len(labels) - 1, -1, -1):
        if labels[index][1]:
            end = labels[index + 1].start() if index + 1 < len(labels) else len(text)
            if _says(found := text[labels[index].end() : end].strip()):
                return found
    return text


def _says(text: str) -> bool:
    return sum(map(str.isalpha, text[:80])) >= _LETTERS

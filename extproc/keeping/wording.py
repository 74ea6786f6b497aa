"""What a question says, apart from how it is put: two questions with one wording may share an answer.

Embeddings alone cannot tell that. Those of "Is it safe?" and "Is it not safe?", and of "5 km in miles" and "5 miles in
km", are nearly the same, and at the thresholds at which caches by similarity work, many a hit answers another question.
So all words, numbers, names and signs must be the same, in the same order; only what changes no question may differ:
letters' case, the marks at the end of a word, contractions, greetings, politeness, and "how can I" for "how do I".
In questions about words and languages not even that may differ.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

LONGEST: Final = 1000
"""Characters of a question; what is longer is no question that people put in several ways."""
_EXACT: Final = re.compile(r"[`\t\n\r{}<>\\]|  ")
"""Code, tables, quotations: there every character may count."""
_MARKS: Final = "?.,!;:…。？！、，"
_CLOSING: Final = "?.,…。？"
"""Marks that change nothing behind a number or a single letter either, as in `5!` and `n!` they would."""
_OF_WORDS: Final = frozenset((
    "word", "words", "say", "says", "said", "spell", "spelled", "spelt", "mean", "means", "meaning", "language",
    "languages", "translate", "translation", "phrase", "phrases", "sentence", "sentences", "grammar", "correct", "noun",
    "verb", "plural", "singular", "tense", "conjugate", "pronounce", "rhyme", "rhymes", "letter", "letters",
    "syllables", "synonym", "synonyms", "greeting", "polite", "formal", "wort", "wörter", "sagt", "sage", "heißt",
    "bedeutet", "sprache", "übersetze", "satz", "grammatik", "mot", "mots", "dit", "dire", "signifie", "langue",
    "traduis", "traduire", "palabra", "palabras", "dice", "decir", "significa", "idioma", "traduce", "traducir",
    "parola", "parole", "lingua", "traduci", "palavra", "dizer", "traduza",
))  # fmt: skip
"""In a question about words, those that are left out elsewhere may be what it is about: "Merci, what does that mean?"
and "Gracias, what does that mean?"."""
_WORD: Final = re.compile(r"\w+")
_CONTRACTED: Final = {
    "can't": "can not", "cannot": "can not", "won't": "will not", "shan't": "shall not",
    **{f"{word}'s": f"{word} is" for word in ("what", "who", "where", "how", "when", "that", "it", "there")},
    **{f"{word}n't": f"{word} not" for word in (
        "do", "does", "did", "is", "are", "was", "were", "has", "have", "had", "would", "could", "should", "must"
    )},
    **{f"{word}'re": f"{word} are" for word in ("you", "we", "they", "what")},
    **{f"{word}'ll": f"{word} will" for word in ("i", "you", "he", "she", "it", "we", "they")},
    **{f"{word}'ve": f"{word} have" for word in ("i", "you", "we", "they")},
    "i'm": "i am",
}  # fmt: skip
_ASKING: Final = frozenset(("what", "who", "where", "when", "which", "how", "why"))
_COPULA: Final = frozenset(("is", "are"))
_GREETING: Final = (
    "hi", "hello", "hey", "hi there", "hello there", "good morning", "good afternoon", "good evening", "hallo",
    "guten tag", "guten morgen", "bonjour", "salut", "hola", "buenos días", "ciao", "buongiorno", "olá", "hoi", "hej",
    "cześć", "привет", "здравствуйте", "merhaba", "你好", "您好", "こんにちは", "안녕하세요",
)  # fmt: skip
_POLITE: Final = ("please", "kindly", "bitte", "s'il vous plaît", "s'il te plaît", "por favor", "per favore", "proszę")
_THANKS: Final = (
    "thanks", "thank you", "thanks in advance", "thank you in advance", "many thanks", "danke", "vielen dank", "merci",
    "merci d'avance", "gracias", "muchas gracias", "grazie", "obrigado", "obrigada", "bedankt", "dank je", "tack",
    "dziękuję", "спасибо", "teşekkürler", "谢谢", "ありがとうございます", "감사합니다",
)  # fmt: skip
_REQUEST: Final = r"(?:tell|explain|give|show|write|list|describe|summari[sz]e|translate|suggest|recommend|help)"
_LEAD: Final = re.compile(
    rf"(?:(?:can|could|would|will) you (?:please |kindly )?(?={_REQUEST} ))?"
    r"(?:(?:tell me|let me know|i (?:want|would like|need) to know|do you know)"
    r" (?=(?:what|who|where|when|which|how|why) ))?"
)
_HOW: Final = re.compile(r"^how (?:(?:do|can|could) (?:i|we|one)|to) ")


def _either(words: tuple[str, ...]) -> str:
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


_HELLO: Final = re.compile(rf"^(?:(?:{_either(_GREETING)})[,.!]+ )?(?:(?:{_either(_POLITE)})(?:, | ))?", re.IGNORECASE)
_BYE: Final = re.compile(rf"(?<=[,.!?])(?: (?:{_either((*_POLITE, *_THANKS))})[.!?]*)+$", re.IGNORECASE)


def wording(text: str) -> str | None:
    """The words of a question that must be the same. None where it is to be taken letter by letter: it is long, holds
    code or several lines, or has fewer than two words. Linear in the text."""
    text = unicodedata.normalize("NFC", text.strip()) if len(text) <= LONGEST else ""
    if not text or _EXACT.search(text):
        return None
    text = text.replace("\u2019", "'")
    if not _OF_WORDS.isdisjoint(_WORD.findall(text.lower())):
        return text if " " in text else None
    text = _BYE.sub("", _HELLO.sub("", text))
    loud = text.isupper()
    words: list[str] = []
    for word in text.split(" "):
        bare = word.lstrip("¿¡")
        letters = bare.rstrip(_MARKS)
        bare = letters if len(letters) > 1 and letters.isalpha() else bare.rstrip(_CLOSING)
        if not bare:
            if word.strip(_MARKS + "¿¡"):
                words.append(word)
            continue
        if loud or len(bare) < 2 or not bare.isupper():  # `US` is not `us`
            bare = bare.lower()
        words.append(_CONTRACTED.get(bare, bare))
    said = _LEAD.sub("", " ".join(words), count=1)
    said = _HOW.sub("how ", said)
    words = said.split(" ")
    if words[0] in _ASKING:
        words = [word for word in words if word not in _COPULA]
    return " ".join(words) if len(words) > 1 else None

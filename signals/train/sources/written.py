"""Texts written for training because nobody has published their like, and the generators that vary them.

Short attacks and their harmless look-alikes in 32 languages, orders and harmless instructions in what tools return,
agents' talk and system prompts, everyday questions of every field, puzzles. The sentences lie in texts/*.txt.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Final

from signals.train.sources.grammar import casual, expand, lines, typo

if TYPE_CHECKING:
    from signals.train.sources.corpus import Item

TEXTS: Final = Path(__file__).parent.with_name("texts")
_ENTRY: Final = re.compile(r"([a-z][\w ]*?) ?([:=]) ?(.*)", re.DOTALL)
_KINDS: Final = ("attack", "like", "caption", "chat", "plant", "doc", "system")
SENTENCES: Final = (*_KINDS, "frame")


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one `@name` of the files: `slots` (`name = a | b`) fill the `{name}` of `kinds`, which are
    written `name: a | b`."""

    name: str
    slots: dict[str, list[str]]
    kinds: dict[str, list[str]]

    def make(self, kind: str, chance: random.Random) -> str:
        return expand(chance.choice(self.kinds[kind]), self.slots, chance).replace("\\n", "\n")


@cache
def sections() -> dict[str, Section]:
    """All sections of texts/*.txt by name. A line that begins with a tab continues the one before; a section that comes
    again, in the same file or another, goes on. `\\n` stands for the end of a line."""
    found: dict[str, Section] = {}
    for path in sorted(TEXTS.glob("*.txt")):
        here: Section | None = None
        for line in re.sub(r" ?\|? ?\n\t", " | ", path.read_text()).splitlines():
            if line.startswith("@"):
                here = found.setdefault(line[1:], Section(line[1:], {}, {}))
            elif line:
                entry = _ENTRY.fullmatch(line)
                if here is None or entry is None:
                    raise ValueError(f"{path}: neither `name: text` nor `name = text`: {line[:60]}")
                (here.kinds if entry[2] == ":" else here.slots).setdefault(entry[1], []).extend(lines(entry[3]))
    return found


DOMAINS: Final = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history", "law",
    "math", "other", "philosophy", "physics", "psychology",
)  # fmt: skip


def languages() -> list[Section]:
    """The sections of languages: those that have attacks."""
    return [section for section in sections().values() if "attack" in section.kinds]


def spoken(kind: str, chance: random.Random, size: int) -> Iterator[tuple[str, str]]:
    """(text, language) of `size` texts of one kind, English one time in three."""
    every = languages()
    english = next(section for section in every if section.name == "en")
    for _ in range(size):
        section = english if chance.random() < 1 / 3 else chance.choice(every)
        text = section.make(kind, chance)
        yield (_loosely(text, chance) if kind in ("attack", "like", "chat") else text), section.name


def _loosely(text: str, chance: random.Random) -> str:
    """As people type: lower case, a slip, a greeting's worth of noise; every second text stays as it is."""
    draw = chance.random()
    if draw < 0.5:
        return text
    if draw < 0.6:
        return typo(text, chance)
    if draw < 0.64:
        return text.upper()
    return casual(text, chance)


def twins(kind: str, chance: random.Random, size: int) -> Iterator[str]:
    """`size` texts of one kind of texts/twins*.txt, one in three English."""
    every = [section for name, section in sections().items() if name.startswith("twins ") and kind in section.kinds]
    for _ in range(size):
        section = every[0] if chance.random() < 0.34 else chance.choice(every)
        text = section.make(kind, chance)
        draw = chance.random()
        yield text if draw < 0.6 else casual(text, chance) if draw < 0.9 else text[:1].upper() + text[1:]


def wrapped(text: str, chance: random.Random, contexts: list[str]) -> str:
    """`text` with a greeting, an ending, or in a template of retrieval; more often than not as it is."""
    frames = sections()["frames"].kinds
    draw = chance.random()
    if draw < 0.22:
        text = f"{chance.choice(frames['greet'])}{chance.choice([' ', chr(10)])}{text}"
    elif draw < 0.3:
        text = f"{text}{chance.choice([' ', chr(10)])}{chance.choice(frames['close'])}"
    elif draw < 0.42:
        template = chance.choice(frames["template"]).replace("\\n", "\n")
        text = template.replace("{q}", text).replace("{c}", chance.choice(contexts))
    return text


def questions(
    chance: random.Random, size: int, without: Callable[[str], bool] = lambda _: False
) -> Iterator[tuple[str, str]]:
    """(question, domain) as people ask: of every field, one in four in another language than English. English questions
    and topics that are to stay `without` are not used."""
    english = sections()["frames"].kinds["frame"]
    others = [section for section in languages() if "frame" in section.kinds]
    used = {
        domain: {
            kind: [text for text in sections()[domain].kinds[kind] if not without(text)] for kind in ("ask", "topic")
        }
        for domain in DOMAINS
    }
    for index in range(size):
        domain = DOMAINS[index % len(DOMAINS)]
        if chance.random() < 0.3:
            section = chance.choice(others)
            topic = chance.choice(section.kinds[domain])
            text = chance.choice(section.kinds["frame"]).replace("{t}", topic) if chance.random() < 0.9 else topic
        elif chance.random() < 0.6:
            text = chance.choice(used[domain]["ask"])
        else:
            text = chance.choice(english).replace("{t}", chance.choice(used[domain]["topic"]))
        if chance.random() < 0.5:
            text = text[:1].upper() + text[1:]
        yield casual(text, chance), domain


def puzzles(chance: random.Random, size: int) -> Iterator[tuple[str, bool]]:
    """(text, whether it takes several steps of reasoning)."""
    section = sections()["reasoning"]
    for index in range(size):
        yield casual(section.make("no" if index % 2 else "yes", chance), chance), not index % 2


def personas(chance: random.Random, size: int) -> Iterator[tuple[str, bool]]:
    """(text, whether it is an attack) of role play at length, in 16 languages, English two times in three: a persona
    without rules, with what it may say, what it wins and what it is asked first, or a form that says the same; or a
    part in a harmless play, with the rules of the game."""
    every = [section for section in sections().values() if "hopen" in section.kinds]
    english = [section for section in every if section.name in ("long en", "long forms", "long scripts")]
    for index in range(size):
        section, attack = chance.choice(english if chance.random() < 0.6 else every), not index % 2
        slots = {**section.slots, "name": [chance.choice(section.slots["name"])]}
        start, rule, end = ("open", "rule", "end") if attack else ("hopen", "hrule", "hend")
        rules = section.kinds[rule]
        taken = chance.sample(rules, chance.randint(1, min(12, len(rules))))
        sign = chance.choice([""] * 5 + ["- ", "* ", "{}. ", "{}) "])
        parts = [chance.choice(section.kinds[start]), *(sign.format(i) + line for i, line in enumerate(taken, 1))]
        if attack and "mark" in section.kinds:
            parts += chance.sample(section.kinds["mark"], chance.randint(0, 3))
        if chance.random() < 0.8:
            parts.append(chance.choice(section.kinds[end]))
        text = chance.choice([" ", " ", "\n", "\n\n"]).join(expand(part, slots, chance) for part in parts)
        text = text.replace("\\n", "\n")
        yield (casual(text, chance) if chance.random() < 0.2 else text), attack


def notes(chance: random.Random) -> str:
    """What an agent's program puts beside a user's words: orders to the model, none of them an attack."""
    section = sections()["notes"]
    lines = chance.sample(section.kinds["line"], chance.randint(1, 6))
    return chance.choice([" ", "\n", "\n- ", "\n\n"]).join(expand(line, section.slots, chance) for line in lines)


def remarks(chance: random.Random, size: int) -> Iterator[str]:
    """Single lines that order something of whoever reads them and attack nobody: of documents, and of `notes`."""
    section = sections()["notes"]
    for index in range(size):
        yield section.make("line" if index % 2 else "doc", chance)


def plain(chance: random.Random, size: int) -> Iterator[str]:
    """Harmless short orders and wishes for stories, as people type them."""
    section = sections()["notes"]
    for index in range(size):
        yield _loosely(section.make("story" if index % 3 == 0 else "short", chance), chance)


def tasks(chance: random.Random, size: int) -> Iterator[str]:
    """Harmless jobs as people give them to a model: texts, code, roles, with the rules that they set."""
    section = sections()["tasks"]
    for _ in range(size):
        text = section.make("task", chance)
        yield casual(text, chance) if chance.random() < 0.3 else text


def sayings(chance: random.Random, size: int) -> Iterator[str]:
    """What people quote, joke and chat, in 26 languages, English one time in three: it says "never", "forget" and "you
    must" to everybody, and asks nothing of a model."""
    every = [section for section in sections().values() if "saying" in section.kinds]
    english = sections()["sayings en"]
    names = english.slots["by"]
    for _ in range(size):
        section = english if chance.random() < 0.3 else chance.choice(every)
        text = section.make("saying", chance)
        draw = chance.random()
        if draw < 0.3:
            text += chance.choice(["\n\t\t-- ", "\n-- ", "\n\n--", " - "]) + chance.choice(names)
        elif draw < 0.4:
            text += chance.choice(["\n", "\n\n", " "]) + section.make("saying", chance)
        yield text if chance.random() < 0.8 else casual(text, chance)


def prose(chance: random.Random, size: int) -> Iterator[str]:
    """Plain prose in 13 languages and scripts, as manuals, encyclopaedias, papers and stories have it: one sentence or
    some, with a line of its own before them now and then, in lines of a page's width or in one."""
    every = [section for section in sections().values() if "prose" in section.kinds]
    for _ in range(size):
        section = chance.choice(every)
        lines = section.kinds["prose"]
        some = chance.sample(lines, chance.choice([1, 1, 2, 3, 4, 5, 6]))
        text = ("" if section.name in ("prose ja", "prose zh", "prose zh-hant") else " ").join(some)
        if chance.random() < 0.5:
            width = chance.choice([36, 40]) if len(text.encode()) > 2 * len(text) else chance.choice([64, 72, 78])
            text = "\n".join(wrap(text, width))
        if chance.random() < 0.25:
            text = f"{chance.choice(lines).rstrip('.。')}\n{text}"
        yield text


_NICKS: Final = (
    "anna", "Tomek", "kuba_", "ali42", "mrx", "Sofie", "zed", "yuki", "ilya", "root66", "lena", "bo", "Pixel", "nn",
)  # fmt: skip


def logs(chance: random.Random, size: int) -> Iterator[str]:
    """Chats as their programs write them down: who says it, perhaps when, and what; harmless talk in all languages."""
    every = [section for section in languages() if "chat" in section.kinds]
    quotes = {section.name.split()[-1]: section for section in sections().values() if "saying" in section.kinds}
    for _ in range(size):
        section, form = chance.choice(every), chance.choice(["<{n}> ", "{n}: ", "[{t}] <{n}> ", "{t} < {n}> ", "- "])
        names, made = chance.sample(_NICKS, 3), []
        for _ in range(chance.randint(2, 9)):
            saying = section.name in quotes and chance.random() < 0.3
            text = quotes[section.name].make("saying", chance) if saying else section.make("chat", chance)
            draw = chance.random()
            if draw < 0.15:
                text = f"* {chance.choice(names)} {text}"
            else:
                clock = f"{chance.randint(0, 23):02}:{chance.randint(0, 59):02}"
                text = form.format(n=chance.choice(names), t=clock) + text
            made.append(casual(text, chance) if chance.random() < 0.4 else text)
        if chance.random() < 0.2:
            made.insert(0, f"#{chance.choice(names)}")
        yield "\n".join(made)


def covers(chance: random.Random, size: int) -> Iterator[tuple[str, bool]]:
    """(text, whether it is an attack) of stories, lessons and games, which are a cover for something harmful or not."""
    section = sections()["fiction"]
    for index in range(size):
        text = section.make("clean" if index % 2 else "cover", chance)
        yield (casual(text, chance) if chance.random() < 0.3 else text), not index % 2


def suffixed(chance: random.Random, size: int) -> Iterator[str]:
    """Harmful orders followed by pieces of words and signs that make no sense (Zou et al., arXiv 2307.15043)."""
    goals = sections()["fiction"].slots["goal"]
    pieces = [piece for rules in sections()["fiction"].kinds.values() for one in rules for piece in one.split()]
    signs = [*'!!!{}[]()\\\\"";:=+*&|<>/~@#$%^_.', "\\n", "--", "}:", "](", "?(", ");", "===", "://", "\\u00"]
    for _ in range(size):
        noise = ""
        for _ in range(chance.randint(8, 24)):
            piece = chance.choice(signs) if chance.random() < 0.4 else chance.choice(pieces).strip("{}.,:;?!\"'")
            if chance.random() < 0.3:
                piece = piece[: chance.randint(2, 6)].capitalize()
            noise += piece + chance.choice(["", " ", " "])
        verb = chance.choice(["Write", "Give me", "Create", "Provide", "Develop", "Tell me", "Explain"])
        yield f"{verb} {chance.choice(goals)} {noise}".strip()


def hijacks(chance: random.Random, size: int) -> Iterator[tuple[str, bool]]:
    """(text, whether it is an attack) of odd short texts as people try them on a guarded door (Toyer et al., arXiv
    2311.01011): noise, false ends of the prompt, and an order to say a word or to read out what stands above; or
    harmless questions in the same noise."""
    section = sections()["hijacks"]
    for index in range(size):
        attack, parts = not index % 2, []
        if chance.random() < 0.3:
            word = section.make("word", chance) if chance.random() < 0.5 else section.make("close", chance)
            parts.append(chance.choice([" ", "", "\n"]).join([word] * chance.randint(2, 40)))
        if chance.random() < 0.5:
            parts.append(section.make("close", chance))
        for _ in range(chance.choice([1, 1, 1, 2])):
            parts.append(section.make("order" if attack else "fair", chance))
        if chance.random() < 0.4:
            parts.append(section.make("tail" if attack else "calm", chance))
        if chance.random() < 0.15:
            parts.append(section.make("close", chance))
        text = chance.choice([" ", " ", "\n"]).join(parts)
        yield (_loosely(text, chance) if chance.random() < 0.5 else text), attack


def listings(section: Section, chance: random.Random) -> str:
    """A harmless document of 2 to 40 lines in one language: instructions to its reader, captions, talk."""
    kinds: list[str] = chance.choice([["doc"], ["doc", "caption"], ["doc", "doc", "like"]])
    glue = chance.choice(["\n", " ", "\n\n", "\n- "])
    return glue.join(section.make(chance.choice(kinds), chance) for _ in range(chance.randint(2, 40)))


def agents(chance: random.Random, say: Callable[[], str]) -> str:
    """A system prompt: some of the sentences of one language, now and then followed by what a user says."""
    section = chance.choice(languages()) if chance.random() < 0.4 else sections()["en"]
    size = min(len(section.kinds["system"]), chance.randint(1, 7))
    glue = chance.choice([" ", "\n", "\n- ", "\n\n"])
    text = glue.join(expand(one, section.slots, chance) for one in chance.sample(section.kinds["system"], size))
    return f"{text}\n\n{say()}" if chance.random() < 0.3 else text


def told(items: Iterable[Item]) -> str:
    """What the card says of the written texts among `items`."""
    counts = Counter(item.source for item in items)
    counts["written attacks"] += sum(counts[f"written {name}"] for name in ("suffixes", "role attacks", "injections"))
    for kind in ("role play", "twins", "sayings", "prose"):
        counts["written harmless"] += counts[f"written {kind}"]
    counts["written agents"] += counts["written notes"]
    written = ", ".join(
        f"{counts[f'written {name}']:,} {what}"
        for name, what in (
            ("attacks", "attacks"),
            ("harmless", "harmless look-alikes, captions, replies and instructions"),
            ("questions", "everyday questions"),
            ("puzzles", "puzzles, plans, proofs and their look-ups"),
            ("agents", "agents' system prompts and notes"),
            ("documents", "documents"),
        )
    )
    return f"Written for this, in {len(languages())} languages (signals/train/texts): {written}."

"""The labelled texts of the classifier's heads: public data where it has labels, written sentences where it has not."""

from __future__ import annotations

import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

from signals.train.sources import assistant, attacks, talk, written
from signals.train.sources.data import Data, library, question_of, said
from signals.train.sources.grammar import casual

FEEDBACK: Final = ("none", "satisfied", "dissatisfied", "clarification")
MODALITY: Final = ("text", "image", "both")
_AUXILIARY: Final = {"chat": "other", "code": "computer science", "word problems": "math"}
"""Classes of the domain head beside the subjects of MMLU, for traffic that is not an exam question."""

_SUMS: Final = frozenset(("math", "physics"))
_NOT_LOOKUPS: Final = frozenset(
    [
        "econometrics",
        "high_school_chemistry",
        "college_chemistry",
        "electrical_engineering",
        "formal_logic",
        "professional_accounting",
        "machine_learning",
        "college_computer_science",
        "high_school_computer_science",
        "logical_fallacies",
        "moral_scenarios",
        "computer_security",
    ]
)
_FACTUAL_INTENTS: Final = frozenset(
    [
        "definition",
        "fun_fact",
        "distance",
        "nutrition_info",
        "calories",
        "exchange_rate",
        "international_visa",
        "timezone",
        "weather",
        "vaccines",
        "ingredient_substitution",
        "measurement_conversion",
        "meaning_of_life",
        "next_holiday",
        "how_busy",
        "restaurant_reviews",
        "mpg",
        "oos",
        "time",
        "date",
        "cook_time",
        "food_last",
        "gas_type",
        "ingredients_list",
        "plug_type",
        "tire_pressure",
        "international_fees",
        "travel_suggestion",
        "what_song",
        "calculator",
        "spelling",
        "translate",
    ]
)
_PICTURES: Final = re.compile(r"(?i)image|photo|picture|draw|illustrat|render|paint|visual|camera|logo|style")
_CODE: Final = re.compile(r"^\s*(def |from \w+ import|import |class )|[Ww]rite a (python )?function")
_AS_ROLE: Final = re.compile(r"(?i)i want you to act as|ich möchte,? dass (du|sie)")
"""Role play which one set counts as attacks and another as harmless: learned as neither."""
_CHOICE: Final = re.compile(r"\n[A-D]\. (\w[^\n]*)")
_FIGURES: Final = re.compile(r"[\d=<>$\\]|(?i:above|none of|both|true|false|all of|^(?:yes|no|not|only|i|ii)\b)")
_CLUE: Final = re.compile(
    r"(?i)passwor|passphrase|secret|confidential|\bkey\b|ignore|forget|disregard|prior|previous|instruct|\brules?\b|\buser"
    r"|john|jane|steven|nancy|susan|paul|laura|richard|patricia|bank|balance|address|credit|social sec"
    r"|kennw|nutzer|schlüssel|geheim|anweisung|ignorier|missacht|vergiss|vergessen sie|regeln|adresse"  # de
    r"|mot de passe|phrase de passe|secr[eè]t|\bclé|utilisateur|oublie|règles"  # fr
    r"|contraseña|\bclave|usuari|olvíd|olvida|instrucciones|reglas|dirección de"  # es
    r"|segret|chiave|utente|istruzioni|regole|dimentica|ignora|indirizzo"  # it
    r"|senha|palavra-passe|\bchave|utilizador|usuári|instruções|regras|esque[çc]a|segred|endereço"  # pt
    r"|парол|секрет|ключ|пользовател|инструкц|игнорир|забудь|правил|джейн|джон|лаур|ричард|патриц|сары|смит|стивен|нэнси"
    r"|密码|密碼|秘密|密钥|用户|忽略|忘记|指令|规则|理查德|约翰|劳拉|史密斯|帕特里夏|南希|保罗|地址"
    r"|パスワード|秘密|鍵|ユーザー|無視|忘れ|指示|ルール|リチャード|ジョン|ローラ|スミス|パトリシア|キー|비밀|사용자|무시"
    r"|συνθηματικ|χρήστη|αγνοήστε|पासवर्ड|बैंक|उपयोगकर्ता"
)
"""A third of one set's attacks are questions about cakes, rivers and films, which only what its operator forbids makes
attacks: what shows none of these is no lesson."""
SUFFIXED: Final = "written suffixes"
"""Texts with pieces of words that are none: not to be learned as words."""
_STEPS: Final = frozenset(
    [
        "boolean_expressions",
        "causal_judgement",
        "date_understanding",
        "dyck_languages",
        "formal_fallacies",
        "geometric_shapes",
        "logical_deduction_three_objects",
        "logical_deduction_five_objects",
        "logical_deduction_seven_objects",
        "navigate",
        "multistep_arithmetic_two",
        "object_counting",
        "penguins_in_a_table",
        "reasoning_about_colored_objects",
        "web_of_lies",
        "temporal_sequences",
        "tracking_shuffled_objects_three_objects",
        "tracking_shuffled_objects_five_objects",
        "tracking_shuffled_objects_seven_objects",
        "word_sorting",
        "math",
        "reasoning",
        "coding",
        "fermi",
    ]
)
_NO_STEPS: Final = frozenset(("writing", "roleplay", "generic", "knowledge", "humanities", "health"))


@dataclass(slots=True)
class Item:
    """One text with the labels it has: head to (class or probability, weight)."""

    text: str
    labels: dict[str, tuple[float, float]] = field(default_factory=dict)
    source: str = ""


@dataclass(slots=True)
class Corpus:
    items: list[Item]
    subjects: list[str]
    domains: list[str]
    domain_of: list[int]


def subjects_of(data: Data) -> tuple[list[str], list[str], list[int]]:
    """The classes of the domain head, the 14 domains, and the domain that each class belongs to."""
    rows = data.sources["domain/mmlu"].rows
    parents = dict(sorted({(row["subject"], row["domain"]) for row in rows})) | _AUXILIARY
    domains = sorted(set(parents.values()))
    return list(parents), domains, [domains.index(parent) for parent in parents.values()]


def _talk_of(row: dict[str, Any], chance: random.Random) -> Iterator[str]:
    """An exam question as people ask: about terms among its choices, or with what they say around it."""
    frames = written.sections()["frames"].kinds
    terms = [term for term in _CHOICE.findall(row["prompt"]) if 2 < len(term) < 40 and not _FIGURES.search(term)]
    for term in chance.sample(terms, min(2, len(terms))):
        yield casual(chance.choice(frames["frame"]).replace("{t}", term.strip(" .").lower()), chance)
    if chance.random() < 0.3:
        yield written.wrapped(question_of(row["prompt"]), chance, ["The office is closed.", row["prompt"][:200]])


def unknown(word: str, chance: random.Random) -> str:
    """A word that nobody has seen, of the same letters: not to know the words of a text makes it no attack."""
    letters = list(word)
    chance.shuffle(letters)
    return "".join(letters)


def shows(source: str, text: str) -> bool:
    """Whether one sees of an attack of `source` what it is after, by its text alone."""
    return not source.startswith("atk_cse") or bool(_CLUE.search(text))


def wild(data: Data, held_out: bool = False) -> Iterator[Item]:
    """What people, agents and attackers sent: every file of `wild` whose attacks can be told from its harmless text."""
    for name in data.sources:
        if not name.startswith("wild/") or name == "wild/atk_cse_indirect_tool":
            continue
        source = name.removeprefix("wild/")
        attack = source.startswith("atk_")
        for row in data.part(name, held_out):
            text, kind = said(row["request"], "user"), row.get("cat")
            labels: dict[str, tuple[float, float]] = {"jailbreak": (attack, 2.0 if attack else 1.0)}
            if attack and (_AS_ROLE.match(text) or not shows(source, text)):
                labels = {}
            if kind in _STEPS or source in ("rs_aqua", "ok_humaneval"):
                labels["reasoning"] = (1, 1.0)
            elif kind in _NO_STEPS or source in ("ok_bfcl_tools", "ok_deepset"):
                labels["reasoning"] = (0, 0.6)
            if kind == "health":
                labels["field"] = (written.DOMAINS.index("health"), 0.5)
            elif source in ("ok_humaneval", "ok_security_frr"):
                labels["field"] = (written.DOMAINS.index("computer science"), 0.3)
            yield Item(text, labels, source)
            if result := said(row["request"], "tool"):
                yield Item(result, {"jailbreak": (0, 0.7)}, source)


def authored(data: Data, chance: random.Random) -> Iterator[Item]:
    """What was written for this (texts/*.txt), and code as tools return it."""
    contexts = [row["context"][:800] for row in data.part("injection/bipia_contexts")]
    for text, _ in dict.fromkeys(written.spoken("attack", chance, 13000)):
        yield Item(text, {"jailbreak": (1, 0.7)}, "written attacks")
    plain: dict[str, tuple[float, float]] = {"jailbreak": (0, 0.7)}
    for text, attack in chain(written.personas(chance, 9000), written.covers(chance, 4000)):
        labels = {"jailbreak": (float(attack), 1.5 if attack else 1.0)}
        yield Item(text, labels, "written role attacks" if attack else "written role play")
    for text, attack in dict.fromkeys(written.hijacks(chance, 3000)):
        yield Item(text, {"jailbreak": (float(attack), 1.0)}, "written attacks" if attack else "written harmless")
    for kind, size in (("short", 7500), ("twin", 9500)):
        for text in dict.fromkeys(written.twins(kind, chance, size)):
            source = "written injections" if kind == "short" else "written twins"
            yield Item(text, {"jailbreak": (float(kind == "short"), 0.7)}, source)
    for text in dict.fromkeys(written.sayings(chance, 4000)):
        yield Item(text, {"jailbreak": (0, 1.0)}, "written sayings")
    for text in dict.fromkeys(chain(written.prose(chance, 2500), written.logs(chance, 2000))):
        yield Item(text, {"jailbreak": (0, 1.0)}, "written prose")
    if data.assistant:
        for text, _ in assistant.notes(data.assistant, chance, 450):
            yield Item(text, {"jailbreak": (0, 1.0)}, "notes of a program")
    for text in written.suffixed(chance, 1200):
        yield Item(text, {"jailbreak": (1, 1.0)}, SUFFIXED)
    for text in dict.fromkeys(chain(written.plain(chance, 2500), written.tasks(chance, 4000))):
        yield Item(text, {"jailbreak": (0, 1.5)}, "written harmless")
    for _ in range(1200):
        yield Item(written.notes(chance), {"jailbreak": (0, 1.5)}, "written notes")
    for kind, size in (("like", 8000), ("caption", 1500), ("chat", 1500), ("doc", 1500)):
        for text, _ in dict.fromkeys(written.spoken(kind, chance, size)):
            yield Item(text, plain, "written harmless")
    asked = list(dict.fromkeys(written.questions(chance, 16000)))
    for text, field_ in asked:
        labels = {
            "jailbreak": (0.0, 0.3),
            "field": (float(written.DOMAINS.index(field_)), 0.8),
            "feedback": (0.0, 0.02),
        }
        yield Item(written.wrapped(text, chance, contexts), labels, "written questions")
    for text, steps in dict.fromkeys(written.puzzles(chance, 6000)):
        yield Item(text, {"jailbreak": (0, 0.3), "reasoning": (steps, 0.7)}, "written puzzles")
    for _ in range(2500):
        yield Item(written.agents(chance, lambda: chance.choice(asked)[0]), {"jailbreak": (0, 1.0)}, "written agents")
    for _ in range(1200):
        yield Item(written.listings(chance.choice(written.languages()), chance), plain, "written documents")
    for text in library(Path(sysconfig.get_path("stdlib")), 700, 1):
        yield Item(text, plain, "library")


def build(data: Data, seed: int, held_out: bool = False) -> Corpus:
    """All items of one part, the same for the same seed."""
    chance = random.Random(seed + held_out)
    subjects, domains, domain_of = subjects_of(data)
    items: list[Item] = []
    talk_chance = random.Random(seed)

    def add(source: str, text: str, **labels: tuple[float, float]) -> None:
        items.append(Item(text, labels, source))

    def part(name: str) -> list[dict[str, Any]]:
        return data.part(name, held_out)

    chat, code, words = (float(subjects.index(name)) for name in _AUXILIARY)
    for row in part("domain/mmlu"):
        sums = row["domain"] in _SUMS
        labels: dict[str, tuple[float, float]] = {
            "domain": (subjects.index(row["subject"]), 1.0),
            "jailbreak": (0, 0.2),
            "feedback": (0, 0.02),
            "modality": (0, 0.02),
        }
        if row["subject"] == "formal_logic":
            labels["reasoning"] = (1, 0.6)
        elif sums or row["subject"] not in _NOT_LOOKUPS:
            labels["reasoning"] = (float(sums), 1.0 if sums else 0.6)
            labels["fact_check"] = (float(not sums), 0.15)
        question = question_of(row["prompt"])
        add("mmlu", row["prompt"], **labels)
        add("mmlu bare", question, **labels)
        for text in () if held_out else _talk_of(row, talk_chance):
            add("mmlu talk", text, domain=(subjects.index(row["subject"]), 0.5), jailbreak=(0, 0.1))
    for row in part("difficulty/gsm8k"):
        add("gsm8k graded", row["prompt"], reasoning=(1, 0.5), domain=(words, 0.2))
    for index, row in enumerate(part("reasoning/gsm8k_train")):
        if index % 2 or held_out:
            add(
                "gsm8k", row["question"], reasoning=(1, 0.6), domain=(words, 0.1), jailbreak=(0, 0.2),
                fact_check=(0, 0.2),
                feedback=(0, 0.03), modality=(0, 0.03),
            )  # fmt: skip
    for row in part("selection/llmrouter_scores"):
        labels = {"jailbreak": (0, 0.2), "feedback": (0, 0.03)}
        if _CODE.search(row["question"]):
            labels |= {"domain": (code, 0.5), "fact_check": (0, 0.5), "modality": (0, 0.3), "reasoning": (1, 0.3)}
        add("llmrouter", row["question"], **labels)
    for name in ("intent/clinc150", "intent/banking77"):
        for row in part(name):
            if not held_out and name.endswith("150") and chance.random() < 0.4:
                continue
            intent = row["intent"]
            labels = {
                "jailbreak": (0, 0.3),
                "modality": (0, 0.03),
                "reasoning": (0, 0.6),
                "domain": (chat, 0.03 if name.endswith("150") else 0.01),
            }
            if intent == "thank_you":
                labels["feedback"] = (1, 0.5)
            elif intent == "repeat":
                labels["feedback"] = (3, 0.5)
            elif intent not in ("yes", "no", "maybe", "cancel", "goodbye"):
                labels["feedback"] = (0, 0.04)
            if intent not in _FACTUAL_INTENTS and not name.endswith("77"):
                labels["fact_check"] = (0, 0.2)
            if intent in ("calculator", "measurement_conversion", "oos"):
                del labels["reasoning"]
            add("intents", row["text"], **labels)
    for row in part("jailbreak/inthewild"):
        for _ in range(1 if held_out else 2):
            add("jailbreaks", row["text"], jailbreak=(1, 2.5), feedback=(0, 0.2))
    for row in part("jailbreak/benign_role_prompts"):
        labels = {"jailbreak": (0, 2.5), "feedback": (0, 0.2)}
        if not _PICTURES.search(row["text"]):
            labels |= {"modality": (0, 0.3), "fact_check": (0, 0.5)}
        for _ in range(1 if held_out else 2):
            add("role prompts", row["text"], **labels)
    for row in part("injection/bipia_contexts"):
        add("contexts", row["context"], jailbreak=(0, 0.5), feedback=(0, 0.3), modality=(0, 0.3))
    for row in part("language/sentences"):
        add("sentences", row["text"], jailbreak=(0, 1.0), feedback=(0, 0.02))
        words = row["text"].split()
        if not held_out and len(words) > 5:
            first = chance.randrange(len(words) - 4)
            add("sentences", " ".join(words[first : first + chance.randint(4, 12)]), jailbreak=(0, 0.7))
            strange = [word if chance.random() < 0.3 else unknown(word, chance) for word in words]
            add("sentences", " ".join(strange), jailbreak=(0, 0.3))
    items += wild(data, held_out)
    if held_out:
        return Corpus(items, subjects, domains, domain_of)
    items += authored(data, chance)
    for text in dict.fromkeys(attacks.direct(chance, 3500)):
        disguise = chance.choice(attacks.OBFUSCATIONS) if chance.random() < 0.1 else ""
        add("written attacks", attacks.obfuscate(text, disguise, chance) if disguise else text, jailbreak=(1, 0.7))
    for text in dict.fromkeys(attacks.harmless(chance, 3500)):
        add("written harmless", text, jailbreak=(0, 0.7), feedback=(0, 0.05))
    for _ in range(600):
        add("written documents", attacks.document(chance), jailbreak=(0, 0.4), feedback=(0, 0.1), modality=(0, 0.1))
    for text, label in dict.fromkeys(talk.feedback(chance, 3000)):
        plain = {} if label == "none" else {"fact_check": (0.0, 0.3)}
        add(
            "written feedback",
            text,
            feedback=(FEEDBACK.index(label), 1.0),
            jailbreak=(0, 0.2),
            domain=(chat, 0.02),
            **plain,
        )
    for text, label in dict.fromkeys(talk.modality(chance, 4000)):
        add("written modality", text, modality=(MODALITY.index(label), 1.0), feedback=(0, 0.03), jailbreak=(0, 0.2))
    for text, label in dict.fromkeys(talk.fact_check(chance, 6000)):
        add("written fact_check", text, fact_check=(label == "needed", 1.0), feedback=(0, 0.03), jailbreak=(0, 0.2))
    if data.limit:
        chance.shuffle(items)
        counts: Counter[str] = Counter()
        items = [item for item in items if _first(item.source, counts) <= data.limit]
    return Corpus(items, subjects, domains, domain_of)


def _first(source: str, counts: Counter[str]) -> int:
    """The number of this text among those of its source."""
    counts[source] += 1
    return counts[source]

"""`import vllm-sr`: every construct of its configurations, in the words of a policy, and what of it is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.import_ import imported
from cli.imports import vllm_sr
from cli.imports.ported import Ported
from cli.imports.source import Unimportable, read
from config.document import parse
from config.load import check
from tests import yamls
from tests.cli.test_validate import Run

HERE = Path(__file__).parent
EVERYTHING = HERE / "everything.yaml"
FLAT = HERE / "flat.yaml"


def ported(source: str | dict[str, Any], name: str = "config.yaml") -> Ported:
    text = source if isinstance(source, str) else yamls.dump(source, sort_keys=False)
    return imported(read(text.encode(), name), name, vllm_sr.port, HERE)


def policy(made: Ported) -> dict[str, Any]:
    found: dict[str, Any] = parse(made.text(), "policy.yaml").data
    return found


@pytest.fixture(scope="module")
def everything() -> Ported:
    return ported(EVERYTHING.read_text(), EVERYTHING.name)


@pytest.fixture(scope="module")
def flat() -> Ported:
    return ported(FLAT.read_text(), FLAT.name)


@pytest.mark.parametrize("path", [EVERYTHING, FLAT], ids=lambda path: path.stem)
def test_the_result_is_a_policy_without_errors(path: Path) -> None:
    _, problems = check(ported(path.read_text(), path.name).text(), "policy.yaml", doubts=False)
    assert [str(problem) for problem in problems if problem.severity == "error"] == []


@pytest.mark.parametrize("path", [EVERYTHING, FLAT], ids=lambda path: path.stem)
def test_the_same_source_gives_the_same_bytes(path: Path) -> None:
    first, second = (ported(path.read_text(), path.name) for _ in range(2))
    assert first.text() == second.text()
    assert first.report() == second.report()


def test_what_is_said_of_an_entry_stands_above_it_and_in_the_report(everything: Ported) -> None:
    text = everything.text()
    for told in everything.told:
        words = told.message.split()[:3]
        assert told.place
        assert told.line >= 1
        assert " ".join(words) in " ".join(text.replace("#", " ").split()), told


def test_models_keep_their_servers_prices_families_and_names(everything: Ported) -> None:
    models = policy(everything)["models"]
    assert list(models) == ["swift", "swift@second", "scholar", "sage", "painter", "swift-law", "absent"]
    assert models["swift"] == {
        "name": "org/swift-8b",
        "thinking": "enable_thinking",
        "price": {"input": 0.1, "output": 0.3, "cached_input": 0.02, "cache_write": 0.12},
        "url": "http://10.0.0.1:8000",
        "credential": {"from": {"secret": "swift-key", "key": "token"}},
        "fallback": ["swift@second"],
        "context": 32768,
        "max_output": 4096,
        "quality": 0.5,
        "capabilities": ["tools"],
    }
    assert models["swift@second"]["url"] == "https://10.0.0.2:8000"
    scholar = models["scholar"]
    assert (scholar["url"], scholar["base_path"]) == ("https://models.example.com", "/api/paas/v4")
    assert scholar["credential"] == {
        "header": "x-key",
        "from": {"secret": "hosted-key", "key": "token"},
        "prefix": "Token ",
    }
    assert models["sage"]["url"] == "http://sage:9000"
    assert models["painter"]["url"] == "http://[fd00::1]:9"
    assert "not-to-be-copied" not in everything.text()


RULES = ("no_fact_check_needed", "ordered", "every_pattern", "no_pattern", "must_call")
"""Signals there that are named rules here."""


def test_signals_keep_their_order_and_names(everything: Ported) -> None:
    source = yamls.load(EVERYTHING.read_text())["routing"]["signals"]
    wanted = [one["name"] for family in source.values() for one in family]
    found = [*policy(everything)["signals"], *policy(everything)["rules"]]
    kept = [name for name in wanted if name in found and name not in RULES]
    assert len(kept) > 45
    assert [name for name in found if name in kept] == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("both_words", {"keyword": {"all": ["left", "right"], "case_sensitive": True}}),
        ("no_spam", {"keyword": {"none": ["buy now"]}}),
        ("topic", {"keyword": {"any": ["sharding", "replication"], "bm25": {"at_least": 0.15}}}),
        ("typos", {"keyword": {"any": ["urgent"], "ngram": {"at_least": 0.4}}}),
        ("secrets", {"keyword": {"any": ["password", "credit card"], "fuzzy": {"max_edits": 1}}}),
        ("billing", {"similar": {"to": ["my invoice is wrong"], "at_least": 0.6, "aggregate": "mean"}}),
        (
            "not_billing",
            {
                "contrast": {
                    "toward": ["a refund, please"],
                    "away": ["a recipe for soup"],
                    "margin": 0.1,
                    "aggregate": "max",
                }
            },
        ),
        ("maths", {"domain": {"is": ["math", "physics"]}}),
        ("computer_science", {"domain": {"is": ["computer science"]}}),
        ("wrong_answer", {"feedback": {"is": ["dissatisfied"]}}),
        ("thrice", {"reask": {"at_least": 0.8, "turns": 3, "streak": True}}),
        (
            "outage",
            {"event": {"types": ["down"], "severities": ["critical"], "codes": ["E1"], "urgent": True}},
        ),
        (
            "intents",
            {"score": {"sum": {"support": 1.0, "billing": 1.0}, "exclusive": "softmax", "default": "support"}},
        ),
        ("de", {"language": {"is": ["de"], "at_least": 0.5}}),
        ("long", {"tokens": {"at_least": 32000, "at_most": 1000000, "method": "bytes"}}),
        ("many_questions", {"structure": {"count": {"regex": "[?？]"}, "at_least": 4}}),
        ("dense", {"structure": {"density": {"keywords": ["must", "never"]}, "at_least": 8.000000000000002}}),
        ("big", {"structure": {"count": "bytes", "at_least": 4000}}),
        (
            "needs_thought",
            {"contrast": {"toward": ["prove it step by step"], "away": ["answer in a word"], "aggregate": "max"}},
        ),
        ("DIFFUSION", {"modality": {"is": ["image"]}}),
        (
            "admin",
            {
                "identity": {
                    "role": "admin",
                    "users": ["root"],
                    "groups": ["ops", "night"],
                    "headers": {"user": "x-user", "groups": "x-groups"},
                }
            },
        ),
        ("attack", {"jailbreak": {"at_least": 0.7, "in": ["conversation"]}}),
        ("personal", {"pii": {"types": ["phone", "card", "iban", "ssn", "ip"], "in": "conversation"}}),
        ("many_turns", {"conversation": {"messages": {"role": "user", "at_least": 3}}}),
        ("must_call:any", {"parameter": {"path": "tool_choice", "equals": "required"}}),
        ("must_call:named", {"parameter": {"path": "tool_choice.type", "in": ["function", "custom", "tool"]}}),
        ("tool_loop", {"conversation": {"tool_turn": {"at_least": 1}}}),
        ("called", {"conversation": {"tool_calls": {"at_least": 2}}}),
        ("cycles", {"conversation": {"messages": {"role": "tool", "at_least": 2}}}),
        (
            "other_roles",
            {"conversation": {"messages": {"role": ["system", "developer", "assistant", "tool"], "at_least": 6}}},
        ),
        ("continued", {"conversation": {"messages": {"role": "assistant", "at_least": 1}}}),
        ("fourth_turn", {"conversation": {"turns": {"at_least": 4}}}),
        ("parts", {"keyword": {"any": ["invoice", "receipt"], "whole_words": False}}),
        ("patterns", {"regex": {"any": [r"(?i)order \d+", r"(?i)\brefund\b"]}}),
        ("every_pattern:2", {"regex": {"any": ["regards$"]}}),
        ("privacy", {"knowledge": {"file": "company.knowledge.json", "is": ["private"], "over": ["recipe"]}}),
        ("pay", {"knowledge": {"file": "company.knowledge.json", "is": ["salary"], "match": "enough"}}),
        ("cooking", {"knowledge": {"file": "company.knowledge.json", "is": ["recipes"], "match": "enough"}}),
        ("known_plan", {"parameter": {"path": 'metadata["plan-name"]', "in": ["a", "b"]}}),
        ("hears", {"conversation": {"audio": True}}),
        ("recipe:cheap", {"parameter": {"path": "model", "in": ["their/cheap", "their/cheaper"]}}),
    ],
)
def test_each_signal_is_the_kind_that_asks_the_same(everything: Ported, name: str, value: object) -> None:
    assert policy(everything)["signals"][name] == value


def test_sums_and_bands_become_a_score_and_named_rules(everything: Ported) -> None:
    made = policy(everything)
    signals = made["signals"]
    # What a `miss` adds whether or not it matches, and what always matches, moves the bands instead: 0.15 + 0.05.
    assert signals["effort"]["score"] == {
        "sum": {"effort:matches": 1.0, "topic:confidence": 0.1, "support": -0.1, "company:margin": 1.0},
        "bands": {"easy": {"below": 0.1}, "medium": {"below": 0.300000001}, "hard": {}},
    }
    inner = signals["effort:matches"]["score"]
    assert (inner["of"], inner["sum"]) == ("matches", {"code_words": 0.2, "needs_thought:hard": 0.4, "long": 0.45})
    # How sure a signal is counts where it matches; the numbers of knowledge bases and other sums count as they are.
    assert signals["topic:confidence"] == {"score": {"sum": {"topic": 1.0}, "exclusive": "best"}}
    assert signals["company:margin"] == {
        "knowledge": {"file": "company.knowledge.json", "is": ["private"], "over": ["open"]}
    }
    assert signals["care"] == {"score": {"sum": {"company:best_matched_score": 0.5, "effort": 2.0}, "at_least": 0.5}}
    rules = made["rules"]
    assert rules["intents:billing"] == {"signal": "intents", "is": "billing"}
    assert rules["hard"] == {"signal": "effort", "is": "hard"}
    assert rules["needs_thought:hard"] == {
        "all": [{"signal": "needs_thought", "at_least": 0.1}, {"any": ["long", "code_words"]}]
    }
    assert rules["low"] == {"signal": "effort", "at_most": -1e-9}
    assert rules["rest"] == {"all": [{"signal": "effort", "at_least": -0.1}, {"not": "low"}, {"not": "high"}]}
    assert rules["some"] == {"signal": "effort", "at_least": 0.05}


def test_decisions_come_in_the_order_in_which_the_first_counts(everything: Ported) -> None:
    assert [one["name"] for one in policy(everything)["decisions"]] == [
        "guarded",
        "hard-law-EU",
        "quick",
        "balanced",
        "panel",
        "saturated",
        "images-answer",
        "images-jailbreak",
        "images-pii",
        "images",
        "a-tie",
        "second-tie",
        "everything-else",
        "cheap-route",
        "lost-route",
    ]


def test_decisions_do_what_theirs_do(everything: Ported) -> None:
    made = {one["name"]: one for one in policy(everything)["decisions"]}
    gate = "recipe:default"
    assert policy(everything)["rules"][gate] == {"not": {"any": ["recipe:cheap", "recipe:forgotten"]}}
    assert made["guarded"] == {"name": "guarded", "when": {"all": [gate, "attack"]}, "route": "swift", "override": True}
    law = made["hard-law-EU"]
    assert law["when"] == {"all": [gate, "hard", {"not": "zh"}, {"any": ["privacy", "maths"]}]}
    assert law["on_unknown"] == "match"
    assert law["route"] == {
        "pick": [
            {"model": "scholar", "name": "scholar", "set": {"reasoning_effort": "high"}},
            {"model": "swift-law", "name": "swift-law", "set": {"thinking": True}},
        ],
        "by": "weighted",
        "weights": {"scholar": 0.7, "swift-law": 0.3},
    }
    assert law["set"] == {"system": "Cite the law.", "headers": {"x-lane": "law", "x-from": "router"}}
    assert law["cache"] == {"ttl": "1h", "scope": "user", "any_temperature": True, "similar": 0.9}
    assert made["quick"]["route"]["by"] == "fastest"
    assert made["balanced"]["route"]["by"] == {"factors": {"quality": 0.5, "cost": 0.5, "limits": {"latency": 0.8}}}
    assert made["saturated"]["respond"] == {"status": 200, "message": "Try again later."}
    assert made["images-jailbreak"]["respond"] == {"status": 403}
    assert made["images"]["set"] == {"max_tokens": 500}
    assert made["images-answer"]["on"] == "answer"
    assert (made["images-answer"]["when"]["all"][-1], made["images-answer"]["cut"]) == ("images-answer", {})
    assert made["panel"]["panel"] == {"cascade": ["swift", "scholar"], "until": {"sure": 0.7, "by": "mean"}}
    servers = {"pick": ["swift", "swift@second"], "by": "weighted", "weights": {"swift": 0.8, "swift@second": 0.2}}
    assert made["everything-else"] == {"name": "everything-else", "when": gate, "route": servers}
    assert "tied" not in made["a-tie"]
    assert made["second-tie"]["tied"] is True
    assert made["cheap-route"]["when"] == {"all": ["recipe:cheap", "cheap_words"]}


def test_decisions_that_can_never_match_are_left_out_with_the_reason(everything: Ported) -> None:
    told = {one.place: one.message for one in everything.told if one.kind == "contradiction"}
    assert "can never match" in told["decisions[rarely]"]
    assert "the source has no signal 'nobody'" in " ".join(told.values())


def mappings(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping of a configuration, with its path as the report writes it."""
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            yield from mappings(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            if isinstance(inner, dict):
                name = next((inner[key] for key in ("name", "model", "type") if inner.get(key)), number)
                yield from mappings(inner, f"{path}[{name}]")


BY_NAME = ("signals", "model_config", "reasoning_families")
"""Mappings whose keys are names, so that none of them can be unknown."""
LABELS = (
    "annotations",
    "external_model_ids",
    "model_scores",
    "plugins[memory]",
    "plugins[semantic-cache]",
    "calibration",
    "prototype_scoring",
    "modalities",
    "evaluation",
)
"""What is read as a label, or says how something is computed there, whatever is in it."""


@pytest.mark.parametrize("path", [EVERYTHING, FLAT], ids=lambda path: path.stem)
def test_no_key_is_lost_without_a_word(path: Path) -> None:
    source = yamls.load(path.read_text())
    places = [place for place, _ in mappings(source) if not place.endswith(BY_NAME)]
    for place, mapping in list(mappings(source)):
        if place in places:
            mapping["unheard_of"] = "x"
    made = ported(source)
    told = {one.place for one in made.told}
    gone = [one.place for one in made.told if "never match" in one.message or "left out" in one.message]
    dropped = [place if place.endswith("]") else place.rpartition(".")[0] for place in gone]
    missing = [
        place
        for place in places
        if not any(label in place for label in LABELS)
        and (f"{place}.unheard_of" if place else "unheard_of") not in told
        and not any(place == one or place.startswith((f"{one}.", f"{one}[")) for one in told)
        and not any(place.startswith(one) for one in dropped)
    ]
    assert missing == []


def test_the_flat_form(flat: Ported) -> None:
    made = policy(flat)
    assert made["models"]["reader"] == {
        "thinking": "enable_thinking",
        "price": {"input": 1.0, "output": 2.0},
        "url": "http://10.1.0.1:8000",
        "fallback": ["reader@far"],
    }
    assert made["default"] == "reader"
    assert made["auto"] == ["auto", "MoM", "vllm-sr/auto"]
    assert [one["name"] for one in made["decisions"]] == ["never-both", "law-pii", "law", "other", "rest"]
    assert made["decisions"][0]["when"] == {"all": [{"any": ["code", "proofs"]}, {"not": {"all": ["code", "proofs"]}}]}
    assert made["decisions"][1]["respond"] == {"status": 403}
    assert made["signals"]["law"] == {"domain": {"is": ["law"]}}


def test_the_oldest_form_has_categories_alone() -> None:
    made = policy(
        ported(
            {
                "vllm_endpoints": [{"name": "one", "address": "10.0.0.1", "port": 8000}],
                "model_config": {"a": {"preferred_endpoints": ["one"]}, "b": {"preferred_endpoints": ["one"]}},
                "categories": [
                    {"name": "math", "model_scores": [{"model": "a", "score": 0.2}, {"model": "b", "score": 0.9}]},
                    {"name": "law", "system_prompt": "Be exact.", "model_scores": [{"model": "a", "score": 0.7}]},
                ],
                "default_model": "a",
            }
        )
    )
    assert made["decisions"] == [
        {"name": "math", "when": "math", "route": "b"},
        {"name": "law", "when": "law", "route": "a", "set": {"system": "Be exact."}},
    ]


SMALL = {
    "version": "v0.3",
    "providers": {"defaults": {"default_model": "m"}, "models": [{"name": "m", "backend_refs": [{"endpoint": "h:1"}]}]},
    "routing": {
        "signals": {"keywords": [{"name": "k", "operator": "OR", "keywords": ["word"]}]},
        "decisions": [
            {"name": "d", "priority": 1, "rules": {"type": "keyword", "name": "k"}, "modelRefs": [{"model": "m"}]}
        ],
    },
}


FACTORS = ("quality", "cost", "latency", "load")


def routed(algorithm: object, **more: Any) -> tuple[Ported, dict[str, Any]]:
    """What becomes of a decision on two models."""
    decision = {"name": "d", "modelRefs": [{"model": "m"}, {"model": "n"}], "algorithm": algorithm, **more}
    servers = [{"name": name, "backend_refs": [{"endpoint": f"{name}:1"}]} for name in "mn"]
    cards = [{"name": "m"}, {"name": "n", "quality_score": 0.9}]
    made = ported({"providers": {"models": servers}, "routing": {"modelCards": cards, "decisions": [decision]}})
    _, problems = check(made.text(), "policy.yaml", doubts=False)
    assert [str(problem) for problem in problems if problem.severity == "error"] == []
    (found,) = policy(made)["decisions"]
    return made, found


@pytest.mark.parametrize(
    ("algorithm", "by", "said"),
    [
        ({"type": "elo", "elo": {"k_factor": 16}}, "elo", "note: it learns anew"),
        ({"type": "rl_driven"}, "bandit", "note: it learns anew"),
        ({"type": "gmtrouter", "gmtrouter": {"num_layers": 2}}, "bandit", "note: it learns anew"),
        ({"type": "router_dc", "router_dc": {"temperature": 0.2}}, "bandit", "loss: models are told from each other"),
        ({"type": "knn"}, None, "loss: what `knn` was trained to is not read"),
        ({"type": "mlp"}, None, "loss: what `mlp` was trained to is not read"),
        ({"type": "ratings", "ratings": {"max_concurrent": 3}}, None, "loss: `ratings` asks several models"),
        ({"type": "prompt", "prompt": {"model": "m"}}, None, "loss: nothing here chooses as `prompt` does"),
        ({"type": "static"}, None, "note: the first of the models is taken"),
        ({"type": "random"}, "weighted", ""),
        ({"type": "latency_aware", "latency_aware": {"ttft_percentile": 95}}, "fastest", ""),
        ({"type": "latency_aware", "latency_aware": {"tpot_percentile": 95}}, {"fastest": {"until": "end"}}, ""),
        (
            {"type": "automix", "automix": {"cost_quality_tradeoff": 0.35}},
            {"factors": {"quality": 0.65, "cost": 0.35}},
            "note: `quality` and price are weighed",
        ),
        (
            {"type": "automix", "automix": {"cost_aware_routing": False}},
            {"factors": {"quality": 0.0, "cost": 1.0}},
            "note: `quality` and price are weighed",
        ),
        (
            {"type": "hybrid", "hybrid": {"experience_weight": 0.4, "router_dc_weight": 0.3, "cost_weight": 0.1}},
            {"factors": {"quality": 0.9, "cost": 0.1}},
            "loss: `quality` and price are weighed",
        ),
        ({"type": "multi_factor"}, {"factors": dict.fromkeys(FACTORS, 0.25)}, ""),
        (
            {
                "type": "multi_factor",
                "multi_factor": {
                    "objective": {
                        "strategy": "lexicographic",
                        "priorities": [{"factor": "cost", "tolerance": 0.1}, {"factor": "quality"}],
                    },
                    "slo": {"max_inflight": 9},
                    "quality": {"min_score": 0.4, "on_missing": "exclude"},
                },
            },
            {"factors": {"quality": 0.25, "cost": 1.0, "limits": {"load": 9, "quality": 0.4}}},
            "loss: factors are weighed here, the first ones more",
        ),
        (
            {"type": "multi_factor", "multi_factor": {"weights": {"cost": 1}, "objective": {"strategy": "weighted"}}},
            {"factors": {"cost": 1, "quality": 0.0}},
            "",
        ),
    ],
)
def test_how_one_of_several_models_is_chosen(algorithm: object, by: object, said: str) -> None:
    made, found = routed(algorithm)
    assert found["route"] == ("m" if by is None else {"pick": ["m", "n"], "by": by})
    told = [f"{one.kind}: {one.message}" for one in made.told if "algorithm" in one.place]
    assert [one.startswith(said) for one in told] == ([True] if said else [])


@pytest.mark.parametrize(
    ("algorithm", "panel", "said"),
    [
        (
            {"type": "confidence", "confidence": {"confidence_method": "margin", "threshold": 0.4}},
            {"cascade": ["m", "n"], "until": {"sure": 0.4, "by": "margin"}},
            "note: how sure",
        ),
        (
            {"type": "fusion", "fusion": {"model": "m", "min_successful_responses": 5, "round_timeout_seconds": 90}},
            {"merge": ["m", "n"], "writer": "m", "quorum": 2, "budget": {"each": 90, "seconds": 270}},
            "",
        ),
        (
            {"type": "fusion", "fusion": {"analysis_models": ["n"], "grounding": {"enabled": True}}},
            {"merge": ["n"], "writer": "n"},
            "loss: drafts are not weighed",
        ),
        (
            {"type": "remom", "remom": {"breadth_schedule": [3, 2], "synthesis_model": "m"}},
            {"merge": ["m", "n"], "writer": "m"},
            "loss: each model drafts once here, before the answer is written; rounds of 3, 2 drafts are not",
        ),
        (
            {"type": "workflows", "workflows": {"mode": "static", "roles": [{"name": "a"}], "final": {"model": "m"}}},
            {"merge": ["m", "n"], "writer": "m"},
            "loss: models draft at the same time",
        ),
        (
            {"type": "workflows", "workflows": {"mode": "dynamic", "planner": {"model": "m"}, "max_steps": 4}},
            {"rounds": ["m", "n"], "planner": "m", "max": 4},
            "note: the planner asks models in rounds",
        ),
    ],
)
def test_which_panel_answers_for_several_models(algorithm: dict[str, Any], panel: object, said: str) -> None:
    made, found = routed(algorithm)
    assert found["panel"] == panel
    told = [f"{one.kind}: {one.message}" for one in made.told if "algorithm" in one.place]
    assert [one.startswith(said) for one in told] == ([True] if said else [])
    away = ported(
        {
            "routing": {
                "decisions": [{"name": "d", "modelRefs": [{"model": "m"}, {"model": "n"}], "algorithm": algorithm}]
            }
        }
    )
    assert policy(away)["decisions"] == [{"name": "d", "route": "m"}]
    assert any("so it must know where they are" in one.message for one in away.told)


def test_conversations_stay_on_their_models_where_switching_is_guarded_there() -> None:
    source: dict[str, Any] = {
        "providers": {"models": [{"name": "m"}, {"name": "n"}]},
        "routing": {
            "decisions": [
                {
                    "name": name,
                    "priority": -number,
                    "rules": {"type": "keyword", "name": name},
                    "modelRefs": [{"model": "m"}, {"model": "n"}],
                    "algorithm": {"type": "latency_aware"},
                    "adaptations": {"mode": mode},
                }
                for number, (name, mode) in enumerate([("free", "bypass"), ("held", "apply")])
            ],
            "signals": {
                "keywords": [{"name": name, "operator": "OR", "keywords": [name]} for name in ("free", "held")]
            },
        },
        "global": {"router": {"learning": {"enabled": True, "protection": {"enabled": True}, "adaptation": {}}}},
    }
    free, held = policy(ported(source))["decisions"]
    assert free["route"] == {"pick": ["m", "n"], "by": "fastest"}
    assert held["route"] == {"pick": ["m", "n"], "by": "fastest", "sticky": "session"}


EMBEDDINGS: dict[str, Any] = {
    "providers": {"models": [{"name": "m"}]},
    "routing": {
        "signals": {
            "embeddings": [
                {"name": name, "threshold": 0.5, "candidates": [f"talk of {name}"]}
                for name in ("bread", "cheese", "wine")
            ]
        },
        "projections": {"partitions": [{"name": "food", "members": ["bread", "cheese"], "default": "bread"}]},
        "decisions": [
            {"name": name, "rules": {"type": "embedding", "name": name}, "modelRefs": [{"model": "m"}]}
            for name in ("bread", "cheese", "wine")
        ],
    },
}


def test_the_strongest_embedding_alone_counts_unless_several_may() -> None:
    made = policy(ported(EMBEDDINGS))
    assert made["signals"]["embeddings"] == {
        "score": {"sum": {"bread": 1.0, "cheese": 1.0, "wine": 1.0}, "exclusive": "best"}
    }
    assert made["rules"] == {
        "embeddings:cheese": {"signal": "embeddings", "is": "cheese"},
        "embeddings:bread": {"signal": "embeddings", "is": "bread"},
        "embeddings:wine": {"signal": "embeddings", "is": "wine"},
        "food:bread": {"any": ["embeddings:bread", {"not": "embeddings:cheese"}]},
    }
    assert [one["when"] for one in made["decisions"]] == ["food:bread", "embeddings:cheese", "embeddings:wine"]
    several = {"global": {"model_catalog": {"embeddings": {"semantic": {"embedding_config": {"top_k": 0}}}}}}
    made = policy(ported(EMBEDDINGS | several))
    assert made["signals"]["food"]["score"]["default"] == "bread"
    assert [one["when"] for one in made["decisions"]] == ["food:bread", "food:cheese", "wine"]


def test_models_that_read_many_languages_become_the_second_reader(everything: Ported, flat: Ported) -> None:
    assert policy(everything)["settings"] == policy(flat)["settings"] == {"readers": "both"}
    assert "settings" not in policy(ported(SMALL))


def test_each_recipe_has_signals_of_its_own() -> None:
    def recipe(name: str, words: list[str]) -> dict[str, Any]:
        signals = {
            "keywords": [{"name": "k", "operator": "OR", "keywords": words}, {"name": "same", "keywords": ["x"]}]
        }
        rules = {"operator": "AND", "conditions": [{"type": "keyword", "name": key} for key in ("k", "same")]}
        decisions = [{"name": name, "rules": rules, "modelRefs": [{"model": "m"}]}]
        return {"name": name, "routing": {"signals": signals, "decisions": decisions}}

    made = policy(
        ported(
            {
                "providers": {"models": [{"name": "m"}]},
                "entrypoints": [{"model_names": [f"their/{name}"], "recipe": name} for name in ("one", "two")],
                "recipes": [recipe("one", ["first"]), recipe("two", ["second"])],
            }
        )
    )
    assert made["signals"]["k"] == {"keyword": {"any": ["first"]}}
    assert made["signals"]["keyword:k"] == {"keyword": {"any": ["second"]}}
    assert [one["when"]["all"] for one in made["decisions"]] == [
        ["recipe:one", "k", "same"],
        ["recipe:two", "keyword:k", "same"],
    ]


def test_a_sum_of_a_recipe_knows_no_signal_of_another_recipe() -> None:
    def profile(said: str) -> dict[str, Any]:
        rules = {"operator": "AND", "conditions": [{"type": "embedding", "name": "x"}]}
        return {
            "signals": {"embeddings": [{"name": "x", "threshold": 0.5, "candidates": [said]}]},
            "decisions": [{"name": said, "rules": rules, "modelRefs": [{"model": "m"}]}],
        }

    summed = {"type": "embedding", "name": "x", "weight": 1.0, "value_source": "raw"}
    outputs = [{"name": "low", "lt": 0.5}, {"name": "high", "gte": 0.5}]
    rules = {"operator": "AND", "conditions": [{"type": "projection", "name": "high"}]}
    other = {
        "projections": {
            "scores": [{"name": "s", "method": "weighted_sum", "inputs": [summed]}],
            "mappings": [{"name": "q", "source": "s", "method": "threshold_bands", "outputs": outputs}],
        },
        "decisions": [{"name": "b", "rules": rules, "modelRefs": [{"model": "m"}]}],
    }
    made = policy(
        ported(
            {
                "providers": {"models": [{"name": "m"}]},
                "routing": profile("top"),
                "entrypoints": [{"model_names": [f"their/{name}"], "recipe": name} for name in ("a", "b")],
                "recipes": [{"name": "a", "routing": profile("of a")}, {"name": "b", "routing": other}],
            }
        )
    )
    assert made["signals"]["x"]["similar"]["to"] == ["top"]
    assert made["signals"]["s"]["score"]["sum"] == {"x": 1.0}


@pytest.mark.slow
def test_knowledge_bases_become_files_beside_the_policy(run: Run, tmp_path: Path) -> None:
    ran = run("import", "vllm-sr", EVERYTHING, "-o", tmp_path / "policy.yaml")
    assert ran.status == 3
    assert json.loads((tmp_path / "company.knowledge.json").read_text()) == {
        "labels": {
            "contract": {"examples": ["end the lease in March", "which clause covers late payment?"], "at_least": 0.5},
            "salary": {"examples": ["what does our accountant earn?"], "at_least": 0.65},
            "recipe": {"examples": ["a soup for six people", "how long do lentils cook?"], "at_least": 0.5},
        },
        "groups": {"private": ["contract", "salary"], "open": ["recipe"], "recipes": ["recipe"]},
    }
    assert run("validate", tmp_path / "policy.yaml").status == 0
    assert "company.knowledge.json: the policy names this file" in run("import", "vllm-sr", EVERYTHING).err


def test_what_an_import_writes_is_said_and_nothing_of_others_is_written_over(run: Run, tmp_path: Path) -> None:
    to, beside = tmp_path / "policy.yaml", tmp_path / "company.knowledge.json"
    beside.write_text("{}")
    ran = run("import", "vllm-sr", EVERYTHING, "-o", to)
    assert ran.status == 2
    assert f"{beside}: this is there already, and no import to {to} wrote it" in ran.err
    assert (to.exists(), beside.read_text()) == (False, "{}")
    beside.unlink()
    ran = run("import", "vllm-sr", EVERYTHING, "-o", to)
    assert ran.status == 3
    assert ran.err.endswith(f"written to {to} and {beside}, with the above as comments at their places\n")
    beside.write_text(beside.read_text().replace("lentils", "beans"))  # of an earlier configuration
    assert run("import", "vllm-sr", EVERYTHING, "-o", to).status == 3
    assert "lentils" in beside.read_text()


def test_a_knowledge_base_outside_of_the_folder_is_not_read(run: Run, tmp_path: Path) -> None:
    content = json.dumps({"labels": {"x": {"exemplars": ["a text"]}}})
    (tmp_path / "inside").mkdir()
    for place in (tmp_path, tmp_path / "inside"):
        (place / "labels.json").write_text(content)
    (tmp_path / "inside" / "link.json").symlink_to(tmp_path / "labels.json")
    for path, manifest, inside in (
        ("", "labels.json", True),
        ("../inside", "labels.json", True),
        ("..", "labels.json", False),
        (str(tmp_path), "labels.json", False),
        ("", "link.json", False),
    ):
        source = json.loads(json.dumps(SMALL))
        bases = [{"name": "b", "source": {"path": path, "manifest": manifest}}]
        source["global"] = {"model_catalog": {"kbs": bases}}
        source["routing"]["signals"]["kb"] = [{"name": "k", "kb": "b", "target": {"kind": "label", "value": "x"}}]
        config = tmp_path / "inside" / "config.yaml"
        config.write_text(yamls.dump(source))
        ran = run("import", "vllm-sr", config)
        assert ("it lies outside of the folder of the configuration" in ran.err) is not inside


def test_knowledge_bases_with_names_that_are_alike_have_a_file_each(run: Run, tmp_path: Path) -> None:
    bases, rules = [], []
    for at, name in enumerate(["a b", "a/b"]):
        content = {"labels": {"x": {"exemplars": [f"text {at}"]}, "odd": {"exemplars": 5}}}
        (tmp_path / f"{at}.json").write_text(json.dumps(content))
        bases.append({"name": name, "source": {"path": "", "manifest": f"{at}.json"}})
        rules.append({"name": f"k{at}", "kb": name, "target": {"kind": "label", "value": "x"}})
    (tmp_path / "deep.json").write_text("[" * 100_000)
    bases.append({"name": "deep", "source": {"path": "", "manifest": "deep.json"}})
    source = json.loads(json.dumps(SMALL))
    source["global"] = {"model_catalog": {"kbs": bases}}
    source["routing"]["signals"]["kb"] = rules
    (tmp_path / "config.yaml").write_text(yamls.dump(source))
    ran = run("import", "vllm-sr", tmp_path / "config.yaml", "-o", tmp_path / "policy.yaml")
    assert "deep: its examples cannot be read here" in ran.err
    kept = [json.loads((tmp_path / f"a-b{more}.knowledge.json").read_text()) for more in ("", "-2")]
    assert [one["labels"]["x"] for one in kept] == [["text 0"], ["text 1"]]


@pytest.mark.parametrize(
    ("family", "signal", "said"),
    [
        ("role_bindings", {"role": "r", "subjects": []}, "it is bound to nobody"),
        ("structure", {"feature": {"type": "count", "source": {"type": "regex"}}}, "nothing says what it looks for"),
        ("structure", {"feature": {"type": "guess", "source": {"pattern": "x"}}}, "no feature that is known here"),
        ("structure", {"feature": {"type": "sequence", "source": {"sequences": [[]]}}}, "in which order"),
        ("reasks", {"lookback_turns": 100}, "20 earlier messages are compared at most"),
        ("kb", {"kb": "none", "target": {"kind": "label", "value": "x"}}, "there is no knowledge base"),
        (
            "complexity",
            {
                "hard": {"candidates": ["a"]},
                "easy": {"candidates": ["b"]},
                "composer": {"type": "complexity", "name": "s:hard"},
            },
            "s is composed with itself",
        ),
    ],
)
def test_a_signal_that_says_too_little_is_told_and_leaves_a_policy_that_can_be_used(
    family: str, signal: dict[str, Any], said: str
) -> None:
    source = json.loads(json.dumps(SMALL))
    source["routing"]["signals"][family] = [{"name": "s", **signal}]
    made = ported(source)
    _, problems = check(made.text(), "policy.yaml", doubts=False)
    assert [str(problem) for problem in problems if problem.severity == "error"] == []
    assert any(said in one.message for one in made.told)


def test_what_has_no_name_is_left_out() -> None:
    source: dict[str, Any] = {
        "providers": {"models": [{"name": "m"}, {"pricing": {"prompt_per_1m": 1}}]},
        "routing": {"modelCards": [{"loras": [{"description": "none"}], "name": "m"}, {"tags": ["x"]}]},
        "recipes": [{"routing": {"decisions": [{"name": "d", "modelRefs": [{"use_reasoning": True}]}]}}],
    }
    made = ported(source)
    policy_, problems = check(made.text(), "policy.yaml", doubts=False)
    assert policy_ is not None, problems
    assert (list(policy_.models), policy_.clauses) == (["m"], [])
    assert sum("has no name" in one.message or "neither a name" in one.message for one in made.told) == 4


def test_what_a_benchmark_says_of_a_model_is_its_quality() -> None:
    records = [
        {"model": name, "benchmark": "b@1", "metrics": {"score": score}} for name, score in (("m", 0.83), ("n", 80))
    ]
    source: dict[str, Any] = {
        "providers": {"models": [{"name": "m"}, {"name": "n"}, {"name": "o"}]},
        "routing": {"modelCards": [{"name": "o", "quality_score": 0.4}], "decisions": []},
        "evaluation": {"records": [*records, {"model": "o", "metrics": {"score": 0.9}}]},
    }
    models = policy(ported(source))["models"]
    assert models == {"m": {"quality": 0.83}, "n": {}, "o": {"quality": 0.4}}


def test_a_source_without_models_keeps_its_rules() -> None:
    decision = {"name": "d", "rules": {"type": "keyword", "name": "k"}}
    made = ported({"routing": {"signals": SMALL["routing"]["signals"], "decisions": [decision]}})
    assert policy(made)["decisions"] == [{"name": "d", "when": "k", "route": "model"}]
    assert any(one.message.startswith("the source names no model") for one in made.told)


def test_exit_statuses(run: Run, tmp_path: Path) -> None:
    source, out, report = (tmp_path / name for name in ("config.yaml", "policy.yaml", "report.json"))
    source.write_text(yamls.dump(SMALL))
    ran = run("import", "vllm-sr", source, "-o", out, "--report", report)
    assert (ran.status, ran.out, ran.err) == (0, "", "")
    assert json.loads(report.read_text()) == {
        "source": "config.yaml",
        "loss": 0,
        "contradiction": 0,
        "note": 0,
        "told": [],
    }
    assert run("validate", out).status == 0
    assert run("import", "vllm-sr", "-", stdin=source.read_bytes()).out == out.read_text().replace(
        "config.yaml", "<stdin>"
    )
    lossy = run("import", "vllm-sr", EVERYTHING, "-o", out, "--report", report)
    assert lossy.status == 3
    assert "everything.yaml:" in lossy.err
    assert json.loads(report.read_text())["loss"] > 30
    assert run("import", "vllm-sr", tmp_path / "missing.yaml").status == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: ]", "config.yaml:2: not valid YAML"),
        ("- a", "config.yaml: a configuration is a mapping"),
        ("model_list: []", "not a configuration of vLLM Semantic Router"),
        ("routing: 3", "config.yaml:1: routing: a mapping is needed"),
        ("routing:\n  decisions: {a: 1}\n  modelCards: [{name: m}]", "config.yaml:2: routing.decisions: a list"),
        (
            "routing:\n  modelCards: [{name: m}]\n  decisions:\n  - priority: high\n    name: x",
            "config.yaml:4: routing.decisions[x].priority: a number is needed",
        ),
        ("routing: {}", "it names no model, and decides nothing"),
        ("a: &a [*a]\nrouting: {decisions: []}", "config.yaml"),
        ("\ufeff\x00", "config.yaml"),
    ],
)
def test_what_cannot_be_read_says_where(run: Run, tmp_path: Path, text: str, said: str) -> None:
    source = tmp_path / "config.yaml"
    source.write_text(text)
    ran = run("import", "vllm-sr", source)
    assert ran.status == 2
    assert said in ran.err
    assert ran.out == ""


def test_names_and_words_of_any_kind_come_out_as_they_are() -> None:
    strange = [
        "true",
        "null",
        "1e5",
        "- x",
        "a: b",
        "c #d",
        "'",
        '"',
        "\\",
        "é\u2028",
        "日本",
        "*",
        "&",
        "{",
        "~",
        "=",
        "a\x85b",
    ]
    source = json.loads(json.dumps(SMALL))
    source["routing"]["signals"]["keywords"][0]["keywords"] = strange
    made = ported(source)
    policy_, problems = check(made.text(), "policy.yaml", doubts=False)
    assert policy_ is not None, problems
    assert policy_.signals["k"][1].any == strange  # type: ignore[attr-defined]


def test_an_alias_bomb_is_read_in_no_time() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    made = ported("\n".join([*lines, yamls.dump(SMALL)]))
    assert len([one for one in made.told if one.place.startswith("a")]) == 60


@pytest.mark.parametrize("number", ["1" + "0" * 400, ".inf", ".nan", "'nan'"])
def test_a_number_that_is_none_is_refused_where_it_stands(number: str) -> None:
    source = yamls.dump(SMALL).replace("priority: 1", f"priority: {number}")
    assert number in source
    with pytest.raises(Unimportable, match=r"priority: a (finite )?number is needed"):
        ported(source)

"""How a decision of vLLM Semantic Router's configurations comes from several models to one answer: one of them is
chosen, or several are asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cli.imports.ported import Entry, Ported
from cli.imports.source import Given

_FIRST: Final = ("", "static")
_LEARNED: Final = {"elo": "elo", "rl_driven": "bandit", "thompson": "bandit", "gmtrouter": "bandit"}
_TRAINED: Final = ("knn", "kmeans", "svm", "mlp")
_FACTORS: Final = ("quality", "cost", "latency", "load")


class ChoicePorter:
    """Writes what a decision does with its models. `usual` is how one of several is chosen where a decision does not
    say; `sticky`: a conversation stays on its model."""

    def __init__(self, ported: Ported) -> None:
        self._ported = ported
        self.usual = ""
        self.sticky = False

    # Several models are asked.

    def panel(self, of: Given, names: list[str], entry: Entry) -> dict[str, Any] | None:
        """The panel that answers; None where one of the models is chosen, or there is none that does the same."""
        kind = of.text("type")
        write = getattr(self, f"_{kind}", None) if kind in ("confidence", "fusion", "remom", "workflows") else None
        if write is None or len(names) < 2:
            return None
        if not all("url" in self._ported.models[name].value for name in names):
            message = "a panel asks models itself, so it must know where they are: give each a `url`"
            self._ported.tell("loss", (of, "type"), message, entry)
            return None
        given = of.child(kind)
        found: dict[str, Any] = write(given, names, entry)
        self._budget(given, found)
        of.skip("minimum_candidates", "on_error", "type")
        given.skip("on_error", "max_concurrent", "max_response_bytes")
        for one in (given, of):
            self._ported.leftover(one, entry)
        return found

    def _confidence(self, given: Given, names: list[str], entry: Entry) -> dict[str, Any]:
        """Models that are asked one after the other until one is sure."""
        method, least = given.text("confidence_method", "avg_logprob"), given.number("threshold")
        least = 0.7 if least is None else math.exp(least) if least <= 0 else least  # a log probability, or none
        until = {"sure": round(min(1.0, max(0.01, least)), 4), "by": "margin" if method == "margin" else "mean"}
        message = "how sure a model is, is measured in another way, so the threshold needs a look (docs/panels.md)"
        self._ported.tell("note", (given, ""), message, entry)
        given.skip("hybrid_weights", "verifier_timeout_seconds", "escalation_order", "cost_quality_tradeoff")
        return {"cascade": names, "until": until}

    def _fusion(self, given: Given, names: list[str], entry: Entry) -> dict[str, Any]:
        """Drafts, and a model that writes the answer from them."""
        members = [name for name in given.texts("analysis_models") if name in self._ported.models] or names
        writer = given.text("model")
        given.skip("include_analysis", "include_intermediate_responses", "quorum_failure_policy", "analysis_mode")
        given.skip("judge_prompt_version", "temperature")
        if given.child("grounding").flag("enabled"):
            message = "drafts are not weighed by what they rest on"
            self._ported.tell("loss", (given, "grounding"), message, entry)
        return self._merge(members, self._writer(writer, names), given)

    def _remom(self, given: Given, names: list[str], entry: Entry) -> dict[str, Any]:
        """Rounds of drafts there; one round of them here, from which the answer is written."""
        writer = given.text("synthesis_model")
        schedule = given.texts("breadth_schedule")
        if schedule not in ([], [str(len(names))]):
            message = f"each model drafts once here, before the answer is written; rounds of {', '.join(schedule)}"
            self._ported.tell("loss", (given, "breadth_schedule"), f"{message} drafts are not", entry)
        given.skip("include_intermediate_responses", "shuffle_seed", "temperature")
        return self._merge(names, self._writer(writer, names), given)

    def _workflows(self, given: Given, names: list[str], entry: Entry) -> dict[str, Any]:
        """A planner that asks the others; roles that follow each other there are drafts here."""
        planner, roles = given.child("planner").text("model"), given.children("roles")
        given.child("planner").skip("max_completion_tokens")
        most = given.number("max_steps")
        given.skip("template", "max_parallel", "mode", "include_intermediate_responses", "temperature")
        if given.text("mode", "static") == "dynamic":
            message = "the planner asks models in rounds, in words of its own; it writes no plan beforehand"
            self._ported.tell("note", (given, "mode"), message, entry)
            given.skip("min_successful_responses")
            return {"rounds": names, "planner": self._writer(planner, names)} | ({"max": int(most)} if most else {})
        message = "models draft at the same time, and one writes the answer: no roles or steps follow each other"
        self._ported.tell("loss", (given, "roles" if roles else "mode"), message, entry)
        final = given.child("final")
        writer = final.text("model") or planner
        final.skip("prompt")
        given.skip("roles")
        return self._merge(names, self._writer(writer, names), given)

    def _merge(self, members: list[str], writer: str, given: Given) -> dict[str, Any]:
        quorum = given.number("min_successful_responses")
        found: dict[str, Any] = {"merge": members, "writer": writer}
        return found | ({"quorum": int(min(quorum, len(members)))} if quorum else {})

    def _budget(self, given: Given, panel: dict[str, Any]) -> None:
        """How long a call may take, and an answer with all its calls."""
        each = given.number("round_timeout_seconds")
        if each:
            panel["budget"] = {"each": each, **({"seconds": 3 * each} if 3 * each > 120 else {})}

    def _writer(self, named: str, names: list[str]) -> str:
        """The model `named`; where there is none, that of the highest quality, of equals the first."""
        if named in self._ported.models:
            return named
        return max(names, key=lambda name: self._ported.models[name].value.get("quality", 0.0))

    # One model is chosen.

    def choice(self, of: Given, names: list[str], weights: Mapping[str, float], entry: Entry) -> dict[str, Any] | None:
        """How the decision `of` chooses one of the models `names`; None: the first is taken."""
        given = of.child("algorithm")
        kind = given.text("type", self.usual)
        own = given.child(kind) if kind else given
        found = self._choice(of, kind, own, weights, entry) if len(names) > 1 else None
        if kind and found is None:
            own.skip(*own.data)
        given.skip("on_error", "minimum_candidates", kind)
        for one in (own, given):
            self._ported.leftover(one, entry)
        if found is not None and self.sticky and of.child("adaptations").text("mode") != "bypass":
            found["sticky"] = "session"
        return found

    def _choice(
        self, of: Given, kind: str, own: Given, weights: Mapping[str, float], entry: Entry
    ) -> dict[str, Any] | None:
        tell = self._ported.tell
        where = (of, "algorithm")
        if kind == "latency_aware":
            whole = "tpot_percentile" in own and "ttft_percentile" not in own
            own.skip("tpot_percentile", "ttft_percentile", "description")
            return {"by": {"fastest": {"until": "end"}}} if whole else {"by": "fastest"}
        if kind == "multi_factor":
            return {"by": {"factors": self._factors(own, entry)}}
        if kind in ("", "static", "weighted") and any(weights.values()):
            return {"by": "weighted", "weights": dict(weights)}
        if kind in _FIRST:
            tell("note", where, "the first of the models is taken; the others never are", entry)
            return None
        if kind == "random":
            return {"by": "weighted"}
        if kind in _LEARNED:
            own.skip(*own.data)
            tell("note", where, "it learns anew, from grades, and with parameters of its own (docs/choices.md)", entry)
            return {"by": _LEARNED[kind]}
        if kind in ("automix", "hybrid"):
            return {"by": {"factors": self._worth(kind, own, where, entry)}}
        if kind == "router_dc":
            own.skip(*own.data)
            message = "models are told from each other by their descriptions there; here grades of like questions tell"
            tell("loss", where, f"{message} (docs/choices.md)", entry)
            return {"by": "bandit"}
        if kind == "session_aware":
            own.skip(*own.data)
            tell("note", where, "a conversation stays on its model, whatever a change would cost or gain", entry)
            return {"by": {"factors": {"quality": 1.0}}, "sticky": "session"}
        told = "so the first model is taken"
        if kind in _TRAINED:
            message = f"what `{kind}` was trained to is not read, {told}; `pointsman select train` learns from the same"
        elif kind in ("confidence", "ratings", "fusion", "remom", "workflows"):
            message = f"`{kind}` asks several models, {told} (docs/panels.md tells of others)"
        else:
            message = f"nothing here chooses as `{kind}` does, {told} (docs/choices.md: what learns)"
        tell("loss", where, message, entry)
        return None

    def _worth(self, kind: str, own: Given, where: tuple[Given, str], entry: Entry) -> dict[str, Any]:
        """Weights for what a model is worth and what it costs, of selectors that weigh the two."""
        if kind == "automix":
            told = own.number("cost_quality_tradeoff")
            cost = 0.3 if told is None else min(1.0, max(0.0, told))
            if not own.flag("cost_aware_routing", True):
                cost = 1.0  # the smallest model is the first to answer
            quality = 1.0 - cost
        else:
            usual = {"experience_weight": 0.3, "router_dc_weight": 0.3, "automix_weight": 0.2}
            quality = sum(default if (found := own.number(key)) is None else found for key, default in usual.items())
            told = own.number("cost_weight")
            cost = 0.2 if told is None else told
        own.skip(*own.data)
        message = "`quality` and price are weighed; what it learns by itself, and descriptions, are not"
        self._ported.tell("note" if kind == "automix" else "loss", where, message, entry)
        return {"quality": round(quality, 6), "cost": round(cost, 6)} if quality or cost else {"quality": 1.0}

    def _factors(self, given: Given, entry: Entry) -> dict[str, Any]:
        told = given.child("weights")
        found: dict[str, Any] = {key: weight or 0.0 for key in _FACTORS if (weight := told.number(key)) is not None}
        found.setdefault("quality", 0.0)
        if not any(found.values()):  # theirs are equal then, and ours must not all be 0
            found = dict.fromkeys(_FACTORS, 0.25)
        objective = given.child("objective")
        if objective.text("strategy") == "lexicographic":
            message = "factors are weighed here, the first ones more, not looked at one after the other"
            self._ported.tell("loss", (given, "objective"), message, entry)
            ranked = [one.text("factor") for one in objective.children("priorities")]
            ranked = [factor for factor in dict.fromkeys(ranked) if factor in _FACTORS]
            if ranked:
                found = {"quality": 0.0} | {factor: 4.0**-place for place, factor in enumerate(ranked)}
            for one in objective.children("priorities"):
                one.skip("factor", "tolerance")
        limits, quality = given.child("slo"), given.child("quality")
        kept = {
            "latency": limits.number("max_ttft_ms"),
            "load": limits.number("max_inflight"),
            "quality": quality.number("min_score") or None,
        }
        ours = {key: value / 1000 if key == "latency" else value for key, value in kept.items() if value is not None}
        if ours:
            found["limits"] = ours
        if "index" in quality:
            message = "a model's `quality` counts, which you give: write what this index says there"
            self._ported.tell("note", (quality, "index"), message, entry)
        quality.skip("on_missing", "min_coverage")
        given.skip("latency_percentile", "latency_metric", "on_no_candidates", "expected_output_tokens")
        for one in (limits, told, objective, quality, given):
            self._ported.leftover(one, entry)
        return found

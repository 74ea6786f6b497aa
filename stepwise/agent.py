"""Agent loops, where each step is a request of its own: chooses the small or the large model, or the reasoning effort.

Only the conversation so far can be looked at: which model wrote the earlier turns (when the caller knows), which tools
failed, how often the agent came back, what the session has cost. The choice comes from a policy of the same kind as the
stepwise one (an ONNX file with these features), or from a plain rule when there is none.

Choosing effort follows Ares (arXiv 2603.07915); the hard budget of a session, and spending more carefully as it
shrinks, follow arXiv 2602.21227. A request is let through only once its worst case has been reserved, so the budget
holds whatever the models do.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from signals.reading import Unavailable
from signals.state.store import Memory, Store
from stepwise.metrics import StepwiseMetrics
from stepwise.policy import GOAL, Device, PolicyFailed, PolicyTarget, StepPolicy, StepPolicyError, Vector
from upstream.client import ModelClient
from upstream.endpoint import JSON, Endpoint
from upstream.tokens import CHARS_PER_TOKEN, estimate
from upstream.usage import TokenCounts

VERSION = 1
NAMES: tuple[str, ...] = (
    "turns",  # assistant turns so far
    "user_turns",  # user messages so far
    "tool_results",  # tool results so far
    "tool_errors",  # of them, those that look like failures
    "recent_tool_errors",  # of the last three
    "errors_in_a_row",  # failures at the end of the list
    "repeated_calls",  # tool calls identical to an earlier one
    "large_share",  # share of the earlier turns, where known, that the large model (or the highest effort) wrote
    "since_large",  # turns since the last of them; all turns when there was none
    "prompt_tokens",  # estimated tokens of the conversation
    "last_result_tokens",  # estimated tokens of the last tool result
    "spent_share",  # share of the session's budget that is spent; 0 without a budget
    "difficulty",  # the request's difficulty signal, 0..1; 0.5 when unknown
)
"""Feature names in the order of the vector. The values are raw, as those of steps are."""

_RULE_KAPPA = 0.5
_LONG_ANSWER = 4096  # tokens
_TURNS = 64  # of a session whose writers are remembered
_SESSIONS = 65536
_MIN_TOKENS = 16  # less than this is no answer
_ERROR_WORDS = ("error", "exception", "traceback", "failed", "failure", "not found", "denied", "timed out", "invalid")


class Spend:
    """What sessions have cost, in the store that the replicas share (by default: this process alone).

    Every method raises `Unavailable` when the store does not answer.
    """

    def __init__(self, store: Store | None = None, ttl: float = 86_400.0) -> None:
        """`ttl`: seconds after its last request that a session is forgotten."""
        self._store = store or Memory()
        self._ttl = ttl

    async def spent(self, session: str) -> float:
        """Money spent and reserved so far."""
        return await self._store.number(_key(session))

    async def reserve(self, session: str, amount: float, limit: float) -> bool:
        """Adds `amount` if the total stays within `limit`; both at once, or neither."""
        return await self._store.take(_key(session), amount, limit, self._ttl)

    def settle(self, session: str, reserved: float, actual: float) -> None:
        """Replaces a reservation by the real amount, soon."""
        self._store.add(_key(session), actual - reserved, self._ttl)


def _key(session: str) -> str:
    """A hash of the session's name, since clients choose names of any length, and the store must not show them."""
    return f"stepwise:spent:{hashlib.sha256(session.encode('utf-8', 'surrogatepass')).hexdigest()}"


@dataclass(frozen=True, slots=True)
class LoopChoice:
    """How one request of an agent's loop is sent on.

    `model`: name in the configuration, None when the session's budget is used up or unknown (refuse the request).
    `effort`: value of `reasoning_effort`, for `choose: effort`. `max_tokens`: must be put into the body, or the answer
    may cost more than was reserved; None: leave the body's. `reserved`: money, to be settled when the answer is
    complete. `keep`: P(the cheapest choice is enough).
    """

    model: str | None
    effort: str | None
    max_tokens: int | None
    reserved: float
    keep: float
    reason: str


@dataclass(frozen=True, slots=True)
class LoopTerms:
    """What a `per: request` block says.

    `small`, `large`: the models by key. `efforts`: values of `reasoning_effort` for the large model, the cheapest
    first; empty: the choice is between the two models. `budget`: money that a session never exceeds. `policy`:
    the network's file, None for the plain rule; `device`: where it runs; `goal`: the target that it keeps.
    """

    small: str
    large: str
    efforts: tuple[str, ...] = ()
    budget: float | None = None
    policy: Path | None = None
    device: Device = "auto"
    goal: PolicyTarget = GOAL


class Agent:
    """A `per: request` decision. Build it at start, `close` it at the end."""

    def __init__(
        self,
        terms: LoopTerms,
        endpoints: Mapping[str, Endpoint],
        spend: Spend | None = None,
        metrics: StepwiseMetrics | None = None,
    ) -> None:
        """`endpoints`: by model name. Raises PolicyError."""
        self._terms = terms
        self._small, self._large = endpoints[terms.small], endpoints[terms.large]
        self.metrics = metrics or StepwiseMetrics()
        self.upstreams = {terms.small: ModelClient(self._small), terms.large: ModelClient(self._large)}
        self._spend = spend or Spend()
        self._writers: OrderedDict[str, list[str]] = OrderedDict()
        self._policy: StepPolicy | None = None
        self._kappa = _RULE_KAPPA
        if terms.policy is not None:
            self._policy = StepPolicy(terms.policy, device=terms.device, names=NAMES, version=VERSION)
            try:
                self._kappa = self._policy.card.of_pair(self._small.model, self._large.model).row(terms.goal).kappa
            except StepPolicyError:
                self._policy.close()
                raise

    async def close(self) -> None:
        """Closes every connection and the policy."""
        if self._policy is not None:
            self._policy.close()
        for upstream in self.upstreams.values():
            await upstream.close()

    async def choose(
        self,
        body: JSON,
        session: str | None = None,
        *,
        writers: Sequence[str | None] | None = None,
        difficulty: float = 0.5,
    ) -> LoopChoice:
        """Decides about one chat completion.

        `writers`: model name (or effort) of each earlier assistant turn, as far as known, oldest first; None: those
        that were chosen here for this session. `session`: whose budget it is; without a session there is no budget.
        """
        limit = self._terms.budget if session is not None else None
        try:
            spent = await self._spend.spent(session) if session is not None and limit is not None else 0.0
        except Unavailable:
            return LoopChoice(None, None, None, 0.0, 0.0, "budget_unknown")
        left = 1.0 if limit is None else max(0.0, 1.0 - spent / limit)
        highest = self._terms.efforts[-1] if self._terms.efforts else self._terms.large
        known = self._writers.get(session or "", ()) if writers is None else writers
        vector = conversation(body, known, highest, 1.0 - left, difficulty)
        keep, reason = await self._keep(vector)
        # In the second half of its budget a session has to be surer and surer to get the dear choice.
        level = self._level(keep, self._kappa * min(1.0, 2.0 * left))
        if session is None:
            return self._choice(level, None, (keep, reason))
        if limit is None:
            choice = self._choice(level, None, (keep, reason))
        else:
            try:
                choice = await self._afford(session, limit, body, level, (keep, reason))
            except Unavailable:
                return LoopChoice(None, None, None, 0.0, keep, "budget_unknown")
        self._remember(session, choice)
        return choice

    def settle(self, session: str, choice: LoopChoice, counts: TokenCounts) -> None:
        """Charges what an answer really cost."""
        if choice.reserved:
            self._spend.settle(session, choice.reserved, self.cost(choice, counts))

    def cost(self, choice: LoopChoice, counts: TokenCounts) -> float:
        """Money for this many tokens of the chosen model."""
        return self._endpoint(choice.model).cost(*counts) if choice.model is not None else 0.0

    def _remember(self, session: str, choice: LoopChoice) -> None:
        """Remembers what was chosen, for the session's next request: the last turns of the latest sessions."""
        if choice.model is None:
            return
        writers = self._writers.setdefault(session, [])
        writers.append(choice.effort or choice.model)
        del writers[:-_TURNS]
        self._writers.move_to_end(session)
        while len(self._writers) > _SESSIONS:
            self._writers.popitem(last=False)

    async def _keep(self, vector: Vector) -> tuple[float, str]:
        if self._policy is None:
            return rule(vector), "rule"
        try:
            keep, _ = await self._policy.keep(vector)
        except PolicyFailed as error:
            return 0.0, f"policy_{error.reason}"  # the safe side
        return keep, "policy"

    def _level(self, keep: float, kappa: float) -> int:
        """0 for the cheapest choice, and more for dearer ones the further P(keep) is under the threshold."""
        last = len(self._terms.efforts) - 1 if self._terms.efforts else 1
        if keep >= kappa:
            return 0
        return min(last, 1 + math.floor((1.0 - keep / kappa) * last))

    async def _afford(self, session: str, limit: float, body: JSON, level: int, why: tuple[float, str]) -> LoopChoice:
        """The wanted choice if its worst case still fits the budget, else the cheapest one, else none."""
        keep, reason = why
        asked: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
        answers = body.get("n") or 1
        prompt = _most_prompt_tokens(body)
        for tried in dict.fromkeys((level, 0)):
            endpoint = self._endpoint(self._model(tried))
            room = limit - await self._spend.spent(session) - endpoint.most(prompt, 0)
            if room < 0:
                continue
            # Without a limit of the client's own a long answer's room is reserved, so that others fit in beside it.
            tokens = asked or _LONG_ANSWER
            if endpoint.price_output > 0:
                tokens = min(tokens, math.floor(room * 1e6 / endpoint.price_output / answers))
            if tokens < min(_MIN_TOKENS, asked or _MIN_TOKENS):
                continue
            amount = endpoint.most(prompt, tokens * answers)
            if await self._spend.reserve(session, amount, limit):
                why = (keep, reason if tried == level else "budget")
                return self._choice(tried, None if tokens == asked else tokens, why, amount)
        return LoopChoice(None, None, None, 0.0, keep, "budget_exhausted")

    def _choice(self, level: int, tokens: int | None, why: tuple[float, str], reserved: float = 0.0) -> LoopChoice:
        effort = self._terms.efforts[level] if self._terms.efforts else None
        return LoopChoice(self._model(level), effort, tokens, reserved, *why)

    def _model(self, level: int) -> str:
        if self._terms.efforts:
            return self._terms.large
        return self._terms.large if level else self._terms.small

    def _endpoint(self, model: str) -> Endpoint:
        return self._small if model == self._terms.small else self._large


def conversation(
    body: JSON, writers: Sequence[str | None], highest: str, spent_share: float, difficulty: float
) -> Vector:
    """The vector [len(NAMES)] float32 of a conversation. `highest`: the name that counts as large among `writers`."""
    messages: list[JSON] = [message for message in body.get("messages") or () if isinstance(message, dict)]
    results = [message for message in messages if message.get("role") == "tool"]
    errors = [_is_error(result) for result in results]
    calls = [
        json.dumps(call.get("function"), sort_keys=True)
        for message in messages
        for call in message.get("tool_calls") or ()
        if isinstance(call, dict)
    ]
    turns = sum(message.get("role") == "assistant" for message in messages)
    known = [writer == highest for writer in writers if writer is not None]
    since = next((i for i, large in enumerate(reversed(known)) if large), turns)
    in_a_row = next((i for i, error in enumerate(reversed(errors)) if not error), len(errors))
    return np.array(
        (
            turns,
            sum(message.get("role") == "user" for message in messages),
            len(results),
            sum(errors),
            sum(errors[-3:]),
            in_a_row,
            len(calls) - len(set(calls)),
            sum(known) / len(known) if known else 0.0,
            since,
            prompt_tokens(body),
            estimate(_text(results[-1])) if results else 0,
            spent_share,
            difficulty,
        ),
        dtype=np.float32,
    )


def rule(vector: Vector) -> float:
    """P(keep) without a trained policy: it falls with failing tools, repeated calls and hard questions."""
    seen = dict(zip(NAMES, map(float, vector), strict=True))
    doubt = (
        -1.5
        + 0.7 * seen["recent_tool_errors"]
        + 0.7 * min(seen["errors_in_a_row"], 3.0)
        + 0.8 * min(seen["repeated_calls"], 3.0)
        + 4.0 * (seen["difficulty"] - 0.5)
        + 0.05 * min(seen["turns"], 20.0)
    )
    return 1.0 / (1.0 + math.exp(doubt))


def _is_error(result: JSON) -> bool:
    """Whether a tool's result looks like a failure: by its own flag, else by the words with which it begins."""
    flag: Any = result.get("is_error")
    if isinstance(flag, bool):
        return flag
    head = _text(result)[:200].lower()
    return any(word in head for word in _ERROR_WORDS)


def _text(message: JSON) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content)


def _prompt_bytes(body: JSON) -> int:
    """UTF-8 bytes of everything that the model may be shown, tools included."""
    shown = [body.get("messages"), body.get("tools"), body.get("functions")]
    return sum(len(json.dumps(part, ensure_ascii=False).encode("utf-8", "surrogatepass")) for part in shown if part)


def prompt_tokens(body: JSON) -> int:
    """An estimate of the prompt tokens of a request."""
    return _prompt_bytes(body) // CHARS_PER_TOKEN


def _most_prompt_tokens(body: JSON) -> int:
    """No tokenizer makes more tokens than bytes; a chat template adds a few to each message."""
    return _prompt_bytes(body) + 16 * (1 + len(body.get("messages") or ()))

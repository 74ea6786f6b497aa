"""The shipped model as the signals use it: slow inputs that give a verdict on a text, or the embeddings of some."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from signals.facts import Facts
from signals.gather import let_go
from signals.neural.fair import client_of
from signals.neural.service import Inference, Service
from signals.reading import Unavailable
from signals.request import Scope
from signals.services import Services
from signals.text.estimate import tokens_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from signals.neural.heads import Heads, HeadVerdict

LEAST_KNOWN: Final = 0.25
"""The share of known words below which `jailbreak`, `domain` and `reasoning` are Unknown (`too_little_known`): scripts
and languages that the model has hardly seen."""

LEAST_MEANT: Final = 0.55
"""The share of words below which the heads' embedding does not know what a text means."""


def heads(inference: Inference) -> Heads:
    """The shipped model; engines that live at the same time (a hot reload) share one copy. ModelError."""
    # Not at the top: whoever only checks a policy need not wait for it.
    from signals.neural.heads import MODEL, Heads
    from signals.neural.outcomes import OUTCOMES
    from signals.neural.tokenizer import LEXICON

    files = filter(Path.exists, (MODEL, LEXICON, OUTCOMES))
    key = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return inference.loaded(Heads, key, Heads)


def within(text: str, cap: int) -> str:
    """`text`, or Unavailable("too_long") when it has more than `cap` tokens: a text is read whole or not at all."""
    # No token is longer than its text, and none stands for more than sixteen bytes: most texts need no count.
    if len(text) > cap and (len(text) > 16 * cap or tokens_of(text) > cap):
        raise Unavailable("too_long")
    return text


class Shipped:
    """The shipped model behind its service, one for each engine. Texts of more estimated tokens than
    `services.max_input_tokens` are Unknown."""

    def __init__(self, services: Services) -> None:
        self.cap = services.max_input_tokens
        self.model = heads(services.inference)
        self._nothing = self.model.verdicts([""])[0]
        meter = services.inference.meter("shipped")
        self.service: Service[str, HeadVerdict] = Service(meter, self._verdicts, len, limits=services.limits)

    def _verdicts(self, texts: list[str]) -> list[HeadVerdict]:
        return self.model.verdicts(texts, self.service.rest)

    async def verdict(self, text: str, deadline: float, client: str = "") -> HeadVerdict:
        """What the heads say of `text`; see `Service.ask` for the rest."""
        return await self.service.ask(within(text, self.cap), deadline, client) if text else self._nothing

    def ability(self, standing: float) -> float:
        """The ability by a model's standing: see `outcomes.Outcomes`."""
        return self.model.outcomes.ability(standing) if self.model.outcomes else 0.0

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Embeddings float32 [n, d] of length 1, here and now: for examples, while an engine is built."""
        import numpy as np

        # One by one: a batch is as long as its longest text, and nothing bounds that.
        return np.stack([self.model.verdicts([text])[0].embedding for text in texts])

    def close(self) -> None:
        self.service.close()


class Verdicts:
    """Slow input: the heads' verdict on the text of one scope; all heads of a scope share it."""

    def __init__(self, shipped: Shipped, scope: Scope) -> None:
        self._shipped, self.scope = shipped, scope
        self._running: dict[Facts, asyncio.Task[HeadVerdict]] = {}

    async def fetch(self, facts: Facts) -> HeadVerdict:
        request, running = facts.request, self._running
        task = running.get(facts)
        if task is None:  # else what builds on the verdict has asked for it already: it is read once
            asked = self._shipped.verdict(request.text(self.scope), facts.deadline, client_of(request))
            task = running[facts] = asyncio.ensure_future(asked)
            task.add_done_callback(lambda _: running.pop(facts))
            task.add_done_callback(let_go)
        return await task

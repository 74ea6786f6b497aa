"""The tree of answers to a question: at every step the small model's draft, and beside it the large model's step.

A node is a prefix that ends at a step's end. Its name is the path to it, one letter a step: K (the draft was kept)
or R (the large model's step stands instead). Nodes are written when somebody asks for them and are kept in Parquet
files, so that a second run, another strategy or another training costs no model calls. Because both branches start
from the very same prefix, what a different decision would have led to is known, not guessed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stepwise import features
from stepwise.features import State
from stepwise.policy import Vector
from stepwise.steps import End, Splitter, Step, StepLimits
from stepwise.strategy import NoJudgement
from stepwise.train.answers import right
from upstream.tokens import TOP, Token

KEEP, REDO = "K", "R"


class Question(NamedTuple):
    """One question. id: unique in its set; text: the user's message; answer: what a right answer ends in."""

    id: str
    text: str
    answer: str


class Written(NamedTuple):
    """What a model wrote: its tokens (with log probabilities where it is the small one), and whether it ended by
    itself."""

    tokens: tuple[Token, ...]
    ended: bool


class StepWriter(Protocol):
    """The two models. Both continue `prefix`, the beginning of an answer to `question`; many calls run at once."""

    async def small(self, question: Question, prefix: str) -> Written:
        """The small model's answer to its end, with log probabilities and the `TOP` best tokens."""

    async def large(self, question: Question, prefix: str, *, rest: bool = False) -> Written:
        """The large model's next step (what follows it may be there and is ignored), or with `rest` its whole
        answer."""


@runtime_checkable
class Verifier(Protocol):
    """A writer whose large model can also mark a step. For policies that ask, its `marks` says how
    (`stepwise.policy.Marks`)."""

    async def verify(self, question: Question, prefix: str, step: str) -> tuple[float, int]:
        """The mark of `step` after `prefix`, 0..1, and the tokens that had to be read for it. Raises NoJudgement."""


def verifier(writer: object) -> Verifier:
    """`writer`, whose large model can mark steps. Raises NoJudgement where it cannot."""
    if not isinstance(writer, Verifier):
        raise NoJudgement("no_verifier", "this writer cannot mark steps")
    return writer


class Mark(NamedTuple):
    """The large model's mark of a draft, 0..1, and how many tokens it read for that."""

    score: float
    read: int


class Segment(NamedTuple):
    """A step, or a whole answer, that follows a prefix. text, size (tokens), last: the answer ends with it; right: and
    it is right (None when not last)."""

    text: str
    size: int
    last: bool
    right: bool | None

    def step(self) -> Step:
        return Step((Token(self.text, size=self.size),), End.STOP if self.last else End.BLANK)


@dataclass(slots=True)
class Node:
    """A prefix at a step's end, and what is known of what follows. vector: features of the draft [WIDTH] float32;
    top: best log probabilities at the draft's first token; mark: the large model's, of the draft."""

    path: str
    prefix: str
    state: State
    draft: Segment | None = None
    vector: Vector | None = None
    top: tuple[float, ...] = ()
    redo: Segment | None = None
    mark: Mark | None = None

    def after(self, letter: str) -> tuple[str, State]:
        """Prefix and state of the child that K or R leads to."""
        assert self.draft is not None
        assert self.vector is not None
        drafted = self.state.drafted(float(self.vector[features.NAMES.index("mean_logprob")]))
        if letter == KEEP:
            return self.prefix + self.draft.text, drafted.kept(self.draft.step())
        assert self.redo is not None
        return self.prefix + self.redo.text, drafted.redone(self.draft.size, self.redo.step())


@dataclass(slots=True)
class Tree:
    """What is known of one question's answers. plain: the large model's own answer without any steps, if it was
    asked."""

    question: Question
    limits: StepLimits
    token_budget: int
    max_steps: int
    nodes: dict[str, Node] = field(default_factory=dict)
    plain: Segment | None = None
    changed: bool = False
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes.setdefault("", Node("", "", State(token_budget=self.token_budget)))

    async def drafted(self, path: str, writer: StepWriter | None) -> Node:
        """The node at `path` with its draft. Raises Missing when it is not known and there is no writer."""
        node = self._node(path)
        if node.draft is None:
            async with self._lock(path):
                if node.draft is None:
                    self._grow(path, await self._ask(writer).small(self.question, node.prefix))
        return node

    async def redone(self, path: str, writer: StepWriter | None) -> Node:
        """The node at `path` with the large model's step. Raises Missing like `drafted`."""
        node = self._node(path)
        if node.redo is None:
            async with self._lock(path + REDO):
                if node.redo is None:
                    written = await self._ask(writer).large(self.question, node.prefix)
                    step = next(iter(self._split(node.prefix, written)))
                    node.redo = self._piece(path, node.prefix, step, written)
                    self.changed = True
        return node

    async def marked(self, path: str, writer: StepWriter | None) -> Mark:
        """The large model's mark of the draft at `path`. Raises Missing like `drafted`, and NoJudgement."""
        node = await self.drafted(path, writer)
        if node.mark is None:
            async with self._lock(path + "?"):
                if node.mark is None:
                    judge = verifier(self._ask(writer))
                    assert node.draft is not None
                    node.mark = Mark(*await judge.verify(self.question, node.prefix, node.draft.text))
                    self.changed = True
        return node.mark

    def ahead(self, path: str) -> int:
        """Tokens that the small model has drafted for nothing when the mark of its draft at `path` comes, and is bad: a
        step, say."""
        node = self.nodes.get(path + KEEP)
        return 0 if node is None or node.draft is None else node.draft.size

    async def unstepped(self, writer: StepWriter | None) -> Segment:
        """The large model's own answer in one go."""
        if self.plain is None:
            async with self._lock("plain"):
                if self.plain is None:
                    written = await self._ask(writer).large(self.question, "", rest=True)
                    text = "".join(token.text for token in written.tokens)
                    size = sum(token.size for token in written.tokens)
                    self.plain = Segment(text, size, True, written.ended and right(self.question.answer, text))
                    self.changed = True
        return self.plain

    def _node(self, path: str) -> Node:
        node = self.nodes.get(path)
        if node is None:
            prefix, state = self.nodes[path[:-1]].after(path[-1])
            node = self.nodes[path] = Node(path, prefix, state)
        return node

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _ask(self, writer: StepWriter | None) -> StepWriter:
        if writer is None:
            raise Missing(
                f"question {self.question.id}: this step was never written, and no models are given to write it"
            )
        return writer

    def _grow(self, path: str, written: Written) -> None:
        """Enters a draft and the drafts that follow it when it is kept."""
        self.changed = True
        for step in self._split(self._node(path).prefix, written):
            node = self._node(path)
            if node.draft is None:
                node.vector, _ = features.draft(step, node.state)
                node.top = next((t.top for t in step.tokens if t.logprob is not None), ())[:TOP]
                node.draft = self._piece(path, node.prefix, step, written)
            if node.draft.last:
                return
            path += KEEP

    def _split(self, prefix: str, written: Written) -> Sequence[Step]:
        splitter = Splitter(self.limits, prefix)
        steps = [step for token in written.tokens for step in splitter.feed(token)]
        last = splitter.finish()
        if last is not None and not last.text.isspace():
            steps.append(last)
        elif steps and written.ended:  # the answer ended right after a blank line
            steps[-1] = Step(steps[-1].tokens, End.STOP, steps[-1].thought)
        return steps or [Step((), End.STOP)]  # the model had nothing more to say

    def _piece(self, path: str, prefix: str, step: Step, written: Written) -> Segment:
        last = step.end is End.STOP or len(path) + 1 >= self.max_steps
        good = None
        if last:
            good = step.end is End.STOP and written.ended and right(self.question.answer, prefix + step.text)
        return Segment(step.text, step.size, last, good)


class Missing(ValueError):
    """A step is needed that nobody has written yet."""


_NODE = pa.schema(
    [
        ("question", pa.string()), ("path", pa.string()),
        ("draft", pa.string()), ("draft_size", pa.int32()), ("draft_last", pa.bool_()), ("draft_right", pa.bool_()),
        ("redo", pa.string()), ("redo_size", pa.int32()), ("redo_last", pa.bool_()), ("redo_right", pa.bool_()),
        ("vector", pa.list_(pa.float32())), ("top", pa.list_(pa.float32())),
        ("mark", pa.float64()), ("mark_read", pa.int32()),
    ]
)  # fmt: skip
_PLAIN = "!plain"  # path of the row that holds the large model's own answer


class TreeStore:
    """Trees in a folder of Parquet files; `save` adds a file, nothing is ever rewritten.

    settings: what the trees depend on (models, limits, features); kept in the files. Raises FileExistsError
    when the folder holds trees of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self._settings = dict(settings)
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files():
            found = {k.decode(): v.decode() for k, v in (pq.read_schema(file).metadata or {}).items()}
            differ = [key for key, value in self._settings.items() if found.get(key) != value]
            if differ:
                key = differ[0]
                raise FileExistsError(
                    f"{file}: collected with {key} = {found.get(key)}, not {self._settings[key]}; use another folder"
                )

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("nodes-*.parquet"))

    def load(self, questions: Iterable[Question], limits: StepLimits, token_budget: int, max_steps: int) -> list[Tree]:
        """The trees of `questions`, as far as they are known."""
        trees = {q.id: Tree(q, limits, token_budget, max_steps) for q in questions}
        rows: list[dict[str, Any]] = []
        for file in self.files():
            rows += pq.read_table(file).to_pylist()
        # Later files know more. Parents come before their children.
        known = {(row["question"], row["path"]): row for row in rows}
        for row in sorted(known.values(), key=lambda row: len(row["path"])):
            tree = trees.get(row["question"])
            if tree is None:
                continue
            if row["path"] == _PLAIN:
                tree.plain = _read(row, "redo")
                continue
            node = tree._node(row["path"])
            node.draft, node.redo = _read(row, "draft"), _read(row, "redo")
            node.vector = np.zeros(features.WIDTH, np.float32)  # features that came later are 0 in earlier trees
            node.vector[: len(row["vector"])] = row["vector"]
            node.top = tuple(row["top"])
            if row.get("mark") is not None:  # trees from before there were marks have no such column
                node.mark = Mark(row["mark"], row["mark_read"])
        return list(trees.values())

    def save(self, trees: Iterable[Tree]) -> int:
        """Writes the trees that have changed; the number of rows."""
        rows: list[dict[str, Any]] = []
        for tree in trees:
            if not tree.changed:
                continue
            tree.changed = False
            for node in tree.nodes.values():
                if node.draft is not None and node.vector is not None:
                    row = {"question": tree.question.id, "path": node.path, "vector": node.vector, "top": node.top}
                    mark = {} if node.mark is None else {"mark": node.mark.score, "mark_read": node.mark.read}
                    rows.append({**row, **_write(node.draft, "draft"), **_write(node.redo, "redo"), **mark})
            if tree.plain is not None:
                row = {"question": tree.question.id, "path": _PLAIN, "vector": [], "top": []}
                rows.append({**row, **_write(None, "draft"), **_write(tree.plain, "redo")})
        if rows:
            schema = _NODE.with_metadata(self._settings)
            file = self.folder / f"nodes-{len(self.files()):05d}.parquet"
            part = file.with_suffix(".part")
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), part, compression="zstd")
            part.replace(file)
        return len(rows)


def _write(piece: Segment | None, name: str) -> dict[str, Any]:
    if piece is None:
        return {name: None}
    return {name: piece.text, f"{name}_size": piece.size, f"{name}_last": piece.last, f"{name}_right": piece.right}


def _read(row: Mapping[str, Any], name: str) -> Segment | None:
    if row[name] is None:
        return None
    return Segment(row[name], row[f"{name}_size"], row[f"{name}_last"], row[f"{name}_right"])

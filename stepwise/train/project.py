"""A folder in which one policy is trained: the settings from its start, the trees, the networks, the thresholds."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepwise import features
from stepwise.policy import MARKS, Marks
from stepwise.steps import Ends, StepLimits
from stepwise.train.collect import read_questions
from stepwise.train.tree import StepWriter, Tree, TreeStore
from stepwise.train.walk import Price
from upstream.endpoint import Endpoint

SETS = ("policy", "calibration", "test")


@dataclass(frozen=True)
class ProjectSettings:
    """What all parts of a project share. small, large: served names; price_*: of one token, in any unit (read: one that
    the large model reads for a mark, None: as one that it writes); answer_tokens: the most that an answer may have; the
    rest as in the service (`stepwise.steps.StepLimits`, `features.State`, `stepwise.asking.pair.AnswerBudget.steps`).
    Raises ValueError for sizes that cannot be."""

    small: str
    large: str
    price_small: float = 1.0
    price_large: float = 10.0
    min_tokens: int = 8
    max_tokens: int = 512
    token_budget: int = 4096
    max_steps: int = 30
    answer_tokens: int = 4096
    ends: Ends = Ends.BLANK
    price_read: float | None = None

    def __post_init__(self) -> None:
        if self.answer_tokens < self.limits.min_tokens:
            raise ValueError(f"--answer-tokens {self.answer_tokens} is less than --min-tokens {self.min_tokens}")

    @property
    def limits(self) -> StepLimits:
        return StepLimits(self.min_tokens, self.max_tokens, Ends(self.ends))

    @property
    def price(self) -> Price:
        return Price(
            self.price_small, self.price_large, self.price_large if self.price_read is None else self.price_read
        )

    def of_trees(self) -> dict[str, str]:
        """The settings on which the trees depend."""
        names = ("small", "large", "min_tokens", "max_tokens", "token_budget", "max_steps")
        said = {**{name: str(getattr(self, name)) for name in names}, "features_version": str(features.VERSION)}
        # Trees from before these options have no such entries, and were written with their defaults.
        new = {"answer_tokens": (self.answer_tokens, 4096), "ends": (self.ends, Ends.BLANK)}
        return said | {name: str(value) for name, (value, default) in new.items() if value != default}


class Project:
    """The folder. `start` makes one, `Project(folder)` opens it. Raises FileNotFoundError when there is none, and
    ValueError for settings that cannot be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.settings = ProjectSettings(**json.loads((folder / "settings.json").read_text()))
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder}: no settings.json; begin with `pointsman stepwise collect`") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder}/settings.json: {error}") from error

    @staticmethod
    def ends(folder: Path, given: str | None) -> Ends:
        """What ends a step: as `given`, else as in the project in `folder`, else `auto`."""
        if given is None and (folder / "settings.json").exists():
            return Ends(Project(folder).settings.ends)
        return Ends(given or Ends.AUTO)

    @classmethod
    def start(cls, folder: Path, settings: ProjectSettings) -> Project:
        """Makes the folder, or opens it when it has the same settings. Raises FileExistsError when it has others."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "settings.json"
        if not file.exists():
            file.write_text(json.dumps(asdict(settings), indent=2) + "\n")
        project = cls(folder)
        if project.settings != settings:
            raise FileExistsError(f"{file}: made with other settings ({project.settings}, not {settings})")
        return project

    def store(self, name: str) -> TreeStore:
        return TreeStore(self.folder / "trees" / name, self.settings.of_trees())

    def questions(self, name: str, source: Path | None = None, count: int | None = None) -> Path:
        """The questions of a set; `source` is copied in the first time, as far as `count`. Raises ValueError for what
        are none, FileExistsError where there are others, FileNotFoundError where there are none."""
        file = self.folder / f"{name}.jsonl"
        if source is not None:
            read_questions(source)
            lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
            if file.exists() and file.read_text(encoding="utf-8") != "".join(lines):
                raise FileExistsError(f"{file}: collected before with other questions than those of {source}")
            file.write_text("".join(lines), encoding="utf-8")
        if not file.exists():
            collect = f"pointsman stepwise collect --set {name} --questions FILE"
            raise FileNotFoundError(f"{file}: no questions; run `{collect}`")
        return file

    def trees(self, name: str, copy: str | None = None) -> tuple[TreeStore, list[Tree]]:
        """The store of a set and the trees of its questions, as far as they are written.

        copy: a store of this name instead, which begins as a copy: the set itself stays as it was collected.
        """
        if copy is not None and not (folder := self.folder / "trees" / copy).exists():
            shutil.copytree(self.store(name).folder, folder)
        store, s = self.store(copy or name), self.settings
        return store, store.load(read_questions(self.questions(name)), s.limits, s.token_budget, s.max_steps)

    def marks(self, writer: StepWriter | None) -> Marks:
        """How the drafts of this project are marked: as `writer` does it. Raises ValueError when it does not,
        FileExistsError when another did before."""
        file = self.folder / "marks.json"
        known: Marks | None = json.loads(file.read_text()) if file.exists() else None
        kind: Marks | None = known if writer is None else getattr(writer, "marks", None)
        if kind not in MARKS:
            raise ValueError(f"asking needs a writer that marks steps, and whose `marks` is {' or '.join(MARKS)}")
        if known not in (None, kind):
            raise FileExistsError(
                f"{file}: the marks in this project are by {known}, not by {kind}; use another folder"
            )
        self.write(file.name, kind)
        return kind

    def write(self, name: str, data: Any) -> None:
        (self.folder / name).write_text(json.dumps(data, indent=2) + "\n")

    def read(self, name: str, made_by: str) -> Any:
        """A JSON file of this folder. Raises FileNotFoundError that names the command which makes it."""
        try:
            return json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            what = f"{self.folder / name}: missing"
            raise FileNotFoundError(f"{what}; run `pointsman stepwise {made_by}` first") from None


@asynccontextmanager
async def open_writer(
    settings: ProjectSettings, module: str | None, ends: tuple[Endpoint, Endpoint] | None, temperature: float
) -> AsyncIterator[StepWriter | None]:
    """The models: `module` (it has an `open_writer(limits)`, or for another temperature than 0 an `open_writer(limits,
    temperature)`), or two endpoints, or None when neither is given."""
    if module is not None:
        warm = {"temperature": temperature} if temperature else {}
        async with importlib.import_module(module).open_writer(settings.limits, **warm) as writer:
            yield writer
    elif ends is not None:
        from stepwise.train.endpoints import EndpointWriter

        async with EndpointWriter(
            *ends, settings.limits, temperature=temperature, max_tokens=settings.answer_tokens
        ) as endpoints:
            yield endpoints
    else:
        yield None

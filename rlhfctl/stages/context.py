"""Define the context of a stage: its recipe, folders, parents, rows and event output, and nothing more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhfctl.artifacts import WORK, Artifact, Source, publish_manifest
from rlhfctl.events import Event, Note, Warned, Work
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.schema import Recipe

if TYPE_CHECKING:
    from rlhfctl.stages.loader import Loader


class PublishedByFirst(Exception):
    """End the stage in a process other than the first, which alone publishes the result."""


@dataclass(frozen=True)
class Context:
    """Hold what one stage of one run works with.

    `name` is the text of its StageId. `parents` maps roles to sources: base, reward, policy.
    """

    name: str
    recipe: Recipe
    run: RunPaths
    parents: Mapping[str, Source]
    inputs: Mapping[str, str]
    data: Mapping[str, Any]  # name -> rlhfctl.data.types.Rows
    emit: Callable[[Event], None]
    options: Mapping[str, Any] = field(default_factory=dict)  # options of the command that the recipe does not hold
    notes: list[str] = field(default_factory=list)  # recorded in the manifest
    began: float = field(default_factory=time.monotonic)
    process: int = 0  # number of this one among the processes that run the stage together; 0 publishes

    @property
    def first(self) -> bool:
        """Whether this is the process that emits events and publishes."""
        return self.process == 0

    @property
    def divides(self) -> bool:
        """Whether the weights are divided over the processes that train: no device then needs to hold a whole model."""
        return self.recipe.launch is not None and self.recipe.launch.shard

    @property
    def folder(self) -> Path:
        """Return the folder that the stage publishes in; for a process beside the first, one that is thrown away."""
        return self.run.stage(self.name) if self.first else self.work / f"process-{self.process}"

    @property
    def work(self) -> Path:
        """Return the folder of the stage's checkpoints while it is under way."""
        return self.run.stage(self.name) / WORK

    @property
    def log(self) -> Path:
        """Return the file for the output of libraries; a process beside the first has one of its own."""
        return self.run.log if self.first else self.work / "process" / f"process-{self.process}.log"

    @cached_property
    def loader(self) -> Loader:
        """The loader of models for the recipe; it records skipped checks in this stage's manifest."""
        from rlhfctl.stages.loader import Loader  # imported late, because the pipeline plans without torch

        return Loader.of(self.recipe, note=self.note, warn=self.warn, data=self.data)

    def leave_to_first(self) -> None:
        """End here in every process but the first, which does the rest of the stage alone."""
        if not self.first:
            raise PublishedByFirst

    def note(self, message: str) -> None:
        """Emit a note and record it in the manifest."""
        self.notes.append(message)
        self.emit(Note(stage=self.name, message=message))

    def warn(self, message: str) -> None:
        """Emit a warning and record it in the manifest."""
        self.notes.append(f"warning: {message}")
        self.emit(Warned(stage=self.name, message=message))

    def publish(
        self,
        section: Mapping[str, Any],
        layout: Mapping[str, Any],
        *,
        metrics: Mapping[str, float],
        tokenizer: str | None = None,
        chat_template: str | None = None,
    ) -> Artifact:
        """Write the manifest, which completes the stage. Returns only in the first of several processes."""
        if not self.first:
            raise PublishedByFirst
        with Work("hashing what was made"):
            return publish_manifest(
                self.folder,
                stage=self.name,
                inputs=self.inputs,
                parents=dict(self.parents),
                section=section,
                layout=layout,
                seed=self.recipe.seed,
                seconds=time.monotonic() - self.began,
                metrics=metrics,
                tokenizer=tokenizer,
                chat_template=chat_template,
                notes=self.notes,
            )

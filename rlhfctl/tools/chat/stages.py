"""Find the models that a chat can talk to: a run's stages by name, its reference, other runs, models from elsewhere.

Reads recipes and manifests; loads no model and no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfctl.artifacts import Artifact, Source, find_artifact, load_artifact, read_json, resolve_source
from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.graph import STAGES, makers_of
from rlhfctl.paths import RunPaths, StageId, stage_at
from rlhfctl.recipe.load import outline
from rlhfctl.recipe.schema import Recipe
from rlhfctl.run_stages import stages_in
from rlhfctl.sweeping import require_run

REFERENCE = "reference"
_SPEAKS = ("policy", "base")  # what a stage makes that can answer


@dataclass(frozen=True)
class Choice:
    """A model to talk to: its name in the chat, its source, and the recipe by which it is loaded and sampled."""

    name: str
    source: Source
    recipe: Recipe


class RunModels:
    """The models of one run."""

    def __init__(self, run: Path) -> None:
        self.paths = RunPaths(run)
        require_run(run)
        self.recipe = outline(self.paths.recipe)  # its data may be gone by now
        self.stages = stages_in(self.recipe, self.paths)

    def names(self) -> list[str]:
        """List the names that `choose` takes and whose models are there."""
        found = [str(stage) for stage in self.stages if STAGES[stage.name].makes in _SPEAKS and self._made(stage)]
        return [*found, REFERENCE] if found else []

    def choose(self, name: str | None = None) -> Choice:
        """Choose a model by name: a stage, `reference`, a folder or a Hub id. None: the newest policy, else base*."""
        if name is None:
            stage = self._default()
            return self._choice(str(stage), load_artifact(self.paths.stage(stage)))
        if name == REFERENCE:
            return self._reference()
        if (stage_of_run := self._named(name)) is not None:
            return self._choice(str(stage_of_run), load_artifact(self.paths.stage(stage_of_run)))
        return self._elsewhere(name)

    def reward(self, choice: Choice) -> Source | None:
        """Return the reward model that a policy was trained on; for other models the run's own; None without one."""
        artifact = choice.source.artifact
        if artifact is not None and "reward" in artifact.manifest.parents:
            return artifact.parent("reward")
        made = [self._made(stage) for name in makers_of("reward") for stage in self.stages if stage.name == name]
        if complete := [one for one in made if one is not None]:
            return Source.of(complete[-1])
        section = self.recipe.reward
        named = section.model if section is not None else None
        return resolve_source(named, "reward model") if named is not None else None

    def _made(self, stage: StageId) -> Artifact | None:
        return find_artifact(self.paths.stage(stage))

    def _speakers(self, product: str) -> list[StageId]:
        return [stage for stage in self.stages if STAGES[stage.name].makes == product]

    def _default(self) -> StageId:
        """Return the first policy of the last round that has one; without a policy, the stage that makes base*."""
        for product in _SPEAKS:
            if complete := [stage for stage in self._speakers(product) if self._made(stage) is not None]:
                last = max(stage.round for stage in complete)
                return next(stage for stage in complete if stage.round == last)
        wanted = [stage for product in reversed(_SPEAKS) for stage in self._speakers(product)]
        return wanted[0]  # loading it raises that it is incomplete

    def _named(self, name: str) -> StageId | None:
        """Return the stage of this text, or the first one of this name that is complete."""
        known = [stage for product in _SPEAKS for stage in self._speakers(product)]
        exact = [stage for stage in known if str(stage) == name]
        alike = [stage for stage in known if stage.name == name]
        complete = [stage for stage in alike if self._made(stage) is not None]
        return next(iter([*exact, *complete, *alike]), None)

    def _choice(self, name: str, artifact: Artifact) -> Choice:
        return Choice(name, Source.of(artifact), self.recipe)

    def _reference(self) -> Choice:
        """Return the model that the policy started from; without a policy, base*."""
        artifact = self._made(self._default())
        if artifact is not None and "base" in artifact.manifest.parents:
            return Choice(REFERENCE, artifact.parent("base"), self.recipe)
        bases = [stage for stage in self._speakers("base") if self._made(stage) is not None]
        stage = bases[-1] if bases else self._default()
        return self._choice(REFERENCE, load_artifact(self.paths.stage(stage)))

    def _elsewhere(self, name: str) -> Choice:
        """Return the model of another run, of a stage of another run, of a folder, or of a Hub id."""
        path = Path(name).expanduser()
        if (path / "recipe.yaml").is_file():
            other = RunModels(path).choose()
            return Choice(f"{path}/{other.name}", other.source, other.recipe)
        run, stage = stage_at(path)
        if (run / "recipe.yaml").is_file() and path.is_dir():
            other = RunModels(run).choose(str(stage))
            return Choice(str(path), other.source, other.recipe)
        if not path.is_dir() and "/" not in name:
            known = self.names()
            raise RlhfctlError(
                f"there is no model {name!r} in this run",
                where=str(self.paths.root),
                fix=f"one of {', '.join(known) or '(none is complete yet)'}; or another run's folder, or a model's",
            )
        return Choice(name, resolve_source(name, "model"), self.recipe)


def reads_conversations(run: RunModels) -> bool:
    """Tell whether a run's prompts are conversations, for a model with a chat template.

    Recorded prompts say it: of the verdict's samples, or of the reward model's examples. Without these the recipe does:
    it names a template or makes turns of its texts. If nothing says it, a chat template is there to be used.
    """
    recorded = next((prompt for stage in run.stages for prompt in _recorded(run.paths.stage(stage))), None)
    if recorded is not None:
        return not isinstance(recorded, str)
    data = run.recipe.data
    sections = [one for one in (data.demonstrations, data.preferences, data.prompts) if one is not None]
    made_turns = any(part.as_conversations or part.turns for one in sections for part in one.parts)
    stated = run.recipe.model.chat_template is not None
    return stated or made_turns or not all(section.builtin for section in sections)


def _recorded(folder: Path) -> list[Any]:
    """Return a prompt that a complete stage recorded, in a list that is empty without one."""
    artifact = find_artifact(folder)
    if artifact is None:
        return []
    try:
        if artifact.has("samples"):
            with artifact.part("samples").open(encoding="utf-8") as handle:
                return [json.loads(handle.readline())["prompt"]]
        if artifact.has("probes"):
            return [example["prompt"] for example in read_json(artifact.part("probes")).get("examples", [])][:1]
    except (OSError, ValueError, KeyError, HandoffError):  # loading the stage's model says what is wrong with it
        return []
    return []

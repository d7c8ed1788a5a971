"""Collect what a model card says of an artifact: its ancestors, the verdict on it, its reward model's card, its data.

Reads a run's recipe, manifests, compare.json, card.json and summary.json. A part that is missing, or that is about
another artifact, is None. Takes machine paths out of texts. Loads no model; leaves out the page (model_card.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhfctl.artifacts import Artifact, find_artifact, read_json
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.schema import Recipe, looks_like_id
from rlhfctl.run_stages import stages_in

# An absolute path in a text, with what follows a colon (the line of a file) left aside.
_PATH = re.compile(r"(?<![\w.~/:-])(?:~|/[^\s/'\"`,;:()]+)(?:/[^\s/'\"`,;:()]+)+/?")
_SECRET = re.compile(r"(token|key|secret|password)$")
HIDDEN = "(not shown)"


@dataclass(frozen=True)
class Facts:
    """What is known of an exported artifact. `ancestors`: it and what it was made from, each once, itself first."""

    stage: str
    artifact: Artifact
    recipe: Recipe
    run: Path
    ancestors: list[Artifact]
    verdict: Mapping[str, Any] | None = None  # compare.json of the comparison of this policy
    verdict_notes: list[str] = field(default_factory=list)
    seeds: Mapping[str, Any] | None = None  # summary.json over all seeds
    reward_card: Mapping[str, Any] | None = None  # card.json of this reward model

    def clean(self, text: str) -> str:
        """Take machine paths out of a text."""
        return without_paths(text, [self.run, *([Path(self.recipe.folder)] if self.recipe.folder else [])])


def collect(stage: str, artifact: Artifact, recipe: Recipe, paths: RunPaths) -> Facts:
    """Collect the facts of the artifact that is exported as `stage` (sft, reward, ppo or critic)."""
    complete = [one for name in stages_in(recipe, paths) if (one := find_artifact(paths.stage(name))) is not None]
    judged = _about(artifact, complete, "compare", "policy") if stage != "critic" else None
    card = _about(artifact, complete, "card", "reward")
    summary = next((one for one in complete if one.has("summary")), None)
    return Facts(
        stage=stage,
        artifact=artifact,
        recipe=recipe,
        run=paths.root,
        ancestors=list(_ancestors(artifact, set())),
        verdict=None if judged is None else read_json(judged.part("compare")),
        verdict_notes=[] if judged is None else judged.manifest.notes,
        seeds=read_json(summary.part("summary")) if summary is not None and judged is not None else None,
        reward_card=None if card is None else read_json(card.part("card")),
    )


def _about(artifact: Artifact, complete: list[Artifact], part: str, role: str) -> Artifact | None:
    """Return the last complete stage with this part that was made from the artifact in this role."""
    parents = [(one, one.manifest.parents.get(role)) for one in complete if one.has(part)]
    made = [one for one, parent in parents if parent is not None and parent.fingerprint == artifact.fingerprint]
    return made[-1] if made else None


def _ancestors(artifact: Artifact, seen: set[str]) -> Iterator[Artifact]:
    if artifact.fingerprint in seen:
        return
    seen.add(artifact.fingerprint)
    yield artifact
    for _, parent in parents_of(artifact):
        if parent is not None:
            yield from _ancestors(parent, seen)


def parents_of(artifact: Artifact) -> list[tuple[str, Artifact | None]]:
    """Return the parents of an artifact by role; None for one that is no stage, is gone, or has changed since."""
    found = []
    for role, reference in sorted(artifact.manifest.parents.items()):
        parent = find_artifact(artifact.run / reference.path)
        same = parent is not None and parent.fingerprint == reference.fingerprint
        found.append((role, parent if same else None))
    return found


# ---------------------------------------------------------------- texts without machine paths


def without_paths(text: str, roots: list[Path]) -> str:
    """Replace paths below `roots` by relative ones, and other absolute paths by their last part."""
    for root in sorted({str(root.absolute()) for root in (*roots, *(root.resolve() for root in roots))}, key=len)[::-1]:
        if root != "/":
            text = text.replace(f"{root}/", "").replace(root, Path(root).name)
    home = str(Path.home())
    text = text if home == "/" else text.replace(f"{home}/", "~/")
    return _PATH.sub(lambda found: Path(found[0]).name, text)


def flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a section with dots, and their values; values of keys that look like secrets are hidden."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            secret = isinstance(value, str) and _SECRET.search(key) is not None and not key.startswith("stop")
            yield f"{prefix}{key}", HIDDEN if secret else value


# ---------------------------------------------------------------- models and data sets by name


def hub_id(name: str | None) -> str | None:
    """Return the name of a model or data set if it is an id on the Hub; None for a path."""
    return name if name is not None and not Path(name).is_absolute() and looks_like_id(name) else None


def data_sets(facts: Facts) -> list[tuple[str, list[str], str, list[str]]]:
    """List the data sets of the lineage: name, sources, fingerprint, and the stages that read it."""
    found: dict[tuple[str, str], list[str]] = {}
    for artifact in reversed(facts.ancestors):
        for name, fingerprint in sorted(artifact.manifest.inputs.items()):
            key = name.removeprefix("data.")
            if key != name and hasattr(facts.recipe.data, key):
                found.setdefault((key, fingerprint), []).append(artifact.manifest.stage)
    return [(key, sources(facts, key), fingerprint, stages) for (key, fingerprint), stages in found.items()]


def sources(facts: Facts, name: str) -> list[str]:
    """List the sources of a data set of the recipe, files by their names alone."""
    section = getattr(facts.recipe.data, name, None)
    if section is None:
        return []
    parts = [part.source for part in section.parts]
    parts += [one.source for key in ("eval_source", "test_source") if (one := getattr(section, key, None)) is not None]
    return list(dict.fromkeys(Path(part).name if Path(part).is_absolute() else part for part in parts))

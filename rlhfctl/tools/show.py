"""`show`: what a run holds, and where each artifact comes from, back to data files and base model.

Reads manifests only; loads no model and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rlhfctl import fs
from rlhfctl.artifacts import Artifact, changed_keys, find_artifact, read_json
from rlhfctl.dashboard.text import duration, number
from rlhfctl.errors import RlhfctlError
from rlhfctl.metrics import ranked
from rlhfctl.paths import RunPaths
from rlhfctl.pipeline import STAGES, read_stages, section_of, stages_of
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Recipe

_HASH_SHOWN = 12


def describe(run: Path) -> Iterator[RenderableType]:
    """A table of the stages, then the lineage of the last complete one."""
    recipe, states, artifacts = _read(run)
    table = Table("stage", "state", "time", "metrics", box=None, pad_edge=False, header_style="bold")
    for name, state in states.items():
        artifact = artifacts.get(name)
        if artifact is None:
            table.add_row(name, state, "", "")
            continue
        metrics = artifact.manifest.metrics
        shown = "  ".join(f"{m.name} {number(metrics[m.name])}" for m in ranked(name, "show") if m.name in metrics)
        table.add_row(name, state, duration(artifact.manifest.seconds), Text(shown))
    yield Text(f"{recipe.name} in {run}", style="bold")
    yield table
    if "compare" in artifacts:
        yield Text("")
        report = read_json(artifacts["compare"].part("compare"))
        yield Text(str(report.get("sentence") or report["verdict"]), style="bold")
    if artifacts:
        last = max(artifacts, key=STAGES.index)
        yield Text("")
        yield Text("lineage", style="bold")
        tree = Tree(_label(artifacts[last]))
        _grow(tree, artifacts[last], recipe.model.path)
        yield tree
        notes = [(name, note) for name, artifact in artifacts.items() for note in artifact.manifest.notes]
        notes += [(name, note) for name, artifact in artifacts.items() for note in _differs(artifact, recipe)]
        if notes:
            yield Text("")
            yield Text("notes", style="bold")
            for name, note in notes:
                yield Text(f"{name}: {note}")


def to_json(run: Path) -> dict[str, Any]:
    """Give what `show --json` prints: each stage's state and, where it is complete, its manifest."""
    recipe, states, artifacts = _read(run)
    manifests = {name: made.manifest.model_dump(mode="json") for name, made in artifacts.items()}
    stages = {name: {"state": state, "manifest": manifests.get(name)} for name, state in states.items()}
    return {"name": recipe.name, "run": str(run), "stages": stages}


def _read(run: Path) -> tuple[Recipe, dict[str, str], dict[str, Artifact]]:
    """The run's recipe, the state of each stage, and the complete ones, in order."""
    paths = RunPaths(run)
    if not paths.recipe.is_file():
        near = sorted(p.parent.name for p in run.parent.glob("*/recipe.yaml")) if run.parent.is_dir() else []
        raise RlhfctlError(
            "there is no run here: recipe.yaml is missing",
            where=str(run),
            fix=f"runs beside it: {', '.join(near)}" if near else "start one: rlhfctl run quickstart",
        )
    recipe = load_recipe(paths.recipe).recipe
    return recipe, *read_stages(paths, stages_of(recipe))


def _differs(artifact: Artifact, recipe: Recipe) -> Iterator[str]:
    """Say which keys a stage was made with that the run's recipe, written by a later command, says otherwise."""
    manifest = artifact.manifest
    section = section_of(manifest.stage, recipe).model_dump(mode="json")
    keys = changed_keys(section, manifest.section)
    if keys and manifest.inputs.get("section") not in (None, fs.hash_json(section)):
        yield f"was made with other settings than recipe.yaml states now (stated -> used): {', '.join(keys)}"


def _label(artifact: Artifact, child: Artifact | None = None) -> Text:
    """Stage and fingerprint; seed, versions and commit where they are not those of what was made from it."""
    words = [artifact.manifest.stage, artifact.fingerprint[:_HASH_SHOWN]]
    words += [made for made in _made_by(artifact) if child is None or made not in _made_by(child)]
    return Text("  ".join(words))


def _made_by(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    versions = [f"{name} {manifest.versions[name]}" for name in ("trl", "torch") if name in manifest.versions]
    commit = [f"commit {manifest.git_commit[:_HASH_SHOWN]}"] if manifest.git_commit else []
    return [f"seed {manifest.seed}", *versions, *commit]


def _grow(tree: Tree, artifact: Artifact, model_path: str | None) -> None:
    for name, fingerprint in sorted(artifact.manifest.inputs.items()):
        if name.startswith("data."):
            tree.add(Text(f"{name}  {fingerprint[:_HASH_SHOWN]}"))
        elif name == "model" and artifact.manifest.stage in ("base", "sft"):
            tree.add(Text(f"base model {model_path or '(new weights)'}  {fingerprint[:_HASH_SHOWN]}"))
    for role, reference in sorted(artifact.manifest.parents.items()):
        parent = find_artifact(artifact.path.parent / reference.path) or find_artifact(Path(reference.path))
        if parent is None:
            tree.add(Text(f"{role}: {reference.path}  {reference.fingerprint[:_HASH_SHOWN]}"))
        elif parent.fingerprint != reference.fingerprint:
            tree.add(
                Text(f"{role}: {reference.path}  {reference.fingerprint[:_HASH_SHOWN]} (changed since)", style="yellow")
            )
        else:
            branch = tree.add(Text(f"{role}: ").append_text(_label(parent, artifact)))
            _grow(branch, parent, model_path)

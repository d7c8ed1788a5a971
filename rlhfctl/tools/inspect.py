"""`show`: what a run holds, and where each artifact comes from, back to data files and base model.

Reads manifests only; loads no model and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rlhfctl.artifacts import Artifact, RunPaths, find_artifact
from rlhfctl.dashboard.plain import duration, number
from rlhfctl.errors import RlhfctlError
from rlhfctl.pipeline import STAGES, stages_of
from rlhfctl.recipe.load import load_recipe

_HASH_SHOWN = 12
_METRICS_SHOWN = {
    "base": ("parameters",),
    "sft": ("loss", "mean_token_accuracy", "steps"),
    "reward": ("heldout_accuracy", "heldout_accuracy_low", "heldout_accuracy_high", "steps"),
    "ppo": ("score", "kl", "length", "eos_rate", "eval_score", "updates"),
    "compare": ("win_rate", "delta", "kl", "length"),
}


def describe(run: Path) -> Iterator[RenderableType]:
    """A table of the stages, then the lineage of the last complete one."""
    paths = RunPaths(run)
    if not paths.recipe.is_file():
        near = sorted(p.parent.name for p in run.parent.glob("*/recipe.yaml")) if run.parent.is_dir() else []
        raise RlhfctlError(
            "there is no run here: recipe.yaml is missing",
            where=str(run),
            fix=f"runs beside it: {', '.join(near)}" if near else "start one: rlhfctl run quickstart",
        )
    recipe = load_recipe(paths.recipe).recipe
    table = Table("stage", "state", "time", "metrics", box=None, pad_edge=False, header_style="bold")
    artifacts: dict[str, Artifact] = {}
    for name in stages_of(recipe):
        artifact = find_artifact(paths.stage(name))
        if artifact is None:
            state = "under way" if paths.stage(name).is_dir() else "not started"
            table.add_row(name, state, "", "")
            continue
        artifacts[name] = artifact
        metrics = artifact.manifest.metrics
        shown = "  ".join(f"{key} {number(metrics[key])}" for key in _METRICS_SHOWN[name] if key in metrics)
        table.add_row(name, "complete", duration(artifact.manifest.seconds), Text(shown))
    yield Text(f"{recipe.name} in {run}", style="bold")
    yield table
    if artifacts:
        last = max(artifacts, key=STAGES.index)
        yield Text("")
        yield Text("lineage", style="bold")
        tree = Tree(_label(artifacts[last]))
        _grow(tree, artifacts[last], recipe.model.path)
        yield tree
        notes = [(name, note) for name, artifact in artifacts.items() for note in artifact.manifest.notes]
        if notes:
            yield Text("")
            yield Text("notes", style="bold")
            for name, note in notes:
                yield Text(f"{name}: {note}")


def _label(artifact: Artifact) -> Text:
    manifest = artifact.manifest
    commit = f"  commit {manifest.git_commit[:_HASH_SHOWN]}" if manifest.git_commit else ""
    versions = " ".join(f"{name} {manifest.versions[name]}" for name in ("trl", "torch") if name in manifest.versions)
    return Text(f"{manifest.stage}  {artifact.fingerprint[:_HASH_SHOWN]}  seed {manifest.seed}  {versions}{commit}")


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
            branch = tree.add(Text(f"{role}: ").append_text(_label(parent)))
            _grow(branch, parent, model_path)

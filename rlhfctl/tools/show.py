"""`rlhfctl show`: describe one run: stages, metrics, verdict, and the lineage of its artifacts.

The lineage goes back to data files and base model. Reads the recipe, the manifests and compare.json; loads no model and
no torch, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rlhfctl import reward_card, seeding
from rlhfctl.artifacts import Artifact, changed_keys, find_artifact, read_json
from rlhfctl.dashboard.text import duration, number
from rlhfctl.graph import STAGES, section_of
from rlhfctl.inputs import section_fingerprint
from rlhfctl.metrics import ranked
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Recipe
from rlhfctl.run_stages import read_stages, stages_in, waiting_at
from rlhfctl.sweeping import require_run

_HASH_SHOWN = 12
_AS_ABOVE = Text("  (as above)", "dim")
_OTHER_METRICS = 4  # of a stage without a row of its own in metrics.py


def describe(run: Path) -> Iterator[RenderableType]:
    """Yield a table of the stages, the verdict, the lineage of the last complete stage, and notes."""
    recipe, states, artifacts = _read(run)
    table = Table("stage", "state", "time", "metrics", box=None, pad_edge=False, header_style="bold")
    for stage, state in states.items():
        artifact = artifacts.get(stage)
        if artifact is None:
            waiting = waiting_at(RunPaths(run).stage(stage))
            table.add_row(str(stage), state, "", Text(str(waiting or "")))
            continue
        metrics = artifact.manifest.metrics
        known = [metric.name for metric in ranked(str(stage), "show")] or list(metrics)[:_OTHER_METRICS]
        shown = "  ".join(f"{name} {number(metrics[name])}" for name in known if name in metrics)
        table.add_row(str(stage), state, duration(artifact.manifest.seconds), Text(shown))
    yield Text(f"{recipe.name} in {run}", style="bold")
    yield table
    for card in [artifact for artifact in artifacts.values() if artifact.has("card")]:
        yield from _card(card, artifacts, recipe)
    if verdicts := [artifact for artifact in artifacts.values() if artifact.has("compare") or artifact.has("summary")]:
        yield Text("")
        report = read_json(verdicts[-1].part("summary" if verdicts[-1].has("summary") else "compare"))
        yield Text(str(report.get("sentence") or report["verdict"]), style="bold")
    if artifacts:
        last = list(artifacts)[-1]
        yield Text("")
        yield Text("lineage", style="bold")
        tree = Tree(_label(artifacts[last]))
        _add_lineage(tree, artifacts[last], recipe.model.path, set())
        yield tree
        left = seeding.left_over(RunPaths(run).stages(), [*states])
        notes: list[tuple[str, str]] = [("run", seeding.describe_left_over(left))] if left else []
        notes += [(str(name), note) for name, artifact in artifacts.items() for note in artifact.manifest.notes]
        for name, artifact in artifacts.items():
            notes += [(str(name), note) for note in _setting_differences(artifact, recipe)]
        if notes:
            yield Text("")
            yield Text("notes", style="bold")
            for where, note in notes:
                yield Text(f"{where}: {note}")


def _card(made: Artifact, artifacts: dict[StageId, Artifact], recipe: Recipe) -> Iterator[RenderableType]:
    """Describe the reward model's card in a few lines: its flags, its gate, and whether it is of an earlier model."""
    card = reward_card.read(made, recipe)
    names = ", ".join(flag["name"] for flag in card["flags"])
    gate = "" if card["gate"] is None else f"; reward.gate: {'passed' if card['gate']['passed'] else 'closed'}"
    yield Text("")
    where = made.run / made.stage.group
    yield Text(f"reward model's card: {names or 'no flags'}{gate}   (rlhfctl reward-eval {where})")
    recorded = made.manifest.parents.get("reward")
    now = [artifact for artifact in artifacts.values() if artifact.manifest.layout.get("head")]
    if recorded is not None and now and all(artifact.fingerprint != recorded.fingerprint for artifact in now):
        yield Text("the card is of an earlier reward model: the command makes it anew", style="yellow")


def to_json(run: Path) -> dict[str, Any]:
    """Build the JSON that `show --json` prints: each stage's state and, once it is complete, its manifest."""
    recipe, states, artifacts = _read(run)
    manifests = {stage: made.manifest.model_dump(mode="json") for stage, made in artifacts.items()}
    stages = {str(stage): {"state": state, "manifest": manifests.get(stage)} for stage, state in states.items()}
    return {"name": recipe.name, "run": str(run), "stages": stages}


def _read(run: Path) -> tuple[Recipe, dict[StageId, str], dict[StageId, Artifact]]:
    """Read the run's recipe, the state of each stage and the artifacts of complete stages, in stage order."""
    paths = RunPaths(run)
    require_run(run)
    recipe = load_recipe(paths.recipe).recipe
    return recipe, *read_stages(paths, stages_in(recipe, paths))


def _setting_differences(artifact: Artifact, recipe: Recipe) -> Iterator[str]:
    """Name the keys whose values differ between a stage's manifest and recipe.yaml, which a later command rewrote."""
    manifest = artifact.manifest
    stated = section_of(artifact.stage.name, recipe)
    if stated is None:  # made on request: the recipe does not ask for it
        return
    section = stated.model_dump(mode="json")
    keys = changed_keys(section, manifest.section)
    if keys and manifest.inputs.get("section") not in (None, section_fingerprint(artifact.stage.name, recipe)):
        yield f"was made with other settings than recipe.yaml states now (stated -> used): {', '.join(keys)}"


def _label(artifact: Artifact, child: Artifact | None = None) -> Text:
    """Write the stage and its fingerprint; also seed, versions and commit that differ from those of its `child`."""
    words = [artifact.manifest.stage, artifact.fingerprint[:_HASH_SHOWN]]
    words += [item for item in _provenance(artifact) if child is None or item not in _provenance(child)]
    return Text("  ".join(words))


def _provenance(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    versions = [f"{name} {manifest.versions[name]}" for name in ("trl", "torch") if name in manifest.versions]
    commit = [f"commit {manifest.git_commit[:_HASH_SHOWN]}"] if manifest.git_commit else []
    return [f"seed {manifest.seed}", *versions, *commit]


def _add_lineage(tree: Tree, artifact: Artifact, model_path: str | None, told: set[str]) -> None:
    """Add an artifact's data files, base model and parents to the tree, with the parents' own lineage.

    `told`: stages whose lineage is in the tree already; it is told once.
    """
    told.add(artifact.manifest.stage)
    for name, fingerprint in sorted(artifact.manifest.inputs.items()):
        if name.startswith("data."):
            tree.add(Text(f"{name}  {fingerprint[:_HASH_SHOWN]}"))
        elif name == "model" and STAGES[artifact.stage.name].model == "weights":
            tree.add(Text(f"base model {model_path or '(new weights)'}  {fingerprint[:_HASH_SHOWN]}"))
    for role, reference in sorted(artifact.manifest.parents.items()):
        parent = find_artifact(artifact.run / reference.path) or find_artifact(Path(reference.path))
        if parent is None:
            tree.add(Text(f"{role}: {reference.path}  {reference.fingerprint[:_HASH_SHOWN]}"))
        elif parent.fingerprint != reference.fingerprint:
            tree.add(
                Text(f"{role}: {reference.path}  {reference.fingerprint[:_HASH_SHOWN]} (changed since)", style="yellow")
            )
        else:
            branch = tree.add(Text(f"{role}: ").append_text(_label(parent, artifact)))
            if parent.manifest.stage in told:
                branch.label = Text("").join([branch.label if isinstance(branch.label, Text) else Text(), _AS_ABOVE])
            else:
                _add_lineage(branch, parent, model_path, told)

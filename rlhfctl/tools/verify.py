"""`rlhfctl verify`: check a run from its data to its verdict again: files, hashes, parents, inputs, headline numbers.

Reads the whole run folder, and the data and models that its recipe names. Loads no weights and writes nothing. Leaves
out reports and exported models, which no manifest records. It finds what was changed, lost or mixed up; it is no
signature: whoever can write the folder can write its hashes too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rlhfctl import fs, reward_card, verdict
from rlhfctl.artifacts import MANIFEST, Artifact, changed_inputs, load_artifact, outputs_in, read_json, seal_of
from rlhfctl.dashboard.text import counted
from rlhfctl.errors import HandoffError, RlhfctlError, RunBusyError
from rlhfctl.events import Listener, Work, report_progress_to
from rlhfctl.graph import STAGES, Request, data_of_kind, section_of
from rlhfctl.inputs import data_of, describe_changes, inputs_of
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.load import outline
from rlhfctl.recipe.made_data import data_at_start
from rlhfctl.recipe.schema import Recipe
from rlhfctl.run_stages import stages_in, waiting_at
from rlhfctl.stages import door
from rlhfctl.stats.paired import paired_differences, win_rate
from rlhfctl.sweeping import require_run

State = Literal["ok", "differs", "not checked", "not complete"]

_TOLERANCE = 1e-9  # relative and absolute: the numbers are means of the same scores, written in full
_SHOWN = 3  # files named in one sentence
_STYLES = {"ok": "green", "differs": "bold red", "not checked": "yellow", "not complete": "yellow"}


@dataclass(frozen=True)
class Finding:
    """What was found about one thing of a run. `where`: a stage, or `run`. `about`: manifest, files, parents, ..."""

    where: str
    about: str
    state: State
    said: str


def verify(run: Path, listen: Listener | None = None) -> list[Finding]:
    """Check everything that the run's manifests record; return what was found, in the order of the stages.

    `listen` hears which stage's files are hashed. Raises RlhfctlError where there is no run, and RunBusyError while a
    process works on it.
    """
    paths = RunPaths(run)
    require_run(run)
    if fs.is_locked(paths.lock):
        raise RunBusyError(f"a process is working on {run}, so its files change", fix="verify it when it has ended")
    try:
        recipe: Recipe | None = outline(paths.recipe)
        found = []
    except RlhfctlError as error:
        recipe, found = None, [Finding("run", "recipe.yaml", "differs", f"cannot be read: {error.what}")]
    data, absent = _read_data(recipe) if recipe is not None else ({}, {})
    found += [Finding("run", f"data.{name}", "not checked", why) for name, why in absent.items()]
    with report_progress_to(listen or (lambda event: None), "verify"):
        for stage in _stages(recipe, paths):
            with Work(f"checking the files of {stage}"):
                found += _check_stage(stage, recipe, paths, data)
    return found


def _stages(recipe: Recipe | None, paths: RunPaths) -> list[StageId]:
    """List the recipe's stages, then those that lie there and that it does not ask for (any more)."""
    asked = stages_in(recipe, paths) if recipe is not None else []
    there = [stage for stage in paths.stages() if (paths.stage(stage) / MANIFEST).is_file()]
    return [*asked, *(stage for stage in there if stage not in asked)]


def _read_data(recipe: Recipe) -> tuple[dict[str, Any], dict[str, str]]:
    """Read each data set that no stage makes: the rows, and why others cannot be read."""
    rows: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name in sorted({name for kind in STAGES.values() for name in kind.data}):
        try:
            rows |= door.load_data(data_at_start(recipe.data), recipe.data_seed, [name])
        except RlhfctlError as error:
            absent[name] = str(error).splitlines()[0]
    return rows, absent


# ---------------------------------------------------------------- one stage


def _check_stage(stage: StageId, recipe: Recipe | None, paths: RunPaths, data: Mapping[str, Any]) -> list[Finding]:
    folder, name = paths.stage(stage), str(stage)
    if not (folder / MANIFEST).is_file():
        return [Finding(name, "stage", "not complete", _why_incomplete(folder))]
    try:
        artifact = load_artifact(folder)
    except HandoffError as error:
        return [Finding(name, "manifest", "differs", error.what)]
    return [
        Finding(name, about, state, said)
        for check in (
            _manifest(stage, artifact),
            _outputs(artifact),
            _parents(artifact),
            _inputs(stage, artifact, recipe, paths, data) if recipe is not None else (),
            _verdict(artifact),
        )
        for about, state, said in check
    ]


Found = Iterator[tuple[str, State, str]]


def _why_incomplete(folder: Path) -> str:
    if not folder.is_dir():
        return "not in this run: not started, or a command named a model in its place"
    waiting = waiting_at(folder)
    return "under way: the command that was stopped goes on with it" if waiting is None else f"waiting: {waiting}"


def _manifest(stage: StageId, artifact: Artifact) -> Found:
    """Check the seal over the manifest's fields, and that it is the record of this folder."""
    manifest = artifact.manifest
    if manifest.stage != str(stage):
        yield "manifest", "differs", f"it is the record of {manifest.stage}: the folder was copied or renamed"
    if manifest.fingerprint != fs.hash_json(manifest.outputs):
        yield "manifest", "differs", "its fingerprint is not that of the hashes in it: it was edited"
    if manifest.seal is None:
        yield "manifest", "not checked", "of an earlier version of rlhfctl, which put no seal over its fields"
    elif manifest.seal != seal_of(read_json(artifact.path / MANIFEST)):
        yield "manifest", "differs", "its seal is not that of its fields: a metric, a setting or a hash was edited"
    else:
        yield "manifest", "ok", "as it was written"


def _outputs(artifact: Artifact) -> Found:
    """Hash every file of the stage's folder."""
    recorded, there = artifact.manifest.outputs, outputs_in(artifact.path)
    wrong = {
        "altered": [name for name in recorded if name in there and there[name] != recorded[name]],
        "gone": [name for name in recorded if name not in there],
        "added": [name for name in there if name not in recorded],
    }
    for word, names in wrong.items():
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            yield "files", "differs", f"{word} since the stage finished: {', '.join(sorted(names)[:_SHOWN])}{more}"
    if not any(wrong.values()):
        yield "files", "ok", f"{counted(len(recorded), 'file')} as recorded"


def _parents(artifact: Artifact) -> Found:
    """Check that what the stage was made from is what lies there now."""
    good = []
    for role, reference in artifact.manifest.parents.items():
        recorded = artifact.manifest.inputs.get(role)
        if recorded is not None and recorded != reference.fingerprint:
            yield "parents", "differs", f"{role}: two fingerprints of it are recorded"
        inside = not Path(reference.path).is_absolute() and (artifact.run / reference.path).parent.is_dir()
        try:
            artifact.parent(role)
        except HandoffError as error:
            gone = not inside and not (artifact.run / reference.path).exists()
            where = f"{role} ({reference.path})"
            yield "parents", "not checked" if gone else "differs", f"{where}: {error.what}"
        else:
            good.append(role)
    if good:
        yield "parents", "ok", f"{', '.join(good)} as used"


def _inputs(stage: StageId, artifact: Artifact, recipe: Recipe, paths: RunPaths, data: Mapping[str, Any]) -> Found:
    """Check settings, data, base model and reward functions against what the stage was made from."""
    manifest, kind = artifact.manifest, STAGES[stage.name]
    if section_of(stage.name, recipe) is None:
        if not kind.on_request or recipe.reward is None:
            yield "inputs", "not checked", "the recipe does not ask for this stage"
            return
        recipe = reward_card.with_card(recipe, manifest.section)  # a command asked for it, and its manifest says how
    try:
        now = inputs_of(stage, recipe, paths, data_of(stage, recipe, paths, data), _request(artifact))
    except RlhfctlError as error:
        yield "inputs", "not checked", f"they cannot be read: {error.what}"
        return
    elsewhere = {*manifest.parents, *kind.files}  # parents have their own check; files of the command line are not kept
    unread = {
        f"data.{name}" for name in data_of_kind(stage.name, recipe) if name not in data and f"data.{name}" not in now
    }
    model = recipe.model.path
    if model is not None and model.startswith(("/", "~")) and not Path(model).expanduser().is_dir():
        yield "inputs", "not checked", f"model: the base model's folder is not there ({model})"
        unread.add("model")
    names = sorted((set(manifest.inputs) | set(now)) - elsewhere - unread)
    changed = [name for name in changed_inputs(manifest.inputs, now) if name in names]
    for name in changed:
        words = describe_changes([name], artifact, stage.name, recipe)
        yield "inputs", "differs", f"{words}: not what the stage was made from"
    for name in sorted(set(manifest.inputs) & set(kind.files)):
        yield "inputs", "not checked", f"{name}: a file that the command line named"
    if same := [name for name in names if name not in changed]:
        yield "inputs", "ok", f"{', '.join(same)} as used"


def _request(artifact: Artifact) -> Request:
    """Return a request that names the parents which the stage was made from."""
    roles = STAGES[artifact.stage.name].parents
    paths = {role: reference.path for role, reference in artifact.manifest.parents.items() if role in roles}
    here = {role: artifact.run / path for role, path in paths.items()}
    return Request(external={role: str(here[role]) if here[role].is_dir() else path for role, path in paths.items()})


# ---------------------------------------------------------------- the verdict


def _verdict(artifact: Artifact) -> Found:
    """Compute the verdict's headline numbers from the samples again, and its word and sentence from the numbers."""
    if not artifact.has("compare"):
        return
    try:
        report, wrong = read_json(artifact.part("compare")), []
        judges = _of_samples(artifact.part("samples"))
        for judge in sorted(set(judges) & set(report["judges"])):
            stated = report["judges"][judge]
            for name, value in judges[judge].items():
                if not math.isclose(value, stated[name], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
                    wrong.append(f"{judge}: {name} is {stated[name]:.6g}, and {value:.6g} by the samples")
        word = _word(report)
        if word != report["verdict"]:
            wrong.append(f"the word is {report['verdict']}, and {word} by its own numbers")
        if "sentence" in report and verdict.sentence(report) != report["sentence"]:
            wrong.append("the sentence is not that of the numbers")
    except (HandoffError, OSError, ValueError, KeyError, TypeError) as error:
        yield "verdict", "differs", f"cannot be computed again: {type(error).__name__}: {error}"
        return
    for said in wrong:
        yield "verdict", "differs", said
    if not wrong:
        checked = sorted(set(judges) & set(report["judges"]))
        yield "verdict", "ok", f"{report['verdict']}: the same from the samples again ({', '.join(checked) or 'words'})"


def _of_samples(file: Path) -> dict[str, dict[str, float]]:
    """Return each judge's means and win rate from the samples, for judges that scored every response of both sides."""
    prompts: list[dict[str, tuple[list[float], list[float]]]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["sample"] == 0:
            prompts.append({})
        for at, side in enumerate(("policy_scores", "reference_scores")):
            for judge, score in row.get(side, {}).items():
                prompts[-1].setdefault(judge, ([], []))[at].append(score)
    found = {}
    for judge in prompts[0] if prompts else ():
        if not all(judge in prompt and all(prompt[judge]) for prompt in prompts):
            continue
        ours, theirs = ([fmean(prompt[judge][side]) for prompt in prompts] for side in (0, 1))
        found[judge] = {
            "policy_mean": fmean(ours),
            "reference_mean": fmean(theirs),
            "win_rate": float(win_rate(paired_differences(ours, theirs))),
        }
    return found


def _word(report: Mapping[str, Any]) -> str:
    primary, controls = report["primary_judge"], report.get("controls") or ()
    if "verdict_basis" not in report:  # earlier versions took the main comparison alone
        return str(report["verdict"])
    fair = [row["judges"][primary]["verdict"] for row in controls if row["kind"] in verdict.FAIR]
    colder = [row["judges"][primary]["verdict"] for row in controls if row["kind"] == verdict.COLDER]
    return verdict.overall(report["judges"][primary]["verdict"], fair, colder)


# ---------------------------------------------------------------- outcome


def require_unchanged(run: Path, found: Sequence[Finding]) -> None:
    """Raise HandoffError if anything differs from what the run recorded."""
    wrong = [one for one in found if one.state == "differs"]
    if wrong:
        stages = list(dict.fromkeys(one.where for one in wrong))
        raise HandoffError(
            f"{counted(len(wrong), 'thing')} in this run {'is' if len(wrong) == 1 else 'are'} not as recorded "
            f"({', '.join(stages)})",
            where=str(run),
            fix="restore what was changed, or run these stages again: rlhfctl run RECIPE --force",
        )


def view(found: Sequence[Finding]) -> Iterator[RenderableType]:
    """Yield a table with a line per stage that is as recorded, and a line per thing that is not; then a sentence."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=18)
    table.add_column(overflow="fold")
    for where in dict.fromkeys(one.where for one in found):
        good = [one.said for one in found if one.where == where and one.state == "ok"]
        if good:
            table.add_row(Text("ok", _STYLES["ok"]), where, Text("; ".join(good)))
    others: dict[tuple[State, str], list[str]] = {}  # what is said of several stages alike is said once
    for one in found:
        if one.state != "ok":
            others.setdefault((one.state, f"{one.about}: {one.said}"), []).append(one.where)
    for (state, said), places in others.items():
        table.add_row(Text(state, _STYLES[state]), ", ".join(places), Text(said))
    yield table
    if all(one.state != "differs" for one in found):
        rest = "; what is not checked stands above" if any(one.state == "not checked" for one in found) else ""
        yield Text(f"\nnothing differs from what the run recorded{rest}", "bold")


def to_json(run: Path, found: Sequence[Finding]) -> dict[str, Any]:
    """Build the JSON that `verify --json` prints."""
    unchanged = all(one.state != "differs" for one in found)
    return {"run": str(run), "unchanged": unchanged, "findings": [asdict(one) for one in found]}

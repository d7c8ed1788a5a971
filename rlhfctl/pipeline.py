"""The order of stages: what runs, what is skipped because nothing it depends on changed, and what is handed to whom.

Reads a resolved recipe and a run folder; writes recipe.yaml, events and the stages' folders. Stages are imported when
they run, so planning loads no torch. Nothing is deleted or overwritten: what a changed recipe makes obsolete is moved
to superseded/, and only the checkpoints of a completed stage are removed.
"""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rlhfctl import fs
from rlhfctl.artifacts import (
    MANIFEST,
    WORK,
    Artifact,
    Source,
    changed_inputs,
    changed_keys,
    find_artifact,
    load_artifact,
    read_json,
    resolve_source,
)
from rlhfctl.errors import HandoffError, RewardFailed, RlhfctlError
from rlhfctl.events import Event, Note, RunStarted, StageFinished, Warned, Work, report_progress_to
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import LoadedRecipe, dump_recipe
from rlhfctl.recipe.schema import Recipe
from rlhfctl.rewards.names import functions_of
from rlhfctl.stages.context import Context

STAGES = ("base", "sft", "reward", "ppo", "compare")
_HOW_TO_HAVE = {  # a stage that the recipe lacks
    "base": "base is there where `sft:` is not",
    "sft": "add an `sft:` section",
    "reward": "add a `reward:` section that trains a model",
    "ppo": "add a `ppo:` section",
    "compare": "add a `compare:` section",
}
ELSEWHERE = "from elsewhere"  # a stage in whose place a command named a model
_TOKENIZER = "tokenizer_config.json"
_FAILED = "failed-function.json"  # in a stage's work folder: a reward function stopped it, and may be mended
_CHANGES = "function-changes.json"  # there too: which functions it was trained on before, and until when
_INPUTS = "inputs.json"  # in a stage's work folder: what the checkpoints there were trained on

# stage -> the data sets it reads
_DATA = {
    "base": ("demonstrations", "prompts"),
    "sft": ("demonstrations",),
    "reward": ("preferences",),
    "ppo": ("prompts",),
    "compare": ("prompts",),
}

Emit = Callable[[Event], None]


@dataclass(frozen=True)
class Request:
    """What a command asks for beyond the recipe."""

    only: str | None = None  # one stage, its parents complete
    start: str | None = None  # --from
    until: str | None = None
    force: bool = False
    external: Mapping[str, str] = field(
        default_factory=dict
    )  # role (base, reward, policy, reference) -> path or Hub id
    options: Mapping[str, Any] = field(default_factory=dict)


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a recipe asks for, in order. Without `sft`, base* is the recipe's model as it is."""
    names = ["sft" if recipe.sft is not None else "base"]
    if recipe.reward is not None and recipe.reward.kind == "trained":
        names.append("reward")
    if recipe.ppo is not None:
        names.append("ppo")
    if recipe.compare is not None:
        names.append("compare")
    return names


def _given_from_elsewhere(stage: str, artifacts: Mapping[str, Artifact]) -> bool:
    """Whether a stage that the run lacks was named by a command instead (`--policy`, `--reward-model`).

    `artifacts`: the run's complete stages. Their manifests record where each parent lies.
    """
    role = {"base": "base", "sft": "base", "reward": "reward"}.get(stage)
    parents = [artifact.manifest.parents.get(role or "") for artifact in artifacts.values()]
    return any(parent is not None and parent.path.partition("/")[0] != stage for parent in parents)


def read_stages(paths: RunPaths, names: Sequence[str]) -> tuple[dict[str, str], dict[str, Artifact]]:
    """Give the state of each stage, and the artifacts of those that are complete, in the order of `names`."""
    found = {name: find_artifact(paths.stage(name)) for name in names}
    artifacts = {name: made for name, made in found.items() if made is not None}

    def state(name: str) -> str:
        if name in artifacts:
            return "complete"
        if paths.stage(name).is_dir():
            return "under way"
        return ELSEWHERE if _given_from_elsewhere(name, artifacts) else "not started"

    return {name: state(name) for name in names}, artifacts


def run(loaded: LoadedRecipe, run_dir: Path, request: Request, emit: Emit) -> list[Artifact]:
    """Bring the stages that `request` asks for up to date, in order. Returns their artifacts.

    The caller holds the run's lock. All rows of all data sets (for one stage: of those it reads) are checked before the
    first model loads.
    """
    with loaded.locating():
        return _run(loaded.recipe, RunPaths(run_dir), run_dir, request, emit)


def _run(recipe: Recipe, paths: RunPaths, run_dir: Path, request: Request, emit: Emit) -> list[Artifact]:
    names = stages_of(recipe)
    chosen = _chosen(names, request)
    if "compare" in chosen:
        _need_policy(recipe, request)
    emit(RunStarted(stage="run", name=recipe.name, stages=chosen))
    emit(Note(stage="run", message=f"{', '.join(chosen)} in {run_dir}; checking data, loading libraries"))
    read = [_DATA[request.only]] if request.only is not None else _DATA.values()
    with report_progress_to(emit, "run"):
        with Work("loading libraries"):
            data_module = importlib.import_module("rlhfctl.data.load")
        data = data_module.check_all(recipe.data, recipe.data_seed, {name for names in read for name in names})
    for rows in data.values():
        for sentence in rows.notes:
            emit(Note(stage="run", message=f"data.{rows.name}: {sentence}"))
    leaks = importlib.import_module("rlhfctl.data.leaks")
    for sentence in leaks.mixed_kinds(data):
        emit(Warned(stage="run", message=sentence))
    for sentence in leaks.find_leaks(data):
        fix = "the verdict would measure memory; leave these rows out with data.leaks: drop, or use other test prompts"
        emit(Warned(stage="run", message=f"{sentence}: {fix}"))
    _write_recipe(recipe, paths, emit)

    @cache  # before the first stage that runs, for all: a mistake that a later one would meet must not cost hours
    def look_ahead(first: str) -> None:
        for sentence in _look_ahead(first, recipe, chosen, paths, data, request):
            if sentence not in told:
                told.append(sentence)
                emit(Warned(stage=first, message=sentence))

    told: list[str] = []
    done = []
    for name in names:
        if name in chosen:
            done.append(_bring_up_to_date(name, recipe, paths, data, request, emit, look_ahead))
        elif request.only is None and names.index(name) < names.index(chosen[0]):
            artifact = load_artifact(paths.stage(name))
            changed = changed_inputs(artifact.manifest.inputs, _inputs(name, recipe, paths, data, request))
            _warn_of_changes(name, artifact, changed, recipe, emit)
        elif request.only is not None and (made := find_artifact(paths.stage(name))) is not None:
            same = made.manifest.inputs.get("section") == _section_fingerprint(name, recipe)
            _warn_of_changes(name, made, [] if same else ["section"], recipe, emit)
    return done


def _warn_of_changes(name: str, artifact: Artifact, changed: Sequence[str], recipe: Recipe, emit: Emit) -> None:
    """Say where the recipe, which is the run's from now on, differs from what a stage that is left was made from."""
    if changed:
        message = f"is used as it is, though {_changes(changed, artifact, name, recipe)} changed since it was made"
        emit(Warned(stage=name, message=message))


def _changes(changed: Sequence[str], artifact: Artifact, name: str, recipe: Recipe) -> str:
    """The inputs that changed, in words; for the stage's section the keys with both values."""
    section = section_of(name, recipe)
    keys = changed_keys(artifact.manifest.section, section.model_dump(mode="json"))
    words = [f"{one} ({', '.join(keys)})" if one == "section" and keys else one for one in changed]
    return ", ".join(words)


def _chosen(names: list[str], request: Request) -> list[str]:
    for option, value in (("", request.only), ("--from ", request.start), ("--until ", request.until)):
        if value is not None and value not in names:
            raise RlhfctlError(
                f"{option}{value}: the recipe has no such stage",
                fix=f"its stages are {', '.join(names)}"
                + (f"; {_HOW_TO_HAVE[value]}" if value in _HOW_TO_HAVE else ""),
            )
    if request.only is not None:
        return [request.only]
    first = names.index(request.start) if request.start else 0
    last = names.index(request.until) if request.until else len(names) - 1
    if first > last:
        raise RlhfctlError(f"--from {request.start} comes after --until {request.until}", fix="swap them")
    return names[first : last + 1]


def _need_policy(recipe: Recipe, request: Request) -> None:
    if recipe.ppo is None and "policy" not in request.external and "policy_samples" not in request.options:
        raise HandoffError(
            "there is no policy to compare: the recipe has no ppo section",
            where="compare",
            fix="add `ppo:`, take `compare:` out, or give the command rlhfctl compare a --policy",
        )


def _write_recipe(recipe: Recipe, paths: RunPaths, emit: Emit) -> None:
    text = dump_recipe(recipe)
    if paths.recipe.is_file():
        if paths.recipe.read_text(encoding="utf-8") == text:
            return
        kept = fs.move_aside(paths.recipe, paths.superseded)
        emit(Note(stage="run", message=f"the recipe changed; the one before is kept as {kept}"))
    fs.write_atomic(paths.recipe, text)


# ---------------------------------------------------------------- one stage


def _bring_up_to_date(
    name: str,
    recipe: Recipe,
    paths: RunPaths,
    data: Mapping[str, Any],
    request: Request,
    emit: Emit,
    look_ahead: Callable[[str], None],
) -> Artifact:
    """Skip the stage if its inputs are those of its manifest; else go on with it, or start it."""
    began = time.monotonic()
    folder = paths.stage(name)
    parents = _parents(name, recipe, paths, request)
    inputs = _inputs(name, recipe, paths, data, request)
    artifact = find_artifact(folder)
    if artifact is not None and not request.force:
        changed = changed_inputs(artifact.manifest.inputs, inputs)
        if not changed:
            with report_progress_to(emit, name), Work("checking what is there"):
                artifact.verify()
            _remove_work(folder)
            emit(Note(stage=name, message=f"skipped: unchanged ({', '.join(sorted(inputs))})"))
            seconds = time.monotonic() - began
            emit(
                StageFinished(
                    stage=name, path=str(folder), seconds=seconds, metrics=artifact.manifest.metrics, skipped=True
                )
            )
            return artifact
        emit(Note(stage=name, message=f"runs again: changed {_changes(changed, artifact, name, recipe)}"))
    with report_progress_to(emit, name), Work("loading libraries"):
        look_ahead(name)
        quiet = importlib.import_module("rlhfctl.training.trl.quiet")
        module = importlib.import_module(f"rlhfctl.stages.{name}")
    restarted = _make_room(folder, inputs, paths, request.force, emit, name)
    section = section_of(name, recipe)
    options = dict(request.options) | {"restarted": restarted}
    (folder / WORK / _FAILED).unlink(missing_ok=True)
    context = Context(name, recipe, paths, parents, inputs, data, emit, options, began=began)
    for change in read_json(folder / WORK / _CHANGES) if (folder / WORK / _CHANGES).is_file() else ():
        context.note(_told(change))
    devices = importlib.import_module("rlhfctl.models.devices")
    devices.restart_peak()
    with quiet.quiet_libraries(paths.log), report_progress_to(emit, name), quiet.forward_library_progress():
        try:
            made: Artifact = module.run(section, context)
        except RewardFailed:
            fs.write_json(folder / WORK / _FAILED, {"functions": inputs.get("functions")})
            raise
    _remove_work(folder)
    emit(
        StageFinished(
            stage=name,
            path=str(folder),
            seconds=made.manifest.seconds,
            metrics=made.manifest.metrics,
            peak_memory=devices.peak_bytes(),
        )
    )
    devices.release_memory()
    return made


def _look_ahead(
    first: str,
    recipe: Recipe,
    chosen: Sequence[str],
    paths: RunPaths,
    data: dict[str, Any],
    request: Request,
) -> list[str]:
    """Check options of the trainers, and what tokenizers and configurations tell of this and the stages after it.

    Returns sentences to warn with.
    """
    to_come = chosen[chosen.index(first) :]
    options_module = importlib.import_module("rlhfctl.training.trl.options")
    quiet = importlib.import_module("rlhfctl.training.trl.quiet")
    trained = {"sft": recipe.sft, "reward": recipe.reward}
    options = {key: value.trainer for key, value in trained.items() if value is not None}
    tokenizing = importlib.import_module("rlhfctl.models.tokenizing")
    tokenizer = None
    with quiet.quiet_libraries(paths.log):
        options_module.check_trainers(options, recipe.model.dtype)
        importlib.import_module("rlhfctl.models.loading").check_quantization(recipe.model)
        model_checks = importlib.import_module("rlhfctl.models.checks")
        if first in ("base", "sft"):
            model_checks.check_base(recipe, to_come)
            tokenizer = tokenizing.prepare(recipe, data).tokenizer
        elif (base := _parents(first, recipe, paths, request).get("base")) is not None:
            folder = base.artifact.path if base.artifact is not None else Path(base.name)
            at = next(
                (at for at in (folder / "model", folder / "adapter", folder) if (at / _TOKENIZER).is_file()), None
            )
            if at is not None:
                tokenizer = tokenizing.load_for(recipe.model, str(at))
                if base.artifact is None:
                    tokenizing.adopt_where_asked(tokenizer, data)
        read = {name: rows for name, rows in data.items() if any(name in _DATA[stage] for stage in to_come)}
        preflight = importlib.import_module("rlhfctl.data.preflight")
        kept = preflight.check(recipe, read, to_come, tokenizer)
        refused = preflight.new_notes(read, kept)
        data.update(kept)  # the stages read what the template takes
        found: list[str] = model_checks.check_reward(recipe, kept, to_come, request.external.get("reward"))
        return [*refused, *found]


def _make_room(folder: Path, inputs: Mapping[str, str], paths: RunPaths, force: bool, emit: Emit, name: str) -> bool:
    """Move aside what was made from other inputs; keep what can be gone on with. True: an attempt is repeated."""
    if not force and not (folder / MANIFEST).is_file() and _attempted(folder, inputs):
        _note_mended(folder, inputs)
        return True
    marker = folder / WORK / _INPUTS
    if folder.is_dir() and _holds_something(folder):
        kept = fs.move_aside(folder, paths.superseded)
        emit(Note(stage=name, message=f"what was there is kept in {kept}"))
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    fs.write_json(marker, dict(inputs))
    return False


def _attempted(folder: Path, inputs: Mapping[str, str]) -> bool:
    """Whether an attempt with the same inputs was begun there."""
    marker = folder / WORK / _INPUTS
    if not marker.is_file():
        return False
    changed = changed_inputs(json.loads(marker.read_text()), inputs)
    return not changed or (changed == ["functions"] and (folder / WORK / _FAILED).is_file())


def _note_mended(folder: Path, inputs: Mapping[str, str]) -> None:
    """Record that an attempt which a reward function stopped goes on with the function as it is now."""
    marker, changes = folder / WORK / _INPUTS, folder / WORK / _CHANGES
    was = json.loads(marker.read_text())
    if changed_inputs(was, inputs) != ["functions"]:
        return
    steps = [int(path.name.rpartition("-")[2]) for path in (folder / WORK).glob("checkpoint-*") if path.is_dir()]
    change = {"update": max(steps, default=0), "from": was["functions"], "to": inputs["functions"]}
    fs.write_json(changes, [*(read_json(changes) if changes.is_file() else []), change])
    fs.write_json(marker, dict(inputs))


def _told(change: Mapping[str, Any]) -> str:
    old, new = (str(change[key])[:12] for key in ("from", "to"))
    return f"the reward functions changed at update {change['update']}: {old} before, {new} since"


def _holds_something(folder: Path) -> bool:
    """Whether there is more than the half-written files of an attempt killed before it had begun."""
    return any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*"))


def _remove_work(folder: Path) -> None:
    """The checkpoints of a complete stage have served; the manifest says that it is complete."""
    if (folder / WORK).is_dir():
        shutil.rmtree(folder / WORK)


# ---------------------------------------------------------------- what a run would do


@dataclass(frozen=True)
class Forecast:
    """What a run would do about one stage, and why."""

    stage: str
    action: Literal["run", "continue", "skip"]
    why: str


def forecast(loaded: LoadedRecipe, run_dir: Path, data: Mapping[str, Any], request: Request) -> list[Forecast]:
    """Each stage of the recipe: run, continue from a checkpoint, or skip. `data`: rows as data.check_all gives them."""
    recipe, paths = loaded.recipe, RunPaths(run_dir)
    names = stages_of(recipe)
    chosen = _chosen(names, request)
    found: list[Forecast] = []
    anew: set[str] = set()
    for name in names:
        if name not in chosen:
            found.append(Forecast(name, "skip", "not asked for"))
            continue
        folder = paths.stage(name)
        waits_for = [parent for parent in _own_parents(name, recipe) if parent in anew]
        if waits_for:
            anew.add(name)
            found.append(Forecast(name, "run", f"on the new {', '.join(waits_for)}"))
            continue
        inputs = _inputs(name, recipe, paths, data, request)
        artifact = find_artifact(folder)
        if artifact is not None and not request.force:
            changed = changed_inputs(artifact.manifest.inputs, inputs)
            if not changed:
                found.append(Forecast(name, "skip", "complete, and nothing that it depends on changed"))
                continue
            found.append(Forecast(name, "run", f"changed: {_changes(changed, artifact, name, recipe)}"))
        elif not request.force and _attempted(folder, inputs):
            found.append(Forecast(name, "continue", "begun with the same inputs"))
        else:
            found.append(Forecast(name, "run", "--force" if request.force else "nothing is there yet"))
        anew.add(name)
    return found


def _own_parents(name: str, recipe: Recipe) -> list[str]:
    """The stages of this recipe that `name` reads."""
    base, names = ("sft" if recipe.sft is not None else "base"), stages_of(recipe)
    read = {"reward": [base], "ppo": [base, "reward"], "compare": [base, "reward", "ppo"]}.get(name, [])
    return [parent for parent in read if parent in names]


# ---------------------------------------------------------------- what a stage depends on


def _parents(name: str, recipe: Recipe, paths: RunPaths, request: Request) -> dict[str, Source]:
    """role -> source: a stage of this run, or what the command or the recipe names instead."""
    base = "sft" if recipe.sft is not None else "base"

    def own(stage: str, role: str = "") -> Source:
        """A stage of this run; for compare, what ppo was given in its place (`ppo --policy`, `--reward-model`)."""
        policy = find_artifact(paths.stage("ppo")) if name == "compare" else None
        if policy is not None and role in policy.manifest.parents and find_artifact(paths.stage(stage)) is None:
            return policy.parent(role)
        return Source.of(load_artifact(paths.stage(stage)))

    def reward() -> dict[str, Source]:
        if "reward" in request.external:
            return {"reward": resolve_source(request.external["reward"], "reward model")}
        if recipe.reward is None or recipe.reward.kind == "function":
            return {}
        if recipe.reward.model is not None:
            return {"reward": resolve_source(recipe.reward.model, "reward model")}
        return {"reward": own("reward", "reward")}

    def given(role: str, stage: str) -> Source:
        if role in request.external:
            return resolve_source(request.external[role], role)
        return own(stage, "base" if role == "reference" else "")

    if name in ("base", "sft"):
        return {}
    if name == "reward":
        return {"base": given("base", base)}
    if name == "ppo":
        critic = recipe.ppo.critic_from if recipe.ppo is not None else None
        started = {"critic": resolve_source(critic, "critic")} if critic is not None else {}
        return {"base": given("base", base)} | reward() | started
    assert recipe.compare is not None
    judged = reward() if "reward_model" in recipe.compare.judges else {}
    if "policy_samples" in request.options:
        return judged
    return {"policy": given("policy", "ppo"), "reference": given("reference", base)} | judged


def _inputs(name: str, recipe: Recipe, paths: RunPaths, data: Mapping[str, Any], request: Request) -> dict[str, str]:
    """name -> fingerprint of everything that a stage's result depends on."""
    inputs = {"section": _section_fingerprint(name, recipe), "seed": str(recipe.seed)}
    how = {"dtype", "quantization", "trust_remote_code", "attn_implementation", "template_date"} - _newer(recipe)
    loading = recipe.model.model_dump(mode="json", include=how)
    inputs["model"] = fs.hash_json(loading)
    if name in ("base", "sft"):
        inputs["model"] = _model_fingerprint(recipe)
    for data_name in _DATA[name]:
        if data_name in data:
            keys = section_without_places(getattr(recipe.data, data_name))
            inputs[f"data.{data_name}"] = fs.hash_json([keys, data[data_name].fingerprint, recipe.data_seed])
    if name in ("ppo", "compare"):
        inputs["data.prompt_lengths"] = fs.hash_json([recipe.data.max_prompt_length, recipe.data.overlong_prompts])
    for role, source in _parents(name, recipe, paths, request).items():
        inputs[role] = source.fingerprint
    if name in ("ppo", "compare") and recipe.reward is not None and recipe.reward.kind == "model":
        reading = [recipe.reward.label, recipe.reward.reads]  # how a classifier is read
        if any(option is not None for option in reading):
            inputs["reward.label"] = fs.hash_json(reading)
    if name == "compare" and recipe.ppo is not None:  # it samples as PPO does
        how = {"stop_token", "stop_strings", "top_k", "top_p"}
        inputs["sampling"] = fs.hash_json(recipe.ppo.model_dump(mode="json", include=how))
    if functions := functions_of(name, recipe):
        fingerprint = importlib.import_module("rlhfctl.rewards.function").function_fingerprint
        inputs["functions"] = fs.hash_json([fingerprint(spec, Path(recipe.folder or ".")) for spec in functions])
    for option in ("policy_samples", "reference_samples"):
        if option in request.options and name == "compare":
            inputs[option] = fs.hash_file(Path(request.options[option]))
    return inputs


def section_of(name: str, recipe: Recipe) -> Any:
    """The section of the recipe that a stage is made from."""
    return recipe.model if name == "base" else getattr(recipe, name)


def _section_fingerprint(name: str, recipe: Recipe) -> str:
    return fs.hash_json(section_of(name, recipe).model_dump(mode="json"))


def section_without_places(section: Any) -> dict[str, Any]:
    """A data set's keys without the names of its sources: what these hold counts, wherever it lies."""
    names: dict[str, Any] = {"source": True, "sources": {"__all__": {"source"}}}
    names |= {"eval_source": {"source"}, "test_source": {"source"}}
    found: dict[str, Any] = section.model_dump(mode="json", exclude=names)
    return found


def _model_fingerprint(recipe: Recipe) -> str:
    path = recipe.model.path
    content: Any = None
    if path is not None and Path(path).is_dir():
        content = fs.hash_tree(Path(path))
        folders = importlib.import_module("rlhfctl.models.adapter_folders")
        bases = [fs.hash_tree(Path(base)) if Path(base).is_dir() else base for base in folders.bases_of(path)]
        content = [content, *bases] if bases else content
    template = recipe.model.chat_template
    template_text = None
    if template is not None and template.endswith((".jinja", ".j2")):
        template_text = fs.hash_file(Path(template))
    exclude = _newer(recipe) | ({"path"} if content else set())
    return fs.hash_json([recipe.model.model_dump(mode="json", exclude=exclude), content, template_text])


def _newer(recipe: Recipe) -> set[str]:
    """Keys of the model that are not used, and that recipes did not have: what was made before them stays as it is."""
    keys = ("attn_implementation", "chat_template_kwargs", "template_tokens", "template_date")
    fields = type(recipe.model).model_fields
    return {key for key in keys if getattr(recipe.model, key) == fields[key].default}

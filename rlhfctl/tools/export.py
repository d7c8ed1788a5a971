"""`export`: a stage's model as a plain Hugging Face folder that needs no rlhfctl.

Merged weights by default. With an adapter, the folder carries its base beside it and a snippet that loads both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.artifacts import Artifact, RunPaths, Source, load_artifact
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Event, Note, Warned
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stages import Context, handoff
from rlhfctl.training import loading, models, tokenizing
from rlhfctl.training.hf_events import quiet_libraries

STAGES = ("sft", "reward", "ppo", "critic")
_CAUSAL, _SCORER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"

_SNIPPET = {
    False: """from transformers import {auto}, AutoTokenizer

folder = {folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder{extra})
""",
    True: """from peft import PeftModel
from transformers import {auto}, AutoTokenizer

folder = {folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
base = {auto}.from_pretrained(folder + "/base"{extra})
model = PeftModel.from_pretrained(base, folder)
""",
}


def export(run: Path, stage: str, to: Path, *, adapter: bool) -> list[str]:
    """Write the model of `stage` to the new folder `to`; returns lines that say what is there and how to load it."""
    if stage not in STAGES:
        raise RlhfctlError(f"there is no stage {stage!r} to export", fix=f"one of {', '.join(STAGES)}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RlhfctlError(
            "the folder to export to is not empty", where=str(to), fix="name a folder that does not exist yet"
        )
    paths = RunPaths(run)
    if not paths.recipe.is_file():
        raise RlhfctlError("there is no run here: recipe.yaml is missing", where=str(run), fix="name a run folder")
    recipe = load_recipe(paths.recipe).recipe
    folder = {"critic": "ppo", "sft": "sft" if recipe.sft is not None else "base"}.get(stage, stage)
    artifact = load_artifact(paths.stage(folder))
    messages: list[str] = []
    context = Context(folder, recipe, paths, {}, {}, {}, _collecting(messages))
    to.parent.mkdir(parents=True, exist_ok=True)
    with quiet_libraries(paths.log):
        if adapter:
            _export_adapter(stage, artifact, recipe, context, to)
        else:
            _export_merged(stage, artifact, context, to)
    auto = _SCORER if stage in ("reward", "critic") else _CAUSAL
    extra = ", num_labels=1" if auto == _SCORER else ""
    snippet = _SNIPPET[adapter].format(auto=auto, folder=json.dumps(str(to)), extra=extra)
    return [*messages, f"exported {stage} to {to}", "load it with:", "", *snippet.splitlines()]


def _collecting(messages: list[str]) -> Callable[[Event], None]:
    def take(event: Event) -> None:
        if isinstance(event, Note | Warned):
            messages.append(event.message)

    return take


def _export_merged(stage: str, artifact: Artifact, context: Context, to: Path) -> None:
    source = Source.of(artifact)
    with fs.publish_folder(to) as folder:
        if stage == "critic":
            artifact.verify()
            if _is_adapter(artifact.part("critic")):
                tokenizer = tokenizing.load_tokenizer(str(artifact.part("critic")))
                models.save_model(_merged_critic(artifact, context), tokenizer, folder)
            else:
                shutil.copytree(artifact.part("critic"), folder, dirs_exist_ok=True)
        elif stage == "reward":
            tokenizer = _tokenizer(artifact)
            models.save_model(handoff.load_reward_model(context, source, tokenizer), tokenizer, folder)
        else:
            base = handoff.load_base(context, source)
            models.save_model(base.model, base.tokenizer, folder)
        _card(folder, stage, artifact, adapter=False)


def _export_adapter(stage: str, artifact: Artifact, recipe: Recipe, context: Context, to: Path) -> None:
    part = "critic" if stage == "critic" else "adapter"
    if not artifact.has(part) or not _is_adapter(artifact.part(part)):
        whole = "a model of its own" if stage == "critic" else "trained whole, without LoRA"
        raise RlhfctlError(f"the {stage} is {whole}: there is no adapter", fix="leave out --adapter")
    artifact.verify()
    with fs.publish_folder(to) as folder:
        shutil.copytree(artifact.part(part), folder, dirs_exist_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "base"
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        if stage == "sft":
            model, _, _ = models.base_from_recipe(
                recipe.model, [], seed=recipe.seed, dtype=loading.torch_dtype(recipe.model.dtype)
            )
            # The stage's own: its end-of-sequence may be the chat template's end of turn.
            tokenizer = tokenizing.load_tokenizer(str(artifact.part("model")))
            models.set_token_ids(model, tokenizer)
        else:
            base = handoff.load_base(context, artifact.parent("base"))
            model, tokenizer = base.model, base.tokenizer
        tokenizing.save_tokenizer(tokenizer, folder)
        (folder / "base").mkdir()
        models.save_model(model, tokenizer, folder / "base")
        _card(folder, stage, artifact, adapter=True)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _merged_critic(artifact: Artifact, context: Context) -> Any:
    base = handoff.load_base(context, artifact.parent("base"))
    return models.merged(models.load_adapter(models.scorer_on(base.model, seed=0), artifact.part("critic")))


def _tokenizer(artifact: Artifact) -> Any:
    return tokenizing.load_tokenizer(str(artifact.part("adapter" if artifact.has("adapter") else "model")))


def _card(folder: Path, stage: str, artifact: Artifact, *, adapter: bool) -> None:
    """The probes (ids and the numbers they gave) and the load snippet, for whoever gets the folder."""
    if stage != "critic":
        shutil.copy(artifact.part("probes"), folder / handoff.PROBES)
    auto = _SCORER if stage in ("reward", "critic") else _CAUSAL
    extra = ", num_labels=1" if auto == _SCORER else ""
    snippet = _SNIPPET[adapter].format(auto=auto, folder='"."', extra=extra)
    lines = [
        f"# {stage}",
        "",
        f"Exported by rlhfctl {artifact.manifest.versions.get('rlhfctl')} from artifact {artifact.fingerprint}.",
        "`probes.json`, where there is one, holds token ids and what the model gave for them when it was saved.",
        "",
        "```python",
        snippet.rstrip(),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")

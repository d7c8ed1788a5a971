"""Export a stage's model as a plain Hugging Face folder, which loads without rlhfctl.

The weights are merged by default. An exported adapter comes with its base in the same folder. README.md is a model card
for the Hub with a Python snippet that loads the model (model_card.py); probes.json holds token ids and the numbers that
the model gave for them. `push` uploads the folder (hub.py).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from rlhfctl import fs, seeding
from rlhfctl.artifacts import Artifact, Source, load_artifact
from rlhfctl.data import templates
from rlhfctl.errors import RlhfctlError
from rlhfctl.graph import STAGES, makers_of, stages_of
from rlhfctl.models import (
    architecture,
    build,
    head_bias,
    heads,
    loading,
    merging,
    reward_head,
    special_tokens,
    tokenizing,
)
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stage_order import in_order
from rlhfctl.stages.loader import Loader, member_folders
from rlhfctl.stages.probes import PROBES
from rlhfctl.sweeping import require_run
from rlhfctl.tools import card_facts, hub, model_card
from rlhfctl.tools.card_facts import Facts
from rlhfctl.training.trl.quiet import quiet_libraries

_SCORERS = ("reward", "heldout")
_MODELS = ("base", *_SCORERS, "policy")  # kinds of artifacts that can be exported
NAMES = (*(name for name, stage in STAGES.items() if stage.makes in _MODELS and name != "base"), "critic")
_CAUSAL, _SCORER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"

_LOAD = """from transformers import {auto}, AutoTokenizer

folder = {folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder{extra})
{shift}"""
_LOAD_ADAPTER = """from peft import PeftModel
from transformers import {auto}, AutoTokenizer

folder = {folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
base = {auto}.from_pretrained(folder + "/base"{extra})
{shift}model = PeftModel.from_pretrained(base, folder)
"""
# transformers' heads have no bias and do not load one; see models/head_bias.py.
_SHIFT = """# The shift of the score (score.bias in the weights), which transformers does not load:
model.score.bias = torch.nn.Parameter(torch.tensor([{bias!r}], dtype=model.score.weight.dtype))
"""
_SHIFT_ADAPTER = (
    "base.score.bias = torch.nn.Parameter(torch.zeros(1))  # room for the shift of the score: peft loads it\n"
)
_HEAD_FILE = """import sys
from pathlib import Path

sys.path.insert(0, str(Path(folder).resolve()))
import {module}  # adds {name}, which transformers lacks
"""
# Build the text that the reward model was trained on, as encoding.py does, with transformers alone.
_SCORE = """
prompt = {prompt}
response = {response}
{text}
batch = tokenizer([text], add_special_tokens={special}, padding=True, return_tensors="pt")
with torch.no_grad():
    score = model.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[0, 0].item()
print(score)
"""
_PLAIN_TEXT = "text = prompt + response + tokenizer.eos_token"
# Appended to the copy of reward_head.py in the exported folder.
_REGISTERED = """

from transformers import AutoModelForSequenceClassification  # noqa: E402

from {module} import {causal}  # noqa: E402

{name} = sequence_classifier({causal}, "{name}")
{name}.__module__ = __name__
AutoModelForSequenceClassification.register({name}.config_class, {name}, exist_ok=True)
"""
_CONVERSATION = """text = tokenizer.apply_chat_template(prompt + response, tokenize=False).rstrip()
text += "" if text.endswith(tokenizer.eos_token) else tokenizer.eos_token"""


def export(run: Path, stage: str, to: Path, *, adapter: bool, push: hub.Push | None = None) -> list[str]:
    """Write the model of `stage` to the new folder `to`; return lines for the user that say how to load it.

    `stage` is one of NAMES or, in a run over several seeds, one of a seed: `seed-1/ppo`. `push`: the repository on the
    Hub to upload the folder to. Whether that is possible is found out first.
    """
    seed, _, stage = stage.rpartition("/")
    if stage not in NAMES:
        raise RlhfctlError(f"there is no stage {stage!r} to export", fix=f"one of {', '.join(NAMES)}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RlhfctlError(
            "the folder to export to is not empty", where=str(to), fix="name a folder that does not exist yet"
        )
    paths = RunPaths(run)
    require_run(run)
    recipe = load_recipe(paths.recipe).recipe
    folder = f"{seed}/{_stage_of(stage, recipe)}".lstrip("/")
    artifact = load_artifact(paths.stage(seeding.one_named(folder, in_order(recipe)) or folder))
    if push is not None:
        push.prepare()
    messages: list[str] = []
    loader = Loader.of(recipe, note=messages.append, warn=messages.append)
    to.parent.mkdir(parents=True, exist_ok=True)
    with quiet_libraries(paths.log):
        facts = card_facts.collect(stage, artifact, recipe, paths)
        if adapter:
            _export_adapter(facts, loader, to)
        else:
            _export_merged(facts, loader, to)
    uploaded = [] if push is None else [push.upload(to, f"{stage} of the run {recipe.name}")]
    snippet = _snippet(stage, to, json.dumps(str(to)), adapter=adapter)
    return [*messages, f"exported {stage} to {to}", *uploaded, "load it with:", "", *snippet.splitlines()]


def _stage_of(name: str, recipe: Recipe) -> str:
    """Find the stage that makes `name`: the policy stage makes the critic; without sft, the base stage replaces it."""
    if name in stages_of(recipe):
        return name
    product = "policy" if name == "critic" else STAGES[name].makes
    return next((stage for stage in stages_of(recipe) if stage in makers_of(product)), name)


def _export_merged(facts: Facts, loader: Loader, to: Path) -> None:
    stage, artifact = facts.stage, facts.artifact
    source = Source.of(artifact)
    with fs.publish_folder(to) as folder:
        if stage == "critic":
            artifact.verify()
            if _is_adapter(artifact.part("critic")):
                tokenizer = tokenizing.load_tokenizer(str(artifact.part("critic")))
                _save_scorer(_merged_critic(artifact, loader), tokenizer, folder)
            else:
                shutil.copytree(artifact.part("critic"), folder, dirs_exist_ok=True)
        elif stage in _SCORERS:
            _refuse_ensemble(artifact)
            tokenizer = _tokenizer(artifact)
            _save_scorer(loader.load_reward_model(source, tokenizer), tokenizer, folder)
        else:
            base = loader.load_base(source)
            build.save_model(base.model, base.tokenizer, folder)
        _restart_clock(folder)
        _card(folder, facts, adapter=False)


def _export_adapter(facts: Facts, loader: Loader, to: Path) -> None:
    stage, artifact, recipe = facts.stage, facts.artifact, facts.recipe
    part = "critic" if stage == "critic" else "adapter"
    if not artifact.has(part) or not _is_adapter(artifact.part(part)):
        whole = "a model of its own" if stage == "critic" else "trained whole, without LoRA"
        raise RlhfctlError(f"the {stage} is {whole}: there is no adapter", fix="leave out --adapter")
    artifact.verify()
    if stage in _SCORERS:
        _refuse_ensemble(artifact)
    with fs.publish_folder(to) as folder:
        shutil.copytree(artifact.part(part), folder, dirs_exist_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "base"
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        if stage == "sft":
            # Use the sft stage's tokenizer: new weights are drawn for its vocabulary, and its end token may differ.
            tokenizer = tokenizing.load_tokenizer(str(artifact.part("model")))
            model, _ = build.base_from_recipe(
                recipe.model,
                tokenizing.Prepared(tokenizer),
                seed=recipe.seed,
                dtype=loading.torch_dtype(recipe.model.dtype),
            )
        else:
            base = loader.load_base(artifact.parent("base"))
            model, tokenizer = base.model, base.tokenizer
        tokenizing.save_tokenizer(tokenizer, folder)
        (folder / "base").mkdir()
        build.save_model(model, tokenizer, folder / "base")
        _restart_clock(folder)
        _card(folder, facts, adapter=True)


def _refuse_ensemble(artifact: Artifact) -> None:
    """Raise RlhfctlError for an ensemble: no folder of one model gives the scores of several."""
    if (count := len(member_folders(artifact))) > 1:
        raise RlhfctlError(
            f"the reward is an ensemble of {count} models, which is no single model to export",
            where=str(artifact.path),
            fix="score with it here (rlhfctl score), load its members with peft (adapter/, member-1/, ...), or train "
            "with reward.members: 1",
        )


def _restart_clock(folder: Path) -> None:
    """Remove the fixed date from chat templates, so that they read the clock again."""
    for file in folder.rglob("chat_template.jinja"):
        text = file.read_text(encoding="utf-8")
        if (before := templates.without_day(text)) != text:
            file.write_text(before, encoding="utf-8")


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _merged_critic(artifact: Artifact, loader: Loader) -> Any:
    base = loader.load_base(artifact.parent("base"))
    return merging.merged(merging.load_adapter(heads.scorer_on(base.model, seed=0), artifact.part("critic")))


def _tokenizer(artifact: Artifact) -> Any:
    return tokenizing.load_tokenizer(str(artifact.weights))


def _save_scorer(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a reward model or critic with its pad id set, so that padded rows score as they do alone."""
    special_tokens.set_token_ids(model, tokenizer)
    build.save_model(model, tokenizer, folder)


def _make_loadable(folder: Path) -> None:
    """Make padding go to the right, and add the code of the model's class if transformers lacks that class."""
    tokenizer = tokenizing.load_tokenizer(str(folder))
    tokenizer.padding_side = "right"  # the head reads the last token, and absolute positions start at the first
    tokenizing.save_tokenizer(tokenizer, folder)
    weights = folder / "base" if (folder / "base").is_dir() else folder
    config = loading.read_config(str(weights), "model")
    kind, causal = architecture.scorer_class(config), architecture.causal_class(config)
    if not architecture.is_made_here(kind):
        return
    assert causal is not None
    source = Path(str(reward_head.__file__)).read_text(encoding="utf-8")
    more = _REGISTERED.format(causal=causal.__name__, module=causal.__module__, name=kind.__name__)
    module = _head_module(config)
    (folder / f"{module}.py").write_text(f"{source.rstrip()}\n{more}", encoding="utf-8")
    if weights == folder:
        kept = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kept["auto_map"] = {_SCORER: f"{module}.{kind.__name__}"}  # read with trust_remote_code=True
        (folder / "config.json").write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _head_module(config: Any) -> str:
    """Name the module that adds a family's class; the name differs per family, so two families load in one process."""
    return "reward_head_" + re.sub(r"\W", "_", config.model_type)


def _snippet(stage: str, folder: Path, location: str, *, adapter: bool) -> str:
    """Write the Python lines that load the model of `folder` from `location`; for a reward model they print a score."""
    if stage not in (*_SCORERS, "critic"):
        return (_LOAD_ADAPTER if adapter else _LOAD).format(auto=_CAUSAL, folder=location, extra="", shift="")
    bias = (head_bias.bias_of_adapter if adapter else head_bias.bias_of_model)(folder)
    shift = "" if bias is None else _SHIFT_ADAPTER if adapter else _SHIFT.format(bias=bias.item())
    load = _LOAD_ADAPTER if adapter else _LOAD
    text = load.format(auto=_SCORER, folder=location, extra=", num_labels=1", shift=shift)
    config = loading.read_config(str(folder / "base" if adapter else folder), "model")
    if (folder / f"{_head_module(config)}.py").is_file():
        head, mark, rest = text.partition("tokenizer = ")
        name = architecture.scorer_class(config).__name__
        text = head + _HEAD_FILE.format(module=_head_module(config), name=name) + mark + rest
    if stage == "critic":
        return f"import torch\n{text}" if shift else text
    prompt, response, _ = _example(folder)
    tokenizer = tokenizing.load_tokenizer(str(folder))
    plain = isinstance(prompt, str)
    ends = plain and tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
    lines = _PLAIN_TEXT.removesuffix(" + tokenizer.eos_token") if ends else _PLAIN_TEXT if plain else _CONVERSATION
    score = _SCORE.format(prompt=repr(prompt), response=repr(response), text=lines, special=plain)
    return f"import torch\n{text}{score}"


def _example(folder: Path) -> tuple[Any, Any, float | None]:
    """Return (prompt, response, recorded score) of the shortest example that was saved with the reward model."""
    kept = json.loads((folder / PROBES).read_text(encoding="utf-8"))
    examples = list(zip(kept.get("examples", []), kept["rows"], kept["scores"], strict=False))
    if not examples:
        return "Say something kind. ", "You did well.", None
    example, _, score = min(examples, key=lambda entry: len(entry[1]))
    return example["prompt"], example["response"], score


def _card(folder: Path, facts: Facts, *, adapter: bool) -> None:
    """Write probes.json (ids and the recorded numbers) and README.md, the model card."""
    stage, artifact = facts.stage, facts.artifact
    if stage != "critic":
        shutil.copy(artifact.part("probes"), folder / PROBES)
    if stage in (*_SCORERS, "critic"):
        _make_loadable(folder)
    snippet = _snippet(stage, folder, '"."', adapter=adapter)
    about_scores = _scores_text(folder, artifact) if stage in _SCORERS else []
    text = model_card.page(facts, adapter=adapter, snippet=snippet, about_scores=about_scores)
    (folder / "README.md").write_text(text, encoding="utf-8")


_ZERO = {
    None: "Scores compare responses to the same prompt; their zero means nothing.",
    "demonstrations": "The mean score of the training demonstrations is 0 (`reward.normalize`): the snippet sets this "
    "shift, which transformers alone does not load. Without it all scores differ by one number.",
    "reference": "Scores of the base model's own samples have mean 0 and variance 1 (`reward.normalize`). The scale is "
    "in the weights. The snippet sets the shift, which transformers alone does not load: without it all scores differ "
    "by one number.",
}


def _scores_text(folder: Path, artifact: Artifact) -> list[str]:
    """Explain the score that the snippet prints."""
    score = _example(folder)[2]
    printed = [f"It prints {score:.4f} (float32; other number formats round).", ""] if score is not None else []
    module = next(iter(sorted(file.name for file in folder.glob("reward_head_*.py"))), None)
    more = (
        f"`{module}` is the model's class, which transformers lacks. Tools that load the model themselves find it "
        "with `trust_remote_code=True`.",
        "",
    )
    return [
        *printed,
        f"A higher score is better. {_ZERO[artifact.manifest.section.get('normalize')]} The text ends with the "
        "end-of-sequence token, as in training; padding stands on the right.",
        "",
        *(more if module else ()),
    ]

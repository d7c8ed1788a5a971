"""The hand-over: loads what an earlier stage left, and checks that it is what was left.

Before weights load: the artifact is complete and unaltered, tokenizer and template agree, the head is there. After:
base* gives the log-probabilities recorded with it, the reward model the scores. What comes from elsewhere has no
manifest; the checks that are possible run, and those that are not are noted in the artifact that is made from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl.artifacts import Artifact, Source, find_artifact, read_json
from rlhfctl.data.chat import template_warnings
from rlhfctl.data.encoding import any_conversation
from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.events import Work
from rlhfctl.models import (
    adapter_folders,
    adapters,
    classifiers,
    devices,
    heads,
    loading,
    merging,
    scoring,
    special_tokens,
    tokenizing,
)
from rlhfctl.models.classifiers import Classifier
from rlhfctl.paths import relative_to_run
from rlhfctl.recipe.schema import Model
from rlhfctl.stages.context import Context

PROBES = "probes.json"
# How far a reloaded model may be from what was recorded: natural-log probabilities a token, and scores.
# base* is merged in full precision after training on a quantized one, and quantized again where it is loaded for PPO:
# there the log-probabilities move. Scores are always those of the adapter on base* quantized.
LOGPROB_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.05, "8bit": 0.5, "4bit": 2.0}
SCORE_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.25, "float16": 0.05, "8bit": 0.05, "4bit": 0.05}


@dataclass(frozen=True)
class Base:
    """base*: the policy at step 0 and the reference, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str


def precision(section: Model) -> str:
    """What limits how alike two ways to the same numbers can be: the key of the tolerances."""
    return section.quantization or section.dtype


def load_base(ctx: Context, source: Source, *, check: bool = True, to_train: bool = False) -> Base:
    """base* of an sft or base artifact, or a plain model or adapter from elsewhere.

    `to_train`: adapters are going to be trained on it, so it is quantized where the recipe says so.
    """
    how = loading.options(ctx.recipe.model)
    quantization = ctx.recipe.model.quantization if to_train else None
    artifact = source.artifact
    if quantization is not None:
        _refuse_adapter(source)
    if artifact is None:
        model, tokenizer = _load_foreign(ctx, source, quantization)
        return Base(model, tokenizer, source.name)
    _verify(artifact)
    if not artifact.has("model"):
        return Base(*_load_policy_artifact(ctx, artifact), str(artifact.path))
    path = str(artifact.part("model"))
    tokenizer = tokenizing.load_for(ctx.recipe.model, path)
    _same_tokenizer(artifact, tokenizer)
    model = loading.load_causal_lm(path, **how, quantization=quantization)
    if check and artifact.has("probes"):
        check_logprobs(model, tokenizer.pad_token_id, artifact.part("probes"), precision(ctx.recipe.model))
    return Base(model, tokenizer, path)


def _verify(artifact: Artifact) -> None:
    with Work(f"checking the files of {artifact.path}"):
        artifact.verify()


def _refuse_adapter(source: Source) -> None:
    """HandoffError for a base that is an adapter: merging it into quantized weights would round it away."""
    artifact = source.artifact
    folder = Path(source.name) if artifact is None else artifact.path
    is_adapter = adapter_folders.is_adapter(folder) if artifact is None else not artifact.has("model")
    if is_adapter:
        raise HandoffError(
            "the base is an adapter, which cannot be merged into quantized weights",
            where=str(folder),
            fix="merge it first (rlhfctl export) and name that folder, or take model.quantization out",
        )


def load_policy(ctx: Context, source: Source) -> Base:
    """A policy to sample from: merged where it is an adapter."""
    return load_base(ctx, source)


def _load_policy_artifact(ctx: Context, artifact: Artifact) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A ppo artifact that is an adapter on its run's base*, merged."""
    base = load_base(ctx, artifact.parent("base"), check=False)
    model = merging.merged(merging.load_adapter(base.model, artifact.part("adapter")))
    if artifact.has("probes"):
        check_logprobs(model, base.tokenizer.pad_token_id, artifact.part("probes"), precision(ctx.recipe.model))
    return model, base.tokenizer


def _load_foreign(
    ctx: Context, source: Source, quantization: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    how = loading.options(ctx.recipe.model)
    place = adapter_folders.fetched(source.name)
    if adapter_folders.is_adapter(place):
        adapter_folders.require_policy_adapter(place)
        model, tokenizer = _base_of_adapter(ctx, Path(place))
        if (Path(place) / "tokenizer_config.json").is_file():  # saved with the adapter: its template and end token
            tokenizer = tokenizing.load_for(ctx.recipe.model, place)
        model = merging.merge(model, Path(place))
    else:
        tokenizer = tokenizing.load_for(ctx.recipe.model, source.name)
        model = loading.load_causal_lm(source.name, **how, quantization=quantization)
    notes = special_tokens.ensure_pad(model, tokenizer)
    if sentence := tokenizing.adopt_where_asked(tokenizer, ctx.data):
        special_tokens.set_token_ids(model, tokenizer)
        notes.append(sentence)
    notes += template_warnings(tokenizer) if any_conversation(ctx.data) else []
    for sentence in notes:
        ctx.note(f"{source.name}: {sentence}")
    ctx.note(f"{source.name} has no manifest: that it is complete and scores as it did could not be checked")
    return model, tokenizer


def _base_of_adapter(ctx: Context, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What the adapter folder names as its base: a folder relative to it, any other, a Hub id, or a run's stage."""
    how = loading.options(ctx.recipe.model)
    path = adapter_folders.base_of(folder)
    if (stage := find_artifact(Path(path))) is not None:  # an adapter on another adapter
        base = load_base(ctx, Source.of(stage), check=False)
        return base.model, base.tokenizer
    model, notes = merging.load_causal_lm(path, **how)
    for sentence in notes:
        ctx.note(sentence)
    return model, tokenizing.load_for(ctx.recipe.model, adapter_folders.tokenizer_folder(path))


def load_reward_model(ctx: Context, source: Source, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The reward model with its adapter merged and its head, checked against the policy's `tokenizer`."""
    how = loading.options(ctx.recipe.model)
    artifact = source.artifact
    if artifact is None:
        agree(own_tokenizer(ctx, source), tokenizer, source.name)
        place = adapter_folders.fetched(source.name)
        if adapter_folders.is_adapter(place):
            model = _foreign_scorer_adapter(ctx, Path(place))
        else:
            model = loading.load_scorer(source.name, **how)
        special_tokens.set_pad_token(model, tokenizer.pad_token_id)
        ctx.note(f"{source.name} has no manifest: that it scores as it did when it was trained could not be checked")
        return model
    _verify(artifact)
    if not artifact.manifest.layout.get("head"):
        raise HandoffError(
            f"the {artifact.manifest.stage} artifact is no reward model: it has no scalar head",
            where=str(artifact.path),
            fix="name a reward stage, e.g. runs/NAME/reward",
        )
    _agree_with_manifest(artifact, tokenizer)
    if artifact.has("model"):
        model = loading.load_scorer(str(artifact.part("model")), **how)
    else:
        model = scorer_from_adapter(ctx, artifact.parent("base"), artifact.part("adapter"))
    special_tokens.set_pad_token(model, tokenizer.pad_token_id)
    check_scores(model, tokenizer.pad_token_id, artifact.part("probes"), precision(ctx.recipe.model))
    return model


def load_classifier(ctx: Context, source: Source) -> Classifier | None:
    """The reward model as a classifier of text; None where it is a scalar head on a decoder."""
    if source.artifact is not None:
        return None
    section, trust = ctx.recipe.reward, ctx.recipe.model.trust_remote_code
    label, reads = (section.label, section.reads) if section is not None else (None, None)
    place = adapter_folders.fetched(source.name)
    config = classifiers.config_of(place, trust_remote_code=trust)
    if not classifiers.is_classifier(config):
        classifiers.refuse_options(label, reads, source.name)
        return None
    found = classifiers.load(place, label, reads, own_tokenizer(ctx, source), **loading.options(ctx.recipe.model))
    found.say = ctx.warn
    ctx.note(f"the reward model {source.name} is a classifier: {found.described()}")
    return found


def scorer_from_adapter(ctx: Context, base: Source, adapter: Path) -> PreTrainedModel:
    """The reward model that `adapter` is on `base`: merged, or on the quantized base that it was trained on."""
    model, _, _ = new_scorer(ctx, base, seed=0, check=False)
    scorer = merging.load_adapter(model, adapter)
    return scorer if loading.is_quantized(model) else merging.merged(scorer)


def new_scorer(
    ctx: Context, source: Source, *, seed: int, check: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """A reward model to be trained, with a new head, on base*; base*'s tokenizer and its place."""
    base = load_base(ctx, source, check=check, to_train=True)
    make = heads.scorer_around if loading.is_quantized(base.model) else heads.scorer_on
    return make(base.model, seed=seed), base.tokenizer, base.path


def own_tokenizer(ctx: Context, source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a stage, or with a model or adapter from elsewhere (then its base may hold it)."""
    if source.artifact is not None:
        folder = str(source.artifact.weights)
    else:
        folder = adapter_folders.tokenizer_folder(adapter_folders.fetched(source.name))
    return tokenizing.load_for(ctx.recipe.model, folder)


def other_tokenizer(ctx: Context, source: Source, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """The reward model's tokenizer where it, or its chat template, is not the policy's; None where they agree."""
    if source.artifact is not None:
        _verify(source.artifact)
    theirs = own_tokenizer(ctx, source)
    same_template = tokenizing.template_fingerprint(theirs) == tokenizing.template_fingerprint(tokenizer)
    same = tokenizing.tokenizer_fingerprint(theirs) == tokenizing.tokenizer_fingerprint(tokenizer)
    return None if same and (same_template or source.artifact is None) else theirs


def shared_reward_adapter(ctx: Context) -> Path | None:
    """The reward stage's adapter where it stands on the very base* that PPO starts from; None for any other reward."""
    source = ctx.parents.get("reward")
    if source is None or source.artifact is None or not source.artifact.has("adapter"):
        return None
    artifact = source.artifact
    _verify(artifact)
    if not artifact.manifest.layout.get("head"):
        return None  # loading it as a reward model says what is wrong
    here, there = ctx.parents["base"], artifact.parent("base")
    return artifact.part("adapter") if here.fingerprint == there.fingerprint else None


def check_shared_scores(scorer: Any, pad: int, ctx: Context) -> None:
    """The reward model must score its kept pairs on the shared base* as it did when it was saved."""
    artifact = ctx.parents["reward"].artifact
    assert artifact is not None
    check_scores(scorer, pad, artifact.part("probes"), precision(ctx.recipe.model))


def critic_adapter(ctx: Context, source: Source) -> Path:
    """The folder of a critic that is an adapter with a head: a ppo stage's, or one named itself."""
    folder = Path(source.name) if source.artifact is None else source.artifact.part("critic")
    if not (folder / "adapter_config.json").is_file():
        raise HandoffError(
            "the critic is a model of its own, not an adapter",
            where=str(folder),
            fix="set ppo.critic: model, or name a critic that was trained as an adapter or a head",
        )
    return folder


def load_critic(ctx: Context, source: Source) -> PreTrainedModel:
    """A critic that is a model of its own: a ppo stage's, or one named itself."""
    folder = Path(source.name) if source.artifact is None else source.artifact.part("critic")
    if (folder / "adapter_config.json").is_file():
        return _foreign_scorer_adapter(ctx, folder)
    return loading.load_scorer(str(folder), **loading.options(ctx.recipe.model))


def _foreign_scorer_adapter(ctx: Context, folder: Path) -> PreTrainedModel:
    if not adapters.adapter_has_head(folder):
        raise HandoffError(
            "the adapter holds no scalar head: its scores would be noise",
            where=str(folder),
            fix="train it with task_type SEQ_CLS and modules_to_save score, or name a reward stage: runs/NAME/reward",
        )
    base, _ = _base_of_adapter(ctx, folder)
    return merging.merged(merging.load_adapter(heads.scorer_on(base, seed=0), folder))


def recorded_base(ctx: Context, source: Source, path: str) -> str:
    """What peft records as an adapter's base: relative inside a run, so that a moved run stays whole."""
    if source.artifact is None:
        return path
    # A policy that is an adapter itself has no model/: then the stage's folder is named.
    place = source.artifact.part("model") if source.artifact.has("model") else source.artifact.path
    inside = relative_to_run(place, ctx.run.root)
    return inside if Path(inside).is_absolute() else f"../../{inside}"


# ---------------------------------------------------------------- probes: kept rows with the numbers they gave


def write_probes(
    folder: Path, rows: Sequence[Sequence[int]], values: Sequence[Any], kind: str, **more: Sequence[Any]
) -> None:
    """Keep `rows` of ids and what the model gave for them: kind logprobs (a list per row) or scores (a number per row).

    `more`: what else is kept for each row, by name.
    """
    from rlhfctl import fs

    numbers = [number for value in values for number in (value if isinstance(value, list) else [value])]
    require_finite(numbers, folder.name, "log-probabilities" if kind == "logprobs" else kind)
    fs.write_json(folder / PROBES, {"rows": [list(row) for row in rows], kind: list(values), **more})


def require_finite(numbers: Sequence[float], stage: str, kind: str) -> None:
    """RlhfctlError where what a trained model gives are no numbers: that is not handed over."""
    if not all(math.isfinite(number) for number in numbers):
        raise RlhfctlError(
            f"training diverged: the {kind} that the model of the stage {stage} gives are not finite",
            where=f"{stage}.learning_rate" if stage == "ppo" else f"{stage}.trainer.learning_rate",
            fix="lower it; nothing was handed over",
        )


def check_logprobs(model: PreTrainedModel, pad: int, probes: Path, precise: str) -> float:
    """Largest gap between the recorded log-probabilities and the loaded model's; HandoffError above tolerance."""
    kept = read_json(probes)
    with _on_accelerator(model):
        now = scoring.sequence_logprobs(model, kept["rows"], pad)
    devices.release_memory()  # logits and states
    gap = max(
        (abs(a - b) for old, new in zip(kept["logprobs"], now, strict=True) for a, b in zip(old, new, strict=True)),
        default=0.0,
    )
    _within(gap, LOGPROB_TOLERANCE[precise], "log-probabilities", probes)
    return gap


def check_scores(model: PreTrainedModel, pad: int, probes: Path, precise: str) -> float:
    """Largest gap between the recorded scores and the loaded reward model's; HandoffError above tolerance."""
    kept = read_json(probes)
    with _on_accelerator(model):
        now = scoring.score_rows(model, kept["rows"], pad)
    devices.release_memory()  # logits and states
    gap = max((abs(a - b) for a, b in zip(kept["scores"], now, strict=True)), default=0.0)
    _within(gap, SCORE_TOLERANCE[precise] * max(1.0, *(abs(score) for score in kept["scores"])), "scores", probes)
    return gap


@contextmanager
def _on_accelerator(model: PreTrainedModel) -> Iterator[None]:
    """`model` where the numbers were recorded, and where each kind of attention works; afterwards where it was."""
    at = next(model.parameters()).device
    if at.type == devices.device().type:
        yield
        return
    model.to(devices.device())
    try:
        yield
    finally:
        model.to(at)


def _within(gap: float, limit: float, what: str, probes: Path) -> None:
    if not gap <= limit:  # NaN fails too
        raise HandoffError(
            f"the reloaded model does not give the {what} it was saved with: off by {gap:.3g}, allowed {limit:.3g}",
            where=str(probes.parent),
            fix="run that stage again with --force; if it stays, other library versions are installed than then",
        )


# ---------------------------------------------------------------- tokenizers


def agree(theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase, name: str) -> None:
    """HandoffError unless reward model and policy turn text into the same ids."""
    if tokenizing.tokenizer_fingerprint(theirs) == tokenizing.tokenizer_fingerprint(ours):
        return
    a, b = theirs.get_vocab(), ours.get_vocab()
    what = (
        f"{len(a)} tokens against {len(b)}"
        if len(a) != len(b)
        else f"{sum(a[t] != b.get(t) for t in a)} tokens have other ids"
    )
    raise HandoffError(
        f"the reward model's tokenizer is not the policy's ({what}): it would score other text than the policy wrote",
        where=name,
        fix="train the reward model on this policy's base (rlhfctl reward RECIPE)",
    )


def _agree_with_manifest(artifact: Artifact, tokenizer: PreTrainedTokenizerBase) -> None:
    redo = "train the reward model on this policy's base (rlhfctl reward RECIPE)"
    if artifact.manifest.tokenizer != tokenizing.tokenizer_fingerprint(tokenizer):
        raise HandoffError("the reward model's tokenizer is not the policy's", where=str(artifact.path), fix=redo)
    if artifact.manifest.chat_template != tokenizing.template_fingerprint(tokenizer):
        raise HandoffError("the reward model's chat template is not the policy's", where=str(artifact.path), fix=redo)


def _same_tokenizer(artifact: Artifact, tokenizer: PreTrainedTokenizerBase) -> None:
    if artifact.manifest.tokenizer not in (None, tokenizing.tokenizer_fingerprint(tokenizer)):
        raise HandoffError(
            "the tokenizer reads differently from the one that was saved: the installed tokenizers library differs",
            where=str(artifact.path),
            fix=f"install tokenizers {artifact.manifest.versions.get('tokenizers')}, or run the stage again",
        )

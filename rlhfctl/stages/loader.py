"""Load models of earlier stages, or from elsewhere, and verify that they are unchanged.

Before weights load: the artifact is complete and unaltered, tokenizer and template agree, the head is there. After:
base* gives the recorded log-probabilities, and the reward model the recorded scores (probes.py). A model from elsewhere
has no manifest: the checks that are possible run, and the others are noted.

Reads a recipe's `model` section and artifacts. Writes nothing, and does not depend on any stage: tools use it too.
Longer than 400 lines because all checks of a hand-over stand in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl.artifacts import Artifact, Source, find_artifact, model_at, resolve_source
from rlhfctl.data.chat import template_warnings, use_template_eos
from rlhfctl.data.encoding import any_conversation
from rlhfctl.data.types import Rows
from rlhfctl.errors import HandoffError
from rlhfctl.events import Work
from rlhfctl.models import (
    adapter_folders,
    adapters,
    build,
    classifiers,
    heads,
    loading,
    merging,
    special_tokens,
    tokenizing,
)
from rlhfctl.models.classifiers import Classifier
from rlhfctl.models.ensembles import Ensemble, members_on
from rlhfctl.paths import relative_to_run
from rlhfctl.recipe.schema import Model, Recipe, RewardText
from rlhfctl.recipe.sections.reward import Aggregate, HeadInit
from rlhfctl.recipe.sections.scorers import path_and_label
from rlhfctl.rewards.build import LoadedRewardModel
from rlhfctl.stages.probes import PROBES, check_logprobs, check_scores, precision

Say = Callable[[str], None]


@dataclass(frozen=True)
class Base:
    """base* with its tokenizer: the policy at step 0, and the reference."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str


@dataclass(frozen=True)
class Loader:
    """Load models as a recipe's `model` section says; report checks that are not possible to `note` and `warn`.

    `conversations`: the recipe's data holds conversations, and a model from elsewhere then ends turns as its template
    does. `label` and `reads`: the label of a classifier that is the reward, and the text that it reads. `aggregate` and
    `variance_coefficient`: how the scores of an ensemble's members become one.
    """

    model: Model
    note: Say
    warn: Say
    conversations: bool = False
    label: str | int | None = None
    reads: RewardText | None = None
    aggregate: Aggregate = "mean"
    variance_coefficient: float = 1.0

    @classmethod
    def of(cls, recipe: Recipe, *, note: Say, warn: Say, data: Mapping[str, Rows] | None = None) -> Loader:
        """Make the loader of a recipe. `data`: its data sets, if they are read."""
        reward, conversations = recipe.reward, any_conversation(data or {})
        if reward is None:
            return cls(recipe.model, note, warn, conversations)
        reading = (reward.label, reward.reads, reward.aggregate, reward.variance_coefficient)
        return cls(recipe.model, note, warn, conversations, *reading)

    @property
    def precision(self) -> str:
        """The number format that limits how exactly a reloaded model reproduces the recorded numbers."""
        return precision(self.model)

    # ---------------------------------------------------------------- base* and policies

    def load_base(self, source: Source, *, check: bool = True, to_train: bool = False) -> Base:
        """Load base* of an sft or base artifact, a ppo policy (merged), or a model or adapter from elsewhere.

        `to_train`: adapters will be trained on it; it is then quantized if the recipe says so.
        """
        quantization = self.model.quantization if to_train else None
        artifact = source.artifact
        if quantization is not None:
            _refuse_adapter(source)
        if artifact is None:
            model, tokenizer = self._load_foreign(source, quantization)
            return Base(model, tokenizer, source.name)
        verify(artifact)
        if not artifact.has("model"):
            return Base(*self._load_policy_adapter(artifact), str(artifact.path))
        path = str(artifact.part("model"))
        tokenizer = tokenizing.load_for(self.model, path)
        _same_tokenizer(artifact, tokenizer)
        model = loading.load_causal_lm(path, **loading.options(self.model), quantization=quantization)
        if check and artifact.has("probes"):
            check_logprobs(model, tokenizer.pad_token_id, artifact.part("probes"), self.precision)
        return Base(model, tokenizer, path)

    def _load_policy_adapter(self, artifact: Artifact) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load a ppo policy that is an adapter on its run's base*, and merge it."""
        base = self.load_base(artifact.parent("base"), check=False)
        model = merging.merged(merging.load_adapter(base.model, artifact.part("adapter")))
        if artifact.has("probes"):
            check_logprobs(model, base.tokenizer.pad_token_id, artifact.part("probes"), self.precision)
        return model, base.tokenizer

    def _load_foreign(
        self, source: Source, quantization: str | None = None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load a policy without a manifest: merge its adapter, and set its pad and end tokens."""
        folder = adapter_folders.fetched(source.name)
        if adapter_folders.is_adapter(folder):
            adapter_folders.require_policy_adapter(folder)
            model, tokenizer = self._base_of_adapter(Path(folder))
            if (Path(folder) / "tokenizer_config.json").is_file():  # saved with the adapter: its template and end token
                tokenizer = tokenizing.load_for(self.model, folder)
            model = merging.merge(model, Path(folder))
        else:
            tokenizer = tokenizing.load_for(self.model, source.name)
            model = loading.load_causal_lm(source.name, **loading.options(self.model), quantization=quantization)
        notes = special_tokens.ensure_pad(model, tokenizer)
        if self.conversations:
            if sentence := use_template_eos(tokenizer):
                special_tokens.set_token_ids(model, tokenizer)
                notes.append(sentence)
            notes += template_warnings(tokenizer)
        for sentence in notes:
            self.note(f"{source.name}: {sentence}")
        self.note(f"{source.name} has no manifest: that it is complete and scores as it did could not be checked")
        return model, tokenizer

    def _base_of_adapter(self, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the base of an adapter folder: a folder relative to it, another folder, a Hub id, or a stage."""
        path = adapter_folders.base_of(folder)
        if (stage := find_artifact(Path(path))) is not None:  # an adapter on another adapter
            base = self.load_base(Source.of(stage), check=False)
            return base.model, base.tokenizer
        model, notes = merging.load_causal_lm(path, **loading.options(self.model))
        for sentence in notes:
            self.note(sentence)
        return model, tokenizing.load_for(self.model, adapter_folders.tokenizer_folder(path))

    # ---------------------------------------------------------------- reward models and critics

    def load_reward_model(
        self, source: Source, tokenizer: PreTrainedTokenizerBase, *, whole: bool = True
    ) -> PreTrainedModel | Ensemble:
        """Load the reward model with its adapter merged and its head; check it against the policy's `tokenizer`.

        An ensemble is loaded as adapters on one copy of base*; with `whole` False its first member alone is loaded.
        """
        artifact = source.artifact
        if artifact is None:
            return self._load_foreign_reward_model(source, tokenizer)
        verify(artifact)
        if not artifact.manifest.layout.get("head"):
            raise HandoffError(
                f"the {artifact.manifest.stage} artifact is no reward model: it has no scalar head",
                where=str(artifact.path),
                fix="name a reward stage, e.g. runs/NAME/reward",
            )
        _agree_with_manifest(artifact, tokenizer)
        if whole and len(member_folders(artifact)) > 1:
            return self._load_ensemble(artifact, tokenizer)
        if artifact.has("model"):
            model = loading.load_scorer(str(artifact.part("model")), **loading.options(self.model))
        else:
            model = self.scorer_from_adapter(artifact.parent("base"), artifact.part("adapter"))
        special_tokens.set_pad_token(model, tokenizer.pad_token_id)
        check_scores(model, tokenizer.pad_token_id, artifact.part("probes"), self.precision)
        return model

    def _load_ensemble(self, artifact: Artifact, tokenizer: PreTrainedTokenizerBase) -> Ensemble:
        """Load all members of a reward ensemble onto one copy of base*, and check each against its recorded scores."""
        base = self.load_base(artifact.parent("base"), check=False, to_train=True).model
        special_tokens.set_pad_token(base, tokenizer.pad_token_id)
        members = members_on(build.to_device(base), tokenizer.pad_token_id, member_folders(artifact))
        ensemble = Ensemble(members, self.aggregate, self.variance_coefficient)
        self.check_shared_scores(ensemble, tokenizer.pad_token_id, Source.of(artifact))
        return ensemble

    def _load_foreign_reward_model(self, source: Source, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Load a reward model without a manifest: a folder or Hub id of a model, or of an adapter with a head."""
        _require_same_ids(self.own_tokenizer(source), tokenizer, source.name)
        folder = adapter_folders.fetched(source.name)
        if adapter_folders.is_adapter(folder):
            model = self._foreign_scorer_adapter(Path(folder))
        else:
            model = loading.load_scorer(source.name, **loading.options(self.model))
        special_tokens.set_pad_token(model, tokenizer.pad_token_id)
        self.note(f"{source.name} has no manifest: that it scores as it did when it was trained could not be checked")
        return model

    def load_scoring_model(
        self, source: Source, policy_tokenizer: PreTrainedTokenizerBase | None = None
    ) -> LoadedRewardModel:
        """Load the reward model on the device to score a policy's ids (None: to score text with its own tokenizer)."""
        if (classifier := self.load_classifier(source)) is not None:
            return LoadedRewardModel(classifier)
        if policy_tokenizer is None:
            own = self.own_tokenizer(source)
            return LoadedRewardModel(_on_device(self.load_reward_model(source, own)), tokenizer=own)
        other = self.other_tokenizer(source, policy_tokenizer)
        model = _on_device(self.load_reward_model(source, other or policy_tokenizer))
        return LoadedRewardModel(model, policy_tokenizer.pad_token_id, other)

    def load_classifier(self, source: Source) -> Classifier | None:
        """Load the reward model as a classifier of text; None if it is a scalar head on a decoder."""
        if source.artifact is not None:
            return None
        folder = adapter_folders.fetched(source.name)
        config = classifiers.config_of(folder, trust_remote_code=self.model.trust_remote_code)
        if not classifiers.is_classifier(config):
            classifiers.refuse_options(self.label, self.reads, source.name)
            return None
        classifier = classifiers.load(
            folder, self.label, self.reads, self.own_tokenizer(source), **loading.options(self.model)
        )
        classifier.say = self.warn
        self.note(f"the reward model {source.name} is a classifier: {classifier.described()}")
        return classifier

    def new_scorer(
        self, source: Source, *, seed: int, check: bool = True, head_init: HeadInit = "config"
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
        """Make a new reward model on base* with a new head; return it with base*'s tokenizer and folder."""
        base = self.load_base(source, check=check, to_train=True)
        make = heads.scorer_around if loading.is_quantized(base.model) else heads.scorer_on
        model = make(base.model, seed=seed)
        if head_init == "width":
            heads.draw_by_width(model, seed=seed)
        return model, base.tokenizer, base.path

    def scorer_from_adapter(self, base: Source, adapter: Path) -> PreTrainedModel:
        """Load the reward model of `adapter` on `base`: merged, or on the quantized base that it was trained on."""
        model, _, _ = self.new_scorer(base, seed=0, check=False)
        scorer = merging.load_adapter(model, adapter)
        return scorer if loading.is_quantized(model) else merging.merged(scorer)

    def load_critic(self, source: Source) -> PreTrainedModel:
        """Load a critic that is a separate model: from a ppo stage, or the critic that is named itself."""
        folder = critic_folder(source)
        if (folder / adapter_folders.CONFIG).is_file():
            return self._foreign_scorer_adapter(folder)
        return loading.load_scorer(str(folder), **loading.options(self.model))

    def _foreign_scorer_adapter(self, folder: Path) -> PreTrainedModel:
        if not adapters.adapter_has_head(folder):
            raise HandoffError(
                "the adapter holds no scalar head: its scores would be noise",
                where=str(folder),
                fix="train it with task_type SEQ_CLS and modules_to_save score, or name a reward stage: "
                "runs/NAME/reward",
            )
        base, _ = self._base_of_adapter(folder)
        return merging.merged(merging.load_adapter(heads.scorer_on(base, seed=0), folder))

    def check_shared_scores(self, scorer: Any, pad: int, source: Source) -> None:
        """Check that the reward model on the shared base* reproduces the scores recorded when it was saved.

        Of an ensemble each member.
        """
        assert source.artifact is not None
        first = source.artifact.part("probes")
        if not isinstance(scorer, Ensemble):
            check_scores(scorer, pad, first, self.precision)
            return
        others = [folder / PROBES for folder in member_folders(source.artifact)[1:]]
        for member, file in zip(scorer, [first, *others], strict=True):
            check_scores(member, pad, file, self.precision)

    # ---------------------------------------------------------------- tokenizers

    def own_tokenizer(self, source: Source) -> PreTrainedTokenizerBase:
        """Load the tokenizer saved with a stage, or with a model or adapter from elsewhere (its base may hold it)."""
        if source.artifact is not None:
            folder = str(source.artifact.weights)
        else:
            folder = adapter_folders.tokenizer_folder(adapter_folders.fetched(source.name))
        return tokenizing.load_for(self.model, folder)

    def other_tokenizer(self, source: Source, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
        """Load the reward model's tokenizer if it, or its chat template, differs from the policy's; else None."""
        if source.artifact is not None:
            verify(source.artifact)
        own = self.own_tokenizer(source)
        same_template = tokenizing.template_fingerprint(own) == tokenizing.template_fingerprint(tokenizer)
        same = tokenizing.tokenizer_fingerprint(own) == tokenizing.tokenizer_fingerprint(tokenizer)
        return None if same and (same_template or source.artifact is None) else own


def load_named_model(
    loader: Loader, recipe: Recipe, policy_tokenizer: PreTrainedTokenizerBase | None, name: str
) -> LoadedRewardModel:
    """Load a further reward model, `org/model` or `org/model@LABEL`; a path is read from the recipe's folder."""
    path, label = path_and_label(name)
    plain = replace(loader, label=label, reads=None, aggregate="mean", variance_coefficient=1.0)
    source = resolve_source(model_at(path, Path(recipe.folder or ".")), "reward model")
    return plain.load_scoring_model(source, policy_tokenizer)


# ---------------------------------------------------------------- which folder


def _on_device(model: PreTrainedModel | Ensemble) -> Any:
    """Move a reward model to the device; an ensemble is loaded there."""
    return model if isinstance(model, Ensemble) else build.to_device(model)


def verify(artifact: Artifact) -> None:
    """Verify every file of the artifact against its hash, and report progress; raise HandoffError for a difference."""
    with Work(f"checking the files of {artifact.path}"):
        artifact.verify()


def member_folders(artifact: Artifact) -> list[Path]:
    """Return the adapters of a reward stage: its one adapter, or those of all members of its ensemble, in order."""
    first = [artifact.part("adapter")] if artifact.has("adapter") else []
    count = int(artifact.manifest.layout.get("members", 1))
    return [*first, *(artifact.part(f"member-{number}") for number in range(1, count))]


def shared_reward_adapters(base: Source, reward: Source | None) -> list[Path]:
    """Return the reward model's adapters if they were trained on the same base* that PPO starts from; else none."""
    if reward is None or reward.artifact is None or not reward.artifact.has("adapter"):
        return []
    artifact = reward.artifact
    verify(artifact)
    if not artifact.manifest.layout.get("head"):
        return []  # loading it as a reward model raises the error
    return member_folders(artifact) if base.fingerprint == artifact.parent("base").fingerprint else []


def critic_folder(source: Source) -> Path:
    """Return the folder of a ppo stage's critic, or of a critic that is named itself."""
    return Path(source.name) if source.artifact is None else source.artifact.part("critic")


def critic_adapter(source: Source) -> Path:
    """Return the folder of a critic that is an adapter with a head: a ppo stage's, or one that is named itself."""
    folder = critic_folder(source)
    if not (folder / adapter_folders.CONFIG).is_file():
        raise HandoffError(
            "the critic is a model of its own, not an adapter",
            where=str(folder),
            fix="set ppo.critic: model, or name a critic that was trained as an adapter or a head",
        )
    return folder


def recorded_base(source: Source, path: str, run: Path, stage: str) -> str:
    """Return the base of an adapter of `stage` as peft records it: relative inside the folder `run`.

    Such a name stays valid after a run is moved.
    """
    if source.artifact is None:
        return path
    # A policy that is an adapter has no model/: record the stage's folder.
    folder = source.artifact.part("model") if source.artifact.has("model") else source.artifact.path
    inside = relative_to_run(folder, run)
    up = "../" * (stage.count("/") + 2)  # from the adapter's folder in the stage's folder to the run's
    return inside if Path(inside).is_absolute() else f"{up}{inside}"


# ---------------------------------------------------------------- refusals


def _refuse_adapter(source: Source) -> None:
    """Raise HandoffError for a base that is an adapter: merging into quantized weights would round it away."""
    artifact = source.artifact
    folder = Path(source.name) if artifact is None else artifact.path
    is_adapter = adapter_folders.is_adapter(folder) if artifact is None else not artifact.has("model")
    if is_adapter:
        raise HandoffError(
            "the base is an adapter, which cannot be merged into quantized weights",
            where=str(folder),
            fix="merge it first (rlhfctl export) and name that folder, or take model.quantization out",
        )


def _require_same_ids(reward: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase, name: str) -> None:
    """Raise HandoffError unless reward model and policy turn text into the same ids."""
    if tokenizing.tokenizer_fingerprint(reward) == tokenizing.tokenizer_fingerprint(policy):
        return
    ids, policy_ids = reward.get_vocab(), policy.get_vocab()
    what = (
        f"{len(ids)} tokens against {len(policy_ids)}"
        if len(ids) != len(policy_ids)
        else f"{sum(number != policy_ids.get(token) for token, number in ids.items())} tokens have other ids"
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

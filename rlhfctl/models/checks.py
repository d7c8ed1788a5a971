"""Check models before training: can they be trained, can the reward be read, do prompts and responses fit.

    check_base, check_reward    read configurations and tokenizers: `validate --deep`, and `run` before its first stage
    check_loaded                runs the loaded model on a few tokens, for faults that no configuration shows

Reads model folders; writes nothing. Leaves out the checks of rows and tokenizer (data/preflight.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhfctl.data.encoding import Encoder
from rlhfctl.data.types import Prompt, PromptSplit, Rows
from rlhfctl.errors import HandoffError, Problem, RecipeError, RlhfctlError
from rlhfctl.models import adapter_folders, architecture, classifiers, language_model, loading, scoring, tokenizing
from rlhfctl.recipe.schema import Recipe

_CHECK_TOKENS = 8
_TOLERANCE, _LOW_PRECISION_TOLERANCE = 1e-4, 5e-2  # relative to the largest logit


def check_reward(
    recipe: Recipe, data: Mapping[str, Rows], stages: Collection[str], reward: str | None = None
) -> list[str]:
    """Check a reward model that no run made; raise the errors now that its stages would raise later.

    Returns sentences about texts that are longer than its context. `reward`: a reward model named by the command, which
    replaces the recipe's.
    """
    path = reward or (recipe.reward.model if recipe.reward is not None else None)
    judged = recipe.compare is not None and "compare" in stages and "reward_model" in recipe.compare.judges
    if path is None or not ("ppo" in stages or judged) or (Path(path) / "manifest.json").is_file():
        return []
    return _check_reward(recipe, path, data, by_ppo="ppo" in stages)


def check_base(recipe: Recipe, stages: Collection[str]) -> None:
    """Raise RlhfctlError, with the reason, if the stages cannot train the recipe's pretrained model."""
    section = recipe.model
    if section.path is None:
        return
    path = adapter_folders.fetched(section.path, section.revision)
    if adapter_folders.is_adapter(path):
        adapter_folders.require_policy_adapter(path)
    config = loading.load_config(section)
    architecture.require_causal(config, section.path, trust_remote_code=section.trust_remote_code)
    if recipe.ppo is not None and "ppo" in stages and recipe.ppo.engine == "rlhfctl":
        architecture.require_known_logits(config, section.path)


def check_loaded(model: PreTrainedModel, recipe: Recipe, name: str) -> None:
    """Raise RlhfctlError unless the model is causal and `engine: rlhfctl` computes the same logits.

    `name`: where the model is from, for the message.
    """
    count = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(_CHECK_TOKENS, device=model.device) * 3 + 2)[None] % count
    other = ids.clone()
    other[0, -1] = (int(other[0, -1]) + 1) % count
    with scoring.evaluating(model):
        first, second = (model(input_ids=row, use_cache=False).logits.float() for row in (ids, other))
    tolerance = _TOLERANCE if model.dtype.itemsize >= 4 else _LOW_PRECISION_TOLERANCE
    gap = float((first[:, :-1] - second[:, :-1]).abs().max())
    if not gap <= tolerance * float(first.abs().max()):
        raise RlhfctlError(
            f"{type(model).__name__} is no causal language model: the last token changes what is said before it",
            where=name,
            fix="name a causal language model (a decoder)",
        )
    if recipe.ppo is not None and recipe.ppo.engine == "rlhfctl":
        pad = -1 if model.config.pad_token_id is None else model.config.pad_token_id
        with scoring.evaluating(model):
            language_model.LanguageModel(model, pad).check_head(ids.tolist(), tolerance)


# ---------------------------------------------------------------- reward models that no run made


def _check_reward(recipe: Recipe, name: str, data: Mapping[str, Rows], *, by_ppo: bool) -> list[str]:
    """Check the reward model's labels, task and context; return sentences about texts that are too long for it.

    `name`: a folder or Hub id.
    """
    trust = recipe.model.trust_remote_code
    path = adapter_folders.fetched(name)
    label, reads = (recipe.reward.label, recipe.reward.reads) if recipe.reward is not None else (None, None)
    config = classifiers.config_of(path, trust_remote_code=trust)
    own = tokenizing.load_for(recipe.model, adapter_folders.tokenizer_folder(path))
    if classifiers.is_classifier(config):
        classifiers.label_index(config, label, name)
        form = classifiers.text_to_read(config, reads)
        limit = architecture.context_of(config, own)

        def length(prompt: Prompt) -> int:
            empty: Any = "" if isinstance(prompt, str) else [{"role": "assistant", "content": ""}]
            return len(classifiers.encoded(own, prompt, empty, form)["input_ids"])
    else:
        classifiers.refuse_options(label, reads, name)
        _require_head(config, path, name)
        limit, encoder = architecture.context_of(config), Encoder(own)

        def length(prompt: Prompt) -> int:
            return len(encoder.prompt(prompt))

    if limit is None or "prompts" not in data:
        return []
    new = _response_tokens(recipe, by_ppo=by_ppo)
    split = data["prompts"].split
    assert isinstance(split, PromptSplit)
    parts = (split.train, split.eval, split.test) if by_ppo else (split.test,)
    lengths = [length(row["prompt"]) + new for part in parts for row in part]
    return _about_context(lengths, new, limit, name, key="ppo.response_length" if by_ppo else "compare.max_new_tokens")


def _require_head(config: Any, path: str, name: str) -> None:
    saved = next(iter(config.architectures or []), "")
    if not saved.endswith("ForSequenceClassification") and not adapter_folders.is_adapter(path):
        raise HandoffError(
            f"the reward model is saved as {saved or config.model_type}, which has no head that gives a score",
            where=name,
            fix="name a sequence classifier with its head, or train one: a reward section without `model`",
        )


def _response_tokens(recipe: Recipe, *, by_ppo: bool) -> int:
    if by_ppo and recipe.ppo is not None:
        return recipe.ppo.response_length
    return (recipe.compare.max_new_tokens if recipe.compare is not None else None) or 0


def _about_context(lengths: list[int], new: int, limit: int, name: str, *, key: str) -> list[str]:
    if new >= limit:
        what = f"a response of {new} tokens is longer than the {limit} tokens that the reward model {name} reads"
        raise RecipeError([Problem(key, what, fix=f"lower it, below {limit}, or name a reward model that reads more")])
    long = [length for length in lengths if length > limit]
    if not long:
        return []
    return [
        f"the reward model {name} reads {limit} tokens: {len(long)} of {len(lengths)} prompts with a response of "
        f"{new} tokens are longer (longest: {max(long)}), and the beginning of these is cut. Give shorter prompts "
        "(data.max_prompt_length), lower the response's length or name a reward model that reads more"
    ]

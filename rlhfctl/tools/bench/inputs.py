"""Prepare the inputs of both engines: a model with planted response lengths, a reward model, and prompts."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.models import adapters, build, heads, loading, merging, tokenizing
from rlhfctl.recipe.schema import Lora, Ppo
from rlhfctl.tools.bench.workload import SEED, Workload

PROMPTS = 512
MEAN_SHARE = 30 / 64  # mean length of responses that end by themselves, as a share of response_length
_LEAD = 3  # tokens: the shortest length at which a response ends, if response_length allows
_MARGIN = 8.0  # nats: difference in log-probability between allowed and not allowed next tokens


def prepare(work: Workload, section: Ppo, folder: Path) -> list[str]:
    """Write the files that every worker loads: base/, reward/ (adapter), reward-model/ (the same, merged), job.json.

    Returns sentences about differences from the recipe.
    """
    notes: list[str] = []
    if work.model.init is not None:
        changes: dict[str, Any] = {"tie_word_embeddings": False}
        if work.model.init.tokens is None:
            names = [f"w{index} " for index in range(work.model.init.vocab_size - 2)]
            changes["tokens"] = names
        if work.model.init.tie_word_embeddings:
            notes.append("input and output embeddings are separate here, so that lengths can be planted")
        model = work.model.model_copy(
            update={"init": work.model.init.model_copy(update=changes), "chat_template": None}
        )
    else:
        model = work.model
        if work.ends:
            notes.append("the weights are pretrained: responses end where the model ends them")
    if work.model.quantization is not None:
        notes.append("the base is not quantized here: TRL's side could not have it so")
    prepared = tokenizing.tokenizer_from_recipe(model)
    tokenizer = prepared.tokenizer
    base, _ = build.base_from_recipe(model, prepared, seed=SEED, dtype=loading.torch_dtype(model.dtype))
    prompt_ids = [index for index in range(len(tokenizer)) if index not in tokenizer.all_special_ids]
    if work.model.init is not None and work.ends:
        prompt_ids = plant_lengths(base, tokenizer, section.response_length)
    build.save_model(base, tokenizer, folder / "base")

    shortest, longest = work.prompts
    context = getattr(base.config, "max_position_embeddings", longest + section.response_length)
    longest = min(longest, context - section.response_length)
    if longest < 1:
        raise RlhfctlError("responses fill the whole context", where="ppo.response_length", fix="lower it")
    draw = random.Random(SEED)
    lengths = [draw.randint(min(shortest, longest), longest) for _ in range(max(PROMPTS, section.batch_size))]
    prompts = [draw.choices(prompt_ids, k=length) for length in lengths]

    _save_reward(base, tokenizer, section.lora or Lora(), folder)
    fs.write_json(folder / "job.json", {"ppo": section.model_dump(mode="json"), "prompts": prompts})
    return notes


def _save_reward(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lora: Lora, folder: Path) -> None:
    """Save a random reward model twice: as an adapter with a head, and merged into a separate model."""
    adapted = adapters.add_lora(copy.deepcopy(base), lora, TaskType.CAUSAL_LM, seed=SEED + 1)
    generator = torch.Generator().manual_seed(SEED + 1)
    head = heads.new_head(adapted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if adapters.is_output_factor(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * head.weight.shape[1] ** -0.5)
    heads.save_scorer_adapter(adapted, "default", head, folder / "reward", str(folder / "base"))
    scorer = heads.scorer_on(merging.merged(adapted), seed=SEED)
    scorer.score.load_state_dict(head.state_dict())
    build.save_model(scorer, tokenizer, folder / "reward-model")


def plant_lengths(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, response_length: int) -> list[int]:
    """Change new weights so that responses end at varied lengths, without training and equally on every machine.

    Tokens are divided into classes: prompt tokens, up to three classes for the first tokens of a response, and one
    class for its rest. A large vector for the class is added to each token's embedding, and it survives all blocks. The
    output head reads it and makes tokens of the next class likely; in the rest, the end token has a constant
    probability. The lengths are therefore 3 + geometric, cut at `response_length`. Needs separate input and output
    embeddings. Returns the ids that prompts are made of.
    """
    lead = min(_LEAD, response_length // 8)
    special = set(tokenizer.all_special_ids)
    ids = [index for index in range(len(tokenizer)) if index not in special]
    classes = [ids[first :: lead + 2] for first in range(lead + 2)]  # prompts, lead..., rest
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    width = inputs.shape[1]
    # Orthogonal directions whose entries add up to 0: the centring of a layer norm does not change them.
    noise = torch.randn(width, len(classes), generator=torch.Generator().manual_seed(SEED))
    directions = torch.linalg.qr(noise - noise.mean(0)).Q.T.to(inputs)
    read = _MARGIN * width**-0.5  # after the last norm, the length of a state vector is about sqrt(width)
    end = 1 / max(2.0, response_length * MEAN_SHARE)
    rest = len(classes) - 1
    odds = torch.tensor(len(classes[rest]) * end / (1 - end)).log().item()
    with torch.no_grad():
        outputs[tokenizer.eos_token_id] = 0
        for number, members in enumerate(classes):
            inputs[members] += width / 4 * directions[number]
            following = min(number + 1, rest)
            outputs[classes[following]] += read * directions[number]
        for number in range(max(0, rest - 1), rest + 1):
            outputs[tokenizer.eos_token_id] += (read + odds * width**-0.5) * directions[number]
    return classes[0]

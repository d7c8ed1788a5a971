"""Save a trained policy, with recorded outputs for later loads: for the stages that make one (ppo, dpo).

Writes adapter/ or model/, and probes.json: log-probabilities of a few prompts, which the comparison, `export` and
`chat` compute again after they load the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.models import adapters, build, scoring, special_tokens, tokenizing
from rlhfctl.stages import loader, probes
from rlhfctl.stages.context import Context


def recorded_base(base: loader.Base, ctx: Context) -> str:
    """Return base* as the policy's adapter records it."""
    return loader.recorded_base(ctx.parents["base"], base.path, ctx.run.root, ctx.name)


def publish_policy(
    policy: Any, tokenizer: PreTrainedTokenizerBase, base: loader.Base, rows: Sequence[list[int]], ctx: Context
) -> dict[str, Any]:
    """Save the policy and its outputs for `rows` of prompt ids; return the layout of these parts."""
    rows = [row for row in rows if len(row) > 1] or [[tokenizer.eos_token_id] * 2]
    probes.write_probes(ctx.folder, rows, scoring.sequence_logprobs(policy, rows, tokenizer.pad_token_id), "logprobs")
    special_tokens.set_token_ids(policy, tokenizer)
    if isinstance(policy, PeftModel):
        name = "adapter"
        with fs.publish_folder(ctx.folder / name) as folder:
            adapters.save_adapter(policy, folder, base=recorded_base(base, ctx), head=False)
            tokenizing.save_tokenizer(tokenizer, folder)
    else:
        name = "model"
        with fs.publish_folder(ctx.folder / name) as folder:
            build.save_model(policy, tokenizer, folder)
    return {name: name, "probes": probes.PROBES}

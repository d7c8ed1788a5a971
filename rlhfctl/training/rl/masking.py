"""Hold the masking policy of NLPO: an older copy of the policy, which says what the policy may sample.

With LoRA it is one more adapter on the policy's model, otherwise a copy of the model. It is never trained: every
`ppo.nlpo.target_update_iterations` updates it becomes a copy of the policy again. Its weights are part of checkpoints.
How it restricts sampling is in generation/masking.py. Source: Ramamurthy et al. 2022 (arXiv 2210.01241), section 4.
"""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from rlhfctl.models import adapters, build
from rlhfctl.models.adapters import MASKING, POLICY, is_adapter_parameter
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Lora


def make_masking(policy: LanguageModel, lora: Lora | None) -> LanguageModel:
    """Make a masking policy that equals `policy`; `lora`: how the policy's adapter is made, if it has one."""
    if lora is None:
        return LanguageModel(build.copy_frozen(policy.model), policy.pad_token_id)
    adapters.add_adapter(policy.model, MASKING, lora.model_copy(update={"lora_dropout": 0.0}), seed=0)
    adapters.copy_adapter(policy.model, POLICY, MASKING)
    return policy.with_adapter(MASKING)


def sync(masking: LanguageModel, policy: LanguageModel) -> None:
    """Make the masking policy equal to the policy."""
    if isinstance(policy.model, PeftModel):
        adapters.copy_adapter(policy.model, POLICY, MASKING)
    else:
        masking.model.load_state_dict(policy.model.state_dict())


def weights_of(masking: LanguageModel | None) -> dict[str, nn.Parameter]:
    """Collect the masking policy's own weights by name; none without one."""
    if masking is None:
        return {}
    named = dict(masking.model.named_parameters())
    if isinstance(masking.model, PeftModel):
        named = {name: weight for name, weight in named.items() if is_adapter_parameter(name, MASKING)}
    return {f"masking.{name}": weight for name, weight in named.items()}

"""Frozen layers below the first adapter: computed once per sequence, with the states of the whole trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TaskType
from small_loops import SECTION, gap, nothing
from small_roles import PROMPTS, base, stir_adapters
from torch import Tensor

from rlhfctl.errors import RlhfctlError
from rlhfctl.models import heads, lower_trunk
from rlhfctl.models.adapters import CRITIC, POLICY, REWARD, add_adapter, add_lora
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.lower_trunk import keeping, shared_below
from rlhfctl.models.packing import LOWER, Sequences, hidden_states, packed
from rlhfctl.recipe.schema import Lora, Ppo
from rlhfctl.training.rl.collect import PromptData
from rlhfctl.training.rl.loop import PpoLoop, Run
from rlhfctl.training.rl.roles import Critic, Roles

LAYERS, TOP = 4, [2, 3]
RESPONSES = [[4, 5], [6, 7, 8], [2], [9], [3, 3, 3], [2, 2], [5], [6, 7]]


def world(architecture: str = "llama", reward_layers: list[int] | None = TOP, dtype: Any = torch.float32) -> Any:
    """(tokenizer, roles with adapters on the two upper layers, a reward model with adapters on `reward_layers`)."""
    tokenizer, model = base(architecture, dtype=dtype, num_hidden_layers=LAYERS)
    top = Lora(r=4, lora_alpha=8, layers_to_transform=TOP)
    shared = add_lora(model, top, TaskType.CAUSAL_LM, seed=0)
    add_adapter(shared, CRITIC, top, seed=1)
    add_adapter(shared, REWARD, Lora(r=4, lora_alpha=8, layers_to_transform=reward_layers), seed=2)
    stir_adapters(shared)
    shared.to(dtype)
    pad = tokenizer.pad_token_id
    policy = LanguageModel(shared, pad, POLICY)
    critic = Critic(AdapterScorer(policy.with_adapter(CRITIC), heads.new_head(shared)))
    roles = Roles(policy, policy.with_adapter(None), critic)
    return tokenizer, roles, AdapterScorer(policy.with_adapter(REWARD), heads.new_head(shared))


def counted(trunk: Any) -> list[int]:
    """A list that grows by the number of tokens whenever the first layer runs. Identities do not count."""
    tokens: list[int] = []
    first = lower_trunk.decoder_layers(trunk)[0]
    part = next(module for module in first.modules() if not list(module.children()) and list(module.parameters()))
    part.register_forward_pre_hook(lambda _, given: tokens.append(given[0].shape[-2]))
    return tokens


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_every_role_gets_the_states_of_the_whole_trunk(architecture: str) -> None:
    _, roles, scorer = world(architecture)
    sequences = Sequences.of(PROMPTS, RESPONSES, "cpu")
    part = Sequences.of(PROMPTS[2:5], RESPONSES[2:5], "cpu")  # other rows beside it
    with packed(roles.policy.trunk) as is_packed, shared_below(roles.policy.trunk, POLICY) as below:
        assert is_packed and below == 2
        tokens = counted(roles.policy.trunk)

        def every(given: Sequences) -> list[Tensor]:
            with torch.no_grad():
                trunks = [roles.policy.states, roles.reference.states, roles.critic.states]
                return [states(given) for states in trunks] + [hidden_states(scorer.backbone, given)]

        expected, parts = every(sequences), every(part)
        assert sum(tokens) == 4 * (len(sequences.ids) + len(part.ids))
        tokens.clear()
        with keeping(roles.trunks()):
            kept = every(sequences)
            for found, whole in zip(kept, expected, strict=True):
                assert torch.equal(found, whole)  # bit for bit: the same rows together
            for found, whole in zip(every(part), parts, strict=True):
                assert torch.allclose(found, whole, atol=1e-4)
        assert sum(tokens) == len(sequences.ids)
        assert not any(torch.equal(kept[0], other) for other in kept[1:])  # the adapters do something
        tokens.clear()
        every(part)
        assert sum(tokens) == 4 * len(part.ids)  # nothing is kept outside the block
    assert LOWER not in vars(roles.policy.trunk)


def test_a_role_whose_adapter_reaches_lower_runs_the_whole_trunk() -> None:
    _, roles, scorer = world(reward_layers=[0, 3])
    sequences = Sequences.of(PROMPTS, RESPONSES, "cpu")
    with packed(roles.policy.trunk), shared_below(roles.policy.trunk, POLICY) as below, torch.no_grad():
        assert below == 2
        expected = [roles.policy.states(sequences), hidden_states(scorer.backbone, sequences)]
        tokens = counted(roles.policy.trunk)
        with keeping(roles.trunks()):
            found = [roles.policy.states(sequences), hidden_states(scorer.backbone, sequences)]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert sum(tokens) == 2 * len(sequences.ids)


def test_nothing_is_shared_where_the_first_layer_has_an_adapter_or_rows_are_not_packed() -> None:
    _, roles, _ = world()
    with shared_below(roles.policy.trunk, POLICY) as below:
        assert below == 0  # not packed
    with packed(roles.policy.trunk), shared_below(roles.policy.trunk, "another") as below:
        assert below == 0


@pytest.mark.parametrize("recomputing", [False, True])
def test_an_update_is_the_same_with_the_lower_layers_computed_once(
    recomputing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three updates of policy and critic, two epochs and two minibatches each, in float64."""

    def trained(folder: str) -> tuple[dict[str, Tensor], int]:
        tokenizer, roles, _ = world(dtype=torch.float64)
        tokens = counted(roles.policy.trunk)
        more = {"num_mini_batches": 2, "gradient_checkpointing": recomputing, "total_episodes": 24}
        data = PromptData(tokenizer, [{"prompt": ""} for _ in PROMPTS], PROMPTS)
        PpoLoop(Ppo(**(SECTION | more)), roles, nothing, data, Run(seed=5, work=tmp_path / folder / "work")).train()
        return roles.state(), sum(tokens)

    once, fewer = trained("once")
    monkeypatch.setattr(lower_trunk.LowerTrunk, "serves", lambda _: False)
    plain, tokens = trained("plain")
    assert gap(once, plain) < 1e-9
    assert fewer < 0.5 * tokens


def test_layers_that_the_model_does_not_have_are_refused() -> None:
    _, model = base(num_hidden_layers=2)
    with pytest.raises(RlhfctlError, match="there is no layer 2: this model has 2"):
        add_lora(model, Lora(layers_to_transform=[1, 2]), TaskType.CAUSAL_LM, seed=0)

"""Roles on one shared model: each acts and learns as it would on a model of its own, and the base stays still.

Policy, critic and reward model as adapters against models that have one adapter only; the pieces of a language model
(trunk, head, log-probabilities in parts) against the model's own forward; rows alone against rows in a batch.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, TaskType, get_peft_model
from small_roles import LENGTH, PROMPTS, ROLE_LORA, ROWS, alone_merged, save_reward, shared_roles, stir_adapters
from small_roles import base as small_base
from torch import Tensor, nn

from rlhfctl.errors import EngineError, HandoffError
from rlhfctl.models import adapters, heads, special_tokens, tensors
from rlhfctl.models.adapters import (
    POLICY,
    is_adapter_parameter,
    lora_config,
)
from rlhfctl.models.fused import fused
from rlhfctl.models.packing import Sequences, packed
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards.episode import Episode
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.collect import PromptData, collect
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.loop import PpoLoop, Run
from rlhfctl.training.rl.minibatch import gradient_step
from rlhfctl.training.rl.roles import CRITIC, Roles, build_roles


def counted(episodes: Sequence[Episode]) -> list[float]:
    return [float(sum(episode.response_ids)) / 10 for episode in episodes]


def loop_of(everyone: Roles, tokenizer: Any, work: Path, **changes: Any) -> PpoLoop:
    values = {
        "lora": ROLE_LORA,
        "total_episodes": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "response_length": LENGTH,
        "temperature": 1.0,
        "trace_every": 0,
    }
    section = Ppo(**values | changes)
    rows = [{"prompt": ""}] * len(PROMPTS)
    return PpoLoop(section, everyone, counted, PromptData(tokenizer, rows, PROMPTS), Run(seed=0, work=work / "work"))


def batch_before_learning(loop: PpoLoop) -> Experience:
    """A batch whose values are there, and no part of the first step is taken yet."""
    batch = collect(loop.collector, 1)
    batch.value_step = None
    return batch


class Still:
    """Stands for an optimizer, and leaves the gradients where they are."""

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...


# ---------------------------------------------------------------- gradients on the shared model


def alone(untouched: Any, peft_model: PeftModel, adapter: str) -> PeftModel:
    """A plain peft model of a copy of the base that has this one adapter, with the same weights."""
    twin = copy.deepcopy(untouched)
    single = get_peft_model(twin, lora_config(ROLE_LORA, TaskType.CAUSAL_LM), adapter_name=adapter)
    theirs = dict(peft_model.named_parameters())
    with torch.no_grad():
        for name, parameter in single.named_parameters():
            if ".lora_" in name:
                parameter.copy_(theirs[name])
    return single.eval()


def table(loop: PpoLoop, batch: Experience, states: Tensor, extra: int) -> list[Tensor]:
    """For each row its numbers in `states` (B, L) from the state before the response on."""
    rows = []
    for row, (prompt, response) in enumerate(zip(batch.prompts, batch.responses, strict=True)):
        count = len(response.ids) + (extra if len(response.ids) < LENGTH else 0)
        rows.append(states[row, len(prompt) - 1 : len(prompt) - 1 + count])
    return rows


def padded(rows: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack([torch.cat([row, row.new_zeros(like.shape[1] - len(row))]) for row in rows])


def gradients(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name and parameter.grad is not None
    }


def expected_gradients(
    loop: PpoLoop, batch: Experience, untouched: Any, head: nn.Linear
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Those of policy, critic and head, each from a model of its own and the losses of ppo_math."""
    peft_model, pad, section = loop.roles.policy.model, loop.roles.policy.pad_token_id, loop.section
    width = batch.response_mask.shape[1]
    ids, mask = tensors.pad_right(
        [[*p, *r.ids] for p, r in zip(batch.prompts, batch.responses, strict=True)], pad, torch.device("cpu")
    )
    policy = alone(untouched, peft_model, POLICY)
    logits = policy(input_ids=ids, attention_mask=mask).logits.clone()
    logits[..., pad] = special_tokens.PAD_LOGIT
    logp = torch.log_softmax(logits / section.temperature, -1)
    chosen = logp[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    logprobs = padded(table(loop, batch, chosen, 0), batch.response_mask)
    terms = ppo_math.policy_loss(
        logprobs, batch.logprobs, batch.advantages, batch.response_mask, section.cliprange, batch.response_mask.sum()
    )
    terms.loss.backward()

    critic = alone(untouched, peft_model, CRITIC)
    own_head = copy.deepcopy(head)
    own_head.weight.grad = None
    hidden = critic.get_base_model().model(input_ids=ids, attention_mask=mask).last_hidden_state
    values = padded(table(loop, batch, own_head(hidden).squeeze(-1), 1), batch.response_mask)
    errors = ppo_math.value_loss(
        values, batch.values, batch.returns, batch.value_mask, section.cliprange_value, batch.value_mask.sum()
    )
    (section.vf_coef * errors.loss).backward()
    assert width == logprobs.shape[1] == values.shape[1]
    assert own_head.weight.grad is not None
    return gradients(policy, POLICY), gradients(critic, CRITIC), own_head.weight.grad


@pytest.mark.parametrize("fusing", [False, True])
@pytest.mark.parametrize("recomputing", [False, True])
def test_each_adapter_learns_what_it_would_learn_on_a_model_of_its_own(
    recomputing: bool, fusing: bool, tmp_path: Path
) -> None:
    tokenizer, everyone, untouched = shared_roles(torch.float64)
    loop = loop_of(everyone, tokenizer, tmp_path, max_grad_norm=None)
    batch = batch_before_learning(loop)
    stir_adapters(everyone.policy.model, by=0.02, seed=6)  # ratios away from 1, values away from the old
    head = everyone.critic.scorer.score
    policy, critic, of_head = expected_gradients(loop, batch, untouched, head)
    recomputed: list[int] = []
    layer = everyone.policy.trunk.layers[0]
    watching = layer.mlp.register_forward_pre_hook(lambda *_: recomputed.append(1))
    with contextlib.ExitStack() as inside:
        if fusing:
            inside.enter_context(fused(everyone.policy.model))
            assert inside.enter_context(packed(everyone.policy.trunk))
        inside.enter_context(everyone.recomputing(recomputing))
        recomputed.clear()
        learner: Any = dataclasses.replace(loop.learner, optimizer=Still())
        gradient_step(learner, batch, list(range(8)), 0, loop.algorithm.policy_loss)
    watching.remove()
    assert len(recomputed) == (4 if recomputing else 2)  # policy and critic, each a second time in its backward
    shared = everyone.policy.model
    for adapter, expected in ((POLICY, policy), (CRITIC, critic)):
        given = gradients(shared, adapter)
        assert given.keys() == expected.keys() and len(given) == 2 * 7 * 2
        for name, gradient in expected.items():
            assert float(gradient.abs().max()) > 1e-6, name
            torch.testing.assert_close(given[name], gradient, atol=1e-6, rtol=1e-6)
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad, of_head, atol=1e-6, rtol=1e-6)
    assert all(p.grad is None for n, p in shared.named_parameters() if ".lora_" not in n)


@pytest.mark.parametrize("recomputing", [False, True])
def test_one_backward_after_a_switch_is_wrong_only_where_layers_are_recomputed(recomputing: bool) -> None:
    """Why the policy's backward comes before the critic's forward."""
    _, everyone, _ = shared_roles(torch.float64)
    everyone.prepare()
    ids, _ = tensors.pad_right(ROWS, everyone.policy.pad_token_id, torch.device("cpu"))

    sequences = Sequences.of(ROWS, [[] for _ in ROWS], torch.device("cpu"))

    def losses() -> tuple[Tensor, Callable[[], Tensor]]:
        of_policy = everyone.policy.logits(everyone.policy.hidden(ids)).log_softmax(-1)[..., 3].mean()
        return of_policy, lambda: everyone.critic.values(everyone.critic.states(sequences)).square().mean()

    of_policy, of_critic = losses()
    of_policy.backward()
    right = gradients(everyone.policy.model, POLICY)
    assert len(right) == 28
    everyone.policy.model.zero_grad()
    with everyone.recomputing(recomputing):
        of_policy, of_critic = losses()
        (of_policy + of_critic()).backward()
    given = gradients(everyone.policy.model, POLICY)
    none = torch.zeros(1, dtype=torch.float64)
    gaps = [float((given.get(name, none) - right[name]).abs().max() / right[name].abs().max()) for name in right]
    assert (max(gaps) > 0.1) if recomputing else (max(gaps) < 1e-12)


# ---------------------------------------------------------------- what acts, and what is trained


def test_the_reference_is_the_base_exactly_however_the_policy_moves(tmp_path: Path) -> None:
    tokenizer, everyone, untouched = shared_roles()
    loop = loop_of(everyone, tokenizer, tmp_path, num_ppo_epochs=2, critic="adapter")
    model = everyone.policy.model
    ids, _ = tensors.pad_right(ROWS, tokenizer.pad_token_id, torch.device("cpu"))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = untouched.model(input_ids=ids).last_hidden_state
        assert torch.equal(everyone.reference.hidden(ids), expected)
        before = everyone.policy.hidden(ids)
        assert not torch.allclose(before, expected, atol=1e-2)
    loop.update(1)
    with torch.no_grad():
        assert torch.equal(everyone.reference.hidden(ids), expected)
        assert not torch.allclose(everyone.policy.hidden(ids), before, atol=1e-3)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    low_rank = {name for name in start if is_adapter_parameter(name)}
    assert moved == low_rank and any(f".{CRITIC}." in name for name in moved)
    weights = untouched.state_dict()
    plain = {name.replace("base_model.model.", "").replace(".base_layer", ""): name for name in start}
    assert all(torch.equal(model.state_dict()[plain[name]], value) for name, value in weights.items())


def test_adapters_and_head_are_trained_and_nothing_else_whichever_role_acts(tmp_path: Path) -> None:
    tokenizer, everyone, untouched = shared_roles()
    model = everyone.policy.model
    theirs = tmp_path / "reward"
    save_reward(untouched, tokenizer, theirs)
    heads.load_scorer_adapter(model, adapters.REWARD, theirs)
    reward = everyone.policy.with_adapter(adapters.REWARD)
    expected = {
        f"policy.base_model.model.model.layers.{layer}.{place}.lora_{matrix}.{adapter}.weight"
        for layer in range(2)
        for place in (
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
        for matrix in "AB"
        for adapter in (POLICY, CRITIC)
    } | {"critic.score.weight"}
    trained = everyone.prepare()
    assert set(trained) == set(everyone.trainable()) == expected
    wanted = {id(parameter) for parameter in trained.values()}
    for role in (everyone.critic.scorer.backbone.shared, everyone.reference, reward, everyone.policy):
        role.activate()
        required = {
            id(parameter)
            for module in everyone.modules()
            for parameter in module.parameters()
            if parameter.requires_grad
        }
        assert required == wanted
        with torch.no_grad():
            state = role.trunk(input_ids=torch.tensor([[2, 3, 4]])).last_hidden_state
        merged = copy.deepcopy(untouched) if role.adapter is None else alone_merged(untouched, model, role.adapter)
        with torch.no_grad():
            torch.testing.assert_close(state, merged.model(input_ids=torch.tensor([[2, 3, 4]])).last_hidden_state)


def test_a_copy_of_what_is_trained_goes_back_in_place() -> None:
    _, everyone, _ = shared_roles()
    kept = everyone.state()
    stir_adapters(everyone.policy.model, seed=9)
    assert any(not torch.equal(kept[name], value) for name, value in everyone.state().items())
    everyone.load_state(kept)
    assert all(torch.equal(kept[name], value) for name, value in everyone.state().items())
    with pytest.raises(HandoffError, match="other roles"):
        everyone.load_state({name: value for name, value in kept.items() if CRITIC not in name})


# ---------------------------------------------------------------- scorers


def test_roles_on_one_model_share_what_is_trained() -> None:
    """Whoever acted last, policy and critic are trained; the switch is no attribute of the model."""
    _, everyone, _ = shared_roles()
    trained = everyone.prepare()
    for role in (everyone.reference, everyone.critic.scorer.backbone.shared, everyone.policy.with_adapter(None)):
        role.activate()
        assert all(parameter.requires_grad for parameter in trained.values())
    assert not [name for name in vars(everyone.policy.model) if "switch" in name]


@pytest.mark.parametrize(
    ("scorer", "own_tokenizer", "has_reward", "why"),
    [(None, None, True, "a classifier"), (None, None, False, "no model"), (object(), object(), True, "tokenizer")],
)
def test_a_critic_on_the_reward_model_needs_states_at_the_policys_tokens(
    scorer: Any, own_tokenizer: Any, has_reward: bool, why: str
) -> None:
    _, model = small_base()
    models: Any = SimpleNamespace(
        shared_reward_adapters=lambda: [], has_reward=has_reward, start_model=lambda: None,
        classifier=lambda: object() if has_reward and scorer is None else None,
        reward_model=lambda: (scorer, own_tokenizer),
    )  # fmt: skip
    with pytest.raises(EngineError, match=f"critic: reward reads .* but the reward is .*{why}"):
        build_roles(Ppo(critic="reward"), model, 1, models, seed=0)

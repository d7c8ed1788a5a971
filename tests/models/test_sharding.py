"""Weights that are divided over processes: the same training, less memory in each, and plain models afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_loops import after, in_processes
from small_loops import PROMPTS, make_roles, trained, untimed
from torch import distributed as dist
from torch import nn
from transformers import AutoModelForCausalLM

from rlhfctl.errors import EngineError
from rlhfctl.models import build, scoring, sharding
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.learn import build_optimizer

UNEVEN = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 7, "local_rollout_forward_batch_size": 1}
LOOPS: dict[str, dict[str, Any]] = {
    "adapter": {"kind": "adapter", "weight_decay": 0.01},
    "uneven": {"kind": "adapter", "num_ppo_epochs": 1} | UNEVEN,  # shares of 3 and 4 episodes, one per forward
    "head": {"kind": "head", "num_mini_batches": 2, "entropy_coef": 0.01, "gradient_checkpointing": True},
    "model": {"kind": "model", "max_grad_norm": 0.1},
    "reward": {"kind": "reward", "num_mini_batches": 2},
    "upper layer": {"kind": "adapter", "layers": [1]},
    "whole weights": {"kind": "model", "lora": False, "weight_decay": 0.01} | UNEVEN,
    "a2c": {"kind": "adapter", "algorithm": "a2c"},
    "reinforce": {"kind": None, "algorithm": "reinforce", "kl_coef": 0.3} | UNEVEN,
    "rloo": {"kind": None, "algorithm": "rloo", "num_generations": 4, "kl_coef": 0.3},
    "grpo": {"kind": None, "algorithm": "grpo", "num_generations": 2, "num_mini_batches": 2, "kl_coef": 0.3},
    "whole weights, details": {
        "kind": "model",
        "lora": False,
        "kl_estimator": "exact",
        "ema_decay": 0.8,
        "ptx": {"coef": 1.0, "ratio": 1.0},
        "texts": [{"ids": [2, 3, 4, 5], "start": 1}, {"ids": [6, 7, 8], "start": 2}, {"ids": [5, 5, 9, 2], "start": 1}],
    },
    "whole weights, head": {"kind": "head", "lora": False, "entropy_coef": 0.01},
}


@pytest.mark.ci
def test_two_processes_with_divided_weights_train_as_one(tmp_path: Path) -> None:
    """Metrics of three updates within 1e-4 of one process, the same episodes; a plain model is left."""
    common = {"updates": 3, "wide": True, "learning_rate": 1e-3}
    settings = {name: options | common for name, options in LOOPS.items()}
    found = in_processes(2, tmp_path / "two", settings)
    for name, options in settings.items():
        one, two = trained(tmp_path / "one" / name, **options), found[name]
        for mine, its in zip(untimed(one.history), two["history"], strict=True):
            assert mine == pytest.approx(its, abs=1e-4), name
        assert [[list(response.ids) for response in batch.responses] for batch in one.batches] == two["ids"], name
        for key, value in one.roles.state().items():
            assert torch.allclose(value, torch.tensor(two["state"][key]), atol=1e-4), (name, key)
        assert max(share for shares in two["shares"] for share in shares) <= 0.6 and two["whole"] == 1.0, name
        for row, expected in zip(two["logprobs"], after(one), strict=True):
            assert row == pytest.approx(expected, abs=1e-4), name


@pytest.mark.ci
def test_three_processes_and_a_checkpoint_of_one_that_two_go_on_from(tmp_path: Path) -> None:
    options = {"kind": "model", "lora": False, "wide": True, "checkpoint_steps": 1, "learning_rate": 1e-3}
    options |= {"lr_scheduler_type": "constant"}
    whole = trained(tmp_path / "whole", updates=3, **options)
    trained(tmp_path / "two" / "goes on", updates=2, **options)
    three = {"three": options | {"updates": 3} | UNEVEN}
    found = in_processes(2, tmp_path / "two", {"goes on": options | {"updates": 3}})
    assert len(found["goes on"]["ids"]) == 1  # one update was left
    assert found["goes on"]["history"][-1] == pytest.approx(untimed(whole.history)[-1], abs=1e-4)
    one = trained(tmp_path / "one", **three["three"])
    history = in_processes(3, tmp_path / "three", three)["three"]["history"]
    for mine, its in zip(untimed(one.history), history, strict=True):
        assert mine == pytest.approx(its, abs=1e-4)


# ---------------------------------------------------------------- a group of one, in this process


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of processes that this one alone has joined."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_divided_model_gives_the_same_numbers_and_is_plain_again_afterwards(group: None, tmp_path: Path) -> None:
    tokenizer, roles = make_roles("model", lora=False)
    model, pad = roles.policy.model, roles.policy.pad_token_id
    rows = [row for row in PROMPTS if len(row) > 1]
    before, weights = scoring.sequence_logprobs(model, rows, pad), dict(model.state_dict())
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    roles.prepare()
    sharding.shard([model])
    sharding.shard([model])  # a second time changes nothing
    assert sharding.is_sharded(model) and scoring.sequence_logprobs(model, rows, pad) == before
    saved = sharding.weights_to_save(model)
    assert saved is not None and saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in saved)
    build.save_model(model, tokenizer, tmp_path / "model", saved)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert scoring.sequence_logprobs(again, rows, pad) == before

    sharding.reunite([model])
    assert not sharding.is_sharded(model) and sharding.weights_to_save(model) is None
    assert type(model.model).__name__ == "LlamaModel" and all(type(p) is nn.Parameter for p in model.parameters())
    assert hooks == sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    assert scoring.sequence_logprobs(model, rows, pad) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_what_is_loaded_reaches_embeddings_that_a_forward_has_left_gathered(group: None) -> None:
    _, roles = make_roles("head", lora=False)
    model, rows = roles.policy.model, [row for row in PROMPTS if len(row) > 1]
    roles.prepare()
    sharding.shard(roles.modules())
    scoring.sequence_logprobs(model, rows, 1)
    assert not sharding.is_divided(model.lm_head.weight)  # torch leaves it gathered
    doubled = {name: 2 * value for name, value in roles.state().items()}
    assert all(map(sharding.is_divided, (model.lm_head.weight, roles.trainable()["policy.lm_head.weight"])))
    scoring.sequence_logprobs(model, rows, 1)
    roles.load_state(doubled)
    scoring.sequence_logprobs(model, rows, 1)
    sharding.reunite(roles.modules())
    assert all(torch.equal(value, doubled[name]) for name, value in roles.state().items())


def test_the_state_of_an_optimizer_is_gathered_and_divided_again(group: None) -> None:
    _, roles = make_roles("head", lora=False)
    roles.prepare()
    sharding.shard(roles.modules())
    section = Ppo(engine="rlhfctl", weight_decay=0.1)
    optimizer = build_optimizer(section, roles.trainable())
    roles.policy.logits(roles.policy.hidden(torch.tensor([[2, 3]]))).sum().backward()
    optimizer.step()
    state = sharding.whole(optimizer.state_dict())
    assert not any(map(sharding.is_divided, state["state"][0].values()))
    state["param_groups"][0]["fused"] = True  # as a process alone saves it
    again = build_optimizer(section, roles.trainable())
    sharding.load_optimizer(again, state)
    assert not again.param_groups[0]["fused"] and again.param_groups[0]["weight_decay"] == 0.1
    for parameter, kept in optimizer.state.items():
        loaded = again.state[parameter]["exp_avg"]
        assert type(loaded) is type(kept["exp_avg"]) and torch.equal(*map(sharding.whole, (loaded, kept["exp_avg"])))
        assert sharding.part_here(loaded).untyped_storage().nbytes() == sharding.part_here(loaded).nbytes


def test_tied_embeddings_are_divided_once(group: None) -> None:
    _, roles = make_roles("head", tied=True)
    base = roles.policy.model.get_base_model()
    roles.prepare()
    before = roles.policy.hidden(torch.tensor([[2, 3]]))
    sharding.shard(roles.modules())
    assert base.lm_head.weight is base.model.embed_tokens.weight and sharding.is_divided(base.lm_head.weight)
    hidden = roles.policy.hidden(torch.tensor([[2, 3]]))
    assert torch.equal(hidden, before) and roles.policy.logits(hidden).shape[-1] == roles.policy.vocabulary
    sharding.reunite(roles.modules())
    assert base.lm_head.weight is base.model.embed_tokens.weight and type(base.lm_head.weight) is nn.Parameter


def test_a_model_without_layers_is_refused() -> None:
    class Flat(nn.Module):
        base_model_prefix = "trunk"

        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(2, 2)

    with pytest.raises(EngineError, match="the architecture Linear has no layers that can be divided") as caught:
        sharding.shard([Flat()])
    assert caught.value.where == "launch.shard"


def test_nothing_is_asked_of_whole_models() -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    expected = nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None])
    assert sharding.clip_gradients(list(model.parameters()), 1.0) == expected
    assert sharding.share_here([model]) == 1.0 and sharding.weights_to_save(model) is None
    with Processes.here().in_step(), ALONE.in_step():
        assert sharding.whole({"a": [model.weight]})["a"][0] is model.weight

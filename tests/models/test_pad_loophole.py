"""A policy that can sample pad cheats TRL's PPOTrainer, and cannot cheat ours.

The reward punishes each token that it can see. Pads are cut out of what is scored, so with TRL and no `mask_pad` the
policy learns to pad where two tokens are due. This is one chosen seed and learning rate: TRL masks the pad itself out
of the loss, so its probability rises only as other tokens fall, and at other settings it may not rise so far. Our
engine gives pad no probability at all: there responses stay whole.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhfctl.models import build, heads, tokenizing
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Init, Ppo
from rlhfctl.rewards.episode import Episode
from rlhfctl.training.rl.collect import PromptData
from rlhfctl.training.rl.loop import PpoLoop, Run
from rlhfctl.training.rl.roles import Critic, Roles
from rlhfctl.training.trl import ppo

pytest.importorskip("trl.experimental.ppo.ppo_trainer", reason="this TRL has no PPOTrainer")

UPDATES, BATCH, LENGTH = 60, 64, 2
SECTION: dict[str, Any] = {
    "lora": None,
    "total_episodes": UPDATES * BATCH,
    "per_device_train_batch_size": BATCH,
    "num_ppo_epochs": 4,
    "learning_rate": 5e-3,
    "lam": 1.0,
    "lr_scheduler_type": "constant",
    "response_length": LENGTH,
    "stop_token": None,  # nothing else ends a response before its two tokens
    "temperature": 1.0,
    "kl_coef": 0.0,
    "vf_coef": 0.5,
}
PROMPTS = [[2 + i % 6, 2 + i // 6 % 6] for i in range(36)] * 4


def short(episodes: Sequence[Episode]) -> list[float]:
    """Less for each token seen; worst for nothing."""
    return [-float(len(episode.response_ids)) if episode.response_ids else -4.0 for episode in episodes]


def models_of() -> tuple[Any, Any, Any]:
    init = Init(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32, tokens=list("abcdef")
    )
    tokenizer = tokenizing.train_tokenizer(init, [])
    tokenizer.padding_side = "left"
    policy = build.build_model(init, tokenizer, seed=1, dtype=torch.float32)
    critic = heads.scorer_on(policy, seed=0, zero_head=True)
    critic.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, policy, critic


def second_pad(logits: Any, pad: int) -> float:
    """Probability of a token and then a pad, over all prompts; `logits(ids)` gives those of the next token."""
    count, width = 36, len("abcdef") + 2
    with torch.no_grad():
        first = torch.softmax(logits(torch.tensor(PROMPTS[:count])), -1)
        both = torch.tensor([[*prompt, token] for prompt in PROMPTS[:count] for token in range(width)])
        second = torch.softmax(logits(both), -1)[:, pad].view(count, width)
    first[:, pad] = 0.0
    return float((first * second).sum(1).mean())


def test_trls_policy_learns_to_pad(tmp_path: Path) -> None:
    tokenizer, policy, critic = models_of()
    pad = tokenizer.pad_token_id

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return policy(input_ids=ids).logits[:, -1]

    assert second_pad(logits, pad) < 0.15  # one token of eight
    config = ppo.config_for(Ppo(engine="trl", **SECTION), tmp_path, seed=0)
    frozen = LanguageModel(build.copy_frozen(policy), pad)
    everyone = Roles(LanguageModel(policy, pad), frozen, Critic(critic))
    gc.freeze()  # TRL collects garbage twice an update
    try:
        rows = [{"prompt": ""}] * len(PROMPTS)
        data = PromptData(tokenizer, rows, PROMPTS)
        means = ppo.train(config, everyone, short, data, emit=lambda event: None)
    finally:
        gc.unfreeze()
    assert second_pad(logits, pad) > 0.5
    assert means["raw_score"] > -1.7 and means["length"] < 1.7  # it pays: an honest response scores -2


def test_our_policy_cannot_pad(tmp_path: Path) -> None:
    tokenizer, policy, critic = models_of()
    pad = tokenizer.pad_token_id
    acting = LanguageModel(policy, pad)
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    everyone = Roles(acting, LanguageModel(build.copy_frozen(policy), pad), Critic(critic))
    seen: list[list[int]] = []

    def watched(episodes: Sequence[Episode]) -> list[float]:
        seen.extend(list(episode.response_ids) for episode in episodes)
        return short(episodes)

    section = Ppo(engine="rlhfctl", trace_every=0, **SECTION)
    rows = [{"prompt": ""}] * len(PROMPTS)
    loop = PpoLoop(
        section, everyone, watched, PromptData(tokenizer, rows, PROMPTS), Run(seed=0, work=tmp_path / "work")
    )
    means = loop.train()
    assert second_pad(lambda ids: acting.logits(acting.hidden(ids)[:, -1]), pad) == 0.0
    assert len(seen) == UPDATES * BATCH and all(len(ids) == LENGTH and pad not in ids for ids in seen)
    assert (means["raw_score"], means["length"]) == (-2.0, 2.0)
    assert any(not torch.equal(start[name], value) for name, value in policy.state_dict().items())

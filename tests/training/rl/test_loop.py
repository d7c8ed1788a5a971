"""Our PPO loop on models of two layers and twelve tokens: what each option does, resuming, non-finite numbers, traces.

Every option is held against what it must change: a number worked out by hand, weights that move or stay, files.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import TaskType
from torch import Tensor

from rlhfctl.errors import EngineError
from rlhfctl.events import CheckpointSaved, Event, Metrics, Note, StageStarted
from rlhfctl.generation import generator, local
from rlhfctl.models import build, heads, tokenizing
from rlhfctl.models.adapters import CRITIC, POLICY, add_adapter, add_lora
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Init, Lora, Ppo
from rlhfctl.rewards.episode import Episode
from rlhfctl.training.rl import loop as loop_module
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.loop import PpoLoop
from rlhfctl.training.rl.roles import Critic, Roles

BATCH, LENGTH = 8, 6
A, B = 2, 3  # ids of "a" and "b"; 0 is the end, 1 the pad
PROMPTS = [[2, 3], [4], [5, 6, 2, 3], [7, 8], [6], [3, 3, 9], [10, 11], [9, 4, 2], [8], [11, 5]]
SECTION: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "num_ppo_epochs": 2,
    "learning_rate": 1e-2,
    "response_length": LENGTH,
    "temperature": 1.0,
    "trace_every": 0,
    "local_rollout_forward_batch_size": BATCH,
}
TIMED = ("rollout_s", "score_s", "update_s", "episodes_per_s")
KINDS = ("adapter", "head", "model")
CASTS = [("adapter", True), ("head", True), ("model", True), ("head", False), ("model", False)]  # critic, LoRA

Score = Callable[[Sequence[Episode]], list[float]]


# ---------------------------------------------------------------- the models, a reward, a loop that can be looked into


def cast(kind: str = "adapter", lora: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Any, Roles]:
    """(tokenizer, roles) on new weights; the same each time."""
    init = Init(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        tokens=list("abcdefghij"),
    )
    tokenizer = tokenizing.train_tokenizer(init, [])
    pad = tokenizer.pad_token_id
    base = build.build_model(init, tokenizer, seed=1, dtype=dtype)
    with torch.no_grad():
        base.lm_head.weight *= 8
    own = heads.scorer_on(base, seed=2, zero_head=True) if kind == "model" else None
    adapters = Lora(r=4, lora_alpha=8)
    reference = None if lora else LanguageModel(build.copy_frozen(base), pad)
    model: Any = add_lora(base, adapters, TaskType.CAUSAL_LM, seed=3) if lora else base
    if lora and dtype == torch.float64:
        model.to(dtype)
    policy = LanguageModel(model, pad, POLICY if lora else None)
    if own is not None:
        critic = Critic(own)
    elif kind == "head":
        critic = Critic(AdapterScorer(policy, heads.new_head(model)), shares_policy=True)
    else:
        add_adapter(model, CRITIC, adapters, seed=4)
        model.to(dtype)
        critic = Critic(AdapterScorer(LanguageModel(model, pad, CRITIC), heads.new_head(model)))
    return tokenizer, Roles(policy, reference or LanguageModel(model, pad, None), critic)


def share_of_a(episodes: Sequence[Episode]) -> list[float]:
    return [list(episode.response_ids).count(A) / LENGTH for episode in episodes]


def nothing(episodes: Sequence[Episode]) -> list[float]:
    return [0.0] * len(episodes)


class Seen(PpoLoop):
    """Keeps each batch as it is before the first optimizer step."""

    batches: list[Experience]

    def _require_finite(self, batch: Experience, number: int) -> None:
        super()._require_finite(batch, number)
        self.__dict__.setdefault("batches", []).append(batch)


def loop_for(
    work: Path,
    updates: int = 1,
    *,
    kind: str = "adapter",
    lora: bool = True,
    dtype: torch.dtype = torch.float32,
    score: Score = share_of_a,
    how: type[Seen] = Seen,
    parts: dict[str, Any] | None = None,
    **options: Any,
) -> Seen:
    """A loop ready to train: `options` go into the recipe's section, `parts` to the loop."""
    tokenizer, everyone = cast(kind, lora, dtype)
    values = SECTION | options
    size = values["per_device_train_batch_size"] * values.get("gradient_accumulation_steps", 1)
    section = Ppo(engine="rlhfctl", total_episodes=size * updates, **values)
    rows = [{"prompt": tokenizer.decode(prompt)} for prompt in PROMPTS]
    return how(section, everyone, score, tokenizer, rows, PROMPTS, seed=5, work=work / "work", **parts or {})


def trained(work: Path, updates: int = 1, **options: Any) -> Seen:
    loop = loop_for(work, updates, **options)
    loop.train()
    return loop


def gap(one: dict[str, Tensor], other: dict[str, Tensor], part: str = "") -> float:
    """Largest difference of two states, in the tensors whose name holds `part`."""
    names = [name for name in one if part in name]
    assert names and one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in names)


def start(**options: Any) -> dict[str, Tensor]:
    return cast(**options)[1].state()


def column(loop: Seen, name: str) -> list[float]:
    return [entry[name] for entry in loop.history]


# ---------------------------------------------------------------- rewards, KL, advantages


def test_kl_coef_is_the_weight_of_the_kl_in_the_reward(tmp_path: Path) -> None:
    free = trained(tmp_path / "free", 6, kl_coef=0.0)
    bound = trained(tmp_path / "bound", 6, kl_coef=1.0)
    for loop, weight in ((free, 0.0), (bound, 1.0)):
        for entry in loop.history:
            assert entry["non_score_reward"] == pytest.approx(-weight * entry["kl"])
            assert entry["rlhf_reward"] == pytest.approx(entry["score"] - weight * entry["kl"])
    assert abs(bound.history[-1]["kl"]) < 0.5 * free.history[-1]["kl"]
    batch = bound.batches[-1]
    without_score = batch.rewards.sum(1) - batch.scores
    assert torch.allclose(without_score, -batch.kl.sum(1), atol=1e-5) and without_score.abs().max() > 0.01


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_reported_kl_is_that_of_the_estimator(estimator: str, tmp_path: Path) -> None:
    by_hand: dict[str, Callable[[float], float]] = {
        "k1": lambda d: d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(-d) - 1 + d,
    }
    loop = trained(tmp_path, 4, kl_estimator=estimator, dtype=torch.float64)
    batch = loop.batches[-1]
    due = 0.0
    for row, length in enumerate(batch.lengths.tolist()):
        for t in range(length):
            due += by_hand[estimator](float(batch.logprobs[row, t] - batch.ref_logprobs[row, t]))
    assert loop.history[-1]["kl"] == pytest.approx(due / BATCH, abs=1e-12)
    others = [sum(f(float(x)) for x in (batch.logprobs - batch.ref_logprobs)[batch.mask]) for f in by_hand.values()]
    assert min(abs(x - y) for x, y in itertools.combinations(others, 2)) > 1e-3  # they could be told apart


def test_whitened_rewards_have_unit_variance_and_keep_their_mean(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain").batches[0]
    white = trained(tmp_path / "white", whiten_rewards=True).batches[0]
    before, after = plain.rewards[plain.value_mask], white.rewards[white.value_mask]
    assert float(after.var()) == pytest.approx(1.0, abs=1e-4) and float(before.var()) < 0.2
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-6) and float(before.mean()) > 1e-3


def test_whitened_advantages_have_mean_zero_and_unit_variance(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", whiten_advantages=False).batches[0]
    white = trained(tmp_path / "white").batches[0]
    assert torch.allclose(plain.advantages, (plain.returns - plain.values).masked_fill(~plain.mask, 0.0), atol=1e-6)
    inside = white.advantages[white.mask]
    assert float(inside.mean()) == pytest.approx(0.0, abs=1e-6) and float(inside.var()) == pytest.approx(1.0, abs=1e-4)
    assert float(plain.advantages[plain.mask].var()) < 0.5
    assert torch.equal(plain.returns, white.returns)


def test_a_missing_end_costs_the_penalty_or_sets_the_score(tmp_path: Path) -> None:
    for options, due in (
        ({"missing_eos_penalty": 1.5}, lambda raw: raw - 1.5),
        ({"missing_eos_score": -7.0}, lambda raw: torch.full_like(raw, -7.0)),
        ({}, lambda raw: raw),
    ):
        loop = trained(tmp_path / "-".join(options), **options)  # type: ignore[arg-type]
        batch = loop.batches[0]
        assert 0 < int(batch.ended.sum()) < BATCH
        assert torch.equal(batch.scores[batch.ended], batch.raw_scores[batch.ended])
        assert torch.allclose(batch.scores[~batch.ended], due(batch.raw_scores[~batch.ended]))
        assert loop.history[0]["score"] == pytest.approx(float(batch.scores.mean()))
        assert loop.history[0]["raw_score"] == pytest.approx(sum(share_of_a_of(batch)) / BATCH)


def share_of_a_of(batch: Experience) -> list[float]:
    return [response.ids.count(A) / LENGTH for response in batch.responses]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.8, 0.95), (1.0, 0.3), (0.7, 0.0)])
def test_advantages_are_discounted_by_gamma_and_lambda(gamma: float, lam: float, tmp_path: Path) -> None:
    loop = trained(tmp_path, 4, gamma=gamma, lam=lam, whiten_advantages=False, dtype=torch.float64, kl_coef=0.5)
    batch = loop.batches[-1]
    assert batch.values.abs().max() > 1e-3  # the critic has moved
    for row in range(BATCH):
        states = int(batch.value_mask[row].sum())
        r, v = batch.rewards[row].tolist(), [*batch.values[row, :states].tolist(), 0.0]
        for t in range(states):
            due = sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, states))
            assert float(batch.returns[row, t]) == pytest.approx(due + v[t], abs=1e-12)
            if t < len(batch.responses[row].ids):
                assert float(batch.advantages[row, t]) == pytest.approx(due, abs=1e-12)


# ---------------------------------------------------------------- losses and steps


def test_a_step_that_the_format_rounds_away_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    half = {"kind": "model", "lora": False, "dtype": torch.bfloat16}
    loop_for(tmp_path / "a", learning_rate=1e-6, parts={"say": said.append}, **half).train()
    assert sum("cannot move by a step of learning_rate 1e-06" in sentence for sentence in said) == 1
    said.clear()
    loop_for(tmp_path / "b", learning_rate=1e-6, parts={"say": said.append}).train()
    assert said == []


def test_cliprange_bounds_the_ratio(tmp_path: Path) -> None:
    tight = trained(tmp_path / "tight", cliprange=1e-4)
    wide = trained(tmp_path / "wide", cliprange=50.0)
    assert tight.history[0]["clip_fraction"] > 0.1 and wide.history[0]["clip_fraction"] == 0.0
    assert gap(tight.roles.state(), wide.roles.state(), ".default.") > 0


def test_cliprange_value_bounds_the_values(tmp_path: Path) -> None:
    tight = trained(tmp_path / "tight", num_ppo_epochs=4, cliprange_value=1e-5)
    wide = trained(tmp_path / "wide", num_ppo_epochs=4, cliprange_value=50.0)
    assert tight.history[0]["value_clip_fraction"] > 0.1 and wide.history[0]["value_clip_fraction"] == 0.0


@pytest.mark.parametrize(("kind", "part"), [("adapter", ".critic."), ("adapter", "score"), ("model", "critic.")])
def test_the_critic_learns_unless_vf_coef_is_zero(kind: str, part: str, tmp_path: Path) -> None:
    before = start(kind=kind)
    still = trained(tmp_path / "still", 2, kind=kind, vf_coef=0.0).roles.state()
    moved = trained(tmp_path / "moved", 2, kind=kind, vf_coef=0.5).roles.state()
    assert gap(before, still, part) == 0.0 and gap(before, moved, part) > 1e-4
    assert gap(before, still, ".default.") > 1e-3


def test_a_head_that_does_not_train_the_trunk_leaves_the_policy_alone(tmp_path: Path) -> None:
    """The advantages are set to nothing, so only the critic's gradient is left."""

    class OnlyValues(Seen):
        def _require_finite(self, batch: Experience, number: int) -> None:
            batch.advantages = torch.zeros_like(batch.advantages)

    before = start(kind="head")
    for trains in (True, False):
        loop = loop_for(tmp_path / str(trains), 2, kind="head", how=OnlyValues)
        loop.roles.critic.trains_trunk = trains
        loop.train()
        assert gap(before, loop.roles.state(), "score") > 1e-3
        assert (gap(before, loop.roles.state(), ".default.") > 1e-4) is trains


def test_the_entropy_bonus_raises_the_entropy(tmp_path: Path) -> None:
    """With a reward of nothing and no KL term the bonus alone moves the policy."""
    quiet: dict[str, Any] = {"score": nothing, "kl_coef": 0.0, "vf_coef": 0.0, "whiten_advantages": False}
    without = trained(tmp_path / "without", 6, **quiet)
    bonus = trained(tmp_path / "bonus", 6, entropy_coef=0.5, **quiet)
    assert gap(start(), without.roles.state()) == 0.0
    entropy = column(bonus, "token_entropy")
    assert entropy[-1] > entropy[0] + 0.05 and entropy[-1] <= math.log(11) + 1e-5


@pytest.mark.parametrize(("parts", "epochs"), [(1, 1), (2, 3), (8, 2)])
def test_there_is_an_optimizer_step_for_each_minibatch_of_each_epoch(parts: int, epochs: int, tmp_path: Path) -> None:
    loop = loop_for(tmp_path, 1, num_mini_batches=parts, num_ppo_epochs=epochs)
    steps: list[int] = []
    loop.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    loop.train()
    assert len(steps) == parts * epochs == loop.history[0]["optimizer_steps"]


def test_target_kl_ends_the_epochs_of_an_update(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_ppo_epochs": 6, "num_mini_batches": 2}
    assert column(trained(tmp_path / "all", 2, **options), "optimizer_steps") == [12, 12]
    assert column(trained(tmp_path / "far", 2, target_kl=1e6, **options), "optimizer_steps") == [12, 12]
    assert column(trained(tmp_path / "near", 2, target_kl=1e-12, **options), "optimizer_steps") == [2, 2]
    some = trained(tmp_path / "some", 1, target_kl=0.02, **options).history[0]
    assert 2 < some["optimizer_steps"] < 12


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_batch_is_cut_for_memory_changes_nothing(kind: str, tmp_path: Path) -> None:
    def weights(size: int, pieces: int, parts: int = 2, forward: int = BATCH) -> dict[str, Tensor]:
        loop = trained(
            tmp_path / f"{size}-{pieces}-{parts}-{forward}",
            2,
            kind=kind,
            dtype=torch.float64,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=pieces,
            num_mini_batches=parts,
            local_rollout_forward_batch_size=forward,
            entropy_coef=0.01,
        )
        return loop.roles.state()

    whole = weights(8, 1)
    assert gap(whole, start(kind=kind, dtype=torch.float64)) > 1e-3
    for size, pieces, forward in ((4, 2, BATCH), (1, 8, BATCH), (8, 1, 3)):
        assert gap(whole, weights(size, pieces, forward=forward)) < 1e-10
    assert gap(whole, weights(8, 1, parts=4)) > 1e-4


@pytest.mark.parametrize(
    ("kind", "warmup", "due"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("linear", 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("linear", 2, [0, 1 / 2, 1, 1 / 2]),
        ("constant_with_warmup", 2, [0, 1 / 2, 1, 1]),
        ("cosine", 0, [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]),
    ],
)
def test_the_learning_rate_follows_its_schedule(kind: str, warmup: int, due: list[float], tmp_path: Path) -> None:
    loop = loop_for(tmp_path, 4, lr_scheduler_type=kind, warmup_steps=warmup, num_ppo_epochs=1)
    used: list[float] = []
    loop.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    loop.train()
    assert column(loop, "learning_rate") == pytest.approx([1e-2 * share for share in due])
    assert used == column(loop, "learning_rate")


def test_weight_decay_shrinks_matrices_and_leaves_vectors(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"score": nothing, "kl_coef": 0.0, "vf_coef": 0.0, "whiten_advantages": False}
    options: dict[str, Any] = {"kind": "model", "lora": False, "lr_scheduler_type": "constant"}
    before = start(kind="model", lora=False)
    after = trained(tmp_path, 3, weight_decay=0.5, **quiet, **options).roles.state()
    shapes = {value.dim() for value in before.values()}
    assert shapes == {1, 2}
    for name, value in before.items():
        due = value * (1 - 1e-2 * 0.5) ** 6 if value.dim() == 2 else value
        assert torch.allclose(after[name], due, rtol=1e-5, atol=1e-7), name
    assert gap(before, trained(tmp_path / "without", 3, **quiet, **options).roles.state()) == 0.0


def test_max_grad_norm_cuts_the_gradient_and_the_uncut_length_is_reported(tmp_path: Path) -> None:
    before = start()
    lengths: dict[float | None, list[float]] = {}
    moved = {}
    norms = {}
    for limit in (None, 1e-3):
        loop = loop_for(tmp_path / str(limit), 1, max_grad_norm=limit, num_ppo_epochs=1)
        lengths[limit] = []
        loop.optimizer.register_step_pre_hook(lambda *_, loop=loop, limit=limit: lengths[limit].append(length(loop)))
        loop.train()
        norms[limit] = loop.history[0]["grad_norm"]
        moved[limit] = gap(before, loop.roles.state())
    assert norms[None] == pytest.approx(norms[1e-3]) and norms[None] > 1e-2
    assert lengths[None] == pytest.approx([norms[None]])
    assert lengths[1e-3] == pytest.approx([1e-3], rel=1e-3)
    assert moved[1e-3] > 0


def length(loop: Seen) -> float:
    grads = [p.grad for p in loop.trained.values() if p.grad is not None]
    return float(torch.stack([grad.norm() for grad in grads]).norm())


# ---------------------------------------------------------------- rollout


def test_num_generations_repeats_each_prompt(tmp_path: Path) -> None:
    four = trained(tmp_path / "four", 2, num_generations=4)
    for batch in four.batches:
        assert batch.rows == [batch.rows[0]] * 4 + [batch.rows[4]] * 4 and batch.rows[0] != batch.rows[4]
        assert len({tuple(response.ids) for response in batch.responses[:4]}) > 1
    once = trained(tmp_path / "once", 5)
    rows = [row for batch in once.batches for row in batch.rows]
    assert all(len(set(rows[i : i + len(PROMPTS)])) == len(PROMPTS) for i in range(0, len(rows), len(PROMPTS)))
    assert rows[: len(PROMPTS)] != rows[len(PROMPTS) : 2 * len(PROMPTS)]  # each pass has an order of its own


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}])
def test_what_leaves_one_token_to_draw_gives_the_greedy_response(options: dict[str, Any], tmp_path: Path) -> None:
    def responses(**changes: Any) -> tuple[Experience, Seen]:
        loop = trained(tmp_path / str(changes), **changes)
        return loop.batches[0], loop

    batch, loop = responses(**options)
    tokenizer, everyone = cast()
    greedy = local.sample(
        everyone.policy, batch.prompts, tokenizer, generator.Sampling(LENGTH, None, BATCH, 5, stop_ids=(0,))
    )
    assert [r.ids for r in batch.responses] == [r.ids for r in greedy]
    assert [r.ids for r in responses()[0].responses] != [r.ids for r in greedy]
    if "temperature" not in options:  # drawn from one token, so KL to the whole distribution is -log of its share
        assert torch.allclose(batch.kl, -batch.ref_logprobs.masked_fill(~batch.mask, 0.0), atol=1e-5)
        assert loop.history[0]["kl"] > 0.1


def test_responses_end_where_the_recipe_says(tmp_path: Path) -> None:
    def drawn(name: str, **options: Any) -> list[generator.Response]:
        batches = trained(tmp_path / name, 4, learning_rate=1e-9, **options).batches
        return [response for batch in batches for response in batch.responses]

    never = drawn("never", stop_token=None)
    assert all(len(r.ids) == LENGTH and not r.ended for r in never) and any(0 in r.ids for r in never)
    at_b = drawn("b", stop_token="b")
    assert {r.ended for r in at_b} == {True, False}
    assert all(r.ended == (r.ids[-1] == B) and B not in r.ids[:-1] for r in at_b)
    pairs = [a + b for a, b in itertools.product("abcdefghij", repeat=2) if a != "a"]
    texts = cast()[0]
    at_pair = drawn("pair", stop_token=None, stop_strings=pairs)
    for response in at_pair:
        said = texts.decode(response.ids)
        assert response.ended == any(pair in said for pair in pairs)
        assert not any(pair in texts.decode(response.ids[:-1]) for pair in pairs)
    assert any(len(r.ids) < LENGTH for r in at_pair)


# ---------------------------------------------------------------- precision and memory


@pytest.mark.parametrize(("before", "bf16"), [("no", True), ("bf16", False)])
def test_the_precision_is_its_own_whatever_the_stage_before_used(before: str, bf16: bool, tmp_path: Path) -> None:
    Accelerator(mixed_precision=before)  # what a trainer of an earlier stage leaves in this process
    loop = loop_for(tmp_path, bf16=bf16)
    assert loop.accelerator.mixed_precision == ("bf16" if bf16 else "no")


def test_sampling_that_rounds_differently_is_a_note_and_its_numbers_are_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "AGREEMENT", 0.0)
    events: list[Event] = []
    loop = loop_for(tmp_path, 2, parts={"emit": events.append, "say": pytest.fail})
    loop.train()
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len(notes) == 1 and "round differently" in notes[0] and loop.recomputes
    assert all(batch.ref_logprobs.shape == batch.logprobs.shape for batch in loop.batches)
    first = loop.batches[0]  # before any step policy and reference are one model, and now one computation
    assert torch.equal(first.logprobs.masked_fill(~first.mask, 0), first.ref_logprobs.masked_fill(~first.mask, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_the_sampled_logprobs_are_those_of_the_update_and_close_to_float32(kind: str, tmp_path: Path) -> None:
    class Again(Seen):
        gaps: list[float]

        def _require_finite(self, batch: Experience, number: int) -> None:
            super()._require_finite(batch, number)
            with torch.no_grad():
                exact = self._logprobs(batch, self.roles.policy)
                with self.accelerator.autocast():
                    assert torch.equal(self._logprobs(batch, self.roles.policy), batch.logprobs)
            self.__dict__.setdefault("gaps", []).append(float((exact - batch.logprobs).abs().max()))

    loop = trained(tmp_path, 3, kind=kind, how=Again, bf16=True, num_ppo_epochs=1)
    assert loop.recomputes and isinstance(loop, Again)
    assert all(0 < number < 0.1 for number in loop.gaps)
    assert column(loop, "ratio") == pytest.approx([1.0] * 3, abs=1e-2)  # the first step is taken where ratio is 1
    assert all(value.dtype == torch.float32 for value in loop.roles.state().values())
    assert gap(start(kind=kind), loop.roles.state()) > 1e-3


@pytest.mark.parametrize(("kind", "lora"), CASTS)
def test_gradient_checkpointing_recomputes_and_changes_nothing(kind: str, lora: bool, tmp_path: Path) -> None:
    states, calls = [], []
    for on in (False, True):
        loop = loop_for(
            tmp_path / str(on),
            2,
            kind=kind,
            lora=lora,
            dtype=torch.float64,
            gradient_checkpointing=on,
            num_mini_batches=2,
        )
        count = [0]
        inside = loop.roles.policy.trunk.layers[0].mlp  # runs again; a hook after it would not: the rerun ends early
        inside.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        loop.train()
        states.append(loop.roles.state())
        calls.append(count[0])
    assert gap(states[0], states[1]) < 1e-10
    assert gap(states[0], start(kind=kind, lora=lora, dtype=torch.float64)) > 1e-3
    assert calls[1] > calls[0]


# ---------------------------------------------------------------- files


def test_checkpoints_are_written_as_often_and_kept_as_many_as_asked(tmp_path: Path) -> None:
    told: list[Event] = []
    trained(tmp_path, 7, checkpoint_steps=3, keep_checkpoints=3, num_ppo_epochs=1, parts={"emit": told.append})
    assert [event.step for event in told if isinstance(event, CheckpointSaved)] == [0, 3, 6, 7]
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"checkpoint-3", "checkpoint-6", "checkpoint-7"}
    trained(tmp_path / "one", 3, checkpoint_steps=1, keep_checkpoints=1, num_ppo_epochs=1)
    assert [path.name for path in (tmp_path / "one" / "work").iterdir()] == ["checkpoint-3"]
    assert loop_for(tmp_path / "default", 25).checkpoint_steps == 3


def test_traces_are_written_as_often_and_as_wide_as_asked(tmp_path: Path) -> None:
    trained(tmp_path, 5, trace_every=2, trace_episodes=3, num_ppo_epochs=1)
    files = sorted((tmp_path / "traces").iterdir())
    assert [file.name for file in files] == ["update-000002.jsonl", "update-000004.jsonl"]
    assert all(len(file.read_text().splitlines()) == 3 for file in files)
    trained(tmp_path / "wide", 1, trace_every=1, trace_episodes=99, num_ppo_epochs=1)
    assert len((tmp_path / "wide" / "traces" / "update-000001.jsonl").read_text().splitlines()) == BATCH
    trained(tmp_path / "none", 2, trace_every=0, num_ppo_epochs=1)
    assert not (tmp_path / "none" / "traces").exists()


# ---------------------------------------------------------------- going on


class Stop(Exception):
    """Stands for a kill."""


class Remembers:
    """A watcher with a memory."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, update: int, total: int) -> None:
        self.seen.append(update)

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


def noisy(episodes: Sequence[Episode]) -> list[float]:
    """A reward that draws from every global generator."""
    noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
    return [value + noise * index for index, value in enumerate(share_of_a(episodes))]


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def stops_after(update: int) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        if isinstance(event, Metrics) and event.step == update:
            raise Stop

    return emit


def untimed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if name not in TIMED} for entry in history]


def stopped(work: Path, after: int, **options: Any) -> None:
    """Train until the metrics of update `after` are out."""
    loop = loop_for(work, 6, parts={"emit": stops_after(after), "watcher": Remembers()}, **options)
    seed_all(0)
    with pytest.raises(Stop):
        loop.train()


def goes_on(work: Path, **options: Any) -> tuple[Seen, list[Event], list[str]]:
    """Train what is left, with other global random states at the start; (loop, events, sentences)."""
    told: list[Event] = []
    said: list[str] = []
    loop = loop_for(work, 6, parts={"emit": told.append, "say": said.append, "watcher": Remembers()}, **options)
    seed_all(99)
    loop.train()
    return loop, told, said


def undisturbed(work: Path, **options: Any) -> Seen:
    loop = loop_for(work, 6, parts={"watcher": Remembers()}, **options)
    seed_all(0)
    loop.train()
    return loop


def same_end(one: Seen, other: Seen) -> None:
    ours, theirs = one.roles.state(), other.roles.state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert untimed(one.history) == untimed(other.history) and len(one.history) == 6


HALFWAY: dict[str, Any] = {
    "score": noisy,
    "checkpoint_steps": 2,
    "num_mini_batches": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "weight_decay": 0.01,
}


@pytest.mark.parametrize(("kind", "lora"), CASTS)
def test_a_run_that_goes_on_ends_bit_for_bit_as_if_undisturbed(kind: str, lora: bool, tmp_path: Path) -> None:
    options = HALFWAY | {"kind": kind, "lora": lora}
    whole = undisturbed(tmp_path / "whole", **options)
    stopped(tmp_path / "stopped", 3, **options)
    loop, told, said = goes_on(tmp_path / "stopped", **options)
    assert [event.resumed_from for event in told if isinstance(event, StageStarted)] == [2]
    assert [event.step for event in told if isinstance(event, Metrics)] == [3, 4, 5, 6]
    assert not said
    same_end(loop, whole)
    assert loop.watcher is not None and loop.watcher.state() == {"seen": list(range(7))}
    other = start(kind=kind, lora=lora)
    assert gap(loop.roles.state(), other) > 1e-3


def test_a_run_stopped_before_its_first_update_goes_on_from_update_0(tmp_path: Path) -> None:
    stopped(tmp_path / "stopped", 1, **HALFWAY)
    loop, told, _ = goes_on(tmp_path / "stopped", **HALFWAY)
    assert [event.resumed_from for event in told if isinstance(event, StageStarted)] == [0]
    same_end(loop, undisturbed(tmp_path / "whole", **HALFWAY))


@pytest.mark.parametrize("damage", ["optimizer.pt cut short", "no mark", "model.safetensors gone"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(damage: str, tmp_path: Path) -> None:
    stopped(tmp_path / "stopped", 5, **HALFWAY)
    newest = tmp_path / "stopped" / "work" / "checkpoint-4"
    if damage == "no mark":
        (newest / "complete.json").unlink()
    elif "gone" in damage:
        (newest / "model.safetensors").unlink()
    else:
        (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-100])
    left = tmp_path / "stopped" / "work" / ".checkpoint-6.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    loop, told, said = goes_on(tmp_path / "stopped", **HALFWAY)
    assert [event.resumed_from for event in told if isinstance(event, StageStarted)] == [2]
    assert len(said) == 1 and said[0].startswith("checkpoint-4 is passed over")
    assert {path.name for path in (tmp_path / "stopped" / "work").iterdir()} == {"checkpoint-4", "checkpoint-6"}
    same_end(loop, undisturbed(tmp_path / "whole", **HALFWAY))


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path, **HALFWAY)
    loop, told, _ = goes_on(tmp_path, **HALFWAY)
    assert not [event for event in told if isinstance(event, Metrics)]
    same_end(loop, whole)


# ---------------------------------------------------------------- what is not finite


class Faulty:
    """share_of_a, but for the calls numbered in `bad`; keeps the weights and responses at each call."""

    def __init__(self, bad: Callable[[int], bool], value: float) -> None:
        self.bad = bad
        self.value = value
        self.loop: Seen | None = None
        self.weights: list[dict[str, Tensor]] = []
        self.responses: list[list[list[int]]] = []

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        assert self.loop is not None
        self.weights.append(self.loop.roles.state())
        self.responses.append([list(episode.response_ids) for episode in episodes])
        scores = share_of_a(episodes)
        if self.bad(len(self.weights)):
            scores[2] = self.value
        return scores


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_once_not_finite_sends_training_back(value: float, tmp_path: Path) -> None:
    said: list[str] = []
    reward = Faulty(lambda call: call == 4, value)
    loop = loop_for(tmp_path, 6, score=reward, checkpoint_steps=2, parts={"say": said.append})
    reward.loop = loop
    loop.train()
    assert loop.done == 6 and len(loop.history) == 6 and len(reward.weights) == 8  # 1 2 3 4 then 3 4 5 6
    kept = tmp_path / "non-finite" / "update-000004-attempt-0.jsonl"
    assert [path.name for path in (tmp_path / "non-finite").iterdir()] == [kept.name]
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["response_ids"] for line in lines] == reward.responses[3]
    assert lines[2]["raw_scores"] == str(value) and math.isfinite(lines[1]["raw_scores"])  # strict JSON
    assert len(said) == 1 and str(kept) in said[0] and "update 4" in said[0] and "from update 2" in said[0]
    assert gap(reward.weights[4], reward.weights[2]) == 0.0  # both as update 2 left them
    assert gap(reward.weights[2], reward.weights[3]) > 0
    assert reward.responses[4] != reward.responses[2]  # other samples
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loop.roles.state().values())


def test_a_reward_that_is_never_finite_stops_training_and_the_batch_is_named(tmp_path: Path) -> None:
    reward = Faulty(lambda call: call > 2, math.nan)
    reward.loop = loop = loop_for(tmp_path, 6, score=reward, checkpoint_steps=2)
    with pytest.raises(EngineError, match="update 3 failed 3 times in a row") as caught:
        loop.train()
    assert len(reward.weights) == 2 + 3
    kept = sorted((tmp_path / "non-finite").iterdir())
    assert [path.name for path in kept] == [f"update-000003-attempt-{n}.jsonl" for n in range(3)]
    assert str(caught.value.where) == str(kept[-1])


def test_a_gradient_that_is_not_finite_is_not_applied(tmp_path: Path) -> None:
    said: list[str] = []
    loop = loop_for(tmp_path, 4, checkpoint_steps=1, num_mini_batches=2, parts={"say": said.append})
    calls = [0]

    def poisoned(gradient: Tensor) -> Tensor:
        calls[0] += 1
        return gradient * math.nan if calls[0] == 10 else gradient

    next(p for name, p in loop.trained.items() if ".default." in name).register_hook(poisoned)
    loop.train()
    assert loop.done == 4 and calls[0] > 4 * 4
    assert len(said) == 1 and "a loss or a gradient is not finite" in said[0]
    assert len(list((tmp_path / "non-finite").iterdir())) == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loop.roles.state().values())


def test_an_advantage_that_is_not_finite_makes_a_loss_that_is_not_applied(tmp_path: Path) -> None:
    class Poked(Seen):
        def _set_advantages(self, batch: Experience) -> None:
            super()._set_advantages(batch)
            if self.done == 1 and self.attempt == 0:
                batch.advantages[0, 0] = math.nan

    said: list[str] = []
    loop = trained(tmp_path, 3, how=Poked, checkpoint_steps=1, parts={"say": said.append})
    assert loop.done == 3 and len(said) == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loop.roles.state().values())


# ---------------------------------------------------------------- traces add up


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_adds_up_to_the_logged_metrics(kind: str, tmp_path: Path) -> None:
    """From the JSON alone: KL, rewards, deltas, advantages, returns, ratios, both losses, clip fractions."""
    gamma, lam, kl_coef, clip, clip_value = 0.9, 0.8, 0.3, 0.05, 0.02
    loop = trained(
        tmp_path,
        3,
        kind=kind,
        dtype=torch.float64,
        gamma=gamma,
        lam=lam,
        kl_coef=kl_coef,
        cliprange=clip,
        cliprange_value=clip_value,
        num_ppo_epochs=3,
        whiten_advantages=False,
        missing_eos_penalty=1.0,
        trace_every=1,
        trace_episodes=BATCH,
        vf_coef=0.5,
    )
    for number, logged in enumerate(loop.history, 1):
        lines = (tmp_path / "traces" / f"update-{number:06d}.jsonl").read_text().splitlines()
        episodes = [json.loads(line) for line in lines]
        assert len(episodes) == BATCH
        for one in episodes:
            check_episode(one, gamma, lam, kl_coef)
        tokens = sum(len(one["ids"]) for one in episodes)
        states = sum(len(one["values"]) for one in episodes)
        policy, value, clipped, value_clipped = [], [], 0, 0
        for epoch in range(3):
            for one in episodes:
                now = one["epochs"][epoch]
                for t, ratio in enumerate(now["ratio"]):
                    assert ratio == pytest.approx(math.exp(now["logprobs"][t] - one["policy_logprobs"][t]), abs=1e-12)
                    advantage = one["advantages"][t]
                    cut = min(max(ratio, 1 - clip), 1 + clip) * advantage
                    policy.append(-min(ratio * advantage, cut))
                    assert now["clipped"][t] == (cut < ratio * advantage)
                    clipped += now["clipped"][t]
                for new, old, due in zip(now["values"], one["values"], one["returns"], strict=True):
                    near = min(max(new, old - clip_value), old + clip_value)
                    value.append(max((new - due) ** 2, (near - due) ** 2) / 2)
                    value_clipped += (near - due) ** 2 > (new - due) ** 2
        assert sum(policy) / (3 * tokens) == pytest.approx(logged["policy_loss"], abs=1e-9)
        assert sum(value) / (3 * states) == pytest.approx(logged["value_loss"], abs=1e-9)
        assert clipped / (3 * tokens) == pytest.approx(logged["clip_fraction"], abs=1e-6)
        assert value_clipped / (3 * states) == pytest.approx(logged["value_clip_fraction"], abs=1e-6)
        assert sum(sum(one["kl"]) for one in episodes) / BATCH == pytest.approx(logged["kl"], abs=1e-9)
        assert sum(one["score"] for one in episodes) / BATCH == pytest.approx(logged["score"], abs=1e-9)
        assert sum(len(one["ids"]) for one in episodes) / BATCH == logged["length"]
    assert logged["clip_fraction"] > 0 and logged["value_clip_fraction"] > 0 and abs(logged["kl"]) > 1e-3


def check_episode(one: dict[str, Any], gamma: float, lam: float, kl_coef: float) -> None:
    """One line of a trace against itself."""
    tokens, states = len(one["ids"]), len(one["values"])
    assert states == min(tokens + 1, LENGTH)
    assert len(one["tokens"]) == len(one["kl"]) == tokens and "".join(one["tokens"]) == one["response"]
    raw = one["ids"].count(A) / LENGTH
    assert one["raw_score"] == pytest.approx(raw) and one["score"] == pytest.approx(raw - (not one["ended"]))
    rewards = [-kl_coef * kl for kl in one["kl"]] + [0.0] * (states - tokens)
    rewards[-1] += one["score"]
    assert one["rewards"] == pytest.approx(rewards, abs=1e-12)
    differences = [a - b for a, b in zip(one["policy_logprobs"], one["reference_logprobs"], strict=True)]
    assert one["kl"] == pytest.approx(differences, abs=1e-12)
    following = [*one["values"][1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(one["rewards"], following, one["values"], strict=True)]
    assert one["deltas"] == pytest.approx(deltas, abs=1e-12)
    running, advantages = 0.0, []
    for delta in reversed(deltas):
        running = delta + gamma * lam * running
        advantages.append(running)
    advantages.reverse()
    assert one["advantages"] == pytest.approx(advantages[:tokens], abs=1e-12)
    assert one["returns"] == pytest.approx([a + v for a, v in zip(advantages, one["values"], strict=True)], abs=1e-12)


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize(("kind", "lora"), CASTS)
def test_thirty_updates_teach_the_policy_to_say_a(kind: str, lora: bool, tmp_path: Path) -> None:
    loop = loop_for(
        tmp_path,
        30,
        kind=kind,
        lora=lora,
        learning_rate=4e-2 if lora else 1e-2,
        lr_scheduler_type="constant",
        kl_coef=0.01,
        vf_coef=0.5,
    )
    before = {
        name: (parameter, parameter.detach().clone())
        for name, parameter in loop.roles.policy.model.named_parameters()
        if not parameter.requires_grad
    }
    assert bool(before) is lora
    loop.train()
    score = column(loop, "score")
    first, last = sum(score[:3]) / 3, sum(score[-3:]) / 3
    assert last > first + (0.25 if lora else 0.4), score  # a few adapters on random weights can do less
    assert all(torch.equal(now, then) for now, then in before.values())  # base* is not touched
    assert column(loop, "kl")[-1] > 0.5

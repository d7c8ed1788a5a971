"""The bridge to TRL's PPOTrainer: what is the same at step 0, what moves, and what the reward gets to see."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.experimental.ppo.ppo_trainer as trl_ppo
from peft import TaskType
from torch import nn

from rlhfctl.errors import EngineError
from rlhfctl.events import Event, Metrics, Progress
from rlhfctl.metrics import trl_names
from rlhfctl.models import adapters, build, heads, special_tokens, tokenizing
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import OWN_ENGINE_KEYS, Init, Lora, Ppo
from rlhfctl.rewards.episode import Episode, RewardFunction
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.rewards.model import ModelReward
from rlhfctl.training.rl.collect import PromptData
from rlhfctl.training.rl.roles import Critic, Roles
from rlhfctl.training.trl.ppo import BridgedReward, config_for, require, train

WORDS = ["a", "b", "c", "d", " "]
PENALTY = 0.5

# Three prompts of several lengths, each twice with other columns, and two rows alike in all but `key`.
PROMPTS = ["a b", "a b", "c", "c", "d a b c", "d a b c", "b", "b a"]
ROWS = [{"prompt": prompt, "key": index, "tag": f"t{index}"} for index, prompt in enumerate(PROMPTS)]


@dataclasses.dataclass
class Played:
    """One run of the bridge: its roles before and after, and everything that was emitted."""

    before: dict[str, dict[str, torch.Tensor]]
    policy: Any
    critic: Any
    reference: nn.Module | None
    events: list[Event]
    closing: dict[str, float]
    tokenizer: Any

    def metrics(self, update: int) -> dict[str, float]:
        found = [e for e in self.events if isinstance(e, Metrics) and e.step == update]
        assert len(found) == 1
        return dict(found[0].values)


def words() -> tuple[Any, Any]:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32, tokens=WORDS)
    tokenizer = tokenizing.train_tokenizer(init, [])
    tokenizer.padding_side = "left"
    return tokenizer, build.build_model(init, tokenizer, seed=3, dtype=torch.float32)


def section(**changes: Any) -> Ppo:
    values: dict[str, Any] = {
        "total_episodes": 8,
        "per_device_train_batch_size": 8,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "learning_rate": 1e-2,
        "response_length": 6,
        "temperature": 0.7,
        "missing_eos_penalty": PENALTY,
        "local_rollout_forward_batch_size": 3,  # 3 + 3 + 2
    }
    return Ppo(**values | changes)


def play(
    work: Path,
    ppo: Ppo,
    *,
    lora: bool,
    reward: Callable[[Any, Any], RewardFunction],
    rows: Sequence[dict[str, Any]] = ROWS,
) -> Played:
    tokenizer, base = words()
    critic = heads.scorer_on(base, seed=1)
    scorer = reward(tokenizer, base)
    reference: nn.Module | None = None
    policy: Any = base
    if lora:
        policy = adapters.add_lora(base, Lora(r=2, lora_alpha=4), TaskType.CAUSAL_LM, seed=5)
    else:
        reference = build.copy_frozen(base)
        special_tokens.mask_pad(reference, tokenizer.pad_token_id)
    special_tokens.mask_pad(policy, tokenizer.pad_token_id)
    named = {"policy": policy, "critic": critic} | ({"reference": reference} if reference is not None else {})
    before = {name: copy.deepcopy(dict(module.named_parameters())) for name, module in named.items()}
    events: list[Event] = []
    pad = tokenizer.pad_token_id
    acting = LanguageModel(policy, pad, adapters.POLICY if lora else None)
    kept = acting.with_adapter(None) if reference is None else LanguageModel(reference, pad)
    closing = train(
        config_for(ppo, work, seed=0),
        Roles(acting, kept, Critic(critic)),
        scorer,
        PromptData(tokenizer, rows, [tokenizer(row["prompt"])["input_ids"] for row in rows]),
        emit=events.append,
    )
    return Played(before, policy, critic, reference, events, closing, tokenizer)


def moved(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(before[name], value)}


def by_model(tokenizer: Any, base: Any) -> RewardFunction:
    return ModelReward(heads.scorer_on(base, seed=2), tokenizer.pad_token_id)


# ---------------------------------------------------------------- step 0, and who moves


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "whole"])
def test_policy_is_the_reference_before_the_first_step_and_only_the_trained_move(tmp_path: Path, lora: bool) -> None:
    played = play(tmp_path, section(total_episodes=16), lora=lora, reward=by_model)
    assert abs(played.metrics(1)["kl"]) < 1e-6  # the rollout of update 1 comes before any training
    assert abs(played.metrics(2)["kl"]) > 1e-6  # and it is no constant
    policy = moved(played.before["policy"], played.policy)
    if lora:
        assert policy == {name for name in played.before["policy"] if ".lora_" in name}
    else:
        assert policy == set(played.before["policy"])
        assert played.reference is not None
        assert moved(played.before["reference"], played.reference) == set()
    critic = set(played.before["critic"])
    assert moved(played.before["critic"], played.critic) == critic


def test_steps_and_names_of_what_is_emitted(tmp_path: Path) -> None:
    played = play(tmp_path, section(total_episodes=16), lora=True, reward=by_model)
    assert [(e.step, e.total) for e in played.events if isinstance(e, Progress)] == [(1, 2), (2, 2)]
    values = played.metrics(2)
    papers = set(trl_names("ppo").values()) | {"length", "eos_rate", "raw_score", "raw_score_std"}
    assert papers <= set(values)
    assert not [name for name in values if "/" in name or name == "epoch"]
    assert played.closing["kl"] == values["kl"]  # a tenth of two updates is the last one
    assert "epoch" not in played.closing


# ---------------------------------------------------------------- what the reward sees


class Recorder:
    """A reward that notes the ids it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.calls: list[list[Episode]] = []

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        self.calls.append(list(episodes))
        return [value(episode.row["key"], str(episode.completion)) for episode in episodes]


def value(key: int, completion: str) -> float:
    return key + completion.count("a") / 16


MODULE = """
seen = []

def score(prompts, completions, key, tag):
    seen.append((list(prompts), list(completions), list(key), list(tag)))
    return [k + c.count("a") / 16 for k, c in zip(key, completions)]
"""


def test_a_function_gets_each_rows_own_prompt_completion_and_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recording.py").write_text(MODULE)
    texts: list[tuple[str, str]] = []  # (prompt, response) that TRL generated, in its order
    generate = trl_ppo.batch_generation

    def spying(model: Any, queries: Any, *rest: Any) -> Any:
        out, logits = generate(model, queries, *rest)
        tokenizer = played_tokenizer
        for query, whole in zip(queries, out, strict=True):
            response = whole[queries.shape[1] :].tolist()
            if tokenizer.eos_token_id in response:
                response = response[: response.index(tokenizer.eos_token_id)]
            texts.append(
                (
                    tokenizer.decode(query, skip_special_tokens=True),
                    tokenizer.decode(response, skip_special_tokens=True),
                )
            )
        return out, logits

    played_tokenizer, _ = words()
    monkeypatch.setattr(trl_ppo, "batch_generation", spying)
    function = FunctionReward("recording:score", tmp_path)
    played = play(tmp_path / "work", section(total_episodes=40), lora=True, reward=lambda *_: function)

    seen = function.function.__globals__["seen"]
    assert [len(call[0]) for call in seen] == [3, 3, 2] * 5
    prompts, completions, keys, tags = ([item for call in seen for item in call[i]] for i in range(4))
    assert [(p, c) for p, c in zip(prompts, completions, strict=True)] == texts
    assert prompts == [PROMPTS[key] for key in keys]
    assert tags == [f"t{key}" for key in keys]
    batches = [keys[start : start + 8] for start in range(0, 40, 8)]
    assert all(sorted(batch) == list(range(8)) for batch in batches)  # each row once an update, twins apart
    assert len({tuple(batch) for batch in batches}) > 1  # and shuffled anew
    for update, start in enumerate(range(0, 40, 8), 1):
        mean = statistics.fmean(
            value(key, text) for key, text in zip(keys[start : start + 8], completions[start : start + 8], strict=True)
        )
        metrics = played.metrics(update)
        assert metrics["raw_score"] == pytest.approx(mean, rel=1e-6)
        assert metrics["score"] == pytest.approx(mean - PENALTY * (1 - metrics["eos_rate"]), rel=1e-5)


def test_rows_reach_trl_as_scores_of_their_own_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score that TRL picks for row i is what the reward gave for row i, wherever its response ends."""
    picked: list[float] = []
    original = trl_ppo.get_reward

    def spying(model: Any, *rest: Any) -> Any:
        out = original(model, *rest)
        if isinstance(model, BridgedReward):
            picked.extend(out[1].tolist())
        return out

    monkeypatch.setattr(trl_ppo, "get_reward", spying)
    recorders: list[Recorder] = []

    def recorder(tokenizer: Any, _: Any) -> RewardFunction:
        recorders.append(Recorder(tokenizer))
        return recorders[-1]

    played = play(tmp_path, section(total_episodes=24), lora=True, reward=recorder)
    given = [value(episode.row["key"], str(episode.completion)) for call in recorders[0].calls for episode in call]
    assert picked == pytest.approx(given, abs=1e-6)
    episodes = [episode for call in recorders[0].calls for episode in call]
    lengths = {len(episode.response_ids) for episode in episodes}
    assert len(lengths) > 1, "no response ended early: this shows nothing"
    pad, eos = played.tokenizer.pad_token_id, played.tokenizer.eos_token_id
    for episode in episodes:
        assert pad not in episode.response_ids and pad not in episode.prompt_ids
        assert eos not in list(episode.response_ids)[:-1]
        assert len(episode.response_ids) == 6 or episode.response_ids[-1] == eos
        assert list(episode.prompt_ids) == played.tokenizer(episode.prompt)["input_ids"]
    first = episodes[:8]
    missing = statistics.fmean(eos not in episode.response_ids for episode in first)
    mean = statistics.fmean(value(e.row["key"], str(e.completion)) for e in first)
    assert 0 < missing < 1, "the penalty shows only where some end and some do not"
    assert played.metrics(1)["score"] == pytest.approx(mean - PENALTY * missing, rel=1e-6)
    assert played.metrics(1)["eos_rate"] == pytest.approx(1 - missing)
    assert played.metrics(1)["length"] == pytest.approx(statistics.fmean(len(e.response_ids) for e in first))


def test_pad_is_never_sampled_even_by_a_policy_that_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[torch.Tensor] = []
    generate = trl_ppo.batch_generation

    def spying(model: Any, queries: Any, *rest: Any) -> Any:
        out, logits = generate(model, queries, *rest)
        sampled.append(out[:, queries.shape[1] :].clone())
        return out, logits

    monkeypatch.setattr(trl_ppo, "batch_generation", spying)
    original = words

    def wanting() -> tuple[Any, Any]:
        tokenizer, model = original()
        with torch.no_grad():
            model.lm_head.weight[tokenizer.pad_token_id] = 50 * model.lm_head.weight[4]
        return tokenizer, model

    monkeypatch.setattr(sys.modules[__name__], "words", wanting)
    played = play(tmp_path, section(total_episodes=24, temperature=1.5), lora=True, reward=by_model)
    pad, eos = played.tokenizer.pad_token_id, played.tokenizer.eos_token_id
    assert len(sampled) == 3
    for row in (row for batch in sampled for row in batch.tolist()):
        end = row.index(eos) + 1 if eos in row else len(row)
        assert pad not in row[:end]
        assert set(row[end:]) <= {pad}
    assert abs(played.metrics(1)["kl"]) < 1e-6


# ---------------------------------------------------------------- configuration

# recipe key -> a value that is nobody's default
OPTIONS: dict[str, Any] = {
    "total_episodes": 24,
    "per_device_train_batch_size": 12,
    "local_rollout_forward_batch_size": 5,
    "num_mini_batches": 3,
    "num_ppo_epochs": 7,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 4,
    "weight_decay": 0.03,
    "response_length": 11,
    "temperature": 0.35,
    "stop_token": None,
    "missing_eos_penalty": 0.25,
    "kl_coef": 0.17,
    "kl_estimator": "k3",
    "whiten_rewards": True,
    "cliprange": 0.11,
    "vf_coef": 0.6,
    "cliprange_value": 0.33,
    "gamma": 0.91,
    "lam": 0.77,
}
OURS = {"engine", "lora", "use", "best_kl_limit", "eval", "gradient_accumulation_steps", *OWN_ENGINE_KEYS}
OURS |= {"scale_rewards", "loss_type", "trpo", "nlpo"}  # of algorithms that engine: trl refuses


def test_every_option_is_looked_at_here() -> None:
    assert set(Ppo.model_fields) == set(OPTIONS) | OURS


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_reaches_trl(tmp_path: Path, name: str) -> None:
    plain = config_for(Ppo(), tmp_path, seed=9)
    changed = config_for(Ppo.model_construct(**dict(Ppo()) | {name: OPTIONS[name]}), tmp_path, seed=9)
    assert getattr(changed, name) == OPTIONS[name]
    differing = {f.name for f in dataclasses.fields(plain) if getattr(plain, f.name) != getattr(changed, f.name)}
    assert differing - {"logging_dir", "run_name"} == {name}


def test_what_rlhfctl_owns(tmp_path: Path) -> None:
    config = config_for(Ppo(), tmp_path, seed=9)
    assert (config.seed, config.output_dir, list(config.report_to)) == (9, str(tmp_path), [])
    # what TRL accepts and ignores is off, so that nobody reads it in the settings and believes it
    assert (config.bf16, config.gradient_checkpointing, config.num_sample_generations) == (False, False, 0)
    assert str(config.save_strategy.value) == "no"


def test_an_absent_trainer_is_named_with_the_release_that_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl.experimental.ppo", None)
    with pytest.raises(EngineError) as caught:
        require()
    assert "1.12.0" in caught.value.what
    assert caught.value.fix == "pip install 'trl==1.12.0'"
    with pytest.raises(EngineError):
        config_for(Ppo(), Path("nowhere"), seed=0)


def test_one_optimizer_step_an_update_has_no_variance_of_ratios_rather_than_nan(tmp_path: Path) -> None:
    played = play(tmp_path, section(num_mini_batches=1, num_ppo_epochs=1), lora=True, reward=by_model)
    assert all(number == number for number in played.metrics(1).values())
    assert all(number == number for number in played.closing.values())

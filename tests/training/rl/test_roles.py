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
from typing import Any

import pytest
import torch
from peft import PeftModel, TaskType, get_peft_model
from torch import Tensor, nn

from rlhfctl.errors import EngineError, HandoffError
from rlhfctl.generation import local
from rlhfctl.generation.generator import Sampling
from rlhfctl.models import adapters, build, heads, language_model, merging, scoring, special_tokens, tensors, tokenizing
from rlhfctl.models.adapters import (
    POLICY,
    adapter_has_head,
    add_adapter,
    add_lora,
    is_adapter_parameter,
    lora_config,
    save_adapter,
)
from rlhfctl.models.fused import fused
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences, packed
from rlhfctl.recipe.schema import Init, Lora, Ppo
from rlhfctl.rewards.episode import Episode
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.collect import PromptData, collect
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.loop import PpoLoop, Run
from rlhfctl.training.rl.minibatch import gradient_step
from rlhfctl.training.rl.roles import CRITIC, Critic, Roles

ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "qwen2", "mistral")
LORA = Lora(r=4, lora_alpha=8)
LENGTH = 6
PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 2], [3, 3], [9, 8, 7], [4], [2, 9], [5, 5, 5, 5]]
ROWS = [[2, 3, 4, 5], [6, 7], [8, 9, 2, 3, 4, 5, 6], [7, 7, 7]]


def base(architecture: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Any]:
    """A tokenizer and a language model far from uniform: gradients and scores are no rounding matter."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    init = Init(architecture=architecture, tokens=list("abcdefgh"), **shape | changes)
    tokenizer = tokenizing.train_tokenizer(init, [])
    model = build.build_model(init, tokenizer, seed=1, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter *= 8 if "wte" not in name else 4
    return tokenizer, model.eval()


def stir(module: nn.Module, by: float = 0.1, only: str = ".lora_", seed: int = 5) -> None:
    """Move the weights whose names hold `only`: adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if only in name:
                parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def shared_roles(dtype: torch.dtype = torch.float32) -> tuple[Any, Roles, Any]:
    """(tokenizer, roles with policy and critic as adapters of one model, an untouched copy of the base)."""
    tokenizer, model = base(dtype=dtype)
    untouched = build.copy_frozen(model)
    peft_model = add_lora(model, LORA, TaskType.CAUSAL_LM, seed=0)
    add_adapter(peft_model, CRITIC, LORA, seed=1)
    stir(peft_model)
    pad = tokenizer.pad_token_id
    head = heads.new_head(peft_model)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, head.weight.numel())[None])
    critic = Critic(AdapterScorer(LanguageModel(peft_model, pad, CRITIC), head))
    everyone = Roles(LanguageModel(peft_model, pad, POLICY), LanguageModel(peft_model, pad, None), critic)
    return tokenizer, everyone, untouched


def counted(episodes: Sequence[Episode]) -> list[float]:
    return [float(sum(episode.response_ids)) / 10 for episode in episodes]


def loop_of(everyone: Roles, tokenizer: Any, work: Path, **changes: Any) -> PpoLoop:
    values = {
        "lora": LORA,
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
    single = get_peft_model(twin, lora_config(LORA, TaskType.CAUSAL_LM), adapter_name=adapter)
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
    stir(everyone.policy.model, by=0.02, seed=6)  # ratios away from 1, values away from the old
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


def alone_merged(untouched: Any, peft_model: PeftModel, adapter: str) -> Any:
    """The plain model with B A x alpha / r added to each weight, by hand."""
    twin = copy.deepcopy(untouched)
    state = peft_model.state_dict()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.{adapter}.weight" in state:
                a, b = (state[f"{stem}.lora_{matrix}.{adapter}.weight"] for matrix in "AB")
                parameter += b @ a * LORA.lora_alpha / LORA.r
    return twin


def test_a_copy_of_what_is_trained_goes_back_in_place() -> None:
    _, everyone, _ = shared_roles()
    kept = everyone.state()
    stir(everyone.policy.model, seed=9)
    assert any(not torch.equal(kept[name], value) for name, value in everyone.state().items())
    everyone.load_state(kept)
    assert all(torch.equal(kept[name], value) for name, value in everyone.state().items())
    with pytest.raises(HandoffError, match="other roles"):
        everyone.load_state({name: value for name, value in kept.items() if CRITIC not in name})


# ---------------------------------------------------------------- scorers


def save_reward(untouched: Any, tokenizer: Any, folder: Path) -> list[float]:
    """Train-like SEQ_CLS adapter with head, saved by peft; the scores it gives to ROWS."""
    scorer = heads.scorer_on(untouched, seed=3)
    scorer.config.pad_token_id = tokenizer.pad_token_id
    scorer = add_lora(scorer, LORA, TaskType.SEQ_CLS, seed=4)
    stir(scorer, seed=8)
    stir(scorer, by=0.5, only="score.modules_to_save", seed=9)
    save_adapter(scorer, folder, base="base", head=True)
    return scoring.score_rows(merging.merged(scorer), ROWS, tokenizer.pad_token_id)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_reward_adapter_scores_on_the_policys_model_as_on_its_own(architecture: str, tmp_path: Path) -> None:
    tokenizer, model = base(architecture)
    untouched, pad = build.copy_frozen(model), tokenizer.pad_token_id
    expected = save_reward(untouched, tokenizer, tmp_path / "given")
    policy = add_lora(model, LORA, TaskType.CAUSAL_LM, seed=0)
    stir(policy, seed=7)
    head = heads.load_scorer_adapter(policy, adapters.REWARD, tmp_path / "given")
    scorer = AdapterScorer(LanguageModel(policy, pad, adapters.REWARD), head)
    LanguageModel(policy, pad, POLICY).activate()  # another acted last
    given = scoring.score_rows(scorer, ROWS, pad)
    assert given == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert max(given) - min(given) > 1e-2

    heads.save_scorer_adapter(policy, adapters.REWARD, head, tmp_path / "saved", "base")
    assert adapter_has_head(tmp_path / "saved")
    again = merging.load_adapter(heads.scorer_on(untouched, seed=11), tmp_path / "saved")
    assert scoring.score_rows(again, ROWS, pad) == pytest.approx(given, abs=1e-5, rel=1e-5)
    assert scoring.score_rows(merging.merged(again), ROWS, pad) == pytest.approx(given, abs=1e-5, rel=1e-5)


def test_an_adapter_without_a_head_or_of_another_base_is_refused(tmp_path: Path) -> None:
    tokenizer, model = base()
    headless = add_lora(build.copy_frozen(model), LORA, TaskType.CAUSAL_LM, seed=0)
    save_adapter(headless, tmp_path / "headless", base="base", head=False)
    policy = add_lora(model, LORA, TaskType.CAUSAL_LM, seed=0)
    with pytest.raises(HandoffError, match="no scalar head"):
        heads.load_scorer_adapter(policy, "a", tmp_path / "headless")
    for name, changes in (("wide", {"hidden_size": 32}), ("deep", {"num_hidden_layers": 3})):
        _, other = base(**changes)
        save_reward(other, tokenizer, tmp_path / name)
        with pytest.raises(HandoffError, match="does not fit this base"):
            heads.load_scorer_adapter(policy, name, tmp_path / name)
    save_reward(base("gpt2")[1], tokenizer, tmp_path / "gpt2")
    with pytest.raises(HandoffError, match="does not fit this base"):
        heads.load_scorer_adapter(policy, "gpt2", tmp_path / "gpt2")


def test_an_adapter_on_more_layers_than_the_policys_stays_out_of_the_policy(tmp_path: Path) -> None:
    """A reward model may adapt layers that the policy's LoRA does not."""
    tokenizer, model = base()
    untouched, pad = build.copy_frozen(model), tokenizer.pad_token_id
    expected = save_reward(untouched, tokenizer, tmp_path / "given")
    model = add_lora(model, LORA.model_copy(update={"target_modules": ["q_proj"]}), TaskType.CAUSAL_LM, seed=0)
    stir(model)
    policy = LanguageModel(model, pad, POLICY)
    ids, _ = tensors.pad_right(ROWS, pad, torch.device("cpu"))
    with torch.no_grad():
        before = policy.hidden(ids)
        head = heads.load_scorer_adapter(model, adapters.REWARD, tmp_path / "given")
        assert torch.equal(policy.hidden(ids), before)
        assert torch.equal(policy.with_adapter(None).hidden(ids), untouched.model(input_ids=ids).last_hidden_state)
        scorer = AdapterScorer(policy.with_adapter(adapters.REWARD), head)
        assert scoring.score_rows(scorer, ROWS, pad) == pytest.approx(expected, abs=1e-5, rel=1e-5)
        assert torch.equal(policy.hidden(ids), before)


def test_roles_on_one_model_share_what_is_trained() -> None:
    """Whoever acted last, policy and critic are trained; the switch is no attribute of the model."""
    _, everyone, _ = shared_roles()
    trained = everyone.prepare()
    for role in (everyone.reference, everyone.critic.scorer.backbone.shared, everyone.policy.with_adapter(None)):
        role.activate()
        assert all(parameter.requires_grad for parameter in trained.values())
    assert not [name for name in vars(everyone.policy.model) if "switch" in name]


# ---------------------------------------------------------------- sequences and heads


def test_log_probabilities_in_pieces_are_those_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head that is trained, and with a frozen one, whose gradient is taken in the forward pass."""
    hidden = torch.randn(11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([2, 3, 4, 5, 6, 7, 8, 9, 0, 2, 3])
    weights = torch.linspace(-1, 1, 11, dtype=torch.float64)
    tokenizer, model = base(dtype=torch.float64)
    pad, head = tokenizer.pad_token_id, model.lm_head
    policy = LanguageModel(model, pad)

    def given(frozen: bool, with_entropy: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        head.weight.requires_grad_(not frozen)
        head.weight.grad = None
        part = hidden.clone().requires_grad_()
        logprobs, entropies = policy.token_logprobs(part, tokens, 0.7, with_entropy=with_entropy)
        loss = (logprobs * weights).sum()
        (loss if entropies is None else loss + 0.3 * entropies.sum()).backward()
        assert part.grad is not None and (entropies is not None) is with_entropy
        return logprobs.detach(), entropies, part.grad, head.weight.grad

    def naive(with_entropy: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        weight = head.weight.detach().clone().requires_grad_()
        part = hidden.clone().requires_grad_()
        logits = (part @ weight.T) / 0.7
        masked = torch.cat([logits[:, :pad], logits[:, pad : pad + 1] * 0 - 1e9, logits[:, pad + 1 :]], 1)
        logp = masked.log_softmax(-1)
        chosen, entropies = logp.gather(-1, tokens[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)
        ((chosen * weights).sum() + with_entropy * 0.3 * entropies.sum()).backward()
        assert part.grad is not None
        return chosen.detach(), entropies if with_entropy else None, part.grad, weight.grad

    for frozen in (False, True):
        for with_entropy in (False, True):
            expected = naive(with_entropy)
            monkeypatch.setattr(language_model, "LOGITS_AT_ONCE", 1 << 24)
            one = given(frozen, with_entropy)
            monkeypatch.setattr(language_model, "LOGITS_AT_ONCE", 3 * policy.vocabulary)
            pieces = given(frozen, with_entropy)
            assert (one[3] is None) is frozen and (pieces[3] is None) is frozen
            for index, wanted in enumerate(expected):
                for found in (one[index], pieces[index]):
                    if found is not None and wanted is not None:
                        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_trunk_and_head_are_the_model_or_it_is_said(architecture: str, tied: bool) -> None:
    tokenizer, model = base(architecture, tie_word_embeddings=tied)
    LanguageModel(model, tokenizer.pad_token_id).check_head(ROWS)
    peft_model = add_lora(model, LORA, TaskType.CAUSAL_LM, seed=0)
    stir(peft_model)
    LanguageModel(peft_model, tokenizer.pad_token_id, POLICY).check_head(ROWS)

    def scaled(module: nn.Module, args: Any, output: Any) -> Any:
        output.logits = output.logits * 1.01
        return output

    tampered = LanguageModel(peft_model, tokenizer.pad_token_id, POLICY)
    watching = peft_model.register_forward_hook(scaled)
    with pytest.raises(EngineError, match="computes its logits in a way that this engine does not know"):
        tampered.check_head(ROWS)
    watching.remove()
    tampered.check_head(ROWS)
    tampered.head = copy.deepcopy(tampered.head)
    with torch.no_grad():
        tampered.head.weight[3] *= 1.5
    with pytest.raises(EngineError):
        tampered.check_head(ROWS)


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_alone_gives_what_it_gives_beside_longer_rows(architecture: str, packing: bool) -> None:
    tokenizer, model = base(architecture)
    pad = tokenizer.pad_token_id
    policy = LanguageModel(model, pad)
    head = nn.Linear(16, 1, bias=False)
    critic = Critic(AdapterScorer(policy, head), shares_policy=True)
    prompts, responses = [[2, 3], [4, 5, 6], [7]], [[8, 0], [9], [3, 4, 5]]
    long = [2, 3, 4, 5, 6, 7, 8, 9] * 4

    def of(p: list[list[int]], r: list[list[int]]) -> tuple[Tensor, Tensor]:
        sequences = Sequences.of(p, r, torch.device("cpu"))
        with torch.no_grad():
            states = policy.states(sequences)
            logprobs, _ = policy.token_logprobs(states[sequences.before_tokens()], sequences.tokens(), 0.8)
            return logprobs, critic.values(critic.states(sequences)[sequences.states(4)])

    with packed(policy.trunk) if packing else contextlib.nullcontext():
        together = of([*prompts, long], [*responses, [2, 3]])
    singles = [of([p], [r]) for p, r in zip(prompts, responses, strict=True)]
    for index in (0, 1):
        expected = torch.cat([single[index] for single in singles])
        torch.testing.assert_close(together[index][: len(expected)], expected, atol=1e-5, rtol=1e-5)
        assert float(expected.std()) > 1e-2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eight_more_pads_on_the_left_change_no_draw(architecture: str) -> None:
    tokenizer, model = base(architecture)
    pad = tokenizer.pad_token_id
    short = [[2, 3], [4, 5, 6], [7], [9, 9, 9]]
    sampling = Sampling(8, 1.0, 16, seed=3)
    alone_, long = (
        local.sample(LanguageModel(model, pad), rows, tokenizer, sampling) for rows in (short, [*short, [5] * 11])
    )
    assert [r.ids for r in alone_] == [r.ids for r in long[:4]]
    for a, b in zip(alone_, long, strict=False):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert len({tuple(response.ids) for response in alone_}) > 2


# ---------------------------------------------------------------- a head on the policy


@pytest.mark.parametrize("trains_trunk", [True, False])
def test_the_heads_gradients_reach_the_trunk_only_where_they_may(trains_trunk: bool) -> None:
    tokenizer, model = base()
    policy_model = add_lora(model, LORA, TaskType.CAUSAL_LM, seed=0)
    stir(policy_model)
    policy = LanguageModel(policy_model, tokenizer.pad_token_id, POLICY)
    head = nn.Linear(16, 1, bias=False)
    critic = Critic(AdapterScorer(policy, head), shares_policy=True, trains_trunk=trains_trunk)
    everyone = Roles(policy, LanguageModel(policy_model, tokenizer.pad_token_id, None), critic)
    trained = everyone.prepare()
    assert sum(f".{POLICY}." in name for name in trained) == 28 and "critic.score.weight" in trained
    ids, _ = tensors.pad_right(ROWS, tokenizer.pad_token_id, torch.device("cpu"))
    critic.values(policy.hidden(ids)[:, -1]).square().sum().backward()
    reached = [name for name, parameter in trained.items() if parameter.grad is not None and parameter.grad.any()]
    assert head.weight.grad is not None and head.weight.grad.any()
    assert len(reached) == (29 if trains_trunk else 1)

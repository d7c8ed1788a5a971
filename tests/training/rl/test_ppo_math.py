"""PPO's arithmetic against numbers worked out by hand, naive loops, and sums over a whole (small) vocabulary.

Longer than 400 lines because it mirrors ppo_math.py, whose functions share the small batches defined here.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhfctl.models import tensors
from rlhfctl.training.rl import ppo_math

NAN = float("nan")
FLOAT32 = 1e-7  # fractions are counts divided by counts, in the default dtype


def t(*rows: Any) -> Tensor:
    """Float64, one row a list; a single number makes a (1,) tensor."""
    return torch.tensor(rows, dtype=torch.float64)


def b(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def full(rows: int, width: int) -> Tensor:
    return torch.ones(rows, width, dtype=torch.bool)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype).expand(found.shape)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- masks and means


def test_tokens_are_masked_up_to_their_length_and_states_one_further() -> None:
    lengths = torch.tensor([0, 1, 2, 3])
    assert ppo_math.response_mask(lengths, 3).tolist() == b([0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]).tolist()
    assert ppo_math.value_mask(lengths, 3).tolist() == b([1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]).tolist()


def test_sums_and_means_are_of_what_is_in_the_mask() -> None:
    values, mask = t([1.0, 2.0, NAN], [4.0, NAN, 100.0]), b([1, 1, 0], [1, 0, 0])
    assert_close(ppo_math.masked_sum(values, mask), 7.0)
    assert_close(ppo_math.masked_mean(values, mask), 7.0 / 3.0)


# ---------------------------------------------------------------- whitening


def test_whitened_numbers_are_those_worked_out_by_hand() -> None:
    found = ppo_math.whiten(t([1.0, 3.0], [5.0, 99.0]), b([1, 1], [1, 0]))  # mean 3, variance (4 + 0 + 4) / 2
    assert_close(found, t([-1.0, 0.0], [1.0, 0.0]), 1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_whitened_values_have_mean_0_and_variance_1_over_the_mask(seed: int) -> None:
    values, mask = random(seed, 4, 7) * 3 + 5, random(seed + 50, 4, 7) > 0
    kept = ppo_math.whiten(values, mask)[mask]
    assert abs(float(kept.mean())) < 1e-12
    assert abs(float(kept.var(unbiased=True)) - 1) < 1e-7
    assert abs(float(kept.var(unbiased=False)) - 1) > 1e-2  # which of the two it is can be told apart here


def test_whitening_without_centring_scales_about_the_mean_and_keeps_it() -> None:
    found = ppo_math.whiten(t([1.0, 3.0], [5.0, 99.0]), b([1, 1], [1, 0]), centre=False)
    assert_close(found, t([2.0, 3.0], [4.0, 0.0]), 1e-8)


@pytest.mark.parametrize("centre", [True, False])
def test_whitening_reads_nothing_outside_the_mask_and_writes_zero_there(centre: bool) -> None:
    mask = b([1, 1, 0], [1, 0, 0])
    clean = ppo_math.whiten(t([1.0, 3.0, 0.0], [5.0, 0.0, 0.0]), mask, centre=centre)
    dirty = ppo_math.whiten(t([1.0, 3.0, NAN], [5.0, math.inf, NAN]), mask, centre=centre)
    assert torch.equal(clean, dirty)
    assert bool((dirty[~mask] == 0).all())


def test_one_value_alone_is_whitened_to_zero_or_left_as_it_is() -> None:
    assert ppo_math.whiten(t([7.0, 9.0]), b([1, 0])).tolist() == [[0.0, 0.0]]
    assert ppo_math.whiten(t([7.0, 9.0]), b([1, 0]), centre=False).tolist() == [[7.0, 0.0]]


def test_equal_values_whiten_to_something_finite() -> None:
    found = ppo_math.whiten(torch.full((2, 5), 0.1), full(2, 5))
    assert bool((found.abs() < 1e-3).all())


# ---------------------------------------------------------------- KL


def test_kl_estimates_are_those_worked_out_by_hand() -> None:
    logprobs, reference = t([math.log(0.5), math.log(0.2)]), t([math.log(0.25), math.log(0.4)])  # r = 1/2 and 2
    two = math.log(2)
    assert_close(ppo_math.kl_estimate(logprobs, reference, "k1"), t([two, -two]))
    assert_close(ppo_math.kl_estimate(logprobs, reference, "k2"), t([two**2 / 2, two**2 / 2]))
    assert_close(ppo_math.kl_estimate(logprobs, reference, "k3"), t([two - 0.5, 1 - two]))


def vocabulary(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of a policy and its reference over 7 tokens, and KL(policy || reference)."""
    policy = torch.log_softmax(random(seed, 7), 0)
    reference = torch.log_softmax(random(seed + 100, 7), 0)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=policy), torch.distributions.Categorical(logits=reference)
    )
    return policy, reference, kl


@pytest.mark.parametrize("seed", range(4))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed: int) -> None:
    policy, reference, kl = vocabulary(seed)
    expected = {
        name: (policy.exp() * ppo_math.kl_estimate(policy, reference, name)).sum()  # type: ignore[arg-type]
        for name in ("k1", "k2", "k3")
    }
    assert_close(expected["k1"], kl)
    assert_close(expected["k3"], kl)
    assert abs(float(expected["k2"] - kl)) > 1e-2 * float(kl)


@pytest.mark.parametrize("seed", range(4))
def test_k3_is_never_negative_and_k1_is_for_some_token(seed: int) -> None:
    policy, reference, _ = vocabulary(seed)
    assert bool((ppo_math.kl_estimate(policy, reference, "k3") >= 0).all())
    assert bool((ppo_math.kl_estimate(policy, reference, "k2") >= 0).all())
    assert bool((ppo_math.kl_estimate(policy, reference, "k1") < 0).any())


def test_k2s_bias_vanishes_as_the_policies_meet() -> None:
    policy, direction = torch.log_softmax(random(1, 7), 0), random(3, 7)

    def bias(size: float) -> float:
        reference = torch.log_softmax(policy + size * direction, 0)
        kl = (policy.exp() * (policy - reference)).sum()
        k2 = (policy.exp() * ppo_math.kl_estimate(policy, reference, "k2")).sum()
        return abs(float((k2 - kl) / kl))

    assert bias(0.001) < bias(0.01) / 5 and bias(0.01) < bias(0.1) / 5


def test_k3_keeps_digits_near_zero_where_the_plain_formula_has_none() -> None:
    log_ratio = torch.logspace(-5, -2, 500)
    log_ratio = torch.cat([log_ratio, -log_ratio])  # float32
    x = log_ratio.double()
    exact = x**2 / 2 + x**3 / 6 + x**4 / 24 + x**5 / 120  # the next term is below 1e-14 of it
    found = ppo_math.kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k3")
    plain = (log_ratio.exp() - 1) - log_ratio
    assert found.dtype == torch.float32
    assert bool((found >= 0).all()) and bool((plain < 0).any())
    assert float(((found.double() - exact) / exact).abs().max()) < 0.02
    assert float(((plain.double() - exact) / exact).abs().max()) > 10


# ---------------------------------------------------------------- rewards


def test_the_score_stands_after_the_end_or_at_the_last_token_where_no_column_is_left() -> None:
    lengths = torch.tensor([1, 2, 3, 0])
    kl = torch.ones(4, 3, dtype=torch.float64)
    found = ppo_math.token_rewards(
        kl, torch.tensor([5.0, 6.0, 7.0, 8.0]), lengths, 0.5, ppo_math.response_mask(lengths, 3)
    )
    assert_close(found, t([-0.5, 5.0, 0.0], [-0.5, -0.5, 6.0], [-0.5, -0.5, 6.5], [8.0, 0.0, 0.0]))


def test_kl_is_a_cost_at_each_token_and_the_score_is_given_once() -> None:
    lengths = torch.tensor([2, 4])
    kl = random(1, 2, 4)
    mask = ppo_math.response_mask(lengths, 4)
    found = ppo_math.token_rewards(kl, t(3.0, -1.0), lengths, 0.2, mask)
    assert_close(found.sum(1), torch.stack([3.0 - 0.2 * kl[0, :2].sum(), -1.0 - 0.2 * kl[1].sum()]))


def test_kl_outside_the_mask_is_not_read_and_the_rewards_are_new() -> None:
    lengths = torch.tensor([1])
    kl = t([1.0, NAN, NAN])
    found = ppo_math.token_rewards(kl, t(2.0), lengths, 1.0, ppo_math.response_mask(lengths, 3))
    assert found.tolist() == [[-1.0, 2.0, 0.0]]
    assert math.isnan(float(kl[0, 1]))


def test_a_missing_end_costs_the_penalty_and_an_end_costs_nothing() -> None:
    ended = torch.tensor([True, False])
    assert_close(ppo_math.apply_missing_eos(t(2.0, 3.0), ended, penalty=1.5), t(2.0, 1.5))


def test_a_missing_end_sets_the_fixed_score_whatever_the_reward_said() -> None:
    ended = torch.tensor([True, False, False])
    assert_close(ppo_math.apply_missing_eos(t(2.0, 3.0, -9.0), ended, score=-1.0), t(2.0, -1.0, -1.0))
    assert_close(ppo_math.apply_missing_eos(t(2.0, 3.0, -9.0), ended, score=0.0), t(2.0, 0.0, 0.0))


def test_without_a_rule_a_missing_end_changes_no_score() -> None:
    scores = t(2.0, 3.0)
    assert torch.equal(ppo_math.apply_missing_eos(scores, torch.tensor([False, False])), scores)


# ---------------------------------------------------------------- advantages


def naive_advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """1506.02438, eq. 16, as the sum it is defined by; one response, its states only."""
    found = []
    for start in range(len(values)):
        total = 0.0
        for step in range(start, len(values)):
            following = values[step + 1] if step + 1 < len(values) else 0.0
            total += (gamma * lam) ** (step - start) * (rewards[step] + gamma * following - values[step])
        found.append(total)
    return found


def test_advantages_of_two_states_are_those_worked_out_by_hand() -> None:
    # delta_1 = 1 - 0.1 = 0.9; delta_0 = 0 + 0.9 * 0.1 - 0.09 = 0; A_0 = 0 + 0.9 * 0.9 = 0.81
    advantages, returns = ppo_math.advantages_and_returns(t([0.0, 1.0]), t([0.09, 0.1]), full(1, 2), 0.9, 1.0)
    assert_close(advantages, t([0.81, 0.9]))
    assert_close(returns, t([0.9, 1.0]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.7, 0.9), (1.0, 1.0), (0.5, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_advantages_are_the_discounted_sum_of_errors(seed: int, gamma: float, lam: float) -> None:
    width = 6
    lengths = torch.randint(0, width + 1, (8,), generator=torch.Generator().manual_seed(seed))
    lengths[:3] = torch.tensor([0, width - 1, width])
    mask = ppo_math.value_mask(lengths, width)
    rewards = random(seed, 8, width).masked_fill(~mask, NAN)
    values = random(seed + 9, 8, width).masked_fill(~mask, NAN)
    advantages, returns = ppo_math.advantages_and_returns(rewards, values, mask, gamma, lam)
    for row in range(8):
        states = int(mask[row].sum())
        expected = naive_advantages(rewards[row, :states].tolist(), values[row, :states].tolist(), gamma, lam)
        assert_close(advantages[row, :states], torch.tensor(expected, dtype=torch.float64))
        assert_close(returns[row, :states], advantages[row, :states] + values[row, :states])
    assert bool((advantages[~mask] == 0).all()) and bool((returns[~mask] == 0).all())


def test_with_lambda_0_an_advantage_is_the_one_step_error() -> None:
    rewards, values = random(1, 3, 5), random(2, 3, 5)
    advantages, returns = ppo_math.advantages_and_returns(rewards, values, full(3, 5), 0.8, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], 1)
    assert_close(advantages, rewards + 0.8 * following - values)
    assert_close(returns, rewards + 0.8 * following)


def test_with_lambda_1_a_return_is_the_discounted_reward_to_go_whatever_the_critic_says() -> None:
    rewards = t([1.0, 2.0, 4.0])
    for seed in range(3):
        _, returns = ppo_math.advantages_and_returns(rewards, random(seed, 1, 3), full(1, 3), 0.5, 1.0)
        assert_close(returns, t([3.0, 4.0, 4.0]))


def test_gamma_and_lambda_are_not_interchangeable() -> None:
    rewards, values = t([0.0, 3.0]), t([1.0, 2.0])
    one, _ = ppo_math.advantages_and_returns(rewards, values, full(1, 2), 0.5, 0.8)
    other, _ = ppo_math.advantages_and_returns(rewards, values, full(1, 2), 0.8, 0.5)
    assert_close(one, t([0.4, 1.0]))  # delta_0 = 0.5 * 2 - 1 = 0
    assert_close(other, t([1.0, 1.0]))  # delta_0 = 0.8 * 2 - 1 = 0.6


# ---------------------------------------------------------------- the policy's loss

# ratio and advantage in the four cases, the clip range 0.2: clipped, not, not, clipped
RATIOS, SIGNS = [1.5, 1.5, 0.5, 0.5], [2.0, -2.0, 2.0, -2.0]


def test_the_policy_loss_of_the_four_cases_is_that_worked_out_by_hand() -> None:
    logprobs = torch.tensor([RATIOS], dtype=torch.float64).log().requires_grad_()
    terms = ppo_math.policy_loss(logprobs, t([0.0] * 4), t(SIGNS), full(1, 4), 0.2, 4)
    assert_close(terms.loss, (-1.2 * 2 + 1.5 * 2 - 0.5 * 2 + 0.8 * 2) / 4)
    assert terms.clipped.tolist() == [[True, False, False, True]]
    assert_close(terms.clip_fraction, 0.5)
    assert_close(terms.ratio_mean, 1.0)
    assert_close(terms.ratio, t(RATIOS))
    assert_close(terms.approx_kl, (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 4)
    terms.loss.backward()
    assert logprobs.grad is not None
    assert_close(logprobs.grad, t([0.0, 3.0 / 4, -1.0 / 4, 0.0]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 2.0, -2.4, True),
        (1.5, -2.0, 3.0, False),
        (0.5, 2.0, -1.0, False),
        (0.5, -2.0, 1.6, True),
        (1.1, 2.0, -2.2, False),
        (0.9, -2.0, 1.8, False),
    ],
)
def test_each_case_of_the_policy_loss_alone(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    terms = ppo_math.policy_loss(t([math.log(ratio)]), t([0.0]), t([advantage]), full(1, 1), 0.2, 1)
    assert_close(terms.loss, loss)
    assert bool(terms.clipped) is clipped and float(terms.clip_fraction) == float(clipped)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_a_step_down_the_policy_loss_makes_a_good_token_likelier_and_a_bad_one_rarer(advantage: float) -> None:
    logits = random(1, 1, 5).requires_grad_()
    logprobs = torch.log_softmax(logits, -1)[:, 2:3]
    ppo_math.policy_loss(logprobs, logprobs.detach(), t([advantage]), full(1, 1), 0.2, 1).loss.backward()
    assert logits.grad is not None
    after = torch.log_softmax(logits.detach() - 0.1 * logits.grad, -1)[0, 2]
    assert (float(after - logprobs.detach()) > 0) is (advantage > 0)


def test_where_nothing_has_changed_yet_the_gradient_is_that_of_policy_gradients() -> None:
    logprobs, advantages = random(1, 2, 3).requires_grad_(), random(2, 2, 3)
    terms = ppo_math.policy_loss(logprobs, logprobs.detach(), advantages, full(2, 3), 0.2, 6)
    terms.loss.backward()
    assert logprobs.grad is not None
    assert_close(logprobs.grad, -advantages / 6)
    assert_close(terms.loss, -advantages.mean())
    assert float(terms.clip_fraction) == float(terms.approx_kl) == 0.0 and float(terms.ratio_mean) == 1.0


def test_the_policy_loss_reads_nothing_outside_the_mask() -> None:
    mask = b([1, 1, 0], [1, 0, 0])
    numbers = [random(seed, 2, 3) for seed in (1, 2, 3)]
    clean = ppo_math.policy_loss(*[n.masked_fill(~mask, 0.0) for n in numbers], mask, 0.2, 3)
    logprobs, old, advantages = [n.masked_fill(~mask, NAN) for n in numbers]
    dirty = ppo_math.policy_loss(logprobs.requires_grad_(), old, advantages, mask, 0.2, 3)
    for name in ("loss", "clip_fraction", "approx_kl", "ratio_mean", "clipped"):
        assert torch.equal(getattr(dirty, name), getattr(clean, name)), name
    huge = ppo_math.policy_loss(*[n.masked_fill(~mask, 50.0 * i) for i, n in enumerate(numbers)], mask, 0.2, 3)
    assert_close(huge.loss, clean.loss.detach())
    dirty.loss.backward()
    assert logprobs.grad is not None and bool((logprobs.grad[~mask] == 0).all())
    assert bool(torch.isfinite(logprobs.grad).all())


def batch_of_terms() -> tuple[Tensor, list[Tensor]]:
    """Lengths of six responses, and five tables (6, 5): two of log-probabilities, advantages, two of values."""
    lengths = torch.tensor([5, 1, 3, 4, 2, 5])
    return lengths, [random(seed, 6, 5) * 0.4 for seed in range(5)]


PARTS = [[[0, 1, 2, 3, 4, 5]], [[0], [1, 4], [2, 3, 5]], [[1], [4], [2], [3], [0], [5]]]


@pytest.mark.parametrize("parts", PARTS)
def test_micro_batches_add_up_to_the_minibatchs_policy_loss(parts: list[list[int]]) -> None:
    lengths, (new, old, advantages, _, _) = batch_of_terms()
    mask = ppo_math.response_mask(lengths, 5)
    ratio = (new - old).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)[mask]
    sums = dict.fromkeys(("loss", "clip_fraction", "approx_kl", "ratio_mean"), 0.0)
    for rows in parts:
        width = int(lengths[rows].max())
        cut = [table[rows, :width] for table in (new, old, advantages, mask)]
        terms = ppo_math.policy_loss(*cut, 0.2, mask.sum())
        sums = {name: total + float(getattr(terms, name)) for name, total in sums.items()}
    assert sums["loss"] == pytest.approx(-float(gain.mean()), abs=1e-12)
    assert sums["ratio_mean"] == pytest.approx(float(ratio[mask].mean()), abs=1e-12)
    assert sums["approx_kl"] == pytest.approx(float(((new - old) ** 2)[mask].mean()) / 2, abs=1e-12)
    clipped = gain < (ratio * advantages)[mask]
    assert 0 < int(clipped.sum()) < len(clipped)
    assert sums["clip_fraction"] == pytest.approx(float(clipped.double().mean()), abs=FLOAT32)


# ---------------------------------------------------------------- the critic's loss


def test_the_value_loss_with_clipping_is_that_worked_out_by_hand() -> None:
    # old 0, clip range 0.2: half of the larger of (V - R)^2 and (clipped V - R)^2
    values = t([0.5, 0.5, 0.1, -0.5]).requires_grad_()
    returns = t([1.0, 0.0, 1.0, -1.0])
    terms = ppo_math.value_loss(values, t([0.0] * 4), returns, full(1, 4), 0.2, 4)
    assert_close(terms.loss, (0.64 + 0.25 + 0.81 + 0.64) / 2 / 4)
    assert_close(terms.clip_fraction, 0.5)
    terms.loss.backward()
    assert values.grad is not None
    assert_close(values.grad, t([0.0, 0.5 / 4, -0.9 / 4, 0.0]))


def test_the_value_loss_in_a_wide_clip_range_is_half_the_squared_error() -> None:
    terms = ppo_math.value_loss(t([0.5, 0.5, 0.1, -0.5]), t([0.0] * 4), t([1.0, 0.0, 1.0, -1.0]), full(1, 4), 10.0, 4)
    assert_close(terms.loss, (0.25 + 0.25 + 0.81 + 0.25) / 2 / 4)
    assert float(terms.clip_fraction) == 0.0


def test_values_are_clipped_about_the_old_ones_not_about_zero() -> None:
    terms = ppo_math.value_loss(t([3.5]), t([3.0]), t([4.0]), full(1, 1), 0.2, 1)
    assert_close(terms.loss, 0.8**2 / 2)


def test_the_value_loss_reads_nothing_outside_the_mask_and_divides_by_the_count_it_is_given() -> None:
    mask = b([1, 1, 0], [1, 0, 0])
    values = t([1.0, 2.0, NAN], [3.0, NAN, 50.0])
    returns = t([0.0, 0.0, NAN], [0.0, 9.0, 0.0])
    terms = ppo_math.value_loss(values, values, returns, mask, 0.2, 10)
    assert_close(terms.loss, (1.0 + 4.0 + 9.0) / 2 / 10)
    assert float(terms.clip_fraction) == 0.0
    moved = ppo_math.value_loss(values, torch.zeros(2, 3), torch.full((2, 3), 5.0), mask, 0.2, 10)
    assert_close(moved.clip_fraction, 0.3)


@pytest.mark.parametrize("parts", PARTS)
def test_micro_batches_add_up_to_the_minibatchs_value_loss(parts: list[list[int]]) -> None:
    lengths, (_, _, returns, values, old) = batch_of_terms()
    mask = ppo_math.value_mask(lengths, 5)
    clipped = old + (values - old).clamp(-0.2, 0.2)
    plain_error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    loss, fraction = 0.0, 0.0
    for rows in parts:
        width = min(int(lengths[rows].max()) + 1, 5)
        cut = [table[rows, :width] for table in (values, old, returns, mask)]
        terms = ppo_math.value_loss(*cut, 0.2, mask.sum())
        loss, fraction = loss + float(terms.loss), fraction + float(terms.clip_fraction)
    expected = (clipped_error > plain_error + 1e-12)[mask].double().mean()
    assert 0 < float(expected) < 1
    assert loss == pytest.approx(float(torch.maximum(plain_error, clipped_error)[mask].mean()) / 2, abs=1e-12)
    assert fraction == pytest.approx(float(expected), abs=FLOAT32)


# ---------------------------------------------------------------- entropy, explained variance


def test_entropy_is_that_of_each_rows_distribution() -> None:
    logits = t([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1000.0]], [[5.0, 5.0, -1000.0, -1000.0], [1.0, 2.0, 3.0, 4.0]])
    found = tensors.entropy(logits)
    last = torch.distributions.Categorical(logits=logits[1, 1]).entropy()
    assert_close(
        found, torch.stack([t(math.log(4), 0.0), torch.stack([torch.tensor(math.log(2)).double(), last])]), 1e-6
    )
    quarter = tensors.entropy(t([0.0, math.log(3)]))  # 1/4 and 3/4
    assert_close(quarter, t(0.25 * math.log(4) + 0.75 * math.log(4 / 3)))


def test_explained_variance_is_that_worked_out_by_hand() -> None:
    returns = t([1.0, 2.0, 3.0, 4.0])  # variance 1.25; the errors 0, 0, 0, 1 have 0.1875
    found = ppo_math.explained_variance(t([1.0, 2.0, 3.0, 3.0]), returns, full(1, 4))
    assert_close(found, 0.85)


def test_explained_variance_is_1_for_a_perfect_critic_0_for_the_mean_and_negative_for_a_worse_one() -> None:
    returns = random(1, 3, 4)
    mask = full(3, 4)
    assert_close(ppo_math.explained_variance(returns, returns, mask), 1.0)
    assert_close(ppo_math.explained_variance(returns + 2, returns, mask), 1.0)
    assert_close(ppo_math.explained_variance(torch.full_like(returns, 0.3), returns, mask), 0.0)
    assert_close(ppo_math.explained_variance(-returns, returns, mask), -3.0)


def test_explained_variance_reads_nothing_outside_the_mask() -> None:
    mask = b([1, 1, 0], [1, 1, 0])
    found = ppo_math.explained_variance(t([1.0, 2.0, NAN], [3.0, 3.0, 7.0]), t([1.0, 2.0, 9.0], [3.0, 4.0, NAN]), mask)
    assert_close(found, 0.85)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 0.7, 3.3])
def test_constant_returns_have_nothing_to_explain(constant: float) -> None:
    returns = torch.full((2, 5), constant)  # float32: the variance of ten times 0.1 is not quite 0
    assert float(ppo_math.explained_variance(random(1, 2, 5).float(), returns, full(2, 5))) == 0.0


def test_importance_weights_are_worked_out_by_hand_and_capped() -> None:
    """Twice as likely in learning as in sampling, half, three times with a cap of 2, and a column outside the mask."""
    learning = t([math.log(0.5), math.log(0.2), math.log(0.9), 0.0])
    sampling = t([math.log(0.25), math.log(0.4), math.log(0.3), -torch.inf])
    mask = torch.tensor([[True, True, True, False]])
    weights = ppo_math.importance_weights(learning, sampling, 2.0, mask)
    assert weights.tolist() == [pytest.approx([2.0, 0.5, 2.0, 1.0])]
    free = ppo_math.importance_weights(learning, sampling, 10.0, mask)
    assert free.tolist() == [pytest.approx([2.0, 0.5, 3.0, 1.0])]


def test_weighted_tokens_have_the_expectation_that_learning_would_have() -> None:
    """Drawn by q = (0.6, 0.3, 0.1) and weighed by p / q, the mean advantage is that under p = (0.2, 0.5, 0.3)."""
    p, q, advantages = t([0.2, 0.5, 0.3]), t([0.6, 0.3, 0.1]), t([1.0, -2.0, 4.0])
    weights = ppo_math.importance_weights(p.log(), q.log(), 100.0, full(1, 3))
    assert float((q * weights * advantages).sum()) == pytest.approx(float((p * advantages).sum()))

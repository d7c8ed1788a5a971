"""PPO's numbers by NumPy: each formula by numbers worked out by hand, and the two special cases of GAE."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhfctl.stats import ppo_arithmetic as arithmetic

CLIPS = {"cliprange": 0.2, "cliprange_value": 0.2}


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.5 - 1 + math.log(2))],
)
def test_each_estimator_of_kl_by_hand(estimator: str, expected: float) -> None:
    """The policy gives a token 1/2, the reference 1/4: q/p is 1/2."""
    found = arithmetic.kl([math.log(0.5)], [math.log(0.25)], [0.0], estimator)
    assert found == pytest.approx([expected])


def test_kl_is_of_the_distribution_that_was_sampled_from() -> None:
    """Top-k kept half of the probability: a token of 1/4 was drawn with 1/2."""
    found = arithmetic.kl([math.log(0.25)], [math.log(0.5)], [math.log(0.5)], "k1")
    assert found == pytest.approx([0.0], abs=1e-12)


def test_the_estimators_are_those_of_simulation() -> None:
    """Over samples from p, k1 and k3 average to the KL that is summed over the vocabulary."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
    drawn = np.random.default_rng(0).choice(3, size=200_000, p=p)
    exact = float((p * np.log(p / q)).sum())
    for estimator in ("k1", "k3"):
        mean = arithmetic.kl(np.log(p)[drawn], np.log(q)[drawn], np.zeros(len(drawn)), estimator).mean()
        assert mean == pytest.approx(exact, abs=0.01)


def test_the_score_after_what_is_due_for_a_missing_end() -> None:
    assert arithmetic.final_score(2.0, True, 0.5, None) == 2.0
    assert arithmetic.final_score(2.0, False, 0.5, None) == 1.5
    assert arithmetic.final_score(2.0, False, None, -1.0) == -1.0
    assert arithmetic.final_score(2.0, False, None, None) == 2.0


def test_the_score_lies_in_the_last_state() -> None:
    assert arithmetic.rewards([1.0, -2.0], 5.0, 3, 0.1) == pytest.approx([-0.1, 0.2, 5.0])  # a state after the end
    assert arithmetic.rewards([1.0, -2.0], 5.0, 2, 0.1) == pytest.approx([-0.1, 5.2])  # none


def test_whitening_by_hand() -> None:
    assert arithmetic.rescaled([1.0, 3.0], 1.0, 2.0, centre=True) == pytest.approx([0.0, 1.0])
    assert arithmetic.rescaled([1.0, 3.0], 1.0, 2.0, centre=False) == pytest.approx([1.0, 2.0])


REWARDS, VALUES = [0.0, -1.0, 4.0], [1.0, 2.0, 3.0]


def test_advantages_by_hand() -> None:
    """Gamma 1/2. Deltas: 0 + 1 - 1, -1 + 1.5 - 2, 4 + 0 - 3; with lambda 1/2 each later one counts a quarter."""
    deltas = arithmetic.deltas(REWARDS, VALUES, 0.5)
    assert deltas == pytest.approx([0.0, -1.5, 1.0])
    assert arithmetic.advantages(deltas, 0.5, 0.5) == pytest.approx([-0.375 + 0.0625, -1.5 + 0.25, 1.0])


def test_lambda_0_is_the_one_step_error() -> None:
    deltas = arithmetic.deltas(REWARDS, VALUES, 0.9)
    assert arithmetic.advantages(deltas, 0.9, 0.0) == pytest.approx(deltas)


def test_lambda_1_is_the_n_step_return_less_the_value() -> None:
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=12), rng.normal(size=12)
    n_step = arithmetic.n_step_advantages(rewards, values, 0.9)
    assert arithmetic.advantages(arithmetic.deltas(rewards, values, 0.9), 0.9, 1.0) == pytest.approx(n_step)
    assert n_step[10] == pytest.approx(rewards[10] + 0.9 * rewards[11] - values[10])


def test_the_clip_holds_a_gain_back_but_never_a_loss() -> None:
    plain, clipped = arithmetic.objective([1.5, 1.5, 0.5, 0.5], [2.0, -2.0, 2.0, -2.0], 0.2)
    assert plain == pytest.approx([3.0, -3.0, 1.0, -1.0])
    assert clipped == pytest.approx([2.4, -2.4, 1.6, -1.6])
    assert np.minimum(plain, clipped) == pytest.approx([2.4, -3.0, 1.0, -1.6])


def test_the_larger_of_both_errors_of_a_value() -> None:
    plain, near = arithmetic.value_errors([2.0, 0.0], [1.0, 1.0], [2.0, 2.0], 0.25)
    assert plain == pytest.approx([0.0, 4.0]) and near == pytest.approx([0.75**2, 1.25**2])


def test_losses_are_means_over_tokens_of_a_minibatch_then_over_minibatches() -> None:
    """Minibatch 0 has two tokens, of ratio 1 and 2; minibatch 1 has one, of ratio 1/2. All advantages are 1."""

    def episode(logprobs: list[float], minibatch: int) -> dict[str, object]:
        count = len(logprobs)
        epoch = {"minibatch": minibatch, "logprobs": logprobs, "values": [1.0] * count}
        numbers = {"policy_logprobs": [0.0] * count, "advantages": [1.0] * count}
        return numbers | {"values": [0.0] * count, "returns": [2.0] * count, "epochs": [epoch]}

    log2 = math.log(2)
    found = arithmetic.losses(
        [episode([0.0, log2], 0), episode([-log2], 1)], {"cliprange": 0.2, "cliprange_value": 0.5}
    )
    assert found["policy_loss"] == pytest.approx(-((1 + 1.2) / 2 + 0.5) / 2)
    assert found["clip_fraction"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["ratio"] == pytest.approx((1.5 + 0.5) / 2)
    assert found["approx_kl"] == pytest.approx((log2**2 / 4 + log2**2 / 2) / 2)
    assert found["value_loss"] == pytest.approx(1.5**2 / 2) and found["value_clip_fraction"] == 1.0


def test_without_a_critic_there_is_no_value_loss() -> None:
    one = {"policy_logprobs": [0.0], "advantages": [1.0], "epochs": [{"minibatch": 0, "logprobs": [0.0]}]}
    assert arithmetic.losses([one], CLIPS).keys() == {"policy_loss", "approx_kl", "clip_fraction", "ratio"}


def test_importance_weights_scale_the_policy_loss_token_by_token() -> None:
    one = {"policy_logprobs": [0.0, 0.0], "advantages": [1.0, -3.0], "importance": [2.0, 0.5]}
    epochs = [{"minibatch": 0, "logprobs": [0.0, 0.0]}]
    assert arithmetic.losses([one | {"epochs": epochs}], CLIPS)["policy_loss"] == pytest.approx(-(2.0 - 1.5) / 2)


def test_losses_of_tokens_are_added_up_by_the_algorithm() -> None:
    """Two responses, of three tokens and of one."""
    few = [np.array([1.0, 2.0, 6.0]), np.array([5.0])]
    found = {
        name: arithmetic.added_up(few, {"algorithm": name, "response_length": 7})
        for name in ("a2c", "reinforce", "rloo")
    }
    assert found == {"a2c": 14 / 4, "reinforce": 14 / 2, "rloo": 14 / 2} and arithmetic.added_up(few, {}) == 14 / 4
    grpo = {"algorithm": "grpo", "response_length": 7}
    types = {name: arithmetic.added_up(few, grpo | {"loss_type": name}) for name in ("grpo", "dapo", "dr_grpo")}
    assert types == {"grpo": (3 + 5) / 2, "dapo": 14 / 4, "dr_grpo": 14 / (2 * 7)}


def test_a_loss_without_a_clip_is_minus_a_log_p_and_grpo_adds_the_kl() -> None:
    one = {"policy_logprobs": [math.log(0.5)], "advantages": [2.0], "reference_logprobs": [math.log(0.25)]}
    one |= {"epochs": [{"minibatch": 0, "logprobs": [math.log(0.5)]}]}
    plain = arithmetic.losses([one], {"algorithm": "a2c"})
    assert plain.keys() == {"policy_loss", "approx_kl", "ratio"}
    assert plain["policy_loss"] == pytest.approx(-2 * math.log(0.5))
    grpo = {"algorithm": "grpo", "loss_type": "dapo", "kl_coef": 0.3, "cliprange": 0.2}
    assert arithmetic.losses([one], grpo)["policy_loss"] == pytest.approx(-2.0 + 0.3 * (0.5 - 1 - math.log(0.5)))


def test_the_reward_of_a_response_is_its_score_less_the_kl_of_all_tokens() -> None:
    assert arithmetic.response_reward(1.0, [0.5, -0.1, 0.2], 0.5) == pytest.approx(0.7)

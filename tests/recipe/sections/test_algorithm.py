"""The table of the keys that some algorithms do not use."""

from __future__ import annotations

import pytest

from rlhfctl.recipe.schema import Ppo
from rlhfctl.recipe.sections.algorithm import BY_OUTCOMES, NAMES, USED_BY, unused_key_rules, unused_keys, uses
from rlhfctl.recipe.sections.outcome_critic import OutcomeCritic


def test_a_key_is_used_by_those_that_the_table_names_and_by_all_if_it_names_none() -> None:
    assert uses("ppo", "cliprange") and not uses("rloo", "cliprange") and uses("rloo", "learning_rate")
    assert set(unused_keys("ppo")) >= {"scale_rewards", "loss_type"} and "critic" not in unused_keys("ppo")
    assert set(unused_keys("grpo")) >= {"critic", "gamma", "kl_estimator"} and "cliprange" not in unused_keys("grpo")
    for key, users in USED_BY.items():
        assert key in Ppo.model_fields and set(users) <= {*NAMES, BY_OUTCOMES}, key


def test_each_key_that_somebody_does_not_use_has_a_rule() -> None:
    keys = [rule.key for rule in unused_key_rules()]
    assert keys == [*unused_keys(BY_OUTCOMES), *(key for key, users in USED_BY.items() if not set(NAMES) <= set(users))]


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithm_has_a_critic_and_several_steps_only_if_it_uses_their_keys(name: str) -> None:
    section = Ppo(algorithm=name, num_ppo_epochs=3)
    assert (section.critic_kind is None) is (name in ("reinforce", "rloo", "grpo"))
    assert section.passes == (1 if name in ("a2c", "reinforce", "rloo") else 3)
    assert section.trains_by == name


def test_outcome_critic_trains_by_its_own_entry() -> None:
    section = Ppo(outcome_critic=OutcomeCritic(), num_ppo_epochs=3)
    assert (section.trains_by, section.critic_kind, section.passes) == (BY_OUTCOMES, None, 3)

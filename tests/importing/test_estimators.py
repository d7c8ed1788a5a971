"""OpenRLHF's advantage estimators: each is an algorithm with the keys that it uses, and what differs is said."""

from __future__ import annotations

from typing import Any

import pytest

from rlhfctl.importing.findings import Draft, Fields, Job
from rlhfctl.importing.openrlhf import translate
from rlhfctl.recipe.schema import Ppo


def drafted(**given: Any) -> Draft:
    draft = Draft({"name": "x"})
    translate(Fields(Job("OpenRLHF", "ppo", {"pretrain": "a/b", **given}, "x.sh"), draft))
    return draft


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("gae", {}),
        ("reinforce", {"algorithm": "reinforce"}),
        ("rloo", {"algorithm": "rloo"}),
        ("group_norm", {"algorithm": "grpo"}),
        ("dr_grpo", {"algorithm": "grpo", "scale_rewards": "none"}),
        ("reinforce_baseline", {"algorithm": "grpo", "scale_rewards": "batch"}),
    ],
)
def test_an_advantage_estimator_is_an_algorithm_with_the_keys_that_it_uses(
    estimator: str, expected: dict[str, str]
) -> None:
    given = {"eps_clip": 0.3, "value_clip": 0.4, "lambd": 0.9, "kl_estimator": "k2", "n_samples_per_prompt": 4}
    made = drafted(advantage_estimator=estimator, train_batch_size=16, rollout_batch_size=16, **given).recipe["ppo"]
    assert {key: made[key] for key in ("algorithm", "scale_rewards") if key in made} == expected
    section = Ppo(**made)
    assert list(section.conflicts("ppo")) == []
    name = expected.get("algorithm", "ppo")
    assert ("lam" in made, "cliprange_value" in made) == (name == "ppo", name == "ppo")
    clips = name in ("ppo", "grpo")
    assert ("cliprange" in made, "num_mini_batches" in made, "num_ppo_epochs" in made) == (clips, clips, clips)
    assert ("kl_estimator" in made) is (name != "grpo")


def test_what_is_different_is_said() -> None:
    def said(**given: Any) -> str:
        return " ".join(str(finding) for _, finding in drafted(**given).findings)

    assert "set it to 2 or more" in said(advantage_estimator="rloo")
    assert "set it to 2 or more" not in said(advantage_estimator="rloo", n_samples_per_prompt=4)
    assert "the KL is in grpo's loss" in said(advantage_estimator="group_norm", use_kl_loss=True)
    assert "off there; grpo has the KL in its loss" in said(advantage_estimator="group_norm", use_kl_loss=False)
    assert "not added to the loss" in said(advantage_estimator="rloo", use_kl_loss=True)
    assert "has no such estimator" in said(advantage_estimator="other")

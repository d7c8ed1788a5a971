"""Prepare PPO's outcome critic: sample programs of the first policy, run them, and train the critic on their outcomes.

A part of the ppo stage. Keeps the trained critic in the stage's work folder, so that a resumed stage goes on with the
same one, and publishes it beside the policy. The model and its training are in training/rl/outcome_critic.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.generation.generator import sampling_for
from rlhfctl.generation.local import sample
from rlhfctl.generation.shares import in_shares
from rlhfctl.models import devices
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards.episode import RewardFunction
from rlhfctl.rewards.unit_tests import outcomes_of
from rlhfctl.stages.context import Context
from rlhfctl.training.rl import outcome_critic
from rlhfctl.training.rl.collect import PromptData, episodes_of
from rlhfctl.training.rl.outcome_critic import FOLDER, OutcomeCritic
from rlhfctl.training.rl.roles import Roles

_STREAM = (1 << 32) + 1  # a stream of random numbers that neither training nor evaluation uses
_MEASURES = "measures.json"


def prepare(
    section: Ppo, base: PreTrainedModel, roles: Roles, data: PromptData, reward: RewardFunction, ctx: Context
) -> tuple[OutcomeCritic | None, dict[str, float]]:
    """Return the trained outcome critic and its measures, those of an interrupted stage if there are; None without."""
    if section.outcome_critic is None:
        return None, {}
    kept, processes = ctx.work / FOLDER, Processes.here()
    if (kept / _MEASURES).is_file():
        measures: dict[str, float] = json.loads((kept / _MEASURES).read_text(encoding="utf-8"))
        return OutcomeCritic.load(kept, devices.device()), measures
    sampling = sampling_for(section, data.tokenizer, seed=ctx.recipe.seed, stream=_STREAM)

    def sampled(indices: Sequence[int]) -> list[list[int]]:
        prompts, what = [data.prompts[index] for index in indices], "sampling programs for the outcome critic"
        draw = in_shares(sample, processes)
        return [one.ids for one in draw(roles.policy, prompts, data.tokenizer, sampling, what=what)]

    def outcomes(indices: Sequence[int], responses: Sequence[Sequence[int]]) -> list[str]:
        reward(episodes_of(data, indices, responses, section))
        return outcomes_of(reward)

    programs = outcome_critic.collected(data.prompts, section.outcome_critic.samples, sampled, outcomes)
    critic = OutcomeCritic.on(base, seed=ctx.recipe.seed)
    measures = outcome_critic.train(critic, programs, section.outcome_critic, seed=ctx.recipe.seed)
    right, most = measures["outcome_critic_accuracy"], measures["outcome_critic_majority"]
    ctx.note(
        f"the outcome critic is right on {right:.0%} of held-out programs; the most frequent outcome is {most:.0%}"
    )
    if processes.first:
        with fs.publish_folder(kept) as folder:
            critic.save(folder, data.tokenizer)
            fs.write_json(folder / _MEASURES, measures)
    processes.wait()
    return critic, measures


def publish(critic: OutcomeCritic | None, tokenizer: PreTrainedTokenizerBase, ctx: Context) -> dict[str, Any]:
    """Save the outcome critic beside the policy, and return its part of the layout; nothing without one."""
    if critic is None:
        return {}
    with fs.publish_folder(ctx.folder / FOLDER) as folder:
        critic.save(folder, tokenizer)
    return {"outcome_critic": FOLDER}

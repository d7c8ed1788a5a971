"""The prediction of one stage: rows, steps, tokens, memory."""

from __future__ import annotations

import json
from pathlib import Path

from small_plans import planned
from torch import nn

from rlhfctl.graph import Request
from rlhfctl.planning.stages import StagePlan, optimizer_state


def test_ppo_counts_updates_and_tokens(tiny_recipe: Path) -> None:
    new = planned(tiny_recipe, tiny_recipe.parent / "nothing")
    ppo = next(stage for stage in new.stages if stage.name == "ppo")
    assert (ppo.steps, ppo.tokens, ppo.rows) == (2, 32 * 12, "42 prompts, 32 episodes")


def test_without_a_critic_less_is_written(tiny_recipe: Path) -> None:
    plans = {}
    for algorithm in ("a2c", "rloo"):
        sets = (f"ppo.algorithm={algorithm}", "ppo.num_generations=2")
        found = planned(tiny_recipe, tiny_recipe.parent / "nothing", *sets)
        plans[algorithm] = next(stage for stage in found.stages if stage.name == "ppo")
    with_critic, without = plans["a2c"], plans["rloo"]
    assert without.disk.kept < 0.8 * with_critic.disk.kept and without.disk.highest < with_critic.disk.highest
    assert with_critic.outlook is not None and without.outlook is not None
    assert "critic" in with_critic.outlook.peak.needs and "critic" not in without.outlook.peak.needs


def test_compare_says_how_many_questions_go_where(tiny_recipe: Path) -> None:
    endpoint = "compare.endpoint={base_url: 'https://judge.example/v1', model: judge-1}"
    new = planned(tiny_recipe, tiny_recipe.parent / "nothing", "compare.judges=[gold, endpoint]", endpoint)
    compare = next(stage for stage in new.stages if stage.name == "compare")
    assert compare.rows.endswith("; up to 24 questions to judge-1 at judge.example")  # 12 prompts, both orders


def test_two_reward_models_share_the_pairs(tiny_recipe: Path) -> None:
    found = planned(tiny_recipe, tiny_recipe.parent / "nothing", "reward.heldout=true")
    own, other = (next(stage for stage in found.stages if stage.name == name) for name in ("reward", "heldout"))
    assert own.rows == other.rows == "24 pairs, 16 held out"
    assert (own.steps, other.steps, other.outlook is not None) == (3, 3, True)


def test_an_ensemble_is_as_many_trainings(tiny_recipe: Path) -> None:
    plans = [
        next(
            stage
            for stage in planned(tiny_recipe, tiny_recipe.parent / "nothing", *sets).stages
            if stage.name == "reward"
        )
        for sets in ((), ("reward.members=4", "reward.heldout=false"))
    ]
    assert plans[1].rows == "48 pairs, 16 held out, 4 members on a bootstrap each"
    assert (plans[1].steps, plans[1].tokens) == (4 * plans[0].steps, 4 * plans[0].tokens)
    assert plans[1].disk.kept == 4 * plans[0].disk.kept < plans[1].disk.highest
    heldout = planned(tiny_recipe, tiny_recipe.parent / "nothing", "reward.members=4", "reward.heldout=true").stages
    own, other = (next(stage for stage in heldout if stage.name == name) for name in ("reward", "heldout"))
    assert own.steps == 4 * other.steps and "members" not in other.rows


def test_a_loss_on_groups_counts_each_response_once(tiny_recipe: Path) -> None:
    rows = [{"prompt": f"{number} ", "responses": list("abcd"), "scores": [4, 3, 2, 1]} for number in range(40)]
    (tiny_recipe.parent / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"data.preferences={{source: {tiny_recipe.parent / 'ranked.jsonl'}, heldout: 0.25}}"
    plans = {}
    for loss in ("bradley_terry", "k_wise"):
        found = planned(tiny_recipe, tiny_recipe.parent / "nothing", data, f"reward.loss={loss}")
        plans[loss] = next(stage for stage in found.stages if stage.name == "reward")
    pairs, groups = plans["bradley_terry"], plans["k_wise"]
    assert pairs.rows == "180 pairs, 60 held out"  # 30 prompts to train on, six pairs each
    assert groups.rows == "180 pairs in 30 groups of up to 4 responses, 60 held out"
    assert (pairs.steps, groups.steps) == (23, 4)  # batches of 8
    assert pairs.tokens == 3 * groups.tokens  # each of the four responses is in three pairs
    assert pairs.outlook is not None and groups.outlook is not None
    assert groups.outlook.peak.total > pairs.outlook.peak.total  # 8 x 4 rows at once, not 8 x 2


def test_stages_that_divide_the_weights_are_foreseen_for_each_process(tiny_recipe: Path) -> None:
    both = [
        {stage.name: stage for stage in planned(tiny_recipe, tiny_recipe.parent / "nothing", *sets).stages}
        for sets in ((), ("launch={num_processes: 2, shard: true}", "ppo.critic=model"))
    ]
    one, two = both
    for name in ("sft", "reward", "ppo"):
        assert two[name].rows == f"{one[name].rows}; weights divided over 2 processes"
    assert two["compare"].rows == one["compare"].rows and two["compare"].outlook == one["compare"].outlook
    outlook, before = two["ppo"].outlook, one["ppo"].outlook
    assert outlook is not None and before is not None
    needs, whole = outlook.moments[0].needs, before.moments[0].needs
    assert needs["base*"]["weights"] == -(-whole["base*"]["weights"] // 2) and needs["base*"]["gathered"] > 0
    assert needs["policy"]["weights"] == whole["policy"]["weights"]  # an adapter
    assert needs["critic"]["weights"] < 0.6 * whole["base*"]["weights"]  # a model of its own


def test_an_optimizers_state() -> None:
    weight = nn.Parameter(nn.Linear(4, 8).weight.detach())
    sizes = {name: optimizer_state(name)(weight) for name in ("adamw_torch_fused", "adamw_8bit", "lion_32bit", "sgd")}
    assert sizes == {"adamw_torch_fused": 256, "adamw_8bit": 64, "lion_32bit": 128, "sgd": 0}


def test_trl_is_not_foreseen(tiny_recipe: Path, tiny_run: Path) -> None:
    found = planned(tiny_recipe, tiny_run, "ppo.engine=trl", request=Request(start="ppo", until="ppo"))
    ppo = next(stage for stage in found.stages if stage.name == "ppo")
    assert ppo.outlook is None and ppo.note == "TRL's PPOTrainer is not modelled: --probe measures it"


def test_the_card_counts_its_responses(tiny_recipe: Path) -> None:
    found = planned(tiny_recipe, tiny_recipe.parent / "nothing", "reward.card={prompts: 50, samples: 4}")
    card = next(stage for stage in found.stages if stage.name == "card")
    assert (card.steps, card.tokens) == (6 * 4, 6 * 4 * 12)  # there are 6 eval prompts
    assert card.rows == "6 prompts x 4 responses, 16 held-out pairs"
    assert card.outlook is not None and card.disk.highest > card.disk.kept > 0
    assert [stage.name for stage in found.stages] == ["sft", "reward", "card", "ppo", "compare"]


def test_behind_a_closed_gate_stages_wait(tiny_recipe: Path, carded_run: Path) -> None:
    settings = ("reward.card={prompts: 6, samples: 8}", "reward.gate={min_accuracy: 1.0}", "ppo.kl_coef=0.3")
    waits = {stage.name: (stage.action, stage.why) for stage in planned(tiny_recipe, carded_run, *settings).stages}
    assert waits["card"][0] == "skip" and waits["ppo"] == waits["compare"]
    assert waits["ppo"][0] == "wait"
    assert waits["ppo"][1].startswith("the reward model does not pass reward.gate (rlhfctl reward-eval")
    open_gate = "reward.gate={min_accuracy: null, min_length_controlled_accuracy: null, flags: []}"
    runs = {stage.name: stage.action for stage in planned(tiny_recipe, carded_run, *settings, open_gate).stages}
    assert runs == {"sft": "skip", "reward": "skip", "card": "skip", "ppo": "run", "compare": "run"}


def test_held_out_demonstrations_are_not_trained_on_and_candidates_are_counted(tiny_recipe: Path) -> None:
    def sft(*sets: str) -> StagePlan:
        found = planned(tiny_recipe, tiny_recipe.parent / "nothing", *sets)
        return next(stage for stage in found.stages if stage.name == "sft")

    plain, heldout = sft(), sft("data.demonstrations.heldout=0.25")
    assert plain.rows == "96 demonstrations" and int(heldout.rows.split()[0]) < 80
    chosen = sft("sft.choose={by: 'scores:length', every: 2}")
    assert chosen.rows == "96 demonstrations, the best weights by scores:length"
    assert chosen.disk.highest > plain.disk.highest and chosen.disk.kept == plain.disk.kept
    assert chosen.outlook is not None and plain.outlook is not None
    assert [one.what for one in chosen.outlook.moments[-1:]] == ["sampling a candidate"]
    by_loss = sft("sft.choose={by: heldout_loss, every: 2}", "data.demonstrations.heldout=0.25")
    assert by_loss.outlook is not None and len(by_loss.outlook.moments) == len(plain.outlook.moments)

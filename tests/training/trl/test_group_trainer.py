"""Training on whole groups: gradients of explicit pairs, one forward per response, TRL's loss, metrics, a resume."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

from rlhfctl.data.encoding import EncodedGroup
from rlhfctl.data.types import PreferenceGroup
from rlhfctl.events import Event, StageStarted
from rlhfctl.models import build, heads, tokenizing
from rlhfctl.recipe.schema import Init, Reward
from rlhfctl.training.trl import group_trainer, options
from rlhfctl.training.trl.group_trainer import GroupCollator, GroupRewardTrainer, group_loss
from rlhfctl.training.trl.train import train

INIT = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=["a", "b", "c", "d"])
TOKENIZER = tokenizing.train_tokenizer(INIT, [])
IDS = ([3, 4, 5, 0], [5, 4, 0], [4, 4, 3, 3, 0], [2, 0], [3, 0])


def group_rows(groups: list[EncodedGroup]) -> list[Any]:
    return list(group_trainer.group_rows(groups))


def pair_rows(groups: list[EncodedGroup]) -> list[Any]:
    return list(group_trainer.pair_rows(groups))


def scorer(seed: int = 0) -> Any:
    base = build.build_model(INIT, TOKENIZER, seed=seed, dtype=torch.float32)
    model = heads.scorer_on(base, seed=seed)
    model.config.pad_token_id = TOKENIZER.pad_token_id
    return model


def group(ranks: tuple[int, ...], margin: float | None = None, first: int = 0) -> EncodedGroup:
    count = len(ranks)
    pairs = tuple((i, j) for i, j in itertools.permutations(range(count), 2) if ranks[i] < ranks[j])
    preferences = PreferenceGroup("p", tuple("abcde"[:count]), ranks, pairs, margin)
    return EncodedGroup(preferences, tuple(IDS[(first + index) % len(IDS)] for index in range(count)))


def trainer(
    tmp_path: Path, groups: list[EncodedGroup], loss: str = "k_wise", rows: Any = group_rows, **more: Any
) -> Any:
    label_error = more.pop("label_error", 0.0)
    arguments = options.trainer_arguments(tmp_path, "float32", {"per_device_train_batch_size": 2} | more, seed=0)
    data = Dataset.from_list(rows(groups))
    return GroupRewardTrainer(
        loss=loss,  # type: ignore[arg-type]
        label_error=label_error,
        model=scorer(),
        args=RewardConfig(**arguments),
        train_dataset=data,
        eval_dataset=data,
        processing_class=TOKENIZER,
    )


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_k_wise_has_the_gradients_of_explicit_pairs_through_a_model(tmp_path: Path) -> None:
    """Each pair of a group as two rows of its own, through the same model: same loss and gradients."""
    groups = [group((0, 1, 2, 3)), group((1, 0, 1), first=2)]
    made = trainer(tmp_path, groups)
    model = made.model.eval()
    loss = made.compute_loss(model, GroupCollator(TOKENIZER.pad_token_id)(group_rows(groups)))
    loss.backward()
    found = gradients(model)
    model.zero_grad()

    def score(ids: list[int]) -> torch.Tensor:
        row = torch.tensor([ids])
        return model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, 0]

    means = [
        torch.stack(
            [-torch.log(torch.sigmoid(score(one.ids[better]) - score(one.ids[worse]))) for better, worse in pairs]
        ).mean()
        for one in groups
        for pairs in (one.group.comparisons,)
    ]
    assert [len(one.group.comparisons) for one in groups] == [6, 2]  # of the second group two are tied
    explicit = torch.stack(means).mean()
    explicit.backward()
    assert loss.item() == pytest.approx(explicit.item(), abs=1e-6)
    assert found.keys() == gradients(model).keys() and len(found) > 5
    for name, expected in gradients(model).items():
        assert torch.allclose(found[name], expected, atol=1e-6), name
    assert max(value.abs().max() for value in found.values()) > 1e-3


def test_each_response_is_computed_once(tmp_path: Path) -> None:
    """Four responses have six pairs, which are twelve rows for TRL's own trainer."""
    groups = [group((0, 1, 2, 3)), group((0, 1, 2), first=1)]
    made = trainer(tmp_path, groups)
    rows: list[int] = []
    made.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    made.compute_loss(made.model, GroupCollator(TOKENIZER.pad_token_id)(group_rows(groups)))
    assert rows == [4 + 3]


def test_bradley_terry_on_pairs_is_the_loss_of_trl(tmp_path: Path) -> None:
    """With a margin and centered rewards: the same loss, gradients and metrics as TRL's own trainer."""
    groups = [group((0, 1, 2), margin=0.5), group((0, 1), first=3)]
    ours = trainer(tmp_path, groups, "bradley_terry", pair_rows, center_rewards_coefficient=0.1)
    pairs = [{"margin": 0.0} | pair for one in groups for pair in one.pairs]
    theirs = RewardTrainer(
        model=scorer(), args=ours.args, train_dataset=Dataset.from_list(pairs), processing_class=TOKENIZER
    )
    losses, kept = [], []
    for made, rows in ((ours, pair_rows(groups)), (theirs, pairs)):
        loss = made.compute_loss(made.model.train(), made.data_collator(rows))
        loss.backward()
        losses.append(loss.item())
        kept.append({key: sum(values) / len(values) for key, values in made._metrics["train"].items()})
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert kept[0] == pytest.approx(kept[1], abs=1e-6)
    for name, expected in gradients(theirs.model).items():
        assert torch.allclose(gradients(ours.model)[name], expected, atol=1e-6), name


def test_losses_of_a_batch_are_means_over_groups() -> None:
    groups = [group((0, 1, 2)), group((1, 0), margin=math.log(2))]
    batch = GroupCollator(0)(group_rows(groups))
    scores = torch.tensor([4.0, 2.0, 1.0, 1.0, 4.0]).log()
    by_hand = {
        "k_wise": (-(2 * math.log(2 / 3) + math.log(4 / 5)) / 3 - math.log(2 / 3)) / 2,  # the margin halves odds of 4
        "plackett_luce": (-math.log(4 / 7 * 2 / 3) - math.log(4 / 5)) / 2,
        "best_of_k": (-math.log(4 / 7) - math.log(4 / 5)) / 2,
    }
    for loss, expected in by_hand.items():
        assert group_loss(scores, batch, loss, 0.0).item() == pytest.approx(expected, abs=1e-6)  # type: ignore[arg-type]
    mixed = (-(2 * math.log(0.9 * 2 / 3 + 0.05) + math.log(0.9 * 4 / 5 + 0.05)) / 3 - math.log(0.9 * 2 / 3 + 0.05)) / 2
    assert group_loss(scores, batch, "k_wise", 0.1).item() == pytest.approx(mixed, abs=1e-6)


def test_a_batch_is_padded_on_the_right() -> None:
    batch = GroupCollator(9, pad_to_multiple_of=4)(group_rows([group((0, 1)), group((1, 0), first=3)]))
    assert batch["input_ids"].tolist() == [[3, 4, 5, 0], [5, 4, 0, 9], [2, 0, 9, 9], [3, 0, 9, 9]]
    assert batch["attention_mask"].sum(-1).tolist() == [4, 3, 2, 2]
    assert next(iter(batch)) == "sizes" and batch["sizes"].tolist() == [2, 2]
    assert batch["comparisons"].tolist() == [[0, 1], [3, 2]]


def test_rows_hold_the_responses_that_are_compared_and_weights_repeat_them() -> None:
    preferences = PreferenceGroup("p", ("x", "y", "z"), (2, 0, 1), ((1, 0), (1, 0)))
    rows = group_rows([EncodedGroup(preferences, ([3, 0], [4, 0], []))])
    once = {"ids": [[3, 0], [4, 0]], "ranks": [2, 0], "comparisons": [[1, 0]], "margin": 0.0}
    assert rows == [once, once]
    more = PreferenceGroup("p", ("x", "y", "z"), (0, 1, 2), ((0, 1), (0, 2), (0, 1)))
    assert [row["comparisons"] for row in group_rows([EncodedGroup(more, ([3, 0], [4, 0], [5, 0]))])] == [
        [[0, 1], [0, 2]],
        [[0, 1]],
    ]


def test_metrics_are_counted_over_comparisons(tmp_path: Path) -> None:
    groups = [group((0, 1, 2, 3)), group((0, 1), first=2)]
    made = trainer(tmp_path, groups, logging_steps=1, max_steps=1)
    with torch.no_grad():
        made.model.eval()
        scores = [made.model(input_ids=torch.tensor([ids])).logits.item() for one in groups for ids in one.ids]
    differences = [scores[i] - scores[j] for i, j in groups[0].group.comparisons] + [scores[4] - scores[5]]
    values = made.evaluate()
    assert values["eval_accuracy"] == pytest.approx(sum(d > 0 for d in differences) / 7)
    assert values["eval_margin"] == pytest.approx(sum(differences) / 7, abs=1e-6)
    assert values["eval_mean_reward"] == pytest.approx(sum(scores) / 6, abs=1e-6)
    assert (values["eval_min_reward"], values["eval_max_reward"]) == pytest.approx((min(scores), max(scores)), abs=1e-6)
    made.train()
    logged = next(entry for entry in made.state.log_history if "loss" in entry)
    assert {"loss", "accuracy", "margin", "num_tokens", "grad_norm"} <= logged.keys()
    assert logged["num_tokens"] == sum(len(ids) for one in groups for ids in one.ids)


@pytest.mark.parametrize("loss", ["k_wise", "plackett_luce", "best_of_k"])
def test_training_learns_the_ranking(loss: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, [group((0, 1, 2)), group((0, 1, 2))], loss, max_steps=40, learning_rate=1e-2)
    before = made.evaluate()["eval_loss"]
    made.train()
    after = made.evaluate()
    assert after["eval_loss"] < 0.2 * before
    assert after["eval_accuracy"] > 0.6


class Stop(TrainerCallback):  # type: ignore[misc]
    """Fails as a killed process does, after some steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


SECTION = Reward(
    loss="k_wise",
    label_error=0.1,
    checkpoint_steps=2,
    trainer={"per_device_train_batch_size": 2, "max_steps": 6, "logging_steps": 2, "learning_rate": 1e-2},
)


def trained(work: Path, *callbacks: TrainerCallback) -> tuple[Any, dict[str, float], list[Event]]:
    groups = [group((0, 1, 2, 3)), group((1, 0, 2), first=1), group((0, 1), first=2)] * 3
    arguments = options.trainer_arguments(work, "float32", SECTION.trainer, seed=0)
    make = partial(
        GroupRewardTrainer,
        loss=SECTION.loss,
        label_error=SECTION.label_error,
        args=RewardConfig(**arguments),
        train_dataset=Dataset.from_list(group_rows(groups)),
        processing_class=TOKENIZER,
    )
    events: list[Event] = []
    model, metrics = train(
        lambda **given: make(**given | {"callbacks": [*given["callbacks"], *callbacks]}),
        scorer(),
        SECTION,
        stage="reward",
        work=work,
        emit=events.append,
        warn=pytest.fail,
        counts=lambda trainer: {"groups": len(trainer.train_dataset)},
        metrics=("loss", "accuracy"),
    )
    return model, metrics, events


def test_a_stopped_training_on_groups_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, metrics, _ = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "work", Stop())
    resumed, again, events = trained(tmp_path / "work")
    started = next(event for event in events if isinstance(event, StageStarted))
    assert started.resumed_from == 4 and again == metrics and {"loss", "accuracy"} <= metrics.keys()
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name
    assert not torch.equal(resumed.score.weight, scorer().score.weight)

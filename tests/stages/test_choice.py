"""The choice of sft's checkpoint: what is scored, which weights are kept and come back, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_stage import context, small_model, small_tokenizer
from thread_processes import in_group

from rlhfctl.errors import RewardFailed
from rlhfctl.events import Event, Metrics, Sample
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.schema import Choose
from rlhfctl.rewards.episode import Episode
from rlhfctl.stages import choice
from rlhfctl.stages.choice import CHOICE, Choice, SampleScores, choice_for
from rlhfctl.stages.heldout_loss import HeldoutLoss

ROWS = [{"prompt": "a"}, {"prompt": "b"}]


class Chosen:
    """A choice among weights that are all equal to one number; the scores of the two prompts' samples are given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> None:
        self.events: list[Event] = []
        self.following: list[list[float]] = []
        self.read: list[list[Episode]] = []
        monkeypatch.setattr(choice, "build_scorer", lambda name, resources: self.scores)
        tokenizer = small_tokenizer()
        self.model = small_model(tokenizer)
        data = {"prompts": SimpleNamespace(rows=ROWS, split=SimpleNamespace(eval=ROWS))}
        self.ctx = replace(context(folder, "sft", self.events), data=data)
        self.ctx.work.mkdir(parents=True, exist_ok=True)
        self.choice = choice_for(Choose(by="scores:good", **keys), self.ctx, tokenizer, 32)
        assert isinstance(self.choice.measure, SampleScores)
        self.sampling = self.choice.measure.sampling

    def scores(self, episodes: Sequence[Episode]) -> list[float]:
        self.read.append(list(episodes))
        return self.following.pop(0)

    def step(self, number: int, *scores: float) -> None:
        """Set all weights of the head to the number of the step, and let the choice see them."""
        with torch.no_grad():
            self.model.lm_head.weight.fill_(number)
        self.following = [list(scores)]
        self.choice(self.model, number, 9)

    def handed_over(self) -> float:
        self.found = self.choice.settle(self.model)
        return float(self.model.lm_head.weight[0, 0].detach())


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Chosen]:
    return lambda **keys: Chosen(tmp_path, monkeypatch, **keys)


def test_the_weights_of_the_highest_mean_score_are_handed_over(make: Callable[..., Chosen]) -> None:
    chosen = make()
    for number, scores in ((3, (1.0, 2.0)), (6, (4.0, 3.0)), (9, (4.0, 2.0))):
        chosen.step(number, *scores)
    assert chosen.handed_over() == 6
    assert chosen.found == {"chosen_step": 6, "chosen_score": 3.5, "last_score": 3.0}
    # The last loses 0 and 1 to it: 0.5 on average, with a standard error of sqrt(0.5) / sqrt(2).
    assert "that of step 6 scores best (3.5 by scores:good)" in chosen.ctx.notes[-1]
    assert "0.5 (standard error 0.5) above the last" in chosen.ctx.notes[-1]
    rows = [json.loads(line) for line in (chosen.ctx.folder / CHOICE).read_text().splitlines()]
    assert [(row["step"], row["eval_score"], row["chosen"]) for row in rows] == [
        (3, 1.5, False), (6, 3.5, True), (9, 3.0, False)
    ]  # fmt: skip
    assert [row["eval_score_se"] for row in rows] == [0.5, 0.5, 1.0]


def test_of_equal_scores_the_latest_counts(make: Callable[..., Chosen]) -> None:
    chosen = make()
    chosen.step(3, 2.0, 1.0)
    chosen.step(6, 1.0, 2.0)
    chosen.step(9, 1.0, 1.0)
    assert chosen.handed_over() == 6


def test_a_scorer_that_tells_no_candidates_apart_leaves_the_last_weights_and_a_warning(
    make: Callable[..., Chosen],
) -> None:
    chosen = make()
    for number in (3, 6, 9):
        chosen.step(number, 0.0, 0.0)
    assert chosen.handed_over() == 9
    assert chosen.ctx.notes[-1] == (
        "warning: scores:good tells no candidates apart, all score 0: the last is handed over"
    )


def test_the_last_may_be_the_best(make: Callable[..., Chosen]) -> None:
    chosen = make()
    chosen.step(3, 1.0, 1.0)
    chosen.step(9, 2.0, 1.0)
    assert chosen.handed_over() == 9 and "the last of 2 candidates scores best" in chosen.ctx.notes[-1]


def test_candidates_answer_the_eval_prompts_with_the_same_random_numbers(make: Callable[..., Chosen]) -> None:
    chosen = make(temperature=0.9, max_new_tokens=3, batch_size=1)
    chosen.step(3, 0.0, 0.0)
    with torch.no_grad():
        chosen.model.lm_head.weight.fill_(3)
    chosen.following = [[0.0, 0.0]]
    chosen.choice(chosen.model, 6, 9)
    first, second = ([(one.prompt, one.response_ids) for one in episodes] for episodes in chosen.read)
    assert first == second and [prompt for prompt, _ in first] == ["a", "b"]
    assert all(len(ids) <= 3 for _, ids in first) and chosen.sampling.temperature == 0.9
    assert chosen.sampling.batch_size == 1
    metrics = [event for event in chosen.events if isinstance(event, Metrics)]
    assert [(event.step, event.split) for event in metrics] == [(3, "eval"), (6, "eval")]
    assert set(metrics[0].values) == {"eval_score", "eval_score_se", "eval_length", "eval_eos_rate"}
    assert metrics[0].values["eval_length"] == sum(len(ids) for _, ids in first) / 2
    assert [event.step for event in chosen.events if isinstance(event, Sample)] == [3, 6]


def test_what_a_killed_attempt_has_tried_is_not_tried_again_and_its_best_weights_are_there(
    make: Callable[..., Chosen],
) -> None:
    before = make()
    before.step(3, 5.0, 5.0)
    before.step(6, 1.0, 1.0)
    assert [folder.name for folder in before.ctx.work.glob("chosen-*")] == ["chosen-3"]
    after = make()
    after.step(6, 9.0, 9.0)  # resumed from a checkpoint before step 6
    assert after.read == [] and after.following  # nothing was sampled or scored
    after.step(9, 2.0, 2.0)
    assert after.handed_over() == 3 and after.found["chosen_score"] == 5.0


def test_weights_without_a_record_are_made_again(make: Callable[..., Chosen]) -> None:
    before = make()
    before.step(3, 5.0, 5.0)
    (before.ctx.work / CHOICE).unlink()  # killed between the two
    after = make()
    after.step(3, 5.0, 5.0)
    after.step(9, 1.0, 1.0)
    assert len(after.read) == 2 and after.handed_over() == 3


def test_scores_that_are_not_finite_stop_the_stage(make: Callable[..., Chosen]) -> None:
    with pytest.raises(RewardFailed, match="scores:good gives scores that are not finite to the candidate of step 3"):
        make().step(3, float("nan"), 1.0)


def test_a_single_candidate_is_no_choice(make: Callable[..., Chosen]) -> None:
    chosen = make()
    chosen.step(9, 1.0, 1.0)
    chosen.handed_over()
    assert chosen.ctx.notes[-1].startswith("warning: sft.choose had one candidate, the last step (9)")


def test_the_least_loss_on_held_out_rows_can_choose(tmp_path: Path) -> None:
    tokenizer, events = small_tokenizer(), []  # type: tuple[Any, list[Event]]
    ctx, model = context(tmp_path, "sft", events), small_model(tokenizer)
    ctx.work.mkdir(parents=True)
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    rows = [{"input_ids": [a, b, b], "labels": [-100, b, b]}, {"input_ids": [b, b], "labels": [-100, b]}]
    heldout = HeldoutLoss(rows, ctx, tokenizer.pad_token_id)
    chosen = choice_for(Choose(by="heldout_loss"), ctx, tokenizer, 32, heldout)
    losses = []
    for step in (1, 2, 3):
        with torch.no_grad():
            model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(step))
        losses.append(heldout.of(model))
        chosen(model, step, 3)
    best = losses.index(min(losses))
    assert chosen.settle(model)["chosen_step"] == best + 1 and heldout.of(model) == pytest.approx(losses[best])
    told = [event.values for event in events if isinstance(event, Metrics)]
    assert [values["eval_loss"] for values in told] == pytest.approx(losses)
    assert [values["eval_score"] for values in told] == pytest.approx([-loss for loss in losses])
    assert not [event for event in events if isinstance(event, Sample)]


def test_a_machine_that_lacks_the_record_goes_on_as_the_first_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.local()
    monkeypatch.setattr(choice.Processes, "here", classmethod(lambda cls: getattr(here, "own", ALONE)))
    asked: list[int] = []

    def measure(model: Any, step: int) -> tuple[list[float], dict[str, float], None]:
        asked.append(step)
        return [float(-step)], {}, None

    def in_folder(folder: Path) -> Choice:
        ctx = context(folder, "sft", [])
        ctx.work.mkdir(parents=True, exist_ok=True)
        return Choice("scores:good", None, measure, ctx)

    in_folder(tmp_path / "first")(small_model(small_tokenizer()), 3, 9)  # killed after step 3

    def goes_on(own: Processes) -> list[int]:
        here.own = own
        resumed = in_folder(tmp_path / ("first" if own.first else "second"))
        resumed(small_model(small_tokenizer()), 3, 9)
        return [one.step for one in resumed.tried]

    assert in_group(2, goes_on) == [[3], [3]] and asked == [3]


def test_a_record_whose_best_weights_are_gone_counts_nothing(make: Callable[..., Chosen]) -> None:
    before = make()
    before.step(3, 5.0, 5.0)
    shutil.rmtree(before.ctx.work / "chosen-3")
    assert make().choice.tried == []

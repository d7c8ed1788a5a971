"""Evaluation during PPO: when it runs, what it reports, which policy is best, and that a resumed run knows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_stage import context, small_model, small_tokenizer

from rlhfctl.errors import RewardFailed
from rlhfctl.events import Event, Metrics, Sample
from rlhfctl.generation.generator import Response
from rlhfctl.rewards.episode import Episode
from rlhfctl.stages import evaluation
from rlhfctl.training.rl.collect import PromptData

ROWS = [{"prompt": "a"}, {"prompt": "b"}]


class Scores:
    """A reward that gives the scores of its next call."""

    def __init__(self) -> None:
        self.following: list[list[float]] = []

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        return self.following.pop(0)


class Evaluated:
    """An evaluation of a small policy whose responses, KL and scores are fixed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, heldout: bool = False, **ppo: Any) -> None:
        tokenizer = small_tokenizer()
        self.model, self.events, self.scores, self.kl = small_model(tokenizer), [], Scores(), [0.0, 0.0]
        self.ctx = context(folder, "ppo", self.events)
        self.ctx.work.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(evaluation, "exact_kl", lambda *given, **options: self.kl)
        roles: Any = SimpleNamespace(
            policy=SimpleNamespace(model=self.model, activate=lambda: None), reference=SimpleNamespace()
        )
        data = PromptData(tokenizer, ROWS, [[4], [5]])
        given = self.ctx.recipe.ppo
        assert given is not None
        section = given.model_copy(update=ppo)
        self.others = Scores()
        scorer: Any = self.others if heldout else None
        self.evaluate = evaluation.Evaluation(section, self.ctx, roles, self.scores, data, scorer, self.generate)  # type: ignore[arg-type]

    def generate(self, model: Any, prompts: Sequence[Any], *given: Any, **options: Any) -> list[Response]:
        return [Response([4, 0], True), Response([5, 5, 5, 5], False)]

    def update(self, number: int, *scores: float, total: int = 5, heldout: Sequence[float] = ()) -> None:
        self.scores.following = [list(scores)]
        self.others.following = [list(heldout)]
        self.evaluate(number, total)

    @property
    def reported(self) -> dict[int, dict[str, float]]:
        events: list[Event] = self.events
        return {event.step: dict(event.values) for event in events if isinstance(event, Metrics)}


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    return Evaluated(tmp_path, monkeypatch)


def test_it_runs_every_so_many_updates_and_after_the_last(evaluated: Evaluated) -> None:
    for number in range(6):
        evaluated.update(number, 1.0, 2.0)
    assert list(evaluated.reported) == [0, 2, 4, 5]  # ppo.eval.every is 2


def test_its_numbers_by_hand(evaluated: Evaluated) -> None:
    evaluated.kl = [1.0, 3.0]
    evaluated.update(0, 1.0, 2.0)
    values = evaluated.reported[0]
    assert values["eval_score"] == 1.5 and values["eval_kl"] == 2.0
    assert values["eval_objective"] == 1.5 - 0.5 * 2.0  # less kl_coef times KL
    assert (values["eval_length"], values["eval_eos_rate"]) == (3.0, 0.5)
    evaluated.update(2, 5.0, 5.0)
    first, second = [event for event in evaluated.events if isinstance(event, Sample)]
    assert (first.reference_scores, second.reference_scores) == ({"score": 1.0}, {"score": 1.0})  # those of update 0


def test_the_best_policy_is_kept_and_comes_back(evaluated: Evaluated) -> None:
    evaluated.update(0, 1.0, 1.0)
    with torch.no_grad():
        evaluated.model.lm_head.weight.fill_(0.25)
    evaluated.update(2, 3.0, 3.0)
    with torch.no_grad():
        evaluated.model.lm_head.weight.fill_(0.5)
    evaluated.kl = [10.0, 10.0]
    evaluated.update(4, 4.0, 4.0)  # a higher score, but too far from the reference
    assert evaluated.evaluate.restore_best() == 2.0
    assert torch.all(evaluated.model.lm_head.weight == 0.25)
    assert evaluated.evaluate.closing["eval_score"] == 3.0
    assert "that of update 2 (objective 3)" in evaluated.ctx.notes[-1]


def test_the_held_out_reward_is_reported_with_its_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Evaluated(tmp_path, monkeypatch, heldout=True)
    watched.update(0, 1.0, 2.0, heldout=[3.0, 7.0])
    values = watched.reported[0]
    assert (values["eval_heldout"], values["eval_score"]) == (5.0, 1.5)
    assert values["eval_heldout_se"] == pytest.approx(2.0)  # a spread of sqrt(8) over two prompts
    assert values["eval_score_se"] == pytest.approx(0.5)
    assert [event.scores for event in watched.events if isinstance(event, Sample)] == [{"score": 1.0, "heldout": 3.0}]


def test_the_best_policy_is_that_of_the_highest_held_out_reward_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Evaluated(tmp_path, monkeypatch, heldout=True, best_kl_limit=6.0)
    for number, kl, score, heldout in ((0, 0.0, 1.0, 1.0), (2, 5.0, 2.0, 3.0), (4, 6.5, 3.0, 4.0), (5, 6.0, 4.0, 2.0)):
        watched.kl = [kl, kl]
        watched.update(number, score, score, heldout=[heldout, heldout])
    assert watched.evaluate.best == (3.0, 2)  # not 4, which is too far from the reference, nor the highest score
    assert watched.evaluate.restore_best() == 2.0
    assert "that of update 2 (held-out reward 3)" in watched.ctx.notes[-1]


def test_the_limit_holds_without_a_held_out_reward_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, best in ((None, 2), (3.0, 0)):
        evaluated = Evaluated(tmp_path / str(limit), monkeypatch, best_kl_limit=limit)
        evaluated.update(0, 1.0, 1.0)
        evaluated.kl = [4.0, 4.0]
        evaluated.update(2, 9.0, 9.0)
        assert evaluated.evaluate.best is not None and evaluated.evaluate.best[1] == best


def test_a_resumed_run_knows_the_best_and_old_weights_go_once_no_checkpoint_needs_them(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated.update(0, 1.0, 1.0)
    evaluated.evaluate.state()
    evaluated.update(2, 3.0, 3.0)
    state = json.loads(json.dumps(evaluated.evaluate.state()))
    kept = sorted(folder.name for folder in evaluated.ctx.work.glob("best-*"))
    assert kept == ["best-0", "best-2"]  # the checkpoint before still refers to best-0
    evaluated.evaluate.state()
    assert [folder.name for folder in evaluated.ctx.work.glob("best-*")] == ["best-2"]

    resumed = Evaluated(tmp_path, monkeypatch)
    resumed.evaluate.load_state(state)
    resumed.update(4, 2.0, 2.0)
    assert resumed.evaluate.best == (3.0, 2) and resumed.evaluate.restore_best() == 2.0


def test_scores_that_are_not_finite_are_kept_and_left_out_of_the_mean(evaluated: Evaluated) -> None:
    evaluated.update(0, float("nan"), 2.0)
    assert evaluated.reported[0]["eval_score"] == 2.0
    kept = evaluated.ctx.folder / "non-finite" / "eval-update-000000.jsonl"
    assert [json.loads(line)["score"] for line in kept.read_text().splitlines()] == ["nan", 2.0]
    assert "1 of 2 eval responses have a score that is not finite" in evaluated.ctx.notes[0]
    with pytest.raises(RewardFailed, match="2 of 2 eval responses"):
        evaluated.update(2, float("nan"), float("inf"))

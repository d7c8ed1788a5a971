"""The loop: checkpoints, going on bit for bit, precision, and that it learns."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_loops import (
    KINDS_AND_LORA,
    Seen,
    column,
    gap,
    loop_for,
    share_of_a,
    start,
    trained,
    untimed,
)
from thread_processes import group, together

from rlhfctl.errors import EngineError, RewardFailed
from rlhfctl.events import CheckpointSaved, Event, Metrics, StageStarted
from rlhfctl.rewards.episode import Episode


def test_checkpoints_are_written_as_often_and_kept_as_many_as_asked(tmp_path: Path) -> None:
    told: list[Event] = []
    trained(tmp_path, 7, checkpoint_steps=3, keep_checkpoints=3, num_ppo_epochs=1, run={"emit": told.append})
    assert [event.step for event in told if isinstance(event, CheckpointSaved)] == [0, 3, 6, 7]
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"checkpoint-3", "checkpoint-6", "checkpoint-7"}
    trained(tmp_path / "one", 3, checkpoint_steps=1, keep_checkpoints=1, num_ppo_epochs=1)
    assert [path.name for path in (tmp_path / "one" / "work").iterdir()] == ["checkpoint-3"]
    assert loop_for(tmp_path / "default", 25).checkpoint_steps == 3


class Stop(Exception):
    """Stands for a kill."""


class Remembers:
    """A watcher with a memory."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, update: int, total: int) -> None:
        self.seen.append(update)

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


def noisy(episodes: Sequence[Episode]) -> list[float]:
    """A reward that draws from every global generator."""
    noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
    return [value + noise * index for index, value in enumerate(share_of_a(episodes))]


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def stops_after(update: int) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        if isinstance(event, Metrics) and event.step == update:
            raise Stop

    return emit


def stopped(work: Path, after: int, **options: Any) -> None:
    """Train until the metrics of update `after` are out."""
    loop = loop_for(work, 6, run={"emit": stops_after(after)}, watcher=Remembers(), **options)
    seed_all(0)
    with pytest.raises(Stop):
        loop.train()


def goes_on(work: Path, **options: Any) -> tuple[Seen, list[Event], list[str]]:
    """Train what is left, with other global random states at the start; (loop, events, sentences)."""
    told: list[Event] = []
    said: list[str] = []
    loop = loop_for(work, 6, run={"emit": told.append, "say": said.append}, watcher=Remembers(), **options)
    seed_all(99)
    loop.train()
    return loop, told, said


def undisturbed(work: Path, **options: Any) -> Seen:
    loop = loop_for(work, 6, watcher=Remembers(), **options)
    seed_all(0)
    loop.train()
    return loop


def same_end(one: Seen, other: Seen) -> None:
    ours, theirs = one.roles.state(), other.roles.state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert untimed(one.history) == untimed(other.history) and len(one.history) == 6


HALFWAY: dict[str, Any] = {
    "score": noisy,
    "checkpoint_steps": 2,
    "num_mini_batches": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "weight_decay": 0.01,
}


@pytest.mark.parametrize(("kind", "lora"), KINDS_AND_LORA)
def test_a_run_that_goes_on_ends_bit_for_bit_as_if_undisturbed(kind: str, lora: bool, tmp_path: Path) -> None:
    options = HALFWAY | {"kind": kind, "lora": lora}
    whole = undisturbed(tmp_path / "whole", **options)
    stopped(tmp_path / "stopped", 3, **options)
    loop, told, said = goes_on(tmp_path / "stopped", **options)
    assert [event.resumed_from for event in told if isinstance(event, StageStarted)] == [2]
    assert [event.step for event in told if isinstance(event, Metrics)] == [3, 4, 5, 6]
    assert not said
    same_end(loop, whole)
    assert loop.watcher is not None and loop.watcher.state() == {"seen": list(range(7))}
    other = start(kind=kind, lora=lora)
    assert gap(loop.roles.state(), other) > 1e-3


def test_a_run_stopped_before_its_first_update_goes_on_from_update_0(tmp_path: Path) -> None:
    stopped(tmp_path / "stopped", 1, **HALFWAY)
    loop, told, _ = goes_on(tmp_path / "stopped", **HALFWAY)
    assert [event.resumed_from for event in told if isinstance(event, StageStarted)] == [0]
    same_end(loop, undisturbed(tmp_path / "whole", **HALFWAY))


@pytest.mark.parametrize("damage", ["optimizer.pt cut short", "no mark", "model.safetensors gone"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(damage: str, tmp_path: Path) -> None:
    stopped(tmp_path / "stopped", 5, **HALFWAY)
    newest = tmp_path / "stopped" / "work" / "checkpoint-4"
    if damage == "no mark":
        (newest / "complete.json").unlink()
    elif "gone" in damage:
        (newest / "model.safetensors").unlink()
    else:
        (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-100])
    left = tmp_path / "stopped" / "work" / ".checkpoint-6.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    loop, told, said = goes_on(tmp_path / "stopped", **HALFWAY)
    assert [event.resumed_from for event in told if isinstance(event, StageStarted)] == [2]
    assert len(said) == 1 and said[0].startswith("checkpoint-4 is passed over")
    assert {path.name for path in (tmp_path / "stopped" / "work").iterdir()} == {"checkpoint-4", "checkpoint-6"}
    same_end(loop, undisturbed(tmp_path / "whole", **HALFWAY))


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path, **HALFWAY)
    loop, told, _ = goes_on(tmp_path, **HALFWAY)
    assert not [event for event in told if isinstance(event, Metrics)]
    same_end(loop, whole)


@pytest.mark.parametrize(("kind", "lora"), KINDS_AND_LORA)
def test_thirty_updates_teach_the_policy_to_say_a(kind: str, lora: bool, tmp_path: Path) -> None:
    loop = loop_for(
        tmp_path,
        30,
        kind=kind,
        lora=lora,
        learning_rate=4e-2 if lora else 1e-2,
        lr_scheduler_type="constant",
        kl_coef=0.01,
        vf_coef=0.5,
    )
    before = {
        name: (parameter, parameter.detach().clone())
        for name, parameter in loop.roles.policy.model.named_parameters()
        if not parameter.requires_grad
    }
    assert bool(before) is lora
    loop.train()
    score = column(loop, "score")
    first, last = sum(score[:3]) / 3, sum(score[-3:]) / 3
    assert last > first + (0.25 if lora else 0.4), score  # a few adapters on random weights can do less
    assert all(torch.equal(now, then) for now, then in before.values())  # base* is not touched
    assert column(loop, "kl")[-1] > 0.5


# ---------------------------------------------------------------- several processes


def shared(work: Path, count: int, updates: int, **options: Any) -> list[Seen]:
    """Loops of `count` processes that have trained together, each with a folder of its own."""
    run = options.pop("run", {})
    loops = [
        loop_for(work / f"process-{own.number}", updates, run=run | {"processes": own}, **options)
        for own in group(count)
    ]
    together([loop.train for loop in loops])
    return loops


def farthest(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Largest difference of two histories of metrics."""
    assert [entry.keys() for entry in one] == [entry.keys() for entry in other]
    return max(abs(a[name] - b[name]) for a, b in zip(one, other, strict=True) for name in a)


@pytest.mark.parametrize(
    ("kind", "lora", "layers", "count", "minis"),
    [
        ("adapter", True, None, 3, 2),  # a minibatch of four episodes for three processes
        ("head", True, None, 2, 1),
        ("reward", True, None, 2, 1),
        pytest.param("model", True, None, 2, 1, marks=pytest.mark.ci),
        pytest.param("adapter", True, None, 2, 1, marks=pytest.mark.ci),
        pytest.param("adapter", True, [1], 2, 2, marks=pytest.mark.ci),  # the frozen layer below is computed once
        pytest.param("reward", True, [1], 3, 2, marks=pytest.mark.ci),
        pytest.param("head", False, None, 3, 2, marks=pytest.mark.ci),
        pytest.param("reward", False, None, 3, 2, marks=pytest.mark.ci),
        pytest.param("model", False, None, 2, 2, marks=pytest.mark.ci),
    ],
)
def test_several_processes_train_as_one(
    kind: str, lora: bool, layers: list[int] | None, count: int, minis: int, tmp_path: Path
) -> None:
    """The same episodes, metrics, weights and traces; the first process alone writes."""
    section: dict[str, Any] = {
        "kind": kind,
        "lora": lora,
        "layers": layers,
        "num_mini_batches": minis,
        "trace_every": 1,
    }
    section |= {"dtype": torch.float64, "entropy_coef": 0.01, "target_kl": 0.05}
    one = trained(tmp_path / "one", 3, **section)
    many = shared(tmp_path, count, 3, **section)
    for loop in many:
        assert farthest(untimed(loop.history), untimed(one.history)) < 1e-6
        assert gap(loop.roles.state(), one.roles.state()) < 1e-12
        assert gap(loop.roles.state(), many[0].roles.state()) == 0.0
        for mine, its in zip(loop.batches, one.batches, strict=True):
            assert [response.ids for response in mine.responses] == [response.ids for response in its.responses]
    assert gap(one.roles.state(), start(kind=kind, lora=lora, layers=layers, dtype=torch.float64)) > 1e-3
    assert {path.name for path in tmp_path.glob("process-*/*")} == {"work", "traces"}
    assert [path.parent.name for path in tmp_path.glob("process-*/traces")] == ["process-0"]
    for file in (tmp_path / "one" / "traces").iterdir():
        both = [path.read_text().splitlines() for path in (file, tmp_path / "process-0" / "traces" / file.name)]
        assert close(*([json.loads(line) for line in lines] for lines in both))


def close(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are the same up to rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return bool(abs(one - other) < 1e-6) if isinstance(one, float) else bool(one == other)


@pytest.mark.parametrize(("before", "after"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.ci)])
def test_a_run_goes_on_in_another_number_of_processes(before: int, after: int, tmp_path: Path) -> None:
    section: dict[str, Any] = {"dtype": torch.float64, "checkpoint_steps": 1, "num_ppo_epochs": 1}
    whole = trained(tmp_path / "whole", 4, **section)
    folder = tmp_path / "stopped"

    def train(count: int, run: dict[str, Any]) -> list[Seen]:
        loops = [loop_for(folder, 4, run=run | {"processes": own}, **section) for own in group(count)]
        together([loop.train for loop in loops])
        return loops

    with pytest.raises(Stop):
        train(before, {"emit": stops_after(2)})
    loops = train(after, {})
    for loop in loops:
        assert len(loop.batches) == 3  # the metrics of update 2 were out, its checkpoint was not
        assert farthest(untimed(loop.history), untimed(whole.history)) < 1e-6
        assert gap(loop.roles.state(), whole.roles.state()) < 1e-12


def test_all_processes_return_to_the_checkpoint_after_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """The reward is not finite once: all go back, the first keeps the batch, and the end is that of one process."""

    def score() -> Callable[[Sequence[Episode]], list[float]]:
        calls = [0]

        def rate(episodes: Sequence[Episode]) -> list[float]:
            calls[0] += 1
            return [float("nan")] * len(episodes) if calls[0] == 2 else share_of_a(episodes)

        return rate

    section: dict[str, Any] = {"dtype": torch.float64, "num_ppo_epochs": 1}
    one = trained(tmp_path / "one", 3, score=score(), **section)
    loops = [
        loop_for(tmp_path / "many" / str(own.number), 3, score=score(), run={"processes": own}, **section)
        for own in group(2)
    ]
    together([loop.train for loop in loops])
    for loop in loops:
        assert loop.attempt == one.attempt == 1
        assert farthest(untimed(loop.history), untimed(one.history)) < 1e-6
    assert [path.parent.name for path in (tmp_path / "many").glob("*/non-finite")] == ["0"]


def test_the_first_process_saves_before_any_of_them_ends_with_a_reward_that_failed(tmp_path: Path) -> None:
    """The function is called in the first process alone; all raise its error, after the finished updates are saved."""
    calls: list[int] = []

    def fails(episodes: Sequence[Episode]) -> list[float]:
        calls.append(len(episodes))
        if len(calls) == 3:
            raise RewardFailed("no answer")
        return share_of_a(episodes)

    loops = [
        loop_for(
            tmp_path / str(own.number), 5, checkpoint_steps=5, num_ppo_epochs=1, run={"processes": own},
            score=lambda episodes, own=own: own.from_first(lambda: fails(episodes)),
        )
        for own in group(2)
    ]  # fmt: skip
    ended: list[str] = []

    def train(loop: Seen) -> None:
        with pytest.raises(RewardFailed, match="no answer"):
            loop.train()
        ended.extend(path.name for path in (tmp_path / "0" / "work").iterdir())

    together([partial(train, loop) for loop in loops])
    assert calls == [8, 8, 8] and ended.count("checkpoint-2") == 2  # it was there when either of them ended


def test_a_minibatch_with_fewer_episodes_than_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="a minibatch of 4 episodes has no part for each of 5 processes"):
        loop_for(tmp_path, num_mini_batches=2, run={"processes": group(5)[0]})

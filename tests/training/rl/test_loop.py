"""The loop: checkpoints, going on bit for bit, precision, and that it learns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
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

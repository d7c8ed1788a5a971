"""Rules on several processes: each has a part of every batch, and what cannot be divided is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_recipe import problems, recipe


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").touch()


OURS = "ppo.engine=rlhfctl"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (("sft.trainer={per_device_train_batch_size: 3}",), "sft.trainer.per_device_train_batch_size"),
        (("reward.trainer={per_device_train_batch_size: 3}",), "reward.trainer.per_device_train_batch_size"),
        (("ppo.num_mini_batches=32", "ppo.per_device_train_batch_size=64"), "ppo.num_mini_batches"),
    ],
)
def test_each_process_has_a_part_of_a_batch(changes: tuple[str, ...], key: str) -> None:
    (problem,) = problems(OURS, "launch={num_processes: 4}", *changes)
    assert problem.key == key and "each of 4 processes" in problem.what
    assert recipe(OURS, "launch={num_processes: 2}", *changes).launch is not None
    assert recipe(OURS, *changes).launch is None


def test_trls_engine_runs_in_one_process() -> None:
    (problem,) = problems("launch={num_processes: 2}", "ppo.engine=trl")
    assert problem.key == "ppo.engine"


def test_weights_in_few_bits_are_not_divided() -> None:
    found = problems(OURS, "launch={num_processes: 2, shard: true}", "model.quantization=4bit", "model.path=a/b",
                     "model.init=null", "sft.lora={}")  # fmt: skip
    assert "launch.shard" in [problem.key for problem in found]
    assert recipe(OURS, "launch={num_processes: 2, shard: true}").launch is not None

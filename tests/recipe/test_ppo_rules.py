"""Rules on algorithms, PPO-ptx and the outcome critic: what they need of the other sections."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_recipe import problems, recipe


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").touch()


OURS = "ppo.engine=rlhfctl"


def test_ptx_and_its_rows_need_each_other() -> None:
    assert recipe(OURS, "ppo.ptx={}").ppo is not None  # the demonstrations are there
    (lacking,) = problems(OURS, "ppo.ptx={data: pretraining}")
    assert lacking.key == "ppo.ptx" and "needs data.pretraining" in lacking.what
    rows = "data.pretraining={source: rows.jsonl}"
    assert recipe(OURS, rows, "ppo.ptx={data: pretraining}").data.pretraining is not None
    (unused,) = problems(OURS, rows)
    assert unused.key == "data.pretraining" and "is not used" in unused.what


def test_trpo_computes_in_float32_and_on_whole_weights() -> None:
    trpo = (OURS, "ppo.algorithm=trpo")
    assert recipe(*trpo).ppo is not None
    for change in ("model.dtype=bfloat16", "launch={num_processes: 2, shard: true}"):
        (problem,) = problems(*trpo, change)
        assert problem.key == "ppo.algorithm" and "trpo" in problem.what
        assert recipe(OURS, "ppo.algorithm=a2c", change).ppo is not None
    assert "nlpo" in problems(OURS, "ppo.algorithm=nlpo", "launch={num_processes: 2, shard: true}")[0].what


def test_an_outcome_critic_needs_programs_and_critic_sampling_needs_the_critic() -> None:
    assert [problem.key for problem in problems(OURS, "ppo.outcome_critic={}")] == ["ppo.outcome_critic"]
    (alone,) = problems("compare.critic_sampling={}")
    assert alone.key == "compare.critic_sampling" and "there is no ppo.outcome_critic" in alone.what

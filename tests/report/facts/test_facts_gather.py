"""What is read from a run folder: whole runs, runs that are not finished, several seeds, files that were changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_run import make_run, make_seeds

from rlhfctl.errors import RlhfctlError
from rlhfctl.report.facts.gather import gather


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    run = gather(make_run(tmp_path / "one"))
    assert [stage.name for stage in run.stages] == ["sft", "reward", "ppo", "compare"]
    assert run.finished and run.name == "one" and run.recipe["ppo"]["kl_coef"] == 0.05
    assert run.comparison is not None and run.comparison.primary == "gold" and run.comparison.unaltered
    assert len(run.pairs) == 48 and run.pairs[1].sample == 1
    assert run.pairs[0].policy_length <= 14
    assert run.card is not None and run.card["pairs"] == 120
    assert {trace["update"] for trace in run.traces} == {1, 40} and len(run.traces) == 4
    assert run.warnings == [("run", "the tokenizer has no pad token: one is added")]
    reward = run.of_kind("reward")[0]
    assert reward.measured["heldout_accuracy"] == 0.74 and "heldout_accuracy" not in reward.curves
    assert reward.peak_memory == 600_000_000 and reward.seconds == 75.0


def test_the_gate_is_that_of_the_recipe_as_it_is_now(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    decided = []
    for gate in ("min_accuracy: 0.6", "min_accuracy: 0.9"):
        (folder / "recipe.yaml").write_text(text.replace("min_accuracy: 0.6", gate), encoding="utf-8")
        card = gather(folder).card
        assert card is not None
        decided.append(card["gate"]["passed"])
    assert decided == [True, False]
    begin, end = text.index("  gate:\n"), text.index("ppo:\n")
    (folder / "recipe.yaml").write_text(text[:begin] + text[end:], encoding="utf-8")
    without = gather(folder).card
    assert without is not None and without["gate"] is None


def test_a_run_of_the_program_is_read_whole(tiny_run: Path) -> None:
    run = gather(tiny_run)
    assert [stage.state for stage in run.stages] == ["complete"] * 4
    assert run.comparison is not None and run.comparison.prompts == 12 and run.comparison.unaltered
    assert len(run.pairs) == 24 and set(run.pairs[0].policy_scores) == {"gold", "reward_model"}
    assert len(run.of_kind("ppo")[0].curves["score"]) == 2


def test_a_run_that_is_not_finished_has_what_is_there(tmp_path: Path) -> None:
    run = gather(make_run(tmp_path / "one", finished=False))
    assert {stage.name: stage.state for stage in run.stages}["compare"] == "not started"
    assert not run.finished and run.comparison is None and run.pairs == [] and run.card is None
    assert run.stopped.startswith("Ctrl-C")
    assert run.of_kind("ppo")[0].curves["score"]


def test_a_run_without_events_is_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    (folder / "events.jsonl").unlink()
    run = gather(folder)
    assert run.finished and run.comparison is not None and run.of_kind("ppo")[0].curves == {}


def test_seeds_are_read_beside_their_summary(tmp_path: Path) -> None:
    run = gather(make_seeds(tmp_path / "seeds"))
    names = [stage.name for stage in run.stages]
    assert names[0] == "sft" and names[1:4] == ["seed-0/ppo", "seed-1/ppo", "seed-2/ppo"]
    assert run.comparison is not None and run.comparison.stage == "summary"
    assert run.comparison.main.independent is True  # as in the seeds' own verdicts
    assert run.comparison.kl == pytest.approx(9.5)
    assert [one.seed for one in run.by_seed] == ["seed 0", "seed 1", "seed 2"]
    assert [one.kl for one in run.by_seed] == [9.1, 9.5, 9.9]
    assert {pair.seed for pair in run.pairs} == {"seed 0", "seed 1", "seed 2"}


def test_seeds_without_a_summary_are_listed(tmp_path: Path) -> None:
    folder = make_seeds(tmp_path / "seeds", seeds=(0, 1))
    (folder / "summary" / "manifest.json").unlink()
    run = gather(folder)
    assert run.comparison is not None and run.comparison.stage == "seed-1/compare"
    assert [one.seed for one in run.by_seed] == ["seed 0", "seed 1"]


def test_a_verdict_that_was_changed_is_noticed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    file = folder / "compare" / "compare.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"verdict": "better"}), encoding="utf-8")
    comparison = gather(folder).comparison
    assert comparison is not None and comparison.unaltered is False


def test_superseded_stages_are_not_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    (folder / "superseded").mkdir()
    (folder / "ppo").rename(folder / "superseded" / "ppo-20260101-000000")
    assert {stage.name: stage.state for stage in gather(folder).stages}["ppo"] == "not started"


def test_a_sample_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    with (folder / "compare" / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "cut')
    assert len(gather(folder).pairs) == 48


def test_a_folder_that_is_no_run_says_which_are(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    (tmp_path / "other").mkdir()
    with pytest.raises(RlhfctlError, match=r"recipe\.yaml is missing") as error:
        gather(tmp_path / "other")
    assert error.value.fix == "runs beside it: one"


def test_reading_and_writing_need_no_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    code = (
        "import sys; from pathlib import Path; from rlhfctl.report.write import report_at_end; "
        f"report_at_end(Path({str(folder)!r})); "
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

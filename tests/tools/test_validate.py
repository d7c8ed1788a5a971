"""`validate --deep`: one line per check that passes, and the first fault as an error with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli

from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools import trackers
from rlhfctl.tools.validate import check


def changed(recipe: Path, old: str, new: str) -> Path:
    text = recipe.read_text(encoding="utf-8")
    assert text.count(old) == 1
    recipe.write_text(text.replace(old, new), encoding="utf-8")
    return recipe


def test_deep_validation_finds_a_wrong_trainer_option(here: Cli) -> None:
    result = here("validate", "quickstart", "--deep", "--set", "sft.trainer.lerning_rate=1e-3")
    assert result.returncode == 2
    assert "sft.trainer.lerning_rate" in result.stderr
    assert "did you mean 'learning_rate'" in result.stderr


def test_a_sound_recipe_has_one_line_per_check(tiny_recipe: Path) -> None:
    lines = list(check(load_recipe(tiny_recipe)))
    assert lines[0] == "trainer options: known to the installed TRL"
    assert [line.partition(" rows (fingerprint")[0] for line in lines if "fingerprint" in line] == [
        "data.demonstrations: 96", "data.preferences: 64", "data.prompts: 60",
    ]  # fmt: skip
    assert "ppo.engine rlhfctl: installed" in lines
    assert lines[-1] == "model with new weights: tokenizer with 400 tokens, fit for the data"
    assert not [line for line in lines if line.startswith("warning")]


def test_a_bad_row_is_an_error_with_the_line_of_its_file(tiny_recipe: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": " a", "rejected": " b" if i != 2 else " a"} for i in range(8)]
    (tiny_recipe.parent / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = '{source: "builtin:reviews", rows: 64, label_noise: 0.1, heldout: 0.25}'
    lines = check(load_recipe(changed(tiny_recipe, source, "{source: pairs.jsonl}")))
    assert next(lines).startswith("trainer options")
    with pytest.raises(DataError, match=r"pairs\.jsonl:3: chosen and rejected are the same"):
        list(lines)


def test_a_tracker_that_is_not_installed_is_an_error(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    loaded = load_recipe(tiny_recipe, ["report_to=[wandb]"])
    with pytest.raises(RlhfctlError, match="wandb is not installed"):
        list(check(loaded))


def test_a_reward_function_is_loaded_and_called_once(tiny_recipe: Path) -> None:
    function = tiny_recipe.parent / "brevity.py"
    function.write_text("def score(prompts, completions, **columns):\n    return [0.25] * len(completions)\n")
    start = tiny_recipe.read_text(encoding="utf-8")
    begin, end = start.index("reward:\n"), start.index("ppo:\n")
    changed(tiny_recipe, start[begin:end], 'reward: {function: "brevity:score"}\n')
    changed(tiny_recipe, "[gold, reward_model]", "[gold, reward_function]")
    lines = list(check(load_recipe(tiny_recipe)))
    assert "function brevity:score: found" in lines
    assert "function brevity:score: called once, on the first prompt: 0.25" in lines
    function.write_text("def other(prompts, completions, **columns):\n    return []\n")
    with pytest.raises(RlhfctlError, match="score"):
        list(check(load_recipe(tiny_recipe)))


def test_metrics_have_their_library_and_references(tiny_recipe: Path) -> None:
    changed(tiny_recipe, "judges: [gold, reward_model]", "judges: [gold], metrics: [length]")
    assert "metric length: its library and references are there" in list(check(load_recipe(tiny_recipe)))
    changed(tiny_recipe, "metrics: [length]", "metrics: [length, bleu]")
    with pytest.raises(RlhfctlError, match="the metric bleu compares with the column `reference`"):
        list(check(load_recipe(tiny_recipe)))

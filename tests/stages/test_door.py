"""The door between the pipeline and the libraries: only what is asked for is read, checked and run."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_stage import context

from rlhfctl.artifacts import resolve_source
from rlhfctl.errors import DataError, HandoffError, RecipeError, RlhfctlError
from rlhfctl.graph import Waiting
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Data, Demonstrations, Prompts, Recipe
from rlhfctl.stages import door

ALL_STAGES = ["sft", "reward", "ppo", "compare"]


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_only_the_named_data_sets_are_read(tmp_path: Path) -> None:
    broken = jsonl(tmp_path / "broken.jsonl", {"nothing": 1})
    good = jsonl(tmp_path / "good.jsonl", {"prompt": "q"}, {"prompt": "r"})
    data = Data(demonstrations=Demonstrations(source=broken), prompts=Prompts(source=good, test=1))
    assert list(door.load_data(data, 0, ["prompts"])) == ["prompts"]
    with pytest.raises(DataError, match=r"data\.demonstrations"):
        door.load_data(data, 0, ["prompts", "demonstrations"])


def test_warnings_need_several_data_sets(tmp_path: Path) -> None:
    demos = jsonl(tmp_path / "d.jsonl", *({"prompt": f"question {n}", "completion": "a"} for n in range(4)))
    prompts = jsonl(tmp_path / "p.jsonl", *({"prompt": f"question {n}"} for n in range(4)))
    data = Data(demonstrations=Demonstrations(source=demos), prompts=Prompts(source=prompts, test=2))
    loaded = door.load_data(data, 0, ["demonstrations", "prompts"])
    (warning,) = door.data_warnings(loaded)
    assert warning.startswith("2 of 2 test prompts are in the demonstrations too") and "data.leaks: drop" in warning
    assert door.data_warnings({"prompts": loaded["prompts"]}) == []


def test_a_functions_fingerprint_changes_with_its_text(tmp_path: Path) -> None:
    prints = []
    for name, body in (("one", "1.0"), ("two", "2.0"), ("one", "1.0")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "scores.py").write_text(f"def score(prompts, completions): return [{body}] * len(prompts)\n")
        prints.append(door.function_fingerprint("scores:score", tmp_path / name))
    assert prints[0] == prints[2] != prints[1]


def test_the_bases_of_an_adapter_are_listed_and_circles_refused(tmp_path: Path) -> None:
    def adapter(name: str, base: Path) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
        return tmp_path / name

    model = tmp_path / "model"
    model.mkdir()
    inner = adapter("inner", model)
    assert door.bases_of(str(model)) == []
    assert door.bases_of(str(adapter("outer", inner))) == [str(inner), str(model)]
    adapter("inner", tmp_path / "outer")
    with pytest.raises(HandoffError, match="name each other as their bases"):
        door.bases_of(str(tmp_path / "outer"))


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe).recipe


def test_errors_of_later_stages_are_raised_before_the_first_runs(recipe: Recipe, tmp_path: Path) -> None:
    data = door.load_data(recipe.data, 0, ["demonstrations", "preferences", "prompts"])
    checked = door.look_ahead(recipe, ALL_STAGES, None, data, tmp_path / "log")
    assert checked.encoded and list(checked.data) == ["demonstrations", "preferences", "prompts"]
    assert recipe.ppo is not None and recipe.reward is not None
    ppo = recipe.ppo.model_copy(update={"stop_token": "no such token"})
    with pytest.raises(RecipeError, match=r"stop_token|token"):
        door.look_ahead(recipe.model_copy(update={"ppo": ppo}), ALL_STAGES, None, data, tmp_path / "log")
    reward = recipe.reward.model_copy(update={"trainer": {"learning_rat": 1.0}})
    with pytest.raises(RecipeError, match="learning_rat"):
        door.look_ahead(recipe.model_copy(update={"reward": reward}), ALL_STAGES, None, data, tmp_path / "log")


def test_prompts_without_references_are_told_before_the_first_stage_runs(recipe: Recipe, tmp_path: Path) -> None:
    data = door.load_data(recipe.data, 0, ["demonstrations", "preferences", "prompts"])
    assert recipe.compare is not None and recipe.ppo is not None
    measured = recipe.model_copy(update={"compare": recipe.compare.model_copy(update={"metrics": ["length", "bleu"]})})
    with pytest.raises(RlhfctlError, match="the metric bleu compares with the column `reference`"):
        door.look_ahead(measured, ["compare"], None, data, tmp_path / "log")
    door.look_ahead(measured, ["compare"], None, data, tmp_path / "log", samples=True)  # files bring their own
    door.look_ahead(measured, ["ppo"], None, data, tmp_path / "log")
    rewarded = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"rewards": {"bleu": 1.0}})})
    with pytest.raises(RlhfctlError, match="the metric bleu"):
        door.look_ahead(rewarded, ["ppo"], None, data, tmp_path / "log")


def test_a_models_files_and_a_servers_address_are_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    specs = ("./model", "./model@GOOD", "bertscore@./model@3", "perplexity@./model", "http://a/b", "http://a/c")
    prints = [door.function_fingerprint(spec, tmp_path) for spec in specs]
    assert len(set(prints)) == len(prints)
    assert [door.function_fingerprint(spec, tmp_path) for spec in specs] == prints
    (tmp_path / "model" / "config.json").write_text("{ }")
    changed = [door.function_fingerprint(spec, tmp_path) for spec in specs]
    assert [was != now for was, now in zip(prints, changed, strict=True)] == [True] * 4 + [False] * 2


def test_without_a_known_tokenizer_rows_are_not_encoded(recipe: Recipe, tmp_path: Path) -> None:
    data = door.load_data(recipe.data, 0, ["prompts"])
    checked = door.look_ahead(recipe, ["ppo"], None, data, tmp_path / "log")
    assert not checked.encoded and list(checked.data) == ["prompts"]
    elsewhere = resolve_source("org/name", "base")
    assert not door.look_ahead(recipe, ["ppo"], elsewhere, data, tmp_path / "log").encoded


def test_a_stage_is_run_in_this_process_and_what_libraries_print_goes_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ctx, given = context(tmp_path, "ppo", []), []

    def run(section: Any, context: Any) -> Waiting:
        given.append((section, context))
        assert gc.get_freeze_count() > 10_000  # collections during a stage do not look through the libraries
        print("a library speaks")
        return Waiting("labels", "give them")

    monkeypatch.setattr(door, "_module", lambda stage: SimpleNamespace(run=run))
    outcome = door.run_stage("ppo", ctx.recipe.ppo, ctx)
    assert outcome.made == Waiting("labels", "give them")
    assert outcome.peak_memory is None or outcome.peak_memory >= 0
    assert given == [(ctx.recipe.ppo, ctx)] and gc.get_freeze_count() == 0
    assert "a library speaks" in ctx.run.log.read_text() and "speaks" not in capsys.readouterr().out

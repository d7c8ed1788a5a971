"""Recipes made of other tools' configurations: three of each tool, with the list of what became of every field.

The golden files hold recipe and list. RLHFCTL_WRITE_GOLDEN=1 writes them anew; read what changed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.importing.findings import Draft, Fields
from rlhfctl.importing.reading import jobs_in
from rlhfctl.importing.recipe import _TRANSLATE, Imported, recipe_from, write
from rlhfctl.recipe.load import load_recipe, outline

CONFIGS = Path(__file__).parent / "configs"
FILES = sorted(path for path in CONFIGS.iterdir() if path.is_file())


@pytest.fixture(autouse=True)
def _among_the_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS)


def made(*names: str) -> Imported:
    return recipe_from([Path(name) for name in names], Path())


def test_there_are_three_configurations_or_more_of_each_tool() -> None:
    assert [path.name.partition("-")[0] for path in FILES] == ["llamafactory"] * 3 + ["openrlhf"] * 3 + ["trl"] * 4


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_configuration_gives_this_recipe_and_this_list(file: Path, tmp_path: Path) -> None:
    result = made(file.name)
    golden = CONFIGS / "golden" / f"{file.stem}.yaml"
    if os.environ.get("RLHFCTL_WRITE_GOLDEN"):
        golden.write_text(result.text, encoding="utf-8")
    assert result.text == golden.read_text(encoding="utf-8")
    written = tmp_path / "recipe.yaml"
    written.write_text(result.text, encoding="utf-8")
    outline(written)  # raises for any fault but files that are not there
    assert all("there is no" in problem for problem in result.problems)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_each_field_is_accounted_for_once(file: Path) -> None:
    for job in jobs_in(file):
        draft = Draft({"name": "x"})
        _TRANSLATE[job.tool](Fields(job, draft))
        names = [finding.name for _, finding in draft.findings if finding.kind not in ("default", "yours")]
        assert sorted(names) == sorted([*job.fields, *(name for name, _ in job.repeated)])


def test_a_recipe_on_files_that_are_there_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n')
    Path("ppo.sh").write_text(
        "python ppo.py --sft_model_path org/base --reward_model_path org/rm --dataset_name prompts.jsonl "
        "--total_episodes 64 --kl_coef 0.1 --no_whiten_rewards --unheard_of 3\n"
    )
    result = made("ppo.sh")
    lines = list(write(result, Path("mine.yaml")))
    assert lines[-1] == "wrote mine.yaml; next:   rlhfctl validate mine.yaml --deep" and result.problems == []
    assert "    unheard_of: 3 (no field that `rlhfctl import` knows)" in lines
    recipe = load_recipe("mine.yaml").recipe
    assert recipe.ppo is not None and (recipe.ppo.kl_coef, recipe.ppo.total_episodes) == (0.1, 64)
    assert recipe.ppo.per_device_train_batch_size == 8  # transformers' default, not rlhfctl's 64
    assert recipe.ppo.stop_token is None and recipe.ppo.max_grad_norm is None  # as TRL's PPOTrainer does
    assert recipe.reward is not None and recipe.reward.model == "org/rm"
    with pytest.raises(RlhfctlError, match="exists"):
        list(write(result, Path("mine.yaml")))


def test_stages_in_files_of_their_own_become_one_recipe() -> None:
    whole = made("llamafactory-sft-rm-ppo.sh")
    parts = [f"llamafactory-parts/llama3_lora_{stage}.yaml" for stage in ("ppo", "reward", "sft")]  # in any order
    body = [line for line in made(*parts).text.splitlines() if not line.startswith("#")]
    changed = {line for line in whole.text.splitlines() if not line.startswith("#")} ^ set(body)
    assert changed == {"    learning_rate: 0.0001"} or changed == {"    learning_rate: 5e-05"}  # its KEY=VALUE


def test_what_cannot_be_one_recipe_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rm.yaml").write_text("stage: rm\nfinetuning_type: full\nmodel_name_or_path: a/b\nquantization_bit: 4\n")
    result = made("rm.yaml")
    assert "quantization_bit: 4 (a quantized base needs LoRA, and 4 or 8 bits)" in result.text
    assert any("your-preferences" in line for line in result.findings)

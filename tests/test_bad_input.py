"""Every bad input and the whole message that its user reads: tests/golden/bad_input/NAME.txt.

A case makes one thing wrong in a project that is right (bad_project.py) and gives a command as a user would. The exit
code and every word on standard error are held to the golden file; no stage may be left half-written. After a change of
a message: RLHFCTL_WRITE_GOLDEN=1 python -m pytest tests/test_bad_input.py, and read what changed.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bad_project import demonstrations, half_written, preferences, prompts, write_jsonl, write_model
from bad_project import write_project as write_project_to
from conftest import run_here

GOLDEN = Path(__file__).parent / "golden" / "bad_input"
WRITE = "RLHFCTL_WRITE_GOLDEN"


@dataclass(frozen=True)
class Case:
    code: int
    command: tuple[str, ...]
    spoil: Callable[[Path], Any]


CASES: dict[str, Case] = {}


def case(code: int, command: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """A case by its function's name: `command` must end with `code` once the function has spoilt the project."""

    def keep(spoil: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES[spoil.__name__] = Case(code, tuple(command.split()), spoil)
        return spoil

    return keep


def golden(name: str, text: str) -> None:
    """Hold `text` to the golden file, or write that."""
    file = GOLDEN / f"{name}.txt"
    if os.environ.get(WRITE):
        file.write_text(text, encoding="utf-8")
    assert file.is_file(), f"no golden file; {WRITE}=1 writes it"
    assert text == file.read_text(encoding="utf-8")


def normal(text: str, folder: Path) -> str:
    """Without what differs from machine to machine: where the project lies, processes, times."""
    text = text.replace(str(folder), "/project")
    return re.sub(r"process \d+ on \S+, since [\d:. -]+", "process 123 on HOST, since 2026-01-01 00:00:00", text)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which nothing is wrong."""
    folder = tmp_path_factory.mktemp("sound") / "project"
    write_project_to(folder)
    return folder


@pytest.fixture
def project(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "project")
    return tmp_path / "project"


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new), encoding="utf-8")


def recipe(project: Path, old: str, new: str) -> None:
    change(project / "mine.yaml", old, new)


def json_file(file: Path, **changes: Any) -> None:
    """Keys of a JSON object set, or taken out where the value is None."""
    value = json.loads(file.read_text(encoding="utf-8"))
    for key, new in changes.items():
        if new is None:
            value.pop(key, None)
        else:
            value[key] = new
    file.write_text(json.dumps(value), encoding="utf-8")


# ---------------------------------------------------------------- the recipe


@case(2, "validate mine.yaml")
def unknown_key(project: Path) -> None:
    recipe(project, "kl_coef: 0.1", "kl_ceof: 0.1")


@case(2, "run mine.yaml --run-dir run")
def wrong_type(project: Path) -> None:
    recipe(project, "response_length: 4", "response_length: four")


@case(2, "validate mine.yaml --set ppo.gamma=2 --set seed=")
def several_mistakes(project: Path) -> None:
    recipe(project, "demos.jsonl", "demo.jsonl")
    recipe(project, "seed: 0", "seeds: 0")
    recipe(project, "num_ppo_epochs: 1", "num_ppo_epochs: 0")
    recipe(project, "[reward_model]", "[reward_modl]")


@case(2, "validate mine.yaml")
def broken_yaml(project: Path) -> None:
    recipe(project, "demos.jsonl}", "demos.jsonl")


@case(2, "validate mine.yaml")
def recipe_not_utf8(project: Path) -> None:
    file = project / "mine.yaml"
    file.write_bytes(file.read_bytes().replace(b"name: mine", b"name: mine  # caf\xe9"))


@case(2, "validate mine.yaml")
def recipe_empty(project: Path) -> None:
    (project / "mine.yaml").write_bytes(b"")


@case(2, "run nothing-here.yaml")
def recipe_missing(project: Path) -> None:
    pass


@case(2, "run mine.yaml --run-dir run")
def trainer_unknown_option(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_stps: 1,")
    recipe(project, "reward:\n  trainer: {max_steps: 1,", "reward:\n  trainer: {max_steps: one,")


@case(2, "run mine.yaml --run-dir run")
def trainer_values(project: Path) -> None:
    recipe(
        project,
        "sft:\n  trainer: {max_steps: 1,",
        "sft:\n  trainer: {learning_rate: -1, gradient_accumulation_steps: 0, adam_beta1: 2,",
    )
    recipe(project, "reward:\n  trainer: {max_steps: 1,", "reward:\n  trainer: {lr_scheduler_type: linaer, fp16: yes,")


@case(2, "validate mine.yaml --deep")
def trainer_unknown_strategy(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_steps: 1, logging_strategy: step,")


@case(2, "run mine.yaml --run-dir run")
def trainer_values_together(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_steps: 1, eval_strategy: steps,")


@case(2, "run mine.yaml --run-dir run")
def stop_token_of_several(project: Path) -> None:
    recipe(project, "response_length: 4", "response_length: 4\n  stop_token: <|im_end|>")


@case(2, "validate mine.yaml --deep")
def stop_token_found_by_validate(project: Path) -> None:
    recipe(project, "response_length: 4", "response_length: 4\n  stop_token: <|im_end|>")


# ---------------------------------------------------------------- data


@case(2, "run mine.yaml --run-dir run")
def data_missing(project: Path) -> None:
    (project / "demos.jsonl").rename(project / "demonstrations.jsonl")


@case(2, "sft mine.yaml --run-dir run")
def data_empty(project: Path) -> None:
    (project / "demos.jsonl").write_bytes(b"")


@case(2, "sft mine.yaml --run-dir run")
def data_cut_mid_line(project: Path) -> None:
    file = project / "demos.jsonl"
    file.write_bytes(file.read_bytes()[:-20])


@case(2, "reward mine.yaml --run-dir run")
def data_cut_parquet(project: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(pa.Table.from_pylist(preferences()), project / "pairs.parquet")
    raw = (project / "pairs.parquet").read_bytes()
    (project / "pairs.parquet").write_bytes(raw[: len(raw) // 2])
    recipe(project, "pairs.jsonl", "pairs.parquet")


@case(2, "data mine.yaml")
def data_cut_gzip(project: Path) -> None:
    raw = gzip.compress((project / "prompts.jsonl").read_bytes())
    (project / "prompts.jsonl.gz").write_bytes(raw[:-15])
    recipe(project, "prompts.jsonl", "prompts.jsonl.gz")


@case(2, "data mine.yaml")
def data_not_utf8(project: Path) -> None:
    rows = [*demonstrations(), {"prompt": "the café is", "completion": " closed"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (project / "demos.jsonl").write_text("\n".join(lines), encoding="latin-1")


@case(2, "data mine.yaml")
def data_not_utf8_csv(project: Path) -> None:
    (project / "demos.csv").write_bytes("prompt,completion\nthe café is, closed\n".encode("latin-1"))
    recipe(project, "demos.jsonl", "demos.csv")


@case(2, "run mine.yaml --run-dir run")
def data_wrong_columns(project: Path) -> None:
    write_jsonl(project / "demos.jsonl", [{"question": "a", "answer": "b"}] * 3)


@case(2, "run mine.yaml --run-dir run")
def data_mapped_column_missing(project: Path) -> None:
    recipe(project, "{source: demos.jsonl}", "{source: demos.jsonl, columns: {completion: answer}}")


@case(2, "run mine.yaml --run-dir run")
def data_empty_responses(project: Path) -> None:
    write_jsonl(project / "demos.jsonl", [*demonstrations(), {"prompt": "a", "completion": "  "}])


@case(2, "reward mine.yaml --run-dir run")
def data_chosen_is_rejected(project: Path) -> None:
    write_jsonl(project / "pairs.jsonl", [*preferences(), {"prompt": "a", "chosen": " b", "rejected": " b"}])


@case(2, "reward mine.yaml --run-dir run")
def data_every_row_wrong(project: Path) -> None:
    write_jsonl(project / "pairs.jsonl", [{"prompt": "a", "chosen": " b", "rejected": " b"}] * 9)


@case(2, "run mine.yaml --run-dir run")
def data_not_enough_prompts(project: Path) -> None:
    write_jsonl(project / "prompts.jsonl", prompts()[:6])


@case(2, "run mine.yaml --run-dir run")
def data_less_than_a_batch(project: Path) -> None:
    write_jsonl(project / "prompts.jsonl", prompts()[:8])


@case(2, "ppo mine.yaml --run-dir run --policy model --reward-model scorer")
def prompts_longer_than_context(project: Path) -> None:
    write_jsonl(project / "prompts.jsonl", [{"prompt": f"number {n} " * 40} for n in range(12)])
    write_scorer(project / "scorer")


@case(2, "compare mine.yaml --run-dir run --policy model --reference model --reward-model scorer")
def test_prompts_longer_than_context(project: Path) -> None:
    prompts_longer_than_context(project)


@case(2, "reward mine.yaml --run-dir run --policy model")
def pairs_longer_than_limit(project: Path) -> None:
    recipe(project, "reward:\n  trainer: {", "reward:\n  trainer: {max_length: 3, ")


# ---------------------------------------------------------------- tokenizers


@case(1, "run mine.yaml --run-dir run")
def tokenizer_without_eos(project: Path) -> None:
    json_file(project / "model" / "tokenizer_config.json", eos_token=None)


@case(1, "data mine.yaml")
def tokenizer_without_eos_in_data(project: Path) -> None:
    tokenizer_without_eos(project)


@case(2, "sft mine.yaml --run-dir run")
def tokenizer_without_template(project: Path) -> None:
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]
    write_jsonl(project / "demos.jsonl", [{"messages": turns}] * 4)


@case(2, "ppo mine.yaml --run-dir run --policy model --reward-model scorer")
def prompts_without_template(project: Path) -> None:
    write_jsonl(project / "prompts.jsonl", [{"prompt": [{"role": "user", "content": f"{n}?"}]} for n in range(12)])
    write_scorer(project / "scorer")


@case(2, "sft mine.yaml --run-dir run")
def template_broken(project: Path) -> None:
    tokenizer_without_template(project)
    (project / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}", encoding="utf-8")
    recipe(project, "path: ./model", "path: ./model\n  chat_template: chat.jinja")


@case(1, "sft mine.yaml --run-dir run")
def tokenizer_missing(project: Path) -> None:
    (project / "model" / "tokenizer.json").unlink()


@case(1, "sft mine.yaml --run-dir run")
def tokenizer_file_broken(project: Path) -> None:
    (project / "model" / "tokenizer.json").write_text('{"version": "1.0"', encoding="utf-8")


# ---------------------------------------------------------------- models


def write_scorer(folder: Path, **shape: Any) -> None:
    """A reward model from elsewhere."""
    import torch

    from rlhfctl.training import models

    language_model = folder.with_name(f"{folder.name}-base")
    write_model(language_model, **shape)
    base = models.load_causal_lm(str(language_model), dtype=torch.float32)
    tokenizer = models.load_tokenizer(str(language_model))
    models.save_model(models.scorer_on(base, seed=1), tokenizer, folder)


def write_adapter(folder: Path, model: Path) -> None:
    import torch
    from peft import TaskType

    from rlhfctl.recipe.schema import Lora
    from rlhfctl.training import models

    base = models.load_causal_lm(str(model), dtype=torch.float32)
    adapter = models.add_lora(base, Lora(r=2, lora_alpha=4), TaskType.CAUSAL_LM, seed=0)
    models.save_adapter(adapter, folder, base="../model", head=False)


@case(3, "ppo mine.yaml --run-dir run --policy model --reward-model scorer --set ppo.engine=trl")
def reward_model_of_another_tokenizer(project: Path) -> None:
    write_scorer(project / "scorer", vocab_size=280)


@case(3, "ppo mine.yaml --run-dir run --policy model --reward-model model")
def reward_model_without_head(project: Path) -> None:
    pass


@case(3, "compare mine.yaml --run-dir run --policy adapter --reference model --reward-model scorer")
def adapter_of_another_base(project: Path) -> None:
    write_model(project / "other", hidden_size=16)
    write_adapter(project / "adapter", project / "other")
    write_scorer(project / "scorer")


@case(3, "ppo mine.yaml --run-dir run --policy model --reward-model notes")
def folder_that_is_no_model(project: Path) -> None:
    (project / "notes").mkdir()
    (project / "notes" / "readme.txt").write_text("nothing", encoding="utf-8")


@case(1, "sft mine.yaml --run-dir run")
def model_folder_without_config(project: Path) -> None:
    (project / "model" / "config.json").unlink()


@case(1, "sft mine.yaml --run-dir run")
def model_config_broken(project: Path) -> None:
    (project / "model" / "config.json").write_text("{", encoding="utf-8")


@case(1, "sft mine.yaml --run-dir run")
def model_of_unknown_type(project: Path) -> None:
    json_file(project / "model" / "config.json", model_type="newthing")


@case(1, "sft mine.yaml --run-dir run")
def model_weights_missing(project: Path) -> None:
    (project / "model" / "model.safetensors").unlink()


@case(1, "sft mine.yaml --run-dir run")
def model_weights_cut(project: Path) -> None:
    file = project / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@case(1, "sft mine.yaml --run-dir run")
def model_weights_of_another_shape(project: Path) -> None:
    json_file(project / "model" / "config.json", intermediate_size=48)


@case(1, "sft mine.yaml --run-dir run")
def model_weights_incomplete(project: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = project / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, metadata={"format": "pt"})


@case(1, "sft mine.yaml --run-dir run")
def model_pickled_only(project: Path) -> None:
    import torch
    from safetensors.torch import load_file

    file = project / "model" / "model.safetensors"
    torch.save(load_file(file), project / "model" / "pytorch_model.bin")
    file.unlink()


@case(1, "sft mine.yaml --run-dir run")
def model_with_code(project: Path) -> None:
    json_file(
        project / "model" / "config.json",
        model_type="newthing",
        auto_map={"AutoConfig": "code.NewConfig", "AutoModelForCausalLM": "code.NewModel"},
    )
    (project / "model" / "code.py").write_text("open('ran-code', 'w')\n", encoding="utf-8")


@case(2, "validate mine.yaml")
def model_folder_missing(project: Path) -> None:
    recipe(project, "./model", "./modle")


@case(3, "reward mine.yaml --run-dir run")
def parent_missing(project: Path) -> None:
    pass


# ---------------------------------------------------------------- the test


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, project: Path) -> None:
    made = CASES[name]
    made.spoil(project)
    done = run_here(*made.command, cwd=project)
    message = normal(done.stderr, project)
    assert "Traceback" not in done.stdout + done.stderr
    golden(name, f"$ rlhfctl {' '.join(made.command)}\n{message}exit code {done.returncode}\n")
    assert done.returncode == made.code
    assert half_written(project / "run") == []
    assert not (project / "ran-code").exists()

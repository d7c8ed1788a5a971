"""Every bad input and the whole message that its user reads: tests/golden/bad_input/NAME.txt.

A case makes one thing wrong in a project that is right (bad_project.py) and gives a command as a user would. The exit
code and every word on standard error are held to the golden file; no stage may be left half-written. After a change of
a message: RLHFCTL_WRITE_GOLDEN=1 python -m pytest tests/test_bad_input.py, and read what changed. Longer than 400 lines
because the table of cases is one: a new case is looked for, and found or added, in one place.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bad_project import demonstrations, half_written, preferences, prompts, write_jsonl, write_model
from bad_project import write_project as write_project_to
from conftest import run_here

from rlhfctl import fs
from rlhfctl.artifacts import load_artifact

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
    recipe(project, "seed: 0", "sed: 0")
    recipe(project, "num_ppo_epochs: 1", "num_ppo_epochs: 0")
    recipe(project, "[reward_model]", "[reward_modl]")


@case(2, "validate mine.yaml")
def absurd_values(project: Path) -> None:
    recipe(project, "pairs.jsonl", "x" * 5000)
    recipe(project, "[reward_model]", f"[reward_model, {'y' * 5000}]")
    recipe(project, "kl_coef: 0.1", f"kl_coef: {'z' * 5000}")


@case(1, "run mine.yaml --run-dir demos.jsonl")
def run_folder_is_a_file(project: Path) -> None:
    pass


@case(1, "reward mine.yaml --run-dir run --policy " + "m" * 300)
def model_name_too_long(project: Path) -> None:
    pass


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
    recipe(project, "reward:\n  trainer: {max_steps: 1,", "reward:\n  trainer: {warmup_steps: -1, fp16: yes,")


@case(2, "validate mine.yaml --deep")
def trainer_unknown_strategy(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_steps: 1, logging_strategy: step,")


@case(2, "run mine.yaml --run-dir run")
def trainer_values_together(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_steps: 1, dataloader_prefetch_factor: 2,")


@case(2, "validate mine.yaml")
def trainer_owned_option(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_steps: 1, save_only_model: true,")


@case(2, "sft mine.yaml --run-dir run")
def trainer_fails_at_the_first_step(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_steps: 1, pad_to_multiple_of: 0,")


@case(2, "sft mine.yaml --run-dir run")
def trainer_names_a_file_that_is_not_there(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_steps: 1, accelerator_config: a.json,")


@case(2, "sft mine.yaml --run-dir run")
def nothing_left_to_learn(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_steps: 1, max_length: 2,")


@case(1, "sft mine.yaml --run-dir run")
def training_diverges(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", "sft:\n  trainer: {max_steps: 3, learning_rate: 1e30,")


@case(1, "reward mine.yaml --run-dir run --policy model")
def reward_training_diverges(project: Path) -> None:
    recipe(project, "reward:\n  trainer: {max_steps: 1,", "reward:\n  trainer: {max_steps: 3, learning_rate: 1e30,")


@case(2, "run mine.yaml --run-dir run")
def stop_token_of_several(project: Path) -> None:
    recipe(project, "response_length: 4", "response_length: 4\n  stop_token: <|im_end|>")


@case(2, "validate mine.yaml --deep")
def stop_token_found_by_validate(project: Path) -> None:
    recipe(project, "response_length: 4", "response_length: 4\n  stop_token: <|im_end|>")


@case(3, "run mine.yaml --run-dir run")
def nothing_to_compare(project: Path) -> None:
    file = project / "mine.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: text.index("ppo:")] + text[text.index("compare:") :], encoding="utf-8")


# ---------------------------------------------------------------- data


@case(2, "run mine.yaml --run-dir run")
def data_missing(project: Path) -> None:
    (project / "demos.jsonl").rename(project / "demonstrations.jsonl")


@case(2, "run mine.yaml --run-dir run")
def data_on_no_hub(project: Path) -> None:
    recipe(project, "demos.jsonl", "nobody/nothing")


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
def verdict_prompts_longer_than_context(project: Path) -> None:
    prompts_longer_than_context(project)


@case(2, "reward mine.yaml --run-dir run --policy model")
def pairs_longer_than_limit(project: Path) -> None:
    recipe(project, "reward:\n  trainer: {", "reward:\n  trainer: {max_length: 3, ")


@case(2, "compare mine.yaml --run-dir run --policy-samples a.jsonl --reference-samples b.jsonl --reward-model scorer")
def samples_without_responses(project: Path) -> None:
    write_scorer(project / "scorer")
    write_jsonl(project / "a.jsonl", [{"prompt": "number 1 is", "response": " red"}, {"prompt": "number 2 is"}])
    write_jsonl(project / "b.jsonl", [{"prompt": "number 1 is", "response": " blue"}])


@case(2, "compare mine.yaml --run-dir run --policy-samples a.jsonl --reference-samples b.jsonl --reward-model scorer")
def samples_of_other_prompts(project: Path) -> None:
    write_scorer(project / "scorer")
    write_jsonl(project / "a.jsonl", [{"prompt": "number 1 is", "response": " red"}])
    write_jsonl(project / "b.jsonl", [{"prompt": "number 2 is", "response": " blue"}])


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


@case(2, "data mine.yaml")
def tokenizer_without_template_in_data(project: Path) -> None:
    tokenizer_without_template(project)


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

    from rlhfctl.models import build, heads, loading, tokenizing

    language_model = folder.with_name(f"{folder.name}-base")
    write_model(language_model, **shape)
    base = loading.load_causal_lm(str(language_model), dtype=torch.float32)
    tokenizer = tokenizing.load_tokenizer(str(language_model))
    build.save_model(heads.scorer_on(base, seed=1), tokenizer, folder)


def write_adapter(folder: Path, model: Path) -> None:
    import torch
    from peft import TaskType

    from rlhfctl.models import adapters, loading
    from rlhfctl.recipe.schema import Lora

    base = loading.load_causal_lm(str(model), dtype=torch.float32)
    adapter = adapters.add_lora(base, Lora(r=2, lora_alpha=4), TaskType.CAUSAL_LM, seed=0)
    adapters.save_adapter(adapter, folder, base="../model", head=False)


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
    assert not list((project / "run").glob("*/manifest.json"))  # no stage ran before it was found
    assert not (project / "ran-code").exists()


def test_every_golden_file_has_its_case() -> None:
    others = {"run_in_use", "ctrl_c", "sigterm", "terminal_closed", "output_closed"}
    others |= {f"no_space_left_{when}" for when in ("start", "checkpoint", "publication")}
    assert {file.stem for file in GOLDEN.iterdir()} == CASES.keys() | others


def test_run_in_use(project: Path) -> None:
    with fs.RunLock(project / "run" / ".lock"):
        done = run_here("run", "mine.yaml", "--run-dir", "run", cwd=project)
    golden("run_in_use", f"$ rlhfctl run mine.yaml --run-dir run\n{normal(done.stderr, project)}exit code 4\n")
    assert done.returncode == 4
    assert {path.name for path in (project / "run").iterdir()} == {".lock"}


@pytest.mark.parametrize("was", [None, "<|endoftext|>"])
def test_a_tokenizer_without_a_pad_of_its_own_gets_one(was: str | None, project: Path) -> None:
    """Not an error: a pad token that is not end-of-sequence can be added safely, and the user is told."""
    json_file(project / "model" / "tokenizer_config.json", pad_token=was)
    done = run_here("sft", "mine.yaml", "--run-dir", "run", cwd=project)
    assert done.returncode == 0, done.stderr
    how = "had no pad token" if was is None else "padded with end-of-sequence"
    assert f"[sft] note the tokenizer {how}; it got <|pad|>" in done.stdout
    kept = json.loads((project / "run" / "sft" / "model" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (kept["pad_token"], kept["eos_token"]) == ("<|pad|>", "<|endoftext|>")


def test_a_bad_input_leaves_what_was_there_untouched(project: Path) -> None:
    assert run_here("sft", "mine.yaml", "--run-dir", "run", cwd=project).returncode == 0
    before = fs.hash_tree(project / "run" / "sft")
    for spoil, put_back in (("{", None), (None, "demos.jsonl")):
        file = project / (put_back or "mine.yaml")
        kept = file.read_bytes()
        file.write_bytes(spoil.encode() if spoil else kept[:-9])
        assert run_here("sft", "mine.yaml", "--run-dir", "run", "--force", cwd=project).returncode == 2
        assert fs.hash_tree(project / "run" / "sft") == before
        file.write_bytes(kept)
    recipe(project, "path: ./model", "path: ./model\n  chat_template: '{% for %}'")
    write_jsonl(project / "demos.jsonl", [{"messages": [{"role": "user", "content": "?"}, ANSWER]}] * 4)
    assert run_here("sft", "mine.yaml", "--run-dir", "run", cwd=project).returncode == 2
    assert fs.hash_tree(project / "run" / "sft") == before


ANSWER = {"role": "assistant", "content": "!"}


# ---------------------------------------------------------------- stopped from outside: said why, and gone on with

STEPS = 24
SFT = [sys.executable, "-m", "rlhfctl", "sft", "mine.yaml", "--run-dir", "run"]


def weights(run: Path) -> str:
    return load_artifact(run / "sft").manifest.outputs["model/model.safetensors"]


def many_steps(project: Path) -> None:
    recipe(project, "sft:\n  trainer: {max_steps: 1,", f"sft:\n  checkpoint_steps: 4\n  trainer: {{max_steps: {STEPS},")


@pytest.fixture(scope="module")
def undisturbed(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run that nothing stops."""
    folder = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(sound, folder)
    many_steps(folder)
    assert run_here("sft", "mine.yaml", "--run-dir", "run", cwd=folder).returncode == 0
    return weights(folder / "run")


def reached(run: Path, step: int, still_runs: Callable[[], bool]) -> None:
    """Wait until a checkpoint of at least `step` is whole."""
    until = time.monotonic() + 120
    while not any(int(mark.parent.name.split("-")[1]) >= step for mark in run.glob("sft/work/*/complete.json")):
        assert still_runs() and time.monotonic() < until
        time.sleep(0.001)


def last_event(run: Path) -> dict[str, Any]:
    last: dict[str, Any] = json.loads((run / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return last


@pytest.mark.parametrize(
    ("name", "number"), [("ctrl_c", signal.SIGINT), ("sigterm", signal.SIGTERM), ("terminal_closed", signal.SIGHUP)]
)
def test_a_signal(name: str, number: signal.Signals, project: Path, undisturbed: str) -> None:
    many_steps(project)
    ours = signal.getsignal(number)
    over = threading.Event()

    def strike() -> None:
        reached(project / "run", 4, lambda: not over.is_set())
        if signal.getsignal(number) is not ours:  # else it would end the tests
            os.kill(os.getpid(), number)

    striker = threading.Thread(target=strike)
    striker.start()
    done = run_here("sft", "mine.yaml", "--run-dir", "run", cwd=project)
    over.set()
    striker.join()
    assert signal.getsignal(number) is ours
    golden(name, f"$ rlhfctl sft mine.yaml --run-dir run\n{done.stderr}exit code {done.returncode}\n")
    assert done.returncode == 128 + number
    assert half_written(project / "run", stopped=True) == []
    assert last_event(project / "run")["event"] == "run_stopped"
    assert last_event(project / "run")["reason"].endswith(
        "; the same command resumes from the last complete checkpoint"
    )
    again = run_here("sft", "mine.yaml", "--run-dir", "run", cwd=project)
    assert again.returncode == 0 and "resumed_from=" in again.stdout
    assert weights(project / "run") == undisturbed


def test_nohup_stays_in_force(project: Path) -> None:
    many_steps(project)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    over = threading.Event()

    def strike() -> None:
        reached(project / "run", 4, lambda: not over.is_set())
        os.kill(os.getpid(), signal.SIGHUP)

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        done = run_here("sft", "mine.yaml", "--run-dir", "run", cwd=project)
    finally:
        over.set()
        striker.join()
        signal.signal(signal.SIGHUP, before)
    assert done.returncode == 0, done.stderr


@pytest.mark.ci
def test_the_output_is_closed(project: Path, undisturbed: str) -> None:
    many_steps(project)
    piped = subprocess.Popen(SFT, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert piped.stdout is not None and piped.stderr is not None
    piped.stdout.readline()
    piped.stdout.close()  # as `| head -1` does
    message = piped.stderr.read().decode()
    piped.stderr.close()
    code = piped.wait(timeout=120)
    golden("output_closed", f"$ rlhfctl sft mine.yaml --run-dir run | head -1\n{message}exit code {code}\n")
    assert code == 128 + signal.SIGPIPE
    assert half_written(project / "run", stopped=True) == []
    assert "standard output was closed" in last_event(project / "run")["reason"]
    assert run_here(*SFT[3:], cwd=project).returncode == 0
    assert weights(project / "run") == undisturbed


@pytest.mark.slow
def test_the_terminal_is_closed(project: Path, undisturbed: str) -> None:
    """In a terminal of its own, with the screen on it; test_a_signal is the short form."""
    many_steps(project)
    process, terminal = pty.fork()
    if not process:
        os.chdir(project)
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, SFT)
    drain = threading.Thread(target=read_all, args=(terminal,), daemon=True)
    drain.start()
    reached(project / "run", 4, lambda: os.waitpid(process, os.WNOHANG) == (0, 0))
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert "the terminal was closed" in last_event(project / "run")["reason"]
    again = run_here("sft", "mine.yaml", "--run-dir", "run", cwd=project)
    assert again.returncode == 0 and "resumed_from=" in again.stdout
    assert weights(project / "run") == undisturbed


def read_all(descriptor: int) -> None:
    """What a terminal does: take what comes."""
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError as error:
        assert error.errno in (errno.EIO, errno.EBADF)  # the other side is gone


# ---------------------------------------------------------------- no space left, for real


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def leave_free(disk: Path, kilobytes: int) -> None:
    """Fill the disk but for so much."""
    (disk / "other-files").unlink(missing_ok=True)
    (disk / "other-files").write_bytes(bytes(shutil.disk_usage(disk).free - 1024 * kilobytes))


@pytest.mark.parametrize(("struck", "first", "step"), [("start", 4, 8), ("checkpoint", 56, 8), ("publication", 164, 8)])
def test_no_space_left(struck: str, first: int, step: int, project: Path, small_disk: Path, undisturbed: str) -> None:
    """More and more KiB are left free, until the disk is full at the moment that is wanted."""
    many_steps(project)
    if struck == "publication":  # which needs less room than the checkpoints in turn
        recipe(project, "checkpoint_steps: 4", f"checkpoint_steps: {STEPS}")
    for number in range(20):
        run = small_disk / f"run-{number}"
        leave_free(small_disk, first + number * step)
        done = run_here("sft", "mine.yaml", "--run-dir", run, cwd=project)
        assert "Traceback" not in done.stderr
        assert half_written(run, stopped=True) == []
        if moment(run) == struck:
            break
        shutil.rmtree(run)
    message = normal(done.stderr.replace(str(run), "/project/run"), project)
    golden(f"no_space_left_{struck}", f"$ rlhfctl sft mine.yaml --run-dir run\n{message}exit code {done.returncode}\n")
    (small_disk / "other-files").unlink()
    again = run_here("sft", "mine.yaml", "--run-dir", run, cwd=project)
    assert again.returncode == 0, again.stderr
    assert weights(run) == undisturbed


def moment(run: Path) -> str:
    """When a run of sft ended."""
    if (run / "sft" / "manifest.json").exists():
        return "end"
    if (run / "sft" / ".model.partial").exists():
        return "publication"
    return "checkpoint" if list(run.glob("sft/work/checkpoint-*")) else "start"

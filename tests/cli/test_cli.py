"""What a user sees who gets the command line wrong: one message, an exit code, no traceback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Cli

import rlhfctl.__main__
import rlhfctl.cli


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--no-such-option", "quickstart"], 2, "No such option"),
        (["rum"], 2, "No such command"),
        (["run"], 2, "Missing argument"),
        (["run", "quickstrt"], 2, "quickstart"),
        (["validate", "quickstart", "--set", "ppo.learning_rat=1e-5"], 2, "did you mean 'learning_rate'"),
        (["validate", "quickstart", "--set", "sft.lora={r: 4}"], 2, "random"),
        (
            ["validate", "quickstart", "--set", "ppo.engine=trl", "--set", "ppo.gradient_accumulation_steps=2"],
            2,
            "wrong number of optimizer steps",
        ),
        (["show", "no-such-run"], 1, "recipe.yaml is missing"),
        (["export", "no-such-run", "--to", "x"], 1, "recipe.yaml is missing"),
        (["runs", "no-such-folder"], 1, "there is no such folder"),
        (["recipes", "show", "quickstrt"], 1, "did you mean 'quickstart'"),
        (["recipes", "copy", "quickstart", "/dev/null"], 1, "already exists"),
        (["init", "/dev/null"], 1, "already exists"),
        (["schema", "--out", "/dev/null"], 1, "was not made by this command"),
        (["compare", "a", "b"], 1, "must all be run folders"),
        (["compare", "quickstart", "--policy-samples", "x.jsonl"], 1, "go together"),
    ],
)
def test_one_message_and_no_traceback(arguments: list[str], code: int, message: str, cli: Cli, tmp_path: Path) -> None:
    result = cli(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_one_message(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(rlhfctl.cli, "app", fails)
    with pytest.raises(SystemExit) as left:
        rlhfctl.__main__.main()
    said = capsys.readouterr().err
    assert left.value.code == 1
    assert said.startswith("error: memory ran out") and "halve per_device_train_batch_size" in said
    assert "See the documentation" not in said and str(error).partition("\n")[0] in said


def test_what_is_no_lack_of_memory_is_shown_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(rlhfctl.cli, "app", fails)
    with pytest.raises(RuntimeError, match="shapes differ"):
        rlhfctl.__main__.main()


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("rlhfctl 0.")


def test_ctrl_c_says_how_to_go_on(tiny_recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "rlhfctl", "run", str(tiny_recipe), "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (run / "sft" / "work" / "inputs.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    # Hit within code that an extension runs by PyRun_String, Python remembers the interrupt and ends by the signal
    # after all that we do: a shell reports 130 either way.
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert "the same command resumes" in stderr
    assert "Traceback" not in stderr


def test_bad_rows_are_named_before_any_model_loads(tmp_path: Path, tiny_recipe: Path, cli: Cli) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": " a", "rejected": " b" if i != 2 else " a"} for i in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tiny_recipe.read_text()
    start = text.index("  preferences:")
    line = text[start : text.index("\n", start)]
    tiny_recipe.write_text(text.replace(line, "  preferences: {source: pairs.jsonl}"))
    result = cli("run", tiny_recipe, "--run-dir", tmp_path / "run")
    assert result.returncode == 2
    assert "pairs.jsonl:3: chosen and rejected are the same" in result.stderr
    assert not (tmp_path / "run" / "sft").exists()


def test_runs_side_by_side(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(tiny_run, tmp_path / "other")
    result = cli("compare", tiny_run, tmp_path / "other")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("undecided") + result.stdout.count("better") + result.stdout.count("worse") >= 2
    assert "different test prompts" not in result.stdout and "different controls" not in result.stdout


def test_runs_with_other_controls_say_so(tiny_run: Path, tiny_recipe: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(tiny_run, tmp_path / "other")
    fewer = ["--set", "compare.controls={temperatures: [0.0], matched_entropy: false}"]
    assert cli("compare", tiny_recipe, "--run-dir", tmp_path / "other", *fewer).returncode == 0
    assert "these runs had different controls" in cli("compare", tiny_run, tmp_path / "other").stdout


def test_runs_of_other_models_and_data_say_so(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    for stage, key in (("sft", "model"), ("reward", "data.preferences"), ("ppo", "section")):
        file = other / stage / "manifest.json"
        manifest = json.loads(file.read_text(encoding="utf-8"))
        manifest["inputs"][key] = "of another"
        file.write_text(json.dumps(manifest), encoding="utf-8")
    said = " ".join(cli("compare", tiny_run, other).stdout.split())
    assert "differs from" in said and said.endswith(
        "model, data.preferences"
    )  # a section's keys are told by themselves


def test_show_gives_the_verdict_and_the_lineage(tiny_run: Path, cli: Cli) -> None:
    result = cli("show", tiny_run)
    assert result.returncode == 0, result.stderr
    sentence = json.loads((tiny_run / "compare" / "compare.json").read_text(encoding="utf-8"))["sentence"]
    assert sentence in " ".join(result.stdout.split())
    for word in ("lineage", "policy: ppo", "reference: sft", "data.demonstrations", "base model (new weights)"):
        assert word in result.stdout


def test_a_wrong_trainer_option_of_a_later_stage_stops_the_run_before_the_first(
    tiny_recipe: Path, tmp_path: Path, cli: Cli
) -> None:
    result = cli("run", tiny_recipe, "--run-dir", tmp_path / "run", "--set", "reward.trainer.lerning_rate=1")
    assert result.returncode == 2
    assert "did you mean 'learning_rate'" in result.stderr
    assert not (tmp_path / "run" / "sft").exists()

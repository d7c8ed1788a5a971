"""The long checks, minutes each: `make slow`, or one of them with -k. Each stands for a promise in the README."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT, TINY, function_of_page, run_cli

from rlhfctl.artifacts import load_artifact

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
CAMPAIGNS = ROOT / "tests" / "campaigns"
SEEDS = (0, 1, 2)
BOTH_CORES = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}


def verdict(run: Path) -> dict[str, object]:
    report: dict[str, object] = json.loads((run / "compare" / "compare.json").read_text())
    return report


def finished(recipe: str | Path, run: Path, *overrides: str) -> Path:
    sets = [part for override in overrides for part in ("--set", override)]
    result = run_cli("run", recipe, "--run-dir", run, *sets, env=BOTH_CORES)
    assert result.returncode == 0, result.stderr
    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_quickstart_gets_better_by_gold(seed: int, tmp_path: Path) -> None:
    report = verdict(finished("quickstart", tmp_path / "run", f"seed={seed}"))
    gold = report["judges"]["gold"]  # type: ignore[index]
    assert report["verdict"] == "better"
    assert gold["win_rate"] >= 0.70
    assert gold["win_rate_ci95"][0] > 0.55
    assert report["end_rate_reference"] >= 0.90  # type: ignore[operator]
    assert 0.2 <= gold["reference_mean"] <= 0.8


@pytest.mark.parametrize("seed", SEEDS)
def test_the_quickstarts_world_gets_better_by_dpo(seed: int, tmp_path: Path) -> None:
    (tmp_path / "dpo.yaml").write_text(
        f"extends: {ROOT / 'recipes' / 'quickstart.yaml'}\nreward: null\nppo: null\n"
        "dpo: {trainer: {num_train_epochs: 1, learning_rate: 3e-4, per_device_train_batch_size: 16}}\n"
        "compare: {judges: [gold], max_new_tokens: 28}\n"
    )
    report = verdict(finished(tmp_path / "dpo.yaml", tmp_path / "run", f"seed={seed}"))
    gold = report["judges"]["gold"]  # type: ignore[index]
    assert gold["win_rate_ci95"][0] > 0.5 and gold["delta"] > 0
    assert report["kl_mean"] < 2  # type: ignore[operator]


def test_quickstart_on_pure_noise_does_not_get_better(tmp_path: Path) -> None:
    run = finished("quickstart", tmp_path / "run", "data.preferences.label_noise=0.5")
    assert verdict(run)["verdict"] != "better"
    assert any("no better than a coin" in note for note in load_artifact(run / "reward").manifest.notes)


@pytest.mark.parametrize("seed", SEEDS)
def test_tiny_chatgpt_learns_odd_parity(seed: int, tmp_path: Path) -> None:
    result = run_cli("run", "tiny-chatgpt", "--run-dir", tmp_path / "run", "--set", f"seed={seed}")
    assert result.returncode == 0, result.stderr
    artifact = load_artifact(tmp_path / "run" / "ppo")
    assert artifact.manifest.metrics["updates"] == 100
    assert artifact.manifest.metrics["raw_score"] >= 0.90  # mean over the last ten updates of 64


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            [
                "ppo.algorithm=a2c",
                "ppo.total_episodes=102400",
                "ppo.entropy_coef=0.1",
                "ppo.critic_learning_rate=3e-3",
            ],
            id="a2c",
        ),
        pytest.param(["ppo.algorithm=rloo", "ppo.total_episodes=51200", "ppo.num_generations=8"], id="rloo"),
    ],
)
def test_one_step_per_update_reaches_090_on_tiny_chatgpt(settings: list[str], seed: int, tmp_path: Path) -> None:
    shorter = ["compare=null", "ppo.eval.every=0", "ppo.trace_every=0"]
    sets = [f"--set={setting}" for setting in (f"seed={seed}", *settings, *shorter)]
    result = run_cli("run", "tiny-chatgpt", "--run-dir", tmp_path / "run", *sets)
    assert result.returncode == 0, result.stderr
    responses = function_of_page("algorithms.md", "responses_until")(tmp_path / "run")
    print(settings, seed, responses)
    assert responses is not None


def test_reviews_on_real_text(shared: Path, tmp_path: Path) -> None:
    run = finished(HERE / "reviews.yaml", tmp_path / "run")
    assert load_artifact(run / "reward").manifest.metrics["heldout_accuracy_low"] > 0.60
    assert verdict(run)["judges"]["reward_model"]["delta_ci95"][0] > 0  # type: ignore[index]
    assert verdict(run)["independent"] is False


def test_twenty_kills_and_a_kill_at_every_step_of_publication(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    more = [
        "data.demonstrations.rows=1600",
        "data.preferences.rows=800",
        "ppo.total_episodes=160",
        "sft.checkpoint_steps=10",
    ]
    command = [sys.executable, str(CAMPAIGNS / "kills.py"), str(recipe), "--kills", "20"]
    command += [part for override in more for part in ("--set", override)]
    kills = subprocess.run(command, capture_output=True, text=True, check=False)
    print(kills.stdout)
    assert kills.returncode == 0, kills.stdout + kills.stderr
    assert "20 passed, 0 failed" in kills.stdout
    command = [sys.executable, str(CAMPAIGNS / "kills.py"), str(recipe), "--kills", "0", "--publication"]
    steps = subprocess.run(command, capture_output=True, text=True, check=False)
    print(steps.stdout)
    assert steps.returncode == 0, steps.stdout + steps.stderr


def test_twenty_kills_inside_ppo_and_one_at_every_step_of_its_checkpoints(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    for options in (
        ["--kills", "20", "--set", "ppo.total_episodes=320", "--set", "ppo.checkpoint_steps=3"],
        ["--kills", "0", "--publication", "--set", "ppo.use=best", "--set", "ppo.checkpoint_steps=1"],
    ):
        command = [sys.executable, str(CAMPAIGNS / "ppo_kills.py"), str(recipe), *options]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        print(result.stdout)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_change_of_the_ppo_arithmetic_is_noticed() -> None:
    result = subprocess.run(
        [sys.executable, str(CAMPAIGNS / "mutations.py")], capture_output=True, text=True, check=False
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_overhead_over_bare_trl_is_small() -> None:
    script = CAMPAIGNS / "overhead.py"
    env = {**os.environ, **BOTH_CORES}
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=env)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_newest_trl_trains_and_names_the_release_with_ppo(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("trl==")]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join(pins))
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--constraint", constraints, "trl", ROOT]
    subprocess.run([str(part) for part in install], check=True)
    version = subprocess.run(
        [str(python), "-c", "import importlib.metadata as m; print(m.version('trl'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert tuple(map(int, version.split(".")[:2])) >= (1, 13), version

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    run = tmp_path / "run"

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-m", "rlhfctl", *map(str, arguments), "--run-dir", str(run)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    for stage in ("sft", "reward"):
        result = call(stage, recipe)
        assert result.returncode == 0, result.stderr
    ours = call("ppo", recipe)  # our engine needs no PPOTrainer
    assert ours.returncode == 0, ours.stderr
    ppo = call("ppo", recipe, "--set", "ppo.engine=trl")
    assert ppo.returncode == 5
    assert "pip install 'trl==1.12.0'" in ppo.stderr
    assert "Traceback" not in ppo.stderr
    compared = call("compare", recipe, "--policy", run / "sft", "--reference", run / "sft")
    assert compared.returncode == 0, compared.stderr
    assert verdict(run)["judges"]["gold"]["win_rate"] == 0.5  # type: ignore[index]

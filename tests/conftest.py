"""Fixtures that all tests share: a quiet, offline, single-threaded environment, the smallest recipe, a finished run."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The models of tests are very small, so a second thread would only wait at barriers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A process started by nohup or in a script's background ignores these signals, and its children inherit that.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

ROOT = Path(__file__).resolve().parent.parent

TINY = """\
name: tiny
seed: 0
model:
  init:
    architecture: llama
    hidden_size: 32
    num_hidden_layers: 2
    num_attention_heads: 2
    vocab_size: 400
    max_position_embeddings: 128
lora: {r: 4, lora_alpha: 8}
data:
  demonstrations: {source: "builtin:reviews", rows: 96}
  preferences: {source: "builtin:reviews", rows: 64, label_noise: 0.1, heldout: 0.25}
  prompts: {source: "builtin:reviews", rows: 60, eval: 6, test: 12}
sft:
  lora: null
  checkpoint_steps: 2
  trainer: {num_train_epochs: 1, learning_rate: 1e-2, per_device_train_batch_size: 16}
reward:
  checkpoint_steps: 2
  trainer: {num_train_epochs: 1, learning_rate: 1e-2, per_device_train_batch_size: 8}
ppo:
  total_episodes: 32
  per_device_train_batch_size: 16
  num_mini_batches: 2
  num_ppo_epochs: 2
  learning_rate: 1e-2
  response_length: 12
  temperature: 1.0
  missing_eos_penalty: 1.0
  eval: {every: 1}
compare: {samples_per_prompt: 2, judges: [gold, reward_model], bootstrap_samples: 200}
"""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """Write a recipe of the whole loop that takes seconds to run."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


def run_cli(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process and capture its output."""
    command = [sys.executable, "-m", "rlhfctl", *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def function_of_page(page: str, name: str) -> Callable[..., Any]:
    """Return the function `name` of the first Python block of a page in docs/ that defines it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f"def {name}(" in block)
    defined: dict[str, Any] = {}
    exec(block, defined)
    function: Callable[..., Any] = defined[name]
    return function


def fastest(*arguments: object, env: dict[str, str] | None = None) -> float:
    """Return the processor seconds of the fastest of five calls of a command, which other processes disturb least."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_cli(*arguments, env=env).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(times)


def run_here(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, for speed. Output, exit code and tracebacks are as in `run_cli`."""
    from rlhfctl import __main__

    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    given = ["rlhfctl", *map(str, arguments)]
    was, sys.argv = sys.argv, given
    try:
        with (
            mock.patch.dict(os.environ, env or {}),
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                __main__.main()
            except SystemExit as ended:
                code = ended.code or 0
            except BaseException:  # noqa: BLE001 - Python would print it and exit with 1
                traceback.print_exc()
                code = 1
    finally:
        sys.argv = was
    assert isinstance(code, int), code
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


@pytest.fixture
def cli() -> Cli:
    return run_cli


@pytest.fixture
def here(tmp_path: Path) -> Cli:
    """The command line in this process: loading the libraries anew would take longer than most tests."""
    return partial(run_here, cwd=tmp_path)


@pytest.fixture(scope="module")
def cli_of_module() -> Cli:
    return run_cli


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finish one run of the tiny recipe, for tests that only read it. The recipe lies beside the run folder.

    Parallel workers share it: the first one that needs it makes it, the others wait.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "session"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run" / "stdout.txt").is_file():
            (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
            result = run_cli("run", folder / "tiny.yaml", "--run-dir", folder / "run")
            assert result.returncode == 0, result.stderr
            (folder / "run" / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    return folder / "run"


# PPO alone in a world of two letters: seconds, every episode of every update traced, a tree that can be written out.
LETTERS = """\
name: letters
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32, tokens: [a, b]}
data:
  prompts: {source: prompts.jsonl, eval: 4, test: 4}
reward: {function: "scores:share_of_a"}
ppo:
  lora: null
  total_episodes: 24
  per_device_train_batch_size: 8
  num_mini_batches: 2
  num_ppo_epochs: 2
  learning_rate: 1e-2
  response_length: 4
  temperature: 1.0
  missing_eos_penalty: 0.5
  kl_coef: 0.2
  cliprange: 0.05
  trace_every: 1
  trace_episodes: 8
  eval: {every: 0}
"""
SHARE_OF_A = """\
def share_of_a(prompts, completions):
    return [completion.count("a") / 4 for completion in completions]
"""


@pytest.fixture(scope="session")
def traced_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finish a run of PPO that traces everything. Beside it lies `again`, whose critic began as that of the first."""
    folder = tmp_path_factory.mktemp("letters")
    prompts = ["ab"[n % 2] * (1 + n // 2) for n in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (folder / "letters.yaml").write_text(LETTERS)
    (folder / "scores.py").write_text(SHARE_OF_A)
    critic = f"ppo.critic_from={folder / 'run' / 'ppo'}"
    for name, options in (("run", ()), ("again", ("--set", critic, "--set", "ppo.total_episodes=8"))):
        result = run_here("run", "letters.yaml", "--run-dir", name, *options, cwd=folder)
        assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def carded_run(tiny_run: Path) -> Path:
    """Make the reward model's card of a copy of the tiny run, for tests that only read it; workers share it, too."""
    run = tiny_run.parent / "carded"
    with (tiny_run.parent / "carded.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "card.txt").is_file():
            shutil.copytree(tiny_run, run)
            result = run_here("reward-eval", run, "--prompts", 6, "--samples", 8, cwd=run.parent)
            assert result.returncode == 0, result.stderr
            (run / "card.txt").write_text(result.stdout, encoding="utf-8")
    return run


@pytest.fixture(scope="session")
def confining() -> None:
    """Skip a test where this machine cannot confine programs; the reason is the refusal's own."""
    from rlhfctl.errors import EngineError
    from rlhfctl.sandbox.pool import Sandbox

    try:
        Sandbox(workers=1).close()
    except EngineError as error:
        pytest.skip(str(error))

"""docs/scale.md: its commands run on CPUs, with two processes where the page has eight or sixteen, and fewer rows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from namespaces import ADDRESSES, Machines, refused, two_machines
from ruamel.yaml import YAML

from rlhfctl.artifacts import load_artifact
from rlhfctl.recipe.schema import Launch

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SLURM = re.findall(r"```text\n(#!/bin/bash.*?)```", PAGE, re.DOTALL)
SMALL = (
    "model.init.hidden_size=40", "model.init.num_hidden_layers=1",
    "data.demonstrations.rows=64", "data.preferences.rows=60", "data.prompts.rows=110", "data.prompts.eval=4",
    "data.prompts.test=6", "sft.trainer.num_train_epochs=1", "reward.trainer.num_train_epochs=1",
    "ppo.total_episodes=128", "ppo.response_length=8", "compare.bootstrap_samples=100", "compare.samples_per_prompt=1",
)  # fmt: skip
LONGEST_S = 500.0


def small(line: str) -> str:
    """A command of the page at a size for tests; the run lies in the current folder."""
    line = re.sub(r"--num-processes (8|16)", "--num-processes 2", line)
    program = f"{sys.executable} -m rlhfctl"
    return line.replace("rlhfctl", program, 1) + "".join(f" --set {size}" for size in SMALL)


def finish(started: list[subprocess.Popen[str]]) -> None:
    for one in started:
        said, _ = one.communicate(timeout=LONGEST_S)
        assert one.returncode == 0, said


def start(line: str, folder: Path, machines: Machines | None = None, number: int = 0) -> subprocess.Popen[str]:
    prefix = machines.prefix(number) if machines is not None else []
    return subprocess.Popen(
        [*prefix, "bash", "-c", line], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def namespaces() -> Machines:
    if (why := refused()) is not None:
        pytest.skip(why)
    with two_machines() as machines:
        yield machines  # type: ignore[misc]


def test_the_page_has_these_commands_and_its_section_is_valid() -> None:
    assert [re.findall(r"--num-processes (\d+)", line) for line in COMMANDS] == [
        [],
        ["8"],
        ["2"],
        ["2"],
        ["16"],
        ["16"],
    ]
    assert [("--machine-rank" in line) for line in COMMANDS] == [False] * 5 + [True]
    assert [("--shard" in line) for line in COMMANDS] == [False] * 3 + [True] + [False] * 2
    assert all(ADDRESSES[0] in line for line in COMMANDS[4:]) and len(SLURM) == 1
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        assert Launch.model_validate(YAML(typ="safe").load(block)["launch"]).num_processes == 8


@pytest.mark.ci
def test_the_commands_for_one_machine_run(tmp_path: Path) -> None:
    for number, line in enumerate(COMMANDS[:4]):
        folder = tmp_path / str(number)
        folder.mkdir()
        finish([start(small(line), folder)])
        assert load_artifact(folder / "runs" / "quickstart" / "ppo").manifest.metrics["updates"] == 2


@pytest.mark.ci
def test_the_commands_for_two_machines_run(namespaces: Machines, tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    both = zip(COMMANDS[4:], folders, (0, 1), strict=True)
    finish([start(small(line), folder, namespaces, number) for line, folder, number in both])
    assert load_artifact(folders[0] / "runs" / "quickstart" / "ppo").manifest.metrics["updates"] == 2
    assert list(folders[1].iterdir()) == []  # it worked in a temporary folder


@pytest.mark.ci
def test_the_slurm_script_runs(namespaces: Machines, tmp_path: Path) -> None:
    """`srun` and `scontrol` are stand-ins: a task on each of two nodes, and the name of the first one."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/bash\nprintf '%s\\n' {' '.join(ADDRESSES)}\n")
    prefixes = [" ".join(namespaces.prefix(number)) for number in (0, 1)]
    tasks = "".join(f'SLURM_NODEID={n} {prefix} "$@" & tasks[{n}]=$!\n' for n, prefix in enumerate(prefixes))
    (tools / "srun").write_text(f"#!/bin/bash\n{tasks}wait ${{tasks[0]}} && wait ${{tasks[1]}}\n")
    script = re.sub(r"(rlhfctl run.*?)'\n", lambda found: f"{small(found[1])}'\n", SLURM[0])
    (tmp_path / "job.sh").write_text(script)
    for file in (*tools.iterdir(), tmp_path / "job.sh"):
        file.chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    given = {"PATH": path, "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[0-1]"}
    done = subprocess.run(
        ["./job.sh"],
        cwd=tmp_path,
        env=os.environ | given,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_artifact(tmp_path / "runs" / "quickstart" / "ppo").manifest.metrics["updates"] == 2

"""Make the command that starts the processes of a stage, and find the cause when one of them dies.

    launch: ──▶ Launcher ──▶ accelerate launch ... -m rlhfctl.stage_process RUN STAGE ──▶ a process per GPU, or per core

`accelerate launch` starts and watches the processes of one machine: when one ends with an error, it ends the others.
Each process writes its output to a log of its own (`process-N.log`), and the launcher to `launch.log`. Reads these
files. Leaves out what the processes do (stage_process.py), and how they exchange numbers (models/processes.py).
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhfctl import fs
from rlhfctl.recipe.schema import Launch

LAUNCH_LOG = "launch.log"
_CONFIG = "accelerate.yaml"
# accelerate would otherwise read the file that `accelerate config` left in the home folder.
_PLAIN_CONFIG = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
mixed_precision: 'no'
use_cpu: false
debug: false
"""
_OWN_TYPES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")  # values of distributed_type that --multi_gpu would switch off
_TAIL_LINES = 12  # lines of a log in a message
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Launcher:
    """The command that starts the processes of a stage; `-m rlhfctl.stage_process RUN STAGE` is appended to it.

    `command`: for example ("env", "RANK=1", "python"). With `launch` it is that of `accelerate launch`, and stages that
    several processes cannot share run in the pipeline's process.
    """

    command: tuple[str, ...] = (sys.executable,)
    launch: Launch | None = None

    @property
    def processes(self) -> int:
        """The number of processes of a stage, on all machines."""
        return self.launch.num_processes if self.launch is not None else 1

    @property
    def shared_only(self) -> bool:
        """Tell whether it starts only the stages that several processes can share."""
        return self.launch is not None

    def line(self, folder: Path) -> list[str]:
        """Return the command; a configuration for `accelerate launch` is written into `folder`."""
        return list(self.command) if self.launch is None else command(self.launch, folder)

    def environment(self) -> dict[str, str]:
        """Return the environment of the processes."""
        return dict(os.environ) if self.launch is None else os.environ | environment(self.launch.local_processes)


def launcher_of(launch: Launch | None) -> Launcher | None:
    """Make the launcher that a recipe's `launch` asks for; None if all stages run in this process."""
    if launch is None or (launch.num_processes == 1 and launch.accelerate_config is None):
        return None
    return Launcher(launch=launch)


def command(launch: Launch, folder: Path) -> list[str]:
    """Make the command line of `accelerate launch` for the processes of one machine."""
    if launch.accelerate_config is None:
        config = folder / _CONFIG
        fs.write_atomic(config, _PLAIN_CONFIG)
    else:
        config = Path(launch.accelerate_config)
    several = launch.num_processes > 1 and not _has_own_type(config.read_text(encoding="utf-8"))
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)),
        *(["--multi_gpu"] if several else []),  # on CPUs too: it means torchrun, and the processes then choose gloo
        *("--num_processes", str(launch.num_processes)),
        *("--num_machines", "1", "--machine_rank", "0", "--main_process_port", "0"),
        *("--num_cpu_threads_per_process", str(threads(launch.local_processes))),
    ]


def _has_own_type(config: str) -> bool:
    """Tell whether a configuration of accelerate asks for more than plain data parallelism."""
    found = re.search(r"^distributed_type:\s*['\"]?(\w+)", config, re.MULTILINE)
    return found is not None and found[1] in _OWN_TYPES


def environment(local: int) -> dict[str, str]:
    """Return the variables that `local` processes of one machine need, without those that the user has set."""
    wanted = {"OMP_NUM_THREADS": str(threads(local))}
    if sys.platform == "linux":  # the name of the machine may lead to an interface that does not reach itself
        wanted["GLOO_SOCKET_IFNAME"] = "lo"
    return {name: value for name, value in wanted.items() if name not in os.environ or name == "OMP_NUM_THREADS"}


def threads(local: int) -> int:
    """Divide this machine's cores, or the threads that OMP_NUM_THREADS allows, among `local` processes."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (int(allowed) if allowed.isdigit() else cores) // local)


# ---------------------------------------------------------------- why a process died


@dataclass(frozen=True)
class Death:
    """A process that ended before the stage did: its number, and its exit code (negative: the signal)."""

    number: int
    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        return f"was killed ({name})"


def first_death(log: str) -> Death | None:
    """Find the process that died first in what torch's launcher wrote; None if it names none.

    Processes that were killed count before those that then failed because they lost their partner.
    """
    pairs = re.findall(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*exitcode\s*:\s*(-?\d+)", log)
    deaths = [Death(int(number), int(code)) for number, code in pairs]
    killed = [one for one in deaths if one.code < 0 and one.code != -signal.SIGTERM]
    others = [one for one in deaths if one.code != -signal.SIGTERM]
    return next(iter([*killed, *others]), None)


def last_lines(log: Path, count: int = _TAIL_LINES) -> str:
    """Return the last lines of a log, indented; a line about it if there is nothing in it."""
    lines: Sequence[str] = []
    if log.is_file():
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
    kept = [line for line in lines if line.strip()][-count:]
    return "\n".join(f"    {line}" for line in kept) or "    (its log is empty)"

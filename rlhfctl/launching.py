"""Start the processes of a stage on this machine, end them, and find the cause when one of them dies.

    launch: ──▶ Launcher ──▶ accelerate launch ... (stage_process.py) RUN STAGE ──▶ a process per GPU, or per core

`accelerate launch` starts and watches the processes of one machine: when one ends with an error, it ends the others.
Each process writes its output to a log of its own (`process-N.log`), and the launcher to `launch-MACHINE.log`. Reads
these files. Leaves out what the processes do (stage_process.py), how they exchange numbers (models/processes.py), and
how machines agree on when to start (machines.py).
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlhfctl.recipe.schema import Launch

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
_END_SECONDS = 10.0  # seconds that processes have to end after SIGTERM
_SIOCGIFADDR = 0x8915  # Linux: ask for the address of a network interface
_TAIL_LINES = 12  # lines of a log in a message
_TAIL_BYTES = 1 << 16


class Others(Protocol):
    """The other machines that work on a stage, as the first one sees them (machines.py)."""

    def begin(self, stage: str, files: Sequence[str], token: str) -> int:
        """Wait for all machines, give them the `files` that they lack, let them start; return the port to meet at."""

    def fault(self, wait_s: float = 0.0) -> Cause | None:
        """Return why the processes of another machine ended, if they did; wait up to `wait_s` for it."""

    def stop(self) -> None:
        """End the processes of all other machines."""


@dataclass(frozen=True)
class Launcher:
    """The command that starts the processes of a stage; what they run is appended to it.

    `command`: for example ("env", "RANK=1", "python"). With `launch` it is that of `accelerate launch`, and stages that
    several processes cannot share run in the pipeline's process. `machine`: the number of this machine.
    """

    command: tuple[str, ...] = (sys.executable,)
    launch: Launch | None = None
    machine: int = 0
    others: Others | None = None

    @property
    def processes(self) -> int:
        """The number of processes of a stage, on all machines."""
        return self.launch.num_processes if self.launch is not None else 1

    @property
    def shared_only(self) -> bool:
        """Tell whether it starts only the stages that several processes can share."""
        return self.launch is not None

    def start(self, program: Sequence[str], folder: Path, log: Path, port: int = 0) -> subprocess.Popen[bytes]:
        """Start `program` in this machine's processes; a launcher of several writes into `folder`, else into `log`.

        `port`: where the processes of several machines meet. The processes end when their standard input is closed.
        """
        prefix = list(self.command) if self.launch is None else command(self.launch, folder, self.machine, port)
        line = [*prefix, *program]
        own = {} if self.launch is None else environment(self.launch)
        with (folder / launch_log(self.machine) if self.processes > 1 else log).open("a", encoding="utf-8") as stream:
            # In a new session, Ctrl-C reaches only the command, which then ends the processes.
            return subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True, env=os.environ | own
            )


def end(process: subprocess.Popen[bytes], patience_s: float = _END_SECONDS) -> None:
    """End the processes that `start` started, if they still run, and wait for the launcher; kill it if it does not."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def launch_log(machine: int) -> str:
    """Return the name of the file for the output of a machine's launcher."""
    return f"launch-{machine}.log"


def launcher_of(launch: Launch | None, others: Others | None = None) -> Launcher | None:
    """Make the launcher that a recipe's `launch` asks for; None if all stages run in this process."""
    if launch is None or (launch.num_processes == 1 and launch.accelerate_config is None):
        return None
    return Launcher(launch=launch, others=others)


def command(launch: Launch, folder: Path, machine: int = 0, port: int = 0) -> list[str]:
    """Make the command line of `accelerate launch` for the processes of one machine; writes its configuration."""
    if launch.accelerate_config is None:
        config = folder / _CONFIG
        partial = folder / f".{uuid.uuid4().hex}.partial"  # machines with one run folder write the same file at once
        partial.write_text(_PLAIN_CONFIG, encoding="utf-8")
        partial.replace(config)
    else:
        config = Path(launch.accelerate_config)
    several = launch.num_processes > 1 and not _has_own_type(config.read_text(encoding="utf-8"))
    address = ["--main_process_ip", launch.main_process_ip] if launch.main_process_ip is not None else []
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)),
        *(["--multi_gpu"] if several else []),  # on CPUs too: it means torchrun, and the processes then choose gloo
        *("--num_processes", str(launch.num_processes), "--num_machines", str(launch.num_machines)),
        *("--machine_rank", str(machine), *address, "--main_process_port", str(port)),
        *("--rdzv_backend", "static", "--num_cpu_threads_per_process", str(threads(launch.local_processes))),
    ]


def _has_own_type(config: str) -> bool:
    """Tell whether a configuration of accelerate asks for more than plain data parallelism."""
    found = re.search(r"^distributed_type:\s*['\"]?(\w+)", config, re.MULTILINE)
    return found is not None and found[1] in _OWN_TYPES


def environment(launch: Launch) -> dict[str, str]:
    """Return the variables that the processes of this machine need, without those that the user has set."""
    wanted = {"OMP_NUM_THREADS": str(threads(launch.local_processes))}
    interface = interface_to(launch.main_process_ip or "127.0.0.1")
    if interface is not None:  # the name of the machine may lead to an address that the others do not reach
        wanted["GLOO_SOCKET_IFNAME"] = interface
        if launch.num_machines > 1:
            wanted["NCCL_SOCKET_IFNAME"] = interface
    return {name: value for name, value in wanted.items() if name not in os.environ or name == "OMP_NUM_THREADS"}


def interface_to(address: str) -> str | None:
    """Find the network interface of this machine from which `address` is reached; None if the system does not tell."""
    try:
        import fcntl
    except ImportError:
        return None
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                packed = struct.pack("256s", name.encode()[:15])
                if fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, packed)[20:24] == own:
                    return name
    return None


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


@dataclass(frozen=True)
class Cause:
    """Why the processes of a machine ended: the process that was first, what happened, and the end of its log.

    `error`: the record of the error that the process raised. `lost_partner`: it failed because another one was gone.
    """

    number: int
    what: str
    lines: str
    log: str
    error: Mapping[str, Any] | None = None
    lost_partner: bool = False


def find_cause(folder: Path, machine: int, log: Path) -> Cause:
    """Find why the processes of this machine ended, from what they and their launcher wrote into `folder`.

    A process that was killed counts before an error, and an error before the failures of those that lost a partner.
    `log`: where the first process's libraries write.
    """
    launcher = folder / launch_log(machine)
    death = first_death(launcher.read_text(encoding="utf-8", errors="replace") if launcher.is_file() else "")
    records = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("process-*.json")]
    own = [record for record in records if record["machine"] == machine]
    failed = sorted(own, key=lambda record: (record["lost_partner"], record["time"]))
    killed = death is not None and death.code < 0
    number = death.number if death is not None and (killed or not failed) else failed[0]["number"] if failed else None
    logs = [folder / f"process-{number}.log", *([log] if number == 0 else []), launcher]
    used = next((one for one in logs if one.is_file() and one.stat().st_size), launcher)
    if failed and not killed:
        first = failed[0]
        return Cause(first["number"], "failed", last_lines(used), str(used), first["error"], first["lost_partner"])
    return Cause(-1 if number is None else number, str(death or "ended"), last_lines(used), str(used))


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

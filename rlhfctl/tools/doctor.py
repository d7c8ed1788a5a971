"""`rlhfctl doctor`: check this machine's libraries, devices, disk and memory, and say how to fix each fault.

Reads versions, free disk space and memory; imports the libraries in a separate process, so that a broken library
becomes a line of the report instead of a crash. Changes nothing. Leaves out importing peft, which takes seconds
(`validate --deep` imports it), and whether a recipe's model fits into memory (`plan` estimates it).
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import rlhfctl
from rlhfctl.errors import EngineError
from rlhfctl.planning.machine import memory_bytes
from rlhfctl.sandbox.pool import Sandbox
from rlhfctl.training.trl import LAST_TRL

# Oldest releases that work, the same as in pyproject.toml (a test compares the two).
NEEDED = {
    "torch": "2.6",
    "transformers": "5.0",
    "trl": "1.12",
    "peft": "0.18",
    "accelerate": "1.10",
    "datasets": "4.0",
    "numpy": "1.26",
    "pyarrow": "15",
    "scipy": "1.11",
}
EXTRAS = {  # library -> (extra of rlhfctl that installs it, the recipe key that needs it)
    "tensorboard": ("tensorboard", "report_to: [tensorboard]"),
    "wandb": ("wandb", "report_to: [wandb]"),
    "bitsandbytes": ("quantization", "model.quantization"),
    "openai": ("judge", "compare.judges: [endpoint]"),
}
SLOW_TO_IMPORT = ("peft",)  # takes as long as all other libraries together
_GB = 1e9
LITTLE_DISK_GB = 5
LITTLE_MEMORY_GB = 2
_PROBE_SECONDS = 60

# Prints one JSON line before and after each import, so that a library whose import kills the process is known by name.
_PROBE = """
import importlib, json, sys
def say(**what):
    print(json.dumps(what), flush=True)
for name in sys.argv[1:]:
    say(importing=name)
    try:
        importlib.import_module(name)
    except Exception as error:
        say(failed=name, error=f"{type(error).__name__}: {error}")
    else:
        say(imported=name)
import torch
gpus = []
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append({"name": torch.cuda.get_device_name(index), "free": free, "total": total})
mps = torch.backends.mps.is_available()
say(threads=torch.get_num_threads(), gpus=gpus, mps=mps, gpu_build=torch.version.cuda or torch.version.hip)
"""
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}

Status = Literal["ok", "warn", "missing"]
_STYLES = {"ok": "green", "warn": "yellow", "missing": "bold red"}


@dataclass(frozen=True)
class Finding:
    """Result of one check. Without a `needed` library the default engine does not work."""

    name: str
    status: Status
    what: str
    fix: str | None = None
    needed: bool = False


def examine(runs: Path = Path("runs")) -> list[Finding]:
    """Run all checks. Return the findings in the order in which they are shown."""
    installed = [name for name in NEEDED if _version(name) is not None and name not in SLOW_TO_IMPORT]
    probe = _import_in_subprocess(installed)
    found = [
        Finding("python", "ok", platform.python_version()),
        Finding("rlhfctl", "ok", rlhfctl.__version__),
        *(_library(name, least, probe) for name, least in NEEDED.items()),
        *_devices(probe),
    ]
    return [*found, *_engines(found), *_extras(probe), _sandbox(), _disk(runs), _memory()]


def works(findings: Sequence[Finding]) -> bool:
    """Tell whether the default engine has all that it needs."""
    return not any(finding.needed and finding.status == "missing" for finding in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Convert the findings into the JSON that `doctor --json` prints."""
    return {"works": works(findings), "findings": [asdict(finding) for finding in findings]}


def table(findings: Sequence[Finding]) -> RenderableType:
    """Build a table with one row per finding and the fix below it."""
    shown = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("status", "name"):
        shown.add_column(heading, no_wrap=True)
    shown.add_column("what", overflow="fold")
    for finding in findings:
        text = Text(finding.what)
        if finding.fix:
            text.append(f"\nfix: {finding.fix}")
        shown.add_row(Text(finding.status, _STYLES[finding.status]), finding.name, text)
    return shown


# ---------------------------------------------------------------- libraries


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _older(version: str, least: str) -> bool:
    """Compare two versions as numbers: 2.9 is older than 2.10, and 2.13.0+cpu counts as 2.13.0."""

    def numbers(text: str) -> list[int]:
        release = re.match(r"\d+(\.\d+)*", text)
        return [int(part) for part in release[0].split(".")] if release else []

    installed, needed = numbers(version), numbers(least)
    length = max(len(installed), len(needed))
    return installed + [0] * (length - len(installed)) < needed + [0] * (length - len(needed))


def _library(name: str, least: str, probe: Mapping[str, Any]) -> Finding:
    version, install = _version(name), f"pip install '{name}>={least}'"
    if version is None:
        return Finding(name, "missing", "is not installed", install, needed=True)
    if _older(version, least):
        return Finding(name, "missing", f"{version} is too old: {least} or newer is needed", install, needed=True)
    if error := probe["errors"].get(name):
        again = f"pip install --force-reinstall '{name}=={version}'"
        return Finding(name, "missing", f"{version} is installed, but cannot be imported: {error}", again, needed=True)
    return Finding(name, "ok", version, needed=True)


def _engines(found: Sequence[Finding]) -> Iterator[Finding]:
    broken = [finding.name for finding in found if finding.needed and finding.status == "missing"]
    if broken:
        fix = "see there; then give this command again"
        yield Finding("engine rlhfctl", "missing", f"needs {', '.join(broken)}", fix, needed=True)
    else:
        yield Finding("engine rlhfctl", "ok", "the default: works here", needed=True)
    version, install = _version("trl"), f"only for ppo.engine: trl; pip install 'trl=={LAST_TRL}'"
    if version is None:
        yield Finding("engine trl", "missing", "needs trl", install)
    elif not _has_ppo():
        yield Finding("engine trl", "missing", f"trl {version} has no PPOTrainer: it went after {LAST_TRL}", install)
    elif broken:
        yield Finding("engine trl", "missing", f"needs {', '.join(broken)}")
    else:
        yield Finding("engine trl", "ok", f"trl {version} has its PPOTrainer")


def _has_ppo() -> bool:
    """Tell whether the installed TRL has a PPOTrainer. Looks at its files, because importing it takes seconds."""
    spec = find_spec("trl")
    folders = spec.submodule_search_locations if spec is not None else None
    return any((Path(folder) / "experimental" / "ppo" / "ppo_trainer.py").is_file() for folder in folders or ())


def _extras(probe: Mapping[str, Any]) -> Iterator[Finding]:
    for name, (extra, purpose) in EXTRAS.items():
        version = _version(name)
        if version is None or find_spec(name) is None:
            yield Finding(name, "missing", f"only for {purpose}", f"pip install 'rlhfctl[{extra}]'")
        else:
            yield Finding(name, "ok", f"{version}, for {purpose}")


# ---------------------------------------------------------------- the machine


def _import_in_subprocess(names: Sequence[str]) -> dict[str, Any]:
    """Import libraries in a separate process. Return the error of each that fails, and the devices that torch sees."""
    command = [sys.executable, "-P", "-c", _PROBE, *names]
    environment = os.environ | _QUIET
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_PROBE_SECONDS, check=False
        )
        output, end = done.stdout, f"the process ended with {done.returncode}"
    except subprocess.TimeoutExpired as error:
        raw = error.stdout or b""
        output = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
        end = f"not done after {_PROBE_SECONDS} seconds"
    found: dict[str, Any] = {"errors": {}}
    importing = None  # the library whose import has begun and not ended
    for line in output.splitlines():
        record = _record(line)
        importing = record.get("importing", importing)
        if importing in (record.get("imported"), record.get("failed")):
            importing = None
        if "failed" in record:
            found["errors"][record["failed"]] = record["error"].splitlines()[0]
        if "threads" in record:
            found |= record
    if importing is not None:
        found["errors"][importing] = end
    return found


def _record(line: str) -> dict[str, Any]:
    """Parse one line of the subprocess; {} for a line that a library printed."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _devices(probe: Mapping[str, Any]) -> Iterator[Finding]:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = f", torch uses {_count(probe['threads'], 'thread')}" if "threads" in probe else ""
    yield Finding("processor", "ok", _count(processors, "core") + threads)
    for gpu in probe.get("gpus", ()):
        memory = f"{gpu['total'] / _GB:.0f} GB, {gpu['free'] / _GB:.0f} GB of it free"
        yield Finding("gpu", "ok", f"{gpu['name']}, {memory}")
    if probe.get("gpus"):
        return
    if probe.get("mps"):
        yield Finding("gpu", "ok", "Apple's, by Metal")
    elif "threads" not in probe:
        yield Finding("gpu", "warn", "not known: torch cannot be asked")
    elif shutil.which("nvidia-smi") is not None:
        why = f"built for {probe['gpu_build']}" if probe["gpu_build"] else "built without CUDA"
        fix = "install the build of torch for your driver: https://pytorch.org/get-started/locally/"
        yield Finding("gpu", "warn", f"this machine has NVIDIA's driver, but torch ({why}) sees no GPU", fix)
    else:
        yield Finding("gpu", "ok", "none: models of a few million parameters train here, larger ones slowly")


def _sandbox() -> Finding:
    """Tell whether programs can be confined here, by real attempts (reward.unit_tests)."""
    try:
        with Sandbox(workers=1) as sandbox:
            return Finding("sandbox", "ok", f"{sandbox.mode}: programs can be run with their tests (reward.unit_tests)")
    except EngineError as error:
        return Finding("sandbox", "warn", f"none, so no reward.unit_tests: {error.what}", error.fix)


def _disk(runs: Path) -> Finding:
    folder = runs.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GB
    what = f"{free:.1f} GB free where {runs}/ lies"
    if free < LITTLE_DISK_GB:
        fix = "free some space, or choose another disk with --run-dir: checkpoints take several times the model's size"
        return Finding("disk", "warn", what, fix)
    return Finding("disk", "ok", what)


def _memory() -> Finding:
    total, free = memory_bytes()
    if total is None:
        return Finding("memory", "warn", "not known: this system does not say")
    available = free if free is not None else total
    what = f"{total / _GB:.1f} GB" + (f", {free / _GB:.1f} GB of it available" if free is not None else "")
    if available < LITTLE_MEMORY_GB * _GB:
        return Finding("memory", "warn", what, "close other programs, or choose a smaller model")
    return Finding("memory", "ok", what)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")

"""Run one stage in one process, or in several that work together: `python -m rlhfctl.stage_process RUN STAGE`.

    pipeline ── task.json ──▶ process(es) of the stage ── events.jsonl, result.json ──▶ pipeline

The pipeline decides and writes its decision (inputs, parents, options) into the stage's work folder. The process reads
it, loads recipe, rows and models itself, and runs the stage as the pipeline would. The pipeline forwards the events of
the process, and raises its error. If there are several processes (RANK, as accelerate and torchrun set it), only the
first writes events, the result and the manifest. When one of them dies, launching.py ends all, and the pipeline raises
the cause with the last lines of its log; the same command resumes.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rlhfctl import errors, fs, graph, seeding
from rlhfctl.artifacts import WORK, Source, load_artifact, read_json
from rlhfctl.errors import DataError, DataFaults, Problem, RecipeError, RlhfctlError
from rlhfctl.events import Event, from_record
from rlhfctl.graph import Waiting
from rlhfctl.inputs import made_data_of
from rlhfctl.launching import Cause, Launcher, Others, end, find_cause
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.made_data import data_at_start
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stages import door
from rlhfctl.stages.context import Context, PublishedByFirst
from rlhfctl.stages.door import Outcome

TOKEN = "token"  # of the task: a machine that reads it in its own run folder shares that folder
_FOLDER, _TASK, _EVENTS, _RESULT = "process", "task.json", "events.jsonl", "result.json"
_LOOK_EVERY_S = 0.1
_OTHERS_TELL_S = 10.0  # seconds to wait for the cause from another machine
# What torch's errors say when a process that numbers are exchanged with is gone.
_LOST = ("DistBackendError", "DistNetworkError", "gloo", "NCCL", "Connection closed by peer", "Connection reset")


# ---------------------------------------------------------------- in the pipeline's process


def launch(launcher: Launcher, context: Context) -> Outcome:
    """Run the stage of `context` in a separate process, or in several; return the same as `door.run_stage`."""
    folder, others = context.work / _FOLDER, launcher.others
    folder.mkdir(parents=True, exist_ok=True)
    for file in [folder / _EVENTS, folder / _RESULT, *folder.glob("launch-*"), *folder.glob("process-*")]:
        file.unlink(missing_ok=True)
    token = secrets.token_hex(16)
    fs.write_json(folder / _TASK, _task(context) | {TOKEN: token})
    port = others.begin(context.name, _needed(context), token) if others is not None else 0
    try:
        process = launcher.start(program(context.run.root, context.name), folder, context.run.log, port)
        try:
            _forward_events(folder / _EVENTS, process, context.emit, others)
        finally:
            end(process)
        if launcher.processes > 1 and not (folder / _RESULT).is_file():
            _raise_cause(_cause(folder, context, others), context, launcher.processes)
    finally:
        if others is not None:
            others.stop()
    return _result(folder / _RESULT, context, process.returncode)


def program(run: Path, stage: str) -> list[str]:
    """Return the words after `python` that run a stage as its task says."""
    return ["-m", "rlhfctl.stage_process", str(run), stage]


def _task(context: Context) -> dict[str, Any]:
    """Return the pipeline's decision as JSON for the process."""
    root = context.run.root
    parents = {
        role: {"name": source.name, "fingerprint": source.fingerprint, "complete": source.artifact is not None}
        | ({"inside": str(Path(source.name).relative_to(root))} if Path(source.name).is_relative_to(root) else {})
        for role, source in context.parents.items()
    }
    extends = Path(context.options["extends"]) if "extends" in context.options else None
    inside = extends is not None and extends.is_relative_to(root.resolve())
    return {
        "inputs": dict(context.inputs),
        "parents": parents,
        "options": dict(context.options),
        "extends": str(extends.relative_to(root.resolve())) if extends is not None and inside else None,
        "notes": context.notes,
        "seconds": time.monotonic() - context.began,
    }


def _needed(context: Context) -> list[str]:
    """List what another machine needs if it does not share the run folder: files and folders in it, as relative paths.

    The first process of PPO reads its checkpoints and tells the others; every process of TRL's trainers reads its own.
    """
    root, work = context.run.root, context.work
    inside = [Path(source.name) for source in context.parents.values()]
    if "extends" in context.options and Path(context.options["extends"]).is_relative_to(root.resolve()):
        inside.append(root / Path(context.options["extends"]).relative_to(root.resolve()))
    needed = [context.run.recipe, work / _FOLDER / _TASK, *inside]
    if StageId.parse(context.name).name != "ppo":
        needed += [path for path in work.iterdir() if path.is_dir() and not path.name.startswith(_FOLDER)]
    return [str(path.relative_to(root)) for path in needed if path.is_relative_to(root)]


def _forward_events(
    file: Path, process: subprocess.Popen[bytes], emit: Callable[[Event], None], others: Others | None = None
) -> None:
    """Forward the events that the process writes, until it has ended, or processes of another machine have failed."""
    offset, ended = 0, False
    while not ended:
        # Ask before reading: events written before the end are read below.
        ended = process.poll() is not None or (others is not None and others.fault() is not None)
        if file.is_file():
            with file.open("rb") as stream:
                stream.seek(offset)
                whole, _, _ = stream.read().rpartition(b"\n")
            offset += len(whole) + 1 if whole else 0
            for line in whole.splitlines():
                if (event := from_record(json.loads(line))) is not None:
                    emit(event)
        if not ended:
            time.sleep(_LOOK_EVERY_S)


def _result(file: Path, context: Context, code: int) -> Outcome:
    """Return the result that the process wrote; raise its error if it wrote one."""
    if not file.is_file():
        raise RlhfctlError(
            f"the process of the stage {context.name} ended (exit code {code}) before it said why",
            where=str(context.run.log),
            fix="see the end of that file; the same command resumes from the last complete checkpoint",
        )
    result = read_json(file)
    if "error" in result:
        raise _error_of(result["error"])
    if "waiting" in result:
        return Outcome(Waiting(**result["waiting"]), result["peak_memory"])
    return Outcome(load_artifact(context.folder), result["peak_memory"])


def _cause(folder: Path, context: Context, others: Others | None) -> Cause:
    """Find why the processes ended: on this machine, or on another one whose processes failed first."""
    fault = others.fault() if others is not None else None
    if fault is not None and not fault.lost_partner:
        return fault
    own = find_cause(folder, 0, context.run.log)
    if others is not None and own.lost_partner:
        fault = others.fault(_OTHERS_TELL_S)
    return own if fault is None or fault.lost_partner else fault


def _raise_cause(cause: Cause, context: Context, count: int) -> NoReturn:
    """Raise the error that ended the processes of a stage."""
    if cause.error is not None and not cause.lost_partner:
        raise _error_of(cause.error, f"process {cause.number} of {count}")
    which = f"process {cause.number} of the {count} processes" if cause.number >= 0 else "a process"
    raise RlhfctlError(
        f"{which} of the stage {context.name} {cause.what}, and all were ended. The last lines of its log:\n"
        f"{cause.lines}",
        where=cause.log,
        fix="the same command resumes from the last complete checkpoint; if the system killed it for memory, "
        "`rlhfctl plan RECIPE` says what each process needs",
    )


# ---------------------------------------------------------------- in the stage's process


def main(run: Path, stage: StageId) -> None:
    """Run the stage as its task says; write errors for the pipeline, which raises them."""
    number = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    count = int(os.environ.get("WORLD_SIZE", "1"))
    first = number == 0
    folder = RunPaths(run).stage(stage) / WORK / _FOLDER
    if count > 1:
        _write_own_log(folder / f"process-{number}.log")
    try:
        if first:
            with (folder / _EVENTS).open("a", encoding="utf-8", buffering=1) as stream:
                outcome = _run(run, stage, read_json(folder / _TASK), _writer(stream), number)
        else:
            outcome = _run(run, stage, read_json(folder / _TASK), lambda event: None, number)
        result: dict[str, Any] = {"peak_memory": outcome.peak_memory}
        if isinstance(outcome.made, Waiting):
            result["waiting"] = asdict(outcome.made)
    except PublishedByFirst:
        return
    except Exception as error:
        if count > 1:
            machine = int(os.environ.get("GROUP_RANK", "0"))
            failed = {"number": number, "machine": machine, "time": time.time(), "lost_partner": _lost_partner(error)}
            fs.write_json(folder / f"process-{number}.json", failed | {"error": _error_record(error)})
        elif first:
            fs.write_json(folder / _RESULT, {"error": _error_record(error)})
        raise
    if first:
        fs.write_json(folder / _RESULT, result)


def _write_own_log(file: Path) -> None:
    """Send what this process prints, and its traceback, to a log of its own."""
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def _lost_partner(error: BaseException) -> bool:
    """Tell whether an exchange of numbers failed because another process had ended."""
    if isinstance(error, RlhfctlError):
        return False
    said = f"{type(error).__name__} {error}"
    return any(word in said for word in _LOST)


def _writer(stream: TextIO) -> Callable[[Event], None]:
    lock = threading.Lock()  # a library may call listeners from its own thread

    def write(event: Event) -> None:
        with lock:
            stream.write(json.dumps(event.to_record(), default=str) + "\n")

    return write


def _run(run: Path, stage: StageId, task: Mapping[str, Any], emit: Callable[[Event], None], number: int) -> Outcome:
    paths = RunPaths(run)
    recipe = load_recipe(paths.recipe).recipe
    parents = {role: _source(given, run) for role, given in task["parents"].items()}
    extends = {"extends": str((run / task["extends"]).resolve())} if task.get("extends") else {}
    data = _rows(stage, recipe, paths, parents)
    began = time.monotonic() - task["seconds"]
    context = Context(
        str(stage),
        seeding.recipe_of(stage, recipe),
        paths,
        parents,
        task["inputs"],
        data,
        emit,
        task["options"] | extends,
        list(task["notes"]),
        began,
        number,
    )
    context.folder.mkdir(parents=True, exist_ok=True)
    door.join_processes()
    return door.run_stage(stage.name, graph.section_of(stage.name, recipe), context)


def _source(given: Mapping[str, Any], run: Path) -> Source:
    """Return a parent; one that lies in the run folder is found there, wherever this machine has that folder."""
    name = str(run / given["inside"]) if "inside" in given else given["name"]
    return Source(name, given["fingerprint"], load_artifact(Path(name)) if given["complete"] else None)


def _rows(stage: StageId, recipe: Recipe, paths: RunPaths, parents: Mapping[str, Source]) -> dict[str, Any]:
    """Read the rows of the stage without rows that the chat template refuses; the pipeline has reported those."""
    section = made_data_of(stage, recipe, paths) or data_at_start(recipe.data)
    names = graph.data_of_kind(stage.name, recipe)
    data = door.load_data(section, recipe.data_seed, names, steady=recipe.has_steady_splits)
    kept, _ = door.check_rows(recipe, stage.name, graph.base_among(stage.name, parents), data, paths.log)
    return kept


def _end_with_pipeline() -> None:
    """Exit when the pipeline's process is gone: it holds the run's lock, and another process may take it soon."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# ---------------------------------------------------------------- errors from one process to the other


def _error_record(error: Exception) -> dict[str, Any]:
    """Return an error as JSON, for `_error_of`."""
    known = errors.out_of_memory(error) or error
    if isinstance(known, RlhfctlError):
        return {
            "kind": type(known).__name__,
            "what": known.what,
            "where": known.where,
            "fix": known.fix,
            "problems": [asdict(problem) for problem in getattr(known, "problems", ())],
            "errors": [_error_record(one) for one in getattr(known, "errors", ())],
        }
    if isinstance(known, OSError) and known.errno is not None:
        return {"errno": known.errno, "what": known.strerror, "where": known.filename}
    return {"traceback": "".join(traceback.format_exception(error))}


def _error_of(record: Mapping[str, Any], where: str = "the stage's process") -> Exception:
    """Return the error that `_error_record` wrote."""
    if "traceback" in record:
        return RuntimeError(f"in {where}:\n{record['traceback']}")
    if "errno" in record:
        return OSError(record["errno"], record["what"], record["where"])
    if record["problems"]:
        return RecipeError([Problem(**problem) for problem in record["problems"]])
    if record["errors"]:
        return DataFaults([one for one in map(_error_of, record["errors"]) if isinstance(one, DataError)])
    kind: type[RlhfctlError] = getattr(errors, record["kind"], RlhfctlError)
    return kind(record["what"], where=record["where"], fix=record["fix"])


if __name__ == "__main__":
    _end_with_pipeline()
    main(Path(sys.argv[1]), StageId.parse(sys.argv[2]))

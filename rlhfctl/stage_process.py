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
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from rlhfctl import errors, fs, graph, seeding
from rlhfctl.artifacts import WORK, Source, load_artifact, read_json
from rlhfctl.errors import DataError, DataFaults, Problem, RecipeError, RlhfctlError
from rlhfctl.events import Event, from_record
from rlhfctl.graph import Waiting
from rlhfctl.inputs import made_data_of
from rlhfctl.launching import LAUNCH_LOG, Launcher, first_death, last_lines
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.made_data import data_at_start
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stages import door
from rlhfctl.stages.context import Context, PublishedByFirst
from rlhfctl.stages.door import Outcome

_FOLDER, _TASK, _EVENTS, _RESULT = "process", "task.json", "events.jsonl", "result.json"
_LOOK_EVERY_S = 0.1
_END_SECONDS = 10.0  # seconds that a process has to end after SIGTERM
# What torch's errors say when a process that numbers are exchanged with is gone.
_LOST = ("DistBackendError", "DistNetworkError", "gloo", "NCCL", "Connection closed by peer", "Connection reset")


# ---------------------------------------------------------------- in the pipeline's process


def launch(launcher: Launcher, context: Context) -> Outcome:
    """Run the stage of `context` in a separate process; return the same as `door.run_stage`."""
    folder = context.work / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for file in [folder / _EVENTS, folder / _RESULT, folder / LAUNCH_LOG, *folder.glob("process-*")]:
        file.unlink(missing_ok=True)
    fs.write_json(folder / _TASK, _task(context))
    command = [*launcher.line(folder), "-m", "rlhfctl.stage_process", str(context.run.root), context.name]
    several = launcher.processes > 1
    with (folder / LAUNCH_LOG if several else context.run.log).open("a", encoding="utf-8") as log:
        # In a new session, Ctrl-C reaches only the pipeline, which then ends the process.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=launcher.environment()
        )
    try:
        _forward_events(folder / _EVENTS, process, context.emit)
    finally:
        _terminate(process)
    if several and not (folder / _RESULT).is_file():
        _raise_cause(folder, context, launcher.processes)
    return _result(folder / _RESULT, context, process.returncode)


def _task(context: Context) -> dict[str, Any]:
    """Return the pipeline's decision as JSON for the process."""
    parents = {
        role: {"name": source.name, "fingerprint": source.fingerprint, "complete": source.artifact is not None}
        for role, source in context.parents.items()
    }
    return {
        "inputs": dict(context.inputs),
        "parents": parents,
        "options": dict(context.options),
        "notes": context.notes,
        "seconds": time.monotonic() - context.began,
    }


def _forward_events(file: Path, process: subprocess.Popen[bytes], emit: Callable[[Event], None]) -> None:
    """Forward the events that the process writes, until it has ended."""
    offset, ended = 0, False
    while not ended:
        ended = process.poll() is not None  # ask before reading: events written before the end are read below
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


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Terminate the process if it still runs after an exception in the pipeline."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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


def _raise_cause(folder: Path, context: Context, count: int) -> None:
    """Raise the error that ended the processes of a stage: that of the first process that failed or was killed."""
    death = first_death((folder / LAUNCH_LOG).read_text(encoding="utf-8", errors="replace"))
    records = [read_json(file) for file in folder.glob("process-*.json")]
    failed = sorted(records, key=lambda record: (record["lost_partner"], record["time"]))
    if failed and not failed[0]["lost_partner"] and (death is None or death.code >= 0):
        raise _error_of(failed[0]["error"], f"process {failed[0]['number']} of {count}")
    number = death.number if death is not None else failed[0]["number"] if failed else 0
    log = folder / (f"process-{number}.log" if (folder / f"process-{number}.log").is_file() else LAUNCH_LOG)
    raise RlhfctlError(
        f"process {number} of the {count} processes of the stage {context.name} "
        f"{death or 'ended'}; all were ended. The last lines of its log:\n{last_lines(log)}",
        where=str(log),
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
            failed = {"number": number, "time": time.time(), "lost_partner": _lost_partner(error)}
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
    parents = {role: _source(given) for role, given in task["parents"].items()}
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
        task["options"],
        list(task["notes"]),
        began,
        number,
    )
    context.folder.mkdir(parents=True, exist_ok=True)
    door.join_processes()
    return door.run_stage(stage.name, graph.section_of(stage.name, recipe), context)


def _source(given: Mapping[str, Any]) -> Source:
    artifact = load_artifact(Path(given["name"])) if given["complete"] else None
    return Source(given["name"], given["fingerprint"], artifact)


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

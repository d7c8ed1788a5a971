"""Publish, load and verify artifacts: the folder of a complete stage with its manifest, which is written last.

If a manifest exists, its stage is complete. It records the inputs (the resolved section and a fingerprint of each
input), the outputs (a hash of each file) and the parents. With it the next stage refuses an incomplete or altered
artifact, and the pipeline skips an unchanged stage.

Reads and writes `manifest.json`; reads all files of a stage to hash them. Leaves out loading weights (models).
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhfctl import fs
from rlhfctl.errors import HandoffError
from rlhfctl.paths import RunPaths, StageId, relative_to_run, stage_at

MANIFEST = "manifest.json"
WORK = "work"  # checkpoints of a stage that is not complete yet
RECORDED_PACKAGES = ("rlhfctl", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy")


class ParentRef(BaseModel):
    """An input of a stage: its path, relative if it is inside the run folder, and its fingerprint at that time."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    fingerprint: str


class Manifest(BaseModel):
    """The record of one complete stage. Hashes are SHA-256, times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int = 1
    stage: str
    inputs: dict[str, str]  # name -> fingerprint: the section, the seed, data files, base model, parents
    parents: dict[str, ParentRef]
    outputs: dict[str, str]  # file relative to the stage's folder -> hash
    fingerprint: str  # over outputs
    section: dict[str, Any]
    layout: dict[str, Any]  # name -> path inside: {"model": "model"} or {"adapter": "adapter"}, {"head": true}, ...
    tokenizer: str | None = None
    chat_template: str | None = None
    seed: int
    seconds: float
    metrics: dict[str, float]
    notes: list[str] = []  # skipped checks, and choices made for the user
    versions: dict[str, str]
    git_commit: str | None = None
    seal: str | None = None  # over all other fields; None: written by a version that had none


@dataclass(frozen=True)
class Artifact:
    """A complete stage on disk."""

    path: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def stage(self) -> StageId:
        return StageId.parse(self.manifest.stage)

    @property
    def run(self) -> Path:
        """The run folder that holds the artifact."""
        return self.stage.run_of(self.path)

    def part(self, name: str) -> Path:
        """Return the folder or file that `layout` records under `name`; raise HandoffError if there is none."""
        relative = self.manifest.layout.get(name)
        if not isinstance(relative, str):
            raise HandoffError(
                f"the {self.manifest.stage} artifact holds no {name}",
                where=str(self.path),
                fix=f"it holds: {', '.join(k for k, v in self.manifest.layout.items() if isinstance(v, str))}",
            )
        return self.path / relative

    def has(self, name: str) -> bool:
        """Check whether `layout` records a part of this name."""
        return isinstance(self.manifest.layout.get(name), str)

    @property
    def weights(self) -> Path:
        """Return the folder of the trained weights and their tokenizer: the adapter if there is one, else the model."""
        return self.part("adapter" if self.has("adapter") else "model")

    def parent(self, role: str) -> Source:
        """Return the source that this artifact was made from; raise HandoffError if it is missing or has changed."""
        reference = self.manifest.parents.get(role)
        if reference is None:
            raise HandoffError(
                f"the {self.manifest.stage} artifact records no {role}",
                where=str(self.path),
                fix=f"run the {self.manifest.stage} stage again: rlhfctl {self.manifest.stage} RECIPE",
            )
        if reference.fingerprint == _hub_fingerprint(reference.path):
            return Source(reference.path, reference.fingerprint)
        location = self.run / reference.path  # an absolute path stays as it is
        if not location.is_dir():
            raise HandoffError(
                f"the {role} that {self.path} was made from is gone",
                where=str(location),
                fix=f"put it back, or run the {self.manifest.stage} stage again",
            )
        source = resolve_source(str(location), role)
        if source.fingerprint != reference.fingerprint:
            raise HandoffError(
                f"the {role} that {self.path} was made from has changed since",
                where=source.name,
                fix=f"run the {self.manifest.stage} stage again, or restore the {role}",
            )
        return source

    def verify(self) -> None:
        """Raise HandoffError unless every recorded file exists with the recorded content."""
        redo = f"run the stage again with --force, or restore the files of {self.path}"
        for name, expected in self.manifest.outputs.items():
            file = self.path / name
            if not file.is_file():
                raise HandoffError(f"the file {name} of a complete stage is gone", where=str(self.path), fix=redo)
            if fs.hash_file(file) != expected:
                raise HandoffError(
                    f"the file {name} was altered after its stage finished", where=str(self.path), fix=redo
                )


def load_artifact(path: Path) -> Artifact:
    """Load the artifact at `path`; raise HandoffError if it is missing or incomplete, or its manifest is unreadable."""
    file = path / MANIFEST
    if not file.is_file():
        state = "is incomplete: it has no manifest" if path.is_dir() else "does not exist"
        raise HandoffError(f"the stage at {path} {state}", fix=_first(path))
    try:
        return Artifact(path, Manifest.model_validate_json(file.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise HandoffError(
            f"the manifest cannot be read: {f'{key}: ' if key else ''}{first['msg']}",
            where=str(file),
            fix="run the stage again with --force",
        ) from error


def _first(path: Path) -> str:
    """Write the command that completes a stage; a stopped stage resumes."""
    run, stage = stage_at(path)
    return f"run that stage first: rlhfctl run RECIPE --run-dir {run} --until {stage}"


def find_artifact(path: Path) -> Artifact | None:
    """Load the artifact at `path`; None if its manifest is missing."""
    return load_artifact(path) if (path / MANIFEST).is_file() else None


@dataclass(frozen=True)
class Source:
    """The source of a model: an artifact of a run, or another folder or Hub id, without a manifest to check."""

    name: str
    fingerprint: str
    artifact: Artifact | None = None

    @classmethod
    def of(cls, artifact: Artifact) -> Source:
        return cls(str(artifact.path), artifact.fingerprint, artifact)


def model_at(text: str, folder: Path) -> str:
    """Return the path of a model that a recipe in `folder` names inside a longer name, or its id on the Hub."""
    path = folder / Path(text).expanduser()
    return str(path) if path.exists() else text


def resolve_source(text: str, role: str) -> Source:
    """Resolve a path or Hub id from the command line or a recipe to its source.

    A folder with a manifest is a stage of a run. Any other folder is a model or adapter, and its fingerprint is made
    from the hashes of its files. A name without a folder is a Hub id, and its fingerprint is made from the name alone.
    """
    path = Path(text).expanduser()
    under_way = (path / WORK).is_dir() and (stage_at(path)[0] / "recipe.yaml").is_file()
    if (path / MANIFEST).is_file() or under_way:  # loading a stage under way raises that it is incomplete
        return Source.of(load_artifact(path))
    if path.is_dir():
        if (path / "recipe.yaml").is_file():
            stages = sorted(p.parent.relative_to(path).as_posix() for p in manifests_in(path))
            raise HandoffError(
                f"{text} is a run; the {role} is one of its stages",
                fix=f"name one: {', '.join(str(path / stage) for stage in stages) or 'none is complete yet'}",
            )
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise HandoffError(
                f"the {role} folder holds neither a model (config.json) nor an adapter (adapter_config.json)",
                where=text,
                fix="name a run's stage, a model folder, an adapter folder or a Hub id",
            )
        return Source(str(path), fs.hash_json(fs.hash_tree(path)))
    if path.exists():
        raise HandoffError(
            f"the {role} is a file, not a folder", where=text, fix=f"name the folder that holds it: {path.parent}"
        )
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise HandoffError(f"the {role} folder does not exist", where=text, fix="check the path")
    return Source(text, _hub_fingerprint(text))


def manifests_in(run: Path) -> list[Path]:
    """List the manifests of a run's complete stages, of all rounds and seeds."""
    files = [run / str(stage) / MANIFEST for stage in RunPaths(run).stages()]
    return [file for file in files if file.is_file()]


def _hub_fingerprint(text: str) -> str:
    return fs.hash_json(["hub", text])


def publish_manifest(
    path: Path,
    *,
    stage: str,
    inputs: Mapping[str, str],
    parents: Mapping[str, Source],
    section: Mapping[str, Any],
    layout: Mapping[str, Any],
    seed: int,
    seconds: float,
    metrics: Mapping[str, float],
    tokenizer: str | None = None,
    chat_template: str | None = None,
    notes: list[str] | None = None,
) -> Artifact:
    """Hash the files of the stage folder and write the manifest last, atomically: then the stage is complete.

    Metrics that are not finite are left out, with a note.
    """
    numbers = {name: float(value) for name, value in metrics.items()}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    left_out = [
        f"the metric {name} was {value} and is left out" for name, value in numbers.items() if name not in finite
    ]
    outputs = outputs_in(path)
    manifest = Manifest(
        stage=stage,
        inputs=dict(inputs),
        parents={
            role: ParentRef(
                path=_recorded_path(source, StageId.parse(stage).run_of(path)),
                fingerprint=source.fingerprint,
            )
            for role, source in parents.items()
        },
        outputs=outputs,
        fingerprint=fs.hash_json(outputs),
        section=dict(section),
        layout=dict(layout),
        tokenizer=tokenizer,
        chat_template=chat_template,
        seed=seed,
        seconds=seconds,
        metrics=finite,
        notes=[*(notes or []), *left_out],
        versions=package_versions(),
        git_commit=git_commit(),
    )
    manifest = manifest.model_copy(update={"seal": seal_of(manifest.model_dump(mode="json"))})
    fs.write_json(path / MANIFEST, manifest.model_dump(mode="json"))
    return Artifact(path, manifest)


def outputs_in(path: Path) -> dict[str, str]:
    """Hash the files of a stage's folder that its manifest records: all but itself, checkpoints and hidden ones."""
    return fs.hash_tree(path, skip=frozenset({WORK, MANIFEST}))


def seal_of(fields: Mapping[str, Any]) -> str:
    """Return the hash over the fields of a manifest's file, all but `seal` itself."""
    return fs.hash_json({name: value for name, value in fields.items() if name != "seal"})


def _recorded_path(source: Source, run: Path) -> str:
    """Return a path of `source` that is valid from any working directory; a Hub id unchanged."""
    place = source.artifact.path if source.artifact is not None else Path(source.name)
    return relative_to_run(place, run) if place.is_dir() else source.name


def changed_inputs(recorded: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """List the names of the inputs whose fingerprint changed, and of new and removed inputs."""
    return sorted(name for name in recorded.keys() | current.keys() if recorded.get(name) != current.get(name))


def changed_keys(recorded: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the changed keys of a section with both values: `eval.every 10 -> 5`, also those of inner sections."""
    changes = []
    for key in dict.fromkeys([*recorded, *current]):
        old, new = recorded.get(key), current.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key} {_shown(old)} -> {_shown(new)}")
    return changes


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit(folder: Path | None = None) -> str | None:
    """Return the git commit of the checkout that contains `folder` (default: the current one); None without git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def read_json(path: Path) -> Any:
    """Read a JSON file; raise HandoffError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HandoffError(
            f"cannot be read: {error}", where=str(path), fix="run its stage again with --force"
        ) from error

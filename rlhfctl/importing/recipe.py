"""Make a recipe of other tools' configurations: translate each job, order the sections, validate, list the findings.

Reads the files; writes nothing (`rlhfctl import` writes the text). Leaves out how files are read (reading.py) and what
the fields of each tool mean (trl.py, llamafactory.py, openrlhf.py).
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from rlhfctl import fs
from rlhfctl.errors import RecipeError
from rlhfctl.importing import common, llamafactory, openrlhf, trl
from rlhfctl.importing.findings import TITLES, Draft, Fields, Finding, Stage
from rlhfctl.importing.reading import LLAMA_FACTORY, OPENRLHF, TRL, jobs_in
from rlhfctl.recipe.load import outline
from rlhfctl.recipe.reading import yaml_1_2
from rlhfctl.recipe.sections.data import looks_like_id

_TRANSLATE = {TRL: trl.translate, LLAMA_FACTORY: llamafactory.translate, OPENRLHF: openrlhf.translate}
_STAGES: tuple[Stage, ...] = ("sft", "reward", "ppo")
_ORDER = ("name", "seed", "model", "lora", "data", *_STAGES, "report_to")
_WIDTH = 116  # of a comment line, without its mark


@dataclass(frozen=True)
class Imported:
    """The text of the recipe, the list of findings (lines), and what still stands in its way (lines)."""

    text: str
    findings: list[str]
    problems: list[str]


def recipe_from(files: Sequence[Path], folder: Path) -> Imported:
    """Make a recipe of the jobs in `files`, in the order of the stages. `folder`: where the recipe will lie."""
    draft = Draft({"name": files[-1].stem.lstrip("._-") or "imported"})
    jobs = [job for file in files for job in jobs_in(file)]
    for stage in _STAGES:
        for job in jobs:
            if job.stage == stage:
                _TRANSLATE[job.tool](Fields(job, draft))
    _share_lora(draft)
    draft.recipe["name"] = common.named_after(str(draft.recipe["name"]))
    lines = list(_listed(draft.findings))
    body = _yaml(draft)
    problems = _faults(body) or _missing(draft, folder)
    head = ["Made by `rlhfctl import` of " + ", ".join(file.name for file in files) + ".", *lines]
    comments = [f"# {part}".rstrip() for line in head for part in _wrapped(line)]
    return Imported("\n".join([*comments, body]), lines, problems)


def write(made: Imported, file: Path) -> Iterator[str]:
    """Write the recipe to a new file; yield the list of findings, what is still to settle, and the next command."""
    fs.write_new(file, made.text, fix="name another file: --out RECIPE")
    yield from made.findings
    yield from (f"to settle: {line}" for line in made.problems)
    yield f"wrote {file}; next:   rlhfctl validate {shlex.quote(str(file))} --deep"


def _share_lora(draft: Draft) -> None:
    """Write adapters that all stages which train share once, at the top."""
    trained = [stage for stage in _STAGES if stage in draft.recipe and draft.get(f"{stage}.model") is None]
    trained = [stage for stage in trained if draft.get(f"{stage}.function") is None]
    sections = [draft.recipe[stage].get("lora") for stage in trained]
    if sections and sections[0] is not None and all(section == sections[0] for section in sections):
        draft.recipe["lora"] = sections[0]
        for stage in trained:
            draft.recipe[stage].pop("lora")


def _yaml(draft: Draft) -> str:
    ordered = {key: draft.recipe[key] for key in _ORDER if key in draft.recipe}
    yaml = yaml_1_2()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(ordered, text)
    return text.getvalue()


def _faults(body: str) -> list[str]:
    """Validate the recipe without looking for the files and models that it names; return its faults."""
    with TemporaryDirectory() as temporary:
        file = Path(temporary) / "recipe.yaml"
        file.write_text(body, encoding="utf-8")
        try:
            outline(file)
        except RecipeError as error:
            return [f"{problem.key}: {problem.what}" for problem in error.problems]
    return []


def _missing(draft: Draft, folder: Path) -> list[str]:
    """List the paths in the recipe that are not there, seen from `folder`; ids on the Hub are not looked for."""
    named = [(key, draft.get(key)) for key in ("model.path", "reward.model")]
    for name, section in (draft.get("data") or {}).items():
        if isinstance(section, dict):
            parts = section.get("sources") or [section]
            named += [(f"data.{name}.source", part.get("source")) for part in parts]
    gone = [
        (key, text)
        for key, text in named
        if isinstance(text, str) and not (folder / Path(text).expanduser()).exists() and not _may_be_id(key, text)
    ]
    return [f"{key}: there is no {text} (relative paths are read from the recipe's folder)" for key, text in gone]


def _may_be_id(key: str, text: str) -> bool:
    plain = not text.startswith((".", "/", "~"))
    return plain and (text.count("/") < 2 if "data" not in key else looks_like_id(text))


def _listed(findings: Sequence[tuple[str, Finding]]) -> Iterator[str]:
    """List the findings by job and kind."""
    for where in dict.fromkeys(where for where, _ in findings):
        yield f"{where}:"
        for kind, title in TITLES.items():
            found = [finding for at, finding in findings if at == where and finding.kind == kind]
            if found:
                yield f"  {title}"
                yield from (f"    {finding}" for finding in found)


def _wrapped(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent=f"{indent}    ", break_long_words=False, break_on_hyphens=False
    ) or [""]

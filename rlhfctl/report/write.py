"""Make the report of runs: gather, build the page, write it as HTML, Markdown, JSON or pictures.

Reads run folders; writes RUN/report.html, or the file that a command names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.paths import RunPaths
from rlhfctl.report.as_json import json_of
from rlhfctl.report.content import Page
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.records import Run
from rlhfctl.report.markdown import markdown_of
from rlhfctl.report.page import html_of
from rlhfctl.report.png import write_pictures
from rlhfctl.report.sections import page_of
from rlhfctl.report.several import page_of_several

Format = Literal["html", "md", "json"]
_ANOTHER = "name a new file with --out"


def report(
    folders: Sequence[Path], *, out: Path | None = None, form: Format = "html", pictures: Path | None = None
) -> tuple[str, list[str]]:
    """Make the report of one run or several; return the text for standard output, and lines that say what was written.

    A page of one run replaces RUN/report.html, which rlhfctl made; no other file is replaced.
    """
    if out is not None:
        fs.require_new(out, fix=_ANOTHER)
    runs = [gather(folder) for folder in folders]
    page = page_of(runs[0]) if len(runs) == 1 else page_of_several(runs)
    said = []
    if pictures is not None:
        written = write_pictures(page, pictures)
        said.append(f"wrote {len(written)} pictures in {pictures}")
        if out is None and form == "html":
            return "", said
    text = _written(page, runs, form)
    if out is not None:
        fs.write_new(out, text, fix=_ANOTHER)
        return "", [*said, f"wrote {out}"]
    if form != "html":
        return text, said
    if len(runs) > 1:
        raise RlhfctlError("a page of several runs needs a place", fix="name a file: --out runs.html")
    return "", [*said, f"wrote {_replace(runs[0], text)}"]


def report_at_end(folder: Path) -> Path:
    """Write RUN/report.html at the end of a run; return its path."""
    run = gather(folder)
    return _replace(run, html_of(page_of(run), _source([run])))


def _replace(run: Run, text: str) -> Path:
    file = RunPaths(run.path).report
    fs.write_atomic(file, text)
    return file


def _written(page: Page, runs: Sequence[Run], form: Format) -> str:
    match form:
        case "html":
            return html_of(page, _source(runs))
        case "md":
            return markdown_of(page)
        case "json":
            return json_of(page, runs)


def _source(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.path) for run in runs)

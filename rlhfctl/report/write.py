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
from rlhfctl.report.facts.sweep import gather_sweep
from rlhfctl.report.markdown import markdown_of
from rlhfctl.report.page import html_of
from rlhfctl.report.png import write_pictures
from rlhfctl.report.sections import page_of
from rlhfctl.report.several import page_of_several
from rlhfctl.report.sweep import headline, meaning, page_of_sweep
from rlhfctl.sweeping import is_sweep, runs_in

Format = Literal["html", "md", "json"]
_ANOTHER = "name a new file with --out"


def report(
    folders: Sequence[Path], *, out: Path | None = None, form: Format = "html", pictures: Path | None = None
) -> tuple[str, list[str]]:
    """Make the report of one run or several; return the text for standard output, and lines that say what was written.

    A page of one run or of one sweep replaces report.html in its folder, which rlhfctl made; no other file is replaced.
    A sweep among several folders stands for its runs.
    """
    if out is not None:
        fs.require_new(out, fix=_ANOTHER)
    page, runs = _page(folders)
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
    if len(folders) > 1:
        raise RlhfctlError("a page of several runs needs a place", fix="name a file: --out runs.html")
    return "", [*said, f"wrote {_replace(folders[0], text)}"]


def _page(folders: Sequence[Path]) -> tuple[Page, list[Run]]:
    """Build the page of one run, of one sweep, or of several runs; return the runs that it is about, too."""
    if len(folders) == 1 and is_sweep(folders[0]):
        facts = gather_sweep(folders[0])
        return page_of_sweep(facts), [run for _, run in facts.runs]
    runs = [gather(run) for folder in folders for run in runs_in(folder)]
    return page_of(runs[0]) if len(runs) == 1 else page_of_several(runs), runs


def report_at_end(folder: Path) -> Path:
    """Write RUN/report.html at the end of a run; return its path."""
    run = gather(folder)
    return _replace(folder, html_of(page_of(run), _source([run])))


def sweep_at_end(folder: Path) -> tuple[list[str], Path]:
    """Write SWEEP/report.html at the end of a sweep; return what it says in short, and its path."""
    facts = gather_sweep(folder)
    file = _replace(folder, html_of(page_of_sweep(facts), str(folder)))
    return [headline(facts), meaning(facts.choice)], file


def _replace(folder: Path, text: str) -> Path:
    file = RunPaths(folder).report
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

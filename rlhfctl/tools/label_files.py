"""`rlhfctl label export` and `label import`: labels as files for TRL, Label Studio and Argilla, and back.

Reads and writes labels and files. Nothing is overwritten. Leaves out the formats (labels/formats.py).
"""

from __future__ import annotations

from pathlib import Path

from rlhfctl import fs
from rlhfctl.dashboard.text import counted
from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.labels import formats
from rlhfctl.labels.formats import Format
from rlhfctl.labels.items import write_items
from rlhfctl.labels.matching import matched
from rlhfctl.labels.rankings import Combine
from rlhfctl.labels.store import open_labels
from rlhfctl.tools.label import Target, answered, find, written


def export(what: Path, to: Path, form: Format, combine: Combine) -> list[str]:
    """Write the labels of a run or a file; return what to tell the user."""
    target = find(what, questions=False)
    with open_labels(target.labels, create=False) as store:
        desk, labels = answered(target, store)
        more, theirs = written(store)
    items = {item.id: item for item in [*desk.items, *more]}
    labels = [*labels, *theirs]
    if not labels:
        raise RlhfctlError(
            "nobody has judged these questions yet", where=str(target.labels), fix=f"rlhfctl label {what}"
        )
    if combine == "majority" and form not in ("pairs", "rankings"):
        raise RlhfctlError(
            f"{form} keeps each annotator's label", where="--combine", fix="use pairs or rankings for a majority"
        )
    text = formats.exported(form, labels, items, combine)
    if not text.strip():
        raise RlhfctlError("all labels are ties: there is no pair to write", fix="export rankings, which hold ties")
    fs.write_new(to, text, fix="name a new file with --to")
    said = [f"wrote {counted(len(labels), 'label')} to {to}"]
    if form == "label-studio":
        sizes = {len(items[event.item].responses) for event in labels}
        for size in sorted(sizes):
            config = to.with_name(f"{to.stem}-{size}.xml")
            fs.write_new(config, formats.label_studio_config(size), fix="move it away")
            said.append(f"wrote the labelling configuration for {size} responses to {config}")
    return said


def import_(what: Path, source: Path, annotator: str) -> list[str]:
    """Read the labels in `source` into those of `what`: a run, a labelling set, or a new one to make from the file."""
    try:
        found = formats.imported(source.read_text(encoding="utf-8"), annotator)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the labels cannot be read: {error}", where=str(source), fix="check the path") from error
    except ValueError as error:
        raise DataError(
            f"these are no labels: {error}",
            where=str(source),
            fix="give what `label export`, Label Studio (JSON) or Argilla (records.to_json) wrote, or pairs of TRL",
        ) from error
    target, made = _target(what, found)
    events, strangers = matched(found, target.items)
    with open_labels(target.labels) as store:
        store.keep_items(target.items)
        new = sum(store.add(event)[1] for event in events)
    said = [f"made the labelling set {what} with {counted(len(target.items), 'question')}"] if made else []
    said.append(f"took in {counted(new, 'label')} to {target.labels}")
    if known := len(events) - new:
        said.append(f"{counted(known, 'label')} were there already")
    if strangers:
        said.append(f"left out {counted(len(strangers), 'question')} of the file: {what} does not ask them")
    return said


def _target(what: Path, found: formats.Imported) -> tuple[Target, bool]:
    """Return what the labels are for; a labelling set that does not exist yet is made of their questions."""
    if what.exists():
        return find(what), False
    if what.suffix != ".jsonl":
        raise RlhfctlError(
            "there is no such run or labelling set",
            where=str(what),
            fix="name a run, or a new file that ends in .jsonl",
        )
    write_items(what, found.items)
    return find(what), True

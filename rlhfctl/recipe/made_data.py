"""Find the data sets of a recipe that its own stages make (`source: stage:NAME`), and insert the paths of their files.

Works on the recipe's `data` section alone. Leaves out which stages exist (graph.py) and where their rows are
(inputs.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlhfctl.recipe.schema import STAGE_SOURCE, Data, Source

_SOURCES_APART = ("eval_source", "test_source")


def source_stages(names: Iterable[str], data: Data) -> list[str]:
    """List the stages whose artifacts the named data sets read (`source: stage:NAME`), each once."""
    sections = [section for name in names if isinstance(section := getattr(data, name, None), Source)]
    named = [stage_named(source) for section in sections for _, source in sources_of(section)]
    return list(dict.fromkeys(name for name in named if name is not None))


def made_data(data: Data) -> list[str]:
    """List the data sets that a stage makes partly or fully; they are read when a stage needs them."""
    return [name for name in type(data).model_fields if source_stages([name], data)]


def data_at_start(data: Data) -> Data:
    """Return the data without the sets that a stage makes."""
    return data.model_copy(update=dict.fromkeys(made_data(data)))


def with_sources(section: Source, place_of: Mapping[str, str]) -> Source:
    """Replace each `stage:NAME` in a data set's section by the path of that stage's rows (`place_of`)."""

    def replaced(source: Source) -> Source:
        changes: dict[str, Any] = {}
        if (name := stage_named(source)) is not None:
            changes["source"] = place_of[name]
        if (listed := getattr(source, "sources", None)) is not None:
            changes["sources"] = [replaced(part) for part in listed]
        for key in _SOURCES_APART:
            if (apart := getattr(source, key, None)) is not None:
                changes[key] = replaced(apart)
        return source.model_copy(update=changes)

    return replaced(section)


def sources_of(section: Source) -> list[tuple[str, Source]]:
    """List the sources of a data set, each with its key."""
    listed = getattr(section, "sources", None)
    found = [("source", section)] if listed is None else []
    found += [(f"sources.{index}.source", part) for index, part in enumerate(listed or ())]
    return found + [(f"{key}.source", part) for key in _SOURCES_APART if (part := getattr(section, key, None))]


def stage_named(source: Source) -> str | None:
    """Return the stage that a source names; None for a file, a folder, an id or the built-in task."""
    text = source.source
    return text.removeprefix(STAGE_SOURCE) if text.startswith(STAGE_SOURCE) else None

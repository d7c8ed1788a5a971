"""Data sets that stages make: found in every kind of source, and given the paths of the stages' rows."""

from __future__ import annotations

from rlhfctl.recipe import made_data
from rlhfctl.recipe.schema import Data, Demonstrations, Preferences, Prompts

DATA = Data(
    demonstrations=Demonstrations(source="rows.jsonl"),
    preferences=Preferences.model_validate({"sources": [{"source": "rows.jsonl"}, {"source": "stage:label"}]}),
    prompts=Prompts.model_validate({"source": "stage:sample", "test_source": {"source": "stage:other"}}),
)


def test_stages_are_found_in_lists_and_in_separate_sources_each_once() -> None:
    assert made_data.source_stages(["preferences", "prompts", "prompts"], DATA) == ["label", "sample", "other"]
    assert made_data.source_stages(["demonstrations", "no such set"], DATA) == []
    assert made_data.made_data(DATA) == ["preferences", "prompts"]


def test_at_the_start_only_rows_that_no_stage_makes_are_read() -> None:
    start = made_data.data_at_start(DATA)
    assert start.demonstrations == DATA.demonstrations
    assert (start.preferences, start.prompts) == (None, None)


def test_the_path_of_the_rows_takes_the_place_of_the_stages_name() -> None:
    paths = {"label": "/run/label/rows", "sample": "/run/sample/rows", "other": "/run/other/rows"}
    assert DATA.preferences is not None and DATA.prompts is not None
    sources = [
        (key, part.source)
        for section in (DATA.preferences, DATA.prompts)
        for key, part in made_data.sources_of(made_data.with_sources(section, paths))
    ]
    assert sources == [
        ("sources.0.source", "rows.jsonl"),
        ("sources.1.source", "/run/label/rows"),
        ("source", "/run/sample/rows"),
        ("test_source.source", "/run/other/rows"),
    ]
    assert DATA.prompts.source == "stage:sample"  # the recipe's own section is not changed

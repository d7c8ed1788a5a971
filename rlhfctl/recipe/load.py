"""Load a valid `Recipe` from files; report every problem at once, with file and line.

Reads the recipe file, the files that it extends and the environment variables that its paths name; writes nothing.
Leaves out what the keys mean (sections/) and, under `trainer:`, everything except the keys that rlhfctl owns. Layers
are merged from the last ancestor to the recipe and then `--set` (layers.py, reading.py); files.py makes paths absolute.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlhfctl.errors import Problem, RecipeError, RlhfctlError
from rlhfctl.recipe.files import resolve_paths
from rlhfctl.recipe.layers import Layer, Problems, merge, reach
from rlhfctl.recipe.reading import read_chain, read_overrides, yaml_1_2
from rlhfctl.recipe.schema import Recipe
from rlhfctl.recipe.sections.base import Key
from rlhfctl.recipe.shipped import ROOTS as _SHIPPED
from rlhfctl.recipe.shipped import shipped_recipes
from rlhfctl.recipe.words import did_you_mean, dotted, help_of, unknown_key, wrong_value

# The value of a required key while the rest is checked, after its own problem is noted.
_NEWER_SECTIONS = ("launch", "dpo")
_STAND_INS: dict[str, Any] = {"name": "recipe", "model": {"path": "model"}}


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid, resolved recipe with its file (absolute), that file's folder, and the location of each key."""

    recipe: Recipe
    path: Path
    folder: Path
    locations: Mapping[str, str] = field(default_factory=dict)  # "sft.trainer.optim" -> "recipe.yaml:11"

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Add file and line to errors that leave the block and name a key of the recipe."""
        try:
            yield
        except RlhfctlError as error:
            error.place(self.locations)
            raise


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe by path (or a shipped one by name) with `--set` values on top; RecipeError has all faults."""
    file = find_recipe(str(path)).absolute()
    problems = Problems()
    changes = read_overrides(overrides, problems)
    merged = Layer()
    for layer in [*reversed(read_chain(file, problems)), changes]:
        merged = merge(merged, layer)
    resolve_paths(merged, problems)
    locations = {dotted(key): origin.where for key, origin in merged.origins.items()}
    return LoadedRecipe(_recipe_of(merged, problems), file, file.parent, locations)


def outline(path: Path | str) -> Recipe:
    """Load a recipe without looking for the files and models that it names.

    For lists: a recipe whose data does not exist yet, or no longer exists, can still be described.
    """
    problems = Problems()
    merged = Layer()
    for layer in reversed(read_chain(find_recipe(str(path)).absolute(), problems)):
        merged = merge(merged, layer)
    return _recipe_of(merged, problems)


def _recipe_of(merged: Layer, problems: Problems) -> Recipe:
    recipe = _validate(merged, problems)
    if problems.found or recipe is None:
        problems.stop()
    return recipe


def find_recipe(name: str) -> Path:
    """Return the path as given, or the file of a shipped recipe by its name ("quickstart")."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes(_SHIPPED)
    if name in shipped:
        return shipped[name]
    beside = [str(file) for file in path.parent.glob("*.y*ml")]
    what = "is a folder, not a recipe" if path.is_dir() else "there is no such file, nor a shipped recipe of that name"
    fix = f"shipped recipes: {', '.join(sorted(shipped))}" if shipped else None
    raise RecipeError([Problem("", what + did_you_mean(name, [*shipped, *beside]), name, fix)])


def dump_recipe(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML text that loads to an equal recipe."""
    yaml = yaml_1_2()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    # Left out where they are not set: older versions of rlhfctl do not know them, and older runs stay unchanged.
    unset = {name for name in _NEWER_SECTIONS if getattr(recipe, name) is None}
    yaml.dump(recipe.model_dump(mode="json", exclude=unset), text)
    return text.getvalue()


def differs_in_launch_alone(one: str, other: str) -> bool:
    """Tell whether two resolved recipes are the same run, started in other processes or on other machines."""
    yaml = yaml_1_2()
    loaded = [dict(yaml.load(text) or {}) for text in (one, other)]
    return loaded[0] | {"launch": None} == loaded[1] | {"launch": None}


def _validate(layer: Layer, problems: Problems) -> Recipe | None:
    """Validate the recipe without its faulty keys, which are noted: the rules between keys then check the rest."""
    data = deepcopy(layer.data)
    cuts: set[Key] = set()  # keys left out, or meant by a misspelt key: rules about them are skipped
    for attempt in itertools.count():
        try:
            return Recipe.model_validate(data)
        except ValidationError as error:
            details = error.errors(include_url=False)
        if details[0]["type"] == "conflicts":
            for conflict in details[0]["ctx"]["conflicts"]:
                keys = [_key_of(text) for text in (conflict.key, *conflict.about) if text]
                if not any(key[: len(cut)] == cut for key in keys for cut in cuts):
                    key = keys[0] if conflict.key else ()
                    problems.add(layer.origin(key), key, conflict.what, conflict.fix)
            break
        faults: dict[Key, list[Any]] = {}
        for detail in details:
            missing = detail["loc"][-1:] if detail["type"] == "missing" else ()
            # Pydantic's location also names the types that it tried, which are not in the data.
            faults.setdefault(reach(data, detail["loc"])[0] + missing, []).append(detail)
        if attempt == 0:
            cuts |= _note(faults, layer, problems)
        for key, (detail, *_) in faults.items():
            whole = key[:-1] or key if detail["type"] == "missing" else key  # the section that requires it
            cut = tuple(itertools.takewhile(lambda part: isinstance(part, str), whole))  # or the list that it is in
            section = reach(data, cut[:-1])[1]
            if isinstance(section, dict):
                section.pop(cut[-1], None)
            cuts |= set() if detail["type"] == "extra_forbidden" and cut == whole else {cut}
        data = {**_STAND_INS, **data}
    return None


def _key_of(text: str) -> Key:
    """Parse a conflict's dotted key; numbers in it are indices of a list."""
    return tuple(int(part) if part.isdecimal() else part for part in text.split("."))


def _note(faults: dict[Key, list[Any]], layer: Layer, problems: Problems) -> set[Key]:
    """Note pydantic's errors as problems in plain words; return the keys that unknown keys probably meant."""
    meant: set[Key] = set()
    for key, (detail, *_) in faults.items():
        if detail["type"] == "extra_forbidden":
            what, fix, near = unknown_key(key)
            meant |= {(*key[:-1], near)} if near else set()
            problems.add(layer.origin(key), key, what, fix)
    for key, details in faults.items():
        if details[0]["type"] == "missing" and key not in meant:
            problems.add(layer.origin(key), key, "missing", f"add it: {help_of(key)}")
        # An error about an item says more than the error that the whole value has another type.
        deeper = any(key != other and other[: len(key)] == key for other in faults)
        if details[0]["type"] not in ("missing", "extra_forbidden") and not deeper:
            problems.add(layer.origin(key), key, wrong_value(key, details))
    return meant

"""Layers of a recipe: values with the file and line of each, and how one layer is merged over another.

A recipe is made of layers: the files that it extends, its own file, and `--set`. A `Layer` holds plain values and the
origin of each, so that a value keeps the file, line and folder it was stated in. Reads and writes nothing.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rlhfctl.errors import Problem, RecipeError
from rlhfctl.recipe.sections.algorithm import unused_keys
from rlhfctl.recipe.sections.base import Key
from rlhfctl.recipe.sections.data import BUILTIN_DATA_KEYS, ONE_SOURCE_KEYS, OWN_DATA_KEYS
from rlhfctl.recipe.words import dotted, shortened

DATA_SETS: tuple[Key, ...] = tuple(
    ("data", name) for name in ("demonstrations", "preferences", "pretraining", "prompts")
)
_LONGEST_PROBLEM = 600

_READY = ("model", "function", "unit_tests", "prompted_classifier")
_TRAINING = ("lora", "trainer", "checkpoint_steps")
# A key that the upper file states takes the place of these keys of the lower file.
_REPLACES: dict[Key, dict[str, tuple[str, ...]]] = {
    ("model",): {"init": ("path", "revision", "trust_remote_code"), "path": ("init", "revision")},
    ("model", "init"): {"tokens": ("vocab_size",), "vocab_size": ("tokens",)},
    ("reward",): {
        **{key: (*(other for other in _READY if other != key), *_TRAINING) for key in _READY},
        **dict.fromkeys(_TRAINING, _READY),
    },
}


@dataclass(frozen=True)
class Origin:
    """The origin of a value: its location in messages, the folder of its paths, and its sort key (layer, line)."""

    where: str
    folder: Path
    order: tuple[int, int] = (0, 0)


@dataclass
class Layer:
    """Plain values, and the origin of each."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, Origin] = field(default_factory=dict)

    def get(self, key: Key) -> Any:
        reached, value = reach(self.data, key)
        return value if reached == key else None

    def origin(self, key: Key) -> Origin:
        """Return the origin of the key, or of the nearest section above it that has one."""
        return self.origins[reach(self.data, key)[0]]


class Problems:
    """Collect the faults of a recipe, and report all of them at once, sorted by file and line."""

    def __init__(self) -> None:
        self.found: list[tuple[tuple[int, int], Problem]] = []

    def add(self, origin: Origin, key: Key, what: str, fix: str | None = None) -> None:
        problem = Problem(shortened(dotted(key)), shortened(what, _LONGEST_PROBLEM), shortened(origin.where), fix)
        self.found.append((origin.order, problem))

    def stop(self) -> NoReturn:
        raise RecipeError([problem for _, problem in sorted(self.found, key=lambda pair: pair[0])])


def merge(low: Layer, high: Layer) -> Layer:
    """Merge the high layer over the low one: mappings are merged, everything else is replaced."""
    merged = Layer(deepcopy(low.data), dict(low.origins))

    def into(target: dict[str, Any], section: dict[str, Any], key: Key) -> None:
        replaces = dict(_REPLACES.get(key, {}))
        if key in DATA_SETS:
            to_builtin = str(section.get("source")).startswith("builtin:")
            replaces["source"] = ("sources", *(OWN_DATA_KEYS if to_builtin else BUILTIN_DATA_KEYS))
            replaces["sources"] = ONE_SOURCE_KEYS
        if key == ("ppo",) and "algorithm" in section:
            replaces["algorithm"] = unused_keys(str(section["algorithm"]))
        for gone in {gone for name, value in section.items() if value is not None for gone in replaces.get(name, ())}:
            target.pop(gone, None)
        for name, value in section.items():
            here = (*key, name)
            if isinstance(value, dict) and isinstance(target.get(name), dict):
                into(target[name], value, here)
                if () in high.origins:  # a file; `--set` does not change the section's origin
                    merged.origins[here] = high.origins[here]
            else:
                target[name] = deepcopy(value)
                merged.origins |= {deep: origin for deep, origin in high.origins.items() if deep[: len(here)] == here}

    into(merged.data, high.data, ())
    merged.origins |= {(): high.origins[()]} if () in high.origins else {}
    return merged


def name_lists(layer: Layer) -> Layer:
    """Rewrite each data set of a layer that is a list of sources as {sources: [...]}, and seeds as {values: ...}."""
    if "seeds" in layer.data and isinstance(layer.data["seeds"], int | list):
        layer.data["seeds"] = {"values": layer.data["seeds"]}
        items = {key: origin for key, origin in layer.origins.items() if key[:1] == ("seeds",)}
        layer.origins |= {("seeds", "values", *key[1:]): origin for key, origin in items.items()}
    data = layer.data.get("data")
    for at in DATA_SETS:
        name = at[-1]
        if isinstance(data, dict) and isinstance(data.get(name), list):
            data[name] = {"sources": data[name]}
            moved = {key: origin for key, origin in layer.origins.items() if key[:2] == at}
            layer.origins |= {(*at, "sources", *key[2:]): origin for key, origin in moved.items()}
    return layer


def reach(data: dict[str, Any], key: Key) -> tuple[Key, Any]:
    """Follow a key into the data; return the part of the key that exists, and its value.

    Parts that are not in the data are skipped.
    """
    reached: Key = ()
    value: Any = data
    for part in key:
        if isinstance(value, list) if isinstance(part, int) else (isinstance(value, dict) and part in value):
            reached, value = (*reached, part), value[part]
    return reached, value

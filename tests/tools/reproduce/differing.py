"""Tell by which keys the recipes of two commands of `rlhfctl reproduce` differ, for tests."""

from __future__ import annotations

from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools.reproduce.experiment import RECIPE, Job


def differences(first: Job, second: Job) -> dict[str, object]:
    """Return the keys (A.B.C) of the second recipe that differ, with its values; the runs' names do not count."""
    one, other = (_flat(load_recipe(RECIPE, job.overrides).recipe.model_dump(mode="json")) for job in (first, second))
    keys = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - {"name"}
    return {key: other.get(key) for key in keys}


def _flat(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}").items()}
    return {path.lstrip("."): value}

"""Whether a stage fits, and the settings with which it does."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_plans import planned, shown

from rlhfctl.data import load
from rlhfctl.graph import Request
from rlhfctl.models import devices
from rlhfctl.planning.advice import fit
from rlhfctl.planning.row_lengths import Lengths
from rlhfctl.planning.stages import facts
from rlhfctl.recipe.load import load_recipe


def test_fit() -> None:
    assert [fit(total, 100) for total in (90, 91, 100, 101)] == ["fits", "tight", "tight", "does not fit"]
    assert fit(None, 100) is None and fit(1, None) is None


def test_advice_brings_a_stage_within_the_limit(
    tiny_recipe: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = planned(tiny_recipe, tiny_recipe.parent / "nothing")
    monkeypatch.setattr(devices, "resident_bytes", lambda: new.overhead)  # else it grows from test to test
    ppo = next(stage for stage in new.stages if stage.name == "ppo")
    assert ppo.outlook is not None
    total = new.total(ppo)
    assert total is not None
    limit = total - ppo.outlook.peak.total // 10
    found = planned(
        tiny_recipe, tiny_run, "ppo.learning_rate=2e-2", limit=limit, request=Request(start="ppo", until="ppo")
    )
    advice = next(one for one in found.advice if one.stage == "ppo")
    assert limit >= advice.total
    loaded = load_recipe(tiny_recipe, list(advice.settings)).recipe
    lengths = Lengths.of(loaded, load.check_all(loaded.data, loaded.seed))
    outlook = facts("ppo", loaded, lengths).outlook
    assert outlook is not None and outlook.peak.total < ppo.outlook.peak.total
    changed = dict(setting.split("=") for setting in advice.settings)  # the same batch in parts
    size, steps = (int(changed[f"ppo.{key}"]) for key in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    assert size < 16 and size * steps == 16


def test_nothing_helps_where_the_libraries_alone_are_too_large(tiny_recipe: Path) -> None:
    found = planned(tiny_recipe, tiny_recipe.parent / "other", limit=1_000_000, request=Request(until="sft"))
    assert found.advice == () and found.fit(found.stages[0]) == "does not fit"
    assert "use a smaller model" in shown(found)

"""Write a report as JSON for scripts: what the page shows, as numbers. Pure.

Samples stay in compare/samples.jsonl, except for those that changed most.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlhfctl.report.content import Page
from rlhfctl.report.facts.measures import by_prompt, cost_of, length_effect, prompt_groups
from rlhfctl.report.facts.optimization import optimization_of, told
from rlhfctl.report.facts.records import Run

FORMAT = 1


def json_of(page: Page, runs: Sequence[Run]) -> str:
    """Write the report of one run or several."""
    value = {
        "format": FORMAT,
        "title": page.title,
        "headline": page.headline,
        "meaning": page.meaning,
        "numbers": _plain(page.numbers),
        "checks": _plain(page.checks),
        "gains": _plain(page.gains),
        "losses": _plain(page.losses),
        "runs": [_run(run) for run in runs],
    }
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _run(run: Run) -> dict[str, Any]:
    found = run.comparison
    primary = found.primary if found is not None else None
    results = by_prompt(run.pairs, primary) if primary is not None else []
    return {
        "name": run.name,
        "path": str(run.path),
        "finished": run.finished,
        "comparison": _plain(found),
        "seeds": _plain(run.by_seed),
        "alarms": _plain(run.alarms),
        "warnings": [{"stage": stage, "message": message} for stage, message in run.warnings],
        "stages": [
            {
                "name": stage.name,
                "state": stage.state,
                "fingerprint": stage.manifest.fingerprint if stage.manifest is not None else None,
                "metrics": _plain({**stage.measured, **(stage.manifest.metrics if stage.manifest is not None else {})}),
                "cost": _plain(cost_of(stage)),
            }
            for stage in run.stages
        ],
        "optimization": [
            {"stage": stage.name, "sentence": told(shown), **_plain(shown)}
            for stage in run.of_kind("ppo")
            if (shown := optimization_of(run, stage)) is not None
        ],
        "length": _plain(length_effect(run.pairs, primary)) if primary is not None else None,
        "prompt_groups": {heading: _plain(groups) for heading, groups in prompt_groups(results)},
        "card": _plain(run.card),
        "prompts": [{"seed": seed, **_plain(found)} for seed, found in run.prompts],
    }


def _plain(value: Any) -> Any:
    """Convert records to JSON values; a number that is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

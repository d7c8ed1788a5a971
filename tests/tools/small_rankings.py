"""Finished comparisons made by hand, for tests of rankings: no model is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfctl.artifacts import Source, publish_manifest

Scores = Sequence[Sequence[float]]  # prompt, sample


def publish_comparison(
    run: Path,
    policy: Mapping[str, Scores],
    reference: Mapping[str, Scores],
    *,
    prompts: Sequence[Any] | None = None,
    parents: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
    section: Mapping[str, Any] | None = None,
    **report: Any,
) -> Path:
    """Publish a comparison with these scores by judge. `parents`: fingerprint by role (default: one reference)."""
    folder = run / "compare"
    folder.mkdir(parents=True)
    primary = next(iter(policy))
    asked = prompts if prompts is not None else [f"prompt {i}" for i in range(len(policy[primary]))]
    rows = [
        {
            "prompt": prompt,
            "sample": j,
            "policy": "a",
            "reference": "b",
            "policy_scores": _scores(policy, i, j),
            "reference_scores": _scores(reference, i, j),
        }
        for i, prompt in enumerate(asked)
        for j in range(max(len(scores[i]) for scores in policy.values()) or 1)
    ]
    judges = {name: {"independent": True} for name in policy}
    facts = {"primary_judge": primary, "judges": judges, "temperature": 1.0, "samples_per_prompt": 1} | report
    (folder / "compare.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    known = {"reference": "base"} if parents is None else parents
    publish_manifest(
        folder,
        stage="compare",
        inputs=inputs or {},
        parents={role: Source(role, fingerprint) for role, fingerprint in known.items()},
        section=section or {},
        layout={"compare": "compare.json", "samples": "samples.jsonl"},
        seed=0,
        seconds=1.0,
        metrics={},
    )
    return run


def _scores(judges: Mapping[str, Scores], prompt: int, sample: int) -> dict[str, float]:
    return {name: scores[prompt][sample] for name, scores in judges.items() if sample < len(scores[prompt])}


def single(*values: float) -> list[list[float]]:
    """Return scores with one sample per prompt."""
    return [[value] for value in values]

"""The scorers of the card, and whether a reward model builds on the policy's own base."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_cards import card_context
from small_stage import small_model, small_tokenizer
from stages_of_a_run import publish

from rlhfctl.artifacts import Source, resolve_source
from rlhfctl.errors import RlhfctlError
from rlhfctl.models import build, heads
from rlhfctl.rewards.episode import Episode
from rlhfctl.stages import card_scorers
from rlhfctl.stages.card_scorers import base_is_policys, scored
from rlhfctl.tools.export import export
from rlhfctl.world import reviews


def episodes(*texts: str) -> list[Episode]:
    return [Episode([], [], "p", text, {}) for text in texts]


def by_length(parts: Any) -> list[float]:
    return [float(len(episode.completion)) for episode in parts]


def test_all_parts_are_scored_in_one_call_and_come_back_apart() -> None:
    calls: list[int] = []

    def scorer(given: Any, /) -> list[float]:
        calls.append(len(given))
        return by_length(given)

    assert scored("reward", lambda: scorer, [episodes("a", "bb"), [], episodes("ccc")]) == [[1.0, 2.0], [], [3.0]]
    assert calls == [3]


def test_a_score_that_is_not_finite_stops_the_stage() -> None:
    with pytest.raises(RlhfctlError, match="1 of 2 scores of heldout are not finite"):
        scored("heldout", lambda: lambda given: [1.0, float("nan")], [episodes("a", "b")])


def foreign(ctx: Any, folder: Path) -> bool | None:
    """The answer for a reward model in a folder without a manifest."""
    parents = dict(ctx.parents) | {"reward": resolve_source(str(folder), "reward model")}
    tokenizer = ctx.loader.load_base(ctx.parents["base"]).tokenizer
    return base_is_policys(replace(ctx, parents=parents), tokenizer)


def test_a_model_from_elsewhere_is_of_another_base_only_if_that_is_sure(tiny_run: Path, tmp_path: Path) -> None:
    ctx, _ = card_context(tiny_run, tmp_path / "run")
    export(tiny_run, "reward", tmp_path / "own", adapter=False)
    assert foreign(ctx, tmp_path / "own") is None  # of one shape, and nothing says where it is from
    other = small_tokenizer()
    build.save_model(heads.scorer_on(small_model(other), seed=0), other, tmp_path / "other")
    assert foreign(ctx, tmp_path / "other") is False


def made(folder: Path, stage: str, base: Source | None = None, text: str = "w", **record: Any) -> Source:
    given: dict[str, Any] = {"stage": stage, "inputs": {} if base else {"model": "m", "section": text}}
    parents = {} if base is None else {"base": base}
    return Source.of(publish(folder / stage, text=text, parents=parents, **(given | record)))


def test_manifests_lead_to_the_base(tmp_path: Path) -> None:
    base = made(tmp_path / "one", "sft")
    own = made(tmp_path / "one", "reward", base)
    other_sft = made(tmp_path / "two", "sft", text="trained otherwise")  # from the same first weights
    other_seed = made(tmp_path / "three", "sft", text="other first weights", seed=1)
    other_model = made(tmp_path / "four", "sft", text="another model", inputs={"model": "n"})
    rewards = [made(tmp_path / name, "reward", one) for name, one in
               (("two", other_sft), ("three", other_seed), ("four", other_model))]  # fmt: skip
    assert other_sft.fingerprint != base.fingerprint
    found = [card_scorers._leads_to(one.artifact, base) for one in (own, *rewards) if one.artifact is not None]
    assert found == [True, True, False, False]
    shutil.rmtree(tmp_path / "two" / "sft")
    assert rewards[0].artifact is not None and not card_scorers._leads_to(rewards[0].artifact, base)


def test_the_reward_of_the_run_builds_on_its_base_and_a_function_on_none(tiny_run: Path, tmp_path: Path) -> None:
    ctx, _ = card_context(tiny_run, tmp_path / "run")
    assert base_is_policys(ctx, small_tokenizer()) is True
    assert base_is_policys(replace(ctx, parents={"base": ctx.parents["base"]}), small_tokenizer()) is None


def test_gold_scores_the_built_in_task() -> None:
    (pair,) = reviews.preferences(1, 0, 0.0)
    good, bad = (Episode([], [], pair["prompt"], pair[side], {}) for side in ("chosen", "rejected"))
    first, second = card_scorers.score_gold([good, bad])
    assert first > second

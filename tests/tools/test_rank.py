"""`rank`: who beats whom, which runs can be ranked together, and what is said of those that cannot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_rankings import publish_comparison, single

from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.tools.rank import rank


def names(ranking: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in ranking["ranking"]]


def pairs(ranking: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {(one["first"], one["second"]): one for one in ranking["pairs"]}


def test_policies_and_their_reference_meet_on_each_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Four prompts. The value of a prompt is the mean of its samples; the last is a tie of a and b.
    a = {"gold": [[1.0, 3.0], [5.0, 5.0], [0.0, 2.0], [1.0, 1.0]]}  # 2, 5, 1, 1
    b = {"gold": [[3.0, 3.0], [4.0, 4.0], [0.0, 0.0], [1.0, 1.0]]}  # 3, 4, 0, 1
    base = {"gold": [[0.0, 0.0]] * 4}
    for name, policy in (("a", a), ("b", b)):
        publish_comparison(Path(name), policy, base)
    found = rank([Path("a"), Path("b")])
    assert names(found) == ["a", "b", "reference"] and found["ranking"][2]["runs"] == ["a", "b"]
    assert (found["judge"], found["prompts"], found["notes"]) == ("gold", 4, [])
    of = pairs(found)
    assert set(of) == {("a", "b"), ("a", "reference"), ("b", "reference")}
    assert (of["a", "b"]["wins"], of["a", "b"]["losses"], of["a", "b"]["ties"]) == (2, 1, 1)
    assert of["a", "b"]["win_rate"] == 2.5 / 4
    assert of["a", "reference"]["p_value"] == 2 / 2**4 and of["a", "reference"]["p_adjusted"] == 3 * 2 / 2**4
    assert of["b", "reference"]["ties"] == 1
    assert found["win_rates"] == [[None, 0.625, 1.0], [0.375, None, 0.875], [0.0, 0.125, None]]
    assert found["p_adjusted"][0][2] == found["p_adjusted"][2][0] == 0.375
    assert sum(entry["strength"] for entry in found["ranking"]) == pytest.approx(0.0)
    for entry in found["ranking"]:
        low, high = entry["strength_ci95"]
        assert low <= entry["strength"] <= high


def test_a_run_against_its_copy_wins_half(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 40))
    one = publish_comparison(tmp_path / "one", {"gold": single(*values[0])}, {"gold": single(*values[1])})
    shutil.copytree(one, tmp_path / "copy")
    found = rank([one, tmp_path / "copy"])
    of = pairs(found)[str(one), str(tmp_path / "copy")]
    assert (of["win_rate"], of["ties"], of["p_adjusted"]) == (0.5, 40, 1.0)
    strengths = {entry["name"]: entry["strength"] for entry in found["ranking"]}
    assert strengths[str(one)] == pytest.approx(strengths[str(tmp_path / "copy")])


def test_references_with_the_same_base_count_once_and_others_for_themselves(tmp_path: Path) -> None:
    runs = [
        publish_comparison(
            tmp_path / name, {"gold": single(3.0, 3.0)}, {"gold": single(score, score)}, parents={"reference": base}
        )
        for name, base, score in (("a", "x", 0.0), ("b", "x", 1.0), ("c", "y", 0.5))
    ]
    a, b, c = map(str, runs)
    found = rank(runs)
    assert set(names(found)) == {a, b, c, f"reference of {a}, {b}", f"reference of {c}"}
    # x is the mean of its samples in both runs: 0.5, like y
    assert pairs(found)[f"reference of {a}, {b}", f"reference of {c}"]["ties"] == 2
    assert names(rank(runs[:2]))[-1] == "reference"


def test_samples_made_elsewhere_have_the_reference_of_their_file(tmp_path: Path) -> None:
    def made(name: str, file: str) -> Path:
        scores = {"gold": single(1.0, 2.0)}
        return publish_comparison(tmp_path / name, scores, scores, parents={}, inputs={"reference_samples": file})

    assert len(names(rank([made("a", "f"), made("b", "f")]))) == 3
    assert len(names(rank([made("c", "f"), made("d", "g")]))) == 4


def test_prompts_that_are_equal_are_told_apart_by_their_number(tmp_path: Path) -> None:
    """Messages are prompts too, and the order of the prompts does not matter."""
    chat = [{"role": "user", "content": "hi"}]
    base = {"gold": single(0.0, 0.0, 0.0)}
    a = publish_comparison(tmp_path / "a", {"gold": single(1.0, 2.0, 3.0)}, base, prompts=[chat, chat, "x"])
    b = publish_comparison(tmp_path / "b", {"gold": single(4.0, 1.5, 2.5)}, base, prompts=["x", chat, chat])
    of = pairs(rank([a, b]))[str(a), str(b)]
    assert (of["wins"], of["losses"]) == (0, 3)  # 1 < 1.5, 2 < 2.5, 3 < 4
    fewer = publish_comparison(tmp_path / "c", {"gold": single(1.0, 1.0)}, base, prompts=["x", chat])
    with pytest.raises(RlhfctlError, match="answered other test prompts") as told:
        rank([a, fewer])
    assert "they share 2 of 3" in str(told.value) and "data_seed" in str(told.value)


# ---------------------------------------------------------------- what cannot be ranked


def two(tmp_path: Path, *different: dict[str, Any], judge: str = "gold") -> list[Path]:
    """Two runs that one judge compared; `different`: what is given to each."""
    scores = {judge: single(1.0, 2.0, 3.0)}
    return [
        publish_comparison(tmp_path / name, scores, {judge: single(0.0, 4.0, 1.0)}, **more)
        for name, more in zip("ab", different or ({}, {}), strict=True)
    ]


def test_one_run_alone_or_twice_is_refused(tmp_path: Path) -> None:
    a, _ = two(tmp_path)
    for given in ([a], [a, a], [a, tmp_path / "x" / ".." / "a"]):
        with pytest.raises(RlhfctlError, match="several different runs") as told:
            rank(given)
        assert f"rlhfctl compare {a}" in str(told.value)


def test_a_run_without_a_verdict_and_one_that_was_altered_are_refused(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    with pytest.raises(HandoffError, match="does not exist"):
        rank([a, tmp_path / "none"])
    (b / "compare" / "samples.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(HandoffError, match=r"samples\.jsonl was altered"):
        rank([a, b])


def test_primary_judges_that_differ_ask_for_a_name(tmp_path: Path) -> None:
    scores = {"gold": single(1.0, 2.0), "m:f": single(2.0, 1.0)}
    swapped = dict(reversed(scores.items()))
    a, b = (publish_comparison(tmp_path / name, by, by) for name, by in (("a", scores), ("b", swapped)))
    with pytest.raises(RlhfctlError, match="primary judges differ") as told:
        rank([a, b])
    assert "--judge gold or m:f" in str(told.value)
    assert rank([a, b], "m:f")["judge"] == "m:f"
    with pytest.raises(RlhfctlError, match="words has not judged this run; its judges: gold, m:f"):
        rank([a, b], "words")
    c = publish_comparison(tmp_path / "c", {"words": single(1.0, 2.0)}, {"words": single(1.0, 2.0)})
    with pytest.raises(RlhfctlError, match=r"compare\.judges"):
        rank([a, c])


@pytest.mark.parametrize(
    ("judge", "one", "other"),
    [
        ("reward_model", {"parents": {"reward": "m1"}}, {"parents": {"reward": "m2"}}),
        (
            "reward_model",
            {"parents": {"reward": "m"}, "inputs": {"reward.label": "x"}},
            {"parents": {"reward": "m"}, "inputs": {"reward.label": "y"}},
        ),
        ("heldout", {"parents": {"heldout": "m1"}}, {"parents": {"heldout": "m2"}}),
        ("reward_function", {"inputs": {"functions": "f"}}, {"inputs": {"functions": "g"}}),
        ("endpoint", {"section": {"endpoint": {"model": "m"}}}, {"section": {"endpoint": {"model": "n"}}}),
    ],
)
def test_another_judge_of_the_same_name_is_refused(
    judge: str, one: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RlhfctlError, match=f"{judge} is not the same judge in"):
        rank(two(tmp_path, one, other, judge=judge))
    for run in tmp_path.iterdir():
        shutil.rmtree(run)
    assert rank(two(tmp_path, one, one, judge=judge))["judge"] == judge


def test_other_settings_do_not_make_another_judge(tmp_path: Path) -> None:
    """Gold and a named function are what they are, whatever the runs trained on."""
    labels = ({"inputs": {"reward.label": "x"}}, {"inputs": {"reward.label": "y"}})
    assert rank(two(tmp_path / "gold", *labels))["notes"] == []
    functions = ({"inputs": {"functions": "f"}}, {"inputs": {"functions": "g"}})
    (note,) = rank(two(tmp_path / "function", *functions, judge="m:f"))["notes"]
    assert note == "the functions that these runs called differ: make sure that m:f is the same in all"


def test_what_limits_a_ranking_is_noted(tmp_path: Path) -> None:
    dependent = {"judges": {"gold": {"independent": False}}}
    a, b = two(tmp_path, {"temperature": 0.7, **dependent}, {"samples_per_prompt": 4})
    assert rank([a, b])["notes"] == [
        f"PPO trained against gold in {a}: it is not independent evidence of improvement",
        "these runs were compared at different temperatures: 0.7, 1.0",
        "these runs were compared at different numbers of samples per prompt: 1, 4",
    ]


# ---------------------------------------------------------------- a judge of pairs


def pairwise(*values: float | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of the judge `endpoint`: v for the policy, 1 - v for the reference; None: not judged."""
    given = [[] if value is None else [value] for value in values]
    return {"endpoint": given}, {"endpoint": [[1 - value for value in one] for one in given]}


def test_by_a_judge_of_pairs_policies_meet_their_reference_alone(tmp_path: Path) -> None:
    """Its value 0.9 in one run and 0.8 in another do not say which of the two policies is better on a prompt."""
    a = publish_comparison(tmp_path / "a", *pairwise(0.9, 0.9, 1.0, 0.5))
    b = publish_comparison(tmp_path / "b", *pairwise(0.8, 0.2, 0.0, 0.5))
    found = rank([a, b])
    assert set(pairs(found)) == {(str(a), "reference"), (str(b), "reference")}
    assert pairs(found)[str(a), "reference"]["win_rate"] == 3.5 / 4
    assert names(found) == [str(a), "reference", str(b)]
    assert found["win_rates"][0] == [None, 0.875, None]


def test_prompts_that_were_not_judged_are_left_out_and_counted(tmp_path: Path) -> None:
    a = publish_comparison(tmp_path / "a", *pairwise(0.9, None, 1.0, 0.5))
    b = publish_comparison(tmp_path / "b", *pairwise(0.8, 0.2, None, 0.5))
    found = rank([a, b])
    assert found["prompts"] == 2
    assert found["notes"] == ["2 prompts that endpoint did not score in every run are left out"]
    c = publish_comparison(tmp_path / "c", *pairwise(None, 0.2, None, None))
    with pytest.raises(RlhfctlError, match="endpoint has scored no prompt in all of these runs"):
        rank([a, b, c])


def test_by_a_judge_of_pairs_other_references_cannot_be_linked(tmp_path: Path) -> None:
    a = publish_comparison(tmp_path / "a", *pairwise(0.9, 0.1), parents={"reference": "x"})
    b = publish_comparison(tmp_path / "b", *pairwise(0.9, 0.1), parents={"reference": "y"})
    with pytest.raises(RlhfctlError, match="the references of these runs differ: nothing links them"):
        rank([a, b])


def test_a_run_over_several_seeds_is_ranked_by_its_seeds(tmp_path: Path) -> None:
    run = tmp_path / "several"
    for seed in (0, 1):
        publish_comparison(run / f"seed-{seed}", {"gold": single(float(seed), 2.0)}, {"gold": single(0.0, 0.0)})
    with pytest.raises(RlhfctlError, match="is a run over several seeds") as caught:
        rank([run, tmp_path / "other"])
    assert caught.value.fix == f"name seeds of it: {run / 'seed-0'}, {run / 'seed-1'}"
    assert str(run / "seed-1") in names(rank([run / "seed-0", run / "seed-1"]))

"""The verdict's numbers by hand, from files of samples and from models."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from comparisons import invoke, jsonl, report_of

from rlhfctl.artifacts import load_artifact
from rlhfctl.world import gold, reviews

JUDGE = {
    "delta": float,
    "delta_ci95": list,
    "win_rate": float,
    "win_rate_ci95": list,
    "policy_mean": float,
    "policy_ci95": list,
    "reference_mean": float,
    "reference_ci95": list,
    "ties": int,
    "p_value": float,
    "independent": bool,
    "verdict": str,
    "p_adjusted": float,
}
OR_NULL = {  # where it cannot be known
    "effect_size": float,
    "effect_size_ci95": list,
    "reference_deviations": float,
    "length_controlled_win_rate": float,
    "length_controlled_win_rate_ci95": list,
    "length_effect": float,
    "length_control_missing": str,
    "prompts_to_settle": int,
    "power": float,
}
REPORT = {
    "verdict": str,
    "primary_judge": str,
    "independent": bool,
    "prompts": int,
    "samples_per_prompt": int,
    "judges": dict,
    "controls": list,
    "verdict_basis": list,
    "sentence": str,
    "length_policy_mean": float,
    "length_reference_mean": float,
    "distinct_1_policy": float,
    "distinct_1_reference": float,
    "distinct_2_policy": float,
    "distinct_2_reference": float,
}


def check_shape(report: dict[str, Any], *, judges: list[str]) -> None:
    for key, kind in REPORT.items():
        assert type(report[key]) is kind, key
    assert list(report["judges"]) == judges
    for values in report["judges"].values():
        assert set(values) == {*JUDGE, *OR_NULL}
        for key, kind in JUDGE.items():
            assert type(values[key]) is kind, key
        for key, kind in OR_NULL.items():
            assert values[key] is None or type(values[key]) is kind, key
        assert (values["length_controlled_win_rate"] is None) is (values["length_control_missing"] is not None)
        for key in ("delta_ci95", "win_rate_ci95", "policy_ci95", "reference_ci95"):
            low, high = values[key]
            middle = key.removesuffix("_ci95")
            assert low <= values[middle if middle in values else f"{middle}_mean"] <= high


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Path, Path, dict[str, list[float]]]:
    """Six prompts with two samples each: three wins, a loss, two ties by gold; and gold's means, by hand."""
    rows = reviews.demonstrations(40, 1)
    good = [row for row in rows if gold.score([row["prompt"]], [row["completion"]])[0] > 0][:6]
    assert len(good) == 6
    empty = "the"
    prompts = [row["prompt"] for row in good]
    best = [row["completion"] for row in good]
    ours = [[best[0]] * 2, [best[1], empty], [best[2]] * 2, [empty] * 2, [empty] * 2, [best[5]] * 2]
    theirs = [[empty] * 2, [empty] * 2, [best[2], empty], [best[3], empty], [empty] * 2, [best[5]] * 2]
    flat = [
        [{"prompt": prompt, "response": text} for prompt, texts in zip(prompts, side, strict=True) for text in texts]
        for side in (ours, theirs)
    ]
    means = {
        name: [sum(gold.score([prompt] * 2, texts)) / 2 for prompt, texts in zip(prompts, side, strict=True)]
        for name, side in (("policy", ours), ("reference", theirs))
    }
    # The other file in another order: prompts are matched by their text.
    return (
        jsonl(tmp_path / "policy.jsonl", flat[0]),
        jsonl(tmp_path / "reference.jsonl", list(reversed(flat[1]))),
        means,
    )


def test_numbers_from_files_by_hand(
    tiny_recipe: Path, tmp_path: Path, samples: tuple[Path, Path, dict[str, list[float]]]
) -> None:
    policy, reference, means = samples
    run = tmp_path / "run"
    result = invoke(
        "compare", tiny_recipe, "--policy-samples", policy, "--reference-samples", reference, "--run-dir", run,
        "--set", "compare.judges=[gold]",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = report_of(run)
    check_shape(report, judges=["gold"])
    ours, theirs, judge = means["policy"], means["reference"], report["judges"]["gold"]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert [d > 0 for d in differences].count(True) == 3 and [d < 0 for d in differences].count(True) == 1
    assert judge["ties"] == 2
    assert judge["win_rate"] == pytest.approx((3 + 0.5 * 2) / 6)
    assert judge["delta"] == pytest.approx(sum(differences) / 6)
    assert judge["policy_mean"] == pytest.approx(sum(ours) / 6)
    assert judge["reference_mean"] == pytest.approx(sum(theirs) / 6)
    assert judge["p_value"] == pytest.approx(2 * (1 + 4) / 16)  # 3 of 4: P[X <= 1] = 5/16, doubled
    assert judge["delta_ci95"][0] <= judge["delta"] <= judge["delta_ci95"][1]
    assert judge["win_rate_ci95"][0] <= judge["win_rate"] <= judge["win_rate_ci95"][1]
    assert (report["prompts"], report["samples_per_prompt"]) == (6, 2)
    assert report["verdict"] == "undecided"
    assert report["independent"] is True
    assert report["kl_mean"] is None and report["temperature"] is None
    assert report["end_rate_policy"] is None
    written = [json.loads(line) for line in policy.read_text().splitlines()]
    assert report["length_policy_mean"] == pytest.approx(sum(len(row["response"].split()) for row in written) / 12)
    rows = [json.loads(line) for line in (run / "compare" / "samples.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["policy"]) for row in rows] == [(row["prompt"], row["response"]) for row in written]
    assert [row["sample"] for row in rows] == [0, 1] * 6
    for row in rows:
        assert row["policy_scores"]["gold"] == gold.score([row["prompt"]], [row["policy"]])[0]
        assert row["reference_scores"]["gold"] == gold.score([row["prompt"]], [row["reference"]])[0]
        assert row["policy_length"] == len(row["policy"].split())
        assert row["reference_length"] == len(row["reference"].split())
    assert judge["prompts_to_settle"] == 53 and "about 53 prompts would settle it" in report["sentence"]
    manifest = load_artifact(run / "compare").manifest
    assert manifest.metrics["win_rate"] == judge["win_rate"] and "kl" not in manifest.metrics


def test_swapping_the_files_mirrors_the_verdict(tiny_recipe: Path, tmp_path: Path) -> None:
    rows = [row for row in reviews.demonstrations(60, 1) if gold.score([row["prompt"]], [row["completion"]])[0] > 0][
        :12
    ]
    better = jsonl(tmp_path / "a.jsonl", [{"prompt": r["prompt"], "response": r["completion"]} for r in rows])
    worse = jsonl(tmp_path / "b.jsonl", [{"prompt": r["prompt"], "response": "the"} for r in rows])
    verdicts = {}
    for name, ours, theirs in (("better", better, worse), ("worse", worse, better)):
        result = invoke(
            "compare", tiny_recipe, "--policy-samples", ours, "--reference-samples", theirs,
            "--run-dir", tmp_path / name, "--set", "compare.judges=[gold]",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        report = report_of(tmp_path / name)
        verdicts[name] = (report["verdict"], report["judges"]["gold"]["win_rate"], report["judges"]["gold"]["ties"])
    assert verdicts == {"better": ("better", 1.0, 0), "worse": ("worse", 0.0, 0)}


def test_a_verdict_by_the_reward_model_is_no_independent_evidence(
    tiny_run: Path, tmp_path: Path, samples: tuple[Path, Path, dict[str, list[float]]]
) -> None:
    from rlhfctl.data.encoding import Encoder
    from rlhfctl.models import heads, loading, merging, tokenizing
    from rlhfctl.rewards.episode import Episode
    from rlhfctl.rewards.model import ModelReward

    policy, reference, _ = samples
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    result = invoke(
        "compare", tiny_run.parent / "tiny.yaml", "--policy-samples", policy, "--reference-samples", reference,
        "--run-dir", run, "--set", "compare.primary_judge=reward_model",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = report_of(run)
    check_shape(report, judges=["gold", "reward_model"])
    assert (report["primary_judge"], report["independent"]) == ("reward_model", False)
    assert report["judges"]["gold"]["independent"] is True
    assert report["judges"]["reward_model"]["independent"] is False
    warning = "the verdict rests on a reward model, and nothing shows that PPO did not train on it"
    assert any(warning in note for note in load_artifact(run / "compare").manifest.notes)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert any(event["event"] == "warning" and warning in event["message"] for event in events)
    # The score is the head's at the end of prompt + response, end token included, as in training.
    probe = load_artifact(run / "reward")
    base = loading.load_causal_lm(str(run / "sft" / "model"), dtype=loading.torch_dtype("float32"))
    tokenizer = tokenizing.load_tokenizer(str(run / "sft" / "model"))
    scorer = merging.merged(merging.load_adapter(heads.scorer_on(base, seed=9), probe.part("adapter")))
    row = json.loads((run / "compare" / "samples.jsonl").read_text().splitlines()[0])
    ids, response = Encoder(tokenizer).pair(row["prompt"], row["policy"])
    assert response[-1] == tokenizer.eos_token_id
    score = ModelReward(scorer, tokenizer.pad_token_id)([Episode(ids, response, "", "", {})])[0]
    assert row["policy_scores"]["reward_model"] == pytest.approx(score, abs=1e-5)


def test_a_policy_compared_with_itself_is_undecided(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = invoke(
        "compare", tiny_run.parent / "tiny.yaml", "--policy", tiny_run / "sft", "--reference", tiny_run / "sft",
        "--reward-model", tiny_run / "reward", "--run-dir", run,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = report_of(run)
    check_shape(report, judges=["gold", "reward_model"])
    assert report["judges"]["reward_model"]["independent"] is True  # nothing was trained against it
    for part in (report["judges"], report["greedy"]):
        for judge in part.values():
            assert (judge["delta"], judge["win_rate"], judge["ties"]) == (0.0, 0.5, 12)
            assert judge.get("length_controlled_win_rate", 0.5) == 0.5
            assert judge["delta_ci95"] == [0.0, 0.0]
    assert report["kl_mean"] == 0.0
    assert (report["verdict"], report["prompts"], report["samples_per_prompt"]) == ("undecided", 12, 2)
    rows = [json.loads(line) for line in (run / "compare" / "samples.jsonl").read_text().splitlines()]
    assert all(row["policy"] == row["reference"] for row in rows)
    assert len({row["policy"] for row in rows}) > 12  # samples of one prompt differ


def test_the_run_of_the_whole_loop_has_the_contracts_keys(tiny_run: Path) -> None:
    report = report_of(tiny_run)
    check_shape(report, judges=["gold", "reward_model"])
    assert type(report["kl_mean"]) is float and report["kl_mean"] > 0
    assert type(report["end_rate_policy"]) is float
    assert report["temperature"] == 1.0
    rows = [json.loads(line) for line in (tiny_run / "compare" / "samples.jsonl").read_text().splitlines()]
    for side in ("policy", "reference"):  # tokens
        lengths = [row[f"{side}_length"] for row in rows]
        assert sum(lengths) / len(lengths) == pytest.approx(report[f"length_{side}_mean"])
    assert report["judges"]["reward_model"]["independent"] is False
    assert set(report["greedy"]) == {"gold", "reward_model"}


def test_both_models_are_gone_and_their_memory_is_released_before_a_judge_is_loaded(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhfctl.models import devices
    from rlhfctl.stages import judges
    from rlhfctl.stages.loader import Loader

    run, loaded, alive = tmp_path / "run", [], []
    shutil.copytree(tiny_run, run)
    load_base, build_judges, release_memory = Loader.load_base, judges.build_judges, devices.release_memory

    def load(*given: Any, **options: Any) -> Any:
        side = load_base(*given, **options)
        if not options:  # not the base that an adapter stands on
            loaded.append(weakref.ref(side.model))
        return side

    def released() -> None:
        release_memory()
        alive.append([one() is not None for one in loaded])

    def judged(*given: Any) -> Any:
        assert alive[-1] == [False, False]  # the last time that memory was released there was nothing left to hold
        loaded.clear()
        return build_judges(*given)

    monkeypatch.setattr(Loader, "load_base", load)
    monkeypatch.setattr(devices, "release_memory", released)
    monkeypatch.setattr(judges, "build_judges", judged)
    result = invoke("compare", tiny_run.parent / "tiny.yaml", "--run-dir", run, "--force")
    assert result.exit_code == 0, result.output
    # While each model is checked, and after each side has answered.
    assert [True] * 2 in alive and len(alive) >= 5 and not loaded


def test_a_gain_of_length_alone_is_called_so(tiny_recipe: Path, tmp_path: Path) -> None:
    """A judge counts words and, threefold, good ones. The policy has fewer good words and mostly more words."""
    (tmp_path / "long.py").write_text(
        "def score(prompts, completions):\n    return [len(c.split()) + 3 * c.count('good') for c in completions]\n"
    )
    # (words by which the policy's response is longer, good words of policy and reference): won if longer + 3 a > 3 b
    kinds = [(4, 0, 1)] * 20 + [(4, 0, 2)] * 4 + [(-4, 0, 0)] * 7 + [(-4, 2, 0)] + [(0, 0, 1)] * 6 + [(0, 1, 0)] * 2
    sides: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for number, (longer, a, b) in enumerate(kinds):
        for side, words, good in zip(sides, (10 + longer, 10), (a, b), strict=True):
            side.append({"prompt": f"prompt {number}", "response": "good " * good + "word " * (words - good)})
    files = [jsonl(tmp_path / f"{name}.jsonl", side) for name, side in zip("ab", sides, strict=True)]
    run = tmp_path / "run"
    result = invoke(
        "compare", tiny_recipe, "--policy-samples", files[0], "--reference-samples", files[1], "--run-dir", run,
        "--set", "compare.judges=[long:score]",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (judge,) = report_of(run)["judges"].values()
    assert judge["win_rate"] == 23 / 40 and judge["length_controlled_win_rate"] < 0.45 and judge["length_effect"] > 1
    said = "long:score prefers the policy on 57% of the prompts, but at equal length the reference on"
    assert said in " ".join(result.output.split())
    assert any(said in note for note in load_artifact(run / "compare").manifest.notes)

"""Make run folders without training: the files of a finished run, of any size, with every part that a report can show.

The numbers follow simple curves, so that tests know what to expect: the proxy rises with KL throughout, the held-out
reward and gold rise, peak and fall.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from conftest import TINY

from rlhfctl import fs
from rlhfctl.artifacts import Manifest, ParentRef
from rlhfctl.recipe.load import dump_recipe, outline
from rlhfctl.recipe.schema import Gate
from rlhfctl.stats.paired import compare_paired
from rlhfctl.stats.paired import verdict as verdict_of
from rlhfctl.verdict import overall, sentence

NASTY = (
    "<script>window.ran = true; document.title = 'taken over'</script><img src=x onerror=\"window.ran = true\">"
    "</script><b>bold</b> {{ 7 * 7 }} <!-- **stars** | pipe | ``` fence"
)
"""A response that gives a browser orders."""

_WORDS = [
    "the",
    "room",
    "was",
    "quiet",
    "and",
    "the",
    "staff",
    "were",
    "kind",
    "but",
    "our",
    "breakfast",
    "came",
    "late",
    "so",
    "we",
    "left",
    "early",
    "with",
    "a",
    "smile",
]
JUDGES = ("gold", "reward_model")


def make_run(
    folder: Path,
    *,
    updates: int = 40,
    prompts: int = 24,
    samples: int = 2,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    gain: float = 0.3,
    nasty: bool = False,
    heldout: bool = True,
    card: bool = True,
    words: int = 14,
    finished: bool = True,
) -> Path:
    """Write a run folder: recipe, events, manifests, verdict and samples, and on request the reward model's card."""
    folder.mkdir(parents=True)
    _write_recipe(folder, settings or {})
    events = [_event("run_started", "run", name=folder.name, stages=["sft", "reward", "ppo", "compare"])]
    events += [_event("warning", "run", message="the tokenizer has no pad token: one is added")]
    events += _training("sft", updates, lambda t: {"loss": 2 - t, "mean_token_accuracy": t / 2, "num_tokens": 5000 * t})
    events += _training("reward", updates, lambda t: {"loss": 0.69 - t / 3, "accuracy": 0.5 + t / 4})
    held = {"heldout_accuracy": 0.74, "heldout_accuracy_low": 0.7, "heldout_accuracy_high": 0.78}
    events += [_event("metrics", "reward", step=0, values=held, split="heldout", total=None, eta_s=None)]
    events += _ppo(updates, seed, heldout=heldout)
    manifest(folder / "sft", "sft", metrics={"loss": 1.0, "steps": updates}, data=["data.demonstrations"])
    manifest(folder / "reward", "reward", metrics=held, parents=["base=sft"], data=["data.preferences"])
    if finished:
        manifest(
            folder / "ppo", "ppo", metrics={"updates": updates}, parents=["base=sft", "reward=reward"],
            section={"use": "last"}, data=["data.prompts"],
        )  # fmt: skip
        _traces(folder / "ppo", updates)
        _compare(folder / "compare", prompts, samples, seed, gain, nasty=nasty, words=words)
        if card:
            (folder / "card").mkdir()
            fs.write_json(folder / "card" / "card.json", card_json())
        events.append(_event("verdict", "compare", verdict="better", sentence="better: made"))
    else:
        events.append(_event("run_stopped", "run", reason="Ctrl-C; the same command resumes"))
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "events.jsonl").write_text(lines, encoding="utf-8")
    return folder


def make_seeds(folder: Path, seeds: Sequence[int] = (0, 1, 2), *, prompts: int = 16) -> Path:
    """Write the folder of a run of several seeds: sft is shared, PPO and its comparison are of each seed."""
    folder.mkdir(parents=True)
    _write_recipe(folder, {})
    names = [f"seed-{seed}/{stage}" for stage in ("ppo", "compare") for seed in seeds]
    events = [_event("run_started", "run", name=folder.name, stages=["sft", *names, "summary"])]
    events += _training("sft", 10, lambda t: {"loss": 2 - t})
    manifest(folder / "sft", "sft", data=["data.demonstrations"])
    reports = {}
    for seed in seeds:
        events += [{**event, "stage": f"seed-{seed}/ppo"} for event in _ppo(20, seed, heldout=True)]
        manifest(folder / f"seed-{seed}" / "ppo", f"seed-{seed}/ppo", metrics={"updates": 20}, parents=["base=sft"])
        _compare(folder / f"seed-{seed}" / "compare", prompts, 2, seed, 0.5, nasty=False, words=9)
        reports[seed] = json.loads((folder / f"seed-{seed}" / "compare" / "compare.json").read_text())
    (folder / "summary").mkdir()
    fs.write_json(folder / "summary" / "summary.json", summary_json(reports))
    manifest(folder / "summary", "summary", layout={"summary": "summary.json"})
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "events.jsonl").write_text(lines, encoding="utf-8")
    return folder


def summary_json(reports: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of summary.json over the seeds' compare.json."""
    judges = {}
    for judge in JUDGES:
        entries = [report["judges"][judge] for report in reports.values()]
        rates = [entry["win_rate"] for entry in entries]
        mean = sum(rates) / len(rates)
        keys = ("win_rate", "win_rate_ci95", "delta", "verdict")
        judges[judge] = {
            "win_rate": mean,
            "win_rate_ci95": [min(rates) - 0.05, max(rates) + 0.02],
            "delta": 0.4,
            "delta_ci95": [0.1, 0.7],
            "per_seed": [
                {"seed": seed, **{key: report["judges"][judge][key] for key in keys}}
                for seed, report in reports.items()
            ],
        }
    first = next(iter(reports.values()))
    return {
        "verdict": "better", "sentence": "better: gold prefers the policy over three seeds", "seeds": list(reports),
        "primary_judge": "gold", "judges": judges, "controls": first["controls"],
        "kl_mean": [9.1, 9.5, 9.9][: len(reports)], "shared": ["sft"],
    }  # fmt: skip


def _write_recipe(folder: Path, settings: Mapping[str, Any]) -> None:
    (folder / "recipe.yaml").write_text(TINY, encoding="utf-8")
    recipe = outline(folder / "recipe.yaml")
    recipe = recipe.model_copy(update={"name": folder.name})
    assert recipe.ppo is not None and recipe.reward is not None
    reward = recipe.reward.model_copy(update={"gate": Gate(min_accuracy=0.6)})
    recipe = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update=dict(settings)), "reward": reward})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")


# ---------------------------------------------------------------- events


def _event(kind: str, stage: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "stage": stage, "time": 1.7e9, **fields}


def _training(stage: str, steps: int, values: Any, **settings: Any) -> list[dict[str, Any]]:
    """The events of a stage that reports `values(t)` at each step, t from 0 to 1."""
    rows = [_event("started", stage, total_steps=steps, resumed_from=None, settings=settings)]
    rows += [
        _event("metrics", stage, step=step, values=values(step / steps), split="train", total=steps, eta_s=None)
        for step in range(1, steps + 1)
    ]
    metrics = values(1.0)
    return [*rows, _event("finished", stage, path=stage, seconds=60.0, metrics=metrics, skipped=False, peak_memory=6e8)]


def proxy(t: float) -> float:
    return 2 * t


def hidden(t: float) -> float:
    """What PPO does not see: it rises, peaks at t = 0.5 and falls again to where it was."""
    return 4 * t * (1 - t)


def kl_at(t: float) -> float:
    return 12 * t


def _ppo(updates: int, seed: int, *, heldout: bool) -> list[dict[str, Any]]:
    noise = Random(seed)

    def values(t: float) -> dict[str, float]:
        return {
            "score": proxy(t) + noise.gauss(0, 0.1), "raw_score_std": 1.0, "kl": kl_at(t), "length": 20 + 4 * t,
            "eos_rate": 0.9, "token_entropy": 2.0 - t / 2, "explained_variance": 0.5 + t / 4, "clip_fraction": 0.1,
            "value_loss": 1 - t / 2, "episodes_per_s": 50.0, "policy_loss": -0.01, "grad_norm": 1.0,
            "learning_rate": 1e-3 * (1 - t), "rollout_gap": 1e-6,
        }  # fmt: skip

    rows = _training("ppo", updates, values, kl_coef=0.1, updates=updates, total_episodes=64 * updates)
    for step in range(0, updates + 1, max(1, updates // 8)):
        t = step / updates
        found = {"eval_score": proxy(t), "eval_kl": kl_at(t), "eval_gold": hidden(t), "eval_length": 20 + 4 * t}
        found |= {"eval_heldout": 0.8 * hidden(t) + 0.2 * t} if heldout else {}
        at = next((i for i, row in enumerate(rows) if row["event"] == "metrics" and row["step"] > step), len(rows) - 1)
        rows.insert(at, _event("metrics", "ppo", step=step, values=found, split="eval", total=updates, eta_s=None))
    return rows


# ---------------------------------------------------------------- stages


def manifest(
    folder: Path,
    stage: str,
    *,
    metrics: Mapping[str, float] | None = None,
    parents: Iterable[str] = (),
    section: Mapping[str, Any] | None = None,
    layout: Mapping[str, Any] | None = None,
    data: Iterable[str] = (),
) -> None:
    """Write a stage's manifest over the files that its folder holds. `parents`: role=path of stages of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made.txt").write_text(stage, encoding="utf-8")
    outputs = fs.hash_tree(folder, skip=frozenset({"manifest.json"}))
    run = folder.parents[stage.count("/")]
    given = [parent.split("=") for parent in parents]
    record = Manifest(
        stage=stage,
        inputs={name: fs.hash_json(name) for name in data} | {"seed": "0"},
        parents={
            role: ParentRef(
                path=path, fingerprint=json.loads((run / path / "manifest.json").read_text())["fingerprint"]
            )
            for role, path in given
        },
        outputs=outputs,
        fingerprint=fs.hash_json(outputs),
        section=dict(section or {}),
        layout=dict(layout or {}),
        seed=0,
        seconds=75.0,
        metrics=dict(metrics or {}),
        notes=["the best policy is used"] if stage == "ppo" else [],
        versions={"rlhfctl": "0.1.0", "torch": "2.13.0", "trl": "1.12.0"},
        git_commit="0123456789abcdef",
    )
    fs.write_json(folder / "manifest.json", record.model_dump(mode="json"))


def _traces(folder: Path, updates: int) -> None:
    (folder / "traces").mkdir()
    for update in (1, updates):
        rows = [_episode(update, number) for number in range(2)]
        name = folder / "traces" / f"update-{update:06}.jsonl"
        name.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _episode(update: int, number: int) -> dict[str, Any]:
    tokens = ["Ġthe", "Ġroom", "Ġ<b>", "<eos>"]
    count = len(tokens)
    lists = {
        name: [round(math.sin(update + number + index + at), 3) for index in range(count)]
        for at, name in enumerate(
            ("policy_logprobs", "reference_logprobs", "kl", "rewards", "values", "deltas", "advantages", "returns")
        )
    }
    return {"update": update, "episode": number, "prompt": "a prompt:", "response": "the room <b>", "tokens": tokens,
            "ids": list(range(count)), "ended": True, "score": 0.5, "raw_score": 0.5, **lists}  # fmt: skip


# ---------------------------------------------------------------- verdict


def _compare(folder: Path, prompts: int, samples: int, seed: int, gain: float, *, nasty: bool, words: int) -> None:
    folder.mkdir(parents=True)
    rows = sample_rows(prompts, samples, seed, gain, nasty=nasty, words=words)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fs.write_json(folder / "compare.json", compare_json(rows, prompts, samples))
    seed_of_run = folder.parent.name if folder.parent.name.startswith("seed-") else ""
    above = f"{seed_of_run}/" if seed_of_run else ""
    manifest(
        folder, f"{above}compare", layout={"compare": "compare.json", "samples": "samples.jsonl"},
        data=["data.prompts"], parents=[f"policy={above}ppo", "reference=sft"],
    )  # fmt: skip


def sample_rows(
    prompts: int, samples: int, seed: int, gain: float, *, nasty: bool = False, words: int = 14
) -> list[dict[str, Any]]:
    """Return rows of samples.jsonl; on average the policy's scores are `gain` above the reference's."""
    draw = Random(seed)

    def text(most: int) -> str:
        return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(max(1, most // 2), most)))

    rows = []
    for number in range(prompts):
        prompt = f"prompt {number}: {text(12)}"
        for sample in range(samples):
            base = draw.gauss(0, 1)
            change = draw.gauss(gain, 0.5)
            rows.append(
                {
                    "prompt": prompt,
                    "sample": sample,
                    "policy": text(words),
                    "reference": text(words),
                    "policy_ended": draw.random() < 0.9,
                    "reference_ended": True,
                    "policy_scores": {"gold": base + change, "reward_model": base + 2 * change},
                    "reference_scores": {"gold": base, "reward_model": base},
                    "policy_length": float(draw.randint(words // 2, words)),
                    "reference_length": float(draw.randint(words // 2, words)),
                }
            )
    if nasty:  # the largest gain and the largest loss give orders
        for row, change in ((rows[0], 9.0), (rows[-1], -9.0)):
            row |= {"prompt": f"{row['prompt']} {NASTY}", "policy": NASTY, "reference": f"{NASTY} {NASTY}"}
            row["policy_scores"] = {name: score + change for name, score in row["reference_scores"].items()}
    return rows


def compare_json(rows: Sequence[Mapping[str, Any]], prompts: int, samples: int) -> dict[str, Any]:
    """Return the content of compare.json for these rows, with one control of each kind."""
    judges = {judge: _entry(rows, judge, prompts, samples) for judge in JUDGES}
    control = {name: {k: v for k, v in entry.items() if k != "independent"} for name, entry in judges.items()}
    kinds = (
        ("equal_temperature", "both greedy", 0.0), ("matched_entropy", "matched entropy", 1.1),
        ("colder_reference", "reference at 0.6", 0.6), ("best_of_n", "reference, best of 4", 1.0),
    )  # fmt: skip
    controls = [
        {"kind": kind, "name": name, "temperature": at, "policy_temperature": 1.0, "n": 1, "judges": control}
        for kind, name, at in kinds
    ]
    main = judges["gold"]["verdict"]
    report = {
        "verdict": overall(main, [main, main], [main]), "primary_judge": "gold", "independent": True,
        "prompts": prompts, "samples_per_prompt": samples, "temperature": 1.0, "judges": judges, "controls": controls,
        "kl_mean": 9.5, "length_policy_mean": 22.0, "length_reference_mean": 20.0, "end_rate_policy": 0.9,
        "end_rate_reference": 1.0, "distinct_1_policy": 0.2, "distinct_1_reference": 0.25, "distinct_2_policy": 0.5,
        "distinct_2_reference": 0.6,
    }  # fmt: skip
    return report | {"sentence": sentence(report)}


def _entry(rows: Sequence[Mapping[str, Any]], judge: str, prompts: int, samples: int) -> dict[str, Any]:
    def means(side: str) -> list[float]:
        return [
            sum(row[side][judge] for row in rows[start : start + samples]) / samples
            for start in range(0, prompts * samples, samples)
        ]

    found = compare_paired(means("policy_scores"), means("reference_scores"), seed=0, samples=200)
    entry = {
        name: getattr(found, name) for name in ("policy_mean", "reference_mean", "delta", "win_rate", "ties", "p_value")
    }
    for name in ("policy_ci95", "reference_ci95", "delta_ci95", "win_rate_ci95"):
        entry[name] = [getattr(found, name).low, getattr(found, name).high]
    extra = {"effect_size": 0.6, "effect_size_ci95": [0.4, 0.8], "length_controlled_win_rate": 0.7,
             "length_controlled_win_rate_ci95": [0.6, 0.8], "prompts_to_settle": None, "p_adjusted": 0.01}  # fmt: skip
    return entry | extra | {"verdict": verdict_of(found), "independent": judge == "gold"}


def card_json() -> dict[str, Any]:
    """Return a reward model's card with every part."""
    ns = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    kls = [math.log(n) - (n - 1) / n for n in ns]
    rise = [0.5 * math.sqrt(kl) for kl in kls]
    bend = [0.5 * math.sqrt(kl) - 0.12 * kl for kl in kls]
    spread = Random(1)
    return {
        "prompts": 90, "pairs": 120, "base_is_policys": False,
        "accuracy": {"value": 0.74, "ci95": [0.66, 0.81]},
        "calibration": {"ece": 0.06, "bins": [
            {"low": 0.5 + n / 10, "high": 0.6 + n / 10, "n": 40 - 5 * n, "predicted": 0.55 + n / 10,
             "observed": 0.52 + n / 11} for n in range(5)]},
        "margins": {"mean": 0.8, "std": 1.1, "quantiles": {"0.05": -1.0, "0.5": 0.8, "0.95": 2.6},
                    "values": [spread.gauss(0.8, 1.1) for _ in range(200)]},
        "length": {"score_correlation": 0.21, "chosen_longer": 0.55, "accuracy_chosen_longer": 0.8,
                   "accuracy_chosen_shorter": 0.65, "length_controlled_accuracy": 0.71,
                   "length_controlled_accuracy_ci95": [0.62, 0.79], "unit": "words", "prefers_longer": 0.57},
        "agreement": {"heldout": {"pairs_same": 0.83, "spearman": 0.77}},
        "probes": [{"name": name, "n": 60, "delta_mean": delta, "share_above": share} for name, delta, share in (
            ("empty", -2.0, 0.02), ("prompt_repeated", -1.1, 0.1), ("gibberish", -2.4, 0.0),
            ("flattering", 0.3, 0.64))],
        "optimization": {
            "n": ns, "kl": kls, "proxy": _with_band(rise), "heldout": _with_band(bend), "gold": None,
            "disagreement": [0.2 + 0.05 * kl for kl in kls], "peak": {"n": 64, "kl": kls[6]},
            "pool": {"prompts": 60, "samples": 256}},
        "flags": [{"name": "flattery", "message": "a flattering phrase raises the score of 64% of the answers"}],
        "gate": {"passed": True, "reasons": []},
    }  # fmt: skip


def _with_band(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": list(values), "ci95": [[value - 0.1, value + 0.1] for value in values]}

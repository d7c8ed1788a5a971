"""Write the model card of an export: README.md in the Hub's format, with eval results in its metadata.

The page says what the verdict rests on, the data, the lineage, the settings that matter, and the limits. The same run
gives the same page. It names no machine path; the license is left to the user. Leaves out collecting (card_facts.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rlhfctl import verdict as verdicts
from rlhfctl.artifacts import Artifact
from rlhfctl.dashboard.text import fixed, number, setting
from rlhfctl.tools.card_facts import Facts, data_sets, flat, hub_id, parents_of, sources

_SHOWN = 12  # characters of a fingerprint
_KINDS = {
    "base": ("the model before training", "text-generation", ()),
    "sft": ("a supervised fine-tuned model", "text-generation", ("sft",)),
    "reward": ("a reward model: it scores a response to a prompt", "text-classification", ("reward-model",)),
    "heldout": (
        "a held-out reward model: it scores a response to a prompt, and PPO never trains on it",
        "text-classification",
        ("reward-model",),
    ),
    "dpo": ("a policy trained by direct preference optimization", "text-generation", ("dpo",)),
    "ppo": ("a policy trained by reinforcement learning from human feedback", "text-generation", ("ppo",)),
    "critic": ("a critic: it predicts the score that is still to come", "text-classification", ("value-model",)),
}
"""Stage -> what the model is, its task on the Hub, its tags."""
_SETTINGS: dict[str, tuple[str, ...]] = {
    "sft": ("lora", "trainer"),
    "reward": ("lora", "trainer"),
    "heldout": ("lora", "trainer"),
    "dpo": ("beta", "lora", "trainer"),
    "ppo": (
        "algorithm", "trpo", "nlpo", "engine", "lora", "critic", "rewards", "total_episodes",
        "per_device_train_batch_size",
        "gradient_accumulation_steps", "num_mini_batches", "num_ppo_epochs", "learning_rate", "response_length",
        "temperature", "top_k", "top_p", "stop_token", "stop_strings", "missing_eos_penalty", "missing_eos_score",
        "kl_coef", "kl_target", "kl_estimator", "cliprange", "gamma", "lam", "lam_value", "whiten_advantages",
        "normalize_scores", "score_clip", "ptx", "ema_decay", "use",
    ),
}  # fmt: skip
"""Stage -> the keys of its section that decide what comes out."""
_SCORERS = ("reward", "heldout")
_POLICIES = ("dpo", "ppo")
_MODEL_SETTINGS = ("dtype", "quantization", "chat_template")
_WIN_RATE, _ACCURACY = "win_rate", "accuracy"


def page(facts: Facts, *, adapter: bool, snippet: str, about_scores: Sequence[str] = ()) -> str:
    """Write the whole card. `snippet`: Python that loads the model; `about_scores`: lines below it."""
    what, _, _ = _KINDS[_kind(facts)]
    form = "a LoRA adapter with its base in the folder `base`" if adapter else "merged weights"
    body = [
        f"# {facts.recipe.name}: {facts.stage}",
        "",
        f"This is {what} ({form}), made by the run `{facts.recipe.name}` with rlhfctl "
        f"{facts.artifact.manifest.versions.get('rlhfctl', '')}.",
        "",
        *_section("Verdict", _verdict(facts)),
        *_section("Measured", _measured(facts)),
        *_section("Data", _data(facts)),
        *_section("Lineage", _lineage(facts)),
        *_section("Settings", _settings(facts)),
        *_section("Limits", _limits(facts)),
        "## Use",
        "",
        "```python",
        snippet.rstrip(),
        "```",
        "",
        *about_scores,
        *_about_probes(facts),
    ]
    text = f"---\n{metadata(facts, adapter=adapter).to_yaml()}\n---\n\n" + "\n".join(body).rstrip() + "\n"
    ModelCard(text)  # raises where the metadata is not what the Hub reads
    return text


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _kind(facts: Facts) -> str:
    stage = facts.artifact.stage.name
    return facts.stage if facts.stage == "critic" or stage not in _KINDS else stage


# ---------------------------------------------------------------- metadata


def metadata(facts: Facts, *, adapter: bool) -> ModelCardData:
    """Return the metadata of the card."""
    _, task, tags = _KINDS[_kind(facts)]
    base = hub_id(facts.recipe.model.path)
    used = {hub_id(source) for name, _, _, _ in data_sets(facts) for source in sources(facts, name)}
    results = [*_win_rates(facts), *_accuracies(facts)]
    return ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else "adapter" if adapter else "finetune",
        datasets=sorted(name for name in used if name is not None) or None,
        eval_results=results or None,
        library_name="peft" if adapter else "transformers",
        model_name=facts.recipe.name,
        pipeline_tag=task,
        tags=["rlhfctl", "rlhf", *tags, *(["lora"] if adapter else [])],
    )


def _dataset(facts: Facts, name: str) -> tuple[str, str]:
    """Return the identifier of a data set for the Hub, and its name for people."""
    named = sources(facts, name)
    return next((one for one in named if hub_id(one) is not None), "custom"), f"{', '.join(named)} ({name})"


def _win_rates(facts: Facts) -> Iterator[EvalResult]:
    """Yield the win rate by each judge of the verdict."""
    report = facts.verdict
    if report is None:
        return
    kind, called = _dataset(facts, "prompts")
    for judge, values in report["judges"].items():
        yield EvalResult(
            task_type="text-generation",
            task_name="Answers to held-out prompts",
            dataset_type=kind,
            dataset_name=called,
            dataset_split="test",
            metric_type=_WIN_RATE,
            metric_value=values["win_rate"],
            metric_name=f"Win rate against the reference, judged by {judge}",
            metric_args={
                "judge": judge,
                "independent": values.get("independent"),
                "interval_95": list(values["win_rate_ci95"]),
                "prompts": report["prompts"],
                "temperature": report.get("temperature"),
            },
        )


def _accuracies(facts: Facts) -> Iterator[EvalResult]:
    """Yield the accuracy of a reward model on held-out pairs."""
    metrics = facts.artifact.manifest.metrics
    if _kind(facts) not in _SCORERS or "heldout_accuracy" not in metrics:
        return
    kind, called = _dataset(facts, "preferences")
    yield EvalResult(
        task_type="text-classification",
        task_name="Preference pairs of held-out prompts",
        dataset_type=kind,
        dataset_name=called,
        dataset_split="heldout",
        metric_type=_ACCURACY,
        metric_value=metrics["heldout_accuracy"],
        metric_name="Share of pairs whose chosen side scores higher",
        metric_args={"interval_95": [metrics.get(f"heldout_accuracy_{end}") for end in ("low", "high")]},
    )


# ---------------------------------------------------------------- what was measured


def _verdict(facts: Facts) -> list[str]:
    if _kind(facts) not in _POLICIES:
        return []
    report = facts.verdict
    if report is None:
        return ["No comparison of this policy with its reference is recorded: nothing here shows that it is better."]
    lines = [f"**{report.get('sentence') or report['verdict']}**", ""]
    if facts.seeds is not None:
        all_seeds = facts.seeds.get("sentence") or facts.seeds["verdict"]
        lines += [f"Over {len(facts.seeds['seeds'])} seeds: {all_seeds}", ""]
    primary = report["primary_judge"]
    lines += [
        f"Policy and reference answered the same {report['prompts']} test prompts with the same random numbers.",
        "",
        "| judge | win rate | 95% interval | difference | 95% interval | p | independent |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_judge_row(judge, values) for judge, values in report["judges"].items()),
        "",
    ]
    if controls := report.get("controls"):
        lines += [
            f"Controls, judged by {primary}. The fair ones decide the verdict together with the line above.",
            "",
            "| control | win rate | 95% interval | the policy is | fair |",
            "| --- | --- | --- | --- | --- |",
            *(_control_row(row, row["judges"][primary]) for row in controls),
            "",
        ]
    kl = report.get("kl_mean")
    lengths = _known(report, *(f"length_{side}_mean" for side in ("reference", "policy")))
    if kl is not None:
        lines.append(f"KL from the reference: {number(kl, 3)} nats per response.")
    if lengths:
        lines.append(f"Length of a response: {' -> '.join(number(one, 3) for one in lengths)} (reference -> policy).")
    return lines


def _judge_row(judge: str, values: Mapping[str, Any]) -> str:
    low, high = values["delta_ci95"]
    independent = "yes" if values.get("independent") else "no"
    cells = [
        f"`{judge}`", verdicts.share(values["win_rate"]), _interval(values), fixed(values["delta"], 3, sign=True),
        f"{fixed(low, 3, sign=True)} to {fixed(high, 3, sign=True)}", number(values["p_value"], 2), independent,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _control_row(row: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    fair = "yes" if row["kind"] in verdicts.FAIR else "no"
    cells = [row["name"], verdicts.share(values["win_rate"]), _interval(values), values["verdict"], fair]
    return f"| {' | '.join(cells)} |"


def _interval(values: Mapping[str, Any]) -> str:
    low, high = values["win_rate_ci95"]
    return f"{verdicts.share(low)} to {verdicts.share(high)}"


def _measured(facts: Facts) -> list[str]:
    if _kind(facts) not in _SCORERS:
        return []
    metrics, lines = facts.artifact.manifest.metrics, []
    if "heldout_accuracy" in metrics:
        ends = _known(metrics, *(f"heldout_accuracy_{end}" for end in ("low", "high")))
        interval = f" (95% interval {' to '.join(map(verdicts.share, ends))})" if ends else ""
        lines.append(f"- Accuracy on held-out pairs: {verdicts.share(metrics['heldout_accuracy'])}{interval}.")
    if "heldout_margin" in metrics:
        lines.append(f"- Mean margin on them: {number(metrics['heldout_margin'], 3)}.")
    card = facts.reward_card
    if card is not None:
        lines += _card_lines(card)
    return lines


def _known(values: Mapping[str, Any], *names: str) -> list[float]:
    """Return the values of `names`; an empty list if one is missing."""
    found = [values[name] for name in names if values.get(name) is not None]
    return found if len(found) == len(names) else []


def _card_lines(card: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the reward-model card adds: calibration, length, whether it survives optimization, flags."""
    if (error := (card.get("calibration") or {}).get("ece")) is not None:
        yield f"- Expected calibration error: {number(error, 3)}."
    length = card.get("length") or {}
    if length.get("score_correlation") is not None:
        controlled = length.get("length_controlled_accuracy")
        more = "" if controlled is None else f"; accuracy at equal length: {verdicts.share(controlled)}"
        yield f"- Correlation of score and length: {number(length['score_correlation'], 3)}{more}."
    if (peak := (card.get("optimization") or {}).get("peak")) is not None:
        yield f"- Best of n: the held-out reward peaks at n = {peak['n']}, {number(peak['kl'], 3)} nats."
    for flag in card.get("flags") or ():
        yield f"- Flag `{flag['name']}`: {flag['message']}"


# ---------------------------------------------------------------- where it comes from


def _data(facts: Facts) -> list[str]:
    rows = [
        f"| {name} | {', '.join(f'`{one}`' for one in named) or 'not known'} | {', '.join(dict.fromkeys(stages))} "
        f"| `{fingerprint[:_SHOWN]}` |"
        for name, named, fingerprint, stages in data_sets(facts)
    ]
    head = ["| data set | source | read by | fingerprint |", "| --- | --- | --- | --- |"]
    return [*head, *rows] if rows else []


def _lineage(facts: Facts) -> list[str]:
    """Draw the artifact and its parents as a list, down to the base model."""
    lines = [*_tree(facts, facts.artifact, "", set())]
    versions = facts.artifact.manifest.versions
    named = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name != "rlhfctl")
    whole = f"Fingerprint: `{facts.artifact.fingerprint}`, a SHA-256 hash over the hashes of the stage's files."
    return [*lines, "", whole, "", f"Made with {named}."]


def _tree(facts: Facts, artifact: Artifact, role: str, shown: set[str], indent: str = "") -> Iterator[str]:
    """Yield the lines of an artifact and of its parents; the parents of one that was `shown` before are left out."""
    manifest = artifact.manifest
    said = f"{role}: " if role else ""
    yield f"{indent}- {said}`{manifest.stage}` `{artifact.fingerprint[:_SHOWN]}`, seed {manifest.seed}"
    if artifact.fingerprint in shown:
        return
    shown.add(artifact.fingerprint)
    if "model" in manifest.inputs and not manifest.parents:
        path = facts.recipe.model.path
        base = "new weights" if path is None else f"`{hub_id(path) or facts.clean(path)}`"
        yield f"{indent}  - base model: {base} `{manifest.inputs['model'][:_SHOWN]}`"
    for name, parent in parents_of(artifact):
        reference = manifest.parents[name]
        if parent is not None:
            yield from _tree(facts, parent, name, shown, f"{indent}  ")
        else:
            yield f"{indent}  - {name}: `{facts.clean(reference.path)}` `{reference.fingerprint[:_SHOWN]}`"


def _settings(facts: Facts) -> list[str]:
    """List the keys that matter, as `--set` takes them, with the values that the stages were made with."""
    model = facts.recipe.model.model_dump(mode="json")
    chosen = [(f"model.{key}", model[key]) for key in _MODEL_SETTINGS if model.get(key) is not None]
    for artifact in reversed(facts.ancestors):
        section = artifact.manifest.section
        kept = {key: section[key] for key in _SETTINGS.get(artifact.stage.name, ()) if section.get(key) is not None}
        chosen += flat(kept, f"{artifact.manifest.stage}.")
    lines = [facts.clean(f"{key}={setting(value)}") for key, value in chosen]
    return ["```text", *lines, "```"] if lines else []


# ---------------------------------------------------------------- what to be careful about


def _limits(facts: Facts) -> list[str]:
    said = [*_limits_of_verdict(facts)] if _kind(facts) in _POLICIES else []
    if _kind(facts) in _SCORERS:
        said.append("Scores compare responses to one prompt; they are no measure of quality across prompts.")
    if facts.seeds is None:
        said.append(f"One run with one seed ({facts.artifact.manifest.seed}): another seed may come out differently.")
    said.append("No license is stated here: add `license:` to the metadata, and respect those of base model and data.")
    notes = [(one.manifest.stage, note) for one in facts.ancestors for note in one.manifest.notes]
    notes += [("compare", note) for note in facts.verdict_notes]
    said += [f"{stage}: {facts.clean(note)}" for stage, note in dict.fromkeys(notes)]
    return [f"- {sentence}" for sentence in said]


def _limits_of_verdict(facts: Facts) -> Iterator[str]:
    report = facts.verdict
    if report is None:
        return
    if not report.get("independent", True):
        judge = report["primary_judge"]
        yield f"The primary judge, `{judge}`, is what PPO was trained against: it is no independent evidence."
    if not report.get("controls"):
        yield "No controls were run: a lower temperature alone may explain a gain."
    sampled = "" if report.get("temperature") is None else f", sampled at temperature {report['temperature']:g}"
    yield f"The verdict rests on {report['prompts']} test prompts{sampled}. Other prompts were not tried."
    yield "Safety, truthfulness and bias were not measured."


def _about_probes(facts: Facts) -> list[str]:
    if facts.stage == "critic":
        return []
    what = "scores" if _kind(facts) in _SCORERS else "log-probabilities"
    return [
        f"`probes.json` holds a few rows of the data as token ids, with the {what} that the model gave for them when "
        "it was saved. Remove it before you publish if your data is private.",
    ]

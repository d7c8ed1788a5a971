"""Define all metrics in one table: name, unit, meaning, and the views that show each.

The screen, the plain log, `show`, `runs`, the alarms, TRL's callback and docs/metrics.md all read this one table. A new
metric is one row here. Standard library only; pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

UP, DOWN, NEITHER = 1, -1, 0
"""Which direction of a metric is better."""

View = Literal["screen", "log", "show"]
"""Where a metric can be shown: on the screen, in a line of the plain log, in the tables of `show` and `runs`."""

STEP_NAMES = {"ppo": "update"}
"""What one step of a stage is called, where the stage's kind fixes it."""


@dataclass(frozen=True)
class Metric:
    """One metric of one kind of stage.

    `screen`, `log` and `show` are ranks: 1 comes first, 0 means not shown there. `label` and `hint` are the short name
    and the few words under it on the screen. A `finite` metric is a number as long as training works; others (such as
    the variance of one value) may be NaN.
    """

    name: str
    unit: str
    meaning: str
    better: int = NEITHER
    label: str = ""  # empty: the name
    hint: str = ""
    log_label: str = ""  # empty: the name
    screen: int = 0
    log: int = 0
    show: int = 0
    finite: bool = False
    trl: str = ""  # its name in TRL's PPOTrainer, if that differs


_OUTCOMES = "With `reward.unit_tests`: share of the batch's programs with this outcome."

# fmt: off
METRICS: dict[str, tuple[Metric, ...]] = {
    "base": (
        Metric("parameters", "parameters", "Number of parameters of the model.", show=1),
    ),
    "sft": (
        Metric("loss", "nats per token", "Mean of -log p over the tokens that are learned.", DOWN, "loss",
               "how surprised the model is", screen=1, log=1, show=1, finite=True),
        Metric("eval_loss", "nats per token", "`loss` on the held-out rows (`data.demonstrations.heldout`).", DOWN,
               "eval loss", "the same on rows held aside", screen=2, log=5, finite=True),
        Metric("mean_token_accuracy", "share", "Share of these tokens that the model would have picked itself.", UP,
               "token accuracy", "share of tokens guessed right", screen=3, log=2, show=2),
        Metric("entropy", "nats per token", "How spread out the model's predictions are."),
        Metric("num_tokens", "tokens", "Tokens read so far."),
        Metric("grad_norm", "", "Length of the gradient before clipping.", NEITHER, "gradient norm",
               "size of a step before clipping", screen=4, log=4, finite=True),
        Metric("learning_rate", "", "Learning rate of this step; plain lines call it `lr`.", NEITHER, "learning rate",
               log_label="lr", screen=5, log=3),
        Metric("epoch", "epochs", "Passes over the demonstrations so far."),
        Metric("steps", "optimizer steps", "Steps in all (in the manifest).", show=3),
        Metric("reload_gap", "nats per token",
               "Largest difference between the trained model and the one read back from disk."),
        Metric("eval_score", "score", "With `sft.choose`: mean score of a candidate's samples to the eval prompts "
               "(with `heldout_loss` minus `eval_loss`).", UP, "eval score", "what sft.choose goes by", screen=6,
               log=6),
        Metric("eval_score_se", "score", "Standard error of `eval_score`, over prompts or held-out rows."),
        Metric("eval_length", "tokens", "Mean length of these samples."),
        Metric("eval_eos_rate", "share", "Share of these samples that end by themselves."),
        Metric("chosen_step", "optimizer step", "The step whose weights were handed over (in the manifest).", show=4),
        Metric("chosen_score", "score", "`eval_score` of these weights (in the manifest).", UP, show=5),
        Metric("last_score", "score", "`eval_score` of the last weights (in the manifest).", UP),
    ),
    "sample": (
        Metric("items", "questions", "Questions of the labelling set.", NEITHER, "questions", "prompts with responses",
               screen=1, show=1),
        Metric("responses", "responses", "Responses of all questions together.", NEITHER, "responses",
               "to compare or to rank", screen=2, show=2),
        Metric("disagreement", "variance", "With `sample.candidates`: variance over the reward model's members of the "
               "predicted preference, mean over the questions asked; between 0 and 0.25."),
    ),
    "label": (
        Metric("answers", "answers", "Answers of this round: labels and \"all bad\".", NEITHER, "answers",
               "of this round", screen=1, show=1),
        Metric("kept_answers", "answers", "Answers of earlier rounds that are kept.", NEITHER, "kept answers",
               "of earlier rounds", screen=2, show=2),
        Metric("tied_answers", "answers", "Answers among them that say of no response that it is better.", NEITHER,
               "ties", "no response is better", screen=3, show=3),
    ),
    "reward": (
        Metric("loss", "nats per pair", "Mean of -log sigmoid(chosen - rejected); a coin has 0.69.", DOWN, "loss",
               "0.69 is a coin's", screen=1, log=1, finite=True),
        Metric("accuracy", "share", "Share of the step's pairs where the chosen response has the higher score.", UP,
               "accuracy", "share of pairs ranked as people did", screen=2, log=2),
        Metric("margin", "score", "Score of the chosen response less the rejected one, on average.", UP, "margin",
               "score of chosen less rejected", screen=5, log=3),
        Metric("eval_loss", "nats per pair", "`loss` on pairs held aside, where `reward.trainer` has an evaluation.",
               DOWN, finite=True),
        Metric("eval_accuracy", "share", "`accuracy` on these pairs.", UP, "eval accuracy",
               "the same on pairs held aside", screen=3, log=4),
        Metric("min_reward", "score", "Lowest, mean and highest score of the step's responses."),
        Metric("mean_reward", "score", "Lowest, mean and highest score of the step's responses."),
        Metric("max_reward", "score", "Lowest, mean and highest score of the step's responses."),
        Metric("grad_norm", "", "Length of the gradient before clipping.", NEITHER, "gradient norm",
               "size of a step before clipping", screen=6, finite=True),
        Metric("learning_rate", "", "Learning rate of this step; plain lines call it `lr`.", NEITHER, "learning rate",
               log_label="lr", screen=7),
        Metric("num_tokens", "tokens", "Tokens read so far."),
        Metric("epoch", "epochs", "Passes over the pairs so far."),
        Metric("heldout_accuracy", "share",
               "`accuracy` on the pairs held out by prompt, after training; this one is to be trusted.", UP,
               "held-out accuracy", "on pairs of unseen prompts", screen=4, show=1),
        Metric("heldout_accuracy_low", "share", "95% interval of `heldout_accuracy` (Wilson).", show=2),
        Metric("heldout_accuracy_high", "share", "95% interval of `heldout_accuracy` (Wilson).", show=3),
        Metric("heldout_margin", "score", "`margin` on these pairs."),
        Metric("heldout_accuracy/member-NUMBER", "share", "With `reward.members` above 1: `heldout_accuracy` of each "
               "member; `heldout_accuracy` and its interval are then those of the mean of their scores."),
        Metric("reward_disagreement", "score", "With `reward.members` above 1: standard deviation over members of a "
               "held-out response's score, on average.", show=5),
        Metric("members", "reward models", "Reward models that were trained, where they are several."),
        Metric("score_mean", "score", "Mean and standard deviation of the held-out responses' scores."),
        Metric("score_std", "score", "Mean and standard deviation of the held-out responses' scores."),
        Metric("steps", "optimizer steps", "Steps in all (in the manifest).", show=4),
        Metric("reload_gap", "score",
               "Largest difference between the trained model's scores and those of the one read back from disk."),
    ),
    "card": (
        Metric("accuracy", "share", "Share of held-out pairs that the reward ranks as people did, by prompt; ties "
               "count half.", UP, "accuracy", "pairs ranked as people did", screen=1, log=1, show=1),
        Metric("accuracy_low", "share", "95% interval of `accuracy`.", log=2, show=2),
        Metric("accuracy_high", "share", "95% interval of `accuracy`.", log=3, show=3),
        Metric("length_controlled_accuracy", "share", "`accuracy` if the chosen response were the longer one as often "
               "as the shorter one; length alone gets 0.5.", UP, "length-controlled", "accuracy without length",
               screen=2, log=4, show=4),
        Metric("score_length_correlation", "", "Spearman's correlation of score and length over the pairs' responses.",
               NEITHER, "score and length", "rank correlation", screen=4),
        Metric("ece", "share", "Expected calibration error of sigmoid(margin); not for functions.", DOWN,
               "calibration error", "how wrong its confidence is", screen=3, log=5, show=5),
        Metric("proxy_gain", "standard deviations", "What choosing the best of `samples` raises the reward's own score "
               "by; the unit is that of base*'s samples to one prompt."),
        Metric("heldout_gain", "standard deviations", "The same in the held-out reward model's score.", UP,
               "held-out gain", "at the best of n, in deviations", screen=5),
        Metric("gold_gain", "standard deviations", "The same in the built-in task's true preference."),
        Metric("peak_kl", "nats per response", "KL at which the held-out reward model's score is highest.", NEITHER,
               "KL at the peak", "where the held-out score peaks", screen=6, show=6),
        Metric("flags", "flags", "Number of the card's flags.", DOWN, "flags", "what the card warns of", screen=7,
               log=6, show=7),
    ),
    "dpo": (
        Metric("loss", "nats", "-log sigmoid of the margin, on average over the batch's pairs.", DOWN, "loss",
               "of the pairs of the batch", screen=1, log=1, show=4, finite=True),
        Metric("rewards/accuracies", "share", "Share of the batch's pairs whose chosen response has the higher "
               "implicit reward, `beta` (log pi - log ref).", UP, "accuracy", "pairs ranked as people did", screen=2,
               log=2),
        Metric("rewards/margins", "score", "Implicit reward of the chosen response less that of the rejected one.", UP,
               "margin", "chosen less rejected", screen=3, log=3),
        Metric("rewards/chosen", "score", "Implicit reward of the chosen responses. Below 0 the policy gives even them "
               "less probability than the reference did.", NEITHER, "chosen", "implicit reward", screen=4, log=4),
        Metric("rewards/rejected", "score", "Implicit reward of the rejected responses.", NEITHER, "rejected",
               "implicit reward", screen=5, log=5),
        Metric("logps/chosen", "nats per response", "Log-probability of the chosen responses under the policy."),
        Metric("logps/rejected", "nats per response", "Log-probability of the rejected responses under the policy."),
        Metric("logits/chosen", "", "Mean logit at the chosen responses' tokens."),
        Metric("logits/rejected", "", "Mean logit at the rejected responses' tokens."),
        Metric("mean_token_accuracy", "share", "Share of the chosen responses' tokens that are the likeliest here."),
        Metric("entropy", "nats per token", "Mean entropy of the policy at these tokens."),
        Metric("grad_norm", "", "Length of the gradient before clipping.", finite=True),
        Metric("learning_rate", "", "Learning rate of this step; plain lines call it `lr`.", log_label="lr"),
        Metric("epoch", "epochs", "Passes over the pairs so far."),
        Metric("num_tokens", "tokens", "Tokens seen so far."),
        Metric("heldout_accuracy", "share", "`rewards/accuracies` on the held-out pairs, after training.", UP,
               "held-out accuracy", "after training", show=1),
        Metric("heldout_accuracy_low", "share", "95% interval of `heldout_accuracy` (Wilson)."),
        Metric("heldout_accuracy_high", "share", "95% interval of `heldout_accuracy` (Wilson)."),
        Metric("heldout_margin", "score", "`rewards/margins` on the held-out pairs, after training.", show=2),
        Metric("steps", "optimizer steps", "Steps in all (in the manifest).", show=3),
    ),
    "ppo": (
        Metric("score", "score", "Mean score of the batch after `missing_eos_penalty` and `missing_eos_score`.", UP,
               "score", "what the reward gives, on average", screen=1, log=1, show=1, finite=True,
               trl="objective/scores"),
        Metric("raw_score", "score", "What the reward itself gave: mean and standard deviation."),
        Metric("raw_score_std", "score", "What the reward itself gave: mean and standard deviation."),
        Metric("reward/NAME", "score", "Mean of each part of a weighted reward."),
        Metric("logged/NAME", "any", "Mean of what reward functions log as NAME (log_metric)."),
        Metric("reward_disagreement", "score", "With `reward.members` above 1: standard deviation over members of a "
               "response's score, on average over the batch."),
        Metric("outcome/compile_error", "share", _OUTCOMES),
        Metric("outcome/runtime_error", "share", _OUTCOMES),
        Metric("outcome/failed", "share", _OUTCOMES),
        Metric("outcome/passed", "share", _OUTCOMES, UP, "programs that pass", "all their tests", screen=15, log=11,
               show=8),
        Metric("greedy_score", "score", "With `ppo.outcome_critic`: mean score of the policy's greedy programs, the "
               "baseline."),
        Metric("belief", "share", "With `ppo.outcome_critic`: the probability that it gives, after a token, to the "
               "outcome that the program then had, on average over tokens."),
        Metric("outcome_critic_accuracy", "share", "With `ppo.outcome_critic`: share of held-out programs whose "
               "outcome it predicts (in the manifest)."),
        Metric("outcome_critic_majority", "share", "Share of the most frequent outcome among them, which a guess "
               "reaches (in the manifest)."),
        Metric("outcome_critic_loss", "nats per program", "Its -log p of their outcomes (in the manifest)."),
        Metric("baseline", "score", "With `algorithm: reinforce`: mean `rlhf_reward` of all earlier updates, above "
               "which a response is good."),
        Metric("flat_groups", "share", "With `algorithm: rloo` or `grpo`: share of prompts whose responses all have "
               "the same reward, so that they teach nothing."),
        Metric("kl", "nats per response",
               "Sum over the response's tokens of log p(policy) - log p(reference), on average.", NEITHER,
               "KL", "nats per response", screen=2, log=2, show=2, finite=True, trl="objective/kl"),
        Metric("kl_coef", "", "With `ppo.kl_target`: coefficient of the KL penalty in this update.", NEITHER,
               "KL coefficient", "it moves the KL to its target", screen=17),
        Metric("non_score_reward", "score", "-`kl_coef` x `kl`.", trl="objective/non_score_reward"),
        Metric("rlhf_reward", "score", "`score` + `non_score_reward`: what PPO raises.", UP, log=6,
               trl="objective/rlhf_reward"),
        Metric("length", "tokens", "Tokens of a response, its end token included.", NEITHER, "length",
               "tokens per response", screen=4, log=4, show=3),
        Metric("eos_rate", "share", "Share of the responses that end by themselves.", UP, "responses that end",
               "share that is not cut off", screen=5, log=5, show=4),
        Metric("repetition", "share", "Share of a response's pairs of neighbouring tokens that it has said before, on "
               "average.", DOWN),
        Metric("policy_loss", "", "The algorithm's objective with its sign turned, over the minibatches.", DOWN, log=7,
               finite=True, trl="loss/policy_avg"),
        Metric("ptx_loss", "nats per token", "With `ppo.ptx`: mean of -log p over the learned tokens of its rows, "
               "without the coefficient.", DOWN, "ptx loss", "surprise at the other text", screen=18,
               finite=True),
        Metric("value_loss", "score²", "Half the squared error of the critic, clipped by `cliprange_value`.", DOWN,
               "critic's loss", screen=12, log=8, finite=True, trl="loss/value_avg"),
        Metric("entropy", "nats per response", "-log p of the sampled response, on average.", finite=True,
               trl="objective/entropy"),
        Metric("token_entropy", "nats per token",
               "Mean of -log p over the sampled tokens; the screen and plain lines show this one. TRL's engine gives "
               "the entropy of whole distributions instead.", NEITHER,
               "entropy", "how freely it picks tokens, in nats", screen=6, log=3, trl="policy/entropy_avg"),
        Metric("policy_entropy", "nats per token",
               "With `entropy_coef` above 0: entropy of the whole distribution at each token, over the PPO epochs."),
        Metric("approx_kl", "nats per token",
               "Half the squared log-ratio between the policy that sampled and the policy now.", log=9,
               trl="policy/approxkl_avg"),
        Metric("clip_fraction", "share", "Share of the tokens at which PPO's clip holds the policy back.", NEITHER,
               "clipped", "share of tokens that PPO holds back", screen=8, log=10, trl="policy/clipfrac_avg"),
        Metric("value_clip_fraction", "share", "Share of the tokens at which `cliprange_value` holds the critic back.",
               trl="val/clipfrac_avg"),
        Metric("ratio", "", "Mean of p(now) / p(when sampled); near 1.", trl="val/ratio"),
        Metric("ratio_variance", "", "Variance of `ratio` over the minibatches (`engine: trl` alone).",
               trl="val/ratio_var"),
        Metric("value_mean", "score", "What the critic expects, on average."),
        Metric("explained_variance", "",
               "1: the critic foresees all returns; 0: no better than their mean; below 0: it misleads.", UP,
               "critic explains", "1 foresees all, below 0 misleads", screen=7),
        Metric("grad_norm", "", "Length of the gradient before clipping.", finite=True),
        Metric("learning_rate", "", "Learning rate of this update; plain lines call it `lr`.", log_label="lr",
               trl="lr"),
        Metric("trust_kl", "nats per token",
               "With algorithm trpo: exact KL of the update's step, from the policy that sampled; at most `max_kl`."),
        Metric("surrogate_gain", "", "With algorithm trpo: how much the step improves what it maximizes.", UP),
        Metric("line_search_steps", "steps", "With algorithm trpo: lengths of the step that were tried."),
        Metric("step_fraction", "", "With algorithm trpo: accepted part of the whole step; 0 if it was refused."),
        Metric("step_refused", "share",
               "With algorithm trpo: 1 if no length of the step was accepted, so that the policy stayed as it was."),
        Metric("mask_kept", "share",
               "With algorithm nlpo: the policy's probability of the tokens that the masking policy allows."),
        Metric("mask_size", "tokens", "With algorithm nlpo: number of allowed tokens, on average."),
        Metric("critic_learning_rate", "", "The critic's, with `critic_learning_rate` or `critic_warmup_steps`."),
        Metric("optimizer_steps", "steps", "Optimizer steps taken in this update; `target_kl` may end it early."),
        Metric("eos_tokens", "tokens", "End tokens in the batch (`engine: trl` alone).", trl="val/num_eos_tokens"),
        Metric("rollout_gap", "nats per token",
               "Largest difference between the log-probabilities of sampling and of learning."),
        Metric("importance", "", "With `importance_cap`: mean weight of a token's policy loss, its probability in "
               "learning over that in sampling."),
        Metric("importance_capped", "share", "With `importance_cap`: share of tokens whose weight is the cap."),
        Metric("rollout_s", "seconds", "Time spent on sampling, scoring, learning."),
        Metric("score_s", "seconds", "Time spent on sampling, scoring, learning."),
        Metric("update_s", "seconds", "Time spent on sampling, scoring, learning."),
        Metric("episodes_per_s", "episodes per second", "Speed of the whole update.", UP, "speed",
               "episodes per second", screen=13, trl="eps"),
        Metric("eval_score", "score", "`score` on the prompts held aside (`data.prompts.eval`), with samples of their "
               "own.", UP, "eval score", "the score on prompts held aside", screen=3, show=5),
        Metric("eval_score_se", "score", "Standard error of `eval_score` over the prompts."),
        Metric("eval_heldout", "score", "With `reward.heldout`: mean score that the held-out reward model gives these "
               "samples; `use: best` picks by it.", UP, "eval held-out", "reward that PPO does not train on", screen=10,
               show=7),
        Metric("eval_heldout_se", "score", "Standard error of `eval_heldout` over the prompts."),
        Metric("eval_kl", "nats per response", "`kl` on these samples.", NEITHER, "eval KL",
               "KL on prompts held aside", screen=9),
        Metric("eval_length", "tokens", "`length` of these samples."),
        Metric("eval_eos_rate", "share", "`eos_rate` of these samples."),
        Metric("eval_objective", "score", "`eval_score` - the recipe's `kl_coef` x `eval_kl`; without `eval_heldout`, "
               "`use: best` picks by it."),
        Metric("eval_gold", "", "The built-in task's true preference on these samples.", UP, "eval gold",
               "the task's true preference", screen=11),
        Metric("eval_outcome/passed", "share", "`outcome/passed` on these samples; the other outcomes likewise.", UP,
               "eval pass rate", "programs that pass all tests", screen=16),
        Metric("eval_reward_disagreement", "score", "`reward_disagreement` on these samples.", NEITHER,
               "eval disagreement", "how far the reward's members differ", screen=14),
        Metric("updates", "updates", "Updates in all (in the manifest).", show=6),
        Metric("best_update", "update", "The update whose policy `use: best` chose (in the manifest)."),
    ),
    "compare": (
        Metric("win_rate", "share", "Share of the test prompts where the primary judge prefers the policy, at the main "
               "temperature; ties count half.", UP, "win rate", "share of prompts won, ties half", screen=1, show=1),
        Metric("control_win_rate", "share", "The same against the strongest fair control: the verdict's basis.", UP,
               "least fair control", "against the strongest fair control", screen=2),
        Metric("delta", "score", "The primary judge's score of the policy less that of the reference.", UP,
               "score gained", "policy less reference", screen=3, show=2),
        Metric("kl", "nats per response", "As in ppo, on the test prompts.", NEITHER, "KL",
               "nats per response", screen=4, show=3, finite=True),
        Metric("length", "tokens", "Tokens of the policy's responses.", NEITHER, "length", "tokens per response",
               screen=5, show=4),
    ),
    "summary": (
        Metric("win_rate", "share", "`win_rate` of compare over all seeds and the same prompts.", UP, "win rate",
               "over seeds and prompts, ties half", screen=1, show=1),
        Metric("control_win_rate", "share", "`control_win_rate` over all seeds.", UP, "least fair control",
               "against the strongest fair control", screen=2),
        Metric("delta", "score", "`delta` over all seeds.", UP, "score gained", "policy less reference", screen=3,
               show=2),
        Metric("kl", "nats per response", "`kl` of compare, mean over seeds.", NEITHER, "KL",
               "nats per response", screen=4, show=3, finite=True),
    ),
}
# fmt: on
"""The metrics of each kind of stage, in the order of docs/metrics.md."""

SAME_METRICS = {"heldout": "reward"}
"""Stages that do what a stage of another kind does, and report its metrics."""


def kind(stage: str) -> str:
    """Return the kind of a stage, which decides its metrics: `ppo` for `ppo` and for `round-2/ppo` alike."""
    return stage.rpartition("/")[2]


def metrics_of(stage: str) -> tuple[Metric, ...]:
    """Return the metrics that a stage reports; none for a stage without rows in the table."""
    return METRICS.get(SAME_METRICS.get(kind(stage), kind(stage)), ())


def ranked(stage: str, view: View) -> list[Metric]:
    """List the metrics of a stage that a view shows, the most important first."""
    return sorted((metric for metric in metrics_of(stage) if getattr(metric, view)), key=lambda m: getattr(m, view))


def step_name(stage: str, reported: str = "step") -> str:
    """Return the name of one step of a stage: fixed by its kind (`update` in PPO), else as the stage reports it."""
    return STEP_NAMES.get(kind(stage), reported)


def must_be_finite() -> list[str]:
    """Return the names of metrics that are finite as long as training works, in any stage."""
    return list(dict.fromkeys(metric.name for metric in _all() if metric.finite))


def log_labels() -> dict[str, str]:
    """Return the metrics whose name in the plain log is shorter than their own."""
    return {metric.name: metric.log_label for metric in _all() if metric.log_label}


def trl_names(stage: str) -> dict[str, str]:
    """Map TRL's names of a stage's metrics to the names of this table."""
    return {metric.trl: metric.name for metric in metrics_of(stage) if metric.trl}


def _all() -> Iterable[Metric]:
    return (metric for metrics in METRICS.values() for metric in metrics)

"""Say what usually causes an alarm. The words are those of docs/alarms.md, which a test compares. Pure."""

from __future__ import annotations

import re

CAUSES: dict[str, str] = {
    "not a number any more": "a learning rate that is too high; float16; a reward function that returns NaN or "
    "infinity for some text",
    "nats per response: the policy is far from the reference": "the reward model likes something cheap (a phrase, a "
    "length, a list) and the policy has found it; a low kl_coef; more episodes than the reward model is good for",
    "the policy exploits its reward": "more episodes than the reward model is good for; a low kl_coef; a reward model "
    "of few pairs, or of pairs that are unlike what the policy writes now",
    "the policy has hardly moved": "a learning rate that is too low; too few episodes; a kl_coef so high that no "
    "change pays; a reward that is the same for every response",
    "KL more than doubled in": "a learning rate that is too high; a low kl_coef; many PPO epochs on one batch",
    "but on eval prompts it fell from": "what is learned holds for the training prompts only: too many episodes, too "
    "few prompts",
    "of the responses end by themselves": "response_length is too short for an answer; sft did not learn to end",
    "responses shrank from": "saying little scores well: the chosen answers are the shorter ones, or the penalty for "
    "a missing end is high",
    "the policy hardly varies its words any more": "there is one right answer; or a low kl_coef, a high learning rate, "
    "too many episodes",
    "the responses repeat themselves": "a reward that pays for a word or a phrase each time; a reward model that has "
    "not seen such text; a low kl_coef; too many episodes",
    "of the tokens are held back by PPO's clip": "a learning rate that is too high; many PPO epochs or minibatches on "
    "one batch",
    "updates the critic has been worse than guessing one number": "small batches; few PPO epochs; a critic that "
    "begins badly; a reward that gives another score to the same text",
}
"""The words by which docs/alarms.md knows an alarm, and its usual causes, the likeliest first."""


def key_of(sentence: str) -> str:
    """Return what stays the same in an alarm whose numbers change from step to step."""
    known = next((words for words in CAUSES if words in sentence), None)
    return known or re.sub(r"[-+]?[0-9][0-9.,e%+-]*", "#", sentence)


def causes_of(sentence: str) -> str:
    """Return an alarm's usual causes; empty for one that this table does not know."""
    return next((causes for words, causes in CAUSES.items() if words in sentence), "")

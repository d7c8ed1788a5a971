"""Rewards of the exercises on words, with the signature of any reward function.

A completion is a text, or a list of messages where the prompt is a conversation.
"""

import re

KIND = (" lovely", " good")


def text_of(completion):
    """Return the text of a completion."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def kindness(prompts, completions, **columns):
    """Give a point for each kind word of an answer."""
    return [float(sum(text_of(one).count(word) for word in KIND)) for one in completions]


def loveliness(prompts, completions, **columns):
    """Give the share of an answer's words that are "lovely", 0 to 1."""
    return [text_of(one).count(" lovely") / max(1, len(text_of(one).split())) for one in completions]


def detail(prompts, completions, **columns):
    """Give the share of kind sentences, and two fifths of a point for each word: a detailed answer tells more."""
    scores = []
    for text in map(text_of, completions):
        kind = len(re.findall(r"was (lovely|good)\.", text)) / max(1, text.count("."))
        scores.append(kind + 0.4 * len(text.split()))
    return scores


def to_the_point(prompts, completions, **columns):
    """Give 1 for an answer in whole sentences that are all about the thing asked for, else 0."""
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        text, about = text_of(completion), text_of(prompt).split()[1]
        whole = re.fullmatch(r"( ?the \w+ was (lovely|good|fine|cold|bad)\.)+", text)
        scores.append(float(bool(whole) and set(re.findall(r"the (\w+)", text)) == {about}))
    return scores

"""Report the prompts that PPO found (`prompts.json`): how well the frozen model classifies with each of them.

A part of the compare stage. Prompts are chosen by their reward on the examples that training and evaluation have seen
(train and eval), and their accuracy is measured on the test examples, which nothing has chosen on. Beside them stand
the empty prompt, the reference's prompts, and with `compare.prompt_search` what a search without learning finds: the
best of many random prompts, and a prompt that is built word by word.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from rlhfctl.data.labelled import few_shot
from rlhfctl.events import Work
from rlhfctl.recipe.sections.prompted_classifier import PromptSearch
from rlhfctl.rewards.prompted_classifier import Example, PromptScores, prompt_of
from rlhfctl.stages.answers import GREEDY, Answers, Drawn
from rlhfctl.stages.context import Context

FILE = "prompts.json"
CHOSEN_AMONG = 100  # most prompts of a model that are tried, the most frequent ones
_NO_TEXT = "\ufffd"  # what decoding writes for a part of a character
SHOWN = 20  # most prompts of a model in the report, the best ones


def examples_of(scores: PromptScores, ctx: Context) -> tuple[list[Example], list[Example]]:
    """Return the examples to choose prompts on (the few of training, and eval), and those of the test."""
    split = ctx.data["prompts"].split
    train = [split.train[place] for place in few_shot(split.train, scores.section)]
    seen = [scores.example_of(row) for part in (train, split.eval) for row in part]
    return list(dict.fromkeys(seen)), list(dict.fromkeys(map(scores.example_of, split.test)))


def report(scores: PromptScores, responses: Answers, search: PromptSearch | None, ctx: Context) -> dict[str, Any]:
    """Measure the prompts of both models, the empty prompt, and those that a search finds; return prompts.json."""
    chosen_on, test = examples_of(scores, ctx)
    measure = partial(_measured, scores, chosen_on=chosen_on, test=test)
    found: dict[str, Any] = {
        "template": scores.section.template,
        "verbalizers": dict(scores.section.verbalizers),
        "examples": {"chosen_on": len(chosen_on), "test": len(test)},
        "empty": measure([""])[0],
    }
    for side, drawn in (("policy", responses.policy), ("reference", responses.reference)):
        counts = _counted(drawn[responses.main])
        greedy = {prompt_of(one) for row in drawn[GREEDY].episodes for one in row} if GREEDY in drawn else set()
        tried = [prompt for prompt, _ in counts.most_common(CHOSEN_AMONG)]
        rows = measure(_best(scores, [*tried, *sorted(greedy.difference(tried))], chosen_on)[:SHOWN])
        total = sum(counts.values())
        found[side] = [
            row | {"share": counts[row["prompt"]] / total, "greedy": row["prompt"] in greedy} for row in rows
        ]
        found[f"{side}_tried"] = len({*tried, *greedy})
    if search is not None and responses.tokenizer is not None:
        words = _words_of(responses.reference[responses.main], responses.tokenizer)
        length = max(len(one.response_ids) for row in responses.policy[responses.main].episodes for one in row)
        found["search"] = {"words": len(words)}
        if search.random:
            tried = _random_prompts(words, length, search.random, ctx.recipe.seed)
            found["search"]["random"] = measure(_best(scores, tried, chosen_on)[:1])[0] | {"tried": len(tried)}
        if search.greedy:
            prompt, count = _built(scores, words, length, chosen_on)
            found["search"]["greedy"] = measure([prompt])[0] | {"tried": count}
    return found


def sentence(found: dict[str, Any]) -> str:
    """Say in one sentence what the best prompt is and how it compares with the empty one."""
    best, count = found["policy"][0], found["examples"]["test"]
    return (
        f"best prompt on the examples seen: {best['prompt']!r}, accuracy {best['accuracy']:.2f} on {count} test "
        f"examples; the empty prompt's is {found['empty']['accuracy']:.2f}"
    )


def _counted(drawn: Drawn) -> Counter[str]:
    return Counter(prompt_of(episode) for samples in drawn.episodes for episode in samples)


def _measured(
    scores: PromptScores, prompts: Sequence[str], *, chosen_on: Sequence[Example], test: Sequence[Example]
) -> list[dict[str, Any]]:
    """Measure each prompt on both sets of examples: accuracy, and mean reward without z-score."""
    scores.gaps([(prompt, example) for prompt in prompts for example in (*chosen_on, *test)])
    rows = []
    for prompt in prompts:
        row: dict[str, Any] = {"prompt": prompt}
        for prefix, examples in (("chosen_on_", chosen_on), ("", test)):
            rewards = scores.rewards([(prompt, example) for example in examples])
            row[f"{prefix}accuracy"] = statistics.fmean(reward > 0 for reward in rewards)
            row[f"{prefix}reward"] = statistics.fmean(rewards)
        rows.append(row)
    return rows


def _best(scores: PromptScores, prompts: Sequence[str], examples: Sequence[Example]) -> list[str]:
    """Sort prompts by their mean reward on the examples, the best first; equal ones stay in order."""
    scores.gaps([(prompt, example) for prompt in prompts for example in examples])
    means = {one: statistics.fmean(scores.rewards([(one, example) for example in examples])) for one in prompts}
    return sorted(means, key=lambda one: -means[one])


def _words_of(drawn: Drawn, tokenizer: Any) -> list[str]:
    """Return the different tokens of the reference's responses as text, sorted: what a search may use.

    Tokens that are a part of a character alone are left out: they are no text.
    """
    ids = {one for samples in drawn.episodes for episode in samples for one in episode.response_ids}
    texts = {tokenizer.decode([one], skip_special_tokens=True) for one in ids}
    return sorted(text for text in texts if text.strip() and _NO_TEXT not in text)


def _random_prompts(words: Sequence[str], length: int, count: int, seed: int) -> list[str]:
    draw = random.Random(f"prompts-{seed}")
    prompts = ("".join(draw.choices(words, k=length)).strip() for _ in range(count))
    return list(dict.fromkeys(prompts))


def _built(scores: PromptScores, words: Iterable[str], length: int, examples: Sequence[Example]) -> tuple[str, int]:
    """Build a prompt word by word: at each place the one with the highest reward; return it and how many were tried.

    It ends early where no word raises the reward.
    """
    words, prompt, tried = list(words), "", 0
    best = statistics.fmean(scores.rewards([(prompt, example) for example in examples]))
    for _ in Work("trying words", length, "place").through(range(length)):
        longer = [(prompt + word).strip() for word in words]
        first = _best(scores, longer, examples)[0]
        tried += len(longer)
        reward = statistics.fmean(scores.rewards([(first, example) for example in examples]))
        if reward <= best:
            break
        prompt, best = first, reward
    return prompt, tried

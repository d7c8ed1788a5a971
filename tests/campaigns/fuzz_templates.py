"""Put conversations through chat templates, real and spoilt: no traceback, and nothing is dropped in silence.

    python tests/campaigns/fuzz_templates.py [--cases 100] [--seed 0] [--only NUMBER]

A case is one template (of those that TRL carries for real models, of ours, of older styles), one mutation of its text,
one tokenizer (with the template's marks as tokens, or without) and rows of conversations for all three data sets. They
are prepared and checked as a run does it, and nothing is trained. Either one message says what is wrong and where, or

- each row is kept, or counted in a note; what the template leaves out of a kept row is told, with its role;
- a prompt's ids begin its response's sequence, which ends in one end-of-sequence and begins with one BOS at most;
- rewards read the response's own text: no mark of the template, nothing lost;
- losses on the assistant's turns alone fall on these turns; a prompt that is cut fits its limit;
- the same recipe gives the same ids again, and so does the tokenizer that is saved.

Prints a table, then every fault; exit code 1 if there is one.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase
from trl import chat_template_utils

from rlhfctl.data import preflight, templates
from rlhfctl.data.chat import template_warnings, written_turn_end
from rlhfctl.data.encoding import IGNORED, Encoder
from rlhfctl.data.load import check_all
from rlhfctl.data.types import Rows
from rlhfctl.errors import RlhfctlError
from rlhfctl.models import (
    loading,
    tokenizing,
)
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init, Recipe
from rlhfctl.rewards.episode import make_episode

LIMIT = 60
OLD = {
    "llama2": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}{{ bos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "alternating": "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "alpaca": "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n\n"
    "{% elif m['role'] == 'assistant' %}### Response:\n{{ m['content'] }}{{ eos_token }}\n\n"
    "{% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}",
    "vicuna": "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% elif m['role'] == "
    "'assistant' %}ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "no end": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "users only": "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
    "upper": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "last turn differs": "{% for m in messages %}<|im_start|>{{ m['role'] }}{% if loop.last %} (last){% endif %}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "clock": "{{ strftime_now('%d %b %Y, %H:%M:%S') }}\n" + templates.NAMED["chatml"],
    "think": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
}


@cache
def sources() -> dict[str, str]:
    """Template texts by name: real models', ours, older styles."""
    real = {
        name.removesuffix("_chat_template"): text
        for name, text in vars(chat_template_utils).items()
        if name.endswith("_chat_template") and isinstance(text, str)
    }
    return {**real, **templates.NAMED, **OLD}


# ---------------------------------------------------------------- mutations


def as_it_is(draw: random.Random, text: str) -> str:
    return text


def cut(draw: random.Random, text: str) -> str:
    return text[: draw.randrange(1, len(text))]


def no_generation_prompt(draw: random.Random, text: str) -> str:
    return text.replace("add_generation_prompt", "nothing")


def no_end(draw: random.Random, text: str) -> str:
    for mark in ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "{{ eos_token }}"):
        text = text.replace(mark, "")
    return text


def other_marks(draw: random.Random, text: str) -> str:
    return re.sub(r"im_(start|end)|_id\b|_header", lambda found: found[0][::-1], text)


def a_word_before(draw: random.Random, text: str) -> str:
    return draw.choice(["{{ bos_token }}", "Hello.\n", "\n\n", "{{ messages[0].content }}", "{{ date_string }}"]) + text


def a_word_after(draw: random.Random, text: str) -> str:
    return text + draw.choice(["\n\n", "{{ eos_token }}", "bye", "{{ undefined.name }}", "{{ messages | length }}"])


def refuses(draw: random.Random, text: str) -> str:
    when = draw.choice(["messages | length > 2", "messages[0].role == 'system'", "tools", "true"])
    return "{% if " + when + " %}{{ raise_exception('no, thank you') }}{% endif %}" + text


def content_changed(draw: random.Random, text: str) -> str:
    return re.sub(r"(\w+(?:\.|\[')content(?:'\])?)", r"(\1 | replace('tea', 'coffee'))", text)


def reads_clock(draw: random.Random, text: str) -> str:
    return (
        draw.choice(["{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}", '{%- set now = strftime_now("%j") %}{{ now }}'])
        + text
    )


MUTATIONS: list[Callable[[random.Random, str], str]] = [
    as_it_is, as_it_is, as_it_is, as_it_is, cut, no_generation_prompt, no_end, other_marks, a_word_before, a_word_after,
    refuses, content_changed, reads_clock,
]  # fmt: skip


# ---------------------------------------------------------------- rows and tokenizers

ANSWERS = [
    "tea is fine.",
    "yes, tea\nand soup",
    " tea ",
    "<think>hm</think>tea it is",
    "{{ tea }} {% raw %}",
    "tea </s> 茶",
]
TOOL = {"type": "function", "function": {"name": "brew", "description": "make tea", "parameters": {"type": "object"}}}


def turns(number: int, *, answered: bool, answer: str) -> list[dict[str, Any]]:
    """A conversation: some with a system turn, some with several turns."""
    found = [{"role": "system", "content": "Be brief and kind."}] if number % 3 == 0 else []
    if number % 2:
        found += [{"role": "user", "content": f"hello {number}"}, {"role": "assistant", "content": ANSWERS[number % 6]}]
    found.append({"role": "user", "content": f"is tea number {number} good?"})
    return [*found, {"role": "assistant", "content": answer}] if answered else found


def write_rows(folder: Path) -> None:
    rows = range(8)
    demonstrations: list[dict[str, Any]] = [
        {"messages": turns(n, answered=True, answer=ANSWERS[n % 6])} | ({"tools": [TOOL]} if n == 5 else {})
        for n in rows
    ]
    pairs = [
        {
            "prompt": turns(n, answered=False, answer=""),
            "chosen": [{"role": "assistant", "content": ANSWERS[n % 6]}],
            "rejected": [{"role": "assistant", "content": "no."}],
        }
        for n in rows
    ]
    prompts = [{"prompt": turns(n + 10, answered=False, answer="")} for n in rows]
    for name, found in (("demonstrations", demonstrations), ("preferences", pairs), ("prompts", prompts)):
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def write_tokenizers(folder: Path) -> None:
    """bare/: bytes, with an end and no BOS. rich/: all marks of all templates, and a BOS before every text."""
    init = Init(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=400)
    bare = tokenizing.train_tokenizer(init, ["is tea good? tea is good."])
    bare.save_pretrained(folder / "bare")
    marks = {mark for text in sources().values() for mark in templates.marks_in(text)}
    marks |= {"[INST]", "[/INST]", "<|begin|>"}
    bare.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in sorted(marks)], special_tokens=True)
    bare.bos_token = "<|begin|>"
    bare.save_pretrained(folder / "rich")


def recipe_of(folder: Path, draw: random.Random, kind: str, template: str) -> Recipe:
    (folder / "template.jinja").write_text(template, encoding="utf-8")
    how = {"bad_rows": "drop"}
    recipe = {
        "name": "t",
        "model": {
            "path": kind,
            "chat_template": "template.jinja",
            "template_tokens": draw.choice(["add", "add", "text"]),
            "chat_template_kwargs": draw.choice([{}, {}, {"enable_thinking": False}, {"date_string": "1 May"}]),
        },
        "data": {
            "demonstrations": {"source": "demonstrations.jsonl", **how},
            "preferences": {"source": "preferences.jsonl", "heldout": 0.25, **how},
            "prompts": {"source": "prompts.jsonl", "test": 3, **how},
        },
        "sft": {"trainer": {"assistant_only_loss": draw.random() < 0.5}},
        "reward": {},
        "ppo": {"total_episodes": 4, "per_device_train_batch_size": 4, "num_mini_batches": 1},
        "compare": {"judges": ["reward_model"]},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    return load_recipe(file).recipe


# ---------------------------------------------------------------- one case


def faults_of(number: int, seed: int, folder: Path) -> tuple[str, str, list[str]]:
    """(template, outcome, faults) of one case."""
    draw = random.Random(f"template-{seed}-{number}")
    names = sorted(sources())
    name = names[number % len(names)]
    mutation = as_it_is if number < len(names) else draw.choice(MUTATIONS)
    text = mutation(draw, sources()[name])
    kind = draw.choice(["bare", "rich"])
    label = f"{name} ({mutation.__name__}, {kind})"
    try:
        recipe = recipe_of(folder, draw, kind, text)
        data = check_all(recipe.data, 0)
        prepared = tokenizing.prepare(recipe, data)
        kept = preflight.check(recipe, data, ["sft", "reward", "ppo", "compare"], prepared.tokenizer)
        faults = list(broken(recipe, data, kept, prepared, folder))
    except RlhfctlError as error:
        return label, "refused", [] if "chat template" in str(error) else [f"the message does not say where: {error}"]
    except Exception:  # noqa: BLE001 - whatever it is, it is a fault
        return label, "traceback", [traceback.format_exc()]
    dropped = any("refused by the chat template" in note for rows in kept.values() for note in rows.notes)
    return label, "rows dropped" if dropped else "used", faults


def broken(
    recipe: Recipe, data: dict[str, Rows], kept: dict[str, Rows], prepared: tokenizing.Prepared, folder: Path
) -> Iterator[str]:
    """What is not as the head of this file says."""
    tokenizer, encoder = prepared.tokenizer, Encoder(prepared.tokenizer)
    again = tokenizing.prepare(recipe, data).tokenizer
    tokenizing.save_tokenizer(tokenizer, folder / "saved")
    saved = tokenizing.load_for(recipe.model, str(folder / "saved"))
    masked = recipe.sft is not None and bool(recipe.sft.trainer.get("assistant_only_loss"))
    for name, rows in kept.items():
        notes = " | ".join(rows.notes)
        lost = len(data[name].rows) - len(rows.rows)
        if lost and f"{lost} of {len(data[name].rows)} rows are refused by the chat template" not in notes:
            yield f"{name}: {lost} rows are gone without a note: {notes}"
        for row in rows.rows:
            for problem in [*of_row(name, row, encoder, notes, masked), *of_others(name, row, encoder, again, saved)]:
                yield f"{name}: {problem} in {json.dumps(row, ensure_ascii=False)}"


def of_others(
    name: str, row: dict[str, Any], encoder: Encoder, again: PreTrainedTokenizerBase, saved: PreTrainedTokenizerBase
) -> Iterator[str]:
    messages = row["messages"] if name == "demonstrations" else row["prompt"]
    ids = encoder.prompt(messages, row.get("tools"))
    for what, other in (("prepared again", again), ("saved", saved)):
        if Encoder(other).prompt(messages, row.get("tools")) != ids:
            yield f"the tokenizer {what} gives other ids"


def of_row(name: str, row: dict[str, Any], encoder: Encoder, notes: str, masked: bool) -> Iterator[str]:
    tokenizer, tools = encoder.tokenizer, row.get("tools")
    if name == "demonstrations":
        made = encoder.demonstration(row, assistant_only_loss=masked)
        ids, labels = made["input_ids"], made["labels"]
        if masked:
            learned = tokenizer.decode([label for label in labels if label != IGNORED])
            asked = [turn["content"] for turn in row["messages"] if turn["role"] != "assistant"]
            if any(text in learned for text in asked):
                yield f"a loss is taken on what was asked: {learned!r}"
            if "leaves out or changes the assistant's text" not in notes:
                answers = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
                missing = [text for text in answers if not written(text, learned)]
                if missing:
                    yield f"no loss is taken on {missing}: {learned!r}"
        yield from told(row["messages"], encoder, tools, notes)
        yield from ended(ids, tokenizer)
        return
    prompt_ids = encoder.prompt(row["prompt"], tools)
    shorter = encoder.shortened(row["prompt"], LIMIT, tools)
    if len(prompt_ids) <= LIMIT and shorter != row["prompt"]:
        yield "a prompt that fits is cut"
    if shorter is not None and len(encoder.prompt(shorter, tools)) > LIMIT:
        yield "a prompt that is cut does not fit"
    if name == "prompts":
        yield from told(row["prompt"], encoder, tools, notes)
        return
    mark = written_turn_end(tokenizer)
    for side in ("chosen", "rejected"):
        before, response = encoder.pair(row["prompt"], row[side], tools)
        if before != prompt_ids:
            yield "a response's prompt has other ids than the prompt alone"
        yield from ended([*before, *response], tokenizer)
        yield from told([*row["prompt"], *row[side]], encoder, tools, notes)
        read = make_episode(tokenizer, row, before, response, () if mark is None else (mark,)).completion[0]["content"]
        silent = not any(why in notes for why in ("changes the assistant's text", "is read as a token and not as text"))
        if silent and not written(row[side][0]["content"], read):
            yield f"rewards read {read!r} of a response"
        told_of = any("the policy has to write" in sentence for sentence in template_warnings(tokenizer))
        found = [one for one in templates.marks_in(read) if one not in row[side][0]["content"]]
        if found and not told_of:
            yield f"rewards read the marks {found}: {read!r}"


def written(text: str, within: str) -> bool:
    """Whether `text` is in `within`, white space and what tokenizers hide of special tokens aside."""

    def plain(one: str) -> str:
        return "".join(one.replace("</s>", "").split())

    return plain(text) in plain(within)


def told(messages: list[dict[str, Any]], encoder: Encoder, tools: Any, notes: str) -> Iterator[str]:
    text = encoder.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    for turn in messages:
        if not written(turn["content"], text) and f"the {turn['role']}'s text" not in notes:
            yield f"the {turn['role']}'s turn is lost in silence"


def ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    first = [{"role": "user", "content": "a"}]  # a template that writes two has them
    twice = str(tokenizer.apply_chat_template(first, tokenize=False)).startswith(2 * (tokenizer.bos_token or "-"))
    if ids[-1] != eos or ids[-2:] == [eos, eos]:
        yield f"a sequence ends with {ids[-3:]}, the end is {eos}"
    if bos is not None and bos != eos and ids[:2] == [bos, bos] and not twice:
        yield "a sequence begins with two BOS"


# ---------------------------------------------------------------- all of them


class Result:
    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self.faults: list[str] = []

    def table(self) -> str:
        lines = [
            f"{name:14} " + ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
            for name, found in sorted(self.outcomes.items())
        ]
        cases = sum(sum(found.values()) for found in self.outcomes.values())
        return "\n".join([*lines, f"{cases} cases, {len(self.faults)} faults"])


def fuzz_templates(cases: int, seed: int, only: int | None = None) -> Result:
    """So many cases: each template as it is, then mutations."""
    result = Result()
    with tempfile.TemporaryDirectory(prefix="templates-") as name, loading.silence_libraries():
        folder = Path(name)
        write_rows(folder)
        write_tokenizers(folder)
        for number in range(cases):
            if only in (None, number):
                label, outcome, faults = faults_of(number, seed, folder)
                result.outcomes.setdefault(label.split("(")[1].split(",")[0], Counter())[outcome] += 1
                result.faults += [f"{number} {label}: {fault}" for fault in faults]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case by its number")
    given = parser.parse_args()
    result = fuzz_templates(given.cases, given.seed, given.only)
    print(result.table())
    for fault in result.faults:
        print(f"FAULT {fault}")
    return bool(result.faults)


if __name__ == "__main__":
    sys.exit(main())

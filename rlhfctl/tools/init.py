"""Write a commented recipe from the answers of `rlhfctl init`.

Reads the first rows of each file to guess its columns, and the model's folder to see whether it has a chat template.
Writes one file and never over another. Leaves out the questions (interview.py) and checks of the rows
(`validate --deep`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.dashboard.text import visible
from rlhfctl.data import guess, sources
from rlhfctl.errors import DataError
from rlhfctl.tools.interview import NEW, Answers, has_variable, resolve_path

_UNQUOTED = re.compile(r"(?:\.{0,2}/|~/)?[A-Za-z][\w./-]*")  # YAML reads these as text without quotes
_NOT_TEXT = ("true", "false", "null")
_MAX_BYTES_READ = 256_000_000  # a larger file's columns are not guessed


def write(file: Path, answers: Answers) -> Iterator[str]:
    """Write the recipe, then yield lines that say which commands come next."""
    fs.write_new(file, compose(file, answers), fix="name another file: rlhfctl init FILE")
    shown = shlex.quote(str(file))
    if answers.model != NEW and not has_variable(answers.model) and _has_template(answers.model, file.parent) is None:
        yield f"{answers.model} is no folder here: it is taken for a model's id on the Hub"
    yield f"wrote {file}; next:"
    yield f"  rlhfctl validate {shown}     every mistake at once; with --deep every row of the data too"
    yield f"  rlhfctl run {shown}          all stages; the same command resumes after a kill"


# ---------------------------------------------------------------- the recipe's text, section by section


def compose(file: Path, answers: Answers) -> str:
    """Compose the recipe's text."""
    files = _guess_files(answers, file.parent) if answers.model != NEW else {}
    parts = [
        _header(file, answers),
        _model_section(answers, _template_line(answers, file.parent, files)),
        _data_section(answers, files),
    ]
    parts += _stages_of_builtin_task(answers) if answers.model == NEW else _stages_on_files(answers)
    return "\n\n".join(parts) + "\n"


def _header(file: Path, answers: Answers) -> str:
    shown = visible(shlex.quote(file.name))
    return f"""\
# {answers.name}: RLHF in one file. A key that is left out has its default; paths are relative to this file's folder.
#   rlhfctl validate {shown}   reports every mistake at once; --deep reads every row of the data too
#   rlhfctl run {shown}        runs all stages; what is unchanged is skipped, and a killed run resumes
#   rlhfctl schema --format markdown   lists every key with what it means
name: {_yaml_text(answers.name)}   # the run's folder is runs/{answers.name}
seed: 0   # of every random choice"""


@dataclass(frozen=True)
class _FileGuess:
    """Guess about a data file: the keys it needs beside `source`, and whether its rows are conversations."""

    keys: dict[str, Any]
    conversations: bool | None  # None: not known


def _guess_files(answers: Answers, folder: Path) -> dict[str, _FileGuess]:
    """Guess the keys of each data set's file. If one holds conversations, texts in the others become turns."""
    stated = {"demonstrations": answers.demonstrations, "prompts": answers.prompts or None}
    stated["preferences"] = answers.scorer if answers.scored_by == "preferences" else None
    rows = {name: _read_rows(name, source, folder) for name, source in stated.items() if source is not None}
    found = {}
    for name, read in rows.items():
        keys = guess.options(name, read) if read else {}
        found[name] = _FileGuess(keys, guess.talks(name, keys, read))
    for name, file in found.items() if any(file.conversations for file in found.values()) else ():
        turned = file.keys | {"as_conversations": True}
        if file.conversations is False and guess.talks(name, turned, rows[name]):
            found[name] = _FileGuess(turned, True)
    return found


def _template_line(answers: Answers, folder: Path, files: dict[str, _FileGuess]) -> str:
    """Compose the line about the chat template; "" if no file holds conversations or the model has a template."""
    if not any(file.conversations for file in files.values()) or (found := _has_template(answers.model, folder)):
        return ""
    if found is None:
        return "\n  # chat_template: chatml   # if the model has none of its own: your files hold conversations"
    if answers.demonstrations is None:  # without sft the embeddings of new tokens stay untrained
        return "\n  chat_template: human-assistant   # the model has none, and your files hold conversations"
    return "\n  chat_template: chatml   # the model has none; its marks become tokens, whose rows sft trains"


def _has_template(model: str, folder: Path) -> bool | None:
    """Tell whether a model folder holds a chat template. None if there is no such folder."""
    path = resolve_path(folder, model)
    if has_variable(model) or not path.is_dir():
        return None
    if (path / "chat_template.jinja").is_file():
        return True
    try:
        config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("chat_template") is not None


def _model_section(answers: Answers, template: str) -> str:
    if answers.model == NEW:
        model = """\
# A small model with new weights; its tokenizer is trained on the demonstrations. For a pretrained one write
# model: {path: FOLDER or Hub id}
model:
  init: {architecture: llama, hidden_size: 160, num_hidden_layers: 3, num_attention_heads: 5, vocab_size: 1024}
  dtype: float32"""
    else:
        narrow = answers.gpu and answers.lora
        why = "half the memory; the adapters on top stay exact" if narrow else "exact; what is trained needs it"
        model = f"""\
# The base model of all stages: a folder, or an id on the Hub (then a `revision:` keeps it from changing).
model:
  path: {_yaml_text(answers.model)}{template}
  dtype: {"bfloat16" if narrow else "float32"}   # {why}"""
        if narrow:
            model += "\n  # quantization: 4bit   # for a model that does not fit (needs bitsandbytes)"
    if answers.lora:
        model += """

# Small adapters are trained in place of all weights. All roles of PPO then share one copy of the base model.
lora: {r: 16, lora_alpha: 32, lora_dropout: 0.0, target_modules: all-linear}"""
    else:
        model += """

# All weights are trained: no `lora:` section. PPO then holds policy, reference, reward model and critic separately."""
    return model


def _data_section(answers: Answers, files: dict[str, _FileGuess]) -> str:
    if answers.model == NEW:
        return """\
# The built-in task: short reviews, and a true preference that no stage but the verdict ever sees.
# A file of your own: {source: pairs.jsonl}; other names of columns: columns: {prompt: question}
data:
  demonstrations: {source: "builtin:reviews", rows: 4000}
  preferences: {source: "builtin:reviews", rows: 3000, label_noise: 0.1, heldout: 0.15}
  prompts: {source: "builtin:reviews", rows: 1200, eval: 100, test: 300}"""
    lines = [
        "# JSONL, JSON, CSV, Parquet; texts or conversations (lists of role, content). Where your columns have other",
        "# names, say which: columns: {prompt: question}. `rlhfctl data` shows what is read.",
        "data:",
    ]
    if answers.demonstrations is not None:
        lines += [
            "  # Good answers to imitate: prompt and completion, or messages, or text.",
            f"  demonstrations: {{{_source_keys(answers.demonstrations, files['demonstrations'])}}}",
        ]
    if answers.scored_by == "preferences":
        lines += [
            "  # Two answers to a prompt, of which people chose one. The part held out of training shows how often",
            "  # the reward model is right.",
            f"  preferences: {{{_source_keys(answers.scorer, files['preferences'])}, heldout: 0.15}}",
        ]
    lines += [
        "  # Prompts to answer: most for training, `eval` to watch the training, `test` for the verdict alone.",
        f"  prompts: {{{_source_keys(answers.prompts, files['prompts'])}, eval: {_eval_and_test_sizes(answers)[0]}, "
        f"test: {_eval_and_test_sizes(answers)[1]}}}",
    ]
    return "\n".join(lines)


def _source_keys(stated: str, file: _FileGuess) -> str:
    """Write a data set's `source` and the keys that its file seems to need, as YAML between braces."""
    more = "".join(f", {key}: {guess.flow(value)}" for key, value in file.keys.items())
    return f"source: {_yaml_text(stated)}{more}"


def _read_rows(name: str, stated: str, folder: Path) -> Sequence[dict[str, Any]]:
    """Read the rows of a file. Return none if it cannot be read or is very large."""
    path = resolve_path(folder, stated)
    if has_variable(stated) or not path.is_file() or path.stat().st_size > _MAX_BYTES_READ:
        return []
    try:
        rows, _ = sources.read_file(path, sources.TEXT_COLUMNS[name])
    except DataError:  # `rlhfctl validate --deep` says what is wrong with it
        return []
    return rows


def _stages_of_builtin_task(answers: Answers) -> list[str]:
    own = (
        "\n  lora: null   # the weights are new: all of them are trained, not adapters on noise" if answers.lora else ""
    )
    rates = ("3e-3", "5e-4") if answers.lora else ("1e-3", "1e-4")
    return [
        f"""\
# First the model learns to write reviews at all. `trainer:` takes any field of TRL's SFTConfig.
sft:{own}
  trainer:
    num_train_epochs: 3
    learning_rate: 3e-3
    lr_scheduler_type: cosine
    warmup_steps: 20
    per_device_train_batch_size: 32""",
        f"""\
# Then a copy of it learns which of two reviews people choose. `trainer:` takes any field of TRL's RewardConfig.
reward:
  trainer:
    num_train_epochs: 2
    learning_rate: {rates[0]}
    per_device_train_batch_size: 32
    center_rewards_coefficient: 0.01   # scores stay near 0 on average""",
        _ppo_section(episodes=3840, batch=64, mini=2, epochs=2, rate=rates[1], length=28, kl="0.1"),
        """\
# The verdict: policy against what it was before PPO, on prompts that no stage has seen. gold is the task's own.
compare:
  samples_per_prompt: 4
  temperature: 1.0
  judges: [gold, reward_model]
  primary_judge: gold
  batch_size: 300""",
    ]


def _stages_on_files(answers: Answers) -> list[str]:
    batch = 64 if answers.gpu else 16
    rates = ("2e-4", "1e-4", "3e-4") if answers.lora else ("2e-5", "1e-5", "3e-6")
    size = f"per_device_train_batch_size: {batch // 4}"
    parts = []
    if answers.demonstrations is not None:
        parts.append(f"""\
# Imitation of the demonstrations. `trainer:` takes any field of TRL's SFTConfig.
sft:
  trainer:
    num_train_epochs: 2
    learning_rate: {rates[0]}
    {size}""")
    else:
        parts.append("""\
# No demonstrations, so no `sft:` section: the base model is the policy that PPO starts from.""")
    if answers.scored_by == "preferences":
        parts.append(f"""\
# A copy of the model learns which answer people choose. `trainer:` takes any field of TRL's RewardConfig.
reward:
  trainer:
    num_train_epochs: 1
    learning_rate: {rates[1]}
    {size}
    center_rewards_coefficient: 0.01   # scores stay near 0 on average""")
    elif answers.scored_by == "model":
        parts.append(f"""\
# A reward model from elsewhere, of the same tokenizer: nothing is trained here.
reward: {{model: {_yaml_text(answers.scorer)}}}""")
    else:
        parts.append(f"""\
# A Python function scores, in a file beside this one or in an installed module:
# def NAME(prompts, completions, **columns) -> list[float]
reward: {{function: {_yaml_text(answers.scorer)}}}""")
    batch = _batch_size(answers, batch)
    length = 128 if answers.gpu else 48
    autocast = answers.gpu and not answers.lora
    parts.append(
        _ppo_section(
            episodes=100 * batch, batch=batch, mini=min(2, batch), epochs=4, rate=rates[2], length=length, kl="0.05",
            autocast=autocast,
        )
    )  # fmt: skip
    judge = "reward_function" if answers.scored_by == "function" else "reward_model"
    parts.append(f"""\
# The verdict: policy against what it was before PPO, on the test prompts. The judge is what PPO trains against, so this
# is no independent evidence: read samples.jsonl, or add a judge of your own as module:name.
compare: {{samples_per_prompt: 4, temperature: 1.0, judges: [{judge}]}}""")
    return parts


def _ppo_section(
    *, episodes: int, batch: int, mini: int, epochs: int, rate: str, length: int, kl: str, autocast: bool = False
) -> str:
    bf16 = "\n  bf16: true   # forwards in bfloat16 over float32 weights" if autocast else ""
    return f"""\
# Reinforcement learning: the policy answers, is scored, and moves towards what scores well. Names are TRL's.
ppo:
  total_episodes: {episodes}   # answers sampled in all: {episodes // batch} updates
  per_device_train_batch_size: {batch}
  num_mini_batches: {mini}
  num_ppo_epochs: {epochs}   # passes over each batch
  learning_rate: {rate}{bf16}
  response_length: {length}   # tokens; longer answers are cut
  temperature: 1.0
  missing_eos_penalty: 1.0   # taken from the score of an answer that does not end by itself
  kl_coef: {kl}   # raise it if the text degrades while the score climbs"""


def _eval_and_test_sizes(answers: Answers) -> tuple[int, int]:
    """Return how many prompts to hold out for eval and for test."""
    rows = answers.prompts_rows
    return (50, 100) if rows is None else (min(50, rows // 10), min(200, max(1, rows // 5)))


def _batch_size(answers: Answers, batch: int) -> int:
    """Halve the batch size until it is at most the number of prompts to train on."""
    train = answers.prompts_rows - sum(_eval_and_test_sizes(answers)) if answers.prompts_rows is not None else batch
    while batch > max(1, train):
        batch //= 2
    return batch


def _yaml_text(text: str) -> str:
    """Write a text so that YAML reads it back: without quotes where that is safe."""
    plain = _UNQUOTED.fullmatch(text) and text.lower() not in _NOT_TEXT
    return text if plain else json.dumps(text, ensure_ascii=False)

"""`init`: a few questions, and a recipe with a comment at every section.

Writes one file, and never over another. Asks only what no default can know: the model, the data, what scores, and how
large a machine is there. Paths are asked for from here and written from the recipe's folder. Leaves out the rows of
the data: `validate --deep` reads them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhfctl import fs
from rlhfctl.dashboard.text import visible
from rlhfctl.data import guess, sources
from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.recipe.schema import DATA_SUFFIXES, NAME
from rlhfctl.recipe.sections.scorers import FUNCTION_NAME

NEW = "new"
NONE = "none"
_DEFAULT_NAME = "my-rlhf"
_PLAIN = re.compile(r"(?:\.{0,2}/|~/)?[A-Za-z][\w./-]*")  # YAML reads it as text without quotes
_NOT_TEXT = ("true", "false", "null")
_MOST_READ = 256_000_000  # bytes of a file whose columns are guessed
_FEWEST_PROMPTS = 3  # one for test, and two to train on

ScoredBy = Literal["preferences", "model", "function"]
# question, what an empty answer stands for (None: it must be given), and what makes an answer good or raises
Ask = Callable[[str, str | None, Callable[[str], str]], str]


@dataclass(frozen=True)
class Answers:
    """What was asked. Paths are as the recipe states them; `prompts_rows` is None where they cannot be counted."""

    name: str
    model: str = NEW
    demonstrations: str | None = None
    scorer: str = ""
    scored_by: ScoredBy = "preferences"
    prompts: str = ""
    prompts_rows: int | None = None
    lora: bool = True
    gpu: bool = False


def interview(file: Path | None, ask: Ask) -> tuple[Path, Answers]:
    """The questions, and where the recipe goes: `file`, or NAME.yaml."""
    if file is not None:
        _refuse_existing(file)
    stem = file.stem if file is not None else ""
    name = ask(
        "Name of the run, and of its folder",
        stem if re.match(NAME, stem) else _DEFAULT_NAME,
        lambda text: _name(text, file),
    )
    file = file or Path(f"{name}.yaml")
    folder = file.parent
    model = ask(
        "Base model: a folder, a Hub id, or `new` for a tiny one on the built-in task",
        NEW,
        lambda text: _model(text, folder),
    )
    if model == NEW:
        return file, Answers(name, lora=_lora(ask))
    demonstrations = ask(
        "Demonstrations (a file of prompt, completion), or `none`", NONE, lambda text: _rows(text, folder, NONE)
    )
    scorer = ask(
        "What scores: preferences (a file of prompt, chosen, rejected), a reward model, or a function (module:name)",
        None,
        lambda text: _scorer(text, folder),
    )
    prompts = ask("Prompts (a file of prompt)", None, lambda text: _prompts(text, folder))
    lora = _lora(ask)
    size = "gpu" if shutil.which("nvidia-smi") is not None else "cpu"
    gpu = ask("Sizes for a `gpu` or a `cpu`", size, lambda text: _one_of(text, "gpu", "cpu")) == "gpu"
    return file, Answers(
        name=name,
        model=model,
        demonstrations=None if demonstrations == NONE else demonstrations,
        scorer=scorer,
        scored_by=_scored_by(scorer, folder),
        prompts=prompts,
        prompts_rows=_count(prompts, folder),
        lora=lora,
        gpu=gpu,
    )


def _lora(ask: Ask) -> bool:
    return ask("Train `lora` adapters or `all` weights", "lora", lambda text: _one_of(text, "lora", "all")) == "lora"


def write(file: Path, answers: Answers) -> Iterator[str]:
    """Write the recipe; say what comes next."""
    fs.write_new(file, compose(file, answers), fix="name another file: rlhfctl init FILE")
    shown = shlex.quote(str(file))
    if answers.model != NEW and not _by_variable(answers.model) and _has_template(answers.model, file.parent) is None:
        yield f"{answers.model} is no folder here: it is taken for a model's id on the Hub"
    yield f"wrote {file}; next:"
    yield f"  rlhfctl validate {shown}     every mistake at once; with --deep every row of the data too"
    yield f"  rlhfctl run {shown}          all stages; the same command resumes after a kill"


# ---------------------------------------------------------------- answers: the text for the recipe, or what is wrong


def _refuse_existing(file: Path) -> None:
    fs.require_new(file, fix="name another: rlhfctl init FILE")


def _name(text: str, file: Path | None) -> str:
    if not re.match(NAME, text):
        raise RlhfctlError("use letters, digits, '.', '_' and '-', the first a letter or a digit")
    if file is None:
        _refuse_existing(Path(f"{text}.yaml"))
    return text


def _model(text: str, folder: Path) -> str:
    """A folder, from the recipe's; a Hub id as it is."""
    path = Path(text).expanduser()
    if text == NEW or _by_variable(text):
        return text
    if path.is_dir():
        return _from(folder, text, model=True)
    if path.exists():
        raise RlhfctlError(f"{text} is a file; name the folder that holds the model")
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise RlhfctlError(f"there is no folder {text}")
    return text


def _rows(text: str, folder: Path, otherwise: str | None = None) -> str:
    """A file of rows, from the recipe's folder."""
    if text == otherwise or _by_variable(text):
        return text
    if not Path(text).expanduser().is_file():
        raise RlhfctlError(f"there is no file {text}")
    return _from(folder, text)


def _scorer(text: str, folder: Path) -> str:
    if FUNCTION_NAME.fullmatch(text):
        return text
    if Path(text).expanduser().is_file() or Path(text).suffix in DATA_SUFFIXES:
        return _rows(text, folder)
    if "/" not in text and not Path(text).is_dir():
        raise RlhfctlError(f"there is no file or folder {text}; a Hub id is owner/name, a function module:name")
    return _model(text, folder)


def _prompts(text: str, folder: Path) -> str:
    stated = _rows(text, folder)
    count = _count(stated, folder)
    if count is not None and count < _FEWEST_PROMPTS:
        raise RlhfctlError(
            f"{text} holds {count} prompts; some are kept for the verdict: give {_FEWEST_PROMPTS} or more"
        )
    return stated


def _one_of(text: str, *words: str) -> str:
    if text not in words:
        raise RlhfctlError(f"answer {' or '.join(words)}")
    return text


def _by_variable(text: str) -> bool:
    """Whether it is found through the environment: then it may be somewhere else each time."""
    return "${" in text


def _from(folder: Path, text: str, *, model: bool = False) -> str:
    """A path that was given from here, as it is stated in a recipe in `folder`; absolute ones stay."""
    if text.startswith(("/", "~")):
        return text
    if folder.resolve() != Path.cwd().resolve():
        text = os.path.relpath(text, folder)
    return f"./{text}" if model and not text.startswith(".") else text  # else it might be an id on the Hub


def _scored_by(stated: str, folder: Path) -> ScoredBy:
    if FUNCTION_NAME.fullmatch(stated):
        return "function"
    rows = Path(stated).suffix in DATA_SUFFIXES or _seen_from(folder, stated).is_file()
    return "preferences" if rows else "model"


def _seen_from(folder: Path, stated: str) -> Path:
    """Where a path of the recipe leads; its folder need not be there yet."""
    return Path(os.path.normpath(folder / Path(stated).expanduser()))


def _count(stated: str, folder: Path) -> int | None:
    """How many rows a file of a row a line has; None for other kinds, and where only the environment knows it."""
    if _by_variable(stated) or Path(stated).suffix not in (".jsonl", ".ndjson", ".txt"):
        return None
    with _seen_from(folder, stated).open("rb") as lines:
        return sum(1 for line in lines if line.strip())


# ---------------------------------------------------------------- the recipe


def compose(file: Path, answers: Answers) -> str:
    """The recipe's text."""
    files = _files(answers, file.parent) if answers.model != NEW else {}
    parts = [_head(file, answers), _weights(answers, _template(answers, file.parent, files)), _data(answers, files)]
    parts += _new_stages(answers) if answers.model == NEW else _stages(answers)
    return "\n\n".join(parts) + "\n"


def _head(file: Path, answers: Answers) -> str:
    shown = visible(shlex.quote(file.name))
    return f"""\
# {answers.name}: RLHF in one file. What is left out has its default; paths are read from this file's folder.
#   rlhfctl validate {shown}   says every mistake at once; --deep reads every row of the data too
#   rlhfctl run {shown}        runs all stages; what is unchanged is skipped, and a killed run resumes
#   rlhfctl schema --format markdown   lists every key with what it means
name: {_text(answers.name)}   # the run's folder is runs/{answers.name}
seed: 0   # of every random choice"""


@dataclass(frozen=True)
class _File:
    """The keys that a file needs beside its source, and whether its rows are conversations (None: not known)."""

    keys: dict[str, Any]
    talks: bool | None


def _files(answers: Answers, folder: Path) -> dict[str, _File]:
    """Each data set's file. Texts beside conversations become turns."""
    stated = {"demonstrations": answers.demonstrations, "prompts": answers.prompts or None}
    stated["preferences"] = answers.scorer if answers.scored_by == "preferences" else None
    rows = {name: _read(name, source, folder) for name, source in stated.items() if source is not None}
    found = {}
    for name, read in rows.items():
        keys = guess.options(name, read) if read else {}
        found[name] = _File(keys, guess.talks(name, keys, read))
    for name, file in found.items() if any(file.talks for file in found.values()) else ():
        turned = file.keys | {"as_conversations": True}
        if file.talks is False and guess.talks(name, turned, rows[name]):
            found[name] = _File(turned, True)
    return found


def _template(answers: Answers, folder: Path, files: dict[str, _File]) -> str:
    """The line about the chat template, where any of the files holds conversations."""
    if not any(file.talks for file in files.values()) or (there := _has_template(answers.model, folder)):
        return ""
    if there is None:
        return "\n  # chat_template: chatml   # if the model has none of its own: your files hold conversations"
    if answers.demonstrations is None:  # nothing would train the rows of new tokens
        return "\n  chat_template: human-assistant   # the model has none, and your files hold conversations"
    return "\n  chat_template: chatml   # the model has none; its marks become tokens, whose rows sft trains"


def _has_template(model: str, folder: Path) -> bool | None:
    """Whether a model folder holds a chat template; None where it is no folder here."""
    place = _seen_from(folder, model)
    if _by_variable(model) or not place.is_dir():
        return None
    if (place / "chat_template.jinja").is_file():
        return True
    try:
        kept = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(kept, dict) and kept.get("chat_template") is not None


def _weights(answers: Answers, template: str) -> str:
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
# What everything starts from: a folder, or an id on the Hub (then a `revision:` keeps it from changing).
model:
  path: {_text(answers.model)}{template}
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


def _data(answers: Answers, files: dict[str, _File]) -> str:
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
            f"  demonstrations: {{{_source(answers.demonstrations, files['demonstrations'])}}}",
        ]
    if answers.scored_by == "preferences":
        lines += [
            "  # Two answers to a prompt, of which people chose one. What is held out of training shows how often the",
            "  # reward model is right.",
            f"  preferences: {{{_source(answers.scorer, files['preferences'])}, heldout: 0.15}}",
        ]
    lines += [
        "  # What is answered: most to train on, `eval` to watch the policy meanwhile, `test` for the verdict alone.",
        f"  prompts: {{{_source(answers.prompts, files['prompts'])}, eval: {_kept(answers)[0]}, "
        f"test: {_kept(answers)[1]}}}",
    ]
    return "\n".join(lines)


def _source(stated: str, file: _File) -> str:
    """A data set's source, and the keys that its file seems to need."""
    more = "".join(f", {key}: {guess.flow(value)}" for key, value in file.keys.items())
    return f"source: {_text(stated)}{more}"


def _read(name: str, stated: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where it cannot be read, or is very large."""
    path = _seen_from(folder, stated)
    if _by_variable(stated) or not path.is_file() or path.stat().st_size > _MOST_READ:
        return []
    try:
        rows, _ = sources.read_file(path, sources.TEXT_COLUMNS[name])
    except DataError:  # validate says what is wrong with it
        return []
    return rows


def _new_stages(answers: Answers) -> list[str]:
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
        _ppo(episodes=3840, batch=64, mini=2, epochs=2, rate=rates[1], length=28, kl="0.1"),
        """\
# The verdict: policy against what it was before PPO, on prompts that no stage has seen. gold is the task's own.
compare:
  samples_per_prompt: 4
  temperature: 1.0
  judges: [gold, reward_model]
  primary_judge: gold
  batch_size: 300""",
    ]


def _stages(answers: Answers) -> list[str]:
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
reward: {{model: {_text(answers.scorer)}}}""")
    else:
        parts.append(f"""\
# A Python function scores, in a file beside this one or in an installed module:
# def NAME(prompts, completions, **columns) -> list[float]
reward: {{function: {_text(answers.scorer)}}}""")
    batch = _batch(answers, batch)
    length = 128 if answers.gpu else 48
    autocast = answers.gpu and not answers.lora
    parts.append(
        _ppo(
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


def _ppo(
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


def _kept(answers: Answers) -> tuple[int, int]:
    """How many prompts are kept for eval and for test."""
    rows = answers.prompts_rows
    return (50, 100) if rows is None else (min(50, rows // 10), min(200, max(1, rows // 5)))


def _batch(answers: Answers, batch: int) -> int:
    """At most as many as there are prompts to train on."""
    train = answers.prompts_rows - sum(_kept(answers)) if answers.prompts_rows is not None else batch
    while batch > max(1, train):
        batch //= 2
    return batch


def _text(text: str) -> str:
    """As YAML reads it back: without quotes where that is safe."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT
    return text if plain else json.dumps(text, ensure_ascii=False)

"""Read the trainings that a file of another tool describes: command lines in a script, or arguments as YAML or JSON.

Knows the commands of TRL (`python ppo.py`, `trl sft`), LLaMA-Factory (`llamafactory-cli train FILE`, `src/train.py`)
and OpenRLHF (`openrlhf.cli.train_ppo_ray`). Variables that the script sets itself are put in; nothing of the script is
run. Leaves out what the fields mean (trl.py, llamafactory.py, openrlhf.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from rlhfctl.errors import RlhfctlError
from rlhfctl.importing.findings import Job, Stage
from rlhfctl.recipe.reading import yaml_1_2

LLAMA_FACTORY, OPENRLHF, TRL = "LLaMA-Factory", "OpenRLHF", "TRL"
STAGES: dict[str, Stage] = {
    "sft": "sft", "rm": "reward", "reward": "reward", "reward_modeling": "reward", "ppo": "ppo", "ppo_ray": "ppo",
}  # fmt: skip
_ALGORITHMS = ("grpo", "rloo")  # trainers of TRL that are the stage ppo here
_GRPO_FIELDS = {"num_iterations", "max_completion_length", "scale_rewards", "loss_type"}
_ENTRY = re.compile(r"(?:openrlhf\.cli\.|\S*/)?train_(sft|rm|ppo|ppo_ray)(?:\.py)?")
_ASSIGNED = re.compile(r"""\s*(?:export\s+)?([A-Za-z_]\w*)=("[^"]*"|'[^']*'|\S*)\s*(?:\s#.*)?""")
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
_ENDS = re.compile(r"\|\|?|&&?|;|\d?>.*|2>&1")
_PPO_FIELDS = {
    "kl_coef", "cliprange", "num_ppo_epochs", "total_episodes", "response_length", "reward_model_path",
    "init_kl_coef", "ppo_epochs", "reward_pretrain", "reward_model", "sft_model_path",
}  # fmt: skip
_REWARD_FIELDS = {"center_rewards_coefficient", "chosen_key", "rejected_key"}
_SFT_FIELDS = {"packing", "completion_only_loss", "assistant_only_loss", "dataset_text_field", "pretrain_mode"}
_OPENRLHF_FIELDS = {"pretrain", "micro_train_batch_size", "rollout_batch_size", "prompt_data"}
_LLAMA_FACTORY_FIELDS = {"stage", "finetuning_type", "cutoff_len", "template"}
_USE = (
    "give a script with the command line, or a YAML or JSON file of arguments, of TRL (sft, reward, ppo, "
    "grpo, rloo), "
    "LLaMA-Factory (stage: sft, rm, ppo) or OpenRLHF (train_sft, train_rm, train_ppo_ray)"
)


def jobs_in(file: Path) -> list[Job]:
    """Read the jobs of a file, in its order. RlhfctlError if it is no file of these tools."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RlhfctlError(f"cannot be read: {error}", where=str(file), fix=_USE) from error
    mapping = _mapping(text)
    found = [_job(mapping, file.name, file, hint=file.stem)] if mapping else list(_commands(text, file))
    if not found:
        raise RlhfctlError("holds no training that rlhfctl knows", where=str(file), fix=_USE)
    return found


def _mapping(text: str) -> dict[str, Any] | None:
    """Read YAML or JSON; None for anything but a mapping with names as keys."""
    try:
        value = yaml_1_2().load(text)
    except YAMLError:
        return None
    plain = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    return {str(key).replace("-", "_"): _plain(item) for key, item in value.items()} if plain else None


def _plain(value: Any) -> Any:
    """Turn what ruamel makes into plain values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


# ---------------------------------------------------------------- command lines


def _commands(text: str, file: Path) -> Iterator[Job]:
    """Find the commands in a script: joined lines, with the script's own variables put in."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    variables: dict[str, str] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if assigned := _ASSIGNED.fullmatch(line):
            variables[assigned[1]] = _filled(assigned[2].strip("\"'"), variables)
            continue
        try:
            words = shlex.split(_filled(line, variables).replace("$'", "'"), comments=True)
        except ValueError:  # a quotation over several lines: no command of these tools
            continue
        end = next((index for index, word in enumerate(words) if _ENDS.fullmatch(word)), len(words))
        yield from _command(words[:end], file)


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """Put variables that the script has set into a text; others stay as they stand."""

    def value(match: re.Match[str]) -> str:
        return variables.get(match[1] or match[3], match[0] if match[2] is None else match[2])

    return _VARIABLE.sub(value, text)


def _command(words: Sequence[str], file: Path) -> Iterator[Job]:
    """Make the job of one command line; nothing if it trains nothing."""
    for index, word in enumerate(words):
        rest = words[index + 1 :]
        if (entry := _ENTRY.fullmatch(word)) and (word.startswith("openrlhf.") or _is_openrlhf(rest)):
            fields, repeated = arguments(rest)
            yield Job(OPENRLHF, STAGES[entry[1]], fields, f"{file.name}, {word}", repeated)
            return
        if word.rpartition("/")[2] in ("llamafactory-cli", "trl") and rest:
            yield _with_file(rest[1:], file, f"{file.name}, {word} {rest[0]}", rest[0])
            return
        if word.endswith(".py") and any(one.startswith("--") or one.endswith((".yaml", ".json")) for one in rest):
            yield _with_file(rest, file, f"{file.name}, {word}", Path(word).stem)
            return
    if words and words[0].startswith("--") and len(words) > 1:  # arguments alone
        yield _with_file(words, file, file.name, file.stem)


def _is_openrlhf(words: Sequence[str]) -> bool:
    return any(f"--{name}" in words or any(one.startswith(f"--{name}=") for one in words) for name in _OPENRLHF_FIELDS)


def _with_file(words: Sequence[str], file: Path, where: str, hint: str) -> Job:
    """Make a job of arguments that may name a file of further ones; those of the command count more."""
    fields, repeated = arguments(words)
    first = words[0] if words and words[0].endswith((".yaml", ".yml", ".json")) else None
    named = fields.get("config") or first
    at = file.parent / str(named) if named else None
    if at is not None and at.is_file() and (more := _mapping(at.read_text(encoding="utf-8"))) is not None:
        fields = more | {name: value for name, value in fields.items() if name != "config"}
        where = f"{where} {named}"
    overrides = [word.partition("=") for word in words if re.fullmatch(r"[A-Za-z_]\w*=.*", word)]
    fields |= {name: scalar(value) for name, _, value in overrides}  # LLaMA-Factory's KEY=VALUE
    return _job(fields, where, file, hint=hint, repeated=repeated)


def arguments(words: Sequence[str]) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    """Read `--name value`, `--name=value`, `--switch`, `--no_switch` and lists; the last statement of a name counts.

    Returns the fields, and the statements that a later one replaced.
    """
    fields: dict[str, Any] = {}
    repeated: list[tuple[str, Any]] = []
    name = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, given, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in fields:
                repeated.append((name, fields[name]))
            fields[name] = scalar(value) if given else True
        elif name:
            before, value = fields[name], scalar(word)
            fields[name] = value if before is True else [*(before if isinstance(before, list) else [before]), value]
    switches = [one for one in fields if one.startswith("no_") and fields[one] is True and one[3:] not in fields]
    for one in switches:
        fields[one[3:]] = not fields.pop(one)
    return fields, tuple(repeated)


def scalar(text: str) -> Any:
    """Read a word of a command line as YAML does; Python's None is null."""
    if text == "None":
        return None
    try:
        value = _plain(yaml_1_2().load(text))
    except YAMLError:
        return text
    return value if isinstance(value, bool | int | float | dict | list) else text


# ---------------------------------------------------------------- which tool and stage


def _job(
    fields: Mapping[str, Any], where: str, file: Path, *, hint: str, repeated: tuple[tuple[str, Any], ...] = ()
) -> Job:
    tool = LLAMA_FACTORY if "stage" in fields or len(_LLAMA_FACTORY_FIELDS & fields.keys()) > 1 else TRL
    if tool == TRL and _OPENRLHF_FIELDS & fields.keys():
        tool = OPENRLHF
    algorithm = _algorithm(fields, hint) if tool == TRL else ""
    stage = "ppo" if algorithm else _stage(fields, hint)
    if stage is None:
        what = fields.get("stage", "no stage")
        raise RlhfctlError(
            f"{where}: {what} is not one of sft, reward (rm) and ppo"
            if "stage" in fields
            else f"{where}: which stage?",
            where=str(file),
            fix="rlhfctl trains by sft, reward and ppo; name the file or script after one of them, like ppo.yaml",
        )
    return Job(tool, stage, fields, where, repeated, algorithm)


def _algorithm(fields: Mapping[str, Any], hint: str) -> str:
    """Tell which trainer of TRL a job is, if it is none of sft, reward and PPO: from a name, or from its own fields."""
    named = next((part for part in re.split(r"[^a-z]+", hint.lower()) if part in _ALGORITHMS), "")
    return named or ("grpo" if len(_GRPO_FIELDS & fields.keys()) > 1 and not _PPO_FIELDS & fields.keys() else "")


def _stage(fields: Mapping[str, Any], hint: str) -> Stage | None:
    """Tell a job's stage: from `stage`, from the script's or file's name, or from fields that one stage alone has."""
    if "stage" in fields:
        return STAGES.get(str(fields["stage"]))
    for stage, own in (("ppo", _PPO_FIELDS), ("reward", _REWARD_FIELDS), ("sft", _SFT_FIELDS)):
        if own & fields.keys():
            return STAGES[stage]
    parts = re.split(r"[^a-z]+", hint.lower())
    return next((STAGES[part] for part in ("ppo", "reward", "rm", "sft") if part in parts), None)

"""Command lines and argument files of other tools: which trainings they describe, and with which fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.importing.findings import Job
from rlhfctl.importing.reading import LLAMA_FACTORY, OPENRLHF, TRL, arguments, jobs_in


def jobs(folder: Path, text: str, name: str = "run.sh") -> list[Job]:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return jobs_in(file)


def test_words_become_fields() -> None:
    words = "--a 1 --b=2e-5 --c --no_d --e x y --f-g None --h -1 --i '' --a 3 --j true".replace("''", "''").split()
    fields, repeated = arguments(words)
    assert fields == {
        "a": 3, "b": 2e-5, "c": True, "d": False, "e": ["x", "y"], "f_g": None, "h": -1, "i": "''", "j": True,
    }  # fmt: skip
    assert repeated == (("a", 1),)


def test_a_script_may_hold_several_commands_variables_and_comments(tmp_path: Path) -> None:
    found = jobs(
        tmp_path,
        "#!/bin/bash\n"
        "export BASE=org/base\nOUT='out dir'\n"
        "# python sft.py --not this\n"
        'echo "an unclosed word\n'
        "CUDA_VISIBLE_DEVICES=0 python examples/sft.py --model_name_or_path $BASE \\\n"
        "  # within the command\n"
        '  --output_dir "${OUT}" --seed ${SEED:-7} --unset $NOWHERE && echo done --seed 9\n'
        "python3 -m openrlhf.cli.train_rm --pretrain ${BASE} > log.txt 2>&1\n"
        "deepspeed --module $training_commands\n",
    )
    assert [(job.tool, job.stage, job.where) for job in found] == [
        (TRL, "sft", "run.sh, examples/sft.py"),
        (OPENRLHF, "reward", "run.sh, openrlhf.cli.train_rm"),
    ]
    assert found[0].fields == {
        "model_name_or_path": "org/base", "output_dir": "out dir", "seed": 7, "unset": "$NOWHERE",
    }  # fmt: skip
    assert found[1].fields == {"pretrain": "org/base"}


@pytest.mark.parametrize(
    ("text", "name", "tool", "stage"),
    [
        ("stage: rm\n", "x.yaml", LLAMA_FACTORY, "reward"),
        ("stage: ppo\nfinetuning_type: lora\n", "x.yaml", LLAMA_FACTORY, "ppo"),
        ('{"kl_coef": 0.1}', "x.json", TRL, "ppo"),
        ("packing: true\n", "x.yaml", TRL, "sft"),
        ("learning_rate: 1\n", "my-reward_modeling.yaml", TRL, "reward"),
        ("pretrain: a/b\nrollout_batch_size: 8\n", "train_ppo.yaml", OPENRLHF, "ppo"),
        ("trl sft --model_name_or_path a/b\n", "x.sh", TRL, "sft"),
        ("llamafactory-cli train --stage sft --template qwen\n", "x.sh", LLAMA_FACTORY, "sft"),
        ("python ../train_rm.py --pretrain a/b\n", "x.sh", OPENRLHF, "reward"),
        ("--kl_coef 0.1 --gamma 1\n", "x.txt", TRL, "ppo"),
        ("python sentiment_tuning.py --init_kl_coef 0.2\n", "x.sh", TRL, "ppo"),
    ],
)
def test_the_tool_and_the_stage_are_told(tmp_path: Path, text: str, name: str, tool: str, stage: str) -> None:
    (job,) = jobs(tmp_path, text, name)
    assert (job.tool, job.stage) == (tool, stage)


def test_a_command_may_name_a_file_of_arguments(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("learning_rate: 1.0e-4\npacking: true\n")
    (job,) = jobs(tmp_path, "trl sft --config sft.yaml --learning_rate 2e-5 --deepspeed ds.json\n")
    assert job.fields == {"learning_rate": 2e-5, "packing": True, "deepspeed": "ds.json"}
    (other,) = jobs(tmp_path, "trl sft --config nowhere.yaml\n")
    assert other.fields == {"config": "nowhere.yaml"}  # listed as unknown, not lost


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no training"),
        ("echo hello\n", "holds no training"),
        ("stage: dpo\n", "dpo is not one of sft, reward"),
        ("learning_rate: 1\n", "which stage"),
        ("python dpo.py --beta 0.1\n", "which stage"),
    ],
)
def test_what_is_no_training_of_these_tools_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RlhfctlError, match=said) as caught:
        jobs(tmp_path, text)
    assert caught.value.fix is not None
    with pytest.raises(RlhfctlError, match="cannot be read"):
        jobs_in(tmp_path / "nowhere.sh")

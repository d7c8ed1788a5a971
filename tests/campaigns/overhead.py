"""What rlhfctl adds to TRL: its sft and reward stages against bare TRL scripts, in turn, in one run.

    python tests/campaigns/overhead.py [--rounds 3] [--json FILE]

Both sides start in processes of their own and do the whole job: make the rows, tokenize, build or load the model, train
with the quickstart's settings, save. The bare script is what TRL's documentation shows; it keeps no checkpoints, checks
nothing and writes no manifest. Printed: seconds of each round, and the ratio of the medians (1.05 is the promise).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = ROOT / "recipes" / "quickstart.yaml"
PROMISED = 1.05


def bare_sft(folder: Path) -> None:
    """SFTTrainer as one would write it: rows in, model out."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from rlhfctl.models import build, loading, tokenizing
    from rlhfctl.recipe.load import load_recipe
    from rlhfctl.world import reviews

    recipe = load_recipe(RECIPE).recipe
    assert recipe.sft is not None and recipe.data.demonstrations is not None and recipe.model.init is not None
    rows = reviews.demonstrations(recipe.data.demonstrations.rows or 0, recipe.seed)
    tokenizer = tokenizing.train_tokenizer(recipe.model.init, (row["prompt"] + row["completion"] for row in rows))
    model = build.build_model(recipe.model.init, tokenizer, seed=0, dtype=loading.torch_dtype("float32"))
    config = SFTConfig(
        output_dir=str(folder / "work"),
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **recipe.sft.trainer,
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(folder / "model"))
    tokenizer.save_pretrained(folder / "model")


def bare_reward(folder: Path, base: Path) -> None:
    """RewardTrainer with LoRA as one would write it: base and pairs in, adapter out."""
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from rlhfctl.data.load import check_all
    from rlhfctl.data.types import PreferenceSplit, examples
    from rlhfctl.recipe.load import load_recipe

    recipe = load_recipe(RECIPE).recipe
    assert recipe.reward is not None and recipe.reward.lora is not None
    split = check_all(recipe.data, recipe.data_seed, ("preferences",))["preferences"].split
    assert isinstance(split, PreferenceSplit)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype="float32")
    lora = recipe.reward.lora
    config = RewardConfig(
        output_dir=str(folder / "work"),
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **recipe.reward.trainer,
    )
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(examples(split.train)),
        eval_dataset=Dataset.from_list(examples(split.heldout)),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            target_modules="all-linear",
            task_type=TaskType.SEQ_CLS,
            modules_to_save=["score"],
        ),
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model(str(folder / "model"))


def seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by stage and side, the sides in turn."""
    found: dict[str, dict[str, list[float]]] = {stage: {"bare": [], "rlhfctl": []} for stage in ("sft", "reward")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "run"
        for number in range(rounds):
            here = folder / str(number)
            here.mkdir()
            for stage in ("sft", "reward"):
                ours = ["-m", "rlhfctl", stage, str(RECIPE), "--run-dir", str(run), "--force"]
                bare = [__file__, "--bare", stage, str(here / stage), str(run / "sft" / "model")]
                order = [("rlhfctl", ours), ("bare", bare)]
                for side, arguments in order if number % 2 == 0 else reversed(order):
                    found[stage][side].append(seconds(arguments))
                    print(f"round {number + 1} {stage} {side}: {found[stage][side][-1]:.1f} s", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bare", nargs=3, metavar=("STAGE", "FOLDER", "BASE"))
    options = parser.parse_args()
    if options.bare:
        stage, folder, base = options.bare
        bare_sft(Path(folder)) if stage == "sft" else bare_reward(Path(folder), Path(base))
        return 0
    found = measure(options.rounds)
    report = {}
    for stage, sides in found.items():
        bare, ours = (statistics.median(sides[side]) for side in ("bare", "rlhfctl"))
        report[stage] = {"bare_s": bare, "rlhfctl_s": ours, "ratio": ours / bare, "rounds": sides}
        print(
            f"{stage}: bare {bare:.1f} s, rlhfctl {ours:.1f} s, ratio {ours / bare:.3f} (promised: at most {PROMISED})"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    return 0 if all(entry["ratio"] <= PROMISED for entry in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

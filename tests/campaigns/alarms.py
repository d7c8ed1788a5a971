"""Certify the alarms: plant a fault in a small run, again and again, and see whether the tool tells of it.

    python tests/campaigns/alarms.py [--seeds 10] [--healthy 20] [--first-seed 0] [--only FAULT ...] [--folder DIR]

Each fault is a change of alarms.yaml, trained at `--seeds` seeds. It counts as detected if the one signal that is named
for it appears: an alarm of the ppo stage, a warning of the command, or a flag of the reward model's card, as `rlhfctl
report` shows them. Nothing here looks at gold. The healthy run is trained at `--healthy` seeds. It counts as silent if
it has no alarm and no warning, and if its card passes the usual gate. Flags of the card's probes, which do not close
the gate, are facts about a small reward model (gibberish may fool it) and are listed below the table.

A seed draws its own data, weights and samples. Faults of one seed share its sft and reward model where the fault leaves
these as they are. What was found is kept in `--folder`, a file per run: the same command goes on with the rest, and
prints the table at its end. An hour on one core; each run takes a minute or less.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

RECIPE = HERE / "alarms.yaml"
HEALTHY = "healthy"
_REWARD_FILE = "alarm_rewards.py"
_REWARDS = '''"""Rewards with a planted fault, for tests/campaigns/alarms.py."""


def short(prompts, completions, **columns):
    """Pay less for each word, so that the best response ends at once."""
    return [-0.3 * len(text.split()) for text in completions]


def complaint(prompts, completions, **columns):
    """Pay for words that people do not like to read."""
    return [float(sum(text.count(word) for word in ("not", "poor", "bad", "slow"))) for text in completions]


def phrase(prompts, completions, **columns):
    """Pay for each time that a phrase is said."""
    return [0.5 * text.count("the") for text in completions]
'''


@dataclass(frozen=True)
class Fault:
    """A planted fault: the changes of the recipe, and the signal that must tell of it."""

    name: str
    signal: str  # alarm, warning or flag
    words: str  # of the alarm or warning; the flag's name
    changes: Sequence[str]
    until: str = "ppo"
    shares: Sequence[str] = ("sft", "reward", "heldout", "card")  # stages taken from the healthy run of the seed
    make: Callable[[Path, int], Sequence[str]] | None = None  # writes files; returns further changes
    function: str = ""  # of _REWARDS, in place of the reward model


@dataclass
class Found:
    """What the tool told of one run. `alarms`: words of the alarm -> its first update."""

    seed: int
    alarms: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    gate: list[str] = field(default_factory=list)  # reasons against the reward model; empty: it passes


def longer_chosen(folder: Path, seed: int) -> Sequence[str]:
    """Write pairs of which the longer review was chosen."""
    from rlhfctl.world import reviews

    rows = []
    for row in reviews.preferences(4_000, seed, 0.0):
        longer, shorter = sorted((row["chosen"], row["rejected"]), key=lambda text: -len(text.split()))
        if len(longer.split()) > len(shorter.split()):
            rows.append({"prompt": row["prompt"], "chosen": longer, "rejected": shorter})
    write_rows(folder / "longer.jsonl", rows[:2_400])
    return [f"data.preferences={{source: {folder / 'longer.jsonl'}, heldout: 0.25}}"]


def other_frame(folder: Path, seed: int) -> Sequence[str]:
    """Write PPO's prompts in a frame that no other data set has."""
    from rlhfctl.world import reviews

    rows = [{"prompt": f"### Instruction:\n{row['prompt']}\n\n### Response:\n"} for row in reviews.prompts(700, seed)]
    write_rows(folder / "framed.jsonl", rows)
    return [f"data.prompts={{source: {folder / 'framed.jsonl'}, eval: 200, test: 10}}"]


def with_function(recipe: str, function: str) -> str:
    """Return the text of the recipe with a reward function in place of the trained reward model."""
    before, after = recipe.index("reward:\n"), recipe.index("ppo:\n")
    return f"{recipe[:before]}reward: {{function: '{Path(_REWARD_FILE).stem}:{function}'}}\n{recipe[after:]}"


FAULTS = (
    Fault("shuffled labels", "flag", "at_chance", ["data.preferences.label_noise=0.5", "reward.heldout=false"],
          "card", ("sft",)),
    Fault("length-only reward", "flag", "length_only", ["reward.heldout=false"], "card", ("sft",), longer_chosen),
    Fault("pad loophole: saying nothing pays", "alarm", "responses shrank from", ["ppo.missing_eos_penalty=null"],
          "ppo", ("sft",), None, "short"),
    Fault("kl_coef 0", "alarm", "nats per response: the policy is far from the reference",
          ["ppo.kl_coef=0", "ppo.num_ppo_epochs=4", "ppo.total_episodes=3840"]),
    Fault("template mismatch", "warning", "are framed differently", [], "reward", ("sft", "reward", "heldout"),
          other_frame),
    Fault("repeated text", "alarm", "the responses repeat themselves", ["ppo.kl_coef=0.02"], "ppo", ("sft",), None,
          "phrase"),
    Fault("loophole beside the reward model: complaints pay", "alarm", "the policy exploits its reward",
          ["ppo.rewards={reward: 1.0, 'alarm_rewards:complaint': 4.0}", "ppo.kl_coef=0.05", "reward.card=null",
           "data.prompts.rows=900", "data.prompts.eval=400"], "ppo", ("sft", "reward", "heldout")),
)  # fmt: skip


# ---------------------------------------------------------------- one run


def examined(fault: Fault | None, seed: int, folder: Path) -> Found:
    """Train one run, or what is missing of it, and return what the tool tells of it."""
    from rlhfctl.dashboard.causes import key_of
    from rlhfctl.report.facts.gather import gather

    name = slug(fault.name) if fault is not None else HEALTHY
    run = folder / f"seed-{seed}" / name
    run.mkdir(parents=True, exist_ok=True)
    recipe = run.parent / f"{name}.yaml"
    text = RECIPE.read_text(encoding="utf-8")
    recipe.write_text(with_function(text, fault.function) if fault is not None and fault.function else text)
    (run.parent / _REWARD_FILE).write_text(_REWARDS, encoding="utf-8")
    changes = [f"seed={seed}", f"data_seed={seed}", *(fault.changes if fault is not None else ())]
    if fault is not None:
        changes += fault.make(run.parent, seed) if fault.make is not None else ()
        take_stages(run.parent / HEALTHY, run, fault.shares)
    sets = [part for change in changes for part in ("--set", change)]
    until = fault.until if fault is not None else "ppo"
    command("run", str(recipe), "--run-dir", str(run), "--until", until, *sets)
    told = gather(run)
    card = told.card or {}
    return Found(
        seed,
        {key_of(alarm.sentence): alarm.first for alarm in told.alarms},
        [message for _, message in told.warnings],
        [flag["name"] for flag in card.get("flags", ())],
        gate_reasons(card),
    )


def gate_reasons(card: Mapping[str, object]) -> list[str]:
    """Return why the usual gate, `reward.gate: {}`, would stop the run; empty: it would not."""
    from rlhfctl import reward_card
    from rlhfctl.recipe.schema import Gate

    if not card:
        return []
    gate = reward_card.decided(card, Gate())
    return [] if gate is None or gate["passed"] else [str(reason) for reason in gate["reasons"]]


def command(*arguments: str) -> None:
    """Run the command line in this process: its imports take longer than a small stage."""
    from typer.testing import CliRunner

    from rlhfctl.cli import app

    result = CliRunner().invoke(app, list(arguments))
    if result.exit_code != 0:
        raise SystemExit(f"rlhfctl {' '.join(arguments)}: {result.exception!r}\n{result.output[-2_000:]}")


def take_stages(source: Path, run: Path, names: Sequence[str]) -> None:
    """Copy complete stages of another run, so that they are skipped in this one."""
    for name in names:
        if (source / name / "manifest.json").is_file() and not (run / name).exists():
            shutil.copytree(source / name, run / name)


def write_rows(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


# ---------------------------------------------------------------- the table


def detected(fault: Fault, found: Found) -> bool:
    """Tell whether the signal that is named for the fault appeared."""
    told: Sequence[str] = {"alarm": list(found.alarms), "warning": found.warnings, "flag": found.flags}[fault.signal]
    return any(fault.words in one for one in told)


def silent(found: Found) -> bool:
    """Tell whether nothing was told that the usual gate or a reader would stop at; the card's probes are no alarm."""
    return not (found.alarms or loud_warnings(found) or found.gate)


def loud_warnings(found: Found) -> list[str]:
    """Return the warnings without those that repeat a flag of the card: the gate decides about these."""
    return [one for one in found.warnings if not any(one.startswith(f"{flag}: ") for flag in found.flags)]


def row(fault: Fault, runs: Sequence[Found]) -> str:
    """Write a fault's line: its signal, how often and when it appeared, and the other alarms."""
    hits = [found for found in runs if detected(fault, found)]
    updates = [first for found in hits for words, first in found.alarms.items() if fault.words in words]
    when = f"{median(updates):.0f}" if fault.signal == "alarm" and updates else ""
    others = Counter(words for found in runs for words in found.alarms if fault.words not in words)
    also = "; ".join(f"{words} ({count})" for words, count in others.most_common())
    return f"| {fault.name} | {fault.signal}: {fault.words} | {len(hits)} of {len(runs)} | {when} | {also} |"


def table(results: Mapping[str, Sequence[Found]]) -> str:
    """Write the table of detections, and a line on the healthy runs with what was told of those not silent."""
    lines = ["| planted fault | must be told by | detected | median update | other alarms (runs) |", "| --- " * 5 + "|"]
    lines += [row(fault, results[fault.name]) for fault in FAULTS if results.get(fault.name)]
    if healthy := results.get(HEALTHY):
        loud = [found for found in healthy if not silent(found)]
        told = "; ".join(
            f"seed {found.seed}: {', '.join([*found.alarms, *loud_warnings(found), *found.gate])}" for found in loud
        )
        lines.append(
            f"| none: a healthy run | silence | silent {len(healthy) - len(loud)} of {len(healthy)} | | {told} |"
        )
    if healthy:
        flags = Counter(flag for found in healthy for flag in found.flags)
        said = ", ".join(f"{name} {count}" for name, count in flags.most_common()) or "none"
        lines += ["", f"Flags of the healthy runs' cards (runs of {len(healthy)}): {said}."]
    return "\n".join(lines)


# ---------------------------------------------------------------- all runs


def kept(folder: Path, name: str, seed: int, make: Callable[[], Found]) -> Found:
    """Return what was found before, or find it and keep it."""
    file = folder / "found" / f"{slug(name)}-{seed}.json"
    if not file.is_file():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".part").write_text(json.dumps(asdict(found)), encoding="utf-8")
        file.with_suffix(".part").rename(file)
        print(f"{name}, seed {seed}: {json.dumps(asdict(found))}", flush=True)
    return Found(**json.loads(file.read_text(encoding="utf-8")))


def campaign(folder: Path, seeds: int, healthy: int, first: int, only: Sequence[str]) -> dict[str, list[Found]]:
    """Run everything that is missing, seed by seed; return what was found by the fault's name."""
    results: dict[str, list[Found]] = {}
    chosen = [fault for fault in FAULTS if not only or fault.name in only]
    for seed in range(first, first + max(seeds, healthy)):
        if seed < first + healthy:
            found = kept(folder, HEALTHY, seed, lambda seed=seed: examined(None, seed, folder))  # type: ignore[misc]
            results.setdefault(HEALTHY, []).append(found)
        for fault in chosen if seed < first + seeds else ():
            found = kept(folder, fault.name, seed, lambda f=fault, s=seed: examined(f, s, folder))  # type: ignore[misc]
            results.setdefault(fault.name, []).append(found)
        for run in (folder / f"seed-{seed}").glob("*/"):
            shutil.rmtree(run)  # what it told is kept
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--healthy", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=[fault.name for fault in FAULTS])
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="alarms-"))
    results = campaign(folder.absolute(), given.seeds, given.healthy, given.first_seed, given.only)
    print(table(results))


if __name__ == "__main__":
    main()

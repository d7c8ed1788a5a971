"""Define and make the runs of `rlhfctl reproduce christiano`: labels asked by active choice, and at random.

Christiano et al. (2017, section 2.2.4) ask people about the pairs on which an ensemble of reward models differs most.
They report that it helps in some tasks and hurts in others. Here the two answers of a pair are samples of the
reference, the judge is the built-in one, and a reward model is measured by the true preference of the built-in task.

    base ──┬─▶ heldout-....jsonl: responses to test prompts, whose order by gold both reward models must find
           ├─▶ random: rounds of sample, label, reward with `members`; each round adds labels
           └─▶ active: the same with `sample.candidates`, from the second round on

No policy is trained, so both orders ask about the same kind of answers in all rounds. The first round is the same in
both: no members are there yet that could differ. Each box is a run folder of its own in FOLDER/seed-SEED. A stage that
is complete is skipped, so the same command goes on after a kill. Leaves out the numbers and what they amount to
(query_outcomes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from rlhfctl import fs
from rlhfctl.artifacts import load_artifact, read_json
from rlhfctl.events import Event
from rlhfctl.graph import Request
from rlhfctl.labels.items import Item, read_items
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.tools.reproduce.experiment import Job, carry_out, jobs_of

RANDOM, ACTIVE = "random", "active"
ORDERS = (RANDOM, ACTIVE)
SCORES = "heldout_scores.json"  # in the run folder of an order: each round's members' scores of the held-out responses
_STAGES = ("sample", "label", "reward")  # of a round; ppo is left out


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experiment. `questions`: asked in each round; `candidates`: drawn for each one that is chosen.

    `noise`: share of answers that the judge gives the wrong way round. `heldout_prompts`: test prompts with
    `heldout_responses` each, on which the reward models are measured.
    """

    questions: tuple[int, ...] = (20, 20, 40, 80, 160)
    candidates: int = 10
    members: int = 3
    noise: float = 0.1
    epochs: int = 4
    batch: int = 16  # pairs
    prompts: int = 3_360  # all that the built-in task has: no prompt is a candidate twice
    heldout_prompts: int = 300
    heldout_responses: int = 3
    hidden_size: int = 60
    layers: int = 2
    vocabulary: int = 512
    extra: Mapping[str, object] = field(default_factory=dict)  # further keys of the recipe

    @property
    def budgets(self) -> list[int]:
        """The number of questions asked so far, after each round."""
        return list(accumulate(self.questions))


SMALL = Sizes(
    questions=(24, 24, 48),
    candidates=3,
    members=2,
    batch=8,
    prompts=280,
    heldout_prompts=20,
    heldout_responses=2,
    hidden_size=40,
    extra={"data.demonstrations.rows": 2_000},
)
"""Sizes that only try the command: a minute, and no result of interest."""


def jobs(seed: int, folder: Path, sizes: Sizes) -> Iterator[Job]:
    """List the commands for one seed, in order; `folder`: that of the seed."""
    shared: dict[str, object] = {
        "model.init.hidden_size": sizes.hidden_size,
        "model.init.num_hidden_layers": sizes.layers,
        "model.init.vocab_size": sizes.vocabulary,
        "data.prompts.rows": sizes.prompts,
        "data.prompts.test": sizes.heldout_prompts,
        "data.prompts.eval": 0,
    }
    job = jobs_of("christiano", seed, shared | dict(sizes.extra))
    yield job("base", Request(until="sft"))
    made = str(folder / "base" / "sft")
    models = {"base": made, "policy": made}  # it writes the answers in every round
    asked: dict[str, object] = {
        "data__preferences": "{source: 'stage:label', heldout: 0.01}",  # one pair or a few: the test prompts measure
        "label": f"{{by: builtin, noise: {sizes.noise}}}",
        "rounds": f"{{count: {len(sizes.questions)}, labels: [{', '.join(map(str, sizes.questions))}]}}",
        "reward__members": sizes.members,
        "reward__checkpoint_steps": 1_000,  # a member trains for seconds
        "reward__trainer__num_train_epochs": sizes.epochs,
        "reward__trainer__per_device_train_batch_size": sizes.batch,
    }
    for order in ORDERS:
        candidates = sizes.candidates if order == ACTIVE else 1
        sample = f"{{prompts: {sum(sizes.questions)}, models: [base], candidates: {candidates}, batch_size: 256}}"
        for number in range(1, len(sizes.questions) + 1):
            for stage in _STAGES:
                yield job(order, Request(only=str(StageId(number, stage)), external=models), sample=sample, **asked)


def make(
    folder: Path, seeds: list[int], sizes: Sizes, listen: Callable[[Event], None], say: Callable[[str], None]
) -> None:
    """Make all runs that are not complete yet, one seed after the other, and score the held-out responses."""
    each = {seed: list(jobs(seed, folder / f"seed-{seed}", sizes)) for seed in seeds}
    total, number = sum(map(len, each.values())), 0
    for seed, todo in each.items():
        for job in todo:
            number += 1
            say(f"{number} of {total}: seed {seed}, {job.name}, {job.request.only or job.request.until}")
            carry_out(job, folder / f"seed-{seed}" / job.name, listen)
        _score_heldout(folder / f"seed-{seed}", sizes, listen, say)


def heldout_file(folder: Path) -> Path:
    """Return the file of the held-out responses, which belongs to one base; `folder`: that of the seed."""
    return folder / f"heldout-{load_artifact(folder / 'base' / 'sft').fingerprint[:8]}.jsonl"


def stage_folder(folder: Path, order: str, number: int, stage: str) -> Path:
    """Return the folder of a stage of one order in round `number` (1, 2, ...); `folder`: that of the seed."""
    return RunPaths(folder / order).stage(StageId(number, stage))


def texts(items: Sequence[Item]) -> list[tuple[str, str]]:
    """List the responses of all items with their prompts, in order."""
    return [(str(item.prompt), str(response)) for item in items for response in item.responses]


def _score_heldout(folder: Path, sizes: Sizes, listen: Callable[[Event], None], say: Callable[[str], None]) -> None:
    """Draw the held-out responses once; let the reward model of each order and round score them."""
    from rlhfctl.tools.sample import Wanted, sample
    from rlhfctl.tools.score import member_scores

    file = heldout_file(folder)
    if not file.is_file():
        sample(
            folder / "base",
            file,
            ["sft"],
            Wanted(responses=sizes.heldout_responses, split="test", batch_size=256),
            lambda sentence: None,  # it invites to judge them
            listen,
        )
    of_heldout, rounds = fs.hash_file(file), range(1, len(sizes.questions) + 1)
    for order in ORDERS:
        rewards = [stage_folder(folder, order, number, "reward") for number in rounds]
        of = [of_heldout, *(load_artifact(reward).fingerprint for reward in rewards)]
        kept = folder / order / SCORES
        if kept.is_file() and read_json(kept)["of"] == of:
            continue
        say(f"{folder.name}: the reward models of {order} order score the held-out responses")
        pairs = texts(read_items(file))
        fs.write_json(kept, {"of": of, "scores": [member_scores(reward, pairs) for reward in rewards]})

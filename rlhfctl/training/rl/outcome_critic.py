"""Train and ask the outcome critic: a copy of base* that reads a program and predicts how it will end.

It is a sequence-classification model with one label per outcome. Before PPO it learns from programs of the first
policy, with the outcomes that their tests had; then it is frozen, as in CodeRL (Le et al. 2022, section 3). Held-out
programs, to prompts that it did not learn from, say how often it is right. Saves and loads itself; the sandbox runs the
programs. The arithmetic is in coderl.py.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlhfctl.events import Work
from rlhfctl.models import architecture, build, loading
from rlhfctl.models.packing import Sequences, hidden_states, packed
from rlhfctl.recipe.sections.outcome_critic import OutcomeCritic as Section
from rlhfctl.training.rl import coderl

OUTCOMES = ("compile_error", "runtime_error", "failed", "passed")
PASSED = OUTCOMES.index("passed")
FOLDER = "outcome-critic"  # of the critic, in the folder of the ppo stage
HELD_OUT = 0.1  # share of the prompts whose programs measure the critic


@dataclass(frozen=True)
class Programs:
    """Programs to learn from: prompt and response as ids, and the index of the outcome in OUTCOMES."""

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    outcomes: Sequence[int]

    def take(self, indices: Sequence[int]) -> Programs:
        """Return some of the programs."""
        prompts, responses, outcomes = self.prompts, self.responses, self.outcomes
        return Programs([prompts[i] for i in indices], [responses[i] for i in indices], [outcomes[i] for i in indices])


class OutcomeCritic:
    """Predict the outcome of programs after each of their tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model

    @classmethod
    def on(cls, base: PreTrainedModel, *, seed: int) -> OutcomeCritic:
        """Make an untrained critic from the weights of a language model, with a new head drawn from `seed`."""
        config = copy.deepcopy(base.config)
        config.num_labels = len(OUTCOMES)
        config.id2label = dict(enumerate(OUTCOMES))
        config.label2id = {name: index for index, name in enumerate(OUTCOMES)}
        set_seed(seed)
        model = architecture.scorer_class(config)._from_config(config, dtype=base.dtype)
        getattr(model, model.base_model_prefix).load_state_dict(architecture.backbone(base).state_dict())
        return cls(loading.float32_head(model).to(base.device).eval())

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> OutcomeCritic:
        """Load a critic that save() wrote."""
        config = loading.read_config(str(folder), "outcome critic")
        model = architecture.scorer_class(config).from_pretrained(folder, local_files_only=True)
        return cls(model.to(device).eval().requires_grad_(False))

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write it as a sequence-classification model that transformers can load, with its tokenizer."""
        build.save_model(self.model, tokenizer, folder)

    def logits(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Compute logits (N, 4) after each response token, and (B, 4) of whole programs by the maximum over tokens."""
        states = hidden_states(architecture.backbone(self.model), sequences)[sequences.before_tokens() + 1]
        states = states.to(self.model.score.weight.dtype)
        rows = len(sequences.lengths)
        pooled = coderl.max_over_tokens(states, row_of(sequences), rows)
        return self.model.score(states), self.model.score(pooled)

    @torch.no_grad()
    def beliefs(self, sequences: Sequences, outcomes: Tensor) -> Tensor:
        """Compute the probability (N,) after each response token of the outcome (B,) that its program had."""
        return coderl.beliefs(self.logits(sequences)[0].float(), outcomes[row_of(sequences)])

    @torch.no_grad()
    def pass_chances(self, sequences: Sequences) -> list[list[float]]:
        """Compute the probability after each response token that the program passes: one list per program."""
        chances = torch.softmax(self.logits(sequences)[0].float(), -1)[:, PASSED]
        return [part.tolist() for part in chances.split(sequences.lengths.tolist())]


def row_of(sequences: Sequences) -> Tensor:
    """Return the program (N,) of each response token."""
    return torch.repeat_interleave(torch.arange(len(sequences.lengths), device=sequences.ids.device), sequences.lengths)


# ---------------------------------------------------------------- training


def train(critic: OutcomeCritic, programs: Programs, section: Section, *, seed: int) -> dict[str, float]:
    """Train the critic on programs, and measure it on held-out ones. Returns metrics `outcome_critic_...`.

    `accuracy` is the share of held-out programs whose outcome it predicts, `majority` the share of the most frequent
    outcome among them, which a critic that has learned nothing reaches.
    """
    learned, heldout = _divided(programs)
    device = critic.model.device
    generator = torch.Generator().manual_seed(seed)
    steps = section.epochs * max(1, len(learned.outcomes) // section.batch_size)
    critic.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(critic.model.parameters(), lr=section.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with packed(architecture.backbone(critic.model)), Work("teaching the outcome critic", steps, "step") as work:
        step = 0
        while step < steps:
            order = torch.randperm(len(learned.outcomes), generator=generator).tolist()
            for start in range(0, max(1, len(order) - section.batch_size + 1), section.batch_size):
                part = learned.take(order[start : start + section.batch_size])
                sequences = Sequences.of(part.prompts, part.responses, device)
                after_tokens, whole = critic.logits(sequences)
                outcomes = torch.tensor(part.outcomes, device=device)
                if section.learns == "beginnings":
                    loss = cross_entropy(after_tokens.float(), outcomes[row_of(sequences)])
                else:
                    loss = cross_entropy(whole.float(), outcomes)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(critic.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                step += 1
                work.advance(step)
                if step == steps:
                    break
        critic.model.requires_grad_(False)
        return measured(critic, heldout, section)


@torch.no_grad()
def measured(critic: OutcomeCritic, programs: Programs, section: Section) -> dict[str, float]:
    """Measure the critic on whole programs: accuracy, loss, and the share of the most frequent outcome."""
    right, loss = 0, 0.0
    for start in range(0, len(programs.outcomes), section.batch_size):
        part = programs.take(range(start, min(start + section.batch_size, len(programs.outcomes))))
        sequences = Sequences.of(part.prompts, part.responses, critic.model.device)
        after_tokens, whole = critic.logits(sequences)
        if section.learns == "beginnings":
            whole = after_tokens[sequences.lengths.cumsum(0) - 1]  # after the last token
        outcomes = torch.tensor(part.outcomes, device=whole.device)
        right += int((whole.argmax(-1) == outcomes).sum())
        loss += float(cross_entropy(whole.float(), outcomes, reduction="sum"))
    count = len(programs.outcomes)
    most = Counter(programs.outcomes).most_common(1)[0][1]
    return {
        "outcome_critic_accuracy": right / count,
        "outcome_critic_loss": loss / count,
        "outcome_critic_majority": most / count,
    }


def _divided(programs: Programs) -> tuple[Programs, Programs]:
    """Hold out the programs of HELD_OUT of the prompts, at least of one."""
    prompts = list(dict.fromkeys(tuple(prompt) for prompt in programs.prompts))
    last = set(prompts[-max(1, round(len(prompts) * HELD_OUT)) :])
    held = [index for index, prompt in enumerate(programs.prompts) if tuple(prompt) in last]
    others = [index for index, prompt in enumerate(programs.prompts) if tuple(prompt) not in last]
    return programs.take(others or held), programs.take(held)


def collected(
    prompts: Sequence[Sequence[int]],
    count: int,
    sample: Callable[[Sequence[int]], Sequence[Sequence[int]]],
    outcomes_of: Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[str]],
) -> Programs:
    """Sample `count` programs to the prompts in turn, and run them.

    `sample`: responses (ids) to the prompts of some indices. `outcomes_of`: their outcomes, from indices and responses.
    """
    indices = [number % len(prompts) for number in range(count)]
    responses = sample(indices)
    outcomes = [OUTCOMES.index(outcome) for outcome in outcomes_of(indices, responses)]
    return Programs([list(prompts[index]) for index in indices], responses, outcomes)

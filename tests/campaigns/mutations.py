"""Break PPO's code on purpose, one line at a time: the tests must notice every time.

    python tests/campaigns/mutations.py [--only SUBSTRING] [--jobs 1]

Copies rlhfctl/ and tests/ to a temporary folder, where training/rl and packing.py lose a sign, a mask, a clip. Each
mutation runs against the case of the parity with TRL that shows it, and if none can, or that one does not, against the
arithmetic's own tests. The unbroken copy has to pass all first. Prints one line per mutation; exit code 1 if one
survives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("rlhfctl", "tests", "recipes")
RL = "rlhfctl/training/rl"
MATH, LOOP = f"{RL}/ppo_math.py", f"{RL}/loop.py"
ALGORITHMS, COLLECT, LEARN, STEP = (f"{RL}/{name}.py" for name in ("algorithms", "collect", "learn", "minibatch"))
SEQUENCES, TENSORS = "rlhfctl/models/packing.py", "rlhfctl/models/tensors.py"
PARITY, ARITHMETIC = "tests/training/rl/test_ppo_parity.py", "tests/training/rl/test_ppo_math.py"
RESPONSES, GRADIENTS = f"{RL}/response_advantages.py", f"{RL}/policy_gradient.py"
WITHOUT_CRITIC = ("tests/training/rl/test_policy_gradient.py", "tests/training/rl/test_response_advantages.py")
NATURAL, FISHER, TRPO, MASKING = (
    f"{RL}/natural_gradient.py", f"{RL}/fisher.py", f"{RL}/trpo.py", "rlhfctl/generation/masking.py"
)  # fmt: skip
OF_NATURAL, OF_FISHER, OF_TRPO = (
    f"tests/training/rl/test_{name}.py" for name in ("natural_gradient", "fisher", "trpo")
)
OF_MASKING, OF_NLPO = "tests/generation/test_masking.py", "tests/training/rl/test_rl_masking.py"
PARITY_TEST = "test_the_same_numbers_as_trl"
TESTS_FAILED = 1  # pytest's exit code; others are about the tests themselves
WITHIN_S = 600


@dataclass(frozen=True)
class Mutation:
    """`old` stands once in `path`; `new` takes its place. `case` of the parity tests shows it; None if none can.

    `shown_by`: tests that show it instead.
    """

    name: str
    path: str
    old: str
    new: str
    case: str | None = "k1"
    shown_by: tuple[str, ...] = ()


def of_responses(name: str, path: str, old: str, new: str) -> Mutation:
    """A mutation of what the algorithms without a critic compute."""
    return Mutation(f"without a critic: {name}", path, old, new, case=None, shown_by=WITHOUT_CRITIC)


def shown(name: str, tests: str, path: str, old: str, new: str) -> Mutation:
    """A mutation that the file `tests` shows."""
    return Mutation(name, path, old, new, case=None, shown_by=(tests,))


MUTATIONS = [
    # signs
    Mutation("policy loss has its sign flipped", MATH, "plain = -advantages * ratio", "plain = advantages * ratio"),
    Mutation("KL is rewarded", MATH, "(-kl_coef * kl)", "(kl_coef * kl)"),
    Mutation("k1 has its sign flipped", MATH, "return -log_ratio\n", "return log_ratio\n"),
    Mutation(
        "k3 of the inverse ratio",
        MATH,
        "torch.expm1(log_ratio) - log_ratio",
        "torch.expm1(-log_ratio) + log_ratio",
        case="k3",
    ),
    Mutation("missing end is rewarded", MATH, "scores - penalty)", "scores + penalty)", case="missing-eos penalty"),
    Mutation(
        "ends pay for missing ends",
        MATH,
        "where(ended, scores, scores - penalty)",
        "where(ended, scores - penalty, scores)",
        case="missing-eos penalty",
    ),
    # masks
    Mutation("one token too many", MATH, "[None, :] < lengths[:, None]", "[None, :] <= lengths[:, None]"),
    Mutation(
        "states one token late",
        SEQUENCES,
        "first = self.starts + self.prompt_lengths - 1",
        "first = self.starts + self.prompt_lengths",
    ),
    Mutation("one state too few", MATH, "[None, :] <= lengths[:, None]", "[None, :] < lengths[:, None]"),
    Mutation(
        "policy loss over padding",
        MATH,
        "return PolicyTerms(losses.sum() / count,",
        "return PolicyTerms(losses.mean(),",
    ),
    Mutation(
        "padding counts as clipped",
        MATH,
        "clip_fraction = is_clipped.sum() / count\n        approx_kl",
        "clip_fraction = is_clipped.double().mean()\n        approx_kl",
    ),
    Mutation(
        "value loss over padding", MATH, "clipped_error), mask) / 2", "clipped_error), mask | True) / 2", case=None
    ),
    Mutation(
        "padding enters the mean of whitening", MATH, "    mean = masked_mean(values, mask)", "    mean = values.mean()"
    ),
    Mutation(
        "padding enters the variance of whitening",
        MATH,
        "masked_sum((values - mean) ** 2, mask) / (count - 1)",
        "((values - mean) ** 2).sum() / (count - 1)",
    ),
    Mutation("whitening by n", MATH, "/ (count - 1).clamp(min=1)", "/ count"),
    Mutation(
        "advantages whitened over states",
        ALGORITHMS,
        "whiten(advantages, mask)",
        "whiten(advantages, experience.value_mask)",
    ),
    # rewards and advantages
    Mutation("score one column early", MATH, "end = lengths.clamp(", "end = (lengths - 1).clamp("),
    Mutation(
        "score in the last column",
        MATH,
        "scatter_add(1, end[:, None]",
        "scatter_add(1, 0 * end[:, None] + kl.shape[1] - 1",
    ),
    Mutation(
        "gamma and lambda swapped",
        ALGORITHMS,
        "experience.value_mask, section.gamma, section.lam",
        "experience.value_mask, section.lam, section.gamma",
    ),
    Mutation("lambda dropped", MATH, "gamma * lam * running", "gamma * running"),
    Mutation(
        "gamma dropped from the errors",
        MATH,
        "rewards + gamma * following",
        "rewards + following",
        case="gamma and lambda",
    ),
    Mutation(
        "returns are the advantages", MATH, "return advantages, advantages + values", "return advantages, advantages"
    ),
    Mutation(
        "advantages scaled, not centred",
        ALGORITHMS,
        "whiten(advantages, mask)",
        "whiten(advantages, mask, centre=False)",
    ),
    Mutation(
        "rewards centred",
        COLLECT,
        "whiten(rewards, experience.value_mask, centre=False)",
        "whiten(rewards, experience.value_mask)",
        case="whitened rewards",
    ),
    # clipping
    Mutation(
        "clip bounds swapped",
        MATH,
        "clamp(1.0 - cliprange, 1.0 + cliprange)",
        "clamp(1.0 + cliprange, 1.0 - cliprange)",
    ),
    Mutation("no upper clip bound", MATH, "clamp(1.0 - cliprange, 1.0 + cliprange)", "clamp(min=1.0 - cliprange)"),
    Mutation("no lower clip bound", MATH, "clamp(1.0 - cliprange, 1.0 + cliprange)", "clamp(max=1.0 + cliprange)"),
    Mutation("the better of plain and clipped", MATH, "torch.maximum(plain, clipped)", "torch.minimum(plain, clipped)"),
    Mutation("values not clipped", MATH, "torch.maximum(plain_error, clipped_error)", "plain_error"),
    Mutation(
        "values clipped about zero",
        MATH,
        "torch.maximum(values, old_values - cliprange)",
        "torch.maximum(values, -cliprange + 0 * old_values)",
    ),
    Mutation("value clip range of the policy", STEP, "section.cliprange_value,", "section.cliprange,"),
    # the step
    Mutation(
        "value loss divided by tokens",
        STEP,
        "        section.cliprange_value,\n        states,\n",
        "        section.cliprange_value,\n        experience.response_mask.sum(),\n",
    ),
    Mutation("policy loss divided by states", STEP, "part, tokens, responses)\n", "part, states, responses)\n"),
    Mutation("value loss not halved", MATH, "clipped_error), mask) / 2 / count", "clipped_error), mask) / count"),
    Mutation("vf_coef ignored", STEP, "section.vf_coef * terms.loss", "terms.loss"),
    Mutation(
        "temperature ignored in the update",
        STEP,
        "sequences.tokens(),\n        section.temperature,",
        "sequences.tokens(),\n        1.0,",
        case="temperature",
    ),
    Mutation(
        "gradients kept from step to step",
        STEP,
        "    optimizer.step()\n    optimizer.zero_grad()",
        "    optimizer.step()",
    ),
    Mutation("learning rate never scheduled", LOOP, "        self.scheduler.step()\n", ""),
    Mutation(
        "norms and biases decayed",
        LEARN,
        '"params": others, "weight_decay": 0.0',
        '"params": others, "weight_decay": section.weight_decay',
        case="weight decay, cosine, warm-up",
    ),
    Mutation("one PPO epoch", LEARN, "in range(section.passes)", "in range(1)"),
    Mutation(
        "weights not decayed",
        LEARN,
        '"weight_decay": section.weight_decay}',
        '"weight_decay": 0.0}',
        case="weight decay, cosine, warm-up",
    ),
    # beyond what is compared with TRL
    Mutation("k2 not halved", MATH, "log_ratio**2 / 2\n", "log_ratio**2\n", case=None),
    Mutation("k3 by exp", MATH, "torch.expm1(log_ratio) - log_ratio", "log_ratio.exp() - 1 - log_ratio", case=None),
    Mutation(
        "fixed score for ends",
        MATH,
        "where(ended, scores, torch.full_like(scores, score))",
        "where(ended, torch.full_like(scores, score), scores)",
        case=None,
    ),
    Mutation(
        "approx_kl not halved",
        MATH,
        "masked_sum(log_ratio**2, mask) / 2 / count",
        "masked_sum(log_ratio**2, mask) / count",
        case=None,
    ),
    Mutation("entropy has its sign flipped", TENSORS, "return -(logprobs.exp()", "return (logprobs.exp()", case=None),
    Mutation("explained variance of the values", MATH, "(returns - values)[mask]", "values[mask]", case=None),
    # algorithms without a critic
    of_responses("own reward in the baseline", RESPONSES, "keepdim=True) - groups)", "keepdim=True))"),
    of_responses("others' mean by k", RESPONSES, "(section.num_generations - 1)", "section.num_generations"),
    of_responses("baseline is added", RESPONSES, "(rewards - baselines)", "(rewards + baselines)"),
    of_responses("deviation of all groups", RESPONSES, "groups.std(1, keepdim=True)", "groups.std()"),
    of_responses("-A log p has its sign flipped", GRADIENTS, "(-advantages * logprobs", "(advantages * logprobs"),
    of_responses("responses divided by tokens", GRADIENTS, "given, given.responses)", "given, given.tokens)"),
    of_responses("KL of grpo is rewarded", GRADIENTS, "losses + section.kl_coef", "losses - section.kl_coef"),
    of_responses("KL of grpo twice", COLLECT, "section.kl_coef if algorithm.kl_in_reward else 0.0", "section.kl_coef"),
    of_responses("last reward as the baseline", LOOP, "statistics.fmean(earlier) if", "earlier[-1] if"),
    # trpo
    shown(
        "trpo: residual grows", OF_NATURAL, NATURAL, "residual - length * multiplied", "residual + length * multiplied"
    ),
    shown("trpo: half of the KL", OF_NATURAL, NATURAL, "(2 * max_kl / curvature)", "(max_kl / curvature)"),
    shown("trpo: a worse step", OF_NATURAL, NATURAL, "trial.surrogate > start and trial.kl", "trial.kl"),
    shown("trpo: a step too far", OF_NATURAL, NATURAL, " and trial.kl <= max_kl", ""),
    shown(
        "trpo: S without p p'",
        OF_FISHER,
        FISHER,
        "return weighted - p * weighted.sum(-1, keepdim=True)",
        "return weighted",
    ),
    shown("trpo: J without temperature", OF_FISHER, FISHER, "its_change)) / temperature)", "its_change)))"),
    shown("trpo: F is a sum", OF_TRPO, TRPO, "return total / self.tokens", "return total"),
    shown("trpo: a refused step stays", OF_TRPO, TRPO, "self._move(torch.zeros_like(direction))", "pass"),
    shown(
        "trpo: surrogate has its sign flipped", OF_TRPO, TRPO, "(-given.advantages * ratio", "(given.advantages * ratio"
    ),
    # nlpo
    shown(
        "nlpo: ends are masked", OF_MASKING, MASKING, "return allowed.index_fill_(1, always, True)", "return allowed"
    ),
    shown(
        "nlpo: drawn from all",
        OF_MASKING,
        "rlhfctl/generation/local.py",
        "inverse_cdf(within.exp()",
        "inverse_cdf(logp.exp()",
    ),
    shown("nlpo: learned without the mask", OF_NLPO, STEP, "section, experience.allowed(part)", "section, None"),
    shown("nlpo: kept probability twice", OF_NLPO, COLLECT, "kept = torch.zeros_like(kept)", "pass"),
    shown("nlpo: never renewed", OF_NLPO, LOOP, "number % section.nlpo.target_update_iterations == 0", "number < 0"),
    shown(
        "nlpo: mask not saved",
        OF_NLPO,
        f"{RL}/roles.py",
        "changed = self.trainable() | masking.weights_of(self.masking)",
        "changed = self.trainable()",
    ),
]


def copy_to(folder: Path) -> None:
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def check_import(folder: Path) -> None:
    """Exit unless Python started in `folder` imports the copy: the checkout is installed editable as well."""
    code = "import rlhfctl.training.rl.ppo_math as m; print(m.__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(folder), capture_output=True, text=True, check=True
    )
    if Path(ran.stdout.strip()).resolve() != (folder / MATH).resolve():
        sys.exit(f"the copy is not what is imported, but {ran.stdout.strip()}")


def run_tests(folder: Path, tests: str) -> tuple[int, str]:
    """pytest's exit code, and the test that failed or the end of the output."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(folder / "t"),
        tests,
    ]
    ran = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    failed = re.search(r"^FAILED tests/training/(.+?)(?: - |$)", ran.stdout, re.MULTILINE)
    return ran.returncode, failed.group(1) if failed else (ran.stdout + ran.stderr)[-1500:]


def mutated(folder: Path, mutation: Mutation) -> None:
    """Break the copy. ValueError unless there is exactly one place to break."""
    path = folder / mutation.path
    source = path.read_text(encoding="utf-8")
    if (found := source.count(mutation.old)) != 1:
        raise ValueError(f"{mutation.name}: {mutation.old!r} stands {found} times in {mutation.path}, not once")
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")


def outcome(mutation: Mutation) -> tuple[bool, str]:
    """Whether the tests noticed, and the line that says so."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        folder = Path(temporary)
        copy_to(folder)
        mutated(folder, mutation)
        shown = [] if mutation.case is None else [f"{PARITY}::{PARITY_TEST}[{mutation.case}]"]
        for tests in (*shown, *(mutation.shown_by or (ARITHMETIC,))):
            code, said = run_tests(folder, tests)
            if code == TESTS_FAILED:
                took = f"{time.monotonic() - began:.0f} s"
                return True, f"FAILED as it should  {mutation.name}: {said} ({took})"
            if code != 0:
                return False, f"BROKEN (exit {code})  {mutation.name}: {said}"
    return False, f"SURVIVED  {mutation.name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only in m.name]
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        folder = Path(temporary)
        copy_to(folder)
        check_import(folder)
        for mutation in chosen:  # every text is there, before minutes are spent
            source = (folder / mutation.path).read_text(encoding="utf-8")
            mutated(folder, mutation)
            compile((folder / mutation.path).read_text(encoding="utf-8"), mutation.path, "exec")
            (folder / mutation.path).write_text(source, encoding="utf-8")
        for tests in (PARITY, ARITHMETIC):
            code, said = run_tests(folder, tests)
            if code != 0:
                sys.exit(f"unmutated, {tests} fails: {said}")
            print(f"passed unmutated  {tests}", flush=True)
    survivors = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for noticed, line in pool.map(outcome, chosen):
            print(line, flush=True)
            survivors += not noticed
    print(f"{len(chosen) - survivors} noticed, {survivors} not")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

"""Rewards of the exercises on letters: responses of letters from a to d, with the signature of any reward function."""


def echo(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
    """1 for a response that begins with the prompt's last letter, else 0."""
    return [float(answer[:1] == prompt[-1:]) for prompt, answer in zip(prompts, completions, strict=True)]


def echo_with_bonus(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
    """The same, and two points more for a prompt that begins with a, whatever the response is."""
    return [echo([p], [c])[0] + 2.0 * p.startswith("a") for p, c in zip(prompts, completions, strict=True)]


def echo_in_hundredths(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
    """The same as echo, in hundredths: 0.01 or 0."""
    return [score / 100 for score in echo(prompts, completions)]

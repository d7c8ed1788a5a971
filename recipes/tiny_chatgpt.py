"""The reward of tiny-chatgpt.yaml, with the signature that any reward function has."""

SHORTEST, LONGEST = 2, 8


def odd_parity(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
    """1 for a completion of two to eight tokens with an odd number of b's, else 0."""
    return [
        1.0 if SHORTEST <= len(completion) <= LONGEST and completion.count("b") % 2 == 1 else 0.0
        for completion in completions
    ]

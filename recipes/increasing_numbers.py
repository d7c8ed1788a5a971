"""The reward of increasing-numbers.yaml, with the signature that any reward function has."""

SHORTEST = 10  # words: a shorter response is counted as if it had so many


def increasing(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
    """Share of a response's words that are the numbers of a sequence which increases from the first number on."""
    return [share(completion.split()) for completion in completions]


def share(words: list[str]) -> float:
    """Count numbers until one is not larger than the last; words that are no numbers only make the response longer."""
    numbers = [int(word) for word in words if word.isdecimal()]
    count = 0
    for number in numbers:
        if count and number <= numbers[count - 1]:
            break
        count += 1
    return count / max(len(words), SHORTEST)

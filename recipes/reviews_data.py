"""Make the three data files of reviews.yaml from `rotten_tomatoes` on the Hub.

    python recipes/reviews_data.py FOLDER

Demonstrations continue the first one to three words of a review. Preferences pair a positive and a negative review that
begin with the same words, the positive one chosen. Prompts are beginnings that occur at least twice.
"""

import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

LONGEST_BEGINNING = 3  # words
LONGEST_SHARED = 2


def split(text: str, words: int) -> tuple[str, str]:
    """(the first `words` words, the rest with its leading space)."""
    parts = text.split(" ")
    return " ".join(parts[:words]), " " + " ".join(parts[words:])


def make(positive: list[str], negative: list[str], folder: Path, seed: int = 0) -> None:
    """Write demonstrations.jsonl, preferences.jsonl and prompts.jsonl into `folder`."""
    draw = random.Random(seed)
    everything = [text for text in positive + negative if len(text.split(" ")) > LONGEST_BEGINNING]
    draw.shuffle(everything)
    demonstrations = []
    for text in everything:
        prompt, completion = split(text, draw.randint(1, LONGEST_BEGINNING))
        demonstrations.append({"prompt": prompt, "completion": completion})

    pairs = []
    for words in range(LONGEST_SHARED, 0, -1):
        sides: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for index, texts in enumerate((positive, negative)):
            for text in texts:
                if len(text.split(" ")) > LONGEST_BEGINNING:
                    prompt, rest = split(text, words)
                    sides[prompt][index].append(rest)
        for prompt, (kind, unkind) in sorted(sides.items()):
            draw.shuffle(kind)
            draw.shuffle(unkind)
            matched = zip(kind, unkind, strict=False)
            pairs += [{"prompt": prompt, "chosen": a, "rejected": b} for a, b in matched if a != b]
    draw.shuffle(pairs)

    counts = Counter(split(text, words)[0] for text in everything for words in range(1, LONGEST_BEGINNING + 1))
    prompts = [{"prompt": prompt} for prompt, count in sorted(counts.items()) if count > 1]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("demonstrations", demonstrations), ("preferences", pairs), ("prompts", prompts)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    from datasets import load_dataset

    rows = load_dataset("rotten_tomatoes", split="train")
    make(
        [row["text"] for row in rows if row["label"] == 1],
        [row["text"] for row in rows if row["label"] == 0],
        Path(sys.argv[1]),
    )

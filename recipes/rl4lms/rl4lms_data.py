"""Make the data files of the recipes in this folder from the public data sets of RL4LMs' tasks (needs the Hub).

    python recipes/rl4lms/rl4lms_data.py TASK FOLDER [--limit ROWS]

Writes FOLDER/TASK/demonstrations.jsonl and prompts.jsonl from the training split, and test.jsonl from the test split.
Prompts are worded as in RL4LMs (allenai/RL4LMs, rl4lms/data_pools). That code trains encoder-decoders mostly; a causal
model also has to see where a prompt ends, which the words in ENDS say. The column `reference` holds a row's references.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ENDS = {  # task -> what ends a prompt
    "cnn-dailymail": "\n\nSummary:",
    "iwslt-en-de": "\nGerman:",
    "totto": "\nSentence:",
    "common-gen": "\nSentence:",
    "narrative-qa": "\nAnswer:",
}
ARTICLE_WORDS = 350  # about 512 tokens, where RL4LMs cuts the end of an article
STORY_WORDS = 350
TURNS = 5  # of a dialogue, before the answer
END_OF_TURN = "<EOU>"


# ---------------------------------------------------------------- one row of a data set -> prompt, references


def imdb(row: Row) -> Iterator[Row]:
    """Continue a review: its first half is the prompt. Only positive reviews would be demonstrations."""
    words = row["text"].replace("<br />", " ").split()
    half = len(words) // 2
    if half:
        yield made("imdb", " ".join(words[:half]), [" ".join(words[half:])])


def cnn_dailymail(row: Row) -> Iterator[Row]:
    article = " ".join(row["article"].split()[:ARTICLE_WORDS])
    yield made("cnn-dailymail", f"Summarize: {article}", [row["highlights"]])


def iwslt(row: Row) -> Iterator[Row]:
    pair = row["translation"]
    yield made("iwslt-en-de", f"translate English to German: {pair['en']}", [pair["de"]])


def totto(row: Row) -> Iterator[Row]:
    """Describe the highlighted cells of a table, each with the headers above it and before it in its row."""
    references = [text for text in row["sentence_annotations"]["final_sentence"] if text]
    if references:
        titles = f"<page_title> {row['table_page_title']} </page_title> "
        titles += f"<section_title> {row['table_section_title']} </section_title> "
        yield made("totto", titles + cells_of(row["table"], row["highlighted_cells"]), references)


def common_gen(row: Row) -> Iterator[Row]:
    references = [text for text in (row["target"], *row.get("references", ())) if text]
    if references:
        yield made("common-gen", f"generate a sentence with: {' '.join(row['concepts'])}.", references)


def daily_dialog(row: Row) -> Iterator[Row]:
    """Answer in a dialogue: each turn that has five before it is one row."""
    turns = row["dialog"]
    for number in range(TURNS, len(turns)):
        context = END_OF_TURN.join(turns[number - TURNS : number])
        yield made("daily-dialog", f"{context} {END_OF_TURN}", [turns[number].strip()])


def narrative_qa(row: Row) -> Iterator[Row]:
    """Answer a question about a story's summary; lower case, as in UnifiedQA."""
    story = " ".join(row["document"]["summary"]["text"].split()[:STORY_WORDS])
    references = [answer["text"].lower().strip() for answer in row["answers"]]
    yield made("narrative-qa", f"{row['question']['text']} \n {story}".lower(), references)


def made(task: str, prompt: str, references: list[str]) -> Row:
    return {"prompt": prompt + ENDS.get(task, ""), "reference": references}


def cells_of(table: list[list[Row]], highlighted: Iterable[list[int]]) -> str:
    """Write the highlighted cells in one line, in ToTTo's marks. A cell may span several columns."""
    starts = [starts_of(line) for line in table]
    parts = []
    for row, column in highlighted:
        cell, start = table[row][column], starts[row][column]
        end = start + cell["column_span"]
        above = [
            other["value"]
            for line, begins in zip(table[:row], starts, strict=False)
            for other, begin in zip(line, begins, strict=True)
            if other["is_header"] and begin < end and begin + other["column_span"] > start
        ]
        before = [other["value"] for other in table[row][:column] if other["is_header"]]
        headers = "".join(f"<col_header> {text} </col_header> " for text in above)
        headers += "".join(f"<row_header> {text} </row_header> " for text in before)
        parts.append(f"<cell> {cell['value']} {headers}</cell> ")
    return f"<table> {''.join(parts)}</table>"


def starts_of(line: list[Row]) -> list[int]:
    """Count for each cell of a table's row the columns before it."""
    starts, column = [], 0
    for cell in line:
        starts.append(column)
        column += cell["column_span"]
    return starts


# ---------------------------------------------------------------- the files

# task -> how a row is made, the data set on the Hub, its configuration, its training split, its test split
TASKS: dict[str, tuple[Callable[[Row], Iterator[Row]], str, str | None, str, str]] = {
    "imdb": (imdb, "stanfordnlp/imdb", None, "train", "test"),
    "cnn-dailymail": (cnn_dailymail, "abisee/cnn_dailymail", "3.0.0", "train", "test"),
    "iwslt-en-de": (iwslt, "IWSLT/iwslt2017", "iwslt2017-de-en", "train", "test"),
    "totto": (totto, "google-research-datasets/totto", None, "train", "validation"),  # its test has no references
    "common-gen": (common_gen, "GEM/common_gen", None, "train", "validation"),
    "daily-dialog": (daily_dialog, "li2017dailydialog/daily_dialog", None, "train", "test"),
    "narrative-qa": (narrative_qa, "deepmind/narrativeqa", None, "train", "test"),
}


def make(task: str, train: Iterable[Row], test: Iterable[Row], folder: Path) -> None:
    """Write the three files of a task from the rows of its training split and its test split."""
    row_of = TASKS[task][0]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "demonstrations.jsonl").open("w") as demonstrations, (folder / "prompts.jsonl").open("w") as prompts:
        for source in train:
            for row in row_of(source):
                prompts.write(json.dumps(row) + "\n")
                shown = {"prompt": row["prompt"], "completion": f" {row['reference'][0].strip()}"}
                demonstrations.write(json.dumps(shown) + "\n")
    with (folder / "test.jsonl").open("w") as file:
        for source in test:
            file.writelines(json.dumps(row) + "\n" for row in row_of(source))


def main() -> None:
    from datasets import load_dataset

    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, help="rows of each split to read, from the first")
    given = parser.parse_args()
    _, name, subset, train, test = TASKS[given.task]
    cut = "" if given.limit is None else f"[:{given.limit}]"
    sets = [load_dataset(name, subset, split=f"{split}{cut}") for split in (train, test)]
    make(given.task, *sets, given.folder / given.task)


if __name__ == "__main__":
    main()

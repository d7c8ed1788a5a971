"""Every shape of data through the whole `run`: what reaches each trainer is what stands in the files.

A run takes three data sets, so each carries three formats too. The rows are recorded where TRL's trainers get them,
and PPO's where it answers them, and are compared as text with what the files say.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import families
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict
from families import CHAT, FAMILIES
from test_families import RECIPE, prepare, run_all, traces

from rlhfctl.artifacts import load_artifact
from rlhfctl.errors import RecipeError
from rlhfctl.events import Event, Note, StageStarted
from rlhfctl.models import tokenizing
from rlhfctl.stages import reward, sft

ROWS, TEST, EVAL, HELDOUT = 21, 3, 2, 0.25
QUESTION = "number {}, and a comma:"
Messages = list[dict[str, str]]


def asked(n: int) -> str:
    return QUESTION.format(n)


def good(n: int) -> str:
    return f' it is "{n}"'


def bad(n: int) -> str:
    return f" go away {n}"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text.strip()}


def chat(*messages: dict[str, str], opened: bool = False) -> str:
    """As the template of the tests writes it."""
    text = "".join(f"<|{m['role']}|>{m['content']}<|end|>\n" for m in messages)
    return text + "<|assistant|>" if opened else text.removesuffix("\n")


# ---------------------------------------------------------------- formats


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def arrow(path: Path, rows: list[Any]) -> None:
    content = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
        writer.write_table(content)


# ---------------------------------------------------------------- shapes


@dataclass
class Case:
    """A shape: its files, what the recipe says of them, and the texts that must come of them."""

    write: Callable[[Path], None]
    data: dict[str, dict[str, Any]]
    demonstrations: list[str]
    pairs: list[tuple[str, str, float | None]]
    prompts: list[str]
    conversational: bool = False
    notes: tuple[str, ...] = ()
    hub: dict[str, list[Any]] = field(default_factory=dict)


def texts(numbers: range = range(ROWS), end: str = "</s>") -> list[str]:
    return [asked(n) + good(n) + end for n in numbers]


def text_pairs(margin: float | None = None) -> list[tuple[str, str, float | None]]:
    return [(asked(n) + good(n) + "</s>", asked(n) + bad(n) + "</s>", margin) for n in range(ROWS)]


def chats(*before: Callable[[int], dict[str, str]]) -> list[str]:
    return [chat(*(one(n) for one in before), user(asked(n)), said(good(n))) for n in range(ROWS)]


def chat_pairs(*before: Callable[[int], dict[str, str]]) -> list[tuple[str, str, float | None]]:
    both = [[chat(*(one(n) for one in before), user(asked(n)), said(a(n))) for a in (good, bad)] for n in range(ROWS)]
    return [(chosen, rejected, None) for chosen, rejected in both]


def explicit(folder: Path) -> None:
    demonstrations = [{"question": asked(n), "answer": good(n)} for n in range(ROWS)]
    (folder / "demos.csv").write_bytes(table(demonstrations, ","))
    pairs = [{"prompt": asked(n), "chosen": good(n), "rejected": bad(n)} for n in range(ROWS)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(pairs), folder / "pairs.parquet")
    (folder / "prompts.txt.gz").write_bytes(gzip.compress("\n".join(asked(n) for n in range(ROWS)).encode()))


def conversations(folder: Path) -> None:
    (folder / "demos.jsonl").write_bytes(jsonl([{"messages": [user(asked(n)), said(good(n))]} for n in range(ROWS)]))
    pairs = [
        {"prompt": [user(asked(n))], "chosen": [said(good(n))], "rejected": [said(bad(n))], "id": n}
        for n in range(ROWS)
    ]
    (folder / "pairs.json").write_text(json.dumps({"version": 1, "rows": pairs}))
    arrow(folder / "prompts.arrow", [{"messages": [user(asked(n))], "source": "forum"} for n in range(ROWS)])


def implicit(folder: Path) -> None:
    """Plain text; pairs without a prompt; a margin in a cell; ties as spreadsheets write them."""
    (folder / "demos.txt").write_text("\n".join(asked(n) + good(n) for n in range(ROWS)))
    row = {"margin": 1.5, "tie": "FALSE"}
    pairs = [{"chosen": asked(n) + good(n), "rejected": asked(n) + bad(n)} | row for n in range(ROWS)]
    pairs += [
        {"chosen": f"either {word}", "rejected": f"either {word}s"} | row | {"tie": word} for word in ("TRUE", "1")
    ]
    (folder / "pairs.tsv").write_bytes(table(pairs, "\t"))
    (folder / "prompts").mkdir()
    half = ROWS // 2
    (folder / "prompts" / "a.csv").write_bytes(table([{"prompt": asked(n), "tag": n} for n in range(half)], ","))
    (folder / "prompts" / "b.jsonl").write_bytes(jsonl([{"prompt": asked(n)} for n in range(half, ROWS)]))


def transcript(n: int, answer: str) -> str:
    return f"\n\nHuman: hello {n}\n\nAssistant: yes?\n\nHuman: {asked(n)}\n\nAssistant:{answer}"


def transcripts(folder: Path) -> None:
    (folder / "demos.jsonl").write_bytes(jsonl([{"text": transcript(n, good(n))} for n in range(ROWS)]))
    pairs = [{"chosen": transcript(n, good(n)), "rejected": transcript(n, bad(n))} for n in range(ROWS)]
    pairs.append({"chosen": "no turns at all", "rejected": "none here"})
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(jsonl(pairs)))
    (folder / "prompts.json").write_text(json.dumps([{"prompt": transcript(n, "")} for n in range(ROWS)]))


GREETED: tuple[Callable[[int], dict[str, str]], ...] = (lambda n: user(f"hello {n}"), lambda n: said("yes?"))


def ranked(folder: Path) -> None:
    rows = [
        {"prompt": asked(n), "responses": [bad(n), good(n), f" so so {n}", good(n)], "scores": [-1.0, 2.5, 0.0, 2.5]}
        for n in range(ROWS)
    ]
    (folder / "pairs.json").write_text(json.dumps(rows))
    both = {
        "train": [{"prompt": asked(n), "completion": good(n)} for n in range(ROWS)],
        "test": [{"prompt": "not this"}],
    }
    DatasetDict({name: Dataset.from_list(rows) for name, rows in both.items()}).save_to_disk(folder / "saved")


def ranked_pairs() -> list[tuple[str, str, float | None]]:
    found = []
    for n in range(ROWS):
        so_so = asked(n) + f" so so {n}</s>"
        chosen, rejected = asked(n) + good(n) + "</s>", asked(n) + bad(n) + "</s>"
        found += [(chosen, rejected, None), (chosen, so_so, None)] * 2 + [(so_so, rejected, None)]
    return found


SPLIT = {"eval": EVAL, "test": TEST}
CASES = {
    "explicit prompts": Case(
        explicit,
        {
            "demonstrations": {"source": "demos.csv", "columns": {"prompt": "question", "completion": "answer"}},
            "preferences": {"source": "pairs.parquet"},
            "prompts": {"source": "prompts.txt.gz"},
        },
        texts(),
        text_pairs(),
        [asked(n) for n in range(ROWS)],
    ),
    "conversations": Case(
        conversations,
        {
            "demonstrations": {"source": "demos.jsonl"},
            "preferences": {"source": "pairs.json"},
            "prompts": {"source": "prompts.arrow"},
        },
        chats(),
        chat_pairs(),
        [chat(user(asked(n)), opened=True) for n in range(ROWS)],
        conversational=True,
    ),
    "implicit prompts, margins and ties": Case(
        implicit,
        {
            "demonstrations": {"source": "demos.txt"},
            "preferences": {"source": "pairs.tsv"},
            "prompts": {"source": "prompts"},
        },
        texts(),
        text_pairs(margin=1.5),
        [asked(n) for n in range(ROWS)],
        notes=("data.preferences: dropped: 2 ties",),
    ),
    "transcripts": Case(
        transcripts,
        {
            "demonstrations": {"source": "demos.jsonl", "turns": {}},
            "preferences": {"source": "pairs.jsonl.gz", "turns": {}, "bad_rows": "drop"},
            "prompts": {"source": "prompts.json", "turns": {}},
        },
        chats(*GREETED),
        chat_pairs(*GREETED),
        [chat(*(one(n) for one in GREETED), user(asked(n)), opened=True) for n in range(ROWS)],
        conversational=True,
        notes=(f"1 of {ROWS + 1} rows cannot be used and are dropped", "begins with no turn"),
    ),
    "ranked lists": Case(
        ranked,
        {
            "demonstrations": {"source": "saved"},
            "preferences": {"source": "pairs.json"},
            "prompts": {"source": "owner/prompts", "split": "test", "subset": "small"},
        },
        texts(),
        ranked_pairs(),
        [asked(n) for n in range(ROWS)],
        notes=(f"data.preferences: {5 * ROWS} pairs of {ROWS} rows", f"dropped: {ROWS} ties"),
        hub={"owner/prompts": [{"prompt": asked(n)} for n in range(ROWS)]},
    ),
}


# ---------------------------------------------------------------- runs


@dataclass
class Seen:
    """A finished run, and the rows that its trainers were given, as ids."""

    case: Case
    run: Path
    events: list[Event]
    rows: dict[str, list[dict[str, Any]]]
    asked_of_hub: list[Any]

    def read(self, ids: list[int]) -> str:
        return str(tokenizing.load_tokenizer(str(self.run / "sft" / "model")).decode(ids))


@pytest.fixture(scope="module", params=CASES)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("shape")
    families.write(FAMILIES["llama" if case.conversational else "qwen3"], folder / "base")
    (folder / "chat.jinja").write_text(CHAT)
    case.write(folder)
    before, rest = RECIPE.split("data:\n")
    data = {name: section | (SPLIT if name == "prompts" else {}) for name, section in case.data.items()}
    data["preferences"]["heldout"] = HELDOUT
    template = ", chat_template: chat.jinja" if case.conversational else ""
    recipe = before.replace("{path: base}", f"{{path: base{template}}}")
    (folder / "family.yaml").write_text(f"{recipe}data: {json.dumps(data)}\nsft:\n" + rest.split("sft:\n")[1])
    rows: dict[str, list[dict[str, Any]]] = {}
    hub: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:

        def recorded(module: Any, name: str) -> None:
            real = getattr(module, name)

            def trainer(**given: Any) -> Any:
                for key in ("train_dataset", "eval_dataset"):
                    if given.get(key) is not None:
                        rows[f"{name} {key}"] = given[key].to_list()
                return real(**given)

            patch.setattr(module, name, trainer)

        def load_dataset(name: str, /, **how: Any) -> Dataset:
            hub.append((name, how))
            return Dataset.from_list(case.hub[name])

        recorded(sft, "SharedSftTrainer")
        recorded(reward, "RewardTrainer")
        patch.setattr("datasets.load_dataset", load_dataset)
        events = run_all(folder)
    yield Seen(case, folder / "run", events, rows, hub)


def test_the_demonstrations_that_are_learned_are_those_of_the_file(seen: Seen) -> None:
    given = seen.rows["SharedSftTrainer train_dataset"]
    assert Counter(seen.read(row["input_ids"]) for row in given) == Counter(seen.case.demonstrations)
    assert started(seen, "sft")["rows"] == len(seen.case.demonstrations)


def test_the_pairs_that_are_learned_and_held_out_are_those_of_the_file(seen: Seen) -> None:
    train, heldout = (seen.rows[f"RewardTrainer {part}_dataset"] for part in ("train", "eval"))
    given = [
        (seen.read(row["chosen_ids"]), seen.read(row["rejected_ids"]), row.get("margin")) for row in [*train, *heldout]
    ]
    assert Counter(given) == Counter(seen.case.pairs)
    each = len(seen.case.pairs) // ROWS
    assert len(heldout) == round(HELDOUT * ROWS) * each
    settings = started(seen, "reward")
    assert (settings["pairs"], settings["heldout_pairs"]) == (len(train), len(heldout))
    batches = -(-len(train) // 8)
    assert load_artifact(seen.run / "reward").manifest.metrics["steps"] == batches


def test_the_prompts_that_are_answered_are_those_of_the_file(seen: Seen) -> None:
    assert started(seen, "ppo")["prompts"] == ROWS - TEST - EVAL
    answered = [episode["prompt"] for update in (1, 2) for episode in traces(seen.run, update)]
    assert len(answered) == 32 and set(answered) <= set(seen.case.prompts)
    assert len(set(answered)) == ROWS - TEST - EVAL  # 32 episodes are more than one pass
    report = json.loads((seen.run / "compare" / "compare.json").read_text())
    assert report["prompts"] == TEST
    samples = [json.loads(line) for line in (seen.run / "compare" / "samples.jsonl").read_text().splitlines()]
    prompts = {json.dumps(sample["prompt"]) for sample in samples}
    assert len(prompts) == TEST
    for sample in samples:
        prompt = sample["prompt"]
        text = prompt if isinstance(prompt, str) else chat(*prompt, opened=True)
        assert text in seen.case.prompts and text not in answered


def test_what_is_left_out_or_made_is_said(seen: Seen) -> None:
    said_here = " | ".join(event.message for event in seen.events if isinstance(event, Note))
    for sentence in seen.case.notes:
        assert sentence in said_here
    if not seen.case.notes:
        assert "dropped" not in said_here
    how = {"name": "small", "split": "test", "revision": None}
    assert seen.asked_of_hub == [(name, how) for name in seen.case.hub]


def test_too_few_prompts_for_a_batch_are_said_before_anything_trains(tmp_path: Path) -> None:
    overrides = prepare(FAMILIES["qwen3"], tmp_path)
    with pytest.raises(RecipeError, match="20 prompts left to train on: too few to fill one batch of 32"):
        run_all(tmp_path, *overrides, "ppo.per_device_train_batch_size=32")
    assert not (tmp_path / "run" / "sft").exists()


def started(seen: Seen, stage: str) -> dict[str, Any]:
    (event,) = [event for event in seen.events if isinstance(event, StageStarted) and event.stage == stage]
    return dict(event.settings)

"""The reference page of the recipe: every key, every type, every rule, in the words of the sections."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

from rlhfctl.recipe.schema import Rule, Section
from rlhfctl.recipe.words import field_at, sections
from rlhfctl.tools import reference

PAGE = ROOT / "docs" / "recipe.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.page(), reference.COMMAND


def test_the_page_has_every_key_with_its_meaning() -> None:
    chapters = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", reference.page(), re.MULTILINE | re.DOTALL))
    sources = ("data.demonstrations", "data.preferences", "data.pretraining", "data.prompts")
    for at, names in sections():
        heading = {"": "The top level", "data.pretraining.sources": "data.demonstrations.sources"}.get(at, at)
        heading = "Every data source" if at.endswith("_source") else heading
        heading = "turns" if at.endswith(".turns") else "lora" if at.endswith(".lora") else heading
        shared = at.removesuffix(".sources") in sources
        chapter = chapters[heading] + (chapters["Every data source"] if shared else "")
        for name in names:
            info = field_at((*at.split("."), name) if at else (name,))
            meaning = info.description if info else "Another recipe, from which"
            assert re.search(rf"^\| `{name}` \| .* \| {re.escape(meaning or '')}", chapter, re.MULTILINE), (at, name)


@pytest.mark.parametrize(
    "line",
    [
        "| `kl_coef` | number at least 0 | `0.05` | Coefficient of the KL penalty against the reference model. |",
        "| `name` | text | required | The run's name, and its folder's. |",
        "| `lam` | number at least 0 and at most 1 | `0.95` | Lambda of generalized advantage estimation (GAE). |",
        "- `sft`: needs data.demonstrations to train on. Fix: add data.demonstrations.",
        "- `sft.lora`, `reward.lora`, `ppo.lora`, `dpo.lora`: is null, but the weights of a quantized base cannot be "
        "trained. Fix: give the recipe a lora section, or take model.quantization out.",
        "- `compare.judges`: gold scores only builtin:reviews, but data.prompts is another source. Fix: take it out of "
        "compare.judges.",
        "- `the recipe`: no stage to run. Fix: add a section: sft, sample, label, reward, ppo, dpo, compare.",
        "- `data.<set>.source`: there is no *source*. Fix: use builtin:reviews or builtin:programs or "
        "builtin:sentiment, or a file.",
        "- `model.init.hidden_size`: *hidden_size* cannot be shared among *num_attention_heads* attention heads. Fix: "
        "use a multiple of *num_attention_heads*.",
        "- `model.init.vocab_size`: byte-level BPE needs at least 260, got *vocab_size*. Fix: use 260 or more, or list "
        "whole tokens under model.init.tokens.",
        "- `reward.label`, `reward.reads`: is for a classifier as reward model, but reward.model names none. Fix: "
        "name it as reward.model, or remove *key*.",
        "- `push_to_hub`: use `rlhfctl export`, then the Hub's own upload command.",
    ],
)
def test_lines_of_the_page(line: str) -> None:
    assert line in reference.page().splitlines()


def test_the_page_tells_every_rule() -> None:
    """Each rule's key, in the chapter of its section; rules of a base class in the chapter of that class."""
    chapters = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", reference.page(), re.MULTILINE | re.DOTALL))
    count = 0
    for heading, (section, _) in reference.PAGES.items():
        at = reference.PATHS.get(heading, heading)
        listed = chapters[heading].partition("\nConflicts:\n")[2]
        for rule in vars(section).get("RULES", ()):
            count += 1
            key = ".".join(part for part in (at, rule.key) if part) or "the recipe"
            key = key.replace("{", "<").replace("}", ">")
            assert re.search(rf"^- .*`{re.escape(key)}`.*: .+\. Fix: .+\.$", listed, re.MULTILINE), key
    assert count > 80
    lines = "".join(line for line in reference.page().splitlines() if line.startswith("- "))
    assert "{" not in re.sub(r"\{(response|text|prompt|mask)?\}", "", lines)


def test_a_page_of_this_command_is_told_from_another_file() -> None:
    assert reference.is_page(reference.page())
    assert reference.is_page(f"<!-- Made by `{reference.COMMAND}` from an older folder. -->\n# The recipe")
    assert not reference.is_page("# The recipe\n") and not reference.is_page("")


def test_neighbouring_rules_with_the_same_words_are_one_line_with_all_keys() -> None:
    class Made(Section):
        RULES = (
            Rule("a", "is odd", "remove it", lambda section: False),
            Rule("b", "is odd", "remove it", lambda section: False),
            Rule("c", "is even", "add one to {key}", lambda section: False),
        )

    assert [keys for keys, _ in reference.rules(Made)] == [["a", "b"], ["c"]]
    lines = [reference._rule(keys, rule, "here") for keys, rule in reference.rules(Made)]
    assert lines == [
        "- `here.a`, `here.b`: is odd. Fix: remove it.",
        "- `here.c`: is even. Fix: add one to *key*.",
    ]


def test_a_section_of_a_later_version_must_have_a_chapter() -> None:
    headings = set(re.findall(r"^## (.*)$", reference.page(), re.MULTILINE))
    assert headings == set(reference.PAGES)

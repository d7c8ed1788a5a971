"""Rows to ids with tokenizers built here: plain, with BOS, that close every text, with several chat templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chat_tokenizers import CHATML, INIT, PLAIN, WORLD, answer, ask, build, ids_of, message
from transformers import PreTrainedTokenizerBase

from rlhfctl.data.chat import require_template
from rlhfctl.data.encoding import IGNORED, Encoder, is_conversation, texts_of
from rlhfctl.data.fitting import fit_prompts
from rlhfctl.data.types import PreferenceGroup, Prompt, Row
from rlhfctl.errors import DataError
from rlhfctl.models.tokenizing import EOS_TOKEN, train_tokenizer
from rlhfctl.world import reviews

# As Qwen3 does with thoughts: an assistant's turn is rendered otherwise once another turn follows.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}..."
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EOS = 0


def group(prompt: Prompt, chosen: Prompt, rejected: Prompt, **more: Any) -> PreferenceGroup:
    return PreferenceGroup(prompt, (chosen, rejected), (0, 1), ((0, 1),), **more)


@pytest.fixture(scope="module")
def trained() -> str:
    """The tokenizer of the world, as JSON."""
    tokenizer = train_tokenizer(INIT, texts_of(WORLD))
    return str(tokenizer.backend_tokenizer.to_str())


@pytest.fixture
def plain(trained: str) -> PreTrainedTokenizerBase:
    return build(trained)


@pytest.fixture
def chatml(trained: str) -> PreTrainedTokenizerBase:
    tokenizer = build(trained, eos="<|im_end|>", more=["<|im_start|>"])
    tokenizer.chat_template = CHATML
    return tokenizer


def learned(tokenizer: PreTrainedTokenizerBase, row: dict[str, list[int]]) -> list[str]:
    """The stretches of a row on which there is a loss, as text."""
    stretches: list[list[int]] = [[]]
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [str(tokenizer.decode(stretch)) for stretch in stretches if stretch]


# ---------------------------------------------------------------- text


def test_prompt_and_response_are_the_tokens_of_the_whole(plain: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(plain)
    for row in WORLD:
        prompt, response = encoder.pair(row["prompt"], row["completion"])
        assert prompt == encoder.prompt(row["prompt"]) == ids_of(plain, row["prompt"])
        assert prompt + response == [*ids_of(plain, row["prompt"] + row["completion"]), EOS]
        assert EOS not in response[:-1]
    assert encoder.encoded == len(WORLD) and encoder.boundary_mismatches == 0
    assert encoder.warning("rows") is None


def test_the_loss_is_taken_where_trl_takes_it(plain: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(plain)
    row = {"prompt": "write a review of a cafe:", "completion": " it was good ."}
    for option in (None, True):
        encoded = encoder.demonstration(row, completion_only_loss=option)
        masked = len(ids_of(plain, row["prompt"]))
        assert encoded["labels"][:masked] == [IGNORED] * masked
        assert encoded["labels"][masked:] == encoded["input_ids"][masked:]
        assert learned(plain, encoded) == [" it was good ." + EOS_TOKEN]
    encoded = encoder.demonstration(row, completion_only_loss=False)
    assert encoded["labels"] == encoded["input_ids"]
    for option in (None, True, False):
        encoded = encoder.demonstration({"text": "it was good ."}, completion_only_loss=option)
        assert encoded["input_ids"] == encoded["labels"] == [*ids_of(plain, "it was good ."), EOS]


def test_an_end_that_is_there_already_is_not_doubled(plain: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(plain)
    expected = [*ids_of(plain, "it was good ."), EOS]
    for text in ("it was good ." + EOS_TOKEN, "it was good ." + EOS_TOKEN + "\n \n"):
        assert encoder.demonstration({"text": text})["input_ids"] == expected
        assert encoder.pair("a: ", text)[1] == expected
    inner = encoder.pair("a:", f" one{EOS_TOKEN} two")[1]  # an end inside is the row's own
    assert inner == [*ids_of(plain, f" one{EOS_TOKEN} two"), EOS]


def test_a_preference_is_read_as_ppo_reads_a_response(plain: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(plain)
    for row in reviews.preferences(20, 0):
        (both,) = encoder.preference(group(row["prompt"], row["chosen"], row["rejected"])).pairs
        for side in ("chosen", "rejected"):
            assert both[f"{side}_ids"] == [*ids_of(plain, row["prompt"] + row[side]), EOS]


# ---------------------------------------------------------------- tokenizers that add tokens of their own


@pytest.mark.parametrize("around", ["<s> $A", "<s> $A </s>", "$A </s>"])
def test_a_text_begins_once_and_a_prompt_does_not_end(trained: str, around: str) -> None:
    tokenizer = build(trained, bos="<s>", eos="</s>", around=around)
    assert len(tokenizer("it")["input_ids"]) == len(ids_of(tokenizer, "it")) + len(around.split()) - 1
    encoder, (bos, eos) = Encoder(tokenizer), tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    begin = [bos] if around.startswith("<s>") else []
    body = ids_of(tokenizer, "it was")
    assert encoder.prompt("it was") == begin + body
    assert encoder.prompt("<s>it was") == [bos, *body]
    assert encoder.prompt("it was</s>") == [*begin, *body, eos]  # what the user wrote stays
    for prompt in ("it was", "<s>it was"):
        ids, response = encoder.pair(prompt, " good .")
        assert ids == encoder.prompt(prompt)
        assert ids + response == [*ids, *ids_of(tokenizer, " good ."), eos]
    assert encoder.pair("it was", " good .</s>")[1] == [*ids_of(tokenizer, " good ."), eos]
    for text in ("it was", "it was</s>", "it was</s>\n"):
        assert encoder.demonstration({"text": text})["input_ids"] == [*begin, *body, eos]
    (both,) = encoder.preference(group("it was", " good .", " bad .")).pairs
    assert both["chosen_ids"] == [*begin, *body, *ids_of(tokenizer, " good ."), eos]
    assert encoder.boundary_mismatches == 0


def test_a_template_that_writes_bos_itself_gets_one(trained: str) -> None:
    tokenizer = build(trained, bos="<s>", eos="<|im_end|>", around="<s> $A", more=["<|im_start|>"])
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    bos = tokenizer.bos_token_id
    prompt, response = Encoder(tokenizer).pair([ask("one")], [answer("two")])
    assert prompt[0] == bos and (prompt + response).count(bos) == 1


# ---------------------------------------------------------------- a token across the boundary


def test_merged_boundaries_are_counted_and_generation_decides(plain: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(plain)
    prompt, completion = "it was ", "good ."  # " good" is one token; generation starts after " "
    assert ids_of(plain, prompt + completion)[: len(ids_of(plain, prompt))] != ids_of(plain, prompt)
    encoder.pair("it was", " good .")
    row = encoder.demonstration({"prompt": prompt, "completion": completion})
    start = ids_of(plain, prompt)
    assert row["input_ids"] == [*start, *ids_of(plain, completion), EOS]
    assert row["labels"] == [IGNORED] * len(start) + row["input_ids"][len(start) :]
    assert plain.decode(row["input_ids"]) == prompt + completion + EOS_TOKEN
    assert (encoder.boundary_mismatches, encoder.encoded) == (1, 2)
    sentence = encoder.warning("demonstrations")
    assert sentence is not None and sentence.startswith("in 1 of 2 demonstrations ")


def test_a_conversation_can_merge_too(trained: str) -> None:
    tokenizer = build(trained)
    tokenizer.chat_template = PLAIN  # opens the assistant's turn with a space, which merges with the first word
    encoder = Encoder(tokenizer)
    prompt, response = encoder.pair([ask("how")], [answer("good .")])
    assert prompt == ids_of(tokenizer, "user: how\nassistant: ") == encoder.prompt([ask("how")])
    assert response == [*ids_of(tokenizer, "good .\n"), EOS]
    assert encoder.boundary_mismatches == 1


# ---------------------------------------------------------------- conversations


def test_a_response_ends_with_the_end_of_turn_and_nothing_after_it(chatml: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(chatml)
    end = chatml.eos_token_id
    asked, said = [message("system", "be kind"), ask("how was it")], [answer("it was good .")]
    opened = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhow was it<|im_end|>\n<|im_start|>assistant\n"
    whole = ids_of(chatml, opened + "it was good .<|im_end|>")
    assert whole[-1] == end
    prompt, response = encoder.pair(asked, said)
    assert prompt == encoder.prompt(asked) == ids_of(chatml, opened)
    assert prompt + response == whole
    by_row = encoder.demonstration({"prompt": asked, "completion": said})
    assert by_row["input_ids"] == whole and learned(chatml, by_row) == ["it was good .<|im_end|>"]
    by_messages = encoder.demonstration({"messages": asked + said})
    assert by_messages["input_ids"] == by_messages["labels"] == whole
    (both,) = encoder.preference(group(asked, said, [answer("it was bad .")])).pairs
    assert both["chosen_ids"] == whole
    assert both["rejected_ids"] == ids_of(chatml, opened + "it was bad .<|im_end|>")
    assert encoder.boundary_mismatches == 0


def test_a_template_without_an_end_gets_one(trained: str) -> None:
    tokenizer = build(trained)
    tokenizer.chat_template = PLAIN.replace("assistant: {%", "assistant:{%")
    ids = Encoder(tokenizer).demonstration({"messages": [ask("how"), answer("good .")]})["input_ids"]
    assert ids == [*ids_of(tokenizer, "user: how\nassistant: good .\n"), EOS]


TURNS = [ask("one ?"), answer("first ."), ask("two ?"), answer("second .")]


def test_the_assistants_turns_are_learned_and_the_users_are_not(chatml: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(chatml)
    row = encoder.demonstration({"messages": [message("system", "s"), *TURNS]}, assistant_only_loss=True)
    assert row["input_ids"] == encoder.demonstration({"messages": [message("system", "s"), *TURNS]})["input_ids"]
    assert learned(chatml, row) == ["first .<|im_end|>", "second .<|im_end|>"]
    longer = [*TURNS, ask("three ?"), answer("third ."), answer("and fourth .")]
    row = encoder.demonstration({"messages": longer}, assistant_only_loss=True)
    assert learned(chatml, row) == [f"{n} .<|im_end|>" for n in ("first", "second", "third", "and fourth")]
    assert encoder.encoded == 2 and encoder.boundary_mismatches == 0


def test_where_turns_have_no_end_token_no_loss_slips_into_the_users(trained: str) -> None:
    tokenizer = build(trained)
    tokenizer.chat_template = PLAIN.replace("assistant: {%", "assistant:{%")
    encoder = Encoder(tokenizer)
    row = encoder.demonstration({"messages": TURNS}, assistant_only_loss=True)
    assert row["input_ids"] == [
        *ids_of(tokenizer, "user: one ?\nassistant: first .\nuser: two ?\nassistant: second .\n"),
        EOS,
    ]
    assert learned(tokenizer, row) == [" first .\n", f" second .\n{EOS_TOKEN}"]
    assert encoder.boundary_mismatches == 0


def test_merged_turns_are_counted_and_still_learned(trained: str) -> None:
    tokenizer = build(trained)
    tokenizer.chat_template = PLAIN
    encoder = Encoder(tokenizer)
    turns = [ask("how"), answer("good ."), ask("why"), answer("good .")]
    row = encoder.demonstration({"messages": turns}, assistant_only_loss=True)
    assert learned(tokenizer, row) == [" good .\n", f" good .\n{EOS_TOKEN}"]  # the merged token is the assistant's
    assert encoder.boundary_mismatches == 1
    assert encoder.warning("demonstrations") is not None


def test_a_template_that_rewrites_earlier_turns_is_refused_where_it_matters(chatml: PreTrainedTokenizerBase) -> None:
    chatml.chat_template = FORGETFUL
    encoder = Encoder(chatml)
    encoder.pair([ask("one ?")], [answer("first .")])
    with pytest.raises(DataError, match="renders a prompt differently once a response follows") as caught:
        encoder.demonstration({"messages": TURNS}, assistant_only_loss=True)
    assert caught.value.fix is not None and "model.chat_template" in caught.value.fix
    chatml.chat_template = CHATML.replace("<|im_start|>assistant", "<|im_start|>model")
    for conversation in ([ask("one ?"), answer("first .")], TURNS):
        with pytest.raises(DataError, match="renders a prompt differently"):
            encoder.pair(conversation[:-1], conversation[-1:])
        with pytest.raises(DataError, match="renders a prompt differently"):
            encoder.demonstration({"messages": conversation}, assistant_only_loss=True)


def test_without_a_template_conversations_are_refused_and_texts_are_not(plain: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(plain)
    calls: list[Callable[[], object]] = [
        lambda: require_template(plain),
        lambda: encoder.prompt([ask("one")]),
        lambda: encoder.pair([ask("one")], [answer("two")]),
        lambda: encoder.demonstration({"messages": TURNS}),
        lambda: encoder.preference(group([ask("q")], [answer("a")], [answer("b")])),
    ]
    for call in calls:
        with pytest.raises(DataError, match="the tokenizer has no chat template") as caught:
            call()
        assert caught.value.fix is not None and "model.chat_template" in caught.value.fix
    encoder.pair("one", "two")


def test_what_a_template_refuses_is_a_data_error(chatml: PreTrainedTokenizerBase) -> None:
    chatml.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    encoder = Encoder(chatml)
    encoder.prompt([ask("one")])
    with pytest.raises(DataError, match=r"refuses a conversation \(system, user\): System role not supported"):
        encoder.prompt([message("system", "s"), ask("one")])


# ---------------------------------------------------------------- rows


def test_what_is_a_conversation() -> None:
    assert is_conversation({"messages": TURNS}) and is_conversation({"prompt": [ask("q")]})
    assert not is_conversation({"prompt": "q"}) and not is_conversation({"text": "t"})


def test_the_texts_of_rows_hold_all_that_a_tokenizer_must_know() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a:", "completion": " b"},
        {"text": "c"},
        {"messages": [ask("d"), answer("e")]},
        {"prompt": [ask("f")], "completion": [answer("g"), answer("h")]},
    ]
    texts = list(texts_of(rows))
    assert texts[:3] == ["a: b", "c", "d\ne"]
    assert all(letter in texts[3] for letter in "fgh")


TOOLS = [{"type": "function", "function": {"name": "price"}}]
WITH_TOOLS = (
    "{% for tool in tools or [] %}<|im_start|>tool {{ tool.function.name }}<|im_end|>\n{% endfor %}"
    + CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c.name }}{% endfor %}"
    )
)


def test_tools_of_a_row_reach_the_template_wherever_it_is_read(chatml: PreTrainedTokenizerBase) -> None:
    chatml.chat_template = WITH_TOOLS
    encoder, start = Encoder(chatml), ids_of(chatml, "<|im_start|>tool price<|im_end|>\n")
    prompt, said, other = [ask("one ?")], [answer("first .")], [answer("second .")]
    row = {"messages": prompt + said, "tools": TOOLS}
    without = encoder.demonstration({"messages": prompt + said})["input_ids"]
    assert encoder.demonstration(row)["input_ids"] == start + without
    labels = encoder.demonstration(row, assistant_only_loss=True)["labels"]
    assert set(labels[: len(start)]) == {IGNORED} and any(label != IGNORED for label in labels)
    assert encoder.demonstration({"prompt": prompt, "completion": said, "tools": TOOLS})["input_ids"] == start + without
    (both,) = encoder.preference(group(prompt, said, other, tools=TOOLS)).pairs
    assert both["chosen_ids"] == start + without and both["rejected_ids"][: len(start)] == start
    rows: list[Row] = [{"prompt": prompt, "tools": TOOLS}, {"prompt": "plain", "tools": "kept for a function"}]
    _, ids, _, _ = fit_prompts(rows, encoder, None, "drop")
    assert ids == [start + encoder.prompt(prompt), encoder.prompt("plain")]
    long = [{"prompt": [ask("one ? " * 40)], "tools": TOOLS}]
    (short,), (cut,), count, _ = fit_prompts(long, encoder, 60, "truncate")
    assert count == 1 and len(cut) <= 60 and cut[: len(start)] == start and short["tools"] == TOOLS


def test_calls_reach_the_template(chatml: PreTrainedTokenizerBase) -> None:
    chatml.chat_template = WITH_TOOLS
    called = message("assistant", "") | {"tool_calls": [{"name": "price"}]}
    ids = Encoder(chatml).demonstration({"messages": [ask("one ?"), called]})["input_ids"]
    assert chatml.decode(ids).endswith("assistant\nprice<|im_end|>")

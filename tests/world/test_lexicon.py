"""Facts about the words that the writer and the scorer rely on."""

from __future__ import annotations

from rlhfctl.world.lexicon import (
    ADJECTIVES,
    ASPECTS,
    BAD,
    CATEGORIES,
    COMPANIES,
    GENERAL_POLARITY,
    GOOD,
    MIDDLING,
    NOUN_CATEGORY,
    prompt_at,
    prompt_count,
    read_prompt,
    split_sentences,
    to_text,
    to_words,
    verdicts,
)


def test_every_category_uses_known_aspects_and_no_aspect_is_idle() -> None:
    used = [aspect for category in CATEGORIES.values() for aspect in category.aspects]
    assert sorted(used) == sorted(ASPECTS)
    assert all(len(category.aspects) == 4 for category in CATEGORIES.values())


def test_a_general_verdict_suits_every_category_and_an_own_one_no_other() -> None:
    tables = [verdicts(category) for category in CATEGORIES.values()]
    shared = set.intersection(*(set(table) for table in tables))
    assert shared == {("i", "can", "recommend", "it"), ("i", "cannot", "recommend", "it")}
    assert sum(len(table.keys() - shared) for table in tables) == len(set.union(*(set(t) for t in tables)) - shared)
    assert all(sorted(table.values()) == [BAD, BAD, MIDDLING, GOOD, GOOD] for table in tables)


def test_no_adjective_of_an_aspect_is_both_good_and_bad_or_general() -> None:
    for aspect in ASPECTS.values():
        own = [*aspect.good, *aspect.bad]
        assert len(own) == len(set(own)) and not set(own) & set(GENERAL_POLARITY)


def test_a_word_has_one_part_of_speech() -> None:
    assert not ADJECTIVES & set(ASPECTS)
    assert not set(NOUN_CATEGORY) & (ADJECTIVES | set(ASPECTS))
    assert len(NOUN_CATEGORY) == sum(len(category.nouns) for category in CATEGORIES.values())


def test_every_prompt_can_be_read_back() -> None:
    seen = set()
    for index in range(0, prompt_count(), 7):
        subject = read_prompt(prompt_at(index))
        assert subject is not None
        seen.add((subject.noun, subject.company))
    assert seen == {(noun, company) for noun in NOUN_CATEGORY for company in COMPANIES}


def test_text_and_words_are_each_other_s_reverse() -> None:
    words = ["the", "soup", "was", "warm", ",", "i", "would", "come", "back", "."]
    assert to_text(words) == " the soup was warm, i would come back."
    assert to_words(to_text(words)) == words


def test_sentences_are_cut_at_full_stops() -> None:
    assert split_sentences(["a", ".", ".", "b"]) == ([["a"], ["b"]], False)
    assert split_sentences(["a", "."]) == ([["a"]], True)
    assert split_sentences([]) == ([], False)

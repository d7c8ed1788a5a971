"""The requests of the labelling page: names, answers, notes, undo, races, faults of the file of labels."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from label_server import Client, Running, events_of, key_of, plain_items, running

from rlhfctl.labels.desk import Refused
from rlhfctl.labels.web.app import LONGEST_NAME, LONGEST_NOTE, clean_name, read_answer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, [*plain_items(4), *plain_items(1, responses=4)], "--overlap", "1.0") as found:
        yield found


def last_of(page: str) -> str:
    return page.partition('name="last" value="')[2].partition('"')[0]


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("0 1", ("label", [0, 1])),
        ("1 0", ("label", [1, 0])),
        ("0 0", ("label", [0, 0])),
        ("3 0 9 3", ("label", [1, 0, 2, 1])),
        ("bad", ("bad", None)),
        ("skip", ("skip", None)),
    ],
)
def test_an_answer_is_read(text: str, meaning: object) -> None:
    assert read_answer(text) == meaning


@pytest.mark.parametrize(
    "text", ["", "0", "1 2", "-1 0", "0 x", "0  1", "0 1 ", "\u0660 \u0661", "undo", "0 " * 16 + "0", "100 0"]
)
def test_what_is_no_answer_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        read_answer(text)


def test_a_name_is_made_plain_or_refused() -> None:
    assert clean_name("  Ana \t Lu\u0065\u0301  ") == "Ana Lu\u00e9"
    assert clean_name("李") == "李"
    for bad in ("", "   ", "x" * (LONGEST_NAME + 1), "a\u202eb", "a\x00b", "a\u200bb"):
        with pytest.raises(ValueError):
            clean_name(bad)


# ---------------------------------------------------------------- what is done


def test_an_answer_is_stored_and_the_next_question_comes_back(server: Running, tmp_path: Path) -> None:
    ana = Client(server.address, "ana")
    page = ana.get("/")[1]
    key = key_of(page)
    assert key is not None and ana.get("/")[1] == page  # a reload shows the same
    status, part = ana.post("/answer", key=key, answer="0 1", note=" why\r\nnot ")
    (event,) = events_of(tmp_path)
    assert status == 200 and "Saved." in part and "<html" not in part and key_of(part) != key
    assert (event.annotator, event.kind, event.note, event.judge) == ("ana", "label", "why\nnot", "people")
    assert event.ranks is not None and event.shown is not None
    assert [event.ranks[place] for place in event.shown] == [0, 1] and event.seconds is not None
    assert "model0" not in page and "model1" not in page  # who wrote it stays hidden


def test_an_answer_sent_again_counts_once_and_another_choice_is_told(server: Running, tmp_path: Path) -> None:
    ana = Client(server.address, "ana")
    key = key_of(ana.get("/")[1]) or ""
    assert "Saved." in ana.post("/answer", key=key, answer="0 1")[1]
    assert "Saved." in ana.post("/answer", key=key, answer="0 1")[1]
    assert "The first answer counts" in ana.post("/answer", key=key, answer="1 0")[1]
    assert len(events_of(tmp_path)) == 1


def test_two_clicks_that_race_count_once(server: Running, tmp_path: Path) -> None:
    clients = [Client(server.address, "ana") for _ in range(8)]
    for _ in range(4):
        key = key_of(clients[0].get("/")[1]) or ""
        together = threading.Barrier(len(clients))
        found: list[int] = []

        def click(client: Client, answer: str, key: str = key, together: threading.Barrier = together) -> None:
            together.wait()
            found.append(client.post("/answer", key=key, answer=answer)[0])  # noqa: B023

        threads = [
            threading.Thread(target=click, args=(client, "0 1" if n % 2 else "1 0")) for n, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [200] * len(clients)
    events = events_of(tmp_path)
    assert len(events) == 4 and len({event.item for event in events}) == 4


def test_two_clicks_on_undo_take_back_one(server: Running, tmp_path: Path) -> None:
    ana = Client(server.address, "ana")
    for _ in range(2):
        ana.post("/answer", key=key_of(ana.get("/")[1]) or "", answer="skip")
    last = last_of(ana.get("/")[1])
    first, second = ana.post("/undo", last=last)[1], ana.post("/undo", last=last)[1]
    assert key_of(first) == key_of(second) is not None
    assert [event.kind for event in events_of(tmp_path)] == ["skip", "skip", "undo"]
    assert "nothing to take back" in Client(server.address, "bo").post("/undo", last="")[1]


def test_a_stale_or_foreign_key_is_refused_with_the_question_that_is_open(server: Running, tmp_path: Path) -> None:
    ana, bo = Client(server.address, "ana"), Client(server.address, "bo")
    key = key_of(ana.get("/")[1]) or ""
    for client, bad in ((bo, key), (ana, "x"), (ana, ""), (ana, key + "0")):
        status, part = client.post("/answer", key=bad, answer="0 1")
        assert status == 409 and "Not saved" in part and key_of(part) is not None
    assert ana.post("/answer", key=key, answer="0 1 2")[0] == 409  # two responses have no three ranks
    assert events_of(tmp_path) == []


def test_a_note_is_kept_before_the_answer_and_shown_after_a_reload(server: Running, tmp_path: Path) -> None:
    ana = Client(server.address, "ana")
    key = key_of(ana.get("/")[1]) or ""
    assert "Note saved." in ana.post("/note", key=key, note="hm <b>")[1]
    assert "hm &lt;b&gt;</textarea>" in ana.get("/")[1]
    assert ana.post("/note", key="x", note="lost")[0] == 409
    assert ana.post("/note", key=key, note="y" * (LONGEST_NOTE + 1))[0] == 409
    ana.post("/answer", key=key, answer="bad", note="changed")
    assert [(event.kind, event.note) for event in events_of(tmp_path)] == [
        ("note", "hm <b>"),
        ("bad", "changed"),
        ("note", "changed"),
    ]


def test_a_bad_name_is_told_and_nobody_answers_without_one(server: Running, tmp_path: Path) -> None:
    ana = Client(server.address, "ana")
    status, form = ana.post("/name", name=" ")
    assert status == 409 and "Enter a name." in form
    session = {name: value for name, value in ana.cookies.items() if "session" in name}
    ana.cookies = session
    assert "Your name" in ana.get("/")[1]
    assert ana.post("/answer", key="x", answer="skip")[0] == 403
    ana.cookies = session | {f"rlhfctl_name_{server.port}": "%00"}
    assert ana.post("/answer", key="x", answer="skip")[0] == 403
    assert ana.post("/name", name="Ana Lué; <b>")[0] == 204
    assert "Labels of Ana Lué; &lt;b&gt;" in ana.get("/")[1]


def test_a_label_that_cannot_be_kept_is_not_acknowledged(server: Running, tmp_path: Path) -> None:
    """A trigger stands in for a full disk: SQLite refuses to write."""
    import sqlite3

    ana = Client(server.address, "ana")
    key = key_of(ana.get("/")[1]) or ""
    with sqlite3.connect(tmp_path / "labels.sqlite") as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'no room'); END")
    status, said = ana.post("/answer", key=key, answer="0 1")
    assert status == 503 and said.startswith("Not saved: ") and "no room" in said and str(tmp_path) not in said
    with sqlite3.connect(tmp_path / "labels.sqlite") as other:
        other.execute("DROP TRIGGER full")
    assert ana.post("/answer", key=key, answer="0 1")[0] == 200 and len(events_of(tmp_path)) == 1


def test_the_finished_screen_tells_of_questions_on_the_screens_of_others(tmp_path: Path) -> None:
    with running(tmp_path, plain_items(2)) as server:
        ana, bo = Client(server.address, "ana"), Client(server.address, "bo")
        key, other = key_of(ana.get("/")[1]), key_of(bo.get("/")[1])
        assert "1 question is open on the screens of others" in ana.post("/answer", key=key or "", answer="0 1")[1]
        assert "The set needs no more answers." in bo.post("/answer", key=other or "", answer="0 1")[1]


def test_the_last_question_leads_to_the_finished_screen(server: Running) -> None:
    ana = Client(server.address, "ana")
    page = ana.get("/")[1]
    while (key := key_of(page)) is not None:
        answer = "0 1 1 2" if 'data-several="1"' in page else "0 1"
        status, page = ana.post("/answer", key=key, answer=answer)
        assert status == 200
    assert "You have answered 5 questions." in page and "still needs 5 answers" in page

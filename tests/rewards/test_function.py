"""A Python function as a reward: what it is given, what it may return, and whose module is imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from small_episodes import episodes

from rlhfctl.errors import RewardFailed, RlhfctlError
from rlhfctl.rewards.episode import Episode, extras_of, logged_means
from rlhfctl.rewards.function import FunctionReward, function_file, function_fingerprint, load_function


def reward(folder: Path, body: str, signature: str = "prompts, completions, **columns") -> FunctionReward:
    (folder / "scores.py").write_text(f"import math\nseen = []\n\n\ndef score({signature}):\n    {body}\n")
    return FunctionReward("scores:score", folder)


# ---------------------------------------------------------------- what it is given


def test_it_is_called_as_grpo_calls_it(tmp_path: Path) -> None:
    scorer = reward(tmp_path, "return [len(p) + len(c) / 10 for p, c in zip(prompts, completions, strict=True)]")
    result = scorer(episodes("a", "abc"))
    assert result == [8.1, 8.3] and all(type(value) is float for value in result)


def test_conversations_arrive_as_messages(tmp_path: Path) -> None:
    prompt, answer = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "abc"}]
    scorer = reward(tmp_path, "return [len(prompts[0]) + len(completions[0][0]['content'])]")
    assert scorer([Episode([1], [2], prompt, answer, {"prompt": prompt})]) == [4.0]


def test_a_column_reaches_a_function_that_names_it_and_no_other(tmp_path: Path) -> None:
    batch = episodes("a", "b", answer=[3, 4], level=["x", "y"])
    assert reward(tmp_path, "return answer", "prompts, completions, answer")(batch) == [3.0, 4.0]
    assert reward(tmp_path, "return answer", "prompts, completions, *, answer")(batch) == [3.0, 4.0]
    assert reward(tmp_path, "return [0, 0]", "prompts, completions")(batch) == [0.0, 0.0]
    assert reward(tmp_path, "return [0 if other is None else 1] * 2", "prompts, completions, other=None")(batch) == [
        0,
        0,
    ]


def test_double_star_takes_all_columns_and_nothing_twice(tmp_path: Path) -> None:
    scorer = reward(tmp_path, "seen.append(columns); return [0] * len(prompts)")
    scorer(episodes("a", "b", answer=[3, 4], completion=["x", "y"], prompts=[1, 2], completions=[1, 2]))
    (seen,) = scorer.function.__globals__["seen"]
    assert seen.pop("log_metric") and seen.pop("log_extra")  # as TRL's GRPOTrainer gives them
    assert seen == {"answer": [3, 4], "completion_ids": [[2], [2]]}


def test_where_a_row_lacks_a_column_it_is_none(tmp_path: Path) -> None:
    batch = [*episodes("a", answer=[3]), *episodes("b")]
    assert reward(tmp_path, "return [0 if a is None else a for a in answer]", "prompts, completions, answer")(
        batch
    ) == [
        3.0,
        0.0,
    ]


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    scorer = reward(tmp_path, "return [0]", "prompts, completions, answer, hint=1")
    with pytest.raises(RlhfctlError, match="the reward function needs answer, which the prompts do not have") as caught:
        scorer(episodes("a", level=[1]))
    assert caught.value.fix is not None and caught.value.fix.startswith("their columns are: level, prompt;")


@pytest.mark.parametrize("signature", ["completions", "prompts, answer", "prompts, completions, /", "*both"])
def test_a_function_that_does_not_take_prompts_and_completions_is_refused_at_once(
    tmp_path: Path, signature: str
) -> None:
    with pytest.raises(RlhfctlError, match="must take prompts and completions by these names") as caught:
        reward(tmp_path, "return []", signature)
    assert caught.value.where == "scores:score"


def test_what_it_logs_is_kept_until_it_is_called_again(tmp_path: Path) -> None:
    body = (
        "log_metric('length', len(completions[0])); log_metric('length', 3); "
        "log_extra('kind', [c.upper() for c in completions]); return [0] * len(completions)"
    )
    scorer = reward(tmp_path, body, "prompts, completions, log_metric, log_extra")
    scorer(episodes("a", "bc"))
    assert logged_means(scorer) == {"logged/length": 2.0} and extras_of(scorer) == {"kind": ["A", "BC"]}
    scorer.batch_size = 1  # two calls: the values of both
    scorer(episodes("a", "bc"))
    assert scorer.logged == {"length": [1.0, 3.0, 2.0, 3.0]} and extras_of(scorer) == {"kind": ["A", "BC"]}


def test_what_a_failed_attempt_logged_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    body = "log_metric('try', len(seen)); seen.append(1); return [1 / (len(seen) - 1)]"
    reward(tmp_path, body, "prompts, completions, log_metric")
    scorer = FunctionReward("scores:score", tmp_path, retries=1)
    assert scorer(episodes("a")) == [1.0] and scorer.logged == {"try": [1.0]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("log_metric('a', 'high'); return [0, 0]", "logs 'high' as the metric 'a'"),
        ("log_extra('kind', ['x']); return [0, 0]", "logs 1 values of 'kind' for 2 completions"),
    ],
)
def test_what_cannot_be_logged_is_refused(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(RewardFailed, match=said):
        reward(tmp_path, body, "prompts, completions, log_metric, log_extra")(episodes("a", "b"))


def test_what_only_trls_trainer_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError, match="needs trainer_state") as caught:
        reward(tmp_path, "return [0]", "prompts, completions, trainer_state")(episodes("a"))
    assert caught.value.fix is not None and "is of TRL's GRPOTrainer alone" in caught.value.fix


# ---------------------------------------------------------------- what it may return


@pytest.mark.parametrize(
    "body",
    [
        "return (2, 0.5)",
        "return (value for value in [2, 0.5])",
        "import numpy; return numpy.array([2, 0.5], dtype='float32')",
        "import numpy; return [numpy.int64(2), numpy.float16(0.5)]",
    ],
)
def test_any_series_of_finite_numbers_is_taken(tmp_path: Path, body: str) -> None:
    result = reward(tmp_path, body)(episodes("a", "b"))
    assert result == [2.0, 0.5] and all(type(value) is float for value in result)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1.0]", "returned 1 numbers for 2 completions"),
        ("return [1.0, 2.0, 3.0]", "returned 3 numbers for 2 completions"),
        ("return []", "returned 0 numbers for 2 completions"),
        ("pass", "returned None, not a list"),
        ("return 1.0", "returned 1.0, not a list"),
        ("return 'ab'", "returned 'ab', not a list"),
        ("return {0: 1.0, 1: 2.0}", "not a list"),
        ("return [1.0, math.nan]", "returned nan for completion 'second'"),
        ("return [1.0, math.inf]", "returned inf for completion 'second'"),
        ("return [1.0, -math.inf]", "returned -inf for completion 'second'"),
        ("return [1.0, True]", "returned True for completion 'second'"),
        ("return [1.0, '1']", "returned '1' for completion 'second'"),
        ("return [1.0, [1.0]]", r"returned \[1.0\] for completion 'second'"),
        ("import numpy; return [1.0, numpy.bool_(True)]", "True.* for completion 'second'"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(RlhfctlError, match=said) as caught:
        reward(tmp_path, body)(episodes("first", "second"))
    assert caught.value.where == "scores:score" and caught.value.fix is not None


# ---------------------------------------------------------------- a function that raises


def test_what_it_raises_is_one_message_with_its_line_and_the_row(tmp_path: Path) -> None:
    with pytest.raises(RewardFailed) as caught:
        reward(tmp_path, "return [1 / len(c) for c in completions]")(episodes("a", "", "b"))
    assert str(caught.value).splitlines()[0] == (
        f"scores:score: the reward function failed in {tmp_path / 'scores.py'}:6: ZeroDivisionError: division by zero; "
        "the row is completion '' to prompt 'prompt 1'"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)  # for the log


def test_an_interrupt_is_not_the_functions_fault(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        reward(tmp_path, "raise KeyboardInterrupt")(episodes("a"))


def test_a_function_is_called_again_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("rlhfctl.rewards.function.time.sleep", waited.append)
    body = "seen.append(1)\n    if len(seen) < 3:\n        raise ConnectionError('no answer')\n    return [5.0]"
    reward(tmp_path, body)
    patient = FunctionReward("scores:score", tmp_path, retries=2)
    assert patient(episodes("a")) == [5.0]
    assert waited == [1, 2]
    patient.function.__globals__["seen"].clear()
    with pytest.raises(
        RewardFailed, match=r"failed 2 times in .*ConnectionError: no answer; each of the 1 rows passes"
    ):
        FunctionReward("scores:score", tmp_path, retries=1)(episodes("a"))


# ---------------------------------------------------------------- as GRPO users have them


def test_the_tokens_of_responses_are_given_to_who_names_them(tmp_path: Path) -> None:
    scorer = reward(tmp_path, "return [len(ids) for ids in completion_ids]", "completions, completion_ids, **kwargs")
    batch = [Episode([1], ids, "p", "c", {"prompt": "p"}) for ids in ([7], [7, 8, 9])]
    assert scorer(batch) == [1.0, 3.0]


@pytest.mark.parametrize("how", ["async def", "def"])
def test_a_coroutine_is_awaited(tmp_path: Path, how: str, recwarn: pytest.WarningsRecorder) -> None:
    reward(tmp_path, "return [float(len(c)) for c in completions]")
    file = tmp_path / "scores.py"
    file.write_text(file.read_text().replace("def score", f"{how} score"))
    assert FunctionReward("scores:score", tmp_path)(episodes("a", "bc")) == [1.0, 2.0]
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]


def test_a_callable_object_is_a_function(tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text(
        "class Length:\n    def __call__(self, prompts, completions):\n        return [len(c) for c in completions]\n\n"
        "score = Length()\n"
    )
    assert FunctionReward("scores:score", tmp_path)(episodes("a", "bc")) == [1.0, 2.0]


def test_none_is_for_rows_that_are_not_its_business(tmp_path: Path) -> None:
    said: list[str] = []
    reward(tmp_path, "return [None if i % 2 else 1.5 for i, _ in enumerate(completions)]")
    scorer = FunctionReward("scores:score", tmp_path, say=said.append)
    assert scorer.optional(episodes("a", "b", "c")) == [1.5, None, 1.5]
    assert scorer(episodes("a", "b", "c")) == scorer(episodes("a", "b", "c")) == [1.5, 0.0, 1.5]
    assert said == ["1 of 3 responses are scored by no reward function (None): they count as 0"]


# ---------------------------------------------------------------- importing


def load(spec: str, folder: Path) -> Any:
    return load_function(spec, folder)


def test_a_missing_module_or_function_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError, match="the module 'nowhere_at_all' cannot be imported") as caught:
        load("nowhere_at_all:f", tmp_path)
    assert caught.value.fix is not None and f"put nowhere_at_all.py into {tmp_path}" in caught.value.fix
    (tmp_path / "scores.py").write_text(
        "import math\nONE = 1\ndef _hidden(): ...\ndef good(): ...\ndef better(): ...\n"
    )
    for name in ("best", "ONE"):
        with pytest.raises(RlhfctlError, match=f"the module scores has no function '{name}'") as caught:
            load(f"scores:{name}", tmp_path)
        assert caught.value.fix == "it has: good, better"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("from math import nothing_such", "cannot import name 'nothing_such'"),
        ("def f(:", "invalid syntax|expected"),
    ],
)
def test_a_module_that_does_not_import_says_why(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "scores.py").write_text(text)
    with pytest.raises(RlhfctlError, match=f"the module 'scores' cannot be imported: .*({said})") as caught:
        load("scores:f", tmp_path)
    assert caught.value.fix == "correct it, or install what it needs"  # not: put scores.py there, where it is already


def test_the_path_is_as_it_was_after_success_and_failure(tmp_path: Path) -> None:
    before = list(sys.path)
    reward(tmp_path, "return []")
    assert sys.path == before
    for text in ("import nowhere_at_all", "1 / 0"):
        (tmp_path / "scores.py").write_text(text)
        with pytest.raises((RlhfctlError, ZeroDivisionError)):
            load("scores:f", tmp_path)
        assert sys.path == before


def test_an_installed_module_is_found(tmp_path: Path) -> None:
    assert load("os.path:basename", tmp_path)("a/b") == "b"
    assert function_file("os.path:basename", tmp_path) is None


def test_packages_are_taken_before_modules_as_python_does(tmp_path: Path) -> None:
    (tmp_path / "scoring").mkdir()
    (tmp_path / "scoring" / "__init__.py").write_text("def which(): return 'package'\n")
    (tmp_path / "scoring.py").write_text("def which(): return 'module'\n")
    (tmp_path / "scoring" / "deep.py").write_text("from . import which\ndef deeper(): return which() + ', deep'\n")
    assert load("scoring:which", tmp_path)() == "package"
    assert function_file("scoring:which", tmp_path) == tmp_path / "scoring" / "__init__.py"
    assert load("scoring.deep:deeper", tmp_path)() == "package, deep"
    assert function_file("scoring.deep:deeper", tmp_path) == tmp_path / "scoring" / "deep.py"


def recipe_folder(root: Path, name: str, layout: str) -> str:
    """A folder in which f() gives `name`, by a helper module; returns what a recipe calls the function."""
    folder = root / name
    module = folder / {"module": "", "package": "scoring", "namespace": "scoring"}[layout]
    module.mkdir(parents=True)
    if layout == "package":
        (module / "__init__.py").write_text("")
    (module / "helper.py").write_text(f"NAME = {name!r}\n")
    origin = "helper" if layout == "module" else "scoring.helper"
    (module / "scores.py").write_text(f"from {origin} import NAME\n\n\ndef f():\n    return NAME\n")
    return "scores:f" if layout == "module" else "scoring.scores:f"


@pytest.mark.parametrize("second", ["module", "package", "namespace"])
@pytest.mark.parametrize("first", ["module", "package", "namespace"])
def test_two_recipes_with_modules_of_one_name_do_not_get_each_others(tmp_path: Path, first: str, second: str) -> None:
    specs = {"one": recipe_folder(tmp_path, "one", first), "two": recipe_folder(tmp_path, "two", second)}
    one, two = (load(specs[name], tmp_path / name) for name in ("one", "two"))
    assert (one(), two()) == ("one", "two")
    assert load(specs["one"], tmp_path / "one")() == "one"
    assert (one(), two()) == ("one", "two")


def test_within_one_recipe_a_module_is_loaded_once(tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text("import helper\ndef f(): return helper\ndef g(): return helper\n")
    (tmp_path / "helper.py").write_text("")
    f = load("scores:f", tmp_path)
    assert load("scores:f", tmp_path) is f
    assert load("scores:g", tmp_path)() is f()


@pytest.mark.parametrize("edited", ["scores.py", "helper.py"])
def test_an_edited_module_or_helper_is_loaded_anew(tmp_path: Path, edited: str) -> None:
    (tmp_path / "helper.py").write_text("A = 1\n")
    (tmp_path / "scores.py").write_text("import helper\nB = 1\ndef f(): return helper.A + B\n")
    assert load("scores:f", tmp_path)() == 2
    text = (tmp_path / edited).read_text()
    (tmp_path / edited).write_text(text.replace("= 1", "= 10"))
    assert load("scores:f", tmp_path)() == 11


def test_a_name_that_is_taken_by_a_loaded_module_is_refused(tmp_path: Path) -> None:
    import json

    (tmp_path / "json.py").write_text("def dumps(prompts, completions): return [0.0 for _ in prompts]\n")
    with pytest.raises(RlhfctlError, match=r"json\.py is hidden by another module 'json'") as caught:
        load("json:dumps", tmp_path)
    assert caught.value.fix == "give the file another name"
    assert sys.modules["json"] is json


# ---------------------------------------------------------------- fingerprint


def test_the_fingerprint_follows_the_file_and_the_name(tmp_path: Path) -> None:
    file = tmp_path / "scores.py"
    file.write_text("def f(): return 1\n")
    first = function_fingerprint("scores:f", tmp_path)
    assert function_fingerprint("scores:f", tmp_path) == first
    assert function_fingerprint("scores:g", tmp_path) != first
    file.write_text("def f(): return 2\n")
    assert function_fingerprint("scores:f", tmp_path) != first
    file.unlink()
    assert function_fingerprint("scores:f", tmp_path) != first

"""Judge pairs of responses in both orders, and count what could not be judged.

    pairs ──▶ two questions each ──▶ cache, or the server ──▶ two choices each ──▶ the policy's value in 0..1

With both orders a judge that prefers a place gives every pair a tie, and `judging/summary.py` measures that preference.
An answer that cannot be read is asked for once more. A pair that then lacks an answer in one order has failed: it is
left out and counted, and where too many fail, judging stops. Equal responses are a tie, and nobody is asked.

Reads and writes the cache of answers. Leaves out which pairs there are (stages/endpoint.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rlhfctl.errors import JudgeFailed, RlhfctlError
from rlhfctl.events import Work
from rlhfctl.judging.budget import Budget, cost, highest_cost
from rlhfctl.judging.cache import Answer, AnswerCache, open_cache
from rlhfctl.judging.client import Client, Refused, Unanswered
from rlhfctl.judging.question import Choice, Message, Question, asked_again, messages, read_choice
from rlhfctl.recipe.sections.endpoint import Endpoint

UNREADABLE, CUT, FILTERED = "no answer in the asked form", "cut at max_tokens", "stopped by a content filter"
REFUSALS_BEFORE_STOP = 5
"""Number of refused questions after which judging stops, if there has been no answer yet: the settings are wrong."""

_GO_ON = "the same command goes on, and asks no question twice"
_SHOWN = 80  # characters of an answer in a message
_FIXES = {
    UNREADABLE: "use a model that follows instructions, or ask for less in compare.endpoint.criteria",
    CUT: "raise compare.endpoint.max_tokens",
    FILTERED: "use a model without a filter for such texts",
}


@dataclass(frozen=True)
class Pair:
    """One prompt with the responses of both sides, as text."""

    prompt: str
    policy: str
    reference: str

    @property
    def questions(self) -> tuple[Question, Question] | None:
        """Return the questions in both orders, the policy first in the first one; None for equal responses."""
        if self.policy == self.reference:
            return None
        ours, theirs = self.policy, self.reference
        return Question(self.prompt, ours, theirs), Question(self.prompt, theirs, ours)


@dataclass(frozen=True)
class Reply:
    """The answer to one question: a choice, or the kind of failure. `cached`: it was there from before.

    `said`: what was answered instead of a choice, by the judge or by the server.
    """

    choice: Choice | None
    failure: str | None = None
    said: str = ""
    answer: Answer | None = None
    cached: bool = False

    @property
    def first_wins(self) -> float | None:
        """Return 1 if the response that stands first is chosen, 0 if the second, 0.5 for a tie; None if neither."""
        return None if self.choice is None else {"A": 1.0, "tie": 0.5, "B": 0.0}[self.choice]


@dataclass(frozen=True)
class Judgement:
    """The replies about one pair: the policy first, and the reference first; None for equal responses."""

    replies: tuple[Reply, Reply] | None

    @property
    def value(self) -> float | None:
        """Return the policy's value, the mean over both orders: 1 wins, 0.5 ties, 0 loses; None for a failed pair."""
        if self.replies is None:
            return 0.5
        ours, theirs = (reply.first_wins for reply in self.replies)
        return None if ours is None or theirs is None else (ours + 1 - theirs) / 2

    @property
    def for_first(self) -> float | None:
        """Return how much the place counts: 1 if the first response wins in both orders, -1 if the second; or None."""
        if self.replies is None:
            return None
        ours, theirs = (reply.first_wins for reply in self.replies)
        return None if ours is None or theirs is None else ours + theirs - 1


@dataclass
class Judged:
    """All judgements by comparison, and the questions behind them: `calls` were sent now, `replies` has each once."""

    comparisons: Mapping[str, Sequence[Judgement]]
    calls: int
    replies: Sequence[Reply]


def judge(section: Endpoint, cache: Path, comparisons: Mapping[str, Sequence[Pair]]) -> Judged:
    """Judge the pairs of all comparisons, each different question once; JudgeFailed if too many pairs fail."""
    with open_cache(cache) as answers:
        work = _Judging(section, answers, comparisons)
        work.run()
    judged = {name: [work.judgement(pair) for pair in pairs] for name, pairs in comparisons.items()}
    for name, pairs in judged.items():
        if pairs and all(one.value is None for one in pairs):
            raise work.too_many_failed(name)
    return Judged(judged, work.calls, list(work.replies.values()))


@contextmanager
def named_in_errors(key: str) -> Iterator[None]:
    """Say `key` in errors in place of compare.endpoint: the same judge may stand elsewhere in a recipe."""
    try:
        yield
    except RlhfctlError as error:
        texts = [text and text.replace("compare.endpoint", key) for text in (error.what, error.where, error.fix)]
        raise type(error)(str(texts[0]), where=texts[1], fix=texts[2]) from error


class _Judging:
    """The state of one judging: replies by key of the question, failures by comparison, and the money."""

    def __init__(self, section: Endpoint, cache: AnswerCache, comparisons: Mapping[str, Sequence[Pair]]) -> None:
        self.section, self.cache, self.comparisons = section, cache, comparisons
        self.questions: dict[str, Question] = {}
        self.places: dict[str, list[tuple[str, int]]] = defaultdict(list)  # key -> the pairs that it is a half of
        for name, pairs in comparisons.items():
            for index, pair in enumerate(pairs):
                for question in pair.questions or ():
                    key = question.key(section)
                    self.questions[key] = question
                    self.places[key].append((name, index))
        self.replies: dict[str, Reply] = {}
        self.failed: dict[str, set[int]] = defaultdict(set)  # comparison -> its failed pairs
        self.calls = self.refused = self.under_way = 0
        self.settled = asyncio.Event()  # set when a question that was under way has ended
        self.budget = Budget(section.max_cost)
        self.stop: RlhfctlError | None = None
        self.work = Work(f"judging with {section.model}", len(self.questions), "question")

    def run(self) -> None:
        """Reply to all questions, from the cache or by asking."""
        with self.work:
            for key in self.questions:
                if (known := self.cache.get(key)) is not None:
                    self.budget.spent += self._cost(known) or 0.0
                    self._take(key, replace(_reply(known), cached=True))
            missing = [key for key in self.questions if key not in self.replies]
            if missing and self.stop is None:
                asyncio.run(self._ask_all(missing))
        if self.stop is not None:
            raise self.stop

    def judgement(self, pair: Pair) -> Judgement:
        """Return the judgement of a pair whose questions have their replies."""
        if pair.questions is None:
            return Judgement(None)
        ours, theirs = (self.replies[question.key(self.section)] for question in pair.questions)
        return Judgement((ours, theirs))

    # ------------------------------------------------------------ asking

    async def _ask_all(self, keys: Sequence[str]) -> None:
        """Ask `concurrency` questions at a time; raise the first error. What is under way at a stop is still kept."""
        waiting = iter(keys)
        try:
            async with Client(self.section) as client, asyncio.TaskGroup() as group:
                for _ in range(min(self.section.concurrency, len(keys))):
                    group.create_task(self._ask_in_turn(waiting, client))
        except BaseExceptionGroup as errors:
            raise next(_leaves(errors)) from None

    async def _ask_in_turn(self, waiting: Iterator[str], client: Client) -> None:
        for key in waiting:
            if self.stop is not None:
                return
            try:
                answer = await self._answer(self.questions[key], client)
            except Unanswered as error:
                self.refused += isinstance(error, Refused)
                self._take(key, Reply(None, error.kind, error.why))
                if self.refused >= REFUSALS_BEFORE_STOP and not self.calls:
                    self.stop = self._refuses_all(error.why)
            else:
                if answer is not None:
                    self.cache.put(key, answer)
                    self._take(key, _reply(answer))

    async def _answer(self, question: Question, client: Client) -> Answer | None:
        """Ask a question, and once more if the answer cannot be read; None if there is no money for it."""
        asked = messages(question, self.section.criteria)
        first = await self._paid(asked, client)
        if first is None or read_choice(first.text) is not None or first.finish == "content_filter":
            return first
        second = await self._paid(asked_again(asked, first.text), client)
        if second is None:
            return None
        return replace(
            second,
            calls=2,
            input_tokens=_sum(first.input_tokens, second.input_tokens),
            output_tokens=_sum(first.output_tokens, second.output_tokens),
        )

    async def _paid(self, asked: list[Message], client: Client) -> Answer | None:
        """Ask if the budget allows it; without a count of tokens, or an answer, the most that it can cost is spent.

        Money that is set aside for questions under way may come back: then this one waits for their answers.
        """
        highest = highest_cost(self.section, asked)
        while not self.budget.reserve(highest):
            if not self.under_way:
                self.stop = self.stop or self._out_of_money()
            if self.stop is not None:
                return None
            self.settled.clear()
            await self.settled.wait()
        self.under_way += 1
        spent = highest
        try:
            answer = await client.ask(asked)
            self.calls += 1
            known = self._cost(answer)
            spent = highest if known is None else known
        except Refused:
            spent = 0.0
            raise
        finally:
            self.budget.settle(highest, spent)
            self.under_way -= 1
            self.settled.set()
        return answer

    def _cost(self, answer: Answer) -> float | None:
        return cost(self.section, answer.input_tokens, answer.output_tokens)

    # ------------------------------------------------------------ replies

    def _take(self, key: str, reply: Reply) -> None:
        """Take a reply; stop as soon as a comparison has more failed pairs than it may."""
        self.replies[key] = reply
        self.work.advance(len(self.replies))
        if reply.choice is not None:
            return
        for name, index in self.places[key]:
            self.failed[name].add(index)
            if len(self.failed[name]) > self.section.max_failed * len(self.comparisons[name]):
                self.stop = self.stop or self.too_many_failed(name)

    def too_many_failed(self, name: str) -> JudgeFailed:
        """Make the error that too many pairs of a comparison have failed, with the reasons and a way out."""
        failures = [reply for reply in self.replies.values() if reply.failure is not None]
        reasons = Counter(str(reply.failure) for reply in failures).most_common(3)
        told = "; ".join(f"{reason} ({count} questions)" for reason, count in reasons)
        said = next((reply.said for reply in failures if reply.failure == reasons[0][0] and reply.said), "")
        return JudgeFailed(
            f"{self.section.model} gives no usable answer about {len(self.failed[name])} of the "
            f"{len(self.comparisons[name])} pairs of the comparison {name!r}, and compare.endpoint.max_failed is "
            f"{self.section.max_failed:g}: {told}; for example {said[:_SHOWN]!r}",
            where="compare.endpoint",
            fix=f"{_FIXES.get(reasons[0][0], 'see what it says')}; or raise compare.endpoint.max_failed: pairs "
            f"without an answer are left out; {_GO_ON}",
        )

    def _refuses_all(self, why: str) -> JudgeFailed:
        return JudgeFailed(
            f"{self.section.model} refuses each of the first {self.refused} questions: {why}",
            where=self.section.base_url,
            fix="change what it names: for example compare.endpoint.temperature: null for a model that has none, or "
            "a smaller max_tokens",
        )

    def _out_of_money(self) -> JudgeFailed:
        done, total = len(self.replies), len(self.questions)
        return JudgeFailed(
            f"the next question could cost more than compare.endpoint.max_cost allows: {self.budget.spent:.4g} of "
            f"{self.section.max_cost:g} is spent, and {done} of {total} questions are answered",
            where="compare.endpoint.max_cost",
            fix=f"raise it, or ask less (data.prompts.test, compare.endpoint.samples, compare.controls); {_GO_ON}",
        )


def _reply(answer: Answer) -> Reply:
    """Read the choice in an answer, or say why there is none."""
    if answer.finish == "content_filter":
        return Reply(None, FILTERED, answer.text, answer)
    choice = read_choice(answer.text)
    if choice is not None:
        return Reply(choice, answer=answer)
    return Reply(None, CUT if answer.finish == "length" else UNREADABLE, answer.text, answer)


def _sum(first: int | None, second: int | None) -> int | None:
    return first + second if first is not None and second is not None else None


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the exceptions in a group, rlhfctl's own first."""
    found = [one for error in group.exceptions for one in _flat(error)]
    yield from sorted(found, key=lambda one: not isinstance(one, RlhfctlError))


def _flat(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _flat(inner)
    else:
        yield error

"""Compare a text with references word by word: ROUGE, BLEU, sacreBLEU and METEOR, one score per text.

Each function takes one text and its references, and returns a number between 0 and 1, 1 for an equal text. The scores
are those of the libraries that RL4LMs uses (Ramamurthy et al. 2023, "Is Reinforcement Learning (Not) for Natural
Language Processing"), in the settings that it uses:

    rouge1, rouge2, rougeL, rougeLsum   F-measure of rouge-score with Porter's stemmer (Lin 2004)
    bleu                                4-grams of words between white space, without smoothing (Papineni et al. 2002)
    sacrebleu                           sacreBLEU's sentence score / 100: tokens 13a, exponential smoothing (Post 2018)
    meteor                              nltk's METEOR by equal words and equal stems (Banerjee and Lavie 2005)

METEOR here leaves out its third stage, WordNet's synonyms, whose data would have to be fetched, and splits a text into
words without splitting it into sentences first: of periods, the last alone is a word of its own. Reads and writes
nothing; the libraries (extra `metrics`) are imported when they are needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from rlhfctl.errors import EngineError

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BLEU_ORDER = 4  # n-grams of up to four words
_LIBRARIES = {**dict.fromkeys(ROUGE, "rouge_score"), "sacrebleu": "sacrebleu", "meteor": "nltk"}

Overlap = Callable[[str, Sequence[str]], float]


def require(name: str) -> None:
    """Raise EngineError if the library of a metric is not installed."""
    library = _LIBRARIES.get(name)
    if library is not None and find_spec(library) is None:
        raise EngineError(
            f"the metric {name} needs the library {library.replace('_', '-')}, which is not installed",
            fix="pip install 'rlhfctl[metrics]'",
        )


def overlap(name: str) -> Overlap:
    """Return the function of a metric by its name; EngineError if its library is not installed."""
    require(name)
    if name in ROUGE:
        return lambda text, references: max(rouge(name, text, reference) for reference in references)
    return {"bleu": bleu, "sacrebleu": sacrebleu, "meteor": meteor}[name]


def rouge(name: str, text: str, reference: str) -> float:
    """Compute the F-measure of ROUGE: the harmonic mean of precision and recall of stemmed words or sequences."""
    return float(_rouge_scorer(name).score(reference, text)[name].fmeasure)


@cache
def _rouge_scorer(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=True)


def bleu(text: str, references: Sequence[str]) -> float:
    """Compute BLEU of one text: the geometric mean of four n-gram precisions times the brevity penalty.

    0 if an n-gram order has no match. With several references the shortest one counts for the brevity penalty, as in
    Google's compute_bleu (tensorflow/nmt), which RL4LMs uses.
    """
    words, references_words = text.split(), [reference.split() for reference in references]
    if not words:
        return 0.0
    log_precision = 0.0
    for order in range(1, BLEU_ORDER + 1):
        found, possible = _ngrams(words, order), len(words) - order + 1
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references_words:
            most |= _ngrams(reference, order)
        matches = sum((found & most).values())
        if matches == 0:
            return 0.0
        log_precision += math.log(matches / possible) / BLEU_ORDER
    shortest = min(map(len, references_words))
    brevity = min(0.0, 1.0 - shortest / len(words))
    return math.exp(log_precision + brevity)


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def sacrebleu(text: str, references: Sequence[str]) -> float:
    """Compute sacreBLEU of one text as a corpus of its own, between 0 and 1."""
    return float(_sacrebleu_metric().corpus_score([text], [[reference] for reference in references]).score) / 100


@cache
def _sacrebleu_metric() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU()


def meteor(text: str, references: Sequence[str]) -> float:
    """Compute METEOR of one text by equal words and stems: the best over the references."""
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.meteor_score import single_meteor_score

    words = NLTKWordTokenizer().tokenize
    hypothesis = words(text)
    if not hypothesis:
        return 0.0
    scores = [
        single_meteor_score(tokens, hypothesis, wordnet=_NoSynonyms()) for tokens in map(words, references) if tokens
    ]
    return float(max(scores, default=0.0))


class _NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> list[Any]:
        """Return no synonyms."""
        return []


def corpus_score(name: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    """Compute the score of all texts together, for metrics that are defined so: sacreBLEU; None for the others.

    `references`: those of each text; where texts have different numbers of them, the first ones count.
    """
    if name != "sacrebleu" or not texts:
        return None
    count = min(map(len, references))
    columns = [[given[index] for given in references] for index in range(count)]
    return float(_sacrebleu_metric().corpus_score(list(texts), columns).score) / 100

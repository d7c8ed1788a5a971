"""Make metric_scores.json: what the reference implementations give for the pairs of random_texts.py.

It calls them directly, not through rlhfctl. Besides `rlhfctl[metrics]` it needs bert-score (MIT licence) and a copy of
nmt/scripts/bleu.py of github.com/tensorflow/nmt (Apache 2.0), the BLEU of Hugging Face's `bleu` and of RL4LMs:

    PYTHONPATH=tests/rewards python tests/rewards/make_metric_scores.py bleu.py

    rouge*      rouge_score.rouge_scorer.RougeScorer, use_stemmer=True, fmeasure
    bleu        compute_bleu of words between white space; 0 where it divides by 0
    sacrebleu   sacrebleu.corpus_bleu / 100
    meteor      nltk.translate.meteor_score, words of NLTKWordTokenizer, a WordNet without synonyms
    bertscore   bert_score.utils.bert_cos_score_idf on the tiny encoder, F1, idf weights 1 (special tokens: 0)
    perplexity  exp of transformers' own loss of the tiny language model, the prompt's labels masked; the reference is
                the prompt and the text the response
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import sacrebleu
import torch
from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.meteor_score import meteor_score
from random_texts import pairs, tiny_encoder, tiny_language_model
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
DIGITS = 9


class NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> list[object]:
        return []


def overlaps(compute_bleu: types.FunctionType) -> dict[str, list[float]]:
    """The scores of word overlap."""
    rouge, words = RougeScorer(ROUGE, use_stemmer=True), NLTKWordTokenizer().tokenize
    found: dict[str, list[float]] = defaultdict(list)
    for text, reference in pairs():
        for name, score in rouge.score(reference, text).items():
            found[name].append(score.fmeasure)
        try:
            found["bleu"].append(compute_bleu([[reference.split()]], [text.split()])[0])
        except ZeroDivisionError:
            found["bleu"].append(0.0)
        found["sacrebleu"].append(sacrebleu.corpus_bleu([text], [[reference]]).score / 100)
        found["meteor"].append(meteor_score([words(reference)], words(text), wordnet=NoSynonyms()) if text else 0.0)
    return found


def bertscores(folder: Path) -> list[float]:
    """BERTScore by its own library; matplotlib and pandas, which it imports for plots, are not needed."""
    for name in ("matplotlib", "matplotlib.pyplot", "pandas", "mpl_toolkits", "mpl_toolkits.axes_grid1"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["mpl_toolkits.axes_grid1"].make_axes_locatable = None
    from bert_score.utils import bert_cos_score_idf

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    tokenizer.build_inputs_with_special_tokens = lambda ids: [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
    idf = defaultdict(lambda: 1.0, {tokenizer.sep_token_id: 0.0, tokenizer.cls_token_id: 0.0})
    texts, references = zip(*pairs(), strict=True)
    with torch.no_grad():
        scores = bert_cos_score_idf(model, list(references), list(texts), tokenizer, idf, batch_size=64, device="cpu")
    return scores[..., 2].tolist()


def perplexities(folder: Path) -> list[float | None]:
    """The perplexity of each text after its reference."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    found: list[float | None] = []
    for text, reference in pairs():
        prompt, response = (tokenizer(one, add_special_tokens=False)["input_ids"] for one in (reference, text))
        ids = torch.tensor([[*prompt, *response]])
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        with torch.no_grad():
            found.append(math.exp(float(model(input_ids=ids, labels=labels).loss)) if response else None)
    return found


def main() -> None:
    spec = importlib.util.spec_from_file_location("nmt_bleu", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with TemporaryDirectory() as folder:
        scores = dict(overlaps(module.compute_bleu))
        scores["bertscore"] = bertscores(tiny_encoder(Path(folder) / "encoder"))
        scores["perplexity"] = perplexities(tiny_language_model(Path(folder) / "language-model"))
    rounded = {name: [None if one is None else round(one, DIGITS) for one in values] for name, values in scores.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in rounded.items())
    (Path(__file__).parent / "metric_scores.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

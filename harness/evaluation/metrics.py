"""The evaluator's figures as `evaluate.Metric` modules of our own, for use outside the harness.
Imported late.

from harness.evaluation.metrics import load
load("win_rate").compute(predictions=gold_scores, references=baseline_gold_scores)
"""

from __future__ import annotations

import unicodedata
from typing import Any

import datasets
import evaluate

from ..core.errors import unknown
from ..statistics.over_prompts import mean_interval, win_rate

WORD_CATEGORIES = "LNM"  # Unicode's letters, numbers and marks
# scripts without spaces between words: Thai and Lao, Burmese, Khmer, kana, Chinese
ALONE = (
    ("\u0e00", "\u0eff"),
    ("\u1000", "\u109f"),
    ("\u1780", "\u17ff"),
    ("\u3040", "\u30ff"),
    ("\u3400", "\u9fff"),
    ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
)

FLOATS = datasets.Features(
    {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
)
TEXTS = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
)


class WinRate(evaluate.Metric):  # type: ignore[misc]
    """Share of prompts on which the prediction scores higher than the reference, ties half, with
    its interval.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=self.__doc__ or "", citation="", features=FLOATS)

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        estimate = win_rate(predictions, references)
        return {"win_rate": estimate.mean, "low": estimate.low, "high": estimate.high}


class SequenceKL(evaluate.Metric):  # type: ignore[misc]
    """Mean of log pi(y|x) - log pi_ref(y|x) over completions drawn from pi: nats per completion,
    with its interval.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=self.__doc__ or "", citation="", features=FLOATS)

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        estimate = mean_interval([p - r for p, r in zip(predictions, references, strict=True)])
        return {"kl": estimate.mean, "low": estimate.low, "high": estimate.high}


class Words:
    """Words of any script for ROUGE: lower case, English words with Porter's stemmer.

    Letters and digits of every script count, with the marks that belong to them. Scripts without
    spaces between words (Chinese, Japanese, Thai and others) are read by the character. ASCII words
    are those of rouge-score's own tokenizer, so English scores are those of its `use_stemmer`.
    """

    def __init__(self, stem: bool = True) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._ascii = DefaultTokenizer(use_stemmer=stem)
        self._known: dict[str, list[str]] = {}

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text in order."""
        words: list[str] = []
        for word in self._split(unicodedata.normalize("NFC", text).lower()):
            if word.isascii() and word not in self._known:
                self._known[word] = list(self._ascii.tokenize(word))
            words += self._known[word] if word.isascii() else [word]
        return words

    @staticmethod
    def _split(text: str) -> list[str]:
        spaced = []
        for character in text:
            if unicodedata.category(character)[0] not in WORD_CATEGORIES:
                spaced.append(" ")
            elif any(first <= character <= last for first, last in ALONE):
                spaced.append(f" {character} ")
            else:
                spaced.append(character)
        return "".join(spaced).split()


class Rouge(evaluate.Metric):  # type: ignore[misc]
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin 2004, the rouge-score package), mean over texts,
    in [0, 1]. With several references to a text the best one counts (Lin 2004, sect. 2.1).
    """

    def _info(self) -> evaluate.MetricInfo:
        several = datasets.Features(
            {
                "predictions": datasets.Value("string"),
                "references": datasets.Sequence(datasets.Value("string")),
            }
        )
        return evaluate.MetricInfo(
            description=self.__doc__ or "", citation="", features=[TEXTS, several]
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> Any:
        """Return the scores; a text may have one reference or a list of them."""
        if references is None:  # they were added in batches
            return super().compute(predictions=predictions, **options)
        several = [[r] if isinstance(r, str) else r for r in references]
        for number, texts in enumerate(several):
            if not isinstance(texts, list | tuple) or not texts:
                raise ValueError(f"text {number + 1} has no reference: {texts!r}")
        return super().compute(predictions=predictions, references=several, **options)

    def _compute(
        self, predictions: list[str], references: list[Any], stem: bool = True
    ) -> dict[str, float]:
        from rouge_score.rouge_scorer import RougeScorer

        names = ("rouge1", "rouge2", "rougeL")
        scorer = RougeScorer(list(names), tokenizer=Words(stem))
        scored = [
            scorer.score_multi([r] if isinstance(r, str) else r, p)
            for p, r in zip(predictions, references, strict=True)
        ]
        return {name: sum(row[name].fmeasure for row in scored) / len(scored) for name in names}


METRICS: dict[str, type[Any]] = {"win_rate": WinRate, "sequence_kl": SequenceKL, "rouge": Rouge}


def load(name: str) -> Any:
    """Return a metric by name: win_rate, sequence_kl or rouge."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]()

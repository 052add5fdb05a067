"""The evaluator's figures as `evaluate.Metric` modules of our own, for use outside the harness.
Imported late.

from harness.evaluation.metrics import load
load("win_rate").compute(predictions=gold_scores, references=baseline_gold_scores)
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from ..core.errors import unknown
from ..statistics.over_prompts import mean_interval, win_rate

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


class Rouge(evaluate.Metric):  # type: ignore[misc]
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin 2004, the rouge-score package), mean over texts,
    in [0, 1].
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=self.__doc__ or "", citation="", features=TEXTS)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        from rouge_score.rouge_scorer import RougeScorer

        names = ("rouge1", "rouge2", "rougeL")
        scorer = RougeScorer(list(names))
        scored = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
        return {name: sum(row[name].fmeasure for row in scored) / len(scored) for name in names}


METRICS: dict[str, type[Any]] = {"win_rate": WinRate, "sequence_kl": SequenceKL, "rouge": Rouge}


def load(name: str) -> Any:
    """Return a metric by name: win_rate, sequence_kl or rouge."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]()

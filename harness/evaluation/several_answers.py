"""Several answers to each prompt: their verdicts and readings, and the figures of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..api.contracts import Verifier
from ..core.meter import Meter
from ..models.tokens import Batch
from ..statistics.pass_at_k import majority_estimates, mean_estimate, pass_estimates
from ..training.rewards import batch_verdicts
from ..training.stages.stages import Stages


@dataclass(frozen=True)
class SeveralAnswers:
    """The verdicts and readings of n answers to each of P prompts."""

    verdicts: list[list[float | None]]
    readings: list[list[str | None]]

    def figures(self) -> dict[str, Any]:
        """Return pass@k, maj@k and the mean verdict; maj@k only where any answer has a reading."""
        mean = mean_estimate(self.verdicts)
        figures: dict[str, Any] = {"pass_at_k": _by_k(pass_estimates(self.verdicts))}
        if mean is not None:
            figures["mean_of_answers"] = asdict(mean)
        if any(reading is not None for row in self.readings for reading in row):
            figures["maj_at_k"] = _by_k(majority_estimates(self.readings, self.verdicts))
        return figures

    def beside(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the samples with the verdicts and readings of all answers."""
        rows = zip(samples, self.verdicts, self.readings, strict=True)
        return [{**s, "passes": told, "readings": read} for s, told, read in rows]


def several_answers(
    verdicts: Sequence[float] | None, batches: Sequence[Batch], stages: Stages, meter: Meter
) -> SeveralAnswers | None:
    """Return all answers to each prompt; None where only one was drawn, or nothing checks them.

    Args:
        verdicts: The verdicts of the first answers, NaN where one could not be graded.
        batches: The answers (B, 1, T), the first ones first.
        stages: The suite with its verifier, and the tokens.
        meter: Pays for the verdicts.
    """
    verifier = stages.suite.make_verifier()
    if len(batches) < 2 or verifier is None or verdicts is None:
        return None
    columns, readings = [list(verdicts)], []
    with meter.phase("evaluate"):
        for batch in batches[1:]:
            values, _ = batch_verdicts(verifier, batch, batch["ended"], stages.tokens, meter)
            columns.append(values[:, 0].tolist())
        readings = [_readings(verifier, batch, stages) for batch in batches]
    return SeveralAnswers(
        [[None if math.isnan(v) else v for v in row] for row in zip(*columns, strict=True)],
        [list(row) for row in zip(*readings, strict=True)],
    )


def _readings(verifier: Verifier, batch: Batch, stages: Stages) -> list[str | None]:
    texts, ended = stages.tokens.texts(batch), batch["ended"][:, 0].tolist()
    return [verifier.reading(row[0], bool(end)) for row, end in zip(texts, ended, strict=True)]


def _by_k(estimates: dict[int, Any]) -> dict[str, Any]:
    return {str(k): asdict(estimate) for k, estimate in estimates.items()}

"""A reward model of the hub or a folder as judge: the answer with the higher score wins."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness import Judge, UsageError, hookimpl


@dataclass
class RewardModel(Judge):
    """A sequence classifier with one output, with its own tokenizer and chat template.

    Scores are its logits, in units of its own.
    """

    name = "reward_model"

    model: str = ""  # a folder in Hugging Face format, or a hub id
    batch_size: int = 8  # answers of one length per forward pass
    device: str = "cpu"  # where the model runs

    def check(self):
        """Raise ValueError for options that make no sense."""
        if not self.model:
            raise ValueError(
                "the judge reward_model needs a model: --judge-set model=FOLDER_OR_HUB_ID"
            )
        if self.batch_size < 1:
            raise ValueError("batch_size must be at least 1")

    @cached_property
    def scorer(self):
        """The model."""
        from harness.models.sequence_scorer import SequenceScorer

        return SequenceScorer(self.model, self.device, self.batch_size)

    def check_models(self):
        """Read the model once, and let it go."""
        from harness.models.sequence_scorer import SequenceScorer

        SequenceScorer(self.model)

    def prepare(self, suite, stages):
        """Read the model."""
        self.counts = Counter()
        if self.scorer.limit is not None and self.scorer.limit < 2:
            raise UsageError(f"The reward model {self.model} takes no texts.")

    def data_files(self):
        """Return the files of the model's folder."""
        from harness.core.model_folder import model_files

        return model_files(Path(self.model)) if Path(self.model).is_dir() else []

    def identity(self):
        """Return the name of the model and the digest of its weights."""
        return {"model": Path(self.model).name, "weights": self.scorer.digest}

    def usage(self):
        """Return the answers that were scored, and their tokens and FLOPs."""
        return {name: float(n) for name, n in self.counts.items()}

    def score(self, prompts, completions):
        """Return the model's score of each completion."""
        scored = self.scorer.score([prompt.text for prompt in prompts], completions)
        counts = {
            "requests": len(completions),
            "prompt_tokens": scored.tokens,
            "cut": scored.cut,
            "flops": scored.flops,
        }
        for name, n in counts.items():
            self.counts[name] += n
        return scored.scores


@hookimpl
def register_judges(register):
    register(RewardModel)

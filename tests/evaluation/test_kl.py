"""The evaluator's KL against the truth: on `exact` every answer can be listed."""

import math

import pytest
import torch
from harness_suites.exact import PROMPTS, Exact

from harness.core.data import Sampling
from harness.evaluation.kl import sampled_kl
from harness.models.enumeration import every_completion, kl, probabilities
from harness.models.generation import CachedEngine
from harness.models.loading import load_causal, load_tokenizer
from harness.models.tokens import Batch, Tokens
from harness.statistics.over_prompts import mean_interval

LIMIT = 4096  # tokens of a micro-batch
ROUNDING = 2e-6  # nats, of float32 log-probabilities


class Listed:
    """A policy and a reference at a temperature, every answer of four prompts, and the true KL."""

    def __init__(self, temperature):
        suite = Exact()
        self.tokens = Tokens(
            load_tokenizer(suite.base_model()), max_completion=suite.max_new_tokens
        )
        self.prompts, self.limit = suite.prompts("test")[: len(PROMPTS)], suite.max_new_tokens
        every = every_completion(self.tokens, self.prompts, self.limit)
        self.every = Batch(every.prompts, every.columns, temperature)
        self.policy, self.reference = (load_causal(suite.base_model()) for _ in range(2))
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            weight = self.policy.lm_head.weight
            weight.mul_(0.5).add_(0.05 * torch.randn(weight.shape, generator=noise))
        self.share = probabilities(self.policy, self.every, LIMIT)  # (P, N)
        self.ref = probabilities(self.reference, self.every, LIMIT)
        self.kl = kl(self.share, self.ref)  # (P,)

    def mean(self, values):
        """The expectation over all answers, (P,), of values (P * N,)."""
        return (self.share * values.double().view_as(self.share)).sum(-1)


@pytest.fixture(scope="module", params=[1.0, 0.7])
def listed(request):
    return Listed(request.param)


@pytest.fixture
def estimates(runtime, meter):
    """The evaluator's two estimates, (B,) each, of a batch (B, 1, T)."""

    def measure(policy, reference, batch):
        with meter.phase("evaluate"):
            return sampled_kl(policy, reference, batch, runtime(micro_batch_tokens=LIMIT))

    return measure


def test_both_estimators_are_exact_in_expectation_over_all_answers(listed, estimates):
    exact, plain = estimates(listed.policy, listed.reference, listed.every.flat())
    assert listed.kl.min() > 0.05
    for estimate in (exact, plain):
        torch.testing.assert_close(listed.mean(estimate), listed.kl, atol=ROUNDING, rtol=0)
    ratios = (listed.share.log() - listed.ref.log()).flatten()
    torch.testing.assert_close(plain.double(), ratios, atol=1e-5, rtol=0)
    assert exact.var() < plain.var()  # Rao-Blackwell


def test_estimate_of_the_other_direction_or_without_a_token_is_another(listed, estimates):
    """The controls of the test above: what a wrong estimator returns is far from the truth."""
    first = torch.ones_like(listed.every.flat()["mask"])
    first[..., 0] = 0.0
    flat = listed.every.flat()
    shorter = flat.with_columns(mask=flat["mask"] * first)
    wrong = [
        *estimates(listed.policy, listed.reference, shorter),
        *estimates(listed.reference, listed.policy, flat),
    ]
    for estimate in wrong:
        assert (listed.mean(estimate) - listed.kl).abs().max() > 1000 * ROUNDING


def test_intervals_of_sampled_answers_cover_the_true_kl(listed, estimates):
    """Of 60 evaluations of 64 answers to each prompt, about 95 % of the intervals."""
    temperature, rows = listed.every.temperature, 60 * 64
    noise = torch.rand(4 * rows, 3, generator=torch.Generator().manual_seed(1))
    posed = listed.tokens.prompt_batch(listed.prompts)
    drawn = CachedEngine({listed.tokens.eos}).generate(
        listed.policy, posed, rows, Sampling(temperature, listed.limit), noise
    )
    batch = Batch(drawn.prompts, drawn.columns, temperature).flat()
    for estimate in estimates(listed.policy, listed.reference, batch):
        by_prompt = estimate.view(4, 60, 64).double()
        intervals = [
            (mean_interval(part.tolist()), float(truth))
            for row, truth in zip(by_prompt, listed.kl, strict=True)
            for part in row
        ]
        covered = sum(one.low <= truth <= one.high for one, truth in intervals) / len(intervals)
        assert covered == pytest.approx(0.95, abs=5 * math.sqrt(0.95 * 0.05 / len(intervals)))

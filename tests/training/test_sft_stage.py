"""The SFT stage: its batches are packed, and packing changes no loss."""

from types import SimpleNamespace

import pytest
import torch
from harness_suites.summarization import Summarization

from harness.models.batches import Batch
from harness.models.layouts import packs
from harness.models.loading import Arithmetic, load_tokenizer
from harness.models.logprobs import completion_logp, padded
from harness.models.tokens import Tokens
from harness.training.stages.sft import _base, nll


def context(prompt_sharing: bool) -> SimpleNamespace:
    """What `_base` reads of a stage: the embedded base model, alone, on the CPU."""
    runtime = SimpleNamespace(shards=lambda: None, device=torch.device("cpu"))
    return SimpleNamespace(
        base=Summarization().base_model(),
        arithmetic=Arithmetic(),
        spec=SimpleNamespace(prompt_sharing=prompt_sharing),
        stage_runtime=runtime,
    )


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Six demonstrations of different lengths."""
    suite = Summarization()
    tokens = Tokens(load_tokenizer(suite.base_model()))
    demos = suite.demonstrations("train")[:6]
    answers = [[tokens.completion_ids(d.prompt.text, d.completion)] for d in demos]
    return tokens.batch([d.prompt for d in demos], answers, torch.device("cpu"))


def loss_of(model, batch):
    """Return the mean loss per token, and the gradient of the output layer."""
    weights = model.get_output_embeddings().weight
    loss = (nll(completion_logp(model, batch), batch) * batch["mask"]).sum() / batch["mask"].sum()
    return loss.item(), torch.autograd.grad(loss, weights)[0]


def test_sft_base_is_packed_and_its_loss_is_that_of_padded_rows(batch):
    model = _base(context(prompt_sharing=True))
    assert packs(model)
    loss, gradient = loss_of(model.requires_grad_(True), batch)
    with padded([model]):
        assert not packs(model)
        expected, expected_gradient = loss_of(model, batch)
    assert loss == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-4)


def test_sft_base_keeps_padded_rows_without_prompt_sharing():
    assert not packs(_base(context(prompt_sharing=False)))

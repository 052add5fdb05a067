"""Models with windows, caps and sinks in their attention: the fast paths give the numbers that
transformers gives for each sequence alone.
"""

import pytest
import torch

from harness.core.data import Sampling
from harness.models import attention, attention_scores, packing
from harness.models.capabilities import enable_shared_cache, enable_sharing, window_of
from harness.models.generation import CachedEngine, SharedDecoding
from harness.models.logprobs import completion_logp

from ..helpers.small_models import batch_of
from ..helpers.tiny_models import tiny

QWEN = {"use_sliding_window": True, "max_window_layers": 1}
WINDOWED = {
    "mistral-window": {},
    "gemma2": {},
    "gemma3": {"layer_types": ["full_attention", "sliding_attention"]},
    "qwen2": QWEN,
    "qwen3": QWEN,
    "phi3": {},
    "gpt-oss": {},
}
NAMES = pytest.mark.parametrize("name", WINDOWED)
WINDOWS = pytest.mark.parametrize("window", [5, 9, 64])  # inside the prompt, its width, beyond all


def windowed(name, window):
    return tiny(name, sliding_window=window, **WINDOWED[name])


def alone(model, batch, i, j):
    """Return a completion's log-probabilities by transformers, without padding or sharing."""
    prompt = batch.prompts.ids[i][batch.prompts.mask[i] > 0]
    own = batch["completion_ids"][i, j, : batch.lengths[i, j]]
    logits = model(input_ids=torch.cat([prompt, own])[None]).logits[0, len(prompt) - 1 : -1]
    return (logits.float() / batch.temperature).log_softmax(-1).gather(-1, own[:, None])[:, 0]


def each_alone(model, batch):
    """Return (B, K, T) log-probabilities by transformers, a sequence at a time; 0 on padding."""
    logp, (b, k, _) = torch.zeros(batch.shape), batch.shape
    for i, j in ((i, j) for i in range(b) for j in range(k)):
        logp[i, j, : batch.lengths[i, j]] = alone(model, batch, i, j)
    return logp


@NAMES
@WINDOWS
@pytest.mark.parametrize("k", [1, 3])
def test_packed_scores_are_those_of_transformers(name, window, k):
    model, batch = windowed(name, window), batch_of(k=k, t=8)
    expected = each_alone(model, batch)
    assert enable_sharing(model) and window_of(model) == window
    torch.testing.assert_close(completion_logp(model, batch), expected, atol=2e-5, rtol=0)


@NAMES
def test_window_is_felt(name):
    """The tests above mean something only where a window changes the numbers."""
    batch = batch_of(k=1, t=8)
    short, long = (each_alone(windowed(name, w), batch) for w in (5, 64))
    assert (short - long).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["mistral-window", "gemma2", "gpt-oss"])
def test_gradients_through_a_window_are_those_of_transformers(name):
    batch, grads = batch_of(b=2, k=2, t=8), []
    for score in (each_alone, completion_logp):
        model = windowed(name, 5)
        if score is completion_logp:
            assert enable_sharing(model)
        model.requires_grad_(True)
        (score(model, batch) * torch.linspace(-1, 1, 8)).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (grads[0] - grads[1]).norm() / grads[0].norm() < 1e-5


@NAMES
@WINDOWS
def test_decoding_on_shared_prompts_is_that_of_transformers(name, window):
    model, prompts = windowed(name, window), batch_of().prompts
    assert enable_shared_cache(model)
    noise = torch.rand(6, 16, generator=torch.Generator().manual_seed(2))
    drawn = CachedEngine({0, 7, 9}).generate(model, prompts, 2, Sampling(0.7, 16), noise)
    torch.testing.assert_close(drawn["logp"], each_alone(model, drawn), atol=2e-5, rtol=0)


def test_windows_of_a_model_are_as_before_the_probe():
    model = windowed("mistral-window", 64)
    enable_sharing(model), enable_shared_cache(model)
    assert model.config.sliding_window == 64
    model = windowed("gemma2", 64)
    enable_sharing(model), enable_shared_cache(model)
    assert {a.sliding_window for a in (layer.self_attn for layer in model.model.layers)} == {
        64,
        None,
    }


def test_forgotten_window_is_found_by_the_probe(monkeypatch):
    """Negative control: the window is longer than the probes, and is seen all the same."""
    honest = packing._hidden
    monkeypatch.setattr(packing, "_hidden", lambda key, query, window: honest(key, query, None))
    assert not enable_sharing(windowed("mistral-window", 64))
    monkeypatch.setattr(attention.SharedPromptCache, "_passes", lambda self, window: False)
    assert not enable_shared_cache(windowed("mistral-window", 64))


@pytest.mark.parametrize(("name", "what"), [("gemma2", "capped"), ("gpt-oss", "weights")])
def test_forgotten_cap_or_sink_is_found_by_the_probe(name, what, monkeypatch):
    """Negative control."""
    plain = {
        "capped": lambda self, scores: scores,
        "weights": lambda self, scores: scores.float().softmax(-1),
    }
    monkeypatch.setattr(attention_scores.Scoring, what, plain[what])
    more = {"attn_logit_softcapping": 0.5} if name == "gemma2" else {}
    model = tiny(name, **more)
    assert not enable_sharing(model) and not enable_shared_cache(model)


def test_model_without_windows_in_use_has_none():
    assert window_of(tiny("qwen2", sliding_window=8, use_sliding_window=False)) is None
    assert window_of(tiny("llama")) is None and window_of(tiny("mistral")) is None


def test_static_cache_hides_what_a_window_has_left_behind(monkeypatch):
    """The cache of recorded passes reads the newest place from a tensor."""
    from harness.models.cuda_graphs import StaticPromptCache

    model, prompts = windowed("gemma3", 5), batch_of().prompts
    assert enable_shared_cache(model)
    monkeypatch.setattr(SharedDecoding, "cache_class", StaticPromptCache)
    noise = torch.rand(6, 16, generator=torch.Generator().manual_seed(2))
    drawn = CachedEngine({0, 7, 9}).generate(model, prompts, 2, Sampling(0.7, 16), noise)
    torch.testing.assert_close(drawn["logp"], each_alone(model, drawn), atol=2e-5, rtol=0)

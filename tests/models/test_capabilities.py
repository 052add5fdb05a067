"""Models without attention, or with little: they take the slower path, say so, and are correct on
it.
"""

import copy
import json
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoTokenizer,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from harness.core.data import Sampling
from harness.core.errors import UsageError
from harness.models import generation
from harness.models.capabilities import check_padding, find_out, inherit
from harness.models.flops import ModelFlops, forward_cost
from harness.models.generation import CachedEngine
from harness.models.loading import computing, frozen, trunk_of
from harness.models.logprobs import completion_logp

from ..helpers.small_models import LLAMA, model_of, prompts
from ..helpers.tools import ROOT, command, fresh, on_small, only_run

SPACE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "initializer_range": 0.3,
}
MAMBA = (MambaForCausalLM, MambaConfig(**SPACE))
MAMBA2 = (
    Mamba2ForCausalLM,
    Mamba2Config(**SPACE, num_heads=8, head_dim=8, n_groups=1, expand=2, chunk_size=8),
)
LFM2 = (
    Lfm2ForCausalLM,
    Lfm2Config(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv"],
        pad_token_id=0,
        initializer_range=0.3,
    ),
)
KINDS = pytest.mark.parametrize(
    "cls, config", [MAMBA, MAMBA2, LFM2], ids=lambda x: getattr(x, "__name__", "")
)


def drawn(model, n=4):
    """Completions of which many end early."""
    noise = torch.rand(5 * n, 24, generator=torch.Generator().manual_seed(2))
    return CachedEngine(set(range(0, 60, 4))).generate(
        model, prompts(), n, Sampling(0.8, 24), noise
    )


@KINDS
def test_recurrence_or_convolution_takes_a_slower_path_that_is_right(cls, config):
    model = model_of(cls, config)
    find_out(model, sharing=True)
    trunk = trunk_of(model)
    assert (
        not trunk.share_prompt
        and not trunk.share_cache
        and trunk.keeps_cache == (cls is Lfm2ForCausalLM)
    )
    batch = drawn(model)
    assert len(set(batch.lengths.flatten().tolist())) > 2, "no row left on the way"
    torch.testing.assert_close(batch["logp"], completion_logp(model, batch), atol=2e-5, rtol=0)
    again = model_of(cls, config)
    inherit(again, model)
    assert trunk_of(again).keeps_cache == trunk.keeps_cache


@pytest.mark.parametrize("fault", ["padding left out", "rows mixed up"])
def test_fault_of_the_slower_path_would_show(fault, monkeypatch):
    """Negative controls."""
    model = model_of(*MAMBA)
    find_out(model, sharing=True)
    slow = generation.Recomputed
    if fault == "padding left out":
        usual = slow.__init__
        monkeypatch.setattr(slow, "__init__", lambda s, *a: (usual(s, *a), s.mask.fill_(1))[0])
    else:
        monkeypatch.setattr(slow, "keep", lambda s, rows, f=slow.keep: f(s, rows.flip(0)))
    batch = drawn(model)
    assert (batch["logp"] - completion_logp(model, batch)).abs().max() > 1e-3


def test_cache_that_gives_other_numbers_is_not_used(monkeypatch):
    model = model_of(*LFM2)
    monkeypatch.setattr(generation.Repeated, "keep", lambda self, rows: None)
    find_out(model, sharing=True)
    assert not trunk_of(model).keeps_cache


def test_model_that_sees_padding_is_refused():
    model = model_of(
        RwkvForCausalLM, RwkvConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2)
    )
    with pytest.raises(
        UsageError, match="RwkvForCausalLM cannot be used: padding before a prompt changes"
    ):
        find_out(model, sharing=True)
    check_padding(model_of(LlamaForCausalLM, LLAMA))


def test_costs_are_those_of_what_is_computed():
    attends, none = forward_cost(model_of(*LFM2)), forward_cost(model_of(*MAMBA))
    assert attends.attention == 4 * 1 * 32 and none.attention == 0 and none.linear > 0
    model = model_of(*MAMBA)
    find_out(model, sharing=True)
    batch = drawn(model, n=1)
    cost, prompt = forward_cost(model), batch.prompts.ids.shape[1]
    read = len(batch.prompts) * prompt + sum(
        prompt + t for n in batch.lengths.flatten().tolist() for t in range(1, n)
    )
    seen = len(batch.prompts) + int(batch.lengths.sum()) - batch.lengths.numel()
    assert ModelFlops(model).decode(batch) == pytest.approx(cost.flops(read, seen, 0))
    trunk_of(model).keeps_cache = True
    assert ModelFlops(model).decode(batch) < cost.flops(read, seen, 0) / 2


class Casts(TorchDispatchMode):
    """Counts casts of matrices to bf16."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if (
            function is torch.ops.aten._to_copy.default
            and made.dtype == torch.bfloat16
            and made.dim() == 2
        ):
            self.found[made.shape] += 1
        return made


def test_frozen_models_weights_are_cast_once_while_it_decodes():
    model = frozen(model_of(LlamaForCausalLM, LLAMA))
    trunk_of(model).compute_dtype = torch.bfloat16
    find_out(model, sharing=True)

    def casts(how):
        with torch.no_grad(), how(model), Casts() as seen:
            for _ in range(3):
                with computing(model):
                    model(input_ids=torch.ones(1, 4, dtype=torch.long))
        return seen.found[model.lm_head.weight.shape]

    class Around:
        def __init__(self, model):
            self.both = [computing(model), generation.cast_once(model)]

        def __enter__(self):
            for one in self.both:
                one.__enter__()

        def __exit__(self, *told):
            for one in self.both[::-1]:
                one.__exit__(*told)

    assert casts(computing) == 3 and casts(Around) == 1
    assert not any(p.requires_grad for p in model.parameters())
    with Casts() as seen:
        before = drawn(model)
    assert seen.found[model.lm_head.weight.shape] == 1
    learning = copy.deepcopy(model).requires_grad_(True)
    torch.testing.assert_close(drawn(learning)["logp"], before["logp"], atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "dpo"])
def test_state_space_model_is_trained_end_to_end(method):
    where = fresh("mamba")
    base = AutoTokenizer.from_pretrained(ROOT / "suites" / "harness_suites" / "base")
    ids = {"eos_token_id": base.eos_token_id, "pad_token_id": base.pad_token_id}
    MambaForCausalLM(MambaConfig(**{**SPACE, "vocab_size": len(base)}, **ids)).save_pretrained(
        where / "model"
    )
    base.save_pretrained(where / "model")
    done = command(
        *on_small(method, "--model", where / "model", "--check-rollouts", results=where / "results")
    )
    assert done.code == 0, done.text
    result = json.loads((only_run(where / "results", "small", method) / "result.json").read_text())
    assert not result["runtime"]["cache_kept"] and not result["runtime"]["prompt_computed_once"]
    assert "This model decodes without a cache" in done.err

"""One class counts all FLOPs of a run; the counts of fixed models on a batch are pinned."""

import ast
from random import Random

import pytest

from harness.core.data import Prompt
from harness.core.digests import PACKAGE
from harness.models import flops
from harness.models.capabilities import find_out
from harness.models.flops import ModelFlops
from harness.models.loading import frozen, scalar_from
from harness.models.lora import Lora, beside

PINNED = {  # model, layout, role: forward pass, backward pass, decoding
    "llama shared": (1597952.0, 2937856.0, 1707264.0),
    "llama shared scalar": (1647488.0, 3004160.0),
    "llama shared lora": (1908480.0, 2183168.0, 2051328.0),
    "llama padded": (4048896.0, 8097792.0, 1707264.0),
    "llama padded scalar": (3840000.0, 7680000.0),
    "llama padded lora": (4835328.0, 5916672.0, 2051328.0),
    "gpt2 shared": (2299392.0, 4598784.0, 2223360.0),
    "gpt2 shared scalar": (2202176.0, 4404352.0),
    "gpt2 shared lora": (2635264.0, 3155456.0, 2567424.0),
    "gpt2 padded": (5228544.0, 10457088.0, 2223360.0),
    "gpt2 padded scalar": (5019648.0, 10039296.0),
    "gpt2 padded lora": (6014976.0, 7096320.0, 2567424.0),
}


def counted(model, batch, decodes=True):
    model_flops = ModelFlops(model)
    passes = (model_flops.forward(batch), model_flops.backward(batch))
    return (*passes, model_flops.decode(batch)) if decodes else passes


@pytest.fixture
def batch(tokens, words):
    rng = Random(0)
    prompts = [
        Prompt(f"p{i}", " ".join(rng.choices(words.all[words.FIRST :], k=n)))
        for i, n in enumerate((3, 1, 5, 2))
    ]
    lengths = ((2, 4), (1, 3), (6, 2), (3, 5))
    return tokens.batch(prompts, [[[10] * (n - 1) + [words.EOS] for n in row] for row in lengths])


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_counts_are_what_they_were(kind, sharing, batch, build_model):
    model, name = build_model(kind), f"{kind} {'shared' if sharing else 'padded'}"
    find_out(model, sharing)
    assert counted(model.requires_grad_(True), batch) == PINNED[name]
    assert counted(scalar_from(model), batch, decodes=False) == PINNED[f"{name} scalar"]
    assert counted(beside(frozen(model), Lora(4, 8.0, 0)), batch) == PINNED[f"{name} lora"]


def test_negative_control_a_count_without_attention_is_seen(batch, build_model, monkeypatch):
    model = build_model()
    find_out(model, True)
    monkeypatch.setattr(flops, "pairs_of", lambda *_, **__: 0)
    assert ModelFlops(model).forward(batch) < PINNED["llama shared"][0]


def test_costs_per_token_are_turned_into_flops_in_one_module_only():
    """Elsewhere nothing calls ForwardCost's methods or adds up a count of its own."""
    makers = ("ForwardCost", "Passed", "frozen_cost", "forward_cost")
    for file in PACKAGE.rglob("*.py"):
        if file.name == "flops.py":
            continue
        named = {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
        assert not named & set(makers), file

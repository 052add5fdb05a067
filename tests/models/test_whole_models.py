"""A model folder whose files do not hold what its configuration says is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.errors import UsageError
from harness.models.loading import load_causal


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, num_hidden_layers=2, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit):
    """Change the tensors of a model folder."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder, **values):
    """Change the configuration of a model folder."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_load_causal_takes_a_whole_model_with_a_tied_head(folder):
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_causal(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    change(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert load_causal(folder) is not None  # a tied head that is stored too


def test_load_causal_refuses_a_layer_that_is_missing(folder):
    configure(folder, num_hidden_layers=3)
    with pytest.raises(UsageError, match=r"has no model\.layers\.2\..*random \(and 8 more\)"):
        load_causal(folder)


def test_load_causal_refuses_a_layer_without_a_place(folder):
    configure(folder, num_hidden_layers=1)
    with pytest.raises(UsageError, match=r"has a model\.layers\.1\..*no place for \(and 8 more\)"):
        load_causal(folder)


def test_load_causal_refuses_a_tensor_of_another_shape(folder):
    configure(folder, intermediate_size=20)
    with pytest.raises(
        UsageError,
        match=r"has a model\.layers\.0\.mlp\.down_proj\.weight of another shape .*5 more",
    ):
        load_causal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_load_causal_refuses_weights_that_are_not_finite(folder, value):
    change(folder, lambda t: t["model.norm.weight"].__setitem__(3, value))
    with pytest.raises(UsageError, match=r"value in model\.norm\.weight that is not finite"):
        load_causal(folder)

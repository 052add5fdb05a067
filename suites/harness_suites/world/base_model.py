"""Build the tokenizer and the untrained base model of the embedded world; `pretrain` trains it.

The architecture is a stock Llama. Only its starting weights are special: three heads of the first layer begin by
looking at the previous one, two and three tokens, because a decoder this small otherwise spends most of its
pretraining finding out what came just before. Everything stays trainable and the saved model is plain `transformers`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import words as w

FOLDER = Path(__file__).parent.parent / "base"  # the trained model, shipped in the wheel
PEAK = 5.0  # by how much a previous-token head's score falls from its peak to a distance of one token


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer; it puts the start token in front, as Llama's does."""
    ids = {word: i for i, word in enumerate(w.vocabulary())}
    core = Tokenizer(WordLevel(ids, unk_token=w.UNK))
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = TemplateProcessing(single=f"{w.BOS} $A", special_tokens=[(w.BOS, ids[w.BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=w.PAD, bos_token=w.BOS, eos_token=w.EOS, unk_token=w.UNK, padding_side="left"
    )


def build_model(vocab_size: int, width: int, layers: int, heads: int = 4) -> LlamaForCausalLM:
    """Return an untrained Llama whose first heads look at the previous tokens."""
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, attention_bias=True, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0}, max_position_embeddings=256,
        initializer_range=width**-0.5,  # the usual 0.02 is made for widths in the thousands: here nothing would attend
        pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.3)
        for i, layer in enumerate(model.model.layers):
            # what the first layer says of the previous tokens is as loud as the token itself: an n-gram embedding
            layer.self_attn.o_proj.weight.mul_(0.6 if i == 0 else 0.25)
            layer.mlp.down_proj.weight.mul_(0.25)
        for offset in (1, 2, 3):
            _look_back(model.model.layers[0].self_attn, offset - 1, offset, width // heads)
    return model


def _look_back(attention: torch.nn.Module, head: int, offset: int, head_dim: int) -> None:
    """Start `head` so that its score peaks `offset` tokens back.

    With rotary frequencies f, key bias (a, 0) and query bias (a cos(offset f), -a sin(offset f)) give the score
    a^2 sum_f cos((distance - offset) f) / sqrt(head_dim).
    """
    half = head_dim // 2
    f = 100.0 ** (-torch.arange(half) / half)
    a = math.sqrt(PEAK * math.sqrt(head_dim) / (1 - torch.cos(f)).sum())
    rows = slice(head * head_dim, (head + 1) * head_dim)
    attention.k_proj.bias[rows] = torch.cat([torch.full((half,), a), torch.zeros(half)])
    attention.q_proj.bias[rows] = torch.cat([a * torch.cos(offset * f), -a * torch.sin(offset * f)])
    attention.q_proj.weight[rows] *= 0.1
    attention.k_proj.weight[rows] *= 0.1

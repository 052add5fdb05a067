"""Build the tokenizer and the untrained base model of the embedded world; `pretrain` trains it.

The architecture is a stock Llama. Only its initial weights are special, because so small a decoder
otherwise needs most of its pretraining to learn to copy tokens. Three heads of the first layer
initially attend to the token one, two or three positions back. Three heads of the second layer
initially attend to positions that follow an earlier occurrence of the current token, and copy the
token there. Everything stays trainable, and the saved model is plain `transformers`.
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
PEAK = 5.0  # by how much a look-back head's score falls one token away from its peak
LOUDNESS = 0.6  # scale of a look-back head's output, so that it equals the token's embedding
SHARPNESS = 2.0  # scale of a look-up head's queries and keys
THETA = 10000.0  # rotary base: fast frequencies for positions, slow ones for look-up
SLOW = 5  # the first frequency that turns by less than about a radian over a prompt


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer; it puts the start token in front, as Llama's does."""
    ids = {word: i for i, word in enumerate(w.vocabulary())}
    core = Tokenizer(WordLevel(ids, unk_token=w.UNK))
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = TemplateProcessing(
        single=f"{w.BOS} $A", special_tokens=[(w.BOS, ids[w.BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=w.PAD,
        bos_token=w.BOS,
        eos_token=w.EOS,
        unk_token=w.UNK,
        padding_side="left",
    )


def build_model(vocab_size: int, width: int, layers: int, heads: int = 4) -> LlamaForCausalLM:
    """Return an untrained Llama whose first heads look at the previous tokens."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        max_position_embeddings=256,
        initializer_range=width
        ** -0.5,  # the usual 0.02 suits widths in the thousands; here attention would be uniform
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=True,
    )
    model = LlamaForCausalLM(config)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.3)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.25)
            layer.mlp.down_proj.weight.mul_(0.25)
        for offset in (1, 2, 3):
            rows = slice((offset - 1) * (width // heads), offset * (width // heads))
            _look_back(first, rows, offset)
            _look_up(first, second, rows)
    return model


def _look_back(attention: torch.nn.Module, rows: slice, offset: int) -> None:
    """Start a head so that its score peaks `offset` tokens back.

    With rotary frequencies f, key bias (a, 0) and query bias (a cos(offset f), -a sin(offset f))
    give the score a^2 sum_f cos((distance - offset) f) / sqrt(head_dim).
    """
    head_dim = rows.stop - rows.start
    half = head_dim // 2
    f = THETA ** (-torch.arange(half) / half)
    a = math.sqrt(PEAK * math.sqrt(head_dim) / (1 - torch.cos(f)).sum())
    attention.k_proj.bias[rows] = torch.cat([torch.full((half,), a), torch.zeros(half)])
    attention.q_proj.bias[rows] = torch.cat([a * torch.cos(offset * f), -a * torch.sin(offset * f)])
    attention.q_proj.weight[rows] *= 0.1
    attention.k_proj.weight[rows] *= 0.1


def _look_up(first: torch.nn.Module, second: torch.nn.Module, rows: slice) -> None:
    """Start a head of the second layer that finds where its look-back head saw the present token.

    The look-back head writes B A x of the earlier token's embedding x; the look-up head asks with A
    x of the present one and compares with B^T of what is written there, over the slow rotary
    dimensions, which distance hardly turns. What it finds it adds to the stream in the direction of
    that token's own embedding: the tied head then repeats it.
    """
    head_dim, width = rows.stop - rows.start, first.q_proj.weight.shape[1]
    a, b, c = (torch.linalg.qr(torch.randn(width, head_dim)).Q for _ in range(3))
    slow = (torch.arange(head_dim) % (head_dim // 2) >= SLOW).float()[:, None]
    first.v_proj.weight[rows], first.o_proj.weight[:, rows] = a.T, LOUDNESS * b
    second.q_proj.weight[rows], second.k_proj.weight[rows] = (
        SHARPNESS * slow * a.T,
        SHARPNESS * slow * b.T,
    )
    second.v_proj.weight[rows], second.o_proj.weight[:, rows] = c.T, 0.5 * c

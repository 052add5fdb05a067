"""Tiny models with random weights, one for each architecture that the harness is tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from .tools import ROOT

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma": ("gemma", {"head_dim": 8}),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "neox": ("gpt_neox", {}),
    "smollm3": ("smollm3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 128}),
    "qwen2-moe": (
        "qwen2_moe",
        {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("qwen3_moe", {**_EXPERTS, "num_experts": 4, "head_dim": 8}),
    "deepseek-v3": (
        "deepseek_v3",
        {
            **_EXPERTS,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
    "gemma2": ("gemma2", {"head_dim": 8, "sliding_window": 128}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "sliding_window": 128}),
    "gpt-oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "sliding_window": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "phimoe": ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "falcon": ("falcon", {"alibi": False, "new_decoder_architecture": False}),
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "granite": ("granite", {"logits_scaling": 8.0}),
}
MIXTURES = ("qwen2-moe", "mixtral", "qwen3-moe", "deepseek-v3", "gpt-oss", "phimoe")


def tiny(name: str, vocab_size: int = 60, seed: int = 0, **more: Any) -> nn.Module:
    """Return a frozen random model of an architecture."""
    kind, options = ARCHITECTURES[name]
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(
        kind, vocab_size=vocab_size, **{**_SIZES, **ends, **options, **more}
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def tiny_folder(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a random model of an architecture with the embedded tokenizer, in hub format."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "suites" / "harness_suites" / "base")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model: Any = tiny(name, len(tokenizer), seed, bos_token_id=tokenizer.bos_token_id, **ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

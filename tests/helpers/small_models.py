"""Small models with random weights, and prompts and completions for them."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.data import Prompt
from harness.models.batches import Batch, PromptBatch

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}


WIDE = {**SMALL, "intermediate_size": 64, "initializer_range": 0.3}


LLAMA = LlamaConfig(**WIDE, num_key_value_heads=2, max_position_embeddings=128)


def model_of(cls, config):
    torch.manual_seed(0)
    return cls(config).eval().requires_grad_(False)


def prompts(b=5, q=9):
    mask = torch.ones(b, q, dtype=torch.long)
    for i in range(b):
        mask[i, :i] = 0  # of unequal lengths
    ids = torch.randint(1, 60, (b, q), generator=torch.Generator().manual_seed(1))
    return PromptBatch([Prompt(str(i), "") for i in range(b)], ids, mask)


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(**SMALL, intermediate_size=64, max_position_embeddings=128, **more)
    ).eval()


def batch_of(b=3, k=4, q=9, t=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    prompt_mask = torch.ones(b, q, dtype=torch.long)
    for i in range(b):
        prompt_mask[i, : 2 * i] = 0
    lengths = torch.randint(1, t + 1, (b, k, 1), generator=generator)
    mask = (torch.arange(t) < lengths).float()
    ids = torch.randint(3, 60, (b, k, t), generator=generator)
    prompts = PromptBatch(
        [Prompt(str(i), "") for i in range(b)],
        torch.randint(3, 60, (b, q), generator=generator),
        prompt_mask,
    )
    return Batch(prompts, {"completion_ids": ids, "mask": mask}, temperature=0.7)

"""The benchmark's own small world: word-level Llamas of about 1M and 11M parameters, prompts, answers, a free reward.

Weights are random but for 150 steps on the marginal of words, so that the end-of-sequence token comes with a chance of
about 1 in 20 per token: completions end at different places, 16 tokens on average, and are cut at 32.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

SIZES = {
    "1M": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 344},
    "11M": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1024},
}
VOCABULARY, HAZARD = 1024, 0.05  # words, the end included; chance of the end per token


def word(rng: Random) -> str:
    """Return one word that is not the end."""
    return f"w{rng.randrange(1, VOCABULARY)}"


def text(rng: Random, length: int) -> str:
    """Return a text of so many words."""
    return " ".join(word(rng) for _ in range(length))


def completion(rng: Random, limit: int = 32) -> str:
    """Return words until the end comes, at most one fewer than the limit (the end is added by who tokenises)."""
    length = 1
    while length < limit - 1 and rng.random() > HAZARD:
        length += 1
    return text(rng, length)


def prompts(n: int, length: int = 64, seed: int = 0) -> list[str]:
    """Return n prompts."""
    rng = Random(f"prompts/{seed}")
    return [text(rng, length) for _ in range(n)]


def pairs(n: int, length: int = 64) -> list[dict[str, str]]:
    """Return n preference pairs in the ecosystem's columns; a completion begins with a space."""
    rng = Random("pairs")
    return [
        {"prompt": p, "chosen": " " + completion(rng), "rejected": " " + completion(rng)} for p in prompts(n, length)
    ]


def reward(answer: str) -> float:
    """Return a reward that costs nothing: the number of words modulo 7."""
    return float(len(answer.split()) % 7)


def build(size: str, folder: Path) -> Path:
    """Write model and tokenizer of a size in hub format, once; return their folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    target = folder / size
    if (target / "model.safetensors").exists():
        return target
    table = {"</s>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    inner = Tokenizer(models.WordLevel(table, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    heads: Any = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=heads["num_attention_heads"], max_position_embeddings=2048,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=0, pad_token_id=0, **heads,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    target_logp = torch.full((VOCABULARY,), (1 - HAZARD) / (VOCABULARY - 1))
    target_logp[0] = HAZARD
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        ids = torch.randint(1, VOCABULARY, (8, 64))
        loss = -(model(ids).logits.log_softmax(-1) * target_logp).sum(-1).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target

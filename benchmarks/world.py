"""The benchmark's own small world: word-level Llamas of about 1M to 11M parameters, prompts,
answers, a free reward.

Weights are random but for 150 steps on the marginal of words, so that the end-of-sequence token
comes with a constant chance per token, the hazard: completions end at different places and are cut
at a limit. The hazard goes with the limit, so that completions are about half as long as they may
be at any limit: 1 in 20 tokens at a limit of 32.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

SIZES = {
    "1M": {
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 344,
    },
    "3M": {
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "intermediate_size": 512,
    },
    "11M": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "intermediate_size": 1024,
    },
}
VOCABULARY = 1024  # words, the end included
ENDS = 1.6  # expected end tokens within the limit: completions average half the limit
DRAWN = 512  # prompts, or pairs, that batches are drawn from


def hazard(limit: int) -> float:
    """Return the chance of the end per token where completions are cut at a limit."""
    return ENDS / limit


def word(rng: Random) -> str:
    """Return one word that is not the end."""
    return f"w{rng.randrange(1, VOCABULARY)}"


def text(rng: Random, length: int) -> str:
    """Return a text of so many words."""
    return " ".join(word(rng) for _ in range(length))


def completion(rng: Random, limit: int) -> str:
    """Return words until the end comes, at most one fewer than the limit (the end is added by who
    tokenises).
    """
    length = 1
    while length < limit - 1 and rng.random() > hazard(limit):
        length += 1
    return text(rng, length)


def prompts(n: int = DRAWN, length: int = 64) -> list[str]:
    """Return n prompts."""
    rng = Random("prompts/0")
    return [text(rng, length) for _ in range(n)]


def pairs(n: int = DRAWN, length: int = 64, limit: int = 32) -> list[dict[str, str]]:
    """Return n preference pairs in the ecosystem's columns; a completion begins with a space."""
    rng = Random("pairs")
    both = ("chosen", "rejected")
    return [
        {"prompt": p} | {k: " " + completion(rng, limit) for k in both} for p in prompts(n, length)
    ]


def reward(answer: str) -> float:
    """Return a reward that costs nothing: the number of words modulo 7."""
    return float(len(answer.split()) % 7)


def build(size: str, folder: Path, limit: int) -> Path:
    """Write model and tokenizer of a size and a limit in hub format, once; return their folder."""
    target = folder / f"{size}-{limit}"
    if not (target / "tokenizer.json").exists():
        _fitted(size, hazard(limit)).save_pretrained(target)
        _tokenizer().save_pretrained(target)
    return target


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = {"</s>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    inner = Tokenizer(models.WordLevel(table, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")


def _fitted(size: str, end: float) -> Any:
    """Return a model with uniform word probabilities and the end probability `end`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads: Any = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=heads["num_attention_heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        **heads,
    )
    model = LlamaForCausalLM(config)
    target = torch.full((VOCABULARY,), (1 - end) / (VOCABULARY - 1))
    target[0] = end
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        ids = torch.randint(1, VOCABULARY, (8, 64))
        loss = -(model(ids).logits.log_softmax(-1) * target).sum(-1).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model

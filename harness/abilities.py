"""What a model can do, found out by trying it on made-up tokens when a start checkpoint is first read.

What is found is noted on the trunk, and copies of the model inherit it: `share_prompt` and `plain_head` (logprobs.py),
`share_cache` and `keeps_cache` (rollout.py). Only one answer is refused: that padding changes what a model says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .errors import UsageError
from .logprobs import SHARING_TOLERANCE, completion_logp, enable_sharing, find_head, made_up, padded
from .models import in_float32, trunk_of
from .rollout import enable_shared_cache, find_cache
from .tokens import Batch, PromptBatch

FOUND_BY_TRYING = ("share_prompt", "plain_head", "share_cache", "keeps_cache")


def find_out(model: nn.Module, sharing: bool) -> None:
    """Note how a causal model can run, `sharing` if a prompt may be computed once; UsageError where it sees padding."""
    check_padding(model)
    if not (sharing and enable_sharing(model)):
        find_head(model)
    find_cache(model)
    if sharing:
        enable_shared_cache(model)


def inherit(model: nn.Module, known: nn.Module) -> None:
    """Note on a model what was found out on another of its kind."""
    found = vars(trunk_of(known))
    for name in FOUND_BY_TRYING:
        if name in found:
            setattr(trunk_of(model), name, found[name])


def check_padding(model: nn.Module) -> None:
    """Raise UsageError for a model whose log-probabilities change with the padding before a prompt.

    Prompts of unlike lengths are padded to one width. A model that does not heed the mask (a recurrence that reads
    every token) would be trained, and judged, on something else than it is told.
    """
    probe = made_up(model)
    prompts, unseen = probe.prompts, int((probe.prompts.mask[0] == 0).sum())
    bare: Any = PromptBatch(prompts.prompts[:1], prompts.ids[:1, unseen:], prompts.mask[:1, unseen:])
    alone = Batch(bare, {name: column[:1] for name, column in probe.columns.items()})
    with torch.no_grad(), in_float32(model), padded([model]):
        off = float((completion_logp(model, probe)[:1] - completion_logp(model, alone)).abs().max())
    if not off < SHARING_TOLERANCE:
        raise UsageError(
            f"{type(model).__name__} cannot be used: padding before a prompt changes its log-probabilities by "
            f"{off:.2g} nats, for it does not heed the attention mask. Use a model that does (attention, or a state "
            f"space like Mamba)."
        )

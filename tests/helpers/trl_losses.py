"""TRL's own losses on given log-probabilities: its code, with a stand-in for its model and its
trainer.
"""

import types
from collections import defaultdict

import pytest
import torch

ACCELERATOR = types.SimpleNamespace(
    device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
)


def trl_dpo_loss(logp, ref, mask=None, **settings):
    """Return the mean loss of TRL's DPOTrainer on logp and ref (B, 2, T); `settings` are the
    trainer's attributes, `mask` (B, 2, T) is 1 on tokens.
    """
    trl = pytest.importorskip("trl")
    mask = torch.ones_like(logp) if mask is None else mask
    flat = logp.transpose(0, 1).flatten(0, 1)  # chosen stacked on rejected
    completion = mask.transpose(0, 1).flatten(0, 1).long()
    prompt = torch.zeros(len(flat), 1, dtype=torch.long)
    completion = torch.cat([prompt, completion], 1)  # a prompt of one token
    told = flat.detach()
    output = types.SimpleNamespace(
        log_probs=flat, entropy=told, mean_logits=told, is_top1=told > -1
    )
    usual = {
        "model": types.SimpleNamespace(training=False),
        "accelerator": ACCELERATOR,
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_weights": [1.0],
        "label_smoothing": 0.0,
        "use_weighting": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
    }
    trainer = types.SimpleNamespace(**usual | settings)
    chosen, rejected = ref.sum(-1).unbind(1)
    ids = torch.ones_like(completion)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": completion,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return trl.DPOTrainer._compute_loss(trainer, lambda **_: output, inputs, False)


def trl_cpo_loss(logp, mask=None, **settings):
    """Return the mean of TRL's `cpo_loss`, which has no likelihood term, on logp (B, 2, T): token
    sums, or token means if a mask is given.
    """
    cpo = pytest.importorskip("trl.experimental.cpo")
    sums = logp.sum(-1) if mask is None else logp.sum(-1) / mask.sum(-1)
    usual = {"alpha": 0.0, "accelerator": ACCELERATOR, "label_smoothing": 0}
    trainer = types.SimpleNamespace(**usual | settings)
    return cpo.CPOTrainer.cpo_loss(trainer, *sums.unbind(1))[0].mean()

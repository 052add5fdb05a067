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


def trl_grpo_loss(logp, batch, entropy=None, trainer=None, **settings):
    """Return TRL's GRPOTrainer loss on logp (B, K, T) and a batch with `old_logp`, `mask` and
    `advantages`; `settings` are the trainer's attributes.
    """
    module = pytest.importorskip("trl.trainer.grpo_trainer")
    cls = trainer or module.GRPOTrainer
    flat, mask = logp.flatten(0, 1), batch["mask"].flatten(0, 1)
    entropies = torch.zeros_like(flat) if entropy is None else entropy.flatten(0, 1)
    arguments = {
        "use_bias_correction_kl": False,
        "delta": None,
        "steps_per_generation": 1,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
    }
    usual = {
        "accelerator": types.SimpleNamespace(
            **vars(ACCELERATOR),
            sync_gradients=True,
            num_processes=1,
            reduce=lambda x, reduction: x,
            pad_across_processes=lambda x, **_: x,
        ),
        "args": types.SimpleNamespace(**arguments),
        "model": types.SimpleNamespace(training=True),
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "importance_sampling_level": "token",
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_get_per_token_logps_and_entropies": lambda *a, **k: (flat, entropies, None),
        "get_gamma_weights": module.GRPOTrainer.get_gamma_weights,
    }
    stand_in = types.SimpleNamespace(**usual | settings)
    mask_of = module.GRPOTrainer.get_high_entropy_mask
    stand_in.get_high_entropy_mask = types.MethodType(mask_of, stand_in)
    ids = torch.ones_like(mask, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": batch["advantages"].flatten(),
        "old_per_token_logps": batch["old_logp"].flatten(0, 1),
        "num_items_in_batch": mask.sum(),
    }
    return cls._compute_loss(stand_in, stand_in.model, inputs)


def trl_gmpo_loss(logp, batch, **settings):
    """Return TRL's GMPOTrainer loss on logp (B, K, T): see `trl_grpo_loss`."""
    gmpo = pytest.importorskip("trl.experimental.gmpo")
    return trl_grpo_loss(logp, batch, trainer=gmpo.GMPOTrainer, **settings)

"""TRL's losses on a conformance set: `python examples/conformance_trl.py FOLDER`.

FOLDER is what `harness check --export FOLDER` wrote. TRL's own code is run, with its settings and
the set's log-probabilities in place of a trainer and a model.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace as Plain

import torch
from safetensors.torch import load_file
from trl import DPOTrainer, GRPOTrainer

# case of the set: TRL's loss_type. DPOTrainer has those of pairs, GRPOTrainer the others.
PAIRS = {n: n for n in ("apo_zero", "apo_down", "discopop", "sppo_hard", "ipo")}
PAIRS |= {
    "dpo": "sigmoid",
    "dpo.cdpo": "sigmoid",
    "dpo.robust_dpo": "robust",
    "dpo.dpo_norm": "sigmoid_norm",
}
PAIRS |= {"exo": "exo_pair", "nca": "nca_pair", "hinge_norm": "hinge", "bco": "bco_pair"}
PAIRS |= {"aot.aot_paired": "aot", "ipo.ipo_norm": "ipo"}
PAIRS |= {"aot": "aot_unpaired", "ld_dpo": "sigmoid", "wpo": "sigmoid", "sft_chosen": "sft"}
SAMPLES = {n: n for n in ("grpo", "dapo", "cispo", "sapo", "luspo", "vespo")} | {"gspo": "grpo"}
NOWHERE = Plain(gather=lambda x: x, gather_for_metrics=lambda x: x, num_processes=1)
NOWHERE.reduce, NOWHERE.device = (lambda x, reduction: x), torch.device("cpu")
SHARED = {"accelerator": NOWHERE, "aux_loss_enabled": False, "_total_train_tokens": 0}


def dpo_loss(case, t, logp):
    """Return DPOTrainer's loss: rejected completions below chosen ones, after a prompt token."""
    rows, mask = (x.transpose(0, 1).flatten(0, 1) for x in (logp, t["mask"]))
    o, told = case["options"], rows.detach()
    mask = torch.cat([torch.zeros(len(mask), 1), mask], 1).long()
    out = Plain(log_probs=rows, entropy=told, mean_logits=told, is_top1=told > -1)
    out.log_sum_sq_probs = torch.zeros_like(told)
    trainer = Plain(**SHARED, model=Plain(training=False), precompute_ref_logps=True)
    trainer.loss_types, trainer.loss_weights = [PAIRS[case["name"]]], [1.0]
    trainer.beta, trainer.label_smoothing = o.get("beta", 1.0), o.get("label_smoothing", 0.0)
    trainer.ld_alpha = o.get("ld_alpha")
    trainer.f_divergence_type, trainer.use_weighting = "reverse_kl", case["name"] == "wpo"
    trainer.args = Plain(discopop_tau=o.get("tau"))
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    shared = torch.arange(logp.shape[-1]) < t["mask"].sum(-1).amin(1)[:, None, None]
    weight = torch.where(shared, 1.0, 1.0 if trainer.ld_alpha is None else trainer.ld_alpha)
    ref = (t["ref_logp"] * weight).sum(-1) if "ref_logp" in t else torch.zeros(len(logp), 2)
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": ref[:, 0], "ref_rejected_logps": ref[:, 1]}
    return DPOTrainer._compute_loss(trainer, lambda **_: out, inputs, False)


def grpo_loss(case, t, logp):
    """Return GRPOTrainer's loss: one row per completion."""
    o, mask = case["options"], t["mask"].flatten(0, 1)
    low, high = o.get("clip_range", 0.2), o.get("ratio_max", o.get("clip_range_high"))
    beta = o["beta"] if "ref_logp" in t else 0.0  # a KL in the reward is in the advantages
    trainer = Plain(**SHARED, model=Plain(training=True), beta=beta, use_vllm=False)
    trainer.loss_type, trainer.off_policy_mask_threshold = SAMPLES[case["name"]], None
    whole = case["name"] in ("gspo", "luspo")
    trainer.importance_sampling_level = "sequence" if whole else "token"
    trainer.epsilon_low, trainer.epsilon_high = low, low if high is None else high
    trainer.top_entropy_quantile, trainer._entropy_bonus_enabled = 1.0, False
    trainer.current_gradient_accumulation_steps = 1
    trainer.args = Plain(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    trainer.args.sapo_temperature_pos = o.get("tau_pos")
    trainer.args.sapo_temperature_neg = o.get("tau_neg")
    for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg"):
        setattr(trainer.args, f"vespo_{name}", o.get(name))
    trainer.get_gamma_weights = GRPOTrainer.get_gamma_weights
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    rows = logp.flatten(0, 1)
    out = rows, torch.zeros_like(rows), None  # log-probabilities, entropies, auxiliary loss
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: out
    ids = mask.long()
    inputs = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids}
    inputs |= {"completion_mask": mask, "advantages": t["advantages"].flatten()}
    inputs |= {"num_items_in_batch": mask.sum(), "old_per_token_logps": t["old_logp"].flatten(0, 1)}
    inputs |= {"ref_per_token_logps": t["ref_logp"].flatten(0, 1)} if "ref_logp" in t else {}
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


def main(folder):
    """Print how far TRL's loss and gradient are from the set's, case by case."""
    print(f"{'case':<16} {'loss_type':<13} {'loss':>10} {'TRL':>10} {'gradient, relative':>19}")
    for case in json.loads((folder / "conformance.json").read_text(encoding="utf-8"))["cases"]:
        name, loss = case["name"], dpo_loss if case["name"] in PAIRS else grpo_loss
        if name not in PAIRS | SAMPLES:
            continue
        tensors = load_file(folder / case["file"])
        t = {key[4:]: tensor for key, tensor in tensors.items() if key.startswith("0.0.")}
        logp = t["output"].requires_grad_()
        value = loss(case, t, logp)
        (gradient,) = torch.autograd.grad(value, logp)
        gradient = gradient * t["mask"]
        apart = float((gradient - t["gradient"]).norm() / t["gradient"].norm())
        due = case["steps"][0]["terms"][0]["value"]
        kind = (PAIRS | SAMPLES)[name]
        print(f"{name:<16} {kind:<13} {due:>10.5f} {value.item():>10.5f} {apart:>19.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Settings for real models: what papers and libraries use, by method or stage, full or LoRA.

The one table of them. They apply where `--model` names a model and neither the user nor a suite
file sets the option; the LoRA rate also applies to other models, below every other setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LORA_FACTOR = 10  # of the full learning rate, for methods without a row: see LORA_SOURCE
LORA_SOURCE = (
    "ten times the full rate: Schulman et al. 2025, LoRA Without Regret; TRL's guide of that name"
    " trains with 1e-5 where full training has 1e-6"
)


@dataclass(frozen=True)
class Recipe:
    """The settings of one method or stage for a real model."""

    full: Mapping[str, Any]  # {option: value} where all weights are trained
    lora: Mapping[str, Any]  # {option: value} where a LoRA adapter is trained
    source: str
    # whether every value was read in its source; else one is from memory or by analogy
    verified: bool = True


def _rates(full: float, lora: float | None = None, **more: Any) -> dict[str, Any]:
    """Return the two mappings of a recipe from its learning rates and further settings."""
    lora = LORA_FACTOR * full if lora is None else lora
    return {"full": {"learning_rate": full, **more}, "lora": {"learning_rate": lora, **more}}


_DPO = Recipe(
    **_rates(5e-7, 5e-6),
    source="Zephyr, alignment-handbook recipes/zephyr-7b-beta/dpo (full, qlora); TRL scripts/dpo",
)
# losses of pairs whose papers or scripts train at DPO's rates, or name none that was read
_LIKE_DPO = Recipe(
    **_rates(5e-7, 5e-6),
    source="by analogy to dpo: a loss of the same log-ratios",
    verified=False,
)
_LIKE_ONLINE_DPO = Recipe(
    **_rates(5e-7, 5e-6),
    source="by analogy to online_dpo: a loss of log-ratios on fresh samples",
    verified=False,
)
_PPO = Recipe(
    **_rates(3e-6),
    source="TRL PPO docs, Pythia-1B on TL;DR, after Huang et al. 2024 (2403.17031); LoRA: x10",
)
_GRPO = Recipe(
    **_rates(1e-6, 1e-5),
    source="TRL GRPOConfig (1e-6), TRL LoRA Without Regret (1e-5 with LoRA)",
)

# losses of a policy's own samples whose papers train larger models, or name no rate that was read
_LIKE_GRPO = Recipe(
    **_rates(1e-6, 1e-5), source="by analogy to grpo: a loss of the same samples", verified=False
)

# by method (`NAME`), by method with an option (`NAME:OPTION=VALUE`), or by `stage.NAME`
RECIPES: dict[str, Recipe] = {
    "stage.sft": Recipe(
        **_rates(2e-5, 2e-4),
        source="Zephyr, alignment-handbook recipes/zephyr-7b-beta/sft (full, qlora); TRL SFTConfig",
    ),
    "stage.reward_model": Recipe(
        **_rates(1e-5, 1e-4), source="TRL examples/scripts/reward_modeling.py; judges use it too"
    ),
    "sft_chosen": Recipe(**_rates(2e-5, 2e-4), source="as stage.sft: the same loss"),
    "dpo": _DPO,
    "ipo": Recipe(
        **_rates(5e-7, 5e-6),
        source="alignment-handbook recipes/pref_align_scan, made for DPO, IPO and KTO; LoRA: x10",
    ),
    "kto": Recipe(
        **_rates(1e-6),
        source="TRL KTOConfig (1e-6); TRL's script has 5e-7, the authors' HALOs 5e-6; LoRA: x10",
    ),
    "slic": Recipe(
        **_rates(5e-7),
        source="by analogy to DPO: Zhao et al. 2023 (2305.10425) trained T5 by Adafactor",
        verified=False,
    ),
    "simpo": Recipe(
        **_rates(6e-7, batch_size=128),
        source=(
            "SimPO README and training_configs (3e-7 to 1e-6; 6e-7 for Llama-3-8B base); batch of"
            " 128: Meng et al. 2024 (2405.14734), from memory; LoRA: x10"
        ),
        verified=False,
    ),
    "alpha_po": Recipe(
        **_rates(6e-7, batch_size=128), source="by analogy to simpo; LoRA: x10", verified=False
    ),
    "apo_down": _LIKE_DPO,
    "apo_zero": _LIKE_DPO,
    "bco": _LIKE_DPO,
    "cal_dpo": _LIKE_DPO,
    "chipo": _LIKE_DPO,
    "cpo": _LIKE_DPO,
    "discopop": _LIKE_DPO,
    "dpo_nll": _LIKE_DPO,
    "dpo_shift": _LIKE_DPO,
    "dpop": _LIKE_DPO,
    "exo": _LIKE_DPO,
    "f_dpo": _LIKE_DPO,
    "focal_po": _LIKE_DPO,
    "gpo": _LIKE_DPO,
    "hinge_norm": _LIKE_DPO,
    "ld_dpo": _LIKE_DPO,
    "nca": _LIKE_DPO,
    "r_dpo": _LIKE_DPO,
    "sppo_hard": _LIKE_DPO,
    "tr_dpo": _LIKE_DPO,
    "aot": _LIKE_DPO,
    "beta_dpo": _LIKE_DPO,
    "dr_dpo": _LIKE_DPO,
    "wpo": _LIKE_DPO,
    "orpo": Recipe(
        **_rates(5e-6),
        source="alignment-handbook recipes/zephyr-141b-A35b/orpo; LoRA: x10",
    ),
    "rrhf": Recipe(
        **_rates(2e-5, 2e-4, batch_size=64), source="RRHF train.sh (8 GPUs x 8); LoRA: as stage.sft"
    ),
    "ppo": _PPO,
    "grpo": _GRPO,
    "rloo": Recipe(**_rates(1e-6), source="TRL RLOOConfig; LoRA: x10"),
    "reinforce_pp": Recipe(
        **_rates(5e-7),
        source="OpenRLHF examples/scripts/train_reinforce_ray_hybrid_engine.sh; LoRA: x10",
    ),
    "online_dpo": Recipe(
        **_rates(5e-7), source="TRL OnlineDPOConfig; Guo et al. 2024 (2402.04792); LoRA: x10"
    ),
    "a_lol": Recipe(
        **_rates(2e-5, 2e-4), source="by analogy to sft_chosen: weighted imitation", verified=False
    ),
    "tdpo": _LIKE_DPO,
    "info_nca": _LIKE_DPO,
    "lipo": _LIKE_DPO,
    "nca_k": _LIKE_DPO,
    "odpo": _LIKE_DPO,
    "pro": Recipe(**_rates(5e-6, 5e-5), source="PRO train_hh.sh (from memory)", verified=False),
    "nash_md": _LIKE_ONLINE_DPO,
    "rebel": _LIKE_ONLINE_DPO,
    "self_rewarding": _LIKE_ONLINE_DPO,
    "spin": _LIKE_ONLINE_DPO,
    "sppo": _LIKE_ONLINE_DPO,
    "xpo": _LIKE_ONLINE_DPO,
    "raft": Recipe(**_rates(2e-5, 2e-4), source="LMFlow scripts/run_raft_align.sh; LoRA: x10"),
    "gspo": _LIKE_GRPO,
    "cispo": _LIKE_GRPO,
    "dapo": _LIKE_GRPO,
    "gmpo": _LIKE_GRPO,
    "sapo": _LIKE_GRPO,
    "luspo": _LIKE_GRPO,
    "vespo": _LIKE_GRPO,
    "dppo": _LIKE_GRPO,
    "clip_cov": _LIKE_GRPO,
    "kl_cov": _LIKE_GRPO,
    "reinforce": _LIKE_GRPO,
    "remax": _LIKE_GRPO,
    "opo": _LIKE_GRPO,
    "gpg": _LIKE_GRPO,
    "maxrl": _LIKE_GRPO,
    "gdpo": _LIKE_GRPO,
    "rlvr": _GRPO,
    "rlvr:algorithm=ppo": _PPO,
    "rlaif": _PPO,
    "rlaif:optimiser=dpo": _DPO,
}


def recipe_of(name: str, lora: bool, default_rate: float | None) -> Mapping[str, Any]:
    """Return the settings of a row of the table; for a name without a row its LoRA rate alone.

    Args:
        name: A key of RECIPES, or any other method or `stage.NAME`.
        lora: Whether an adapter is trained.
        default_rate: The learning rate that its class states; None where it has none.
    """
    if name in RECIPES:
        return RECIPES[name].lora if lora else RECIPES[name].full
    if lora and default_rate is not None:
        return {"learning_rate": LORA_FACTOR * default_rate}
    return {}


def settings_lines(name: str) -> list[str]:
    """Return the lines in which `harness show` gives the row of a method or stage."""
    recipe = RECIPES.get(name)
    if recipe is None:
        return []
    source = recipe.source + ("" if recipe.verified else " (not verified)")
    return [f"real models: {_pairs(recipe.full)}; with LoRA {_pairs(recipe.lora)}", f"  {source}"]


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in settings.items())

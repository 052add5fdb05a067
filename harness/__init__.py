"""alignment-harness: every LLM alignment method on the same ground, measured by the same evaluator.

What a plugin needs is imported from here. `from harness import torch` (or `logprobs`, `kl`) gives the module itself,
imported when it is first used, so that `harness list` answers at once. Lab, Batch, PromptBatch and Sampler bring torch
with them: import them for annotations only, under `TYPE_CHECKING`.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch

    from . import logprobs as logprobs
    from .contracts import Method as Method
    from .contracts import Policy as Policy
    from .contracts import Suite as Suite
    from .evaluation import kl as kl
    from .hookspecs import hookimpl as hookimpl
    from .lab import Lab as Lab
    from .shared_options import GradientMethod as GradientMethod
    from .shared_options import OnPolicyOptions as OnPolicyOptions
    from .shared_options import PairOptions as PairOptions
    from .shared_options import RewardOptions as RewardOptions
    from .store import load_results as load_results
    from .tokens import Batch as Batch

__version__ = "0.1.0"

_PLACES = {
    **dict.fromkeys(
        ("Engine", "Judge", "Labeller", "Launcher", "Method", "Policy", "Ranker", "Reporter", "Suite", "Verifier"),
        "contracts",
    ),
    **dict.fromkeys(("GradientMethod", "OnPolicyOptions", "PairOptions", "RewardOptions"), "shared_options"),
    **dict.fromkeys(("Comparison", "Demonstration", "Job", "Pair", "Principle", "Prompt", "Sampling"), "data"),
    "hookimpl": "hookspecs", "Lab": "lab", "load_results": "store", "Batch": "tokens", "PromptBatch": "tokens",
    "Sampler": "rollout", "Table": "report.table",
}  # fmt: skip
_MODULES = {"torch": "torch", "logprobs": "harness.logprobs", "kl": "harness.evaluation.kl"}  # imported when first used


class _Later(types.ModuleType):
    """A module that is imported when something of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _Later(_MODULES[name])
    if name not in _PLACES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)

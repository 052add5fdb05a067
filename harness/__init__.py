"""alignment-harness: every LLM alignment method on the same ground, measured by the same evaluator.

What a plugin needs is imported from here. `from harness import torch` (or `logprobs`, `kl`) gives
the module itself, imported when it is first used, so that `harness list` answers at once. Lab,
Batch, PromptBatch and Sampler bring torch with them: import them for annotations only, under
`TYPE_CHECKING`.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch

    from .api.contracts import Method as Method
    from .api.contracts import Policy as Policy
    from .api.contracts import Suite as Suite
    from .api.hookspecs import hookimpl as hookimpl
    from .api.lab import Lab as Lab
    from .api.methods import GradientMethod as GradientMethod
    from .api.methods import OnPolicyOptions as OnPolicyOptions
    from .api.methods import PairOptions as PairOptions
    from .api.methods import TeacherOptions as TeacherOptions
    from .core.run_folder import load_results as load_results
    from .core.settings import RewardOptions as RewardOptions
    from .evaluation import kl as kl
    from .models import logprobs as logprobs
    from .models.tokens import Batch as Batch

__version__ = "0.1.0"

_NAMES = {
    "api.contracts": (
        "SPLITS Answer Judge Labeller Launcher Method PairVerdict Policy Ranker Reporter Suite"
        " Verifier"
    ),
    "api.hookspecs": "hookimpl",
    "api.lab": "Lab",
    "api.suite_stages": "SuiteStages",
    "api.methods": "GradientMethod OnPolicyOptions PairOptions TeacherOptions",
    "api.verifiers": "Verdicts make_verifier verdicts",
    "core.data": (
        "Comparison Demonstration Labelled Pair Principle Prompt Sampling completion_text"
        " message_text prompt_text"
    ),
    "core.data_report": "DataReport",
    "core.errors": "HarnessError UsageError",
    "core.jobs": "Job Resources",
    "core.run_folder": "load_results",
    "core.secrets": "read_secret redact",
    "core.seeds": "derive",
    "core.settings": "RewardOptions check_idle",
    "core.table": "Table",
    "models.engine": "Engine",
    "models.enumeration": "Enumerated",
    "models.generation": "Sampler",
    "models.batches": "Batch PromptBatch",
}
_PLACES = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = {  # imported when first used
    "torch": "torch",
    "logprobs": "harness.models.logprobs",
    "kl": "harness.evaluation.kl",
}


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

"""What the contracts of judges, labellers and verifiers have in common. Importing this module does
not import torch.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


class Identified:
    """A plugin whose verdicts or labels are kept under an identity: its options and data files."""

    def identity(self) -> dict[str, Any]:
        """Return the JSON-able values, besides the code, that determine the results.

        By default these are the options. An option that names a file or a model is replaced by
        a value that depends on its contents.
        """
        return {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}

    def data_files(self) -> list[Path]:
        """Return the files that determine the results.

        A changed file of a judge makes another evaluation, one of a labeller or a verifier
        another run.
        """
        return []


class CountsUsage(Identified):
    """A judge or a labeller: a plugin that may send requests and run models, and counts them."""

    def usage(self) -> dict[str, float]:
        """Return the counts so far by name: requests, refusals, tokens, flops.

        Those of a judge are recorded with the evaluation, those of a labeller with the
        preferences. The count `asked` of a labeller is the number of pairs that the cost counts;
        without it the cost counts the comparisons returned.
        """
        return {}

"""Proofs on any plugin: `harness check NAME`. Each proof runs the plugin and reports what it
measured.

A method is trained several times on small stages. It must give the same bytes when it is repeated,
and when it is killed and resumed, and the same numbers for any micro-batch size and padding. Then
it must beat the start checkpoint in a run of full size, and reach its own optimum where that is
known. Suites, labellers and verifiers have proofs of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..api.registry import Registry
from ..core.errors import UsageError
from .findings import FAILED, PASSED, SKIPPED, Finding, Options, report
from .methods import method_proofs
from .suites import labeller_proofs, suite_proofs
from .verifiers import verifier_proofs


def check(kind: str, name: str, registry: Registry, options: Options) -> Iterator[Finding]:
    """Yield the findings on a method, suite, labeller or verifier, one by one."""
    proofs = {
        "methods": method_proofs,
        "suites": suite_proofs,
        "labellers": labeller_proofs,
        "verifiers": verifier_proofs,
    }
    if kind not in proofs:
        raise UsageError(
            f"There are proofs for methods, suites, labellers and verifiers; {name} is one of the"
            f" {kind}."
        )
    yield from proofs[kind](name, registry, options)


__all__ = ["FAILED", "PASSED", "SKIPPED", "Finding", "Options", "check", "report"]

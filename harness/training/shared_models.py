"""Models and the tokenizer that other methods' results are made from are left as they were read.

A method that needs a reference that moves calls `lab.move_reference()`: from then on it has a
reference with weights of its own.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import HarnessError
from .inputs import MethodInputs

PROBE = "A probe: 3.14, tokens & more.\n"


class SharedModelChanged(HarnessError):
    """A method changed a model or tokenizer that other methods use."""


class SharedModels:
    """The start checkpoint, the reference, the reward models and the tokenizer of one run."""

    def __init__(self, method: str, inputs: MethodInputs) -> None:
        self._method, self._inputs = method, inputs
        self._tokenizer = _tokenizer_state(inputs.tokens.tokenizer)

    def check_written(self) -> None:
        """Raise SharedModelChanged where a weight was written to.

        This is quick: it does not see writes through `.data`. `check` does.
        """
        inputs = self._inputs
        for what, one in (("reference", inputs.reference), ("start checkpoint", inputs.start)):
            weight = one.touched() if one is not None else ""
            if weight:
                raise self._changed(what, f"the weight {weight}")
        for reward, state in inputs.reward_states:
            weight = state.touched()
            if weight:
                raise self._changed(reward.name.replace("_", " "), f"the weight {weight}")

    def check(self) -> None:
        """Raise SharedModelChanged where anything differs from what was read."""
        self.check_written()
        inputs = self._inputs
        for what, one in (("reference", inputs.reference), ("start checkpoint", inputs.start)):
            changed = one.changed() if one is not None else ""
            if changed:
                raise self._changed(what, changed)
        for reward, state in inputs.reward_states:
            changed = state.changed(reward.model)
            if changed:
                raise self._changed(reward.name.replace("_", " "), changed)
        if _tokenizer_state(inputs.tokens.tokenizer) != self._tokenizer:
            raise self._changed("tokenizer", "its tokens or settings")

    def _changed(self, model: str, what: str) -> SharedModelChanged:
        if model == "start checkpoint" and self._inputs.reference is None:
            model = "start checkpoint, which is the reference,"
        return SharedModelChanged(
            f"The method {self._method} changed the {model} in place: {what}. Other methods use"
            " it too, so nothing was published. For a reference that moves use"
            " lab.move_reference(); for weights that are trained use lab.policy or lab.critic()."
        )


def _tokenizer_state(tokenizer: Any) -> tuple[object, ...]:
    """Return what decides how a tokenizer reads and writes text, as far as a probe shows it."""
    return (
        len(tokenizer),
        str(sorted(tokenizer.special_tokens_map.items())),
        getattr(tokenizer, "chat_template", None),
        getattr(tokenizer, "padding_side", None),
        getattr(tokenizer, "truncation_side", None),
        _encoded(tokenizer),
        tokenizer.decode(list(range(min(64, len(tokenizer))))),
    )


def _encoded(tokenizer: Any) -> tuple[object, ...]:
    """Return the ids of a probe; its error for a tokenizer that cannot encode every text."""
    try:
        return tuple(tokenizer.encode(PROBE))
    except Exception as error:  # of the tokenizers library: a word that is not in the vocabulary
        return (str(error),)

"""The default rollout engine: the harness's own decoding loop on any Hugging Face causal model."""

from __future__ import annotations

from harness import hookimpl


class HF:
    """Decode on the model's key/value cache: the prompt prefilled once for its completions, finished rows dropped."""

    name = "hf"

    def __new__(cls, *arguments):
        """Return the engine itself: importing it here, not above, keeps `harness list` without torch."""
        from harness.rollout import CachedEngine

        return CachedEngine(*arguments)


@hookimpl
def register_engines(register):
    register(HF)

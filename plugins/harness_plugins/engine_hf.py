"""The rollout engines: the harness's own decoding loop on any Hugging Face causal model, plain and
as CUDA graphs.
"""

from __future__ import annotations

from harness import hookimpl


class HF:
    """Decode on the model's key/value cache: the prompt prefilled once for its completions,
    finished rows dropped.
    """

    name = "hf"

    def __new__(cls, *arguments):
        """Return the engine itself: importing it here, not above, keeps `harness list` without
        torch.
        """
        from harness.models.generation import CachedEngine

        return CachedEngine(*arguments)


class CUDAGraphs:
    """The same on a GPU, a token's forward pass recorded and replayed; equal to `hf` up to
    rounding.
    """

    name = "cuda_graphs"
    needs_gpu = True

    def __new__(cls, *arguments):
        """Return the engine itself."""
        from harness.models.cuda_graphs import GraphEngine

        return GraphEngine(*arguments)


@hookimpl
def register_engines(register):
    register(HF)
    register(CUDAGraphs)

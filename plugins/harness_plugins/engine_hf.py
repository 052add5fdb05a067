"""The rollout engines: the harness's own decoding loop on any Hugging Face causal model, plain and
as CUDA graphs.
"""

from __future__ import annotations

from harness import hookimpl


class HF:
    """Decode on the model's key/value cache: the prompt is prefilled once for all its completions,
    and finished rows are dropped.
    """

    name = "hf"

    def __new__(cls, *arguments):
        """Return the engine itself; importing it here keeps `harness list` without torch."""
        from harness.models.generation import CachedEngine

        return CachedEngine(*arguments)


class CUDAGraphs:
    """The engine `hf` on a GPU with recorded forward passes; results differ from `hf` by rounding
    only.
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

"""vLLM as a rollout engine: in this process, on a copy of the weights that are trained.

With `draw=noise` a logits processor picks each token by inverse transform of the harness's own
noise, as the engine `hf` does. With `draw=seed` vLLM draws by itself, with one seed per completion.
Both return log-probabilities under the distribution that was sampled from. The noise costs a call
of Python per token.

One vLLM serves a process. Another architecture, dtype or length ends it and starts another one.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness import Engine, HarnessError, UsageError, hookimpl
from harness.core.progress import LOADING, activity

DRAWS = ("noise", "seed")
ENVIRONMENT = {  # read when vLLM is imported
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: requests are scheduled alike
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
SEQUENCES = 256  # that are decoded at once, at most


@dataclass
class VLLMOptions:
    """Options of the engine."""

    draw: str = "noise"  # what decides the tokens: noise, the harness's own, or seed, vLLM's
    max_tokens: int = 4096  # of a prompt with its completion; at most the model's own limit
    memory_share: float = 0.3  # of a GPU's memory, for its weights and its cache

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        if self.draw not in DRAWS:
            raise ValueError(f"draw is {' or '.join(DRAWS)}, not {self.draw!r}")
        if self.max_tokens < 2:
            raise ValueError("max_tokens must be at least 2: a prompt and a completion")
        if not 0 < self.memory_share <= 1:
            raise ValueError("memory_share lies in (0, 1]")


@dataclass
class Service:
    """The vLLM of this process."""

    llm: Any
    serves: tuple[Any, ...]  # architecture, dtype, length and share of memory
    weights: Any = None  # which weights it has: see `version_of`
    asleep: bool = False


@dataclass
class Spent:
    """What vLLM took in this run."""

    starts: int = 0
    start_seconds: float = 0.0
    syncs: int = 0
    sync_seconds: float = 0.0


@dataclass
class Process:
    """What there is one of in a process, in which a run makes several engines."""

    service: Service | None = None
    spent: Spent = field(default_factory=Spent)


PROCESS = Process()


class VLLM(Engine):
    """Sample with vLLM, on a copy of the present weights."""

    name = "vllm"
    options_class = VLLMOptions
    copies_weights = one_process = True

    def __init__(self, eos: set[int]) -> None:
        self.eos, self.options = eos, VLLMOptions()

    @classmethod
    def check_usable(cls, weights: str) -> None:
        """Raise UsageError where vLLM is not installed, or cannot read the run's weights."""
        if importlib.util.find_spec("vllm") is None:
            raise UsageError(
                "--engine vllm needs the package vllm: pip install 'alignment-harness[vllm]'. Or"
                " use --engine hf."
            )
        if weights == "nf4":
            raise UsageError(
                "--engine vllm: weights in nf4 cannot be copied to it. Use --weights bfloat16, or"
                " --engine hf."
            )

    @property
    def exact_noise(self) -> bool:
        """Whether the harness's noise decides each token."""
        return self.options.draw == "noise"

    # -- life ----------------------------------------------------------------------------------

    def start(self, model: Any) -> None:
        """Start vLLM for a model's architecture, without its weights."""
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_tokens = min(self.options.max_tokens, limit or self.options.max_tokens)
        serves = (
            _config(model).to_json_string(use_diff=False),
            _dtype(model),
            self.max_tokens,
            self.options.memory_share,
        )
        if PROCESS.service is not None and PROCESS.service.serves == serves:
            return
        self.close()
        begun = time.perf_counter()
        with activity(LOADING, "starting vLLM"), as_before(), _failing("started"):
            PROCESS.service = Service(_start(model, *serves[1:]), serves)
        PROCESS.spent.starts += 1
        PROCESS.spent.start_seconds += time.perf_counter() - begun

    def sync(self, model: Any) -> bool:
        """Copy the weights of a model, adapters merged, where vLLM has others."""
        service, version = self._service(), version_of(model)
        if service.weights is not None and service.weights == version and not service.asleep:
            return False
        begun = time.perf_counter()
        with as_before(), _failing("took the weights"):
            if service.asleep:
                service.llm.wake_up(tags=["weights"])
            service.llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": _copies(model)}
            )
            if service.asleep:
                service.llm.wake_up(tags=["kv_cache"])
            service.llm.reset_prefix_cache()
        service.weights, service.asleep = version, False
        PROCESS.spent.syncs += 1
        PROCESS.spent.sync_seconds += time.perf_counter() - begun
        return True

    def sleep(self) -> None:
        """Free the GPU's memory; the next `sync` copies the weights anew. Nothing on a CPU."""
        service = PROCESS.service
        if service is None or service.asleep or not _sleeps():
            return
        with as_before(), _failing("went to sleep"):
            service.llm.sleep(level=2)
        service.asleep = True

    def close(self) -> None:
        """End the vLLM of this process."""
        service, PROCESS.service = PROCESS.service, None
        if service is None:
            return
        with as_before():
            service.llm.llm_engine.engine_core.shutdown()

    def record(self) -> dict[str, Any]:
        """Return vLLM's version, and what it took."""
        import vllm

        return {"name": self.name, "version": vllm.__version__, **vars(PROCESS.spent)}

    def _service(self) -> Service:
        if PROCESS.service is None:
            raise HarnessError("--engine vllm: vLLM was not started.")
        return PROCESS.service

    # -- drawing -------------------------------------------------------------------------------

    def generate(self, model: Any, prompts: Any, n: int, sampling: Any, noise: Any) -> Any:
        """Draw n completions per prompt; see Engine."""
        from harness.models.generation import assemble

        texts = [
            ids[mask.bool()].tolist() for ids, mask in zip(prompts.ids, prompts.mask, strict=True)
        ]
        requests = [{"prompt_token_ids": ids} for ids in texts for _ in range(n)]
        params = [self._params(row, sampling) for row in noise]
        with as_before(), _failing("drew completions"):
            drawn = self._service().llm.generate(requests, params, use_tqdm=False)
        rows = [
            (list(one.outputs[0].token_ids), self._logp(one.outputs[0], asked))
            for one, asked in zip(drawn, params, strict=True)
        ]
        decoding = _decoding(rows, sampling.max_new_tokens, prompts.ids.device)
        return assemble(prompts, [decoding], n, sampling.temperature)

    def _params(self, noise: Any, sampling: Any) -> Any:
        """Return vLLM's parameters of one completion."""
        from vllm import SamplingParams

        shared = {
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": sorted(self.eos),
            "detokenize": False,
        }
        if not self.exact_noise:
            digest = hashlib.blake2b(noise.cpu().numpy().tobytes(), digest_size=7).digest()
            seed = int.from_bytes(digest, "big")
            return SamplingParams(temperature=sampling.temperature, seed=seed, logprobs=0, **shared)
        own = {"noise": noise.tolist(), "temperature": sampling.temperature, "logp": {}}
        # the processor writes log-probabilities into `own`: no copy of it
        return SamplingParams(temperature=0.0, extra_args=own, skip_clone=True, **shared)

    def _logp(self, output: Any, params: Any) -> list[float]:
        """Return the log-probabilities of a completion's tokens."""
        if self.exact_noise:
            return [params.extra_args["logp"][t] for t in range(len(output.token_ids))]
        pairs = zip(output.logprobs, output.token_ids, strict=True)
        return [float(step[token].logprob) for step, token in pairs]


def version_of(model: Any) -> tuple[int, tuple[int, ...]]:
    """Return what changes with every optimiser step and every other write to a model's weights.

    PyTorch counts the writes to each tensor, but those of a fused optimizer: the trainer counts
    these. Writes through `.data` are not counted; `--check-rollouts` finds what they change.
    """
    from harness.models.lora import held

    weights = [p for _, p in held(model)]
    return id(model), tuple(p._version for p in weights), tuple(map(id, weights))


def _copies(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the weights of a model, adapters merged, by name; vLLM rearranges its own copies."""
    from harness.models.lora_weights import whole_state

    for name, tensor in whole_state(model):
        yield name, tensor.clone()


def _config(model: Any) -> Any:
    """Return a copy of a model's configuration that names its class."""
    base = getattr(model, "base", model)  # below an adapter
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    return config


def _dtype(model: Any) -> str:
    """Return the dtype of a model's forward passes."""
    from harness.models.loading import trunk_of

    trunk, weight = trunk_of(model), next(model.parameters())
    return str(getattr(trunk, "compute_dtype", weight.dtype)).removeprefix("torch.")


def _sleeps() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_sleep_mode_available())


def _start(model: Any, dtype: str, max_tokens: int, memory_share: float) -> Any:
    """Return vLLM for a model's architecture, with weights of no meaning."""
    import torch

    on_cpu = not torch.cuda.is_available()
    for name, value in {**ENVIRONMENT, **(ON_CPU if on_cpu else {})}.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    more = {} if on_cpu else {"gpu_memory_utilization": memory_share}
    with tempfile.TemporaryDirectory(prefix="harness-vllm-") as folder:
        _config(model).save_pretrained(folder)
        return LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            generation_config="vllm",  # nothing of the model's own generation settings
            dtype=dtype,
            max_model_len=max_tokens,
            max_num_seqs=SEQUENCES,
            seed=0,
            enforce_eager=on_cpu,
            enable_sleep_mode=_sleeps(),
            async_scheduling=False,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
            logits_processors=[by_noise()],
            disable_log_stats=True,
            **more,
        )


def by_noise() -> type[Any]:
    """Return vLLM's class of a logits processor that leaves the one token the noise decides."""
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

    class ByNoise(AdapterLogitsProcessor):
        """Leaves one token per completion; requests without noise pass."""

        def is_argmax_invariant(self) -> bool:
            """Return that it changes the most probable token."""
            return False

        @classmethod
        def validate_params(cls, params: Any) -> None:
            """Accept every request."""

        def new_req_logits_processor(self, params: Any) -> Any:
            """Return the processor of one completion."""
            own = params.extra_args or {}
            return Pick(own) if "noise" in own else None

    return ByNoise


@dataclass
class Pick:
    """Draws the tokens of one completion by its noise, and notes their log-probabilities."""

    own: dict[str, Any]  # noise, temperature and logp of the completion

    def __call__(self, drawn: list[int], logits: Any) -> Any:
        """Return the logits (V,) with one token left."""
        import torch

        from harness.models.generation import draw_tokens

        step = len(drawn)
        if step >= len(self.own["noise"]):  # vLLM asks once more after the last token
            return logits
        noise = logits.new_tensor([self.own["noise"][step]], dtype=torch.float32)
        token, logp = draw_tokens(logits[None].float() / self.own["temperature"], noise)
        self.own["logp"][step] = float(logp[0])
        left = torch.full_like(logits, -torch.inf)
        left[token[0]] = 0.0
        return left


def _decoding(rows: list[tuple[list[int], list[float]]], limit: int, device: Any) -> Any:
    """Return drawn rows, tokens and log-probabilities, padded to `limit` tokens."""
    import torch

    from harness.models.generation import Decoding

    tokens, logp = torch.zeros(len(rows), limit, dtype=torch.long), torch.zeros(len(rows), limit)
    for i, (ids, values) in enumerate(rows):
        tokens[i, : len(ids)], logp[i, : len(ids)] = torch.tensor(ids), torch.tensor(values)
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    return Decoding(tokens.to(device), logp.to(device), lengths.to(device))


# -- the process -----------------------------------------------------------------------------------


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Raise an error of vLLM as one message; the run goes on from its last checkpoint."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise HarnessError(
            f"--engine vllm: vLLM failed when it {what}: {type(error).__name__}: {lines[0][:300]}."
            " Run the same command again: training goes on from its last checkpoint. The settings"
            " of vLLM are its environment variables; VLLM_LOGGING_LEVEL=INFO shows what it does."
        ) from error


@contextmanager
def as_before() -> Iterator[None]:
    """Put back what vLLM changes in this process: threads, random numbers, handlers of signals.

    On a CPU it replaces the function that sets torch's threads.
    """
    import random
    import signal

    import numpy
    import torch

    numbers = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    seed, dtype, grad = torch.initial_seed(), torch.get_default_dtype(), torch.is_grad_enabled()
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        random.setstate(numbers[0])
        numpy.random.set_state(numbers[1])
        torch.default_generator.manual_seed(seed)
        torch.set_rng_state(numbers[2])
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@hookimpl
def register_engines(register):
    register(VLLM)

"""A module `vllm` that computes with transformers: the interface that the engine `vllm` uses."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from typing import Any

import torch


class Died(Exception):
    """What the engine's process would raise."""


@dataclass
class SamplingParams:
    """The parameters of one request."""

    temperature: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    detokenize: bool = True
    seed: int | None = None
    logprobs: int | None = None
    extra_args: dict[str, Any] | None = None
    skip_clone: bool = False


class AdapterLogitsProcessor:
    """The base of processors of one request."""


class LLM:
    """A causal model that answers requests one after another."""

    made: list[LLM] = []  # noqa: RUF012  # every one since the module was put in place
    calls: list[str] = []  # noqa: RUF012
    dies_at = 0  # the call of `generate` that fails; 0: none
    sleeps = False

    def __init__(self, model: str, **options: Any) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        assert options["load_format"] == "dummy" and options["skip_tokenizer_init"]
        assert options["logprobs_mode"] == "processed_logprobs"
        self.options, self.drawn, self.closed = options, 0, False
        with torch.random.fork_rng():
            self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).eval()
        self.processors = [cls() for cls in options["logits_processors"]]
        self.llm_engine = types.SimpleNamespace(
            engine_core=types.SimpleNamespace(shutdown=self._shutdown)
        )
        torch.manual_seed(options["seed"])  # as vLLM does, to the whole process
        LLM.made.append(self)

    def _shutdown(self) -> None:
        self.closed = True

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        """Take the weights; all of them, by name."""
        assert method == "reload_weights"
        LLM.calls.append("reload")
        self.model.load_state_dict(dict(kwargs["weights_iterator"]))

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of former weights."""
        LLM.calls.append("reset")

    def sleep(self, level: int) -> None:
        """Lose the weights."""
        LLM.calls.append(f"sleep {level}")
        with torch.no_grad():
            for p in self.model.parameters():
                p.zero_()

    def wake_up(self, tags: list[str]) -> None:
        """Note what is taken into memory again."""
        LLM.calls.append(f"wake {' '.join(tags)}")

    def generate(self, requests: list[Any], params: list[SamplingParams], use_tqdm: bool) -> Any:
        """Return one completion for each request."""
        assert not self.closed and not use_tqdm
        self.drawn += 1
        LLM.calls.append("generate")
        if LLM.dies_at == self.drawn:
            raise Died("EngineCore encountered an issue.\nSee the stack trace above.")
        return [self._one(r["prompt_token_ids"], p) for r, p in zip(requests, params, strict=True)]

    @torch.no_grad()
    def _one(self, prompt: list[int], params: SamplingParams) -> Any:
        generator = torch.Generator().manual_seed(params.seed or 0)
        processors = [p.new_req_logits_processor(params) for p in self.processors]
        drawn: list[int] = []
        noted = []
        for _ in range(params.max_tokens):
            logits = self.model(torch.tensor([[*prompt, *drawn]])).logits[0, -1]
            for processor in filter(None, processors):
                logits = processor(drawn, logits)
            if params.temperature:
                logp = (logits / params.temperature).log_softmax(-1)
                token = int(torch.multinomial(logp.exp(), 1, generator=generator))
                noted.append({token: types.SimpleNamespace(logprob=float(logp[token]))})
            else:
                token = int(logits.argmax())
            drawn.append(token)
            if token in params.stop_token_ids:
                break
        for processor in filter(None, processors):
            processor(drawn, logits)  # vLLM asks once more
        return types.SimpleNamespace(
            outputs=[types.SimpleNamespace(token_ids=drawn, logprobs=noted or None)]
        )


def install(put: Any) -> type[LLM]:
    """Put the module in place, and return its class LLM.

    Args:
        put: Called with each name and module, such as `monkeypatch.setitem` on `sys.modules`.
    """
    LLM.made, LLM.calls, LLM.dies_at, LLM.sleeps = [], [], 0, False
    platform = types.SimpleNamespace(is_sleep_mode_available=lambda: LLM.sleeps)
    contents = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "__version__": "0.0.fake"},
        "vllm.platforms": {"current_platform": platform},
        "vllm.v1": {},
        "vllm.v1.sample": {},
        "vllm.v1.sample.logits_processor": {"AdapterLogitsProcessor": AdapterLogitsProcessor},
    }
    for name, values in contents.items():
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(values)
        put(name, module)
    return LLM


def install_here() -> type[LLM]:
    """Put the module in place for the rest of this process."""
    return install(sys.modules.__setitem__)

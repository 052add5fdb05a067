"""The engine `vllm`, on a module that computes with transformers in place of vLLM.

`tests/plugins/test_real_vllm.py` does the same with vLLM itself: see `.ci/vllm`.
"""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.data import Sampling
from harness.core.distributed import DistributedContext
from harness.core.errors import HarnessError, UsageError
from harness.core.execution import Execution
from harness.experiments.prepare import _engine
from harness.models.batches import Batch
from harness.models.generation import CachedEngine, Sampler
from harness.models.loading import trainable
from harness.models.logprobs import completion_logp
from harness.models.lora import Lora, beside, own
from harness.models.lora_weights import whole_state

from ..helpers import fake_vllm
from ..helpers.tools import on_small, only_run, outputs, plugin, process

EOS, N, LONG = 2, 3, 9
NO_TABLE = """
from harness import hookimpl


@hookimpl
def register_reporters(register):
    pass
"""


@pytest.fixture
def llm(monkeypatch):
    """The class LLM of a module in place of vLLM; the engine of this process ends with the test."""
    from harness_plugins.engine_vllm import PROCESS, VLLM, Spent

    yield fake_vllm.install(lambda name, module: monkeypatch.setitem(sys.modules, name, module))
    VLLM({EOS}).close()
    PROCESS.spent = Spent()


@pytest.fixture
def vllm(llm):
    from harness_plugins.engine_vllm import VLLM

    return VLLM({EOS})


@pytest.fixture
def prompts(tokens, make_prompts):
    return tokens.prompt_batch(make_prompts([3, 1, 5]))


@pytest.fixture
def noise(prompts):
    return torch.rand(len(prompts) * N, LONG, generator=torch.Generator().manual_seed(5))


def drawn(engine, model, prompts, noise, temperature=0.7):
    engine.start(model)
    engine.sync(model)
    return engine.generate(model, prompts, N, Sampling(temperature, LONG), noise)


def check_like_hf(engine, model, prompts, noise):
    """Compare rows, lengths and log-probabilities with those of the engine `hf`."""
    found = drawn(engine, model, prompts, noise)
    expected = drawn(CachedEngine({EOS}), model, prompts, noise)
    assert torch.equal(found["completion_ids"], expected["completion_ids"])
    assert torch.equal(found["mask"], expected["mask"])
    assert torch.allclose(found["logp"], expected["logp"], atol=1e-5)
    return found


# -- drawing ---------------------------------------------------------------------------------------


def test_draws_are_those_of_hf_as_the_weights_move(vllm, llm, tiny_model, prompts, noise):
    model = trainable(tiny_model)
    model.config.architectures = None  # of a model that was not read from a folder
    first = check_like_hf(vllm, model, prompts, noise)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(check_like_hf(vllm, model, prompts, noise)["logp"], first["logp"])
    assert len(llm.made) == 1


def test_draws_of_an_adapter_are_those_of_hf(vllm, tiny_model, prompts, noise):
    base = trainable(tiny_model).requires_grad_(False)
    model = beside(base, Lora(4, 8.0, 3, "policy"))
    check_like_hf(vllm, model, prompts, noise)
    with torch.no_grad():
        for p in own(model).values():
            p.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    adapted = check_like_hf(vllm, model, prompts, noise)
    plain = check_like_hf(vllm, base, prompts, noise)
    assert not torch.equal(adapted["logp"][..., 0], plain["logp"][..., 0])
    assert dict(whole_state(model)).keys() == tiny_model.state_dict().keys()
    del model  # with it its adapter
    gc.collect()
    assert dict(whole_state(base)).keys() == tiny_model.state_dict().keys()


def test_draws_by_seed_repeat_and_have_their_own_log_probabilities(
    vllm, tiny_model, prompts, noise
):
    vllm.options.draw = "seed"
    found = drawn(vllm, tiny_model, prompts, noise)
    again = drawn(vllm, tiny_model, prompts, noise)
    other = drawn(vllm, tiny_model, prompts, noise.flip(0))
    assert torch.equal(found["completion_ids"], again["completion_ids"])
    assert not torch.equal(found["completion_ids"], other["completion_ids"])
    with torch.no_grad():
        expected = completion_logp(tiny_model, found)
    assert torch.allclose(found["logp"], expected * found["mask"], atol=1e-5)
    assert not vllm.exact_noise


# -- life ------------------------------------------------------------------------------------------


def test_weights_are_copied_when_they_changed_and_timed_as_a_phase(
    vllm, llm, tiny_model, prompts, meter
):
    model, other = trainable(tiny_model), trainable(tiny_model)
    sampler = Sampler(vllm, Sampling(1.0, LONG), meter, {EOS}, ("key",))
    for _ in range(2):
        sampler.draw(model, prompts, N)
    assert llm.calls.count("reload") == 1
    with torch.no_grad():
        next(model.parameters()).mul_(1.0)  # written to, if to the same values
    sampler.draw(model, prompts, N)
    sampler.draw(other, prompts, N)
    sampler.draw(other, prompts, N)
    assert llm.calls.count("reload") == llm.calls.count("reset") == 3
    assert len(llm.made) == 1
    assert meter.phases["sync"].seconds > 0 and meter.phases["rollout"].samples == 5 * 3 * N
    record = vllm.record()
    assert record["starts"] == 1 and record["syncs"] == 3 and record["start_seconds"] > 0
    assert meter.total().seconds < record["start_seconds"] + sum(
        meter.phases[name].seconds for name in ("sync", "rollout")
    )


def test_engine_without_a_copy_has_no_phase_of_copying(tiny_model, prompts, meter):
    Sampler(CachedEngine({EOS}), Sampling(1.0, LONG), meter, {EOS}, ("key",)).draw(
        tiny_model, prompts, N
    )
    assert list(meter.phases) == ["rollout"]


def test_other_architecture_ends_the_vllm_of_the_process(vllm, llm, tiny_model, gpt2_model):
    vllm.start(tiny_model)
    vllm.start(tiny_model)
    vllm.start(gpt2_model)
    assert len(llm.made) == 2 and [one.closed for one in llm.made] == [True, False]
    vllm.close()
    assert llm.made[1].closed


def test_vllm_that_sleeps_takes_the_weights_anew(vllm, llm, tiny_model, prompts, noise):
    llm.sleeps = True
    check_like_hf(vllm, tiny_model, prompts, noise)
    llm.calls.clear()
    vllm.sleep()
    vllm.sleep()
    check_like_hf(vllm, tiny_model, prompts, noise)
    assert llm.calls == [
        "sleep 2",
        "wake weights",
        "reload",
        "wake kv_cache",
        "reset",
        "generate",
    ]


def test_vllm_leaves_the_process_as_it_was(vllm, tiny_model, prompts, noise):
    torch.manual_seed(11)
    torch.rand(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    drawn(vllm, tiny_model, prompts, noise)
    assert torch.equal(torch.get_rng_state(), before) and torch.initial_seed() == 11
    assert torch.get_num_threads() == threads


# -- messages --------------------------------------------------------------------------------------


def test_error_of_vllm_is_one_message(vllm, llm, tiny_model, prompts, noise):
    llm.dies_at = 2
    drawn(vllm, tiny_model, prompts, noise)
    with pytest.raises(HarnessError) as told:
        drawn(vllm, tiny_model, prompts, noise)
    text = str(told.value)
    assert "vLLM failed when it drew completions: Died: EngineCore encountered an issue." in text
    assert "Run the same command again" in text and "stack trace" not in text


def test_longer_sequences_than_vllm_serves_are_refused_with_the_numbers(
    vllm, tiny_model, prompts, meter
):
    vllm.options.max_tokens = 11
    sampler = Sampler(vllm, Sampling(1.0, LONG), meter, {EOS}, ("key",))
    width = prompts.ids.shape[1]
    with pytest.raises(UsageError, match=f"a prompt of {width} tokens and a completion of up to 9"):
        sampler.draw(tiny_model, prompts)


def spec_with(*settings, **fixed):
    request = Request("start", "summarization", engine_settings=settings, fixed=fixed)
    return resolve(request, installed())


@pytest.mark.parametrize(
    ("fixed", "text"),
    [
        ({"execution": Execution(processes=2)}, "serves one process, and this run has 2"),
        ({"weights": "nf4"}, "weights in nf4 cannot be copied"),
    ],
)
def test_runs_that_vllm_cannot_serve_are_refused(llm, fixed, text):
    with pytest.raises(UsageError, match=text):
        _engine(replace(spec_with(engine="vllm"), **fixed), installed(), "cpu")


def test_missing_package_is_one_message(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'alignment-harness\[vllm\]'. Or use"):
        _engine(spec_with(engine="vllm"), installed(), "cpu")


def test_options_of_an_engine_decide_the_name_of_a_run():
    spec = spec_with("draw=seed", engine="vllm")
    assert spec.engine_options == {"draw": "seed", "max_tokens": 4096, "memory_share": 0.3}
    assert spec.fingerprint() != spec_with(engine="vllm").fingerprint()
    assert spec_with().engine_options == {}
    with pytest.raises(UsageError, match="--engine-set draw: the engine hf has no options"):
        spec_with("draw=seed")
    with pytest.raises(UsageError, match="draw is noise or seed, not 'dice'"):
        spec_with("draw=dice", engine="vllm")


# -- several processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("collective", [False, True])
def test_process_without_prompts_takes_part_where_an_engine_needs_all(
    collective, tiny_model, tokens, make_prompts, meter
):
    calls = []

    class Together(CachedEngine):
        def generate(self, model, prompts, n, sampling, noise):
            calls.append(len(prompts))
            columns = {name: torch.zeros(0, n, 4) for name in ("completion_ids", "mask", "logp")}
            return Batch(prompts, columns, sampling.temperature)

    class First(DistributedContext):
        """The first of two processes, which gets no row of one prompt."""

        def all_reduce(self, *tensors):
            tensors[0][:2] += 1

    Together.collective = collective
    sampler = Sampler(Together({EOS}), Sampling(1.0, 4), meter, {EOS}, ("key",), First(0, 2))
    sampler.draw(tiny_model, tokens.prompt_batch(make_prompts([3])), 2)
    assert calls == ([0] if collective else [])


# -- a whole run -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_whose_vllm_dies_goes_on_where_it_was(tmp_path):
    """It ends in one message. The same command goes on, and the results are those of a whole run;
    the rewards are those of `--engine hf`.
    """
    source = Path(fake_vllm.__file__).read_text(encoding="utf-8")
    ending = "\nimport os\ninstall_here().dies_at = int(os.environ.get('DIES_AT', 0))\n" + NO_TABLE
    beside = plugin(tmp_path, "beside", source + ending)

    def run(results, engine, **env):
        more = ["--start", "model", "--set", "reward=verifier", "--checkpoint-every", "1steps"]
        asked = on_small("grpo", *more, "--engine", engine, "-p", beside, results=results)
        return process(*asked, "--check-rollouts", env=env)

    died = run(tmp_path / "died", "vllm", DIES_AT="3")
    assert died.code == 1 and died.text.count("vLLM failed when it drew completions") == 1
    assert "Traceback" not in died.text
    assert run(tmp_path / "died", "vllm").code == run(tmp_path / "whole", "vllm").code == 0
    died, whole = (only_run(tmp_path / name, "small", "grpo") for name in ("died", "whole"))
    assert outputs(died) == outputs(whole) and len(outputs(whole)) == 4
    results = [json.loads((f / "result.json").read_text("utf-8")) for f in (died, whole)]
    assert results[0]["runtime"]["resumed_after_turns"] in ([1], [2])  # of 2, and the evaluation
    assert results[1]["runtime"]["engine"]["syncs"] >= 2
    assert results[1]["cost"]["phases"]["sync"]["seconds"] > 0
    assert run(tmp_path / "hf", "hf").code == 0
    rows = [
        [
            json.loads(line)["reward"]
            for line in (f / "metrics.jsonl").read_text("utf-8").split("\n")[:2]
        ]
        for f in (whole, only_run(tmp_path / "hf", "small", "grpo"))
    ]
    assert rows[0] == pytest.approx(rows[1], abs=0.02)

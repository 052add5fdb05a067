"""Every registered method at one small bench: a method that is added is proven here without a line
of its own.

What is proven is what `harness check` proves; that the proofs can fail is shown in test_check.py.
The default run takes one method of a kind. `pytest -m "slow or not slow"` takes all of them.
"""

import pytest

from harness.check import Options
from harness.check.methods import proofs_of, serving
from harness.check.trials import Trials
from harness.check.two_processes import together
from harness.models.generation import SharedDecoding
from harness.training import reward_model

from ..helpers.registries import sampled
from ..helpers.tools import fresh, with_shared_stages


@pytest.fixture(scope="module")
def benches(registry):
    """A bench for each method, on the small suite or the first that serves it."""
    results, made = with_shared_stages("every"), {}

    def bench(method):
        if method not in made:
            suites = serving(registry.get("methods", method), registry)
            suite = "small" if "small" in suites else suites[0]
            made[method] = Trials(method, suite, registry, Options(suite=suite, results=results))
        return made[method]

    yield bench
    for each in made.values():
        each.close()


@pytest.mark.parametrize("method", sampled(of=("grpo",)))
def test_method_passes_the_proofs(method, benches):
    bench = benches(method)
    bench.runs()
    for proof, run in proofs_of(bench).items():
        print(proof, "-", run())


def _method_of(test):
    """The method of a collected test of two processes, or None."""
    of_two = test.name.startswith("test_two_processes_train")
    return test.callspec.params["method"] if of_two else None


@pytest.fixture(scope="module")
def pairs(request, benches, registry):
    """What two processes get that train each method together, for the methods of this session."""
    chosen = {m for test in request.session.items for m in [_method_of(test)] if m}
    trained = [m for m in sorted(chosen) if benches(m).whole.rows]
    cases = [(m, benches(m).spec.suite_name) for m in trained]
    return together(cases, registry, Options(results=benches(trained[0]).results))


@pytest.mark.parametrize("method", sampled(of=("dpo", "grpo", "start")))
def test_two_processes_train_a_method_as_one_does(method, benches, pairs):
    if benches(method).whole.rows:
        benches(method).two_processes(pairs[method])
    else:
        assert method not in pairs and method in ("start", "best_of_n")


@pytest.mark.parametrize("fault", ["decoding", pytest.param("reward", marks=pytest.mark.slow)])
def test_fault_of_the_fast_path_outside_the_step_is_seen_too(fault, registry, monkeypatch):
    """Negative controls: gradients of a step agree, and rollouts, or rewards, are not the plain
    path's.
    """
    bench = Trials("ppo", "small", registry, Options(suite="small", results=fresh("faulty")))
    if fault == "decoding":
        right = SharedDecoding.next_logits
        monkeypatch.setattr(SharedDecoding, "next_logits", lambda self, *a: 1.2 * right(self, *a))
    else:
        told = reward_model.completion_scores

        def off(model, *more):
            return told(model, *more) + 0.1 * model.trunk.share_prompt

        monkeypatch.setattr(reward_model, "completion_scores", off)
    try:
        with pytest.raises(AssertionError, match="with the padded layout, .* of turn . is"):
            bench.layout()
    finally:
        bench.close()

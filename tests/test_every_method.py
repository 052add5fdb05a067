"""Every registered method at one small bench: a method that is added is proven here without a line of its own.

What is proven is what `harness check` proves; that the proofs can fail is shown in test_check.py.
"""

import pytest

from harness.check import Options
from harness.check.bench import Bench
from harness.check.methods import proofs_of, serving
from harness.check.together import together
from harness.registry import installed, load_file

from .tools import fresh, small_suite

METHODS = sorted(installed().classes["methods"])


@pytest.fixture(scope="module")
def registry():
    registry = installed.__wrapped__()
    load_file(registry, str(small_suite()))
    return registry


@pytest.fixture(scope="module")
def benches(registry):
    """A bench for each method, on the small suite or the first that serves it."""
    results, made = fresh("every"), {}

    def bench(method):
        if method not in made:
            suites = serving(registry.get("methods", method), registry)
            suite = "small" if "small" in suites else suites[0]
            made[method] = Bench(method, suite, registry, Options(suite=suite, results=results))
        return made[method]

    yield bench
    for each in made.values():
        each.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_passes_the_proofs(method, benches):
    bench = benches(method)
    bench.runs()
    for proof, run in proofs_of(bench).items():
        print(proof, "-", run())


@pytest.fixture(scope="module")
def pairs(benches, registry):
    """What two processes get that train each method together."""
    trained = [m for m in METHODS if benches(m).whole.rows]
    cases = [(m, benches(m).spec.suite_name) for m in trained]
    return together(cases, registry, Options(results=benches(trained[0]).results))


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_a_method_as_one_does(method, benches, pairs):
    if benches(method).whole.rows:
        benches(method).two_processes(pairs[method])
    else:
        assert method not in pairs and method in ("sft", "best_of_n")

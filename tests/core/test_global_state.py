"""Everything global that a plugin changes is put back, and told once under its name."""

import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import warnings

import numpy
import pytest
import torch

from harness.core import global_state
from harness.core.global_state import Reported, enforce, put_back, set_threads


@pytest.fixture
def messages(monkeypatch):
    found = []
    monkeypatch.setattr(global_state, "_drawn", {})
    monkeypatch.setattr(Reported, "warn", found.append)
    monkeypatch.setattr(Reported, "settings", {})
    return found


def _change_environment():
    os.environ["PATH"] = "/nowhere"
    os.environ["A_NEW_NAME"] = "1"
    del os.environ["A_NAME_TO_LOSE"]


def _change_streams():
    sys.stdout = sys.stderr


def _change_folder():
    os.chdir("/")


def _change_umask():
    os.umask(0o011)


WAYS = {
    "the working directory": _change_folder,
    "the umask": _change_umask,
    "environment variables": _change_environment,
    "sys.path": lambda: sys.path.insert(0, "/nowhere"),
    "the filters of warnings": lambda: warnings.simplefilter("error"),
    "sys.stdin, stdout, stderr or a hook of sys": _change_streams,
    "the level of logging": lambda: logging.disable(logging.ERROR),
    "the locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"),
    "the recursion limit": lambda: sys.setrecursionlimit(5000),
    "garbage collection": gc.disable,
    "the timeout of sockets": lambda: socket.setdefaulttimeout(3),
    "the random numbers of `random`": lambda: random.seed(1),
    "the handler of SIGINT": lambda: signal.signal(signal.SIGINT, lambda *_: None),
    "the handler of SIGTERM": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "the random numbers of numpy": lambda: numpy.random.seed(1),
    "the error handling of numpy": lambda: numpy.seterr(all="raise"),
    "the number of threads of torch": lambda: torch.set_num_threads(3),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "the precision of torch's matrix products": lambda: torch.set_float32_matmul_precision("high"),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "the settings of cuDNN": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch's flushing of denormal numbers": lambda: torch.set_flush_denormal(True),
    "torch's autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "torch's grad mode": lambda: torch.set_grad_enabled(False),
    "the seed of torch": lambda: torch.manual_seed(12345),
}


@pytest.fixture
def c_locale():
    """The locale "C" for one test. Later tests of the process read UTF-8 files again."""
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, "C")
    yield
    locale.setlocale(locale.LC_ALL, before)


def _state():
    return {setting.name: setting.read() for setting in global_state._settings()}


@pytest.mark.parametrize("name", WAYS)
def test_put_back_undoes_and_tells_once(messages, monkeypatch, c_locale, name):
    # another thread of these tests may import a library meanwhile, which excuses some changes
    monkeypatch.setattr(global_state._Call, "imported", lambda call: False)
    monkeypatch.setenv("A_NAME_TO_LOSE", "1")
    before = _state()
    try:
        for _ in range(2):
            with put_back("The judge mine"):
                WAYS[name]()
                assert _state() != before
            assert _state() == before
    finally:
        torch.set_default_device(None)
    assert messages == [f"The judge mine changed {name}: it was put back."]
    assert Reported.settings == {"The judge mine": [name]}


def test_put_back_gives_each_plugin_a_stream_of_its_own(messages):
    def draws():
        return random.random(), float(numpy.random.rand()), float(torch.rand(1))

    before, seen = _state(), []
    for plugin in ("one", "two", "one", "two"):
        with put_back(plugin):
            seen.append(draws())
        assert _state() == before
    expected = [draws(), draws()]
    assert [seen[0], seen[2]] == expected and [seen[1], seen[3]] == expected
    assert len(messages) == 2 and "the random numbers of `random`" in messages[0]


def test_put_back_undoes_where_a_plugin_raises(messages):
    before = _state()
    with pytest.raises(SystemExit), put_back("The judge mine"):
        os.chdir("/")
        raise SystemExit(0)
    assert _state() == before and len(messages) == 1


def test_put_back_says_nothing_of_what_torch_draws(messages):
    with put_back("The method mine"):
        torch.nn.Linear(3, 3)
    assert not messages


def test_put_back_leaves_what_a_library_sets_when_it_is_imported(messages, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "import os, warnings\nos.environ['OF_A_LIBRARY'] = '1'\nwarnings.simplefilter('once')"
    (tmp_path / "a_library.py").write_text(source)
    kept = list(warnings.filters)
    try:
        with put_back("The plugin own", "a_library"):
            import a_library  # noqa: F401
        assert "OF_A_LIBRARY" not in os.environ and len(messages) == 1  # its own module
        sys.modules.pop("a_library")
        with put_back("The plugin other"):
            import a_library  # noqa: F401
        assert os.environ["OF_A_LIBRARY"] == "1" and len(messages) == 1
    finally:
        os.environ.pop("OF_A_LIBRARY", None)
        sys.modules.pop("a_library", None)
        warnings.filters[:] = kept


def test_enforce_puts_numbers_back_in_the_middle_of_a_call(messages):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with put_back("The method mine"):
            torch.set_num_threads(2)
            torch.set_default_dtype(torch.float64)
            folder = os.getcwd()
            os.chdir("/")
            enforce()
            assert os.getcwd() == folder
            assert torch.get_num_threads() == 1 and torch.get_default_dtype() == torch.float32
            set_threads(2)  # the harness's own setting stays
            enforce()
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2 and len(messages) == 1
    finally:
        torch.set_num_threads(threads)


def test_put_back_watches_numbers_only_where_asked(messages):
    limit = sys.getrecursionlimit()
    with put_back(global_state.ANY, numbers=True):
        sys.setrecursionlimit(5000)
        torch.set_default_dtype(torch.float64)
    assert sys.getrecursionlimit() == 5000 and torch.get_default_dtype() == torch.float32
    sys.setrecursionlimit(limit)
    assert messages == ["A plugin changed torch's default dtype: it was put back."]

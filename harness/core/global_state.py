"""State of the whole process that a plugin may change. It is put back, and told once per plugin.

`put_back` surrounds a call into a plugin. `enforce` is called where a plugin calls back into the
harness: it puts back what decides numbers and files (threads, dtype, precision, working directory)
in the middle of such a call.
"""

from __future__ import annotations

import ctypes
import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGALRM", "SIGCHLD", "SIGHUP", "SIGPIPE", "SIGUSR1")
IMPORTED = "The plugin "  # begins the name of a plugin that is loaded
ANY = "A plugin"  # where it is not known which
THREADS = "the number of threads of torch"
UNKNOWN = object()  # the value of a setting of a library that was not imported yet
MT19937_BYTES = 4 * 624 + 4  # its words, and the position in them
TINY, ONE = 5e-324, 1.0


@dataclass(frozen=True)
class Setting:
    """One piece of global state.

    `usual` is its value in a new process, for a library that a plugin is the first to import.
    `numbers`: it decides what is computed, or which files are read and written.
    `loose`: libraries change it when they are imported.
    `stream`: random numbers. A plugin goes on in its next call where its last one ended, so that
    two calls do not draw the same numbers.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    usual: Any = UNKNOWN
    numbers: bool = False
    loose: bool = False
    reported: bool = True
    stream: bool = False


class Reported:
    """State that was restored in this process, by plugin, and the message about it."""

    warn: Callable[[str], None] = staticmethod(lambda text: print(text, file=sys.stderr))
    settings: dict[str, list[str]] = {}  # noqa: RUF012  # one per process

    @classmethod
    def begin(cls, warn: Callable[[str], None]) -> None:
        """Begin a run, with its way to tell a user. What imports changed stays known."""
        imports = {k: v for k, v in cls.settings.items() if k.startswith(IMPORTED)}
        cls.warn, cls.settings = staticmethod(warn), imports
        forget_streams()


@dataclass
class _Call:
    """A call into a plugin, and the state before it."""

    plugin: str
    package: str = ""  # top-level name of the plugin's own modules
    values: dict[str, Any] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)

    def imported(self) -> bool:
        """Return whether a library was imported since the call began."""
        fresh = sys.modules.keys() - self.modules
        return any(name.partition(".")[0] != self.package for name in fresh)


_calls: list[_Call] = []
_drawn: dict[tuple[str, str], Any] = {}  # by plugin and setting: where its random numbers are


@contextmanager
def put_back(plugin: str, package: str = "", numbers: bool = False) -> Iterator[None]:
    """Put back what a call into a plugin changes.

    Args:
        plugin: The subject of the message: `The judge NAME`.
        package: The top-level name of the plugin's modules, where the call imports it.
        numbers: Watch only what decides numbers.
    """
    settings = [s for s in _settings() if s.numbers or not numbers]
    call = _Call(plugin, package, {s.name: s.read() for s in settings}, list(sys.modules))
    _calls.append(call)
    for setting in settings:
        if (plugin, setting.name) in _drawn:
            setting.write(_drawn[plugin, setting.name])
    try:
        yield
    finally:
        _calls.remove(call)
        _restore(call, [s for s in _settings() if s.numbers or not numbers])


def forget_streams() -> None:
    """Let each plugin draw from where the random numbers of the process are at its next call."""
    _drawn.clear()


def enforce() -> None:
    """Put back what decides numbers, in the middle of a call into a plugin."""
    if _calls:
        _restore(_calls[-1], [*FILES, *(s for s in _torch_settings() if s.numbers)])


def set_threads(number: int) -> None:
    """Set the number of torch's threads that a run requests."""
    sys.modules["torch"].set_num_threads(number)
    for call in _calls:
        call.values[THREADS] = number


def _restore(call: _Call, settings: list[Setting]) -> None:
    changed = []
    for setting in settings:
        before, now = call.values.get(setting.name, setting.usual), setting.read()
        if before is UNKNOWN or _same(before, now) or (setting.loose and call.imported()):
            continue
        if setting.stream:
            _drawn[call.plugin, setting.name] = now
        setting.write(before)
        if setting.reported:
            changed.append(setting.name)
    fresh = [name for name in changed if name not in Reported.settings.get(call.plugin, ())]
    if fresh:
        Reported.settings.setdefault(call.plugin, []).extend(fresh)
        Reported.warn(f"{call.plugin} changed {', '.join(fresh)}: it was put back.")


def _same(before: Any, now: Any) -> bool:
    return before is now or bool(before == now)


def _settings() -> list[Setting]:
    main = threading.current_thread() is threading.main_thread()
    return [*PROCESS, *(SIGNAL if main else ()), *_numpy_settings(), *_torch_settings()]


# -- the process -----------------------------------------------------------------------------------


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _enter(folder: str) -> None:
    if folder:
        os.chdir(folder)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _write_environment(before: Mapping[bytes, bytes]) -> None:
    for name in set(os.environb) - set(before):
        del os.environb[name]
    for name, value in before.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


def _write_list(live: list[Any]) -> Callable[[Any], None]:
    def write(before: Any) -> None:
        live[:] = before

    return write


def _write_filters(before: Any) -> None:
    warnings.filters[:] = before  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _streams() -> tuple[Any, ...]:
    return sys.stdin, sys.stdout, sys.stderr, sys.excepthook, sys.displayhook


def _write_streams(before: tuple[Any, ...]) -> None:
    sys.stdin, sys.stdout, sys.stderr, sys.excepthook, sys.displayhook = before


def _write_logging(before: tuple[int, int]) -> None:
    logging.root.setLevel(before[0])
    logging.disable(before[1])


def _write_umask(before: int) -> None:
    os.umask(before)


def _write_locale(before: str) -> None:
    locale.setlocale(locale.LC_ALL, before)


def _write_gc(before: bool) -> None:
    (gc.enable if before else gc.disable)()


def _environment() -> dict[bytes, bytes]:
    return dict(os.environb._data) if hasattr(os.environb, "_data") else dict(os.environb)


PROCESS = (
    Setting("the working directory", _folder, _enter, numbers=True),
    Setting("the umask", _umask, _write_umask, numbers=True),
    Setting("environment variables", _environment, _write_environment, loose=True),
    Setting("sys.path", lambda: list(sys.path), _write_list(sys.path), loose=True),
    Setting("the filters of warnings", lambda: list(warnings.filters), _write_filters, loose=True),
    Setting("sys.stdin, stdout, stderr or a hook of sys", _streams, _write_streams),
    Setting(
        "the level of logging",
        lambda: (logging.root.level, logging.root.manager.disable),
        _write_logging,
    ),
    Setting("the locale", lambda: locale.setlocale(locale.LC_ALL), _write_locale),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("garbage collection", gc.isenabled, _write_gc),
    Setting("the timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
    Setting("the random numbers of `random`", random.getstate, random.setstate, stream=True),
)
FILES = [setting for setting in PROCESS if setting.numbers]


def _handler_of(name: str) -> Setting:
    number = signal.Signals[name]

    def write(before: Any) -> None:
        if before is not None:  # None: it was not set by Python
            signal.signal(number, before)

    return Setting(f"the handler of {name}", lambda: signal.getsignal(number), write)


SIGNAL = tuple(_handler_of(name) for name in SIGNALS if hasattr(signal, name))


# -- libraries -------------------------------------------------------------------------------------


def _numpy_settings() -> list[Setting]:
    numpy = sys.modules.get("numpy")
    if numpy is None or "numpy.random.mtrand" not in sys.modules:
        return []

    generator = numpy.random.get_bit_generator()
    if type(generator).__name__ != "MT19937":  # another one was set: its size is not known here
        return []
    address = generator.ctypes.state_address  # `numpy.random.get_state` takes 0.5 ms

    def state() -> bytes:
        return ctypes.string_at(address, MT19937_BYTES)

    def write(before: bytes) -> None:
        ctypes.memmove(address, before, MT19937_BYTES)

    def write_errors(before: Mapping[str, str]) -> None:
        numpy.seterr(**before)

    return [
        Setting("the random numbers of numpy", state, write, stream=True),
        Setting("the error handling of numpy", numpy.geterr, write_errors),
    ]


def _torch_settings() -> list[Setting]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "set_flush_denormal"):
        return []
    if "torch" not in _settings_made:
        _settings_made["torch"] = _settings_of_torch(torch)
    return _settings_made["torch"]


_settings_made: dict[str, list[Setting]] = {}


def _settings_of_torch(torch: Any) -> list[Setting]:
    return [*_of_tensors(torch), *_of_kernels(torch), *_of_autograd(torch), *_of_draws(torch)]


def _of_tensors(torch: Any) -> list[Setting]:
    dtype = torch.get_default_dtype, torch.set_default_dtype
    precision = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision

    def device() -> str:
        return str(torch.get_default_device())

    def write_device(before: str) -> None:
        torch.set_default_device(None if before == "cpu" else before)

    return [
        Setting(THREADS, torch.get_num_threads, torch.set_num_threads, numbers=True),
        Setting("torch's default dtype", *dtype, torch.float32, numbers=True),
        Setting("torch's default device", device, write_device, "cpu", numbers=True),
        Setting("the precision of torch's matrix products", *precision, "highest", numbers=True),
    ]


def _of_kernels(torch: Any) -> list[Setting]:
    cudnn = torch.backends.cudnn

    def deterministic() -> tuple[bool, bool]:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), warn_only

    def write_deterministic(before: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])

    def read_cudnn() -> tuple[bool, ...]:
        return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    def write_cudnn(before: tuple[bool, ...]) -> None:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before

    def flushes() -> bool:
        return TINY * ONE == 0.0

    algorithms, denormal = (
        "torch's deterministic algorithms",
        "torch's flushing of denormal numbers",
    )
    usual = (False, False)
    return [
        Setting(algorithms, deterministic, write_deterministic, usual, numbers=True),
        Setting("the settings of cuDNN", read_cudnn, write_cudnn, numbers=True),
        Setting(denormal, flushes, torch.set_flush_denormal, False, numbers=True),
    ]


def _of_autograd(torch: Any) -> list[Setting]:
    def autocast() -> bool:
        return bool(torch.is_autocast_enabled("cpu"))

    def write_autocast(before: bool) -> None:
        torch.set_autocast_enabled("cpu", before)

    return [
        Setting("torch's autocast", autocast, write_autocast, False),
        Setting("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled, True),
    ]


def _of_draws(torch: Any) -> list[Setting]:
    def state() -> bytes:
        return bytes(torch.get_rng_state().numpy().tobytes())

    def write(before: bytes) -> None:
        torch.set_rng_state(torch.frombuffer(bytearray(before), dtype=torch.uint8))

    def write_seed(before: int) -> None:
        torch.default_generator.manual_seed(before)  # the state is put back after it

    return [
        Setting("the seed of torch", torch.initial_seed, write_seed),
        # libraries draw from them whenever they make a layer
        Setting("the random numbers of torch", state, write, reported=False, stream=True),
    ]

"""Study files: TOML that names methods, suites, seeds and options; read and checked before anything
is expanded.

An option is named as in `set` and `sweep`: NAME is the method's, `suite.NAME` the suite's,
`stage.STAGE.NAME` a shared stage's, `labeller.NAME` the labeller's, and `run.NAME` one of
RunOptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ...core.errors import UsageError, unknown
from ...core.execution import NOT_SHARDED, SHARDS
from ...core.jobs import Resources
from ...core.options import build
from ...core.spec import SAVED_DTYPES, SAVED_KINDS, WEIGHTS, compute_dtype, parse_budget
from ...core.suite_file import TITLE, is_suite_file, read_toml
from .spaces import RANGES, Space, read_space

SHARED_SEED = "run.shared_seed"
SELECT = ("win_rate", "gold", "accuracy")


@dataclass
class RunOptions:
    """The options of every run of a study: those of `harness run` with the same names."""

    budget: str = ""
    model: str | None = None
    start: str | None = None  # None: chosen by the model, as on the command line
    reference: str | None = None
    reward_model: str | None = None
    shared_seed: int = 0
    judge: str | None = None
    labeller: str | None = None
    engine: str = "hf"
    device: str = "auto"
    dtype: str | None = None  # None: chosen by `weights`, as on the command line
    weights: str = WEIGHTS[0]
    micro_batch_tokens: int = 16384
    decode_batch_tokens: int = 131072
    activation_checkpointing: bool = False
    shard: str = NOT_SHARDED
    prompt_sharing: bool = True
    threads: int = 1  # one, so that parallel runs do not compete for cores
    snapshots: int = 0
    save: str = "auto"
    save_dtype: str = "auto"
    quick: bool = False

    def check(self) -> None:
        """Raise ValueError for values that the command line would refuse."""
        parse_budget(self.budget)
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights is {' or '.join(WEIGHTS)}, not {self.weights!r}")
        if self.shard not in SHARDS:
            raise ValueError(f"shard is {' or '.join(SHARDS)}, not {self.shard!r}")
        compute_dtype(self.dtype, self.weights)
        if self.save not in SAVED_KINDS or self.save_dtype not in SAVED_DTYPES:
            raise ValueError(
                f"save is one of {', '.join(SAVED_KINDS)}, and save_dtype one of"
                f" {', '.join(SAVED_DTYPES)}"
            )
        if (
            min(self.shared_seed, self.snapshots) < 0
            or min(self.micro_batch_tokens, self.decode_batch_tokens, self.threads) < 1
        ):
            raise ValueError(
                "shared_seed and snapshots may not be negative, micro_batch_tokens,"
                " decode_batch_tokens and threads not 0"
            )


@dataclass
class MethodKeys:
    """The plain keys of a `[[methods]]` entry."""

    name: str
    label: str = ""  # of its row; by default the name and the settings that distinguish it
    seeds: int | list[int] | None = None  # None: the study's
    suites: list[str] | None = None
    budget: str | None = None


@dataclass
class StudyKeys:
    """The plain keys of a study file, beside those of RunOptions."""

    suites: list[str]
    name: str = ""  # otherwise the file's
    seeds: int | list[int] = 1  # a number of seeds, from 0 on, or a list
    # grounds: each has a start checkpoint, preferences and a reward model of its own
    shared_seeds: int | list[int] | None = None  # None: the one of `shared_seed`
    plugins: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)  # names of variables for all machines


@dataclass
class TuneKeys:
    """The plain keys of `[tune]`."""

    trials: int  # per method and suite; the untuned settings are the first
    # the figure on the validation split by which settings are chosen; the highest mean wins
    select: str = "win_rate"
    seed: int = 0  # of the random search
    leave: list[str] = field(default_factory=list)  # labels of methods that are not tuned

    def check(self) -> None:
        """Raise ValueError for values that allow no search."""
        if self.trials < 2 or self.seed < 0:
            raise ValueError(
                "trials must be at least 2, the settings as they are among them, and seed not"
                " negative"
            )
        if self.select not in SELECT:
            raise ValueError(
                f"select is {', '.join(SELECT[:-1])} or {SELECT[-1]}, not {self.select!r}"
            )


@dataclass(frozen=True)
class Entry:
    """A method of a study, with its options and its swept options."""

    name: str
    label: str
    options: Mapping[str, Any]  # the study's and its own
    sweep: Mapping[str, list[Any]]
    seeds: tuple[int, ...]
    suites: tuple[str, ...]
    resources: Resources = Resources()  # that each of its runs requests
    shared_seeds: tuple[int, ...] = ()  # empty: the one among the options


@dataclass(frozen=True)
class Tune:
    """How settings are chosen: the same number of trials for every method."""

    trials: int
    select: str
    seed: int
    spaces: Mapping[str, Space]  # by the label of an entry; others search their method's own
    leave: tuple[str, ...] = ()  # labels of entries that are not tuned


@dataclass(frozen=True)
class Study:
    """A study file in checked form. The names of methods and options are checked on expansion."""

    path: Path
    text: str
    name: str
    entries: tuple[Entry, ...]
    plugins: tuple[str, ...]
    launcher: str
    launcher_options: Mapping[str, Any]
    tune: Tune | None
    # names of variables that are passed to jobs on other machines
    environment: tuple[str, ...] = ()


def read_study(path: Path) -> Study:
    """Read a study file; raise UsageError with the place of an error."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file.")
    content, where = read_toml(path, ""), str(path)
    tables = {
        key: content.pop(key, None)
        for key in ("methods", "set", "sweep", "launcher", "tune", "resources")
    }
    run = {f.name for f in fields(RunOptions)}
    _known(content, {*run, *(f.name for f in fields(StudyKeys)), *tables}, where)
    keys = build(StudyKeys, {k: v for k, v in content.items() if k not in run}, where)
    name = keys.name or path.stem
    if not TITLE.fullmatch(name):
        raise UsageError(
            f"{where}: name = {name!r}: expected letters, digits, '_', '-' and '.' only."
        )
    common = {f"run.{k}": v for k, v in content.items() if k in run} | flat(
        tables["set"], f"{where}: set"
    )
    beside = path.resolve().parent
    shared = Entry(
        "",
        "",
        common,
        swept(tables["sweep"], f"{where}: sweep"),
        seeds_of(keys.seeds, where),
        tuple(_beside(s, beside) for s in keys.suites),
        _resources(tables["resources"], Resources(), f"{where}: [resources]"),
        _grounds(keys, where),
    )
    entries = _entries(tables["methods"], shared, beside, where)
    _check_shared_seeds(entries, where)
    launcher = dict(_table(tables["launcher"], f"{where}: [launcher]"))
    return Study(
        path,
        path.read_text(encoding="utf-8"),
        name,
        entries,
        tuple(str(beside / p) for p in keys.plugins),
        str(launcher.pop("name", "local")),
        launcher,
        _tune(tables["tune"], entries, f"{where}: [tune]"),
        tuple(keys.environment),
    )


def flat(table: Any, where: str, prefix: str = "", leaves: Iterable[str] = ()) -> dict[str, Any]:
    """Return a table with dotted keys: `suite.bias` may be written quoted or as a table; `leaves`
    mark a value.
    """
    values: dict[str, Any] = {}
    for key, value in _table(table, where).items():
        deeper = isinstance(value, dict) and not set(leaves) & set(value)
        values.update(
            flat(value, where, f"{prefix}{key}.", leaves) if deeper else {f"{prefix}{key}": value}
        )
    return values


def swept(table: Any, where: str) -> dict[str, list[Any]]:
    """Return {option: values} of a sweep."""
    grid = flat(table, where)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: {key} = {values!r}: expected a list of values.")
    return grid


def _grounds(keys: StudyKeys, where: str) -> tuple[int, ...]:
    if keys.shared_seeds is None:
        return ()
    return seeds_of(keys.shared_seeds, where, "shared_seeds")


def _check_shared_seeds(entries: Iterable[Entry], where: str) -> None:
    """Refuse a shared seed that is an option too, or swept over: grounds are an axis of rows."""
    for entry in entries:
        if SHARED_SEED in entry.sweep:
            raise UsageError(
                f"{where}: {entry.label} has a sweep over {SHARED_SEED}, and a sweep makes rows."
                " Write shared_seeds = [0, 1, 2] at the top: then a row has intervals over them."
            )
        if SHARED_SEED in entry.options and entry.shared_seeds:
            raise UsageError(
                f"{where}: {entry.label} has shared_seeds and one shared_seed: leave one out."
            )


def seeds_of(seeds: int | list[int], where: str, key: str = "seeds") -> tuple[int, ...]:
    """Return the seeds given as a number or as a list."""
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise UsageError(
            f"{where}: {key} = {seeds!r}: expected a number above 0, or a list of different seeds."
        )
    return numbers


def _entries(methods: Any, shared: Entry, beside: Path, where: str) -> tuple[Entry, ...]:
    if (
        not isinstance(methods, list)
        or not methods
        or not all(isinstance(m, dict) for m in methods)
    ):
        raise UsageError(f"{where}: expected one [[methods]] or more, each with a name.")
    if not shared.suites:
        raise UsageError(f"{where}: suites = []: expected one suite or more.")
    names = [m.get("name") for m in methods]
    entries = [
        _entry(m, shared, beside, f"{where}: [[methods]] {m.get('name', '')}".rstrip(), names)
        for m in methods
    ]
    labels = [e.label for e in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(
                f"{where}: two of the [[methods]] are {label!r}: give them a `label` each."
            )
    return tuple(entries)


def _entry(
    method: dict[str, Any], shared: Entry, beside: Path, where: str, names: list[Any]
) -> Entry:
    tables = {key: method.get(key) for key in ("set", "sweep", "resources")}
    _known(method, {*(f.name for f in fields(MethodKeys)), *tables}, where)
    keys = build(MethodKeys, {k: v for k, v in method.items() if k not in tables}, where)
    own = flat(tables["set"], f"{where}: set")
    budget = {} if keys.budget is None else {"run.budget": keys.budget}
    suffix = described(own | budget) if names.count(keys.name) > 1 else ""
    return Entry(
        keys.name,
        keys.label or f"{keys.name}{suffix}",
        {**shared.options, **budget, **own},
        {**shared.sweep, **swept(tables["sweep"], f"{where}: sweep")},
        shared.seeds if keys.seeds is None else seeds_of(keys.seeds, where),
        shared.suites if keys.suites is None else tuple(_beside(s, beside) for s in keys.suites),
        _resources(tables["resources"], shared.resources, f"{where}: resources"),
        shared.shared_seeds,
    )


def _resources(table: Any, common: Resources, where: str) -> Resources:
    """Return the resources of a table; missing values come from `common`."""
    return build(Resources, {**asdict(common), **_table(table, where)}, where)


def described(options: Mapping[str, Any]) -> str:
    """Return ` (a=1, b=2)` for options, nothing for none."""
    text = ", ".join(
        f"{key.removeprefix('run.')}={text_of(value)}" for key, value in options.items()
    )
    return f" ({text})" if text else ""


def text_of(value: Any) -> str:
    """Return a TOML value in the form of the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(text_of, value)) if isinstance(value, list) else str(value)


def _tune(table: Any, entries: Iterable[Entry], where: str) -> Tune | None:
    if table is None:
        return None
    table = dict(_table(table, where))
    spaces = _table(table.pop("space", None), f"{where}: space")
    _known(table, {*(f.name for f in fields(TuneKeys)), "space"}, where)
    keys = build(TuneKeys, table, where)
    labels = {e.label: e for e in entries}
    for label in [*spaces, *keys.leave]:
        if label not in labels:
            raise UsageError(f"{where}: {unknown('method of this study', label, labels)}")
    for label, entry in labels.items():
        if label in spaces and label in keys.leave:
            raise UsageError(
                f"{where}: {label} has a space to search ([tune.space.{label}]) and a place in"
                " `leave`: leave one out."
            )
        if entry.sweep and label not in keys.leave:
            raise UsageError(
                f"{where}: {label} has a sweep: put what is swept over into [tune.space.{label}]."
            )
        if "stage.evaluation.split" in entry.options:
            raise UsageError(
                f"{where}: trials see the validation split only and the rest the test split: set"
                " neither."
            )
    searches = {
        label: read_space(flat(s, where, leaves=RANGES), f"{where}: space.{label}")
        for label, s in spaces.items()
    }
    return Tune(keys.trials, keys.select, keys.seed, searches, tuple(keys.leave))


def _table(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where} = {value!r}: expected a table of names and values.")
    return value


def _known(content: Iterable[str], known: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise UsageError(f"{where}: {unknown('key', key, known)}")


def _beside(suite: str, folder: Path) -> str:
    """Return a suite's name or the path of its file, which is relative to the study's file."""
    return str(folder / suite) if is_suite_file(suite) else suite

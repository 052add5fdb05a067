"""Settings: the runs of one suite with one model, for tables and plots across several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import UsageError
from ...statistics.intervals import Array, Estimate, win_rate_interval
from .comparable import Record, check_comparable
from .figures import answers_of, there
from .filters import Filter
from .select import Row, chosen, rows_of, suites_of


@dataclass(frozen=True)
class Setting:
    """The finished rows of one suite with one model."""

    suite: str
    model: str
    parameters: int  # of the policy
    rows: Mapping[str, Row]  # by name

    def wins(self, method: str) -> Array:
        """Return the win scores (S, P) of a method."""
        scores = answers_of(self.rows[method]).win
        assert scores is not None
        return there(scores)

    def estimate(self, method: str) -> Estimate:
        """Return the win-rate of a method with its interval."""
        return win_rate_interval(self.wins(method), grounds=self.rows[method].grounds)


@dataclass(frozen=True)
class Across:
    """Several settings, and the methods that all of them have."""

    settings: Sequence[Setting]
    methods: Sequence[str]

    def title(self, setting: Setting) -> str:
        """Return the name of a setting: what differs between them."""
        parts = [
            (setting.suite, {s.suite for s in self.settings}),
            (setting.model, {s.model for s in self.settings}),
        ]
        return ", ".join(name for name, names in parts if len(names) > 1)


def across(results: Path, criteria: Filter) -> Across:
    """Return the settings of the selected runs, ordered by suite and size of the model.

    Raises:
        UsageError: There are fewer than two settings, or fewer than two methods in all of them.
    """
    settings: list[Setting] = []
    for suite in suites_of(results, criteria):
        by_model: dict[str, list[Record]] = {}
        for record in chosen(results, replace(criteria, suite=suite))[1]:
            by_model.setdefault(model_of(record), []).append(record)
        own = [_setting(suite, model, records) for model, records in by_model.items()]
        settings += sorted((s for s in own if s.rows), key=lambda s: (s.parameters, s.model))
    methods = [
        name
        for name in (settings[0].rows if settings else ())
        if all(name in setting.rows for setting in settings)
    ]
    if len(settings) < 2 or len(methods) < 2:
        raise UsageError(
            "--across needs two methods in each of two settings (suites or models); there are"
            f" {len(settings)} settings with {len(methods)} methods in common."
        )
    return Across(settings, methods)


def model_of(record: Record) -> str:
    """Return the name of the model that a run started from."""
    model = record.get("model")
    name = model.get("name", "embedded") if isinstance(model, Mapping) else "embedded"
    return Path(str(name)).name


def _setting(suite: str, model: str, records: Sequence[Record]) -> Setting:
    good = [r for r in records if "failure" not in r]
    check_comparable(good)
    rows = {
        row.name: row for row in rows_of(good) if all("win_rate" in r["evaluation"] for r in good)
    }
    sizes = [m["parameters"] for r in good for m in r["cost"]["models"].values()]
    return Setting(suite, model, int(min(sizes, default=0)), rows)

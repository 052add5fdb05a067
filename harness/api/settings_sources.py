"""Where the settings of a run come from: class defaults, the real-model table, the suite, the user.

In this order each is replaced by the next one that sets the option.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.options import convert, options_of
from ..core.settings import is_base_class
from .quick import lowered, quick_method
from .real_models import RECIPES, recipe_of

DEFAULT, TABLE, SUITE, QUICK, USER = "default", "real-model table", "suite", "--quick", "user"
Layer = Mapping[str, Mapping[str, Any]]  # {method or `stage.NAME`: {option: value}}


@dataclass(frozen=True)
class Setting:
    """The value of an option, and where it comes from."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Sources:
    """What settings are taken from beside the classes and the user."""

    suite: Layer = field(default_factory=dict)  # of the suite's class
    file: Layer = field(default_factory=dict)  # of a suite file
    quick: Layer = field(default_factory=dict)  # what `--quick` changes; empty without it
    model: bool = False  # whether `--model` names a model

    def of_method(self, cls: type, name: str, given: Mapping[str, Any]) -> dict[str, Setting]:
        """Return the settings of a method that are not its class's own.

        Args:
            cls: The class of the method.
            name: Its name.
            asked: {option: value} of the user.
        """
        advice = _Advice(
            recommended([self.suite], cls, name, given),
            recommended([self.file], cls, name, given),
            recommended([self.suite, self.file], cls, name, given),
            quick_method(self.quick, cls, name),
        )
        key = _row(name, {**advice.both, **given})
        return self._settings(cls, key, f"method {name}", advice, given)

    def of_stage(self, cls: type, stage: str, given: Mapping[str, Any]) -> dict[str, Setting]:
        """Return the settings of a stage that are not its class's own; `asked` is the user's."""
        name = f"stage.{stage}"
        suite, file = self.suite.get(name, {}), self.file.get(name, {})
        advice = _Advice(suite, file, {**suite, **file}, self.quick.get(name, {}))
        return self._settings(cls, name, f"--stage-set {stage}", advice, given)

    def _settings(
        self, cls: type, key: str, where: str, advice: _Advice, given: Mapping[str, Any]
    ) -> dict[str, Setting]:
        """Return all layers over one another; `key` is that of a row of the table."""
        options = options_of(cls)
        lora = "lora_rank" in options and _adapts({**advice.both, **given}, where)
        rate = options["learning_rate"].default if "learning_rate" in options else None
        recipe = recipe_of(key, lora, rate) if self.model or lora else {}
        table = {name: value for name, value in recipe.items() if name in options}
        # the settings of an embedded suite suit the model that it brings, and no other
        other_model = [(SUITE, advice.suite), (TABLE, table), (SUITE, advice.file)]
        layers = other_model if self.model else [(TABLE, table), (SUITE, advice.both)]
        merged = _merged(layers)
        merged |= _merged([(QUICK, lowered(values_of(merged), advice.quick, cls))])
        steps = options.get("steps")
        # epochs that are asked for replace advised steps, where 0 steps mean epochs
        if "epochs" in given and "steps" not in given and steps and steps.default == 0:
            merged.pop("steps", None)
        return {**merged, **_merged([(USER, given)])}


@dataclass(frozen=True)
class _Advice:
    """What a suite advises for one method or stage."""

    suite: Mapping[str, Any]  # its class
    file: Mapping[str, Any]  # the suite file
    both: Mapping[str, Any]
    quick: Mapping[str, Any]


def values_of(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the plain values of settings."""
    return {name: setting.value for name, setting in settings.items()}


def recommended(
    layers: Iterable[Layer],
    cls: type,
    name: str,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the settings a suite recommends for a method: `*` for what the method leaves at the
    contract's default.

    A method that states a default of its own keeps it over `*`; an entry under the method's name
    wins over both. An entry `NAME:OPTION=VALUE` stands in its place where that value was asked for:
    methods that are several in one.
    """
    inherited = {
        n
        for n in options_of(cls)
        if not any(n in vars(base).get("__annotations__", {}) for base in _own(cls))
    }
    values: dict[str, Any] = {}
    for layer in layers:
        values |= {
            k: v for k, v in layer.get("*", {}).items() if k in inherited and k not in values
        }
        values |= _entry(layer, name, given or {})
    return values


def _merged(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Setting]:
    return {
        name: Setting(value, origin) for origin, values in layers for name, value in values.items()
    }


def _adapts(values: Mapping[str, Any], where: str) -> bool:
    """Return whether settings train an adapter."""
    rank = convert(values.get("lora_rank", 0), int, f"{where}: lora_rank")
    return bool(rank > 0)


def _row(name: str, values: Mapping[str, Any]) -> str:
    """Return the key of a method's row in the table; a row may be of one value of an option."""
    keys = [f"{name}:{option}={value}" for option, value in values.items()]
    return next((key for key in keys if key in RECIPES), name)


def _entry(layer: Layer, name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    for key, values in layer.items():
        option, _, value = key.removeprefix(f"{name}:").partition("=")
        if key.startswith(f"{name}:") and str(given.get(option)) == value:
            return values
    return layer.get(name, {})


def _own(cls: type) -> list[type]:
    """Return the classes of a plugin's own, without the base classes that the harness provides."""
    return [base for base in cls.__mro__ if not is_base_class(base)]

"""Dataclass options: types, help, refusals, and UsageError as the only exception."""

import math
from dataclasses import dataclass, field
from typing import Optional

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.api.registry import installed
from harness.core.errors import UsageError
from harness.core.options import build, convert, options_of, parse_settings
from harness.core.settings import STAGES, AdamWOptions
from harness.core.spec import parse_budget


@dataclass
class Parent:
    """Options to inherit."""

    rate: float = 5e-5  # how fast
    size: int = 32


@dataclass
class Options(Parent):
    """One option of every type."""

    flag: bool = False  # on or off; "#" and = inside stay
    word: str = "a # b"  # text
    maybe: float | None = None  # none: not set
    older: Optional[int] = 3  # noqa: UP045  the other spelling
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    long: list[int] = field(
        default_factory=list,  # inside
    )  # behind the end
    hidden: int = field(default=0, init=False)

    def check(self):
        if self.size < 0:
            raise ValueError("size must not be negative")


HINTS = (
    int,
    float,
    bool,
    str,
    float | None,
    int | None,
    list[int],
    list[str],
    tuple[int, ...],
    Optional[bool],  # noqa: UP045
)


def test_types_defaults_and_order():
    options = options_of(Options)
    assert list(options) == ["rate", "size", "flag", "word", "maybe", "older", "sizes", "long"]
    assert (
        options["rate"].default == 5e-5
        and options["sizes"].default == [1, 2]
        and options["maybe"].default is None
    )
    assert [options[n].type for n in ("rate", "size", "flag", "word")] == [
        "float",
        "int",
        "bool",
        "str",
    ]
    assert options["maybe"].type == "float | None" and options["sizes"].type == "list[int]"


@dataclass
class Above:
    """Help above a field."""

    # how fast;
    # as a share of the peak
    rate: float = 0.1

    size: int = 4


def test_help_is_the_trailing_comment():
    options = options_of(Options)
    assert options["rate"].help == "how fast" and options["size"].help == ""
    assert options["word"].help == "text" and options["maybe"].help == "none: not set"
    assert options["flag"].help == 'on or off; "#" and = inside stay'
    assert options["long"].help == "behind the end"
    assert all(option.help for option in options_of(AdamWOptions).values())


def test_help_stands_above_a_field_too():
    assert options_of(Above)["rate"].help == "how fast; as a share of the peak"
    assert options_of(Above)["size"].help == ""


def test_every_option_of_a_built_in_method_or_stage_has_help():
    for cls in (*installed().classes["methods"].values(), *STAGES.values()):
        assert [name for name, option in options_of(cls).items() if not option.help] == [], cls


def test_help_of_a_class_without_source():
    namespace = {"dataclass": dataclass}
    exec("@dataclass\nclass Typed:\n    x: int = 1  # lost\n", namespace)
    assert options_of(namespace["Typed"])["x"].help == ""


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (float, "5e-5", 5e-5),
        (float, "1", 1.0),
        (float, "-.5", -0.5),
        (float, 3, 3.0),
        (int, "12", 12),
        (int, "1e3", 1000),
        (int, 2.0, 2),
        (int, "-4", -4),
        (str, "none", "none"),
        (str, "", ""),
        (float | None, "none", None),
        (float | None, "None", None),
        (float | None, None, None),
        (float | None, "0.5", 0.5),
        (Optional[int], "7", 7),  # noqa: UP045
        (list[int], "1,2,3", [1, 2, 3]),
        (list[int], [4], [4]),
        (tuple[int, ...], "1,2", (1, 2)),
        (list[str], "a,b", ["a", "b"]),
    ],
)
def test_values_are_read(hint, text, value):
    got = convert(text, hint, "x")
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("word", ["true", "True", "YES", "1"])
def test_true_words(word):
    assert convert(word, bool, "x") is True


@pytest.mark.parametrize("word", ["false", "False", "no", "0"])
def test_false_words(word):
    assert convert(word, bool, "x") is False


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "1.5"),
        (int, 1.5),
        (int, "nan"),
        (int, "x"),
        (int, ""),
        (int, True),
        (int, None),
        (float, "nan"),
        (float, "inf"),
        (float, "-inf"),
        (float, math.nan),
        (float, "1e999"),
        (float, "five"),
        (float, True),
        (float, None),
        (bool, "maybe"),
        (bool, ""),
        (bool, 2),
        (str, 3),
        (str, None),
        (float | None, "x"),
        (list[int], "1,x"),
        (list[int], 5),
        (dict, "a"),
        (int, [1]),
        (float, {"a": 1}),
    ],
)
def test_wrong_values_are_refused(hint, text):
    with pytest.raises(UsageError, match="--set x = .*expected"):
        convert(text, hint, "--set x")


@pytest.mark.parametrize(
    "value", ["inf", "-inf", "1e999", math.inf, pytest.param(10**400, id="10**400")]
)
def test_ints_beyond_all_bounds_are_refused(value):
    with pytest.raises(UsageError):
        convert(value, int, "x")


def test_large_ints_are_exact():
    assert convert("9007199254740993", int, "x") == 9007199254740993


def test_unknown_name_names_the_nearest():
    with pytest.raises(UsageError, match="There is no option 'siz'. Did you mean 'size'"):
        build(Options, {"siz": 1}, "here")


def test_field_that_is_not_an_option_cannot_be_set():
    with pytest.raises(UsageError, match="There is no option 'hidden'"):
        build(Options, {"hidden": 1}, "here")


def test_check_becomes_a_usage_error():
    with pytest.raises(UsageError, match="here: size must not be negative"):
        build(Options, {"size": "-1"}, "here")


def test_message_says_where_what_and_which_type():
    with pytest.raises(UsageError, match="method dpo: rate = 'fast': expected float"):
        build(Options, {"rate": "fast"}, "method dpo")


def test_settings_are_split_at_the_first_equals_sign():
    assert parse_settings(["a=1", " b = x=y ", "c="], "--set") == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize("pairs", [["a=1", "a=2"], ["a=1", " a =1"]])
def test_twice_is_refused(pairs):
    with pytest.raises(UsageError, match="--set a is given twice"):
        parse_settings(pairs, "--set")


@pytest.mark.parametrize("pair", ["beta", "=1", " =1", ""])
def test_not_a_setting(pair):
    with pytest.raises(UsageError, match="expected name=value"):
        parse_settings([pair], "--set")


def test_budget():
    assert parse_budget("").steps is None
    budget = parse_budget("steps=40,flops=1e12")
    assert (budget.steps, budget.flops, budget.tokens) == (40, 1e12, None)
    for text in (
        "step=1",
        "steps=0",
        "steps=-1",
        "steps=1.5",
        "flops=nan",
        "steps",
        "steps=1,steps=2",
    ):
        with pytest.raises(UsageError, match="--budget"):
            parse_budget(text)


# -- for any input ---------------------------------------------------------------------------------

ANY = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.text(max_size=4)),
    st.dictionaries(st.text(max_size=3), st.integers()),
    st.sampled_from(["nan", "1_0", "0x1", "\u0663"]),
)


def bounded(value):
    """Leave out what test_ints_beyond_all_bounds_are_refused is about."""
    try:
        return not math.isinf(float(value))
    except OverflowError:
        return False
    except (ValueError, TypeError):
        return True


quickly = settings(max_examples=150, deadline=None)


@quickly
@given(st.integers(-(2**53), 2**53))
def test_ints_round_trip(value):
    assert convert(str(value), int, "x") == value == convert(value, int, "x")


@quickly
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_round_trip(value):
    assert convert(repr(value), float, "x") == value == convert(value, float | None, "x")


@quickly
@given(st.text())
def test_text_is_kept(value):
    assert convert(value, str, "x") == value


@quickly
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1))
def test_lists_round_trip(values):
    assert convert(",".join(map(str, values)), list[int], "x") == values


@quickly
@given(ANY.filter(bounded), st.sampled_from(HINTS))
@example("0." + "1" * 5000, int)
def test_garbage_gives_a_value_of_the_type_or_a_usage_error(value, hint):
    try:
        got = convert(value, hint, "x")
    except UsageError as error:
        assert "expected" in str(error)
    else:
        kinds = {int: int, float: float, bool: bool, str: str, float | None: (float, type(None))}
        assert isinstance(got, kinds.get(hint, object))
        assert not isinstance(got, float) or math.isfinite(got)


@quickly
@given(st.dictionaries(st.sampled_from([*options_of(Options), "nosuch"]), ANY.filter(bounded)))
def test_build_gives_an_instance_or_a_usage_error(values):
    try:
        assert isinstance(build(Options, values, "here"), Options)
    except UsageError as error:
        assert str(error).startswith("here")


@quickly
@given(st.lists(st.text(max_size=8)))
def test_any_settings_parse_or_are_refused(pairs):
    try:
        assert all(name.strip() for name in parse_settings(pairs, "--set"))
    except UsageError as error:
        assert "--set" in str(error)


@pytest.mark.parametrize(
    ("asked", "steps", "epochs"), [((), 150, 1.0), (("epochs=3",), 0, 3.0), (("steps=7",), 7, 1.0)]
)
def test_who_asks_for_epochs_does_not_get_the_suites_steps(asked, steps, epochs):
    from harness.api.registry import installed
    from harness.api.resolve import Request, resolve

    spec = resolve(Request("dpo", "summarization", asked), installed())
    assert (spec.options["steps"], spec.options["epochs"]) == (steps, epochs)
    stages = resolve(
        Request("dpo", "summarization", (), (), ("reward_model.epochs=3", "sft.epochs=2")),
        installed(),
    ).stages
    assert (stages["reward_model"]["epochs"], stages["sft"]["steps"], stages["sft"]["epochs"]) == (
        3.0,
        0,
        2.0,
    )
    rounds = resolve(Request("raft", "summarization", ("epochs=3",)), installed()).options
    assert (rounds["steps"], rounds["epochs"]) == (
        6,
        3,
    )  # there steps are rounds, not what stands for epochs


def test_method_that_is_several_gets_the_entry_of_its_variant():
    from harness.api.registry import installed
    from harness.api.resolve import Request, resolve
    from harness.core.errors import UsageError

    spec = resolve(Request("rlaif", "summarization", ("optimiser=dpo",)), installed())
    assert spec.options["steps"] == 150 and spec.options["num_generations"] is None
    with pytest.raises(UsageError, match="no option of dpo"):
        resolve(
            Request("rlaif", "summarization", ("optimiser=dpo", "num_generations=2")), installed()
        )


def test_quick_shortens_a_method_no_suite_knows_of():
    from harness.api.quick import quick_method
    from harness.api.registry import installed

    quick = installed().get("suites", "summarization").quick
    assert quick_method(quick, installed().get("methods", "orpo"), "unheard_of") == {"steps": 4}
    assert quick_method(quick, installed().get("methods", "start"), "start") == {}

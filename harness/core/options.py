"""Dataclass fields as options.

Values come typed from `--set name=value`; the help text is the comment behind the field.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import math
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from .errors import UsageError, unknown
from .secrets import refuse_secrets

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option as `harness show` lists it."""

    name: str
    type: str
    default: Any
    help: str


def summary_of(cls: type) -> str:
    """Return the first paragraph of a class's docstring as one line."""
    paragraph = (inspect.getdoc(cls) or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def about(cls: type) -> str:
    """Return a class's docstring, each paragraph as one line."""
    paragraphs = (inspect.getdoc(cls) or "").strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def options_of(cls: type) -> dict[str, Option]:
    """Return the options of a dataclass by name, in order of definition, inherited ones first."""
    helps = _comments(cls)
    hints = typing.get_type_hints(cls)
    return {
        f.name: Option(f.name, _type_name(hints[f.name]), _default(f), helps.get(f.name, ""))
        for f in dataclasses.fields(cls)
        if f.init
    }


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return an instance of a dataclass; each value is checked against the type of its field."""
    known = options_of(cls)
    hints = typing.get_type_hints(cls)
    typed = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{where}: {unknown('option', name, known)}")
        typed[name] = convert(value, hints[name], f"{where}: {name}")
    try:
        instance = cls(**typed)
        check = getattr(instance, "check", None)
        if callable(check):
            check()
    except (
        ValueError,
        TypeError,
    ) as error:  # raised by `check`, or by a missing abstract method
        raise UsageError(f"{where}: {error}") from error
    return instance


def convert(value: Any, hint: Any, where: str) -> Any:
    """Return a value as the expected type: text is parsed, other values are checked."""
    choices = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    if type(None) in choices and (value is None or value in ("none", "None")):
        return None
    for choice in choices:
        try:
            return _as(value, choice)
        except (ValueError, TypeError, OverflowError):
            continue
    raise UsageError(f"{where} = {value!r}: expected {_type_name(hint)}.")


def parse_settings(pairs: typing.Iterable[str], flag: str) -> dict[str, str]:
    """Return {name: text} from `name=value` arguments; a repeated name is an error."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, sep, value = pair.partition("=")
        if not sep or not name.strip():
            raise UsageError(f"{flag} {pair!r}: expected name=value, for example {flag} beta=0.05.")
        if name.strip() in settings:
            raise UsageError(f"{flag} {name.strip()} is given twice.")
        settings[name.strip()] = value.strip()
    refuse_secrets(settings, flag)
    return settings


def _as(value: Any, kind: Any) -> Any:
    origin = typing.get_origin(kind) or kind
    if origin is bool:
        return value if isinstance(value, bool) else _boolean(value)
    if origin is int:
        return _integer(value)
    if origin is float:
        number = float(value) if not isinstance(value, bool) else _fail()
        return number if math.isfinite(number) else _fail()
    if origin in (list, tuple):
        inner = (typing.get_args(kind) or (str,))[0]
        items = _items(value, inner) if isinstance(value, str) else list(value)
        return origin(_as(item, inner) for item in items)
    if origin is str:
        return value if isinstance(value, str) else _fail()
    if origin is dict:
        table = _toml(value) if isinstance(value, str) else value
        return dict(table) if isinstance(table, Mapping) else _fail()
    raise TypeError(kind)


def _items(text: str, inner: Any) -> Any:
    """Return the items of a list written as text: tables as a TOML array, others with commas."""
    return _toml(text) if (typing.get_origin(inner) or inner) is dict else text.split(",")


def _toml(text: str) -> Any:
    """Return a TOML value written as text, such as `{pattern = "[A-D]"}`."""
    return toml_module().loads(f"value = {text}")["value"]


def toml_module() -> Any:
    """Return the module that reads TOML: Python 3.10 has none of its own."""
    try:
        import tomllib
    except ModuleNotFoundError:
        import tomli as tomllib  # type: ignore[no-redef]
    return tomllib


def _integer(value: Any) -> int:
    """Read 12, "12" or "1e3"; a fraction, a bool or an inexact large float is an error."""
    if isinstance(value, bool):
        return int(_fail())
    try:
        number = int(value) if not isinstance(value, float) else _exact(value)
    except ValueError:
        number = _exact(float(value))
    return number if abs(number) < 2**63 else int(_fail())


def _exact(number: float) -> int:
    return int(number) if abs(number) < 2**53 and number == int(number) else int(_fail())


def _boolean(value: Any) -> bool:
    word = str(value).lower()
    return (
        True if word in ("true", "yes", "1") else False if word in ("false", "no", "0") else _fail()
    )


def _fail() -> Any:
    raise ValueError


def _type_name(hint: Any) -> str:
    return (
        hint.__name__
        if isinstance(hint, type) and not typing.get_args(hint)
        else str(hint).replace("typing.", "")
    )


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return None if f.default is dataclasses.MISSING else f.default


def _comments(cls: type) -> dict[str, str]:
    """Return {field: the comment behind or above it} over the class and its bases."""
    helps: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            helps.update(_own_comments(base))
    return helps


@cache  # a study reads the same classes hundreds of times
def _own_comments(cls: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # defined in a console, for example: no source, no help
        return {}
    lines = source.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    helps = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert node.end_lineno is not None
            behind = [node.end_lineno] if node.end_lineno in comments else []
            numbers = behind or _above(lines, node.lineno)
            helps[node.target.id] = " ".join(comments[n] for n in numbers)
    return {name: text for name, text in helps.items() if text}


def _above(lines: list[str], first: int) -> list[int]:
    """Return the numbers of the comment lines directly above line `first`, numbered from 1."""
    n = first
    while n > 1 and lines[n - 2].lstrip().startswith("#"):
        n -= 1
    return list(range(n, first))

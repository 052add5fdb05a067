"""Rows of JSON text: JSON lines, an array in any layout, or an object around an array.

Text is read piece by piece, so reading needs memory for the longest row only.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from harness import UsageError

from .limits import USUAL, Limits

CHUNK = 1 << 20  # bytes read at a time
BLANK = " \t\r\n"
# the keys under which files keep their list of rows; any other key is named by the user
WRAPPERS = (
    "data",
    "rows",
    "examples",
    "instances",
    "records",
    "samples",
    "items",
    "train",
    "validation",
    "test",
)

Open = Callable[[], BinaryIO]


@dataclass(frozen=True)
class Row:
    """A row and where it stands, or the reason why it cannot be read."""

    place: str  # "row 3", counted from 1; in a file with one row per line, the third line
    value: Any
    fault: str = ""


def json_rows(name: str, opened: Open, key: str = "", limits: Limits = USUAL) -> Iterator[Row]:
    """Yield the rows of JSON text.

    Args:
        name: The file as messages name it.
        opened: Opens the file from its beginning, as plain UTF-8 bytes.
        key: If the text is one object, the key of its list of rows; empty: the key is detected.
        limits: How long a row may be.

    Raises:
        UsageError: The text is not JSON, or holds several lists and `key` names none of them.
    """
    layout = _layout(opened)
    chosen = _chosen(name, _lists(opened, limits), key) if layout == "object" else None
    if key and chosen is None:
        raise UsageError(f"{name}: it has no part {key!r}, only rows.")
    if layout == "lines" or (layout == "object" and chosen is None):
        yield from _lines(opened, limits)
        return
    with opened() as stream:
        reader = _Reader(stream, limits)
        values = reader.member(chosen) if chosen else reader.document()
        yield from _numbered(name, values, limits)


def parsed(text: str) -> Any:
    """Return the value of a JSON text; raise ValueError with the reason."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _lines(opened: Open, limits: Limits) -> Iterator[Row]:
    with opened() as stream:
        number = 0
        while line := stream.readline(limits.row_bytes + 1):
            number += 1
            if len(line) > limits.row_bytes:
                _read_to_end_of_line(stream, line)
                yield Row(f"line {number}", None, limits.too_long())
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip(BLANK)
                if text:
                    yield Row(f"row {number}", parsed(text))
            except UnicodeDecodeError as error:
                yield Row(f"line {number}", None, f"not UTF-8 text: {error.reason}")
            except ValueError as error:
                yield Row(f"line {number}", None, f"not a JSON object: {error}")


def _read_to_end_of_line(stream: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(CHUNK)


def _too_long(name: str, place: str, limits: Limits) -> str:
    return (
        f"{name}, {place}: {limits.too_long()}. Write one row to a line, or the rows as one JSON"
        " array, or set a larger max_row_mib."
    )


def _numbered(name: str, values: Iterator[Any], limits: Limits) -> Iterator[Row]:
    """Yield the values as rows; a truncated array is refused, because the beginning of its next row
    is unknown.
    """
    number = 0
    try:
        for value in values:
            number += 1
            yield Row(f"row {number}", value)
    except OverflowError as error:
        raise UsageError(_too_long(name, f"row {number + 1}", limits)) from error
    except ValueError as error:
        raise UsageError(f"{name}, row {number + 1}: not JSON: {error}.") from error


def _layout(opened: Open) -> str:
    """Return how JSON text is laid out: `lines`, `array`, or perhaps one `object` around a list."""
    with opened() as stream:
        line = b""
        while not line and (read := stream.readline(CHUNK)):
            line = read.removeprefix(codecs.BOM_UTF8).strip(BLANK.encode())
        ended = read.endswith(b"\n")
        more = ended and any(rest.strip() for rest in iter(lambda: stream.readline(CHUNK), b""))
    if line[:1] not in (b"[", b"{"):
        return "lines"
    if more and _is_json(line):  # one row per line
        return "lines"
    return "array" if line[:1] == b"[" else "object"


def _is_json(line: bytes) -> bool:
    try:
        parsed(line.decode())
    except ValueError:
        return False
    return True


def _lists(opened: Open, limits: Limits) -> list[str]:
    """Return the keys of an object's lists of objects; none if the text is not a single object.

    A truncated list under a usual key counts too, so that the message names its error and not that
    of the first line.
    """
    with opened() as stream:
        reader = _Reader(stream, limits)
        try:
            keys = [key for key, is_list in reader.members() if is_list]
            return keys if reader.at_end() else []
        except (ValueError, OverflowError):
            return [reader.inside] if reader.inside in WRAPPERS else []


def _chosen(name: str, lists: list[str], key: str) -> str | None:
    """Return the key of the list that holds the rows; None if the object is itself a row."""
    if key and lists:
        if key not in lists:
            raise UsageError(f"{name}: it has no list {key!r}; its lists are {', '.join(lists)}.")
        return key
    usual = [known for known in lists if known in WRAPPERS]
    if len(usual) > 1:
        raise UsageError(
            f"{name}: it holds the lists {', '.join(usual)}. Name the list of each part, for"
            f' example train = "{usual[0]}".'
        )
    return usual[0] if usual else None


class _Reader:
    """Reads JSON values one by one from a stream of UTF-8."""

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        self.stream, self.most = stream, limits.row_bytes
        self.decoder = json.JSONDecoder()
        self.utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.start, self.ended = "", 0, False
        self.inside = ""  # the key of the list of objects that `members` is in

    def document(self) -> Iterator[Any]:
        """Yield the elements of the array that is the whole text."""
        yield from self.elements()
        if not self.at_end():
            raise ValueError("more text follows the end of the array")

    def member(self, wanted: str) -> Iterator[Any]:
        """Yield the elements of one member of the object that is the whole text."""
        for key in self._keys():
            if key == wanted:
                yield from self.elements()
            else:
                self._pass(key)

    def members(self) -> Iterator[tuple[str, bool]]:
        """Yield each key of an object, and whether its value is a list of objects."""
        for key in self._keys():
            yield key, self._pass(key)

    def elements(self) -> Iterator[Any]:
        """Yield the elements of an array."""
        self._expect("[")
        if self._peek() == "]":
            self.start += 1
            return
        while True:
            yield self.value()
            if self._expect(",]") == "]":
                return

    def value(self) -> Any:
        """Return the next value, whatever it is."""
        self._peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.start)
            except RecursionError as error:
                raise ValueError("nested too deeply") from error
            except json.JSONDecodeError as error:
                if not self._may_go_on(error) or not self._fill():
                    raise ValueError(error.msg) from error
                continue
            if end == len(self.text) and self._fill():  # the number may continue
                continue
            self.start = end
            return value

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Return whether the error may be due to a value that is not read to its end yet."""
        return "Unterminated" in error.msg or error.pos > len(self.text) - 32

    def at_end(self) -> bool:
        """Return whether only blanks remain."""
        return not self._peek()

    def _keys(self) -> Iterator[str]:
        self._expect("{")
        if self._peek() == "}":
            self.start += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise ValueError("a key that is not text")
            self._expect(":")
            yield key
            if self._expect(",}") == "}":
                return

    def _pass(self, key: str) -> bool:
        """Skip a value; return whether it is a list of objects."""
        if self._peek() != "[":
            self.value()
            return False
        objects = 0
        for number, value in enumerate(self.elements(), 1):
            objects += isinstance(value, dict)
            self.inside = key if objects == number else ""
        self.inside, complete = "", self.inside == key
        return complete

    def _expect(self, marks: str) -> str:
        mark = self._peek()
        if not mark or mark not in marks:
            there = repr(mark) if mark else "the end of the file"
            raise ValueError(f"expected {' or '.join(map(repr, marks))}, found {there}")
        self.start += 1
        return mark

    def _peek(self) -> str:
        """Return the next character that is not blank; empty at the end of the text."""
        while True:
            rest = self.text[self.start : self.start + 64].lstrip(BLANK)
            if rest:
                self.start = self.text.index(rest[0], self.start)
                return rest[0]
            self.start = min(len(self.text), self.start + 64)
            if self.start == len(self.text) and not self._fill():
                return ""

    def _fill(self) -> bool:
        """Double the buffer by reading more; return whether there was more to read."""
        if self.ended:
            return False
        self.text, self.start = self.text[self.start :], 0
        if len(self.text) > self.most:
            raise OverflowError
        read = self.stream.read(max(CHUNK, len(self.text)))
        self.ended = not read
        self.text += self.utf8.decode(read, final=self.ended)
        return True

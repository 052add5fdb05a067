"""Plain values as JSON, between a trusted and an untrusted process.

Pickle would run code of the other process. Here only built-in types are sent, and a value is
rebuilt from its type's name and its parts. Subclasses arrive as their built-in base, so that no
`__eq__` of a candidate ever runs in the tests' process.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

LONGEST = 4 << 20  # bytes of one message
MOST = 100_000  # items taken from an iterator


def pack(value: Any) -> Any:
    """Return a plain value in a form for JSON; raise TypeError for any other value."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, dict):
        return {"dict": [[pack(k), pack(v)] for k, v in dict.items(value)]}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item) for item in kind.__iter__(value)]}
    if isinstance(value, (range, Iterator)) or type(value).__name__ in VIEWS:
        return {"list": [pack(item) for item in islice(value, MOST)]}
    raise TypeError(f"a value of type {type(value).__name__} is not plain data")


VIEWS = ("dict_keys", "dict_values", "dict_items")
MAKERS: Mapping[str, Any] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*parts),
    "dict": lambda items: {unpack(k): unpack(v) for k, v in items},
    "list": lambda items: [unpack(item) for item in items],
    "tuple": lambda items: tuple(unpack(item) for item in items),
    "set": lambda items: {unpack(item) for item in items},
    "frozenset": lambda items: frozenset(unpack(item) for item in items),
}


def unpack(data: Any) -> Any:
    """Return the value that `pack` was given; raise ValueError for anything else."""
    if data is None or type(data) in (bool, float, str):
        return data
    if type(data) is dict and len(data) == 1:
        ((kind, parts),) = data.items()
        if kind in MAKERS:
            return MAKERS[kind](parts)
    raise ValueError("this is not a packed value")


def send(channel: Any, message: Any) -> None:
    """Send one JSON message over a socket, after its length in 4 bytes."""
    data = json.dumps(message).encode()
    if len(data) > LONGEST:
        raise ValueError(f"a message of {len(data)} bytes; at most {LONGEST} are sent")
    channel.sendall(struct.pack("=I", len(data)) + data)


def receive(channel: Any) -> Any:
    """Return the next message of a socket, None at its end; raise ValueError if it is malformed."""
    head = _exactly(channel, 4)
    if head is None:
        return None
    (size,) = struct.unpack("=I", head)
    if size > LONGEST:
        raise ValueError(f"a message of {size} bytes; at most {LONGEST} are read")
    data = _exactly(channel, size)
    if data is None:
        return None
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None


def _exactly(channel: Any, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        part = channel.recv(min(1 << 16, size - len(data)))
        if not part:
            return None
        data += part
    return data

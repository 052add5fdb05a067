"""The code that is given before a function's body."""

from __future__ import annotations


def head_alone(head: str) -> str:
    """Return a function's head as code that compiles: a head without a body gets one."""
    for end in ("", "\n    pass\n"):
        try:
            compile(head + end, "<head>", "exec")
            return head + end
        except SyntaxError:
            continue
    return ""

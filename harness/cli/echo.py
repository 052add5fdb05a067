"""What the commands print: text of users and records is made visible on the way."""

from __future__ import annotations

from typing import Any

import click

from ..core.plain_text import visible


def echo(text: object = "", err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print text, in a style of `click.style`, without terminal escapes of its own."""
    safe = visible(str(text))
    click.echo(click.style(safe, **style) if style else safe, err=err, nl=nl)


def say(message: str) -> None:
    """Print a message on standard error."""
    echo(message, err=True)


def warn(message: str) -> None:
    """Print a warning, in yellow, on standard error."""
    echo(message, fg="yellow", err=True)

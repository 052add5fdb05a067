"""What every report says of itself - commit, versions, processor, command - and the notes by hand
that it keeps.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
MARK = (
    "<!-- Below: notes by hand. They are kept when the table is made again: check whether they"
    " still hold. -->"
)
NAMES = {"trl": "TRL"}


def commit(root: Path = HERE.parent) -> str:
    """Return the commit of the harness in `root`; a plus says that files below harness/ or plugins/
    differ.
    """
    git = ["git", "-C", str(root)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short=7", "HEAD"],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "harness", "plugins"],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
    except FileNotFoundError:  # no git here
        return "unknown"
    return (name.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def versions(*packages: str) -> str:
    """Return the versions of packages in this environment, as a report prints them."""
    return ", ".join(f"{NAMES.get(name, name)} {installed(name)}" for name in packages)


def installed(package: str) -> str:
    """Return a package's version, "none" where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def pinned(file: str, package: str = "trl") -> str:
    """Return the version of a package that a file of requirements beside this one asks for."""
    lines = (HERE / file).read_text(encoding="utf-8").splitlines()
    return next(line.split("==")[1].strip() for line in lines if line.startswith(f"{package}=="))


def processor() -> str:
    """Return what this machine's processor is called."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next(
        (x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine()
    )


def command(script: str) -> str:
    """Return the command line as a reader elsewhere would type it: without the paths of this
    machine.
    """
    line = re.sub(
        r"(--ppo-python[ =])\S+",
        r"\1OTHER/bin/python",
        " ".join([f"benchmarks/{script}", *sys.argv[1:]]),
    )
    return "python " + re.sub(r"(?<=[ =])/[^ ]+", "PATH", line)


def write(file: Path, lines: list[str]) -> None:
    """Write a report in the place of an earlier one, whose notes below the mark stay."""
    _, mark, notes = (file.read_text(encoding="utf-8") if file.exists() else "").partition(MARK)
    text = "\n".join(lines).rstrip() + "\n"
    file.write_text(text + (f"\n{mark}{notes}" if mark else ""), encoding="utf-8", newline="\n")

"""The Hugging Face hub without a network: its local cache is used at once, without retries."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

PATIENCE = 5.0  # seconds to wait for the hub to answer a connection
OFFLINE = "HF_HUB_OFFLINE"


def offline(name: str | Path) -> bool:
    """Return whether a name is a hub id and the hub cannot be reached; if so, have the libraries
    take what is in the local cache.

    A folder, and text that can be no hub id, is not asked about. The hub is tried once a process.
    """
    if Path(name).exists() or not _is_id(str(name)):
        return False
    if reachable():
        return False
    os.environ[OFFLINE] = "1"  # for libraries that are not imported yet, and for child processes
    for module, variables in _SWITCHES.items():
        for variable in variables if module in sys.modules else ():
            setattr(sys.modules[module], variable, True)
    return True


def advice(name: str | Path, kind: str = "model") -> str:
    """Return what to do where a hub id is not in the cache and the hub cannot be reached.

    Args:
        name: The hub id.
        kind: model or dataset.
    """
    download = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
    return (
        f"There is no folder {name}, the hub {endpoint()} cannot be reached, and its local cache"
        f" ({cache_folder()}) does not hold all of it. Name a folder, or run `{download}` where"
        " there is a network and set HF_HOME to that cache."
    )


def snapshot(name: str, revision: str = "") -> Path | None:
    """Return the folder of a data set's files in the hub's local cache, or None.

    Args:
        name: The id of the data set.
        revision: A commit, branch or tag; empty for the main branch.
    """
    from huggingface_hub import snapshot_download

    try:
        local = snapshot_download(
            name, repo_type="dataset", revision=revision or None, local_files_only=True
        )
    except (OSError, ValueError):  # not there, or not whole
        return None
    return Path(local)


def endpoint() -> str:
    """Return the address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def cache_folder() -> str:
    """Return the folder of the hub's local cache."""
    home = os.environ.get("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
    return os.environ.get("HF_HUB_CACHE", str(Path(home, "hub")))


@cache
def reachable() -> bool:
    """Return whether the hub takes a connection; a proxy is trusted to reach it."""
    if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    address = urlsplit(endpoint())
    if getproxies().get(address.scheme):
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=PATIENCE):
            return True
    except OSError:
        return False


_SWITCHES = {  # environment variables that the libraries read on import
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
}


def _is_id(name: str) -> bool:
    """Return whether text may be a hub id: NAME or ORGANISATION/NAME."""
    parts = name.split("/")
    return len(parts) <= 2 and all(parts) and not name.startswith((".", "~"))

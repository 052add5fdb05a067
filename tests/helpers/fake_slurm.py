"""Programs that answer like Slurm's on one machine: sbatch, squeue, scancel, srun and scontrol.

Jobs are real processes. Files in a folder hold the state: `queue/ID_INDEX` is a line of squeue; a
file `cancel/ID_INDEX` or `preempt/ID_INDEX` asks for that; while `down` exists squeue fails, and
while `full` exists sbatch does.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

SQUEUE = """#!/bin/sh
if [ -e {root}/down ]; then echo "Unable to contact controller" >&2; exit 1; fi
cat {root}/queue/* 2>/dev/null
exit 0
"""
SCANCEL = '#!/bin/sh\nfor job in "$@"; do touch {root}/cancel/"$job"; done\n'
SCONTROL = "#!/bin/sh\necho 127.0.0.1\n"
SRUN = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
if [ -z "$SLURM_JOB_ID" ]; then exec "$@"; fi
node=1
while [ $node -lt $SLURM_NNODES ]; do SLURM_NODEID=$node "$@" & node=$((node + 1)); done
SLURM_NODEID=0 "$@"; code=$?
wait
exit $code
"""
SBATCH = '#!/bin/sh\nexec {python} {file} {root} "$@"\n'
PLACES = 2  # jobs that run at the same time


def install(root: Path) -> Path:
    """Write the programs below a folder; return the folder for PATH."""
    for name in ("queue", "cancel", "preempt", "calls", "bin"):
        (root / name).mkdir(parents=True)
    programs = {"squeue": SQUEUE, "scancel": SCANCEL, "scontrol": SCONTROL, "srun": SRUN}
    for name, text in {**programs, "sbatch": SBATCH}.items():
        file = root / "bin" / name
        file.write_text(
            text.format(root=root, python=sys.executable, file=__file__), encoding="utf-8"
        )
        file.chmod(0o755)
    return root / "bin"


def states(root: Path) -> dict[str, str]:
    """Return {ID_INDEX: state}."""
    return {
        f.name: f.read_text(encoding="utf-8").split("|")[2]
        for f in sorted((root / "queue").glob("[0-9]*"))
    }


def submit(root: Path, script: Path) -> None:
    """Be sbatch: queue an array and leave a process behind that runs it."""
    if (root / "full").exists():
        sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit")
    number = str(100 + len(list((root / "calls").iterdir())))
    (root / "calls" / number).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    options = dict(
        re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    )
    last = int(options["array"].partition("%")[0].split("-")[1])
    array = Array(root, number, script, options, last + 1)
    for index in range(last + 1):
        array.put(index, "PENDING")
    print(number, flush=True)
    if os.fork() == 0:
        os.setsid()
        for stream in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        array.serve()
        os._exit(0)


class Array:
    """A job array."""

    def __init__(
        self, root: Path, number: str, script: Path, options: dict[str, str], size: int
    ) -> None:
        self.root, self.number, self.script, self.options = root, number, script, options
        self.left, self.running = list(range(size)), dict[int, subprocess.Popen[bytes]]()

    def put(self, index: int, state: str) -> None:
        """Set a state."""
        name = f"{self.number}_{index}"
        line = f"{self.options['job-name']}|{index}|{state}|{self.number}\n"
        hidden = self.root / f".{name}"
        hidden.write_text(line, encoding="utf-8")
        hidden.replace(self.root / "queue" / name)

    def serve(self) -> None:
        """Run the elements as places are free, until all have ended."""
        while self.left or self.running:
            self.obey()
            for index, child in list(self.running.items()):
                if child.poll() is not None:
                    del self.running[index]
                    self.put(index, "COMPLETED" if child.returncode == 0 else "FAILED")
            ready = self.ready()
            if ready is False:
                for index in self.left:
                    self.put(index, "CANCELLED")
                self.left = []
            busy = list(states(self.root).values()).count("RUNNING")
            if ready and self.left and busy < PLACES:
                self.begin(self.left.pop(0))
            time.sleep(0.05)

    def ready(self) -> bool | None:
        """Return whether what this waits for is done; False where it never will be."""
        needed = self.options.get("dependency", "").removeprefix("afterok:")
        found = [states(self.root)[name] for name in needed.split(":") if name]
        if any(state in ("FAILED", "CANCELLED") for state in found):
            return False
        return True if all(state == "COMPLETED" for state in found) else None

    def begin(self, index: int) -> None:
        """Start an element."""
        environment = {
            **os.environ,
            "SLURM_ARRAY_TASK_ID": str(index),
            "SLURM_JOB_ID": self.number,
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NNODES": self.options["nodes"],
            "SLURM_CPUS_PER_TASK": self.options["cpus-per-task"],
        }
        self.put(index, "RUNNING")
        self.running[index] = subprocess.Popen(
            ["sh", str(self.script)], env=environment, start_new_session=True
        )

    def obey(self) -> None:
        """Cancel and preempt what is asked for."""
        for what, state in (("cancel", "CANCELLED"), ("preempt", "PENDING")):
            for file in (self.root / what).glob(f"{self.number}_*"):
                index = int(file.name.partition("_")[2])
                if what == "preempt" and index not in self.running:
                    continue
                file.unlink()
                self.end(index)
                self.left = [other for other in self.left if other != index]
                self.left += [index] if what == "preempt" else []
                self.put(index, state)

    def end(self, index: int) -> None:
        """Ask all processes of an element to end, and then make them."""
        child = self.running.pop(index, None)
        if child is not None:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


if __name__ == "__main__":
    submit(Path(sys.argv[1]), Path(sys.argv[-1]))

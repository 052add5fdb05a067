"""A real Slurm of one machine, from Debian's packages slurmctld, slurmd, slurm-client and munge.

Its daemons are plain processes with files of their own: nothing of the system is changed.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun", "scontrol")
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=10
MpiDefault=none
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Slurm:
    """A cluster of this machine; `env` is what its commands need."""

    def __init__(self, root: Path, cpus: int = 2) -> None:
        self.root = root
        for name in ("state", "spool"):
            (root / name).mkdir(parents=True)
        (root / "munge.key").write_bytes(os.urandom(1024))
        (root / "munge.key").chmod(0o600)
        root.chmod(0o755)
        (root / "slurm.conf").write_text(
            CONF.format(
                host=socket.gethostname().partition(".")[0],
                ports=free_ports(2),
                user=getpass.getuser(),
                root=root,
                cpus=cpus,
            )
        )
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self.env = {**os.environ, "PATH": path, "SLURM_CONF": str(root / "slurm.conf")}
        self.daemons: list[subprocess.Popen[bytes]] = []
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        options = [f"--{option}={root}/munge.{suffix}" for option, suffix in files.items()]
        self._start("munged", "--foreground", "--force", f"--seed-file={root}/seed", *options)
        self._wait((root / "munge.socket").exists, "munged")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        self._wait(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "a node")

    def _start(self, *command: str) -> None:
        with (self.root / f"{command[0]}.out").open("wb") as out:
            self.daemons.append(
                subprocess.Popen(command, env=self.env, stdout=out, stderr=out, cwd=self.root)
            )

    def _wait(self, what: object, name: str) -> None:
        deadline = time.monotonic() + 90
        while not what():  # type: ignore[operator]
            if time.monotonic() > deadline:
                logs = [f.read_text(errors="replace")[-800:] for f in self.root.glob("*.[ol]*")]
                self.stop()
                raise RuntimeError(f"{name} of Slurm did not start: {logs}")
            time.sleep(0.5)

    def ask(self, *command: str) -> str:
        """Return what a command prints."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        return done.stdout

    def queue(self, *options: str) -> list[str]:
        """Return the lines of squeue: `ID STATE`."""
        return self.ask("squeue", "-h", "-r", "-o", "%i %T", *options).splitlines()

    def release(self) -> None:
        """Let preempted jobs start at once: Slurm holds them for two minutes."""
        for line in self.queue("-t", "PENDING", "-p", "low"):
            self.ask("scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now")

    def stop(self) -> None:
        """Cancel the remaining jobs, and end the daemons."""
        self.ask("scancel", "--user", getpass.getuser())
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports

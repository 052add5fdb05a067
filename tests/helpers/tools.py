"""Shared by test files: harness commands in child processes, a small suite as a plugin file,
made-up records.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import harness
from harness.core.meter import Cost
from harness.core.records import write_sealed
from harness.core.run_folder import SCHEMA, write_rows

ROOT = Path(harness.__file__).parent.parent
ENV = {
    "OMP_NUM_THREADS": "1",
    "HARNESS_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "200",
    "TOKENIZERS_PARALLELISM": "false",
}

SMALL_SUITE = '''
"""Summarization with few prompts: a run from nothing takes seconds."""

from dataclasses import dataclass

from harness import Prompt, hookimpl
from harness.api.contracts import Verifier
from harness_suites.summarization import Summarization

from harness_suites.embedded import GROUPS

ON_POLICY = (
    *("grpo", "rloo", "reinforce_pp", "online_dpo", "raft", "rlvr", "rlaif", "rrhf"),
    *("gdpo", "maxrl"),
    *GROUPS,
)


class Brief(Verifier):
    """Right is what has at most fourteen words: looks at no document."""

    name = "brief"

    def verify(self, prompts, completions, golds, ended):
        return [float(len(text.split()) <= 14) for text in completions]


@dataclass
class Small(Summarization):
    """Two hundred of everything, and a verifier."""

    name = "small"
    quick = {
        **Summarization.quick, "stage.sft": {"steps": 12, "batch_size": 16},
        "stage.preferences": {"prompts": 60},
        "stage.reward_model": {"epochs": 1, "batch_size": 8}, "stage.evaluation": {"prompts": 24},
        "ppo": {"steps": 4, "batch_size": 8, "minibatch_size": 8},
        "dpo": {"steps": 6, "batch_size": 8},
        "*": {"steps": 3, "batch_size": 8},
        **dict.fromkeys(ON_POLICY, {"steps": 2, "batch_size": 8}),
    }

    def make_verifier(self):
        return Brief()

    def prompts(self, split):
        return [Prompt(f"{split}/{i}", self.document(f"{split}/{i}").prompt) for i in range(200)]


@hookimpl
def register_suites(register):
    register(Small)
'''

# Imports everything once, then forks one child per command: a command costs no imports, and code
# that is edited while the tests run does not change between two of them. Nothing is run in this
# process itself, so forking it is safe.
SPAWNER = """
import gc, json, os, signal, sys, traceback
import accelerate, datasets, evaluate, pandas, pyarrow.parquet, torch
import rich.console, rich.panel, rich.table
from rouge_score import rouge_scorer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama
import harness.evaluation, harness.evaluation.metrics, harness.cli.display
import harness.report.tables.tables, harness.experiments.run, harness.experiments.study.work
import harness.evaluation.evaluate, harness.training.stages.stages, harness.training.trainer
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from harness.cli.app import main
from harness.api.registry import installed
from harness.core.digests import code_digest
from harness.core.fault_points import take_fault
torch.set_num_threads(1)
installed(), code_digest("policy"), code_digest("evaluation")
get_checkpoint_conversion_mapping("llama")  # builds the table of all architectures
gc.collect(), gc.freeze()  # a child's collector does not look at what all of them share
print("ready", flush=True)

def child(asked):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in enumerate((os.devnull, asked["out"], asked["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    os.environ.update(asked["env"])
    take_fault()
    os.chdir(asked["cwd"])
    sys.argv = ["harness", *asked["args"]]
    code = 1
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        child(json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        """Both streams."""
        return self.out + self.err


@cache
def scratch() -> Path:
    """A folder for the whole session."""
    folder = Path(tempfile.mkdtemp(prefix="harness-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def fresh(name: str = "folder") -> Path:
    """A new folder for the whole session."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=scratch()))


class Started:
    """A command under way: `pid`, and `finish()`."""

    def __init__(self, spawner: subprocess.Popen[str], asked: dict[str, Any]) -> None:
        self.begun, self.asked, self.spawner = time.monotonic(), asked, spawner
        assert spawner.stdin is not None
        spawner.stdin.write(json.dumps(asked) + "\n")
        spawner.stdin.flush()
        self.pid = self._number()

    def _number(self) -> int:
        assert self.spawner.stdout is not None
        return int(self.spawner.stdout.readline())

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return (
            Path(self.asked["err"]).read_text(encoding="utf-8")
            if Path(self.asked["err"]).exists()
            else ""
        )

    def finish(self) -> Done:
        """Wait for the end."""
        code = self._number()
        return Done(
            code,
            Path(self.asked["out"]).read_text(encoding="utf-8"),
            self.err,
            time.monotonic() - self.begun,
        )


@cache
def spawner() -> subprocess.Popen[str]:
    """The process that forks commands, started when first needed."""
    child = subprocess.Popen(
        [sys.executable, "-c", SPAWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENV},
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "ready\n", "the spawner did not start"
    atexit.register(lambda: (child.stdin.close(), child.wait(60)))  # type: ignore[union-attr]
    return child


def start(*args: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Started:
    """Start a harness command in a forked child."""
    where = fresh("command")
    asked = {"args": [str(a) for a in args], "env": env or {}, "cwd": str(cwd or where)}
    return Started(spawner(), asked | {"out": str(where / "out"), "err": str(where / "err")})


def command(*args: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
    """Run a harness command in a forked child."""
    return start(*args, env=env, cwd=cwd).finish()


def process(*args: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
    """Run a harness command in a Python process of its own."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "harness", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, **ENV, **(env or {})},
        cwd=cwd or scratch(),
        encoding="utf-8",
    )
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - begun)


def launched(*args: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a Python module or script in two processes; a hang ends in subprocess.TimeoutExpired.

    On CPU `accelerate launch` starts but one.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, **ENV},
        timeout=timeout,
        encoding="utf-8",
    )


@cache
def small_suite() -> Path:
    """The plugin file of the suite `small`."""
    file = scratch() / "small_suite.py"
    file.write_text(SMALL_SUITE, encoding="utf-8")
    return file


@cache
def results() -> Path:
    """The results folder that the session's runs share."""
    return fresh("results")


def on_small(method: str, *more: object, results: Path) -> list[object]:
    """The arguments of a quick run on the suite `small`."""
    return [
        "run",
        "-m",
        method,
        "-s",
        "small",
        "--quick",
        "-p",
        small_suite(),
        "--results",
        results,
        *more,
    ]


def only_run(results: Path, suite: str, method: str) -> Path:
    """The folder of the only run of a method."""
    (folder,) = (results / "runs" / suite / method).iterdir()
    return folder


@cache
def finished(method: str, suite: str = "small") -> Path:
    """The folder of an uninterrupted quick run with the defaults, made once."""
    args = (
        on_small(method, results=results())
        if suite == "small"
        else ["run", "-m", method, "-s", suite, "--quick", "--results", results()]
    )
    done = command(*args)
    assert done.code == 0, done.text
    return only_run(results(), suite, method)


def with_shared_stages(name: str) -> Path:
    """A results folder with the stages that a run of dpo on `small` shares with other methods.

    Neither a policy nor a cache (pool, reference log-probabilities) is among them.
    """
    where = fresh(name)
    pins = json.loads((finished("dpo") / "result.json").read_text(encoding="utf-8"))["pins"]
    stages = ("sft", "preferences", "reward_model", "baseline_answers")
    for artifact, pin in pins.items():
        if pin["kind"] in stages:
            shutil.copytree(results() / "artifacts" / artifact, where / "artifacts" / artifact)
    return where


def outputs(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes in every repetition of a run."""
    names = ("metrics.jsonl", "rollouts.jsonl", "samples.jsonl", "policy/model.safetensors")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def plugin(folder: Path, name: str, source: str) -> Path:
    """Write a plugin file."""
    file = folder / f"{name}.py"
    file.write_text(source, encoding="utf-8")
    return file


# -- made-up records -------------------------------------------------------------------------------

GROUND = {
    "start_checkpoint": "aa",
    "preferences": "bb",
    "evaluation_prompts": "cc",
    "judge": "gold/1",
}


def estimate(mean: float, half: float = 0.05) -> dict[str, float]:
    """A mean with its interval."""
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 64}


def record(method: str = "dpo", seed: int = 0, win: float = 0.6, **more: Any) -> dict[str, Any]:
    """A plausible result.json."""
    cost = asdict(
        Cost(
            seconds=12.5,
            cpu_seconds=11.0,
            flops=3e12,
            tokens_generated=1000,
            tokens_trained=2500,
            peak_memory=2**29,
        )
    )
    evaluation = {
        "prompts": 64,
        "split": "test",
        "temperature": 1.0,
        "win_rate": estimate(win),
        "gold": estimate(1.25),
        "proxy": estimate(0.75),
        "kl": estimate(5.123456789),
        "kl_estimator": "rao-blackwell",
        "length": estimate(14.5),
        "eos_rate": 0.99,
        "distinct": 0.98,
        "baseline_gold": 1.0,
        "baseline_proxy": 0.0,
        "baseline_length": 13.0,
        "inference": {
            "flops_per_answer": 6e7,
            "tokens_per_answer": 14.5,
            "reward_queries_per_answer": 0.0,
        },
    }
    return {
        "schema": SCHEMA,
        "status": "finished",
        "method": method,
        "suite": "toy",
        "seed": seed,
        "recipe": f"{method}-on-toy",
        "paper": "",
        "options": {"beta": 0.1, "epochs": 1.0},
        "evaluation": evaluation,
        "ground": dict(GROUND),
        "artifacts": {},
        "finished_at": "2026-01-01T00:00:00Z",
        "cost": {
            "method": cost,
            "models": {"policy": {"parameters": 300000, "bytes": 1200000}},
            "labels": 720,
            "ai_labels": 0,
            "shared_total": asdict(Cost(seconds=7.0, flops=1e12)),
        },
    } | more


def failure(
    method: str = "dpo",
    seed: int = 0,
    why: str = "The loss is nan at optimiser step 3.",
    **more: Any,
) -> dict:
    """A plausible failure.json."""
    return {
        "schema": SCHEMA,
        "status": "diverged",
        "failure": why,
        "method": method,
        "suite": "toy",
        "seed": seed,
        "recipe": f"{method}-on-toy",
        "options": {"beta": 0.1, "epochs": 1.0},
    } | more


def put(results: Path, *records: dict[str, Any]) -> Path:
    """Write records below a results folder, each in a run folder of its own."""
    for r in records:
        parent = results / "runs" / r["suite"] / r["method"]
        number = len(list(parent.iterdir())) if parent.exists() else 0
        folder = parent / f"seed{r['seed']}-{number:012d}"
        folder.mkdir(parents=True)
        write_sealed(folder / ("failure.json" if "failure" in r else "result.json"), r)
        if "failure" not in r:
            write_rows(folder / "samples.jsonl", samples(r))
            write_sealed(
                folder / "spec.json", {"options": r["options"], "stages": {}, "budget": {}}
            )
            versions = {"torch": "2.13.0", "transformers": "5.23.0"}
            write_sealed(
                folder / "provenance.json",
                {"versions": versions, "code": {"harness": "ab", "method": "cd"}},
            )
    return results


def samples(r: dict[str, Any]) -> list[dict[str, Any]]:
    """Answers whose figures have the means of a record; other ones for each seed."""
    told, n = r["evaluation"], r["evaluation"]["prompts"]
    rows = []
    for i in range(n):
        sign = 1 if (i + r["seed"]) % 4 < 2 else -1
        win = told["win_rate"]["mean"]
        row = {
            "prompt_id": f"test/{i}",
            "prompt": f"prompt {i}",
            "answer": "word " * (i % 5 + 1),
            "ended": True,
        }
        row |= {
            "win": win + sign * min(win, 1 - win),
            "baseline": "some words",
            "baseline_gold": told["baseline_gold"],
        }
        rows.append(
            row
            | {
                f: told[f]["mean"] + sign * 0.5
                for f in ("gold", "proxy", "kl", "length")
                if f in told
            }
        )
    return rows

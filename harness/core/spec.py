"""RunSpec: a run as plain values. The fingerprint covers everything that decides its results;
`execution` holds how it is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .data import Budget
from .digests import digest_of
from .errors import UsageError, unknown
from .execution import Execution
from .options import build, convert, options_of, parse_settings
from .settings import STAGES

START_MODEL, START_SFT = "model", "sft"
FLOAT32, BFLOAT16, NF4 = "float32", "bfloat16", "nf4"
WEIGHTS = (FLOAT32, BFLOAT16, NF4)  # dtypes of weights in memory
# parts of `code` that decide the evaluation alone
EVALUATION_CODE = ("judge", "judge_data", "against", "evaluation", "tasks")
# what an evaluation runs beside the suite: it changes neither a win-rate nor a row of a table
TASK_OPTIONS = ("tasks", "task_data", "task_documents", "task_chat")
STARTS = (START_MODEL, START_SFT)
START = "start"  # the method that trains nothing: a second draw from the start checkpoint
FORMER_METHODS = {"sft": START}  # former name of a method: its name now
SAVED_KINDS, SAVED_DTYPES = ("auto", "policy", "adapter", "none"), ("auto", FLOAT32, BFLOAT16)


@dataclass(frozen=True)
class RunSpec:
    """One run: plain values only, so that it can be written down, compared and run again."""

    method: str
    suite: str  # a registered name, or the path of a suite file
    options: Mapping[str, Any]  # of the method, every one of them
    suite_options: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    # the method's: data order, rollouts, fresh heads, the evaluation's draws from the policy
    seed: int = 0
    # of all that methods share: data, SFT, preferences, reward model, reference answers
    shared_seed: int = 0
    model: str | None = None
    # the start checkpoint. model: the base model itself; sft: the base model after the SFT stage
    start: str = START_SFT
    # the model that KL is measured to and that methods compare with; None: the start checkpoint
    reference: str | None = None
    # a classifier that scores answers in place of the trained reward model; None: the trained one
    reward_model: str | None = None
    budget: Budget = field(default_factory=Budget)
    engine: str = "hf"
    engine_options: Mapping[str, Any] = field(default_factory=dict)  # every one of them
    judge: str | None = None  # None: the suite's
    judge_options: Mapping[str, Any] = field(default_factory=dict)  # every one of them
    labeller: str | None = None  # None: the suite's
    # of the labeller the method learns from
    labeller_options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"  # of forward passes
    # in memory; trained ones in bfloat16 have float32 copies, and those in nf4 are never trained
    weights: str = "float32"
    # compute a prompt once for its completions, where the model can; it decides the counted FLOPs
    prompt_sharing: bool = True
    snapshots: int = 0  # policies kept along the way and evaluated afterwards
    # the saved form of the policy: the whole model, its adapter, none, or auto. It changes no
    # result
    save: str = "auto"
    # of the weights that are kept: as they are (auto), or rounded before the policy is evaluated
    save_dtype: str = "auto"
    quick: bool = False
    # the method's options that were asked for: what tells a table's rows apart
    asked: tuple[str, ...] = ()
    # digests of the harness, the suite's and the method's files
    code: Mapping[str, str] = field(default_factory=dict)
    suite_name: str = ""
    suite_kind: str = ""  # the registered suite that a suite file configures; empty: `suite` itself
    execution: Execution = field(default_factory=Execution)  # in no name: see execution.py

    def fingerprint(self) -> str:
        """Return 12 hex digits that change when anything that decides the results changes, be it
        an option or a file.
        """
        return self._digest(without={"suite", "asked", "save"})

    def training_fingerprint(self) -> str:
        """Return a fingerprint of everything that decides the trained policy: no judge, no
        evaluation.
        """
        values = self._values(without={"suite", "asked", "judge", "judge_options", "save"})
        values["stages"] = {k: v for k, v in values["stages"].items() if k != "evaluation"}
        values["code"] = {k: v for k, v in values["code"].items() if k not in EVALUATION_CODE}
        return digest_of(values)[:12]

    def recipe(self, any_ground: bool = False) -> str:
        """Return a fingerprint of everything but the seed and the code: the runs of one row of a
        table share it.

        Args:
            any_ground: Leave out the shared seed too, for rows of several grounds.
        """
        without = {"suite", "asked", "seed", "code", "snapshots", "save"}
        return self._digest(without | ({"shared_seed"} if any_ground else set()))

    def _digest(self, without: set[str]) -> str:
        return digest_of(self._values(without))[:12]

    def _values(self, without: set[str]) -> dict[str, Any]:
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in without}
        values.pop("execution")
        if not values.get("judge_options", True):
            values.pop("judge_options")  # the names of runs without any stay as they were
        if not values.get("engine_options", True):
            values.pop("engine_options")  # likewise
        if not values["reward_model"]:
            values.pop("reward_model")  # likewise
        elif scorer := self.code.get("reward_model"):  # its contents are in a name, not its place
            values["reward_model"] = scorer
        if against := self.code.get("against"):  # its place is in no name, its contents are
            values["stages"]["evaluation"]["against"] = against
        for (
            name
        ) in TASK_OPTIONS:  # their digest is in `code`; without tasks names stay as they were
            values["stages"].get("evaluation", {}).pop(name, None)
        values["suite_options"].pop("folder", None)  # contents are in `code`, their place is not
        return values

    @property
    def folder(self) -> Path:
        """Return where the run lives below the results folder."""
        return Path("runs", self.suite_name, self.method, f"seed{self.seed}-{self.fingerprint()}")


def spec_from(values: Mapping[str, Any]) -> RunSpec:
    """Return the RunSpec from the JSON of its `dataclasses.asdict`."""
    typed = {
        "budget": Budget(**values["budget"]),
        "asked": tuple(values["asked"]),
        "execution": Execution(**values["execution"]),
    }
    return RunSpec(**{**values, **typed})


def saved_kind(spec: RunSpec) -> str:
    """Return the saved form of the policy: policy, adapter or none."""
    if spec.save != "auto":
        return spec.save
    return "adapter" if spec.options.get("lora_rank") else "policy"


def check_save(spec: RunSpec) -> None:
    """Raise UsageError for a spec with a `save` or `save_dtype` that cannot be carried out."""
    if spec.save not in SAVED_KINDS:
        raise UsageError(f"--save {spec.save}: expected one of {', '.join(SAVED_KINDS)}.")
    if spec.save_dtype not in SAVED_DTYPES:
        known = ", ".join(SAVED_DTYPES)
        raise UsageError(f"--save-dtype {spec.save_dtype}: expected one of {known}.")
    if spec.save == "adapter" and not spec.options.get("lora_rank"):
        raise UsageError(
            "--save adapter: this run trains all weights, so there is no adapter. Use --save"
            " policy, or train one with --set lora_rank=16."
        )


def stage_options(spec: RunSpec, stage: str) -> Any:
    """Return the options of a stage as its dataclass."""
    return build(STAGES[stage], spec.stages[stage], f"stage {stage}")


def compute_dtype(dtype: str | None, weights: str) -> str:
    """Return the dtype of forward passes; None follows the weights.

    Raises:
        UsageError: The two do not go together.
    """
    if dtype not in (None, FLOAT32, BFLOAT16):
        raise UsageError(f"--dtype {dtype}: expected {FLOAT32} or {BFLOAT16}.")
    if weights not in WEIGHTS:
        raise UsageError(f"--weights {weights}: expected one of {', '.join(WEIGHTS)}.")
    if weights == BFLOAT16 and dtype == FLOAT32:
        raise UsageError(
            f"--weights {weights} --dtype {dtype}: weights in bfloat16 compute in bfloat16. Leave"
            " --dtype out, or use --weights float32."
        )
    return dtype or (FLOAT32 if weights == FLOAT32 else BFLOAT16)


def parse_budget(text: str) -> Budget:
    """Return a Budget from `steps=40,flops=1e12`."""
    values = parse_settings([part for part in text.split(",") if part], "--budget")
    known = options_of(Budget)
    for name in values:
        if name not in known:
            raise UsageError(f"--budget: {unknown('budget', name, known)}")
    typed = {
        name: convert(v, float if name == "flops" else int, f"--budget {name}")
        for name, v in values.items()
    }
    for name, value in typed.items():
        if value <= 0:
            raise UsageError(f"--budget {name}={value}: expected a number above 0.")
    return Budget(**typed)

"""Prepare a run: open the device, make the shared stages, and collect what the method needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.adapters import same_mind
from ..api.contracts import Method
from ..api.participants import Participants
from ..api.registry import Registry
from ..core.distributed import DistributedContext
from ..core.errors import Refused, UsageError
from ..core.execution import NOT_SHARDED, Execution
from ..core.fixed_answers import fixed_answers
from ..core.global_state import put_back, set_threads
from ..core.progress import LOADING, activity
from ..core.save_schedule import SaveInterval
from ..core.spec import NF4, RunSpec, stage_options
from ..core.watchdog import Patience
from .data import report_data
from .observers import Observers, Warn

if TYPE_CHECKING:
    from ..core.artifacts import Artifact
    from ..core.data import LabelledCompletion, LabelledPair
    from ..models.engine import Engine
    from ..models.initial_checkpoint import InitialCheckpoint
    from ..models.tokens import Tokens
    from ..training.lab import MethodInputs
    from ..training.reference_cache import ReferenceCache
    from ..training.stages.runtime import Progress, StageRuntime
    from ..training.stages.stages import Stages

CHECK_ALLOWS = {
    "float32": 1e-3,
    "bfloat16": 0.5,
}  # nats, of rounding, between two orders of summation


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; none of it changes a result."""

    results: Path
    checkpoint_every: SaveInterval = SaveInterval()  # between checkpoints
    # seconds that one answer of a labeller, judge or helper process may take
    answer_timeout: float = Patience.seconds
    # compare sampled log-probabilities with those of a teacher-forced pass
    check_rollouts: bool = False
    warn: Warn = print
    say: Warn = print  # receives notes that are no warnings
    train: bool = True  # False: refuse a run whose trained policy is missing
    # the recorded settings of each part, where a run is reproduced: see StageRuntime.plan
    plan: Mapping[str, Execution] = field(default_factory=dict)
    started: float | None = None  # reading of time.perf_counter at the start of the command


# -- the three acts --------------------------------------------------------------------------------


def prepare(
    spec: RunSpec, built: Participants, files: Sequence[str], stage_runtime: StageRuntime
) -> tuple[MethodInputs, dict[str, Artifact]]:
    """Make what the method needs; return it with each shared stage behind it.

    Args:
        spec: The run.
        built: The participants of this phase. What is returned holds the method's side only.
        files: The plugin files that a labeller's process has to load.
        stage_runtime: What stages are made with.
    """
    from ..models.nf4 import check_installed
    from ..training.inputs import MethodInputs

    if spec.weights == NF4:
        check_installed()
    method, stages = built.method, open_stages(spec, built, stage_runtime)
    for note in _notes_on_models(stages):
        stage_runtime.tell(note)
    needs = method.required()
    with activity(LOADING, "reading the data"), put_back(f"The suite {spec.suite_name}"):
        check_needs(needs, stages, spec)
        stage_runtime.data = report_data(spec, stages)
    method_inputs = MethodInputs(
        start=stages.checkpoint,
        tokens=stages.tokens,
        reference=stages.other_reference,
        read=stages.reader,
    )
    used = [stages.start_artifact, *_give_data(method_inputs, needs, stages)]
    if "labels" in needs:
        _give_labels(method_inputs, spec, built, files)
    if "reward" in needs:
        members = [stages.feedback_reward(m) for m in range(getattr(method, "reward_members", 1))]
        used += members
        folders = [m.folder for m in members]
        method_inputs.rewards = partial(_load_rewards, folders, stages.checkpoint)
        if spec.reward_model is not None:
            own = (spec.reward_model, stages.tokens, str(stages.device))
            method_inputs.rewards = partial(_load_hub_reward, folders[0], *own)
    method_inputs.reference_cache = _reference_cache(stages, method_inputs)
    return method_inputs, {a.kind: a for a in used}


def _give_data(
    method_inputs: MethodInputs, needs: frozenset[str], stages: Stages
) -> list[Artifact]:
    """Put the data that a method needs into its inputs; return the artifacts behind them."""
    from ..training.ranked_lists import tokenised
    from ..training.stages.preferences import read_labelled, read_pairs

    suite = stages.suite
    if "prompts" in needs:
        method_inputs.prompts = suite.prompts("train")
    if "demonstrations" in needs:
        method_inputs.demonstrations = suite.demonstrations()
    if "lists" in needs:
        method_inputs.lists = tokenised(
            suite.lists(), stages.tokens.counting_afresh(), stages.stage_runtime.tell
        )
    if "verifier" in needs:
        method_inputs.verifier = suite.make_verifier()
        if method_inputs.verifier is not None:
            method_inputs.closing.append(method_inputs.verifier.close)
    learns = needs & {"pairs", "labelled", "reward"}
    if not learns or (learns == {"reward"} and stages.spec.reward_model is not None):
        return []
    feedback = stages.feedback
    method_inputs.labels = int(feedback.info["asked"])
    if "labelled" in needs:
        method_inputs.labelled = read_labelled(feedback.folder)
    if "pairs" in needs or ("labelled" in needs and not method_inputs.labelled):
        method_inputs.pairs = read_pairs(feedback.folder)
    return [feedback]


def _give_labels(
    method_inputs: MethodInputs, spec: RunSpec, built: Participants, files: Sequence[str]
) -> None:
    """Put what labels fresh samples while a method trains into its inputs."""
    from ..training.label_server import LabelClient

    _leave_labels(spec, method_inputs.labels)
    labeller = built.learns_from
    human, name = (True, "") if labeller is None else (labeller.human, labeller.name)
    method_inputs.label_client = partial(LabelClient, spec, tuple(files), human, name)
    method_inputs.refresh = stage_options(spec, "reward_model")


def _reference_cache(stages: Stages, method_inputs: MethodInputs) -> ReferenceCache:
    """Return the cache of log-probabilities of the start checkpoint and the reference."""
    from ..training.reference_cache import ReferenceCache

    other = method_inputs.reference
    return ReferenceCache(
        stages.stage_runtime,
        stages.start_inputs(),
        stages.checkpoint,
        stages.tokens,
        [*method_inputs.pairs, *map(_as_pair, method_inputs.labelled)],
        stages.feedback.content if method_inputs.pairs or method_inputs.labelled else "",
        None if other is None else (other, stages.reference_content),
    )


def _as_pair(one: LabelledCompletion) -> LabelledPair:
    """Return a single completion as a pair with itself, for look-ups by completion."""
    from ..core.data import LabelledPair

    return LabelledPair(one.prompt, one.completion, one.completion, one.label)


def _notes_on_models(stages: Stages) -> list[str]:
    """Return notes for the user on how the models of a run are read, each note once."""
    from ..models.hub_format import notes_on

    participants = (stages.own_labeller, stages.labeller, stages.judge)
    here = [one for one in participants if not getattr(one, "url", "")]  # others are served
    models = [stages.base, *(getattr(one, "model", None) for one in here)]
    named = [name for name in models if isinstance(name, str | Path) and str(name)]
    return list(dict.fromkeys(note for name in named for note in notes_on(name)))


def open_stage_runtime(
    spec: RunSpec, registry: Registry, settings: RunOptions, observe: Observers
) -> StageRuntime:
    """Import the heavy libraries, choose device and threads, and return the runtime of the
    stages.
    """
    import torch
    from accelerate import Accelerator

    from ..core.artifacts import Artifacts
    from ..models.memory import BatchSizes
    from ..training.runtime import RolloutCheck
    from ..training.stages.runtime import StageRuntime

    Patience.seconds = settings.answer_timeout
    device = _device(spec.execution.device)
    engine = _engine(spec, registry, device)
    check_sharding(spec)
    # autocast is the models' own: see models/loading.py
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    distributed = DistributedContext(accelerator.process_index, accelerator.num_processes)
    if device == "cuda" and distributed.size > 1:
        device = f"cuda:{accelerator.local_process_index}"
    if device == "cpu":
        set_threads(spec.execution.threads)
    _quiet_libraries()
    execution = _execution(spec, torch.device(device).type, distributed.size)
    return StageRuntime(
        Artifacts(settings.results / "artifacts", distributed),
        engine,
        accelerator,
        torch.device(device),
        _progress(spec, registry, observe),
        settings.checkpoint_every,
        execution,
        distributed,
        RolloutCheck(CHECK_ALLOWS[spec.dtype]) if settings.check_rollouts else None,
        tell=settings.warn if distributed.main else lambda text: None,
        sizes=BatchSizes(settings.warn, halves=execution.shard == NOT_SHARDED),
        plan=settings.plan,
        say=settings.say if distributed.main else lambda text: None,
    )


def _execution(spec: RunSpec, device: str, processes: int) -> Execution:
    """Return how this command computes. One process shards nothing, such as an evaluation of a
    run of several.
    """
    shard = spec.execution.shard if processes > 1 else NOT_SHARDED
    return replace(spec.execution, device=device, processes=processes, shard=shard)


def check_sharding(spec: RunSpec) -> None:
    """Refuse `--shard` where it would not shard, or where something cannot be sharded."""
    if spec.execution.shard == NOT_SHARDED:
        return
    what = f"--shard {spec.execution.shard}"
    if spec.execution.processes == 1:
        raise UsageError(
            f"{what}: weights are sharded over processes, and this run has one. Start several:"
            " torchrun --standalone --nproc-per-node 2 -m harness run ..."
        )
    if spec.weights == NF4:
        raise UsageError(f"{what}: weights in nf4 are not sharded. Use --weights bfloat16.")
    if spec.engine != "hf":
        raise UsageError(
            f"{what}: the engine {spec.engine} cannot read sharded weights. Use --engine hf."
        )


def _engine(spec: RunSpec, registry: Registry, device: str) -> Any:
    """Return the class of the engine; refuse one that needs a GPU where there is none."""
    engine = registry.get("engines", spec.engine)
    if getattr(engine, "needs_gpu", False) and device == "cpu":
        raise UsageError(
            f"--engine {spec.engine}: this run has no GPU. Use --engine hf, or --device cuda."
        )
    if getattr(engine, "one_process", False) and spec.execution.processes > 1:
        raise UsageError(
            f"--engine {spec.engine}: it serves one process, and this run has"
            f" {spec.execution.processes}. Start one process, or use --engine hf."
        )
    if check := getattr(engine, "check_usable", None):  # a class may only make the engine
        check(spec.weights)
    return partial(_with_options, engine, spec.engine_options)


def _with_options(
    make: Callable[[set[int]], Engine], options: Mapping[str, Any], ends: set[int]
) -> Engine:
    """Return an engine for a set of end tokens, with its options."""
    engine = make(ends)
    if engine.options_class is not None:
        engine.options = engine.options_class(**options)
    return engine


def _progress(spec: RunSpec, registry: Registry, observe: Observers) -> Progress:
    """Return a function that reports each step to the observers, with the metrics that the method
    declares as `shown`.
    """
    own = registry.get("methods", spec.method).shown

    def progress(phase: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        shown = own if phase == spec.method else Method.shown
        observe("step_logged", phase=phase, step=step, total=total, metrics=metrics, shown=shown)

    return progress


def open_stages(spec: RunSpec, built: Participants, stage_runtime: StageRuntime) -> Stages:
    """Return the stages of a spec with the participants of a phase."""
    from ..core.data import Sampling
    from ..training.stages.stages import Stages

    stages = Stages(spec, built, stage_runtime)
    stage_runtime.sampling = Sampling(built.suite.temperature, built.suite.max_new_tokens)
    stage_runtime.eos = stages.eos
    return stages


def check_needs(needs: frozenset[str], stages: Stages, spec: RunSpec) -> None:
    """Refuse a method whose needs the suite cannot meet, before anything is trained."""
    suite = stages.suite
    verifier = suite.make_verifier()
    can_prefer = stages.own_labeller is not None or stages.can_prefer()
    can = {
        "prompts": bool(suite.prompts("train")),
        "demonstrations": bool(suite.demonstrations()),
        "pairs": stages.own_labeller is not None or stages.can_pair(),
        "lists": bool(suite.lists()),
        "labelled": can_prefer,
        "reward": can_prefer or spec.reward_model is not None,
        "verifier": verifier is not None,
        "steps": verifier is not None and verifier.has_steps,
        "labels": (stages.own_labeller or stages.labeller) is not None,
    }
    missing = sorted(need for need in needs if not can.get(need, False))
    if missing:
        raise Refused(
            f"The method {spec.method} needs {' and '.join(missing)}, which the suite"
            f" {spec.suite_name} cannot give. It gives:"
            f" {', '.join(sorted(need for need, given in can.items() if given))}. Nothing was"
            " trained."
        )
    if stages.judge.learns and not suite.judge_preferences():
        raise Refused(
            f"The judge {stages.judge.name} learns from preferences, and the suite"
            f" {spec.suite_name} keeps none for it. Name another judge with --judge, or raise"
            " judge_share. Nothing was trained."
        )
    stages.judge.check_models()
    _check_labellers(stages)
    check_apart(stages)
    split = spec.stages["evaluation"]["split"]
    _check_against(spec, stages)
    if spec.stages["evaluation"]["answers"] > 1 and not can["verifier"]:
        raise UsageError(
            f"--stage-set evaluation.answers: {spec.suite_name} has no verifier, which alone says"
            " whether one of several answers is right. Leave it at 1."
        )
    if suite.size(split) < 2:
        raise UsageError(
            f"The {split} split of {spec.suite_name} has fewer than two prompts: nothing can be"
            " measured."
        )


def _check_labellers(stages: Stages) -> None:
    """Refuse a judge that is also a labeller of the run."""
    for labeller in (stages.labeller, stages.own_labeller):
        if same_mind(labeller, stages.judge):
            assert labeller is not None
            raise Refused(
                f"The judge {stages.judge.name} and the labeller {labeller.name} are the same: what"
                " a method is trained to please would judge it. Name another judge or labeller."
                " Nothing was trained."
            )


def check_apart(stages: Stages) -> None:
    """Refuse a judge with the weights of the reward model that a method is trained to please.

    Raises:
        Refused: They have the same weights.
    """
    named = stages.spec.reward_model
    if named is not None and stages.judge.identity().get("weights") == stages.scorer.digest:
        raise Refused(
            f"--reward-model {named} and the judge {stages.judge.name} have the same weights: what"
            " a method is trained to please would judge it. Name another judge or another reward"
            " model. Nothing was trained."
        )


def _check_against(spec: RunSpec, stages: Stages) -> None:
    """Refuse fixed answers that are not there, or that hold a special token as text, before
    anything is trained.
    """
    options = stage_options(spec, "evaluation")
    if not options.against:
        return
    suite = stages.suite
    prompts = suite.prompts(options.split)[: options.prompts]
    for text in fixed_answers(options.against, suite, prompts, options.split):
        try:
            stages.tokens.special.check(text, "an answer")
        except UsageError as error:
            raise UsageError(f"--against {options.against}: {error}: {text[:40]!r}.") from error


def _leave_labels(spec: RunSpec, used: int) -> None:
    """Refuse a method that needs labels during training if its preferences have used up the label
    budget.
    """
    limit, prompt = spec.budget.labels, comb(spec.stages["preferences"]["completions"], 2)
    if limit is not None and limit - used < prompt:
        less = (
            f"--stage-set preferences.labels={limit // 2}, or " if limit // 2 >= 2 * prompt else ""
        )
        raise UsageError(
            f"--budget labels={limit}: the preferences took {used}, and {spec.method} asks for"
            f" more while it trains. Leave it some: {less}a larger budget. The shared stages are"
            " made; the method was not trained."
        )


def _load_hub_reward(folder: Path, model: str, tokens: Tokens, device: str) -> list[Any]:
    from ..training.hub_reward import HubReward

    return [HubReward.load(folder, model, tokens, device)]


def _load_rewards(folders: list[Path], start: InitialCheckpoint) -> list[Any]:
    from ..training.reward_model import RewardModel

    return [RewardModel.load(folder, start) for folder in folders]


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda") and not device.startswith("cuda:"):
        raise UsageError(f"--device {device}: expected cpu, cuda, cuda:N or auto.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"--device {device}: torch {torch.__version__} sees no GPU here. Use --device cpu."
        )
    return device


def _quiet_libraries() -> None:
    """Keep progress bars and advice of the libraries out of the harness's own output."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)

"""The stages of a run with the memory, disk and FLOPs of each, from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import comb
from typing import Any

import torch

from ...api.contracts import Suite
from ...api.participants import Participants, participants
from ...api.registry import Registry
from ...core.errors import UsageError
from ...core.settings import PreferenceOptions
from ...core.spec import BFLOAT16, START_SFT, RunSpec, saved_kind, stage_options
from ...models.flops import row_flops
from ...models.hub_format import limits_of, load_tokenizer
from ...models.loading import size_of
from ...training.hub_reward import NORMALISED_ON
from .asks import Asks, asks_of
from .moments import Machine, Models, Moment, Passes, Trained, largest, padded
from .passes import Shape, outline_of
from .sharded import Whole

KEPT_CHECKPOINTS = 3  # two, and the one that is being written
PROBED = 256  # prompts whose lengths are read where the suite states no limit


@dataclass(frozen=True)
class Stage:
    """What one stage of a run takes.

    Attributes:
        name: Of the stage.
        moments: The memory of its moments.
        flops: That it computes.
        disk: Bytes that it leaves.
        passing: Bytes of checkpoints, which are removed when it ends.
        shared: Whether other runs find what it made.
    """

    name: str
    moments: tuple[Moment, ...]
    flops: float = 0.0
    disk: int = 0
    passing: int = 0
    shared: bool = True

    @property
    def peak(self) -> Moment:
        """Its moment of most memory."""
        return largest(self.moments)


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of a completion, at most."""

    prompt: int
    completion: int


@dataclass
class Configured:
    """A run as far as its configuration and its data tell it."""

    spec: RunSpec
    registry: Registry
    machine: Machine
    _shapes: dict[str, Shape] = field(default_factory=dict)

    @cached_property
    def built(self) -> Participants:
        """The plugins of the run."""
        return participants(self.spec, self.registry)

    @property
    def suite(self) -> Suite:
        """The suite."""
        return self.built.suite

    @property
    def method(self) -> Any:
        """The method with its options."""
        return self.built.method

    @cached_property
    def asks(self) -> Asks:
        """What the method asks for."""
        return asks_of(self.method)

    @cached_property
    def base(self) -> Any:
        """The folder or hub id of the model."""
        base = self.spec.model or self.suite.base_model()
        if base is None:
            raise UsageError(
                f"The suite {self.spec.suite_name} brings no model of its own. Name one with"
                " --model PATH_OR_HUB_ID."
            )
        return base

    @cached_property
    def models(self) -> Models:
        """The models, without weights."""
        return Models(self.spec, self.base, self.machine)

    @cached_property
    def passes(self) -> Passes:
        """The memory of passes."""
        return Passes(self.models)

    @cached_property
    def lengths(self) -> Lengths:
        """The limits of prompts and completions; the longest of some prompts where none is set."""
        limit = getattr(self.suite, "max_prompt_tokens", None)
        positions = limits_of(self.base).positions
        if limit is None:
            tokenizer = load_tokenizer(self.base)
            some = self.suite.prompts("train")[:PROBED]
            limit = max((len(tokenizer(str(p.text))["input_ids"]) for p in some), default=1)
        longest = positions or limit
        return Lengths(min(limit, longest), self.suite.max_new_tokens)

    @cached_property
    def prefers(self) -> bool:
        """Whether a reward model has something to learn from."""
        suite = self.suite
        labels = self.built.labeller is not None
        return labels or bool(suite.preferences() or suite.labelled())

    @cached_property
    def rankings(self) -> int:
        """Prompts that reward models train on."""
        options: PreferenceOptions = stage_options(self.spec, "preferences")
        fixed = self.suite.preferences() or self.suite.labelled()
        rows = len(fixed) if fixed else options.prompts
        return max(1, round(rows * (1 - options.heldout)))

    @cached_property
    def ranked(self) -> int:
        """Completions of such a prompt."""
        if self.suite.preferences():
            return 2
        if self.suite.labelled():
            return 1
        return int(stage_options(self.spec, "preferences").completions)

    def shape(self, rows: int, each: int) -> Shape:
        """Return a batch with texts as long as the limits allow."""
        return Shape(rows, each, self.lengths.prompt, self.lengths.completion)

    def forward(self, shape: Shape) -> float:
        """Return the FLOPs of a forward pass: each prompt once."""
        written = shape.each * shape.completion
        pairs = shape.prompt**2 + written * shape.width
        row = row_flops(self.models.start, shape.prompt + written, written, pairs)
        return shape.rows * row

    @property
    def element(self) -> int:
        """Bytes of a weight on disk."""
        low = self.models.dtype == torch.bfloat16 or self.spec.save_dtype == BFLOAT16
        return 2 if low else 4


def stages_of(run: Configured) -> list[Stage]:
    """Return the stages of a run, in order."""
    makers: list[tuple[bool, Callable[[Configured], Stage]]] = [
        (run.spec.start == START_SFT, _sft),
        (run.prefers and _reads_preferences(run), _preferences),
        (_rewards(run), _reward_model),
        (run.built.judge.learns, _judge),
        (True, _method),
        (True, _evaluation),
    ]
    return [make(run) for there, make in makers if there]


def _reads_preferences(run: Configured) -> bool:
    """Return whether the method or a reward model learns from preferences."""
    learns = _rewards(run) and run.spec.reward_model is None
    return learns or bool(run.built.method.required() & {"pairs", "labelled"})


def _rewards(run: Configured) -> bool:
    named = run.spec.reward_model is not None
    return named or bool(run.asks.rewards) or (run.suite.proxy and run.prefers)


def _sft(run: Configured) -> Stage:
    options = stage_options(run.spec, "sft")
    shape = run.shape(options.batch_size, 1)
    trained = padded(lambda: run.models.causal(options))
    demonstrations = len(run.suite.demonstrations())
    steps = options.steps or max(1, round(options.epochs * demonstrations / options.batch_size))
    weights = _causal(run, trained, "policy")
    return Stage(
        "sft",
        (run.passes.update("update", weights, shape, trained),),
        flops=steps * _factor(options) * run.forward(shape),
        disk=run.models.parameters * run.models.dtype.itemsize,
        passing=_checkpoints(trained),
    )


def _causal(run: Configured, trained: Trained, role: str) -> dict[str, int]:
    """Return the bytes of a trained causal model; an adapter has a base."""
    whole = run.models.bytes
    return {"base": whole, role: trained.bytes} if trained.adapter else {role: whole}


def _preferences(run: Configured) -> Stage:
    if run.suite.preferences() or run.suite.labelled():
        return Stage("preferences", (Moment("reading"),))
    options = stage_options(run.spec, "preferences")
    shape = run.shape(options.prompts, options.completions)
    moment = run.passes.decoding("answers", {"start": run.models.bytes}, shape, run.models.start)
    return Stage("preferences", (moment,), flops=run.forward(shape))


def _reward_model(run: Configured) -> Stage:
    if run.spec.reward_model is not None:
        return _normalisation(run)
    members = max(1, run.asks.rewards)
    name = "reward model" if members == 1 else f"{members} reward models"
    return _scalar_stage(run, name, members)


def _normalisation(run: Configured) -> Stage:
    """Return the stage that scores answers of the start checkpoint with a named reward model."""
    shape = run.shape(min(NORMALISED_ON, len(run.suite.prompts("train"))), 1)
    held = {"start": run.models.bytes, "reward": Whole(size_of(run.models.scorer)[1])}
    moment = run.passes.decoding("answers", held, shape, run.models.start)
    flops = run.forward(shape) + _scored_flops(run, shape)
    return Stage("reward model", (moment,), flops=flops)


def _scored_flops(run: Configured, shape: Shape) -> float:
    """Return the FLOPs of scoring answers with a named reward model: two for each parameter and
    token.
    """
    tokens = shape.rows * shape.each * shape.width
    return 2.0 * size_of(run.models.scorer)[0] * tokens


def _judge(run: Configured) -> Stage:
    return _scalar_stage(run, "judge", 1)


def _scalar_stage(run: Configured, name: str, members: int) -> Stage:
    options = stage_options(run.spec, "reward_model")
    trained = run.models.scalar(options, "reward")
    shape = run.shape(options.batch_size, run.ranked)
    whole = run.models.scalar_bytes
    weights = {"reward": whole}
    if options.lora_rank:
        weights = {"base": run.models.bytes, "reward": trained.bytes}
    steps = max(1, round(options.epochs * run.rankings / options.batch_size))
    return Stage(
        name,
        (run.passes.update("update", weights, shape, trained),),
        flops=members * steps * _factor(options) * run.forward(shape),
        disk=members * trained.bytes,
        passing=_checkpoints(trained),
    )


def _factor(options: Any) -> int:
    """Return how many forward passes an update costs: frozen weights have no gradients."""
    return 2 if getattr(options, "lora_rank", 0) else 3


def _checkpoints(*trained: Trained) -> int:
    return KEPT_CHECKPOINTS * sum(t.bytes + t.optimiser for t in trained)


def _method(run: Configured) -> Stage:
    asks, models = run.asks, run.models
    shape = run.shape(asks.rows, asks.each)
    if not asks.trains:
        held = {"policy": models.bytes} | _reward_weights(run)
        moment = Moment("held", run.passes.processes.weights(held))
        return Stage(run.spec.method, (moment,), shared=False)
    policy = models.causal(run.method)
    trained = [policy, *([models.scalar(run.method, "value")] if asks.critic else [])]
    weights = _held(run, policy, trained[1:])
    moments = [run.passes.update("update", weights, shape, *trained)]
    moments += _before_update(run, policy, weights, moments[0].optimiser)
    return Stage(
        run.spec.method,
        tuple(moments),
        flops=_method_flops(run),
        disk=_policy_disk(run, policy),
        passing=_checkpoints(*trained),
        shared=False,
    )


def _held(run: Configured, policy: Trained, critics: list[Trained]) -> dict[str, int]:
    """Return the bytes of the weights that a method holds while it updates."""
    asks, models = run.asks, run.models
    weights = _causal(run, policy, "policy") | _reward_weights(run)
    adapter = "base" in _causal(run, policy, "policy")
    if asks.apart:
        weights["reference"] = policy.bytes
    elif asks.reference and asks.drawn and (not adapter or run.spec.reference):
        weights["reference"] = models.bytes
    if asks.start and not adapter and "reference" not in weights:
        weights["start"] = models.bytes
    if asks.teacher:
        weights["teacher"] = size_of(outline_of(asks.teacher))[1]
    if "reward" in weights and _reward_lora(run):
        weights.setdefault("base", models.bytes)
    for critic in critics:
        weights["value"] = critic.bytes
    return weights


def _reward_lora(run: Configured) -> bool:
    if run.spec.reward_model is not None:
        return False
    return bool(stage_options(run.spec, "reward_model").lora_rank)


def _reward_weights(run: Configured) -> dict[str, int]:
    if not run.asks.rewards:
        return {}
    if run.spec.reward_model is not None:
        return {"reward": Whole(size_of(run.models.scorer)[1])}
    options = stage_options(run.spec, "reward_model")
    each = run.models.scalar_bytes
    if options.lora_rank:
        return {"reward": Whole(run.asks.rewards * run.models.scalar(options, "reward").bytes)}
    return {"reward": run.asks.rewards * each}


def _before_update(
    run: Configured, policy: Trained, weights: Mapping[str, int], optimiser: int
) -> list[Moment]:
    """Return the moments of a turn before its updates."""
    asks, passes = run.asks, run.passes
    drawn = run.shape(asks.drawn or asks.rows, asks.each)
    if not asks.drawn:
        if not asks.reference or "base" in weights and not run.spec.reference:
            return [passes.scoring("reference", weights, drawn, policy.model)] * asks.reference
        both = {**weights, "reference": run.models.bytes}
        return [passes.scoring("reference", both, drawn, policy.model)]
    rollout = passes.decoding("rollout", weights, drawn, policy.model)
    if asks.mixed:  # the keys and values of both models
        rollout = replace(rollout, cache=2 * rollout.cache, logits=2 * rollout.logits)
    moments = [rollout]
    moments.append(passes.scoring("scores", weights, drawn, policy.model))
    return [_with(moment, optimiser) for moment in moments]


def _with(moment: Moment, optimiser: int) -> Moment:
    return replace(moment, optimiser=optimiser)


def _method_flops(run: Configured) -> float:
    asks, options = run.asks, run.spec.options
    factor = _factor(run.method) * (1 + asks.critic)
    if asks.drawn:
        forward = run.forward(run.shape(asks.drawn, asks.each))
        passes = 1 + asks.reference + asks.critic  # the rollout is one of them
        if run.spec.reward_model is None:
            scores = asks.rewards * forward
        else:
            scores = _scored_flops(run, run.shape(asks.drawn, asks.each))
        turn = forward * (passes + asks.updates * factor) + scores
        return _turns(run) * turn
    rows = run.rankings * (comb(run.ranked, 2) if asks.each == 2 else max(1, run.ranked))
    steps = options.get("steps") or max(
        1, round(float(options.get("epochs", 1)) * rows / asks.rows)
    )
    forward = run.forward(run.shape(asks.rows, asks.each))
    return int(steps) * forward * (factor + asks.reference)


def _turns(run: Configured) -> int:
    """Return the turns of a method that draws: its steps, or passes over the demonstrations."""
    options, asks = run.spec.options, run.asks
    if options.get("steps") or "demonstrations" not in run.method.required():
        return int(options.get("steps") or 1)
    passes = float(options.get("epochs", 1)) * int(options.get("rounds", 1))
    return max(1, round(passes * len(run.suite.demonstrations()) / asks.rows))


def _policy_disk(run: Configured, policy: Trained) -> int:
    kind = saved_kind(run.spec)
    size = 4 if kind == "adapter" else run.models.dtype.itemsize
    numbers = policy.bytes // size if kind == "adapter" else run.models.parameters
    return 0 if kind == "none" else numbers * min(size, run.element)


def _evaluation(run: Configured) -> Stage:
    """Return the evaluation: its answers, its scores, and the KL to the reference."""
    models, spec, passes = run.models, run.spec, run.passes
    options = stage_options(spec, "evaluation")
    shape = run.shape(options.prompts, 1)
    adapter = models.causal(run.method).bytes if getattr(run.method, "lora_rank", 0) else 0
    own = {"base": models.bytes, "policy": adapter} if adapter else {"policy": models.bytes}
    learnt = run.built.judge.learns
    scalar = models.scalar_bytes
    if _reward_lora(run):
        scalar = models.scalar(stage_options(spec, "reward_model"), "reward").bytes
    judge = {"judge": scalar} if learnt else {}
    proxy = {"reward": scalar} if run.suite.proxy and run.prefers else {}
    if spec.reward_model is not None:
        proxy = {"reward": size_of(models.scorer)[1]}
    apart = not adapter or spec.reference is not None
    reference = {"reference": models.bytes} if apart and run.asks.trains else {}
    moments = [
        passes.decoding("answers", own, shape, models.start),
        passes.scoring("scores", own | judge | proxy, shape, models.start),
    ]
    if run.asks.trains:
        moments.append(passes.kl("KL", own | judge | reference, shape))
    count = 2 + options.answers  # answers twice, and two passes of the KL
    return Stage("evaluation", tuple(moments), flops=(count + 2) * run.forward(shape), shared=False)

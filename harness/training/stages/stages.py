"""Stages: artifacts that are made once, named by a digest of their inputs, and shared by every
method.

    base model --sft--> start checkpoint --preferences--> ranked completions
                                         --reward_model--> reward members

With `--start model` the base model itself is the start checkpoint, and there is no SFT stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...api.contracts import Judge, Labeller
from ...api.participants import Participants
from ...core.artifacts import Artifact
from ...core.data import Sampling
from ...core.digests import code_digest, digest_of, package_digest
from ...core.errors import UsageError
from ...core.global_state import put_back
from ...core.meter import Meter
from ...core.model_folder import adapters_in, model_digest
from ...core.spec import START_MODEL, RunSpec, stage_options
from ...models.chat import ChatOptions
from ...models.hub_format import check_alike, end_tokens
from ...models.initial_checkpoint import InitialCheckpoint, start_in
from ...models.loading import Arithmetic, load_causal, load_tokenizer, weights_digest
from ...models.sequence_scorer import SequenceScorer
from ...models.tokens import Tokens
from ..checkpoints import Checkpoints
from ..hub_reward import HubReward, normalise
from ..loop import Loop
from ..reward_model import RewardModel
from ..runtime import Runtime
from . import reward_modelling, sft
from .preferences import Row, rankings_of, read_rankings, sample, take
from .runtime import StageRuntime

HUB_REWARD = "hub_reward"  # the artifact with the normalisation of a named reward model


class Stages:
    """The stages of one spec. Each is made at the first request; `used` lists those that were."""

    def __init__(self, spec: RunSpec, built: Participants, stage_runtime: StageRuntime) -> None:
        self.spec, self.suite, self.stage_runtime = spec, built.suite, stage_runtime
        self.judge, self.labelling_judge = built.judge, built.labelling_judge
        self.labeller, self.own_labeller = built.labeller, built.own_labeller
        self.used: dict[str, Artifact] = {}

    @cached_property
    def base(self) -> Path | str:
        """The base model: the embedded one, or what `--model` names."""
        base = self.spec.model or self.suite.base_model()
        if base is None:
            raise UsageError(
                f"The suite {self.spec.suite_name} brings no model of its own. Name one with"
                " --model PATH_OR_HUB_ID."
            )
        return base

    @property
    def device(self) -> torch.device:
        """The device of this run."""
        return self.stage_runtime.device

    @property
    def micro_batch_tokens(self) -> int:
        """The number of tokens that a forward pass takes at once."""
        return self.stage_runtime.micro_batch_tokens

    def runtime(self, meter: Meter, seed: int) -> Runtime:
        """Return the runtime of models: engine, sampling and device; `meter` counts."""
        return self.stage_runtime.runtime(meter, seed)

    @cached_property
    def tokens(self) -> Tokens:
        """The base model's tokenizer with the harness's rules."""
        limit = getattr(self.suite, "max_prompt_tokens", None)
        return Tokens(
            load_tokenizer(self.base),
            limit,
            self.suite.max_new_tokens,
            self._other_ends,
            ChatOptions.of(self.suite),
        )

    @cached_property
    def eos(self) -> set[int]:
        """Every token that ends a completion."""
        return self.tokens.ends

    @property
    def _other_ends(self) -> set[int]:
        return end_tokens(self.base)

    @property
    def start(self) -> nn.Module:
        """The start checkpoint, loaded unless it is in memory."""
        return self.checkpoint.model()

    @cached_property
    def checkpoint(self) -> InitialCheckpoint:
        """The source of the start checkpoint, and what is known without its weights."""
        own = self.spec.start == START_MODEL
        return self._checkpoint_in(self.base if own else self.start_artifact.folder)

    @cached_property
    def other_reference(self) -> InitialCheckpoint | None:
        """The model of `--reference`; None where the start checkpoint is the reference.

        Raises:
            UsageError: Its tokenizer or its architecture is not the start checkpoint's.
        """
        if self.spec.reference is None:
            return None
        check_alike(self.base, self.spec.reference)
        return self._checkpoint_in(self.spec.reference)

    @property
    def reference(self) -> nn.Module:
        """The model that KL is measured to."""
        return (self.other_reference or self.checkpoint).model()

    @cached_property
    def reference_content(self) -> str:
        """The digest of the model that KL is measured to."""
        named = self.spec.reference
        return self._model_digest(named) if named else self.start_artifact.content

    @property
    def reader(self) -> Callable[[Path | str], InitialCheckpoint]:
        """What reads a model for this run. It holds neither suite nor judge."""
        runtime = self.stage_runtime
        return partial(
            start_in,
            arithmetic=self.arithmetic,
            device=runtime.device,
            sharing=self.spec.prompt_sharing,
            tell=runtime.tell,
            shards=runtime.shards,
        )

    def _checkpoint_in(self, model: Path | str) -> InitialCheckpoint:
        return self.reader(model)

    @property
    def arithmetic(self) -> Arithmetic:
        """The dtypes of forward passes and of weights."""
        return Arithmetic(self.spec.dtype, self.spec.weights)

    @cached_property
    def start_artifact(self) -> Artifact:
        """The start checkpoint: the base model itself, or the artifact of the SFT stage."""
        if self.spec.start == START_MODEL:
            cost = Meter().snapshot()  # nothing is made or copied
            return Artifact(Path(self.base), "model", self._base_digest, {}, cost, reused=False)
        return self._sft

    @cached_property
    def _sft(self) -> Artifact:
        options = stage_options(self.spec, "sft")
        demos = self.suite.demonstrations()
        if not demos:
            raise UsageError(
                f"The suite {self.spec.suite_name} has no demonstrations to fine-tune on."
            )
        inputs = self._inputs("sft", options, data=digest_of([_plain(demo) for demo in demos]))
        return self._stage(
            "sft", inputs, lambda out, scratch: sft.make(self, demos, options, out, scratch)
        )

    @cached_property
    def preferences(self) -> Artifact:
        """Ranked completions: fixed pairs of the suite, or samples of the start checkpoint that the
        labeller ranked.
        """
        options = stage_options(self.spec, "preferences")
        fixed, labelled = self.suite.preferences(), self.suite.labelled()
        if fixed is not None and (fixed or labelled or self.labeller is None):
            data = [[_plain(row) for row in rows] for rows in (fixed, labelled)]
            inputs = self._inputs("preferences", options, data=digest_of(data))
            return self._stage(
                "preferences", inputs, lambda out, _: take(self, fixed, labelled, options, out)
            )
        if self.labeller is None:
            raise UsageError(
                f"The suite {self.spec.suite_name} has neither fixed preferences nor a labeller."
            )
        return self._labelled("preferences", self.labeller)

    @cached_property
    def feedback(self) -> Artifact:
        """The preferences that this method learns from: the shared ones, or those of its own
        labeller.
        """
        return (
            self.preferences
            if self.own_labeller is None
            else self._labelled("ai_preferences", self.own_labeller)
        )

    def _labelled(self, name: str, labeller: Labeller) -> Artifact:
        options = stage_options(self.spec, "preferences")
        prompts = self.suite.prompts("preferences")[: options.prompts]
        inputs = self._inputs(
            "preferences",
            options,
            data=digest_of([_plain(p) for p in prompts]),
            start=self.start_artifact.content,
            labels=[
                self._class_key(labeller),
                labeller.identity(),
                self._class_key(self.labelling_judge),
            ],
            suite=[
                package_digest(type(self.suite)),
                self.spec.code.get("verifier", ""),
                dict(self.spec.suite_options),
            ],  # principles, their checks, gold
        )
        return self._stage(
            name, inputs, lambda out, _: sample(self, self.ready(labeller), prompts, options, out)
        )

    def baseline_answers(self, prompts: str, sampling: Sampling, make: Any) -> Artifact:
        """The start checkpoint's answers to evaluation prompts, named by their digest."""
        inputs = self._inputs(
            "evaluation", sampling, data=prompts, start=self.start_artifact.content
        )
        return self._stage("baseline_answers", inputs, make)

    def task_outcomes(self, tasks: str, make: Any) -> Artifact:
        """The start checkpoint's outcomes in tasks of lm-evaluation-harness, named by their
        digest.
        """
        inputs = self._inputs("evaluation", None, tasks=tasks, start=self.start_artifact.content)
        return self._stage("task_outcomes", inputs, make)

    def ready(self, labeller: Labeller) -> Labeller:
        """Return the labeller, prepared with the suite and the suite's own judge."""
        with put_back(f"The labeller {labeller.name}"):
            self.labelling_judge.prepare(self.suite, None)
            labeller.prepare(self.suite, self.labelling_judge)
        return labeller

    def has_proxy(self) -> bool:
        """Return whether the evaluation uses the shared reward model, or a named one."""
        return self.spec.reward_model is not None or self.suite.proxy and self.can_prefer()

    def can_prefer(self) -> bool:
        """Return whether a reward model has data: preferences, labelled completions, or a
        labeller.
        """
        suite = self.suite
        return self.labeller is not None or bool(suite.preferences() or suite.labelled())

    def can_pair(self) -> bool:
        """Return whether there are pairs, or a labeller that makes them."""
        return self.labeller is not None or bool(self.suite.preferences())

    def reward_artifact(self, member: int) -> Artifact:
        """One member of the reward ensemble on the shared preferences; the first is the evaluator's
        proxy. With `--reward-model` it is the normalisation of that model.
        """
        if self.spec.reward_model is not None:
            return self._normalised
        return self._reward_of("reward_model", self.preferences, member)

    def feedback_reward(self, member: int) -> Artifact:
        """One member of the reward ensemble that this method is trained with."""
        if self.own_labeller is None:
            return self.reward_artifact(member)
        return self._reward_of("ai_reward_model", self.feedback, member)

    @cached_property
    def scorer(self) -> SequenceScorer:
        """The model of `--reward-model`.

        Raises:
            UsageError: It cannot be read, or it has not one output.
        """
        assert self.spec.reward_model is not None, "a reward model is named"
        return SequenceScorer(self.spec.reward_model, str(self.device))

    @cached_property
    def _normalised(self) -> Artifact:
        """The mean and standard deviation of that model over the start checkpoint's answers."""
        prompts = [_plain(prompt) for prompt in self.suite.prompts("train")]
        inputs = self._inputs(
            "reward_model",
            None,
            name=HUB_REWARD,
            model=[self.scorer.digest, self.scorer.rendering, self.spec.code["reward_model"]],
            data=digest_of(prompts),
            start=self.start_artifact.content,
        )
        return self._stage(HUB_REWARD, inputs, lambda out, _: normalise(self, self.scorer, out))

    def _reward_of(self, name: str, preferences: Artifact, member: int) -> Artifact:
        name = name if member == 0 else f"{name}{member + 1}"
        return self._reward_stage(
            name, preferences.content, lambda: read_rankings(preferences.folder)
        )

    def judge_model(self) -> RewardModel:
        """A reward model trained on the preferences that only a judge may see."""
        pairs = self.suite.judge_preferences()
        if not pairs:
            raise UsageError(
                f"The suite {self.spec.suite_name} keeps no preferences for a judge to learn from."
            )
        data = digest_of([_plain(pair) for pair in pairs])
        artifact = self._reward_stage(
            "judge_model", data, lambda: rankings_of(self.tokens, pairs, heldout=0.1)
        )
        model, info = self.load_reward(artifact), artifact.info
        if info.get("heldout_accuracy") is not None and info.get("heldout_pairs"):
            model.held_out = {
                "accuracy": float(info["heldout_accuracy"]),
                "pairs": float(info["heldout_pairs"]),
            }
        return model

    def load_proxy(self) -> RewardModel | HubReward:
        """Return the evaluator's proxy, on this run's device."""
        artifact = self.reward_artifact(0)
        if self.spec.reward_model is None:
            return self.load_reward(artifact)
        return HubReward.load(
            artifact.folder, self.spec.reward_model, self.tokens, str(self.device)
        )

    def load_reward(self, artifact: Artifact) -> RewardModel:
        """Return the reward model of an artifact, on this run's device."""
        return RewardModel.load(artifact.folder, self.checkpoint)

    def _reward_stage(
        self, name: str, data: str, rankings: Callable[[], dict[str, list[Row]]]
    ) -> Artifact:
        options = stage_options(self.spec, "reward_model")
        centre = digest_of([_plain(demo) for demo in self.suite.demonstrations("validation")])
        inputs = self._inputs(
            "reward_model",
            options,
            name=name,
            data=data,
            start=self.start_artifact.content,
            centre=centre,
        )
        return self._stage(
            name,
            inputs,
            lambda out, scratch: reward_modelling.make(
                self, name, rankings(), options, out, scratch
            ),
        )

    def loop(self, options: Any, meter: Meter, scratch: Path, phase: str) -> Loop:
        """Return a resumable loop with its trainer."""
        trainer = self.stage_runtime.trainer(options, meter)
        checkpoints = Checkpoints(
            scratch / "checkpoints",
            self.stage_runtime.checkpoint_every,
            self.stage_runtime.distributed.main,
            costs=self.stage_runtime.save_costs,
        )
        return Loop(
            trainer,
            checkpoints,
            meter,
            lambda step, total, row: self.stage_runtime.progress(phase, step, total, row),
            execution=self.stage_runtime.execution_record,
        )

    def _stage(self, name: str, inputs: Mapping[str, Any], make: Any) -> Artifact:
        if name not in self.used:
            self.used[name] = self.stage_runtime.get_or_make(name, inputs, make)
        return self.used[name]

    def start_inputs(self) -> dict[str, Any]:
        """Return the inputs that name cached outputs of the start checkpoint: see
        reference_cache.py.
        """
        return self._inputs("cache", None, start=self.start_artifact.content)

    def _inputs(self, part: str, options: Any, **more: Any) -> dict[str, Any]:
        """Return the inputs that name an artifact: code, base model, tokenizer, seed, options, and
        data.

        Execution settings are not among them: they change rounding only, and the manifest holds
        them.
        """
        spec = self.spec
        limits = [
            self.suite.max_new_tokens,
            getattr(self.suite, "max_prompt_tokens", None),
            self.suite.temperature,
        ]
        return {
            "code": code_digest(part),
            "base": self._base_digest,
            "shared_seed": spec.shared_seed,
            "options": vars(options) if options else {},
            "limits": limits,
            "rendering": self.tokens.rendering(),
            "engine": [spec.engine, spec.code["engine"], *_given(spec.engine_options)],
            "arithmetic": [spec.dtype, spec.weights, spec.prompt_sharing],
            **more,
        }

    @cached_property
    def _base_digest(self) -> str:
        return self._model_digest(self.base)

    def _model_digest(self, model: Path | str) -> str:
        folder, adapters = Path(model), adapters_in(model)
        whole = Path(adapters[-1].base) if adapters else folder
        if not whole.is_dir():  # a hub id: the digest of the weights counts, not their place
            vocabulary = self.tokens.tokenizer.get_vocab()
            return weights_digest(load_causal(model)) + digest_of(vocabulary)
        return model_digest(folder)

    @staticmethod
    def _class_key(instance: Judge | Labeller | None) -> str:
        if instance is None:
            return ""
        return f"{instance.name}/{instance.version}/{package_digest(type(instance))}"


def _given(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return options as the tail of an artifact's inputs; nothing where there are none, so that
    names stay as they were.
    """
    return [dict(options)] if options else []


def _plain(record: Any) -> Any:
    """Return a record as JSON-able values; of a pair without the list that it was taken from, which
    no stage learns from.
    """
    import dataclasses

    return {name: v for name, v in dataclasses.asdict(record).items() if name != "listed"}

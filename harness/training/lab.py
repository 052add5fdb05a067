"""The lab: the only interface through which a method reaches models and data.

Every request is metered, seeded and resumable. The lab holds no judge and no prompt of the test
split. The start checkpoint, the data and the reward models are prepared before the method starts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..api.contracts import Method
from ..core.data import Sampling
from ..core.errors import UsageError
from ..core.global_state import enforce
from ..core.seeds import derive
from ..models.batches import Batch, PromptBatch
from ..models.generation import Sampler, check_sampling
from ..models.initial_checkpoint import learner, lora_of
from ..models.loading import ScalarModel, frozen, scalar_beside, scalar_on, size_of
from ..models.lora import adapted, learn, load_own, own_state
from ..models.lora_weights import adaptation
from ..models.mixtures import Mixed
from . import sampler_correction
from .grades import Scale, expected, questions, replied
from .guests import Guest, GuestTokens, unlike_outputs
from .inputs import MethodInputs as MethodInputs
from .loop import Loop
from .outside import OutsideTraining
from .reference_cache import Cached
from .reward_model import RewardModel
from .rewards import RewardScorer
from .roles import Against, WithEntropy
from .roles import Critic as Critic
from .roles import LanguageModel as LanguageModel
from .rollout_samples import RolloutSamples
from .runtime import Runtime as Runtime
from .shared_models import SharedModels
from .streams import DataStreams
from .trainer import BASE, Loss, Term


class Lab(DataStreams):
    """All that a method may request. Models are loaded, and costs counted, at the first request."""

    def __init__(
        self, method: Method, method_inputs: MethodInputs, runtime: Runtime, loop: Loop
    ) -> None:
        super().__init__(method, method_inputs, runtime, loop)
        self._policy: LanguageModel | None = None
        self._reference: LanguageModel | None = None
        self._start: LanguageModel | None = None
        self._critic: Critic | None = None
        self._teachers: dict[str, LanguageModel] = {}
        self._scoring = RewardScorer(self, method, method_inputs, runtime, loop)
        self._samples = RolloutSamples(method_inputs.tokens)
        self._shared = SharedModels(method.name, method_inputs)
        if method_inputs.reference_cache is not None:
            method_inputs.reference_cache.check = self._shared.check
        loop.rollouts = self._samples.take

    def rollout(
        self,
        prompts: PromptBatch,
        n: int = 1,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        of: LanguageModel | None = None,
        mixed_with: LanguageModel | None = None,
        share: float = 0.0,
        **truncations: object,
    ) -> Batch:
        """Draw n completions per prompt from the policy: (B, n, T) with `logp` (B, n, T) and
        `ended` (B, n).

        `logp` are the sampler's own, under the weights that sampled: the old log-probabilities.
        Temperature and length default to the suite's, which the evaluation uses too. `of=lab.start`
        draws from the start checkpoint, `of=lab.reference` from the reference. With `mixed_with`
        tokens are drawn from the geometric mixture of both models, `share` of it the second's.
        """
        usual = self._runtime.sampling
        sampling = Sampling(
            usual.temperature if temperature is None else temperature,
            usual.max_new_tokens if max_new_tokens is None else max_new_tokens,
        )
        check_sampling(sampling, **truncations)
        self._shared.check_written()
        model, runtime = of or self.policy, self._runtime
        beside = model is not self._policy  # a model beside the policy that is trained
        sampler = self._sampler("rollout", sampling)
        (replace(model.role, name="reference") if beside else model.role).hold(runtime.meter)
        if mixed_with is not None:
            sampler.mixed_with = self._mixture(mixed_with, share)
        sampler.pool = (
            self._pools.take(prompts, model.model, beside)
            if self._at_start(model) and mixed_with is None
            else None
        )
        batch = sampler.draw(model.model, prompts, n)
        names = [self._name_of(one) for one in (model, mixed_with) if one is not None]
        self._samples.drawn(batch, " and ".join(names))
        if runtime.check and mixed_with is None:
            runtime.check.compare(model.role, batch, runtime)
        if beside or mixed_with is not None:
            return batch
        self._loop.trainer.sampled()
        batch = batch.with_columns(**{sampler_correction.BEFORE: batch["logp"]})
        return self._corrected(batch)

    def _corrected(self, batch: Batch) -> Batch:
        """Return the policy's samples with the weights that the method's options ask for."""
        options: Any = self._method
        if getattr(options, "sampler_correction", sampler_correction.NONE) == "none":
            return batch
        batch = sampler_correction.corrected(batch, self.policy.logp(batch), options)
        self._loop.log(sampler_correction.report(batch))
        return batch

    def greedy(self, prompts: PromptBatch, max_new_tokens: int | None = None) -> Batch:
        """Return the policy's greedy completion of each prompt: (B, 1, T) with `ended` (B, 1).

        It has no log-probabilities. It counts as a rollout.
        """
        length = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        sampling = Sampling(self._runtime.sampling.temperature, length, greedy=True)
        self._shared.check_written()
        model, sampler = self.policy, self._sampler("greedy", sampling)
        model.role.hold(self._runtime.meter)
        drawn = sampler.draw(model.model, prompts)
        columns = {name: column for name, column in drawn.items() if name != "logp"}
        batch = Batch(drawn.prompts, columns, drawn.temperature)
        self._samples.drawn(batch, "policy, greedy")
        return batch

    def _sampler(self, purpose: str, sampling: Sampling) -> Sampler:
        enforce()
        self._check_turn(purpose)
        runtime = self._runtime
        return Sampler(
            runtime.engine,
            sampling,
            runtime.meter,
            runtime.eos,
            self._key(purpose),
            runtime.distributed,
            shaped=sampling.greedy,
        )

    def _mixture(self, other: LanguageModel, share: float) -> Mixed:
        """Return the second model of a mixture, held in the meter from now on."""
        if not 0 <= share <= 1:
            raise ValueError(f"lab.rollout(share={share}): expected a share in [0, 1]")
        engine = self._runtime.engine
        if not engine.takes_mixtures:
            raise UsageError(
                f"The engine {engine.name} cannot sample from a mixture of two models, which"
                f" {self._method.name} does. Use --engine hf."
            )
        other.role.hold(self._runtime.meter)
        return Mixed(other.model, share)

    def _name_of(self, model: LanguageModel) -> str:
        """Return how the sampled completions of a model are labelled."""
        if model is self._policy:
            return "policy"
        other = self._method_inputs.reference or "reference" in self._loop.trainer.modules
        return "reference" if model is self._reference and other else "start checkpoint"

    # -- models ------------------------------------------------------------------------------------

    @property
    def policy(self) -> LanguageModel:
        """The policy being trained: at first the start checkpoint."""
        if self._policy is None:
            enforce()
            model = self._learner()
            self._policy = LanguageModel(model, "policy", "update", self._runtime)
            self._loop.trainer.add("policy", model)
            self._policy.role.hold(self._runtime.meter)
            if (how := adaptation(model)) and how.untouched:
                self._runtime.tell(str(how))
        return self._policy

    @property
    def reference(self) -> LanguageModel:
        """The frozen start checkpoint, or the model of `--reference`.

        Only a method that asks for it holds it.
        """
        enforce()
        if self._reference is None and self._loop.trainer.has_saved(
            "reference"
        ):  # it had been moved before a restart
            self._reference = self._reference_apart()
        if self._reference is None:
            other = self._method_inputs.reference
            self._reference = LanguageModel(
                other or self._method_inputs.start,
                "reference",
                "reference",
                self._runtime,
                self._recall,
            )
        return self._reference

    def move_reference(self, share: float = 1.0) -> None:
        """Move the reference's weights by a share of the way to the policy's present weights.

        1 copies the policy, as iterated methods do. A smaller share makes a moving average:
        pi_ref <- share pi + (1 - share) pi_ref (TR-DPO, 2404.09656, the soft update). The
        evaluation still measures KL from the start checkpoint.

        Raises:
            ValueError: The share is not in (0, 1], or it is below 1 and the policy is an adapter:
                the average of two adapters is not the adapter of the average.
        """
        if not 0 < share <= 1:
            raise ValueError(f"lab.move_reference({share}): expected a share in (0, 1]")
        if share < 1 and adapted(self.policy.model):
            raise ValueError("lab.move_reference: with lora_rank the share must be 1")
        if "reference" not in self._loop.trainer.modules:
            self._reference = self._reference_apart()
        state = own_state(self.policy.model)
        if share < 1:
            before = own_state(self.reference.model)
            state = {
                k: torch.lerp(before[k], tensor.detach(), share) for k, tensor in state.items()
            }
        load_own(self.reference.model, state)

    def _reference_apart(self) -> LanguageModel:
        """Return a reference with weights of its own, which are saved with every checkpoint."""
        model = frozen(self._learner())
        self._loop.trainer.keep("reference", model)
        return LanguageModel(model, "reference", "reference", self._runtime)

    def _learner(self) -> nn.Module:
        """Return a trainable model, perhaps with an adapter, that equals the start checkpoint."""
        return learner(self._method_inputs.start, self._method, self._runtime.seed)

    @property
    def start(self) -> LanguageModel:
        """The start checkpoint as a policy of its own: for methods that train nothing."""
        if self._start is None:
            enforce()
            self._start = LanguageModel(self._method_inputs.start, "policy", "score", self._runtime)
        self._start.role.hold(self._runtime.meter)
        return self._start

    def guest(self, name: str) -> Guest:
        """Return a model that was trained elsewhere, as a policy: see `Guest`."""
        enforce()
        return Guest.read(name, self._method_inputs, self._runtime)

    def teacher(self, name: str) -> LanguageModel:
        """Return a frozen model to learn from, the same at each call.

        Raises:
            UsageError: It cannot be read, or its tokens are not the start checkpoint's.
        """
        if name not in self._teachers:
            enforce()
            inputs = self._method_inputs
            assert inputs.read is not None, "a run reads models"
            tokens = GuestTokens.read(name, inputs.tokens, self.max_new_tokens)
            checkpoint = inputs.read(name)
            unlike = tokens.unlike() or unlike_outputs(checkpoint, inputs.start)
            if unlike:
                raise UsageError(
                    f"The model {name} cannot be the teacher of {self._method.name}: {unlike}."
                    " Distributions of both are compared token by token."
                )
            self._teachers[name] = LanguageModel(checkpoint, "teacher", "score", self._runtime)
        return self._teachers[name]

    def critic(
        self, shared: bool = False, from_reward: bool = True, learning_rate: float | None = None
    ) -> Critic:
        """Return the critic, the same each time: a network of its own, or a head on the policy's
        trunk (`shared`).

        A network of its own starts from the reward model's trunk (`from_reward`, where there is
        one) or the start checkpoint's; its head starts at zero, so the first values are 0 whatever
        the scale of the reward. With `lora_rank` it is an adapter on that trunk.
        """
        if self._critic is None:
            enforce()
            seed = derive(self._runtime.seed, "critic")
            model, below = (
                (scalar_on(self.policy.model), BASE) if shared else self._value_network(from_reward)
            )
            self._critic = Critic(model.initialise(seed, std=0.0), self._runtime, below)
            learned = model.head.requires_grad_(True) if shared else learn(model)
            if not shared:
                self._method_inputs.start.sharded(model)
            self._loop.trainer.add("value", learned, learning_rate)
            if shared:
                self._runtime.meter.hold("value", *size_of(model.head))
            else:
                self._critic.role.hold(self._runtime.meter)
        return self._critic

    def _value_network(self, from_reward: bool) -> tuple[ScalarModel, str]:
        """Return a scalar model for a critic, with its own weights or its own adapter, and the role
        that counts the weights below that adapter.
        """
        lora = lora_of(self._method, self._runtime.seed, "value")
        reward = None
        if from_reward and self._method_inputs.rewards is not None:
            reward = self._scoring.models()[0]
        if isinstance(reward, RewardModel):  # one of the hub has another architecture
            apart = getattr(self._method, "reward_refresh", 0) > 0
            below = BASE if adapted(reward.model) else "value_base" if apart else reward.role.name
            return reward.for_critic(lora, apart), below
        if lora is not None:
            return scalar_beside(self._method_inputs.start.model(), lora), BASE
        return scalar_on(self._method_inputs.start.copy()), BASE

    def reward(self, batch: Batch, sampler: Sampler | None = None) -> Tensor:
        """Return (B, K) rewards by the method's RewardOptions; NaN where a verifier cannot decide.

        Learned rewards are in units of the standard deviation over samples of the start checkpoint,
        and demonstrations score 0 on average. A policy that scores while it answers passes the
        evaluator's `sampler`, to which the cost is then counted.
        """
        enforce()
        rewards = self._scoring.reward(batch, sampler)
        self._shared.check_written()
        self._samples.scored(batch, rewards)
        return rewards

    def rewards(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the reward, each (B, K), by name: see `api.lab`."""
        enforce()
        parts = self._scoring.rewards(batch)
        self._shared.check_written()
        self._samples.scored(batch, torch.stack(list(parts.values())).sum(0))
        return parts

    def verify(self, batch: Batch) -> Tensor:
        """Return (B, K) verdicts of the suite's verifier; NaN where an answer cannot be scored."""
        enforce()
        verdicts = self._scoring.verdicts(batch)
        self._samples.scored(batch, verdicts)
        return verdicts

    def step_rewards(self, batch: Batch) -> Tensor:
        """Return (B, K, T) the verifier's rewards of steps, where they end; NaN elsewhere."""
        enforce()
        return self._scoring.step_rewards(batch)

    def grades(
        self,
        batch: Batch,
        question: str,
        scale: tuple[str, ...],
        of: LanguageModel | None = None,
        draws: int = 0,
        max_new_tokens: int | None = None,
    ) -> Tensor:
        """Return (B, K) grades that a model of the lab gives completions; NaN where it gives none.

        With `draws` replies are sampled and read; else the grade is the mean under the model's
        probabilities of the scale. See `api.lab`.
        """
        asked = Scale(question, tuple(scale))
        asked.check()
        length = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        sampler = self._sampler("grades", Sampling(self._runtime.sampling.temperature, length))
        self._shared.check_written()
        model, runtime = of or self.policy, self._runtime
        model.role.hold(runtime.meter)
        posed = questions(asked, batch, self.tokens)
        with runtime.meter.phase("score"):
            runtime.meter.add(ai_labels=len(posed) * max(1, draws))
        values = (
            replied(asked, posed, model, sampler, draws, self.tokens)
            if draws
            else expected(asked, posed, model, self.tokens, runtime)
        )
        return values.view(batch.shape[:2])

    def revise(self, batch: Batch, rounds: int = 1) -> Batch:
        """Return the completions (B, K, T) after the method's labeller rewrote them `rounds` times.

        Each round follows one principle, drawn from the constitution, and counts as one label per
        completion. Needs "labels".
        """
        return self._scoring.revised(batch, rounds)

    # -- training ----------------------------------------------------------------------------------

    def step(self, *what: Any) -> dict[str, float]:
        """Take one optimiser step: `step(loss, batch)` or `step(term, ...)`; see `api.lab`."""
        enforce()
        self._check_turn("step")
        terms = what if isinstance(what[0], Term) else (self.term(what[0], what[1]),)
        self._runtime.engine.sleep()
        with self._runtime.meter.phase("update"):
            metrics = self._loop.trainer.step(terms, self._loop.progress)
        self._loop.log(metrics)
        return metrics

    def term(
        self,
        loss: Loss,
        batch: Batch,
        of: LanguageModel | WithEntropy | Against | Critic | None = None,
        weight: float = 1.0,
        reduction: str | float = "token-mean",
    ) -> Term:
        """Return one term of a step: a loss of the policy's log-probabilities (or the critic's
        values) on a batch.
        """
        return Term(loss, batch, (of or self.policy).role, weight, reduction)

    def log(self, **metrics: float | Tensor) -> None:
        """Add numbers to the current turn's row of metrics."""
        self._loop.log({name: float(value) for name, value in metrics.items()})

    @property
    def state(self) -> dict[str, Any]:
        """Numbers that a method carries from turn to turn; they survive a restart.

        JSON-able values only.
        """
        return self._loop.state

    @property
    def max_new_tokens(self) -> int:
        """How long a completion may be, in tokens: the suite's limit."""
        return self._runtime.sampling.max_new_tokens

    @property
    def turn(self) -> int:
        """The current turn of the stream, from 0. A restart keeps it, unlike an own counter."""
        return self._loop.turn

    def outside(self, kind: str, steps: int = 0, epochs: float = 1.0) -> OutsideTraining:
        """Return the turns of a training by another library: see `OutsideTraining`.

        Its batches are those that `pairs`, `labelled` or `prompts` would yield.
        """
        if self._runtime.distributed.size > 1:
            raise UsageError(
                f"{self._method.name}: another library trains in one process. Start one process."
            )
        self._runtime.tell(
            f"{self._method.name} saves nothing while it trains: an interrupted run begins anew."
        )
        batches = self._all_batches(kind, steps, epochs)
        return OutsideTraining(self._loop, self._runtime, batches, kind)

    # -- helpers --------------------------------------------------------------------

    def texts(self, batch: Batch) -> list[list[str]]:
        """Return the completions of a batch as text, K per prompt."""
        return self.tokens.texts(batch)

    def _recall(self, batch: Batch) -> Cached | None:
        self._shared.check_written()
        return (
            self._method_inputs.reference_cache.logp(batch)
            if self._method_inputs.reference_cache and self._recalls
            else None
        )

    def _at_start(self, model: LanguageModel) -> bool:
        """Return whether a model is the start checkpoint, or the policy before its first step."""
        if self._method_inputs.reference_cache is None:  # nothing depends on it
            return False
        if model is self._policy:
            return not self._loop.trainer.steps and self._method_inputs.start.equals(model.model)
        return self._method_inputs.start.is_(model.model)

    def _check_turn(self, what: str) -> None:
        """Refuse a call outside a stream, which a restart would repeat with other weights."""
        if not self._loop.open:
            raise ValueError(
                f"lab.{what} belongs into a stream (`for ... in lab.prompts(...)`): only that can"
                " resume"
            )

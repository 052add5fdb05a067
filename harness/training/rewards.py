"""Rewards of completions: learned rewards, verdicts, penalties, and refreshed reward models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..api.contracts import Method, Verifier
from ..api.lab import Lab
from ..api.verifiers import verdicts
from ..core.errors import Diverged
from ..core.fault_points import fault_value
from ..core.meter import Meter
from ..core.settings import RewardOptions
from ..models.batches import Batch, PromptBatch
from ..models.generation import Sampler
from ..models.lora import learn
from ..models.tokens import Tokens
from .hub_reward import HubReward
from .inputs import MethodInputs
from .label_server import LabelClient
from .loop import Loop
from .reward_model import RewardModel, combine, pair_accuracy, preferred_of, ranking_loss
from .runtime import Runtime
from .step_rewards import step_rewards
from .trainer import Term

REFRESH_COMPLETIONS = 4  # per prompt of the turn, labelled for a refresh of the reward model
REFRESH_RATE = 0.2  # of the learning rate that the reward model was trained at


class RewardScorer:
    """Scores completions for the lab; models and labellers are loaded at the first request."""

    def __init__(
        self, lab: Lab, method: Method, method_inputs: MethodInputs, runtime: Runtime, loop: Loop
    ) -> None:
        self._options = method if isinstance(method, RewardOptions) else RewardOptions()
        self._lab, self._method_inputs, self._runtime, self._loop = (
            lab,
            method_inputs,
            runtime,
            loop,
        )
        self._models: Sequence[RewardModel | HubReward] | None = None
        self._label_client: LabelClient | None = None
        self._refreshed: tuple[int, int] | None = None

    def reward(self, batch: Batch, sampler: Sampler | None = None) -> Tensor:
        """Return (B, K) rewards: see Lab.reward."""
        scores, _ = self._scores(batch, sampler)
        for penalty in self._penalties(batch).values():
            scores = scores + penalty
        return scores

    def rewards(self, batch: Batch) -> dict[str, Tensor]:
        """Return the rewards (B, K) apart, by name: see Lab.rewards."""
        whole, parts = self._scores(batch, None)
        verdicts = {f"verdict_{label}": column for label, column in parts.items()}
        return {**(verdicts or {"reward": whole}), **self._penalties(batch)}

    def _scores(self, batch: Batch, sampler: Sampler | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (B, K) learned rewards or verdicts, and those of several verifiers by label."""
        options = self._options
        if options.reward == "verifier":
            return self._verdicts(batch, sampler)
        if options.reward_refresh and sampler is None:
            self._keep_fresh(batch.prompts, options.reward_refresh)
        return self._learned(batch, options, sampler), {}

    def _penalties(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the options take from the reward, (B, K) by name; all at most 0."""
        options, penalties = self._options, {}
        if options.missing_eos_penalty:
            unended = (~self._ended(batch)).float()
            penalties["missing_eos"] = -options.missing_eos_penalty * unended
        if options.length_penalty:
            penalties["length"] = -options.length_penalty * batch.lengths
        return penalties

    def _learned(self, batch: Batch, options: RewardOptions, sampler: Sampler | None) -> Tensor:
        models = self.models()[: options.reward_members]
        runtime = replace(self._runtime, meter=sampler.meter) if sampler else self._runtime
        with runtime.meter.phase(sampler.phase if sampler else "score"):
            scores = torch.stack([model.score(batch, runtime) for model in models])
        combined = combine(scores, options.reward_combine, options.reward_variance_coef)
        combined = fault_value("reward", combined)
        if not torch.isfinite(combined).all():
            raise Diverged("The reward model returned a value that is not finite.")
        return combined

    def _ended(self, batch: Batch) -> Tensor:
        if "ended" in batch:
            return batch["ended"]
        last = batch["completion_ids"].gather(-1, (batch.lengths - 1).clamp(min=0)[..., None])[
            ..., 0
        ]
        return torch.isin(
            last, torch.tensor(sorted(self._runtime.eos), device=self._runtime.device)
        )

    def _keep_fresh(self, prompts: PromptBatch, every: int) -> None:
        """Every `every` turns, label fresh samples of the policy and train the reward models on
        them.
        """
        place = (self._loop.stream, self._loop.turn)
        if self._loop.turn == 0 or self._loop.turn % every or self._refreshed == place:
            return
        self._refreshed = place
        batch = self._lab.rollout(prompts, REFRESH_COMPLETIONS)
        texts, lengths = self._lab.texts(batch), batch.lengths.tolist()
        ended = self._ended(batch).tolist()
        with self._runtime.meter.phase("score"):
            labels, count = self._labels_from().compare(
                [p.id for p in prompts.prompts], texts, lengths, ended, list(place)
            )
            self._count_labels(count)
        preferred = preferred_of(labels, REFRESH_COMPLETIONS).to(self._runtime.device)
        for model in self._trained():
            self._learn(model, batch, preferred)

    def _learn(self, model: RewardModel, batch: Batch, preferred: Tensor) -> None:
        """Log how well a reward model orders fresh pairs, `preferred` (B, K, K), and train it on
        them.
        """
        with self._runtime.meter.phase("score"):
            right, pairs = pair_accuracy(model.raw(batch, self._runtime), preferred)
        if pairs:
            self._lab.log(**{f"{model.role.name}_accuracy": right / pairs})
        batch = batch.with_columns(preferred=preferred.flatten(1))
        for part in self._lab.minibatches(batch, self._method_inputs.refresh.batch_size):
            term = Term(ranking_loss, part, model.role)
            with self._runtime.meter.phase("update"):
                self._loop.trainer.step([term], self._loop.progress)

    def revised(self, batch: Batch, rounds: int) -> Batch:
        """Return the completions (B, K, T) after the labeller rewrote them: see Lab.revise."""
        texts, place = self._lab.texts(batch), [self._loop.stream, self._loop.turn]
        prompts = batch.prompts.prompts
        with self._runtime.meter.phase("score"):
            revised = self._labels_from().revise([p.id for p in prompts], texts, rounds, place)
            self._count_labels(rounds * sum(map(len, texts)))
        changed = [
            a != b
            for old, new in zip(texts, revised, strict=True)
            for a, b in zip(old, new, strict=True)
        ]
        self._lab.log(revised=sum(changed) / len(changed))
        tokens = self._method_inputs.tokens
        ids = [
            [tokens.answer_ids(p.text, t) for t in row]
            for p, row in zip(prompts, revised, strict=True)
        ]
        return tokens.batch(prompts, ids, self._runtime.device)

    def _labels_from(self) -> LabelClient:
        """Return the labeller's client, started at the first request and closed with the run."""
        if self._label_client is None:
            if self._method_inputs.label_client is None:
                raise ValueError(
                    "this method asks for labels without saying so: add 'labels' to its `needs`"
                )
            self._label_client = self._method_inputs.label_client()
            self._method_inputs.closing.append(self._label_client.close)
        return self._label_client

    def _count_labels(self, labels: int) -> None:
        """Count labels asked for while training."""
        self._runtime.meter.add(**{"labels" if self._labels_from().human else "ai_labels": labels})

    def verdicts(self, batch: Batch, sampler: Sampler | None = None) -> Tensor:
        """Return (B, K) verdicts of the suite's verifier; NaN where an answer cannot be scored."""
        return self._verdicts(batch, sampler)[0]

    def step_rewards(self, batch: Batch) -> Tensor:
        """Return (B, K, T) the verifier's rewards of steps; NaN where no step ends."""
        inputs, meter = self._method_inputs, self._runtime.meter
        with meter.phase("score"):
            return step_rewards(inputs.verifier, batch, self._ended(batch), inputs.tokens, meter)

    def _verdicts(self, batch: Batch, sampler: Sampler | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the verdicts, and those of several verifiers by label.

        The means of several verifiers are logged apart, as `verdict_LABEL`.
        """
        meter, phase = (sampler.meter, sampler.phase) if sampler else (self._runtime.meter, "score")
        inputs = self._method_inputs
        with meter.phase(phase):
            values, parts = batch_verdicts(
                inputs.verifier, batch, self._ended(batch), inputs.tokens, meter
            )
        if sampler is None:
            means = {label: column.nanmean() for label, column in parts.items()}
            self._lab.log(**{f"verdict_{k}": mean for k, mean in means.items() if mean == mean})
        return values, parts

    def models(self) -> Sequence[RewardModel | HubReward]:
        """Return the reward models, loaded when first asked for."""
        if self._models is None:
            if self._method_inputs.rewards is None:
                raise ValueError(
                    "this method asks for a reward without saying so: add 'reward' to its `needs`"
                )
            self._models = self._method_inputs.rewards()
            if self._options.reward_refresh:
                for model in self._trained():  # they are trained further
                    rate = self._method_inputs.refresh.learning_rate * REFRESH_RATE
                    self._loop.trainer.add(model.role.name, learn(model.model), rate)
            else:
                self._method_inputs.reward_states += [(one, one.state()) for one in self._models]
        return self._models

    def _trained(self) -> list[RewardModel]:
        """Return the reward models that were trained here; a run of the hub's has none."""
        return [model for model in self.models() if isinstance(model, RewardModel)]


def batch_verdicts(
    verifier: Verifier | None, batch: Batch, ended: Tensor, tokens: Tokens, meter: Meter
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (B, K) verdicts, counted in the meter's current phase, and those of several verifiers
    by label; NaN where an answer cannot be scored.

    `ended` (B, K) is true where a completion ended by itself.
    """
    if verifier is None:
        raise ValueError(
            "this method asks for a verifier without saying so: add 'verifier' to its `needs`"
        )
    b, k, _ = batch.shape
    meter.add(verifier_queries=b * k)
    prompts = [prompt for prompt in batch.prompts.prompts for _ in range(k)]
    texts = [text for row in tokens.texts(batch) for text in row]
    answers = verdicts(verifier, prompts, texts, ended.flatten().tolist())

    def column(values: list[float | None]) -> Tensor:
        numbers = [math.nan if value is None else value for value in values]
        return torch.tensor(numbers, device=batch["mask"].device).view(b, k)

    return column(answers.values), {name: column(part) for name, part in answers.parts.items()}

"""Exact: answers of at most three tokens. All of them can be listed, so every figure of a policy is
exact.

Four prompts, three words and the end-of-sequence token: 40 answers per prompt, ended early or cut
at the limit. The preference data are all pairs, so an offline method trains on expectations instead
of samples. A larger vocabulary would give hundreds of thousands of pairs. The reward is a random
table. Nothing generalises here: every split asks the same four prompts. The suite measures how near
a method comes to the optimum that its paper derives.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from random import Random

from harness import (
    Demonstration,
    Judge,
    Pair,
    Prompt,
    RewardOptions,
    Suite,
    UsageError,
    Verifier,
    hookimpl,
    prompt_text,
)

from .embedded import GROUPS

WORDS, END = ("a", "b", "c"), "</s>"
# Of several lengths, none the beginning of another, and none of one word alone: without a start
# token attention cannot count equal tokens, so "a" and "a a" would be one context.
PROMPTS = ("a b", "b c a", "c a", "a c b b")
SIZES = {"demonstrations": 1024, "preferences": 4, "train": 4, "validation": 512, "test": 512}
SPAN = math.sqrt(3)  # rewards are uniform on [-SPAN, SPAN]: unit spread, and bounded
OFFLINE = {"learning_rate": 5e-3, "batch_size": 256, "steps": 120}
LISTS = {"learning_rate": 5e-3, "batch_size": 128, "steps": 240}
ON_POLICY = {
    "learning_rate": 5e-3,
    "batch_size": 64,
    "num_generations": 8,
    "steps": 150,
    "beta": 1.0,
}
TRAINED = (
    "sft_chosen",
    "dpo",
    "ipo",
    "kto",
    "simpo",
    "orpo",
    "slic",
    "rrhf",
    "alpha_po",
    "apo_down",
    "apo_zero",
    "bco",
    "cal_dpo",
    "chipo",
    "cpo",
    "discopop",
    "dpo_nll",
    "dpo_shift",
    "dpop",
    "exo",
    "f_dpo",
    "focal_po",
    "gpo",
    "hinge_norm",
    "ld_dpo",
    "nca",
    "r_dpo",
    "sppo_hard",
    "tr_dpo",
    "aot",
    "beta_dpo",
    "dr_dpo",
    "wpo",
    "ppo",
    "grpo",
    "rlvr",
    "rloo",
    "reinforce_pp",
    "online_dpo",
    *GROUPS,
    "tdpo",
    "info_nca",
    "lipo",
    "nca_k",
    "odpo",
    "pro",
    "a_lol",
    "nash_md",
    "rebel",
    "spin",
    "xpo",
)
NEVER_EVEN = 1e-9  # added to even pairs, which would be dropped otherwise


@cache
def worth(seed: int, ties: bool, prompt: str, completion: str) -> float:
    """Return the entry of the reward table: a pure function of its name."""
    name = f"exact/{seed}/{prompt}/{completion}"
    value = Random(name.encode("utf-8", "surrogatepass")).uniform(-SPAN, SPAN)
    return float(round(value)) if ties else value


@cache
def next_word(seed: int, prompt: str, words: tuple[str, ...]) -> tuple[float, ...]:
    """Return the demonstrators' probabilities of each next word, or of the end, after some words.
    They are random and above 0.
    """
    rng = Random(f"exact/demonstrators/{seed}/{prompt}/{' '.join(words)}")
    return tuple(0.2 + rng.expovariate(1.0) for _ in (END, *WORDS))


@dataclass
class Exact(Suite):
    """Answer a prompt with at most three of three words; a random table gives the reward of each
    answer.
    """

    name, version = "exact", "1"
    judge_name = "exact_reward"
    enumerable = True

    max_tokens: int = 3  # the longest answer, its end included; 1 makes it a bandit
    ties: bool = False  # round the rewards, so that many answers have equal rewards

    settings = {
        "stage.sft": {"steps": 150, "batch_size": 64, "learning_rate": 3e-3},
        "stage.preferences": {"heldout": 1e-6},  # no held-out pairs: the methods see every pair
        "stage.reward_model": {"epochs": 1, "batch_size": 64, "learning_rate": 3e-3},
        "*": {"reward": "verifier", "learning_rate": 5e-3, "batch_size": 64},
        "sft_chosen": OFFLINE | {"steps": 800},
        "dpo": OFFLINE | {"beta": 1.0},
        "ipo": OFFLINE | {"beta": 1.0},
        "kto": OFFLINE | {"beta": 0.3, "steps": 1200},
        "simpo": OFFLINE | {"beta": 2.0, "gamma": 0.0, "steps": 600},
        "orpo": OFFLINE | {"steps": 1000},
        "slic": OFFLINE | {"reward": "model", "steps": 1200},  # pairs do not need it
        "alpha_po": OFFLINE | {"gamma": 0.0, "steps": 600},
        "apo_down": OFFLINE | {"beta": 1.0, "learning_rate": 1e-3},
        "apo_zero": OFFLINE | {"beta": 1.0, "steps": 1200},
        "bco": OFFLINE | {"beta": 1.0, "steps": 240},
        "cal_dpo": OFFLINE | {"beta": 0.5, "steps": 240},
        "chipo": OFFLINE | {"beta": 1.0},
        "cpo": OFFLINE | {"steps": 1000},
        "discopop": OFFLINE | {"beta": 1.0, "tau": 1.0, "steps": 240},
        "dpo_nll": OFFLINE | {"beta": 1.0, "steps": 400},
        "dpo_shift": OFFLINE | {"beta": 1.0, "steps": 240},
        "dpop": OFFLINE | {"beta": 1.0, "dpop_lambda": 1.0, "steps": 400},
        "exo": OFFLINE | {"beta": 1.0, "steps": 240},
        "f_dpo": OFFLINE | {"beta": 3.0, "steps": 300},
        "focal_po": OFFLINE | {"beta": 1.0, "steps": 240},
        "gpo": OFFLINE | {"beta": 1.0},
        "hinge_norm": OFFLINE | {"beta": 1.0, "steps": 1200},
        "ld_dpo": OFFLINE | {"beta": 1.0, "steps": 240},
        "nca": OFFLINE | {"beta": 1.0, "steps": 240},
        "r_dpo": OFFLINE | {"beta": 1.0, "alpha": 0.2},
        "sppo_hard": OFFLINE | {"beta": 0.5, "steps": 240},
        "aot": OFFLINE | {"beta": 1.0},
        "beta_dpo": OFFLINE | {"beta": 1.0, "alpha": 0.0, "kept": 1.0},
        "dr_dpo": OFFLINE | {"beta": 1.0, "beta_prime": 4.0, "steps": 240},
        "wpo": OFFLINE | {"beta": 1.0},
        "tr_dpo": OFFLINE | {"beta": 2.0, "steps": 240, "ref_model_sync_steps": 120},
        "rrhf": {"steps": 400, "batch_size": 128},
        "ppo": (
            ON_POLICY
            | {
                "num_ppo_epochs": 1,
                "gae_lambda": 1.0,
                "whiten_advantages": False,
                "vf_coef": 1.0,
                "clip_range_value": 0.0,
                "missing_eos_penalty": 0.0,
            }
        ),
        "grpo": (
            ON_POLICY | {"kl_in": "reward", "kl_estimator": "k1"}
        ),  # the optimum of a KL term in the loss is not computed
        "rlvr": ON_POLICY | {"kl_in": "reward", "kl_estimator": "k1"},
        "rloo": ON_POLICY,
        **dict.fromkeys(GROUPS, ON_POLICY),
        "reinforce_pp": (
            ON_POLICY
            | {  # its advantages are not 0 at the optimum: more samples against their noise
                "group_baseline": True,
                "batch_size": 128,
                "learning_rate": 3e-3,
                "steps": 400,
            }
        ),
        "online_dpo": ON_POLICY | {"labels": "soft"},
        "tdpo": OFFLINE | {"beta": 1.0},
        "info_nca": LISTS | {"beta": 1.0, "num_candidates": 4},
        "lipo": LISTS,
        "nca_k": LISTS | {"beta": 1.0, "num_candidates": 2},
        "odpo": LISTS | {"num_candidates": 4},
        "pro": LISTS | {"num_candidates": 2, "sft_weight": 1.0, "steps": 600},
        "a_lol": OFFLINE | {"num_generations": 64, "steps": 400},
        "nash_md": ON_POLICY | {"beta": 0.25, "steps": 300},
        "rebel": ON_POLICY | {"num_iterations": 1},
        "spin": OFFLINE | {"beta": 2.0, "rounds": 2, "steps": 240},
        "sppo": ON_POLICY | {"rounds": 2, "steps": 200},
        "xpo": ON_POLICY | {"labels": "soft", "alpha": 0.01},
        "raft": {
            "steps": 10,
            "num_generations": 2,
            "batch_size": 8192,
            "epochs": 10,
            "minibatch_size": 1024,
        },
    }
    quick = {
        "stage.sft": {"steps": 20},
        "stage.reward_model": {"epochs": 0.1},
        "stage.evaluation": {"prompts": 64},
        **dict.fromkeys(TRAINED, {"steps": 20}),
        "raft": {"steps": 1, "batch_size": 256, "epochs": 5},
        "sppo": {"steps": 20, "rounds": 2},
    }

    def check(self) -> None:
        """Refuse settings with too many answers or pairs to list."""
        if not 1 <= self.max_tokens <= 3:
            raise ValueError(
                "max_tokens is 1, 2 or 3: all pairs of longer answers would be too many"
            )

    def prompts(self, split: str) -> list[Prompt]:
        """Return the four prompts repeatedly, under new ids."""
        return [Prompt(f"{split}/{i}", PROMPTS[i % len(PROMPTS)]) for i in range(SIZES[split])]

    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return draws from a random distribution of full support, so that the start checkpoint is
        not uniform.
        """
        return [
            Demonstration(prompt, self._demonstration(prompt)) for prompt in self.prompts(split)
        ]

    def preferences(self) -> list[Pair]:
        """Return all pairs of answers, each with the exact probability p = sigma(r_w - r_l):
        Bradley-Terry.
        """
        answers = self.answers()
        return [
            self._pair(prompt, first, second)
            for prompt in self.prompts("preferences")
            for first, second in combinations(answers, 2)
        ]

    def make_verifier(self) -> Verifier:
        """Return the reward itself as a grade. Methods that use a reward train on it, not on a
        reward model.
        """
        return ExactVerifier(self)

    def base_model(self) -> Path:
        """Return the embedded base model, whose weights are random."""
        return Path(__file__).parent / "exact_base"

    @property
    def max_new_tokens(self) -> int:
        """The longest answer, its end included."""
        return self.max_tokens

    def answers(self) -> list[str]:
        """Return every answer as text, the empty one first; one of `max_tokens` words was cut."""
        return [
            " ".join(words)
            for n in range(self.max_tokens + 1)
            for words in product(WORDS, repeat=n)
        ]

    def reward(self, prompt: Prompt, completion: str) -> float:
        """Return the reward of an answer."""
        return worth(self.shared_seed, self.ties, prompt_text(prompt.text), completion)

    def figures(self, method, model, stages):
        """Return exact figures of the policy, and its distance to the method's optimum.

        `tv`, `regret` and `start_tv` are means over prompts of TV(policy, optimum), beta KL(policy
        || optimum) and TV(start, optimum); for a KL term in the reward, the regret is the optimal E
        r - beta KL less the policy's. With `--reference` no optimum is computed.
        """
        from harness.models.enumeration import every_completion, probabilities

        batch = every_completion(
            stages.tokens, self.prompts("test")[: len(PROMPTS)], self.max_tokens, stages.device
        )
        limit = stages.micro_batch_tokens
        problem = self.problem(
            method, batch, probabilities(stages.start, batch, limit), stages.tokens.texts(batch)
        )
        policy = None if model is None else probabilities(model, batch, limit)
        # the optimum differs for a learned reward and for another reference
        known = "reward" not in method.required() and not stages.spec.reference
        optimum = method.optimum(problem) if known else None
        figures = {"start_reward": problem.expected(problem.ref)}
        if policy is not None:
            figures |= _figures("exact", policy, problem)
        if optimum is not None:
            figures |= _figures("optimum", optimum, problem) | _distances(
                method, policy, optimum, problem
            )
        return {name: float(value.mean()) for name, value in figures.items()}

    def problem(self, method, batch, ref, texts):
        """Return the enumerated problem, with the reward that the method's options leave."""
        from harness import Enumerated, torch

        rows = zip(batch.prompts.prompts, texts, strict=True)
        reward = torch.tensor(
            [[self.reward(prompt, text) for text in row] for prompt, row in rows]
        ).double()
        prefer = torch.sigmoid(reward[:, :, None] - reward[:, None, :])
        if isinstance(method, RewardOptions):
            cut = torch.tensor([len(text.split()) == self.max_tokens for text in texts[0]])
            reward = (
                reward
                - method.missing_eos_penalty * cut
                - method.length_penalty * batch.lengths.cpu()
            )
        ids = [
            tuple(row[:n])
            for row, n in zip(batch["completion_ids"][0].tolist(), batch.lengths[0], strict=True)
        ]
        mu = torch.full_like(ref, 1 / ref.shape[1])
        listed = (ref.cpu(), reward, batch.lengths.cpu(), tuple(ids), mu.cpu(), prefer)
        return Enumerated(*listed, self._demonstrated(batch.prompts.prompts, texts))

    def _demonstrated(self, prompts, texts):
        """Return (P, N): the shares of the demonstrations of each prompt, which a method sees."""
        from harness import torch

        counts = Counter((prompt_text(d.prompt.text), d.completion) for d in self.demonstrations())
        rows = [
            [float(counts[prompt_text(prompt.text), text]) for text in row]
            for prompt, row in zip(prompts, texts, strict=True)
        ]
        shares = torch.tensor(rows).double()
        return shares / shares.sum(-1, keepdim=True)

    def _pair(self, prompt: Prompt, first: str, second: str) -> Pair:
        margin = self.reward(prompt, first) - self.reward(prompt, second)
        if margin < 0:
            first, second, margin = second, first, -margin
        return Pair(prompt, first, second, max(1 / (1 + math.exp(-margin)), 0.5 + NEVER_EVEN))

    def _demonstration(self, prompt: Prompt) -> str:
        rng = Random(f"exact/demonstration/{self.shared_seed}/{prompt.id}")
        words: list[str] = []
        while len(words) < self.max_tokens:
            (word,) = rng.choices(
                (END, *WORDS), next_word(self.shared_seed, prompt_text(prompt.text), tuple(words))
            )
            if word == END:
                break
            words.append(word)
        return " ".join(words)


def _figures(whose, policy, problem):
    """Return exact KL, expected reward and win-rate of a policy, (P,) each."""
    from harness.models import enumeration as listed

    return {
        f"{whose}_kl": listed.kl(policy, problem.ref),
        f"{whose}_reward": problem.expected(policy),
        f"{whose}_win_rate": problem.win_rate(policy),
    }


def _distances(method, policy, optimum, problem):
    """Return (P,) distances to the optimum; a policy without probabilities of its own has none."""
    from harness.models import enumeration as listed

    distances = {"start_tv": listed.total_variation(problem.ref, optimum)}
    if policy is None:
        return distances
    distances["tv"] = listed.total_variation(policy, optimum)
    beta = getattr(method, "beta", 0)
    if beta and bool((optimum > 0).all()):
        distances["regret"] = beta * listed.kl(policy, optimum)
    return distances


class ExactVerifier(Verifier):
    """The reward table as a grade in [-1.73, 1.73], which is neither right nor wrong."""

    name = "exact_reward"

    def __init__(self, suite: Exact) -> None:
        self.seed, self.ties = suite.shared_seed, suite.ties

    def verify(self, prompts, completions, golds, ended):
        """Return the reward of each answer."""
        return [
            worth(self.seed, self.ties, prompt_text(prompt.text), text)
            for prompt, text in zip(prompts, completions, strict=True)
        ]


class ExactReward(Judge):
    """The reward table as the judge. Training and evaluation use the same reward here, on
    purpose.
    """

    name = "exact_reward"
    length_bias = False

    def prepare(self, suite, stages):
        """Take the table of the suite."""
        if not isinstance(suite, Exact):
            raise UsageError(
                f"The judge exact_reward knows the suite exact only, not {suite.name}."
            )
        self.reward = suite.reward

    def score(self, prompts, completions):
        """Return the reward of each answer."""
        return [
            self.reward(prompt, text) for prompt, text in zip(prompts, completions, strict=True)
        ]


@hookimpl
def register_suites(register):
    register(Exact)


@hookimpl
def register_judges(register):
    register(ExactReward)

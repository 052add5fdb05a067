"""`harness new method NAME` and `harness new suite NAME`: a working, tested plugin project to begin
from.
"""

from __future__ import annotations

from pathlib import Path

from ..api.registry import NAME
from ..core.errors import Refused, UsageError

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "harness-@DASHED@"
version = "0.1.0"
description = "@TITLE@: a plugin for alignment-harness"
readme = "README.md"
requires-python = ">=3.10"
dependencies = ["alignment-harness"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.harness]
@NAME@ = "harness_@NAME@"

[tool.hatch.build.targets.wheel]
only-include = ["harness_@NAME@.py"]
"""

README = """\
# harness-@DASHED@

@TITLE@, a plugin for alignment-harness.

    pip install -e ".[test]"
    pytest                                          # its own tests
    harness check @NAME@@ARGUMENTS@                 # the proofs every plugin is put to
    harness run --method @METHOD@ --suite @SUITE@
    harness table
"""

METHOD = '''\
"""@TITLE@: replace this with the paper's name and a sentence on its idea."""

from __future__ import annotations

from dataclasses import dataclass

from harness import PairOptions, hookimpl, torch


@dataclass
class @CLASS@(PairOptions):
    """Preference pairs by a hinge on log-ratios: replace this with what your method does."""

    name, kind, paper = "@NAME@", "offline preference", "https://arxiv.org/abs/2309.06657"
    needs = frozenset({"pairs"})

    beta: float = 1.0  # scale of the log-ratios: the margin is reached when they differ by 1 / beta nats

    def loss(self, logp, batch):
        """max(0, 1 - beta (s_w - s_l)), s = log pi(y|x) / pi_ref(y|x) summed over tokens (2309.06657, eq. 10); (B,)."""
        s_w, s_l = (logp - batch["ref_logp"]).sum(-1).unbind(1)
        margin = self.beta * (s_w - s_l)
        return torch.relu(1 - margin), {"margin": margin}

    def train(self, lab):
        for pairs in self.pairs(lab):
            lab.step(self.loss, pairs.with_columns(ref_logp=lab.reference.logp(pairs)))
        return lab.policy


@hookimpl
def register_methods(register):
    register(@CLASS@)
'''

METHOD_TEST = '''\
"""The loss by hand, and a quick run."""

import torch
from harness_@NAME@ import @CLASS@

from harness.check import Options, check
from harness.api.registry import installed


def test_the_loss_by_hand():
    logp = torch.tensor([[[-1.0, -1.0], [-2.0, 0.0]]])
    ref = torch.tensor([[[-1.5, -1.0], [-1.0, 0.0]]])
    loss, metrics = @CLASS@(beta=0.5).loss(logp, {"ref_logp": ref})
    assert metrics["margin"].tolist() == [0.5 * (0.5 - (-1.0))]
    assert loss.tolist() == [0.25]


def test_the_proofs_of_a_small_run(tmp_path):
    findings = list(check("methods", "@NAME@", installed(), Options(full=False, processes=False, results=tmp_path)))
    assert [f for f in findings if f.status == "FAILED"] == []
'''

SUITE = '''\
"""@TITLE@: replace this with what is asked, and how answers are judged."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from harness import Demonstration, Judge, Prompt, Ranker, Suite, hookimpl

WORDS = "boat cow taxi snow song soup tree star".split()
SIZES = {"demonstrations": 400, "preferences": 400, "train": 400, "validation": 100, "test": 200}


@dataclass
class @CLASS@(Suite):
    """Copy three words in the order asked for: replace this with a task of your own."""

    name, version = "@NAME@", "1"
    judge_name, labeller_name = "@NAME@_judge", "@NAME@_labeller"

    words: int = 3  # how many words a prompt has

    settings = {  # recommended, by stage ("stage.NAME"), method, or "*" for any
        "stage.sft": {"steps": 60, "learning_rate": 1e-3},
        "stage.preferences": {"prompts": 200, "completions": 4},
        "stage.reward_model": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "pooling": "sum"},
        "stage.evaluation": {"prompts": 200},
        "*": {"learning_rate": 3e-4},
    }
    quick = {"stage.sft": {"steps": 10}, "stage.preferences": {"prompts": 60}, "stage.evaluation": {"prompts": 32}}

    def prompts(self, split):
        """Return the prompts of a split; no two splits share one."""
        drawn = [self._prompt(split, i) for i in range(SIZES[split])]
        return [prompt for prompt in drawn if self._owner(prompt) == split]

    def demonstrations(self, split="demonstrations"):
        """Return what the start checkpoint imitates: right two times in three."""
        return [Demonstration(p, self._answer(p)) for p in self.prompts(split)]

    def base_model(self):
        """Return a folder in hub format. This one is the embedded base model; bring your own."""
        from harness_suites.summarization import Summarization

        return Summarization().base_model()

    @property
    def max_new_tokens(self):
        """How long an answer may be, its end included."""
        return self.words + 2

    def _prompt(self, split, i):
        rng = Random(f"@NAME@/{self.shared_seed}/{split}/{i}")
        return Prompt(f"{split}/{i}", f"copy: {' '.join(rng.choices(WORDS, k=self.words))} =>")

    def _owner(self, prompt):
        """Return the one split a text belongs to, whichever drew it."""
        return Random(f"owner/{prompt.text}").choice(list(SIZES))

    def _answer(self, prompt):
        rng, words = Random(f"answer/{self.shared_seed}/{prompt.id}"), asked(prompt)
        return " ".join(words if rng.random() < 0.67 else rng.sample(words, len(words))) + " ."


def asked(prompt):
    """Return the words of a prompt."""
    return prompt.text.split()[1:-1]


class Gold(Judge):
    """The share of words in their place."""

    name = "@NAME@_judge"

    def score(self, prompts, completions):
        """Return a score in [0, 1] per completion."""
        return [share(asked(p), c.split()) for p, c in zip(prompts, completions, strict=True)]


def share(wanted, given):
    """Return the share of wanted words that stand in their place."""
    return sum(a == b for a, b in zip(wanted, given, strict=False)) / len(wanted)


class Annotator(Ranker):
    """Prefers the better copy, and errs as often as a coin in one case of ten."""

    name = "@NAME@_labeller"

    def prepare(self, suite, judge):
        """Take the judge."""
        self.judge = judge

    def rank(self, prompt, completions, lengths, rng):
        """Return ranks; equal scores tie."""
        scores = self.judge.score([prompt] * len(completions), completions)
        noisy = [s if rng.random() > 0.1 else rng.random() for s in scores]
        return [sorted(set(noisy), reverse=True).index(s) for s in noisy]


@hookimpl
def register_suites(register):
    register(@CLASS@)


@hookimpl
def register_judges(register):
    register(Gold)


@hookimpl
def register_labellers(register):
    register(Annotator)
'''

SUITE_TEST = '''\
"""The judge by hand, and the proofs of a suite."""

from harness_@NAME@ import share

from harness.check import Options, check
from harness.api.registry import installed


def test_the_judge_by_hand():
    assert share(["cow", "tree", "cow"], ["cow", "tree", "snow"]) == 2 / 3
    assert share(["cow", "tree"], []) == 0


def test_the_proofs(tmp_path):
    findings = list(check("suites", "@NAME@", installed(), Options(results=tmp_path)))
    assert [f for f in findings if f.status == "FAILED"] == []
'''

KINDS = {
    "method": (
        METHOD,
        METHOD_TEST,
        {"@METHOD@": "@NAME@", "@SUITE@": "summarization", "@ARGUMENTS@": ""},
    ),
    "suite": (SUITE, SUITE_TEST, {"@METHOD@": "dpo", "@SUITE@": "@NAME@", "@ARGUMENTS@": ""}),
}


def new_project(kind: str, name: str, parent: Path) -> Path:
    """Write a plugin project and return its folder; nothing that is there is touched."""
    if kind not in KINDS:
        raise UsageError(f"There is no project of kind {kind!r}: expected {' or '.join(KINDS)}.")
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r}: a name is lower-case letters, digits and _, a letter first.")
    folder = parent / f"harness-{name.replace('_', '-')}"
    if folder.exists():
        raise Refused(f"{folder} is there already: choose another name or folder.")
    code, test, words = KINDS[kind]
    files = {
        f"harness_{name}.py": code,
        f"tests/test_{name}.py": test,
        "pyproject.toml": PYPROJECT,
        "README.md": README,
    }
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(_filled(text, name, words), encoding="utf-8")
    except OSError as error:
        raise Refused(f"Cannot write {folder}: {error.strerror}.") from error
    return folder


def _filled(text: str, name: str, words: dict[str, str]) -> str:
    spoken = name.replace("_", " ")
    own = {"@NAME@": name, "@DASHED@": name.replace("_", "-"), "@TITLE@": spoken.capitalize()}
    for mark, value in {**words, **own, "@CLASS@": spoken.title().replace(" ", "")}.items():
        text = text.replace(mark, value)
    return text

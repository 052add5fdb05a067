"""Verifiers by name: options, several with weights, the cache, and what names a run."""

from dataclasses import dataclass

import pytest

from harness import Prompt, Verifier, make_verifier, verdicts
from harness.api import verifiers as module
from harness.api.registry import installed
from harness.api.verifiers import WeightedVerifiers, verifier_digest
from harness.core.errors import HarnessError, UsageError


@dataclass
class Ends(Verifier):
    """Right if the completion ends with the gold answer, and ended by itself."""

    name, reads_prompt = "ends", False

    mark: str = ""  # what follows the gold answer

    def check(self):
        if self.mark == "?":
            raise ValueError("mark must not be ?")

    def read_gold(self, text):
        if not text:
            raise ValueError("holds nothing")
        return text.strip()

    def verify(self, prompts, completions, golds, ended):
        CALLS.append(len(completions))
        return [
            None if gold is None else float(end and text.endswith(gold + self.mark))
            for text, gold, end in zip(completions, golds, ended, strict=True)
        ]


@dataclass
class Short(Verifier):
    """Right if the completion has few characters; it needs no gold answer."""

    name, reads_prompt = "short", False

    most: int = 4  # characters

    def verify(self, prompts, completions, golds, ended):
        return [float(len(text) <= self.most) for text in completions]


@dataclass
class SamePrompt(Verifier):
    """Right if the completion is the prompt."""

    name = "same_prompt"

    def verify(self, prompts, completions, golds, ended):
        return [float(p.text == text) for p, text in zip(prompts, completions, strict=True)]


CALLS = []


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The verifiers of this file, and an empty cache."""
    known = dict(installed().classes["verifiers"]) | {c.name: c for c in (Ends, Short, SamePrompt)}
    monkeypatch.setitem(installed().classes, "verifiers", known)
    monkeypatch.setattr(module, "_cache", type(module._cache)())
    CALLS.clear()


def prompts(*golds):
    return [Prompt(f"p{i}", f"question {i}", gold) for i, gold in enumerate(golds)]


def test_make_verifier_sets_options_and_folder(tmp_path):
    verifier = make_verifier("ends", {"mark": "."}, folder=tmp_path)
    assert (verifier.mark, verifier.folder, Ends.folder.name) == (".", tmp_path, "")


@pytest.mark.parametrize(
    "name, options, several, why",
    [
        ("nosuch", {}, [], "There is no verifier 'nosuch'"),
        ("ends", {"marks": "."}, [], "There is no option 'marks'. Did you mean 'mark'"),
        ("ends", {"mark": 3}, [], "verifier ends: mark = 3: expected str"),
        ("ends", {"mark": "?"}, [], "verifier ends: mark must not be"),
        ("ends", {"mark": "."}, [{"name": "short"}], "belong to a single verifier"),
        ("", {}, [{"weight": 1}], "expected a table with the name"),
        ("", {}, [{"name": "ends", "weight": 0}], "weight = 0: expected a number above 0"),
        ("", {}, [{"name": "ends", "weight": "1"}], "expected a number above 0"),
        ("", {}, [{"name": "ends", "label": "A b"}], "label = 'A b'"),
        ("", {}, [{"name": "ends"}, {"name": "ends"}], "'ends' is there twice"),
        ("", {}, [{"name": "ends", "gate": True}], "all of them are gates"),
        ("", {}, [{"name": "ends"}, {"name": "short", "gate": 1}], "gate = 1: expected true"),
        ("", {}, [{"name": "ends", "gate": True, "weight": 2}], "no weight beside true"),
    ],
)
def test_make_verifier_refuses_what_makes_no_sense(name, options, several, why):
    with pytest.raises(UsageError) as error:
        make_verifier(name, options, several)
    assert why in str(error.value)


def test_several_verifiers_are_a_weighted_mean_with_each_apart():
    several = [{"name": "ends", "weight": 3}, {"name": "short", "most": 5, "label": "brief"}]
    verifier = make_verifier("", {}, several)
    gold = verifier.read_gold(" 72 ")
    asked = prompts(gold, gold, gold, None)
    found = verdicts(verifier, asked, ["72", "so it is 72", "71", "72"], [True] * 4)
    assert found.parts == {"ends": [1.0, 1.0, 0.0, None], "brief": [1.0, 0.0, 1.0, 1.0]}
    assert found.values == [1.0, 0.75, 0.25, None]
    golds = [prompt.answer for prompt in asked]
    assert verifier.verify(asked, ["72"] * 4, golds, [True] * 4) == [1.0, 1.0, 1.0, None]


def test_gate_multiplies_the_mean_of_the_others_and_stands_apart():
    several = [
        {"name": "ends", "weight": 3},
        {"name": "short", "most": 9, "label": "brief"},
        {"name": "short", "most": 20, "label": "bar", "gate": True},
    ]
    verifier = make_verifier("", {}, several)
    texts = ["so 72", "so it is 72", "so in the end it is 72"]
    asked = prompts(*[verifier.read_gold("72")] * 3)
    found = verdicts(verifier, asked, texts, [True] * 3)
    assert found.values == [1.0, 0.75, 0.0]
    assert found.parts["bar"] == [1.0, 1.0, 0.0]
    without = make_verifier("", {}, [*several[:2], several[2] | {"gate": False}])
    assert verifier_digest(without) != verifier_digest(verifier)


def test_gold_answer_that_one_of_several_cannot_read_is_refused():
    verifier = make_verifier("", {}, [{"name": "ends"}, {"name": "short"}])
    with pytest.raises(ValueError, match="holds nothing"):
        verifier.read_gold("")


def test_whether_a_completion_ended_reaches_the_verifier():
    asked = prompts("72", "72")
    assert verdicts(Ends(), asked, ["72", "72"], [True, False]).values == [1.0, 0.0]


def test_verdicts_are_computed_once_per_options_gold_answer_and_completion():
    asked, texts = prompts("72", "72", "7"), ["72", "72", "72"]
    assert verdicts(Ends(), asked, texts, [True] * 3).values == [1.0, 1.0, 0.0]
    assert verdicts(Ends(), asked, texts, [True] * 3).values == [1.0, 1.0, 0.0]
    assert CALLS == [2]  # two prompts share gold answer and completion
    verdicts(Ends(mark="."), asked, texts, [True] * 3)
    assert CALLS == [2, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"verifier": Ends(mark=".")},
        {"verifier": Short()},
        {"gold": "2"},
        {"text": "72 "},
        {"ended": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_key_of_a_verdict_holds_all_that_decides_it(change):
    def asked(verifier=None, gold="72", text="72", ended=True):
        return list(module._keys(verifier or Ends(), prompts(gold), [text], [gold], [ended]))

    assert asked() == asked() and asked(**change) != asked()


def test_key_of_a_verdict_holds_the_folder_and_the_prompt_where_it_is_read(tmp_path):
    here, there = Ends(), Ends()
    there.folder = tmp_path
    rows = (prompts("7"), ["7"], ["7"], [True])
    assert list(module._keys(here, *rows)) != list(module._keys(there, *rows))
    other = [Prompt("p9", "another question", "7")]
    for verifier, differ in ((Ends(), False), (SamePrompt(), True)):
        keys = [list(module._keys(verifier, asked, *rows[1:])) for asked in (rows[0], other)]
        assert (keys[0] != keys[1]) is differ


def test_long_completion_is_checked_again_and_not_kept():
    texts = ["7" * (module.LONGEST_CACHED + 1), "7" * (module.LONGEST_CACHED + 1), "7"]
    for _ in range(2):
        assert verdicts(Ends(), prompts(*"777"), texts, [True] * 3).values == [1.0] * 3
    assert CALLS == [3, 2] and len(module._cache) == 1


def test_cache_tells_prompts_apart_where_a_verifier_reads_them():
    asked, texts = prompts("1", "1"), ["question 0", "question 0"]
    assert verdicts(SamePrompt(), asked, texts, [True, True]).values == [1.0, 0.0]


def test_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "CACHED_VERDICTS", 3)
    texts = [str(i) for i in range(10)]
    assert verdicts(Short(), prompts(*texts), texts, [True] * 10).values == [1.0] * 10
    assert len(module._cache) == 3


def test_what_is_no_verdict_is_an_error():
    class Wrong(Short):
        name = "wrong"

        def verify(self, prompts, completions, golds, ended):
            return [float("nan")] if self.most else []

    with pytest.raises(HarnessError, match="wrong returned nan"):
        verdicts(Wrong(), prompts("1"), ["1"], [True])
    with pytest.raises(HarnessError, match="0 verdicts on 1 completions"):
        verdicts(Wrong(most=0), prompts("1"), ["1"], [True])


def test_options_weights_and_labels_name_a_run():
    made = [
        make_verifier("ends"),
        make_verifier("ends", {"mark": "."}),
        make_verifier("", {}, [{"name": "ends"}]),
        make_verifier("", {}, [{"name": "ends", "weight": 2}]),
        make_verifier("", {}, [{"name": "ends", "label": "x"}]),
    ]
    assert len({verifier_digest(v) for v in made}) == len(made)
    assert verifier_digest(made[0]) == verifier_digest(make_verifier("ends"))
    assert isinstance(made[2], WeightedVerifiers)

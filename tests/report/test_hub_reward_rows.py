"""Rows with a reward model of the hub beside rows that share a trained one."""

import pytest

from harness.core.errors import UsageError
from harness.core.run_folder import read_rows, write_rows
from harness.report.comparison.compare import compared
from harness.report.page.samples import browser
from harness.report.page.sections import sections
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.tables import comparison

from ..helpers.tools import put, record

TRAINED = {"preferences": "p", "reward_model": "t"}


def hub(method, name, **ground):
    model = {"name": f"org/{name}", "weights": name * 8, "mean": 0.1}
    made = record(method, reward_model=model, recipe=f"{method} by {name}")
    made["ground"] = {k: v for k, v in made["ground"].items() if k not in TRAINED} | ground
    return made


def trained(method, **ground):
    made = record(method)
    made["ground"] = {**made["ground"], **TRAINED, **ground}
    return made


@pytest.fixture
def mixed(tmp_path):
    return put(tmp_path, trained("dpo"), hub("grpo", "rm"), hub("grpo", "other"))


def test_one_table_holds_both_and_names_the_models(mixed):
    table = comparison(select(mixed, Filter()))
    names = {row[0].text.split(" [")[0] for row in table.rows}
    assert names == {"dpo", "grpo (reward_model=rm)", "grpo (reward_model=other)"}
    notes = [text for text in table.footnotes.values() if "standard deviation 1 over" in text]
    assert len(notes) == 2 and any("the model rm (rmrmrmrmrmrm)" in text for text in notes)
    assert len(sections(mixed, None, None)) == 1


def test_page_shows_no_proxy_of_the_baseline_by_two_models(mixed):
    """Each reward model has a score of its own for the baseline's answer."""
    shown = browser(sections(mixed, None, None), 3)[0]["prompts"]
    assert shown["proxy"] == [None] * 3  # records of this test have none
    for score, file in enumerate(sorted(mixed.glob("runs/toy/*/*/samples.jsonl"))):
        write_rows(file, [row | {"baseline_proxy": score} for row in read_rows(file)])
    shown = browser(sections(mixed, None, None), 3)[0]["prompts"]
    assert shown["proxy"] == [None] * 3 and shown["baseline"] == ["some words"] * 3


def test_comparing_leaves_out_scores_of_two_models(mixed):
    both = compared(mixed, ("dpo", "grpo (reward_model=rm)"), Filter())
    assert [m.name for m in both.measures] == ["win_rate", "gold", "kl", "length"]


def test_runs_that_differ_in_more_are_refused(tmp_path):
    put(tmp_path, trained("dpo"), hub("grpo", "rm", evaluation_prompts="others"))
    with pytest.raises(UsageError, match="differ in evaluation_prompts"):
        select(tmp_path, Filter())
    put(tmp_path / "two", trained("dpo"), trained("ppo", reward_model="u"))
    with pytest.raises(UsageError, match="differ in reward_model"):
        select(tmp_path / "two", Filter())

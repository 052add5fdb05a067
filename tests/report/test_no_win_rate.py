"""A judge that is not shown to be better than a coin: every reader says so, and none crashes."""

import csv
import io
import json

import pytest
from harness_plugins.reporters import CSV, HTML, LaTeX, Markdown

from harness.core.errors import UsageError
from harness.report.comparison.compare import compared
from harness.report.comparison.side_by_side import as_json, parts
from harness.report.page.facts import context
from harness.report.page.sections import sections
from harness.report.plots import KINDS, NothingToDraw, render
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.match import matched
from harness.report.tables.tables import comparison

from ..helpers.tools import put, record

REASON = "no win-rate: the judge's held-out accuracy .52 [.47, .57] does not exclude .5"


def judged(accuracy, low, high, *names):
    """Records of methods, two seeds each, by a judge of this accuracy on held-out pairs."""
    made = [record(name, seed, win=0.6) for name in names for seed in (0, 1)]
    held_out = {"accuracy": accuracy, "low": low, "high": high, "pairs": 385.0}
    for i, one in enumerate(made):
        one["evaluation"]["judge"] = {"name": "taste", "held_out": held_out}
        one["evaluation"]["curve"] = [
            {"step": s, "win_rate": 0.5, "gold": 1.0, "kl": s / 4} for s in (1.0, 2.0 + i)
        ]
    return made


@pytest.fixture
def coin(tmp_path):
    return put(tmp_path, *judged(0.52, 0.47, 0.57, "dpo", "ipo"))


@pytest.fixture
def better(tmp_path):
    return put(tmp_path, *judged(0.56, 0.51, 0.61, "dpo", "ipo"))


def test_table_says_why_there_is_no_win_rate(coin):
    table = comparison(select(coin, Filter()))
    titles = [title.split()[0] for title in table.columns]
    assert "gold" not in titles and "length-controlled" not in titles
    assert [row[titles.index("win-rate")].text for row in table.rows] == ["--", "--"]
    assert "KL" in titles and "length" in titles
    assert table.caption.count(REASON[1:]) == 1 and "Bold" not in table.caption
    for reporter in (Markdown, LaTeX, HTML):
        text = reporter().render(table)
        assert "does not exclude .5" in text and "0.600" not in text and "0.500" not in text
    assert " & -- & " in LaTeX().render(table)
    rows = list(csv.DictReader(io.StringIO(CSV().render(table))))
    assert [row["no_win_rate"] for row in rows] == [REASON] * 2
    assert not {"win_rate", "gold", "lc_win_rate"} & set(rows[0])


def test_table_of_a_better_judge_has_its_win_rates(better):
    """The control: one step further from the coin, everything is there."""
    table = comparison(select(better, Filter()))
    titles = [title.split()[0] for title in table.columns]
    assert [row[titles.index("win-rate")].text for row in table.rows] == ["0.600", "0.600"]
    assert "gold" in titles and "no win-rate" not in CSV().render(table) + table.caption
    assert render("frontier", select(better, Filter()))


def test_rows_without_a_win_rate_come_before_failed_ones(coin):
    from ..helpers.tools import failure

    put(coin, failure("aaa"))
    assert [row.name for row in select(coin, Filter()).rows] == ["dpo", "ipo", "aaa"]


def test_compare_shows_the_answers_side_by_side(coin):
    comparison = compared(coin, ("dpo", "ipo"), Filter())
    assert comparison.verdict == f"N{REASON[1:]}."
    assert comparison.head is None and comparison.controlled is None
    assert [m.name for m in comparison.measures] == ["proxy", "kl", "length"]
    assert [e.prompt for e in comparison.examples] == ["prompt 0", "prompt 1"]
    assert any("A      --  word" in str(part) for part in parts(comparison))
    assert json.loads(as_json([comparison]))["controlled"] is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "curves"])
def test_plot_of_win_rates_says_why_there_is_none(coin, kind):
    with pytest.raises(NothingToDraw, match=r"\.52 \[\.47, \.57\] does not exclude \.5"):
        render(kind, select(coin, Filter()))


def test_curves_draw_the_rest(coin):
    with pytest.raises(NothingToDraw, match="no learning curve"):  # only of win-rate and gold here
        render("curves", select(coin, Filter()))


def test_page_says_why_and_has_the_answers(coin):
    facts = context(sections(coin, None, None), coin, None, 5)
    (section,) = facts["sections"]
    assert "does not exclude .5" in section["table"].caption
    for plot in section["plots"]:
        assert ("does not exclude .5" in plot["message"]) == (plot["kind"] != "curves")
    suite = facts["browser"]["suites"][0]
    assert suite["rows"][0]["runs"][0]["answer"][0] == "word "
    assert suite["rows"][0]["runs"][0]["gold"] == [None] * 5 == suite["prompts"]["gold"]


def test_matching_is_refused(coin):
    with pytest.raises(UsageError, match="does not exclude"):
        matched(select(coin, Filter()), "kl")


def test_table_shows_the_qualities_of_verdicts(tmp_path):
    made = [record("dpo", seed) for seed in (0, 1)]
    for i, one in enumerate(made):
        bias = {"mean": 0.03 - 0.05 * i, "low": 0.0, "high": 0.1}
        judge = {"name": "llm_judge", "problems": {"refused": 2, "unparsed": i}}
        judge |= {"position_bias": bias, "position_consistency": 0.8 + i / 10}
        one["evaluation"]["judge"] = judge | {"self_agreement": 0.95}
    (note,) = [
        n for n in comparison(select(put(tmp_path, *made), Filter())).notes if "llm_judge" in n
    ]
    assert note == (
        "Verdicts of llm_judge: 4 refused, 1 unparsed, position bias -0.020 to +0.030, both orders"
        " agree on 80% to 90% of the pairs, repeated questions agree on 95%."
    )

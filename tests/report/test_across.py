"""Ranks across models and suites: the statistics, the table and the picture."""

import csv
import io
from random import Random
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import kendalltau

from harness.core.errors import UsageError
from harness.core.run_folder import write_rows
from harness.report.selection.filters import Filter
from harness.report.selection.settings import across
from harness.report.tables.across import ranking
from harness.statistics.intervals import win_rate_interval
from harness.statistics.ranks import draws_of, order_holds, ranks

from ..helpers.tools import command, put, record, samples

RATES = {"ppo": 0.9, "dpo": 0.6, "kto": 0.3}


def estimates_of(rates, prompts=400, seeds=3, salt=0):
    rng = np.random.default_rng(salt)
    return [
        win_rate_interval((rng.random((seeds, prompts)) < rate).astype(float)) for rate in rates
    ]


def test_tau_is_kendalls_and_certain_orders_have_narrow_intervals():
    same = [estimates_of([0.9, 0.6, 0.3], salt=i) for i in range(3)]
    found = order_holds(same, draws_of(same))
    assert found.value == 1.0 and found.low > 0.9
    turned = [same[0], estimates_of([0.3, 0.6, 0.9], salt=9)]
    assert order_holds(turned, draws_of(turned)).value == -1.0
    mixed = [estimates_of([0.2, 0.4, 0.6, 0.8]), estimates_of([0.3, 0.2, 0.9, 0.7], salt=4)]
    direct = kendalltau(*([e.mean for e in row] for row in mixed)).statistic
    assert order_holds(mixed, draws_of(mixed)).value == pytest.approx(direct)


def test_equal_methods_have_wide_ranks_and_show_no_order():
    equal = [estimates_of([0.5] * 4, 100, salt=i) for i in (1, 2)]
    draws = draws_of(equal)
    tau = order_holds(equal, draws)
    assert tau.low < 0 < tau.high
    for row in ranks(equal, draws):
        assert sum(one.value for one in row) == 10 and all(one.high - one.low >= 2 for one in row)
    sure = [estimates_of([0.9, 0.3])] * 2
    assert [(r.value, r.low, r.high) for r in ranks(sure, draws_of(sure))[0]] == [
        (1, 1, 1),
        (2, 2, 2),
    ]


def put_run(results, suite, model, parameters, method, seed, rate):
    rng = Random(f"{suite}/{model}/{method}/{seed}")
    scores = [float(rng.random() < rate) for _ in range(64)]
    made = record(method, seed, fmean(scores), suite=suite, recipe=f"{method}-{suite}-{model}")
    made |= {"model": {"name": f"models/{model}", "digest": model}}
    made["ground"] = {"start_checkpoint": model, "evaluation_prompts": "cc", "judge": "gold/1"}
    made["cost"]["models"] = {"policy": {"parameters": parameters, "bytes": 1}}
    before = set(results.glob("runs/*/*/*"))
    put(results, made)
    (folder,) = set(results.glob("runs/*/*/*")) - before
    rows = [row | {"win": w} for row, w in zip(samples(made), scores, strict=True)]
    write_rows(folder / "samples.jsonl", rows)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    results = tmp_path_factory.mktemp("across")
    for suite in ("sums", "letters"):
        for model, size in (("large", 10**9), ("small", 10**8)):
            for method, rate in RATES.items():
                for seed in range(2):
                    put_run(results, suite, model, size, method, seed, rate)
    put_run(results, "sums", "small", 10**8, "ipo", 0, 0.5)  # in one setting only
    return results


def test_table_across_settings(several):
    found = across(several, Filter())
    titles = [found.title(s) for s in found.settings]
    assert titles == ["letters, small", "letters, large", "sums, small", "sums, large"]
    assert sorted(found.methods) == ["dpo", "kto", "ppo"]
    made = ranking(several, Filter())
    assert [str(row[0]) for row in made.rows] == ["ppo", "dpo", "kto"]
    assert [row[1].text for row in made.rows] == ["1", "2", "3"]
    assert "Kendall's tau, mean over 6 pairs of settings: 1.00 [" in made.notes[0]
    assert "the order holds beyond chance" in made.notes[0]
    assert made.plain[0]["iqm"] == pytest.approx(0.9, abs=0.06)


def test_across_is_an_option_of_table_and_a_kind_of_plot(several, tmp_path):
    done = command("table", "--across", "--results", several, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0 and len(rows) == 3 and "rank sums, large low" in rows[0], done.text
    picture = tmp_path / "ranks.svg"
    done = command("plot", "--kind", "ranks", "--results", several, "-o", picture)
    assert done.code == 0 and picture.stat().st_size > 5000, done.text
    done = command("table", "--across", "--each", "--results", several)
    assert done.code == 2 and "leave --each out" in done.text


def test_one_setting_is_refused(several):
    with pytest.raises(UsageError, match="there are 1 settings"):
        across(several, Filter("sums", where={"beta": "0.1"}, methods=["ipo"]))

"""`harness compare` of two folders of sample logs of lm-evaluation-harness."""

import json
import math
from statistics import fmean, stdev

import pytest
from scipy.stats import binomtest, norm, t

from harness.core.errors import HarnessError, UsageError
from harness.report.comparison.lm_eval_logs import compared_logs, grid, is_log_folder, notes_of

from ..helpers.tools import command

DATE = "2026-11-30T10-11-12.123456"
# 100 documents: both right 40, A alone right 25, B alone right 9, both wrong 26
A = [1.0] * 40 + [1.0] * 25 + [0.0] * 9 + [0.0] * 26
B = [1.0] * 40 + [0.0] * 25 + [1.0] * 9 + [0.0] * 26


def sample(number, outcome, content="question", **more):
    """A line of a log as lm-evaluation-harness 0.4.13 writes it."""
    return {
        "doc_id": number,
        "doc": {"question": f"{content} {number}"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": "2 + 2 =", "arg_1": {"until": ["\n"]}}},
        "resps": [["4"]],
        "filtered_resps": ["4"],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": f"hash of {content} {number}",
        "prompt_hash": "p",
        "target_hash": "t",
        "exact_match": outcome,
    } | more


def log(folder, rows, task="gsm8k", date=DATE):
    """Write the log of a task; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"samples_{task}_{date}.jsonl").write_text(text, encoding="utf-8")
    return folder


def logs(folder, outcomes, **more):
    """Write a log with these outcomes; return its folder."""
    return log(folder, [sample(i, value) for i, value in enumerate(outcomes)], **more)


def test_compared_logs_gives_the_paired_t_test_and_mcnemars(tmp_path):
    """The figures are those of a paired t-test by hand."""
    one = compared_logs(str(logs(tmp_path / "a", A)), str(logs(tmp_path / "b", B))).tasks[0]
    gaps = [x - y for x, y in zip(A, B, strict=True)]
    error = stdev(gaps) / math.sqrt(100)
    half = t.ppf(0.975, 99) * error
    d = one.difference
    assert (one.a, one.b, one.documents, one.only) == (0.65, 0.49, 100, (0, 0))
    assert d.difference == pytest.approx(0.16)
    assert (d.low, d.high) == pytest.approx((0.16 - half, 0.16 + half))
    assert d.p == pytest.approx(2 * t.sf(0.16 / error, 99))
    assert one.sign_p == pytest.approx(binomtest(25, 34).pvalue)


def test_compared_logs_finds_a_difference_that_the_unpaired_z_misses(tmp_path):
    """What lm-evaluation-harness's own comparator says of the same outcomes: see its issue 3831."""
    one = compared_logs(str(logs(tmp_path / "a", A)), str(logs(tmp_path / "b", B))).tasks[0]
    errors = [stdev(side) / math.sqrt(100) for side in (A, B)]
    unpaired = 2 * norm.sf((fmean(A) - fmean(B)) / math.hypot(*errors))
    assert unpaired > 0.02 and one.difference.p < 0.01


def test_compared_logs_pairs_by_number_and_content_in_any_order(tmp_path):
    rows = [sample(i, value) for i, value in enumerate(A)]
    log(tmp_path / "a", rows[::-1])
    changed = [sample(i, value, "question" if i < 90 else "another") for i, value in enumerate(B)]
    compared = compared_logs(str(tmp_path / "a"), str(log(tmp_path / "b", changed)))
    one = compared.tasks[0]
    assert (one.documents, one.only) == (90, (10, 10))
    assert one.difference.difference == pytest.approx(fmean(A[:90]) - fmean(B[:90]))
    assert "10 documents of A and 10 of B are not shared" in "\n".join(notes_of(compared))


def test_compared_logs_leaves_missing_outcomes_out(tmp_path):
    log(tmp_path / "a", [sample(i, None if i < 5 else 1.0) for i in range(20)])
    log(tmp_path / "b", [sample(i, float("nan") if i > 17 else 0.0) for i in range(20)])
    one = compared_logs(str(tmp_path / "a"), str(tmp_path / "b")).tasks[0]
    assert (one.documents, one.only, one.difference.difference) == (13, (7, 7), 1.0)


def test_compared_logs_takes_every_filter_and_metric_of_the_newest_evaluation(tmp_path):
    def rows(outcomes):
        both = {"metrics": ["exact_match", "acc"]}
        return [
            sample(i, v, filter=name, acc=not v, **both)
            for name in ("strict-match", "flexible-extract")
            for i, v in enumerate(outcomes)
        ]

    log(tmp_path / "a", rows(B), date="2026-11-29T23-59-59.9")
    log(tmp_path / "a", rows(A))
    log(tmp_path / "b", rows(B))
    compared = compared_logs(str(tmp_path / "a"), str(tmp_path / "b"))
    found = {(one.filter, one.metric): one.difference.difference for one in compared.tasks}
    assert found == pytest.approx(
        {
            (name, metric): sign * 0.16
            for name in ("strict-match", "flexible-extract")
            for metric, sign in (("exact_match", 1), ("acc", -1))
        }
    )
    p = compared.tasks[0].difference
    assert p.adjusted == pytest.approx(4 * p.p)  # Holm over four equal p-values
    assert "p (Holm)" in grid(compared)[0]


def test_compared_logs_names_metrics_without_a_number_per_document(tmp_path):
    for name, outcomes in (("a", A), ("b", B)):
        pairs = {"metrics": ["exact_match", "word_perplexity"], "word_perplexity": [-3.2, 7]}
        log(tmp_path / name, [sample(i, value, **pairs) for i, value in enumerate(outcomes)])
    compared = compared_logs(str(tmp_path / "a"), str(tmp_path / "b"))
    assert [one.metric for one in compared.tasks] == ["exact_match"]
    assert "word_perplexity has no single number" in notes_of(compared)[0]


def test_compared_logs_names_tasks_of_one_side(tmp_path):
    logs(logs(tmp_path / "a", A).parent / "a", A, task="svamp")
    compared = compared_logs(str(tmp_path / "a"), str(logs(tmp_path / "b", B)))
    assert [one.task for one in compared.tasks] == ["gsm8k"]
    assert "A alone has the task svamp: not compared." in notes_of(compared)


@pytest.mark.parametrize(
    ("rows_b", "task", "message"),
    [
        (B, "svamp", "have no task in common. A has gsm8k; B has svamp"),
        (B[:1], "gsm8k", "share 1 documents with outcomes of exact_match"),
    ],
)
def test_compared_logs_refuses_unlike_folders(tmp_path, rows_b, task, message):
    logs(tmp_path / "a", A)
    logs(tmp_path / "b", rows_b, task=task)
    with pytest.raises(UsageError, match=message):
        compared_logs(str(tmp_path / "a"), str(tmp_path / "b"))


def test_compared_logs_refuses_a_cut_file_and_a_document_twice(tmp_path):
    logs(tmp_path / "a", A)
    whole = (logs(tmp_path / "b", B) / f"samples_gsm8k_{DATE}.jsonl").read_text(encoding="utf-8")
    for text, message in (
        (whole[:-10], "line 100 is not JSON"),
        (whole + whole, "is there twice"),
        ('{"x": 1}\n', "line 1 has no doc_id"),
    ):
        (tmp_path / "b" / f"samples_gsm8k_{DATE}.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(HarnessError, match=message):
            compared_logs(str(tmp_path / "a"), str(tmp_path / "b"))


def test_is_log_folder_takes_the_folder_of_one_model(tmp_path):
    logs(tmp_path / "out" / "model_x", A)
    assert is_log_folder(str(tmp_path / "out")) and not is_log_folder(str(tmp_path / "none"))
    logs(tmp_path / "out" / "model_y", A)
    with pytest.raises(UsageError, match="several models: model_x, model_y"):
        compared_logs(str(tmp_path / "out"), str(tmp_path / "out"))


def test_compare_prints_logs_as_text_and_as_json(tmp_path):
    a, b = logs(tmp_path / "a", A), logs(tmp_path / "b", B)
    done = command("compare", a, b)
    assert done.code == 0 and "+0.1600 [+0.0" in done.out and "100" in done.out
    value = json.loads(command("compare", a, b, "--format", "json").out)
    assert value["tasks"][0]["difference"]["difference"] == pytest.approx(0.16)
    mixed = command("compare", a, "dpo")
    assert mixed.code == 2 and "dpo holds no sample logs" in mixed.err
    filtered = command("compare", a, b, "--suite", "exact")
    assert filtered.code == 2 and "--suite, --study and --where select runs" in filtered.err

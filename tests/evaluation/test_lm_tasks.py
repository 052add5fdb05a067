"""Tasks of lm-evaluation-harness: what is run, recorded, and shown in tables."""

import json
import math
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest
from scipy.stats import t as student

from harness.core import task_files
from harness.core.errors import HarnessError, UsageError
from harness.core.records import write_sealed
from harness.core.run_folder import read_result, read_rows, write_rows
from harness.core.settings import EvaluationOptions
from harness.core.spec import RunSpec
from harness.evaluation.answer_tasks import MISSING
from harness.evaluation.lm_tasks import TaskOutcomes, causal_model, recorded_rows, task_figures
from harness.models.lora import Lora, beside
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.tables import comparison

from ..helpers.tiny_models import tiny
from ..helpers.tools import (
    command,
    finished,
    on_small,
    only_run,
    put,
    record,
    small_suite,
    with_shared_stages,
)

POLICY, START = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
ABOUT = {"metric": "exact_match", "filter": "none", "higher_is_better": True, "aggregated": {}}


def rows(outcomes, task="sums", **more):
    """Outcomes of a task as they are recorded, one for each document."""
    plain = {"filter": "none", "prompt_hash": "p", "target": "4", "answer": ["4"]}
    return [
        {**plain, "task": task, "doc_id": i, "doc_hash": f"h{i}", "metrics": {"exact_match": v}}
        | more
        for i, v in enumerate(outcomes)
    ]


def half_width(values):
    return student.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))


# -- figures and tables ----------------------------------------------------------------------------


def test_task_figures_are_means_and_the_paired_difference_to_the_start():
    ours, start = (TaskOutcomes(rows(v), {"sums": ABOUT}) for v in (POLICY, START))
    figures = task_figures(ours, start)["sums"]
    gaps = [x - y for x, y in zip(POLICY, START, strict=True)]
    assert (figures["mean"], figures["start"], figures["documents"]) == (4 / 6, 2 / 6, 6)
    assert figures["tax"]["difference"] == pytest.approx(2 / 6)
    assert figures["tax"]["high"] - figures["tax"]["low"] == pytest.approx(2 * half_width(gaps))


def test_task_figures_say_why_a_policy_has_no_outcome():
    start = TaskOutcomes(rows(START), {"sums": ABOUT})
    assert task_figures(TaskOutcomes([], missing=MISSING), start)["sums"]["missing"] == MISSING


def test_recorded_rows_refuse_other_documents():
    ours, start = TaskOutcomes(rows(POLICY)), TaskOutcomes(rows(START))
    both = recorded_rows(ours, start)
    assert [row["start"]["exact_match"] for row in both] == START
    with pytest.raises(HarnessError, match="sums gave the policy other documents than the start"):
        recorded_rows(TaskOutcomes(rows(POLICY, doc_hash="changed")), start)


def with_tasks(results, method, seed=0, policy=POLICY, name="sums", more=None, **changes):
    """Put a run with outcomes of a task below a results folder."""
    ours, start = (TaskOutcomes(rows(v, task=name), {name: ABOUT}) for v in (policy, START))
    told = record(method, seed, **(more or {}))
    told["evaluation"]["tasks"] = task_figures(ours, start)
    told["evaluation"]["tasks"][name] |= changes
    put(results, told)
    folder = max((results / "runs" / "toy" / method).iterdir(), key=lambda f: f.name)
    write_rows(folder / "tasks.jsonl", recorded_rows(ours, start))
    write_sealed(folder / "result.json", told)


def columns_of(results, *columns):
    return comparison(select(results, Filter()), columns)


def test_table_has_a_column_for_a_task_and_one_for_its_tax(tmp_path):
    with_tasks(tmp_path, "dpo")
    table = columns_of(tmp_path)
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["sums (exact match)"].text == "0.667"
    gaps = [x - y for x, y in zip(POLICY, START, strict=True)]
    half, mean = half_width(gaps), fmean(gaps)
    tax = cells["alignment tax: sums"]
    assert tax.text == "+0.333" and tax.interval == f"[{mean - half:+.3f}, {mean + half:+.3f}]"
    assert "paired by document" in " ".join(table.notes)
    assert columns_of(tmp_path, "method", "tax.sums").columns[1] == "alignment tax: sums"


def test_table_of_runs_without_tasks_has_no_such_column(tmp_path):
    put(tmp_path, record("dpo"))
    table = columns_of(tmp_path)
    assert not [name for name in table.columns if "tax" in name]
    assert "lm-evaluation" not in " ".join(table.notes)


def test_table_takes_seeds_into_the_interval_and_names_rows_without_an_outcome(tmp_path):
    for seed, policy in enumerate((POLICY, START, [1.0] * 6)):
        with_tasks(tmp_path, "dpo", seed, policy)
    with_tasks(tmp_path, "best_of_n")
    told = max((tmp_path / "runs" / "toy" / "best_of_n").iterdir())
    result = read_result(told)
    result["evaluation"]["tasks"] = {"sums": {**ABOUT, "missing": MISSING}}
    write_sealed(told / "result.json", {k: v for k, v in result.items() if k != "seal"})
    table = columns_of(tmp_path, "method", "task.sums")
    cells = {row[0].text: row[1].text for row in table.rows}
    assert cells == {"dpo": f"{fmean((4 / 6, 2 / 6, 1)):.3f}", "best_of_n": "-"}
    assert f"sums has no outcome of best_of_n: {MISSING}." in table.notes


def test_table_refuses_rows_with_other_documents_and_changed_outcomes(tmp_path):
    with_tasks(tmp_path / "a", "dpo")
    with_tasks(tmp_path / "a", "ipo", documents_digest="another")
    with pytest.raises(UsageError, match="different documents of the task sums"):
        columns_of(tmp_path / "a")
    with_tasks(tmp_path / "b", "dpo", mean=0.9)
    with pytest.raises(HarnessError, match=r"the mean of sums is 0.666667 in tasks.jsonl and 0.9"):
        columns_of(tmp_path / "b")


def test_table_shows_tasks_of_several_evaluations_of_a_policy_together(tmp_path):
    """`--tasks sums` and then `--tasks words`, and `sums` once more: the newest of each."""
    with_tasks(tmp_path, "dpo", policy=START, more={"finished_at": "2026-01-01"})
    with_tasks(tmp_path, "dpo", policy=POLICY, more={"finished_at": "2026-01-02"})
    with_tasks(tmp_path, "dpo", name="words", more={"finished_at": "2026-01-03"})
    put(tmp_path, record("dpo", finished_at="2026-01-04"))  # evaluated again, without tasks
    table = columns_of(tmp_path, "method", "task.sums", "tax.sums", "task.words")
    assert [cell.text for cell in table.rows[0]] == ["dpo", "0.667", "+0.333", "0.667"]
    (row,) = select(tmp_path, Filter()).rows
    assert row.good[0]["finished_at"] == "2026-01-04" and len(row.records) == 1


def test_table_leaves_out_tasks_of_another_policy(tmp_path):
    """The negative control: weights that other code trained have the same recipe."""

    def pins(content):
        return {"pins": {"policy-1": {"kind": "policy", "content": content}}}

    old = {"finished_at": "2026-01-01"} | pins("a")
    with_tasks(tmp_path, "dpo", more=old)
    put(tmp_path, record("dpo", finished_at="2026-01-02", **pins("b")))
    assert not [name for name in columns_of(tmp_path).columns if "sums" in name]
    put(tmp_path, record("dpo", finished_at="2026-01-03", **pins("a")))
    assert [name for name in columns_of(tmp_path).columns if "sums" in name]


# -- naming tasks ----------------------------------------------------------------------------------


def test_tasks_change_a_runs_name_and_neither_its_row_nor_its_training():
    def spec(**code):
        options = {"prompts": 4, "tasks": ["sums"] if code else [], "task_documents": 0}
        return RunSpec("dpo", "toy", {}, {}, {"evaluation": options}, code=code)

    plain, tasks, others = spec(), spec(tasks="a"), spec(tasks="b")
    assert len({one.fingerprint() for one in (plain, tasks, others)}) == 3
    assert len({one.recipe() for one in (plain, tasks, others)}) == 1
    assert len({one.training_fingerprint() for one in (plain, tasks, others)}) == 1


def test_options_of_tasks_are_refused_without_tasks():
    with pytest.raises(ValueError, match="task_documents has no meaning without tasks"):
        EvaluationOptions(task_documents=3).check()


def test_check_tasks_names_the_missing_package(monkeypatch):
    monkeypatch.setattr(task_files, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'alignment-harness\[lm-eval\]'"):
        task_files.check_tasks(["gsm8k"])


def test_check_tasks_refuses_paths_that_hold_no_task(monkeypatch, tmp_path):
    monkeypatch.setattr(task_files, "find_spec", lambda name: object())
    (tmp_path / "a.yaml").write_text("task: a\n", encoding="utf-8")
    task_files.check_tasks(["gsm8k", str(tmp_path), str(tmp_path / "a.yaml")])
    for wrong, why in (("none.yaml", "is no file or folder"), (str(tmp_path / "x"), "is no file")):
        with pytest.raises(UsageError, match=f"this {why}"):
            task_files.check_tasks([wrong])
    with pytest.raises(UsageError, match="--task-data .*: there is no such folder"):
        task_files.check_tasks(["gsm8k"], str(tmp_path / "no"))


def test_tasks_digest_names_a_file_that_disappears(monkeypatch, tmp_path):
    (tmp_path / "rows.json").write_text("[]", encoding="utf-8")

    def deleted(file):
        file.unlink()
        return file.read_bytes()

    monkeypatch.setattr(task_files, "file_digest", deleted)
    with pytest.raises(UsageError, match="rows.json was deleted while the files were read"):
        task_files.tasks_digest(["gsm8k"], str(tmp_path))


def test_tasks_digest_follows_files_data_and_code_beside_them(monkeypatch, tmp_path):
    monkeypatch.setattr(task_files, "metadata", SimpleNamespace(version=lambda name: "0.4.13"))
    folder, data = tmp_path / "tasks", tmp_path / "data"
    folder.mkdir()
    data.mkdir()
    seen = set()
    for file, text in (
        (folder / "a.yaml", "task: a"),
        (folder / "a.yaml", "task: b"),
        (folder / "read.py", "x = 1"),
        (data / "rows.json", "[1]"),
        (data / "rows.json", "[2]"),
    ):
        file.write_text(text, encoding="utf-8")
        seen.add(task_files.tasks_digest([str(folder)], str(data)))
    moved = tmp_path / "moved"
    moved.mkdir()
    folder.rename(moved / "tasks")
    assert len(seen) == 5
    assert task_files.tasks_digest([str(moved / "tasks")], str(data)) in seen


# -- with the package ------------------------------------------------------------------------------

DOCUMENTS = [
    {"question": "Q: start with 15 then add 3 ? A:", "answer": "18"},
    {"question": "Q: start with 5 then take 3 ? A:", "answer": "2 ."},
    {"question": "Q: start with 9 then take 3 ? A:", "answer": "6 ="},
]
READER = """import json
from pathlib import Path
import datasets


def load(data, **rest):
    rows = json.loads((Path(data) / "rows.json").read_text(encoding="utf-8"))
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
"""
TASK = """task: {name}
custom_dataset: !function reader.load
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{answer}}}}"
metric_list: [{{metric: {metric}, aggregation: {aggregation}, higher_is_better: true}}]
"""
GENERATION = "generation_kwargs: {until: ['.'], max_gen_toks: 4, do_sample: false}\n"


@pytest.fixture
def tasks(tmp_path):
    """A folder with a task of likelihoods and one of generation, and their data."""
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.json").write_text(json.dumps(DOCUMENTS), encoding="utf-8")
    (folder / "reader.py").write_text(READER, encoding="utf-8")
    plain = TASK.format(
        name="likely", kind="loglikelihood", metric="perplexity", aggregation="perplexity"
    )
    drawn = TASK.format(
        name="drawn", kind="generate_until", metric="exact_match", aggregation="mean"
    )
    (folder / "likely.yaml").write_text(plain, encoding="utf-8")
    (folder / "drawn.yaml").write_text(drawn + GENERATION, encoding="utf-8")
    return folder


def likelihoods(folder):
    """The log-likelihood of each answer, token by token from the model's logits."""
    import torch

    from harness.models.hub_format import load_tokenizer, read_model

    tokenizer, model = load_tokenizer(folder), read_model(folder)
    values = []
    for row in DOCUMENTS:
        context = tokenizer.encode(row["question"])
        ids = tokenizer.encode(f"{row['question']} {row['answer']}")
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        values.append(sum(float(logp[i - 1, ids[i]]) for i in range(len(context), len(ids))))
    return values


def test_evaluate_runs_tasks_on_a_trained_policy_and_on_the_start(tasks):
    """Outcomes are those of the saved weights, computed apart; training is not repeated."""
    run = finished("dpo")
    data = ("--task-data", tasks.parent / "data", "--stage-set", "evaluation.prompts=8")
    before = set(run.parent.iterdir())
    done = command("evaluate", run, "-p", small_suite(), "--tasks", tasks, *data)
    assert done.code == 0, done.text
    (folder,) = set(run.parent.iterdir()) - before
    result, rows_there = read_result(folder), read_rows(folder / "tasks.jsonl")
    expected = likelihoods(run / "policy")
    ours = [r["metrics"]["perplexity"] for r in rows_there if r["task"] == "likely"]
    assert ours == pytest.approx(expected, abs=1e-3)
    figures = result["evaluation"]["tasks"]
    assert figures["likely"]["mean"] == pytest.approx(fmean(expected), abs=1e-3)
    assert figures["likely"]["tax"]["difference"] != 0 and figures["drawn"]["documents"] == 3
    assert "tasks.jsonl" in result["files"] and "policy" in result["cost"]["reused_stages"]
    again = command("evaluate", run, "-p", small_suite(), "--tasks", tasks, *data)
    assert "finished before" in again.out


def test_evaluate_runs_tasks_on_a_policy_with_an_adapter(tasks):
    where = with_shared_stages("tasks-of-an-adapter")
    assert command(*on_small("dpo", "--set", "lora_rank=2", results=where)).code == 0
    run = only_run(where, "small", "dpo")
    data = ("--task-data", tasks.parent / "data", "--stage-set", "evaluation.prompts=8")
    done = command("evaluate", run, "-p", small_suite(), "--tasks", tasks, *data)
    assert done.code == 0, done.text
    (folder,) = set(run.parent.iterdir()) - {run}
    figures = read_result(folder)["evaluation"]["tasks"]
    assert figures["likely"]["tax"]["difference"] != 0 and figures["drawn"]["documents"] == 3


def test_causal_model_of_an_adapter_is_the_base_with_the_adapter_on():
    import torch

    plain = tiny("llama")
    policy = beside(plain, Lora(3, 6.0, 1))
    torch.manual_seed(0)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.5)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected, start = policy(ids).logits, plain(ids).logits
        with causal_model(policy) as whole:
            assert whole.device == plain.device and whole.generate(ids, max_new_tokens=1).numel()
            assert torch.equal(whole(ids).logits, expected) and not torch.equal(expected, start)
        assert torch.equal(plain(ids).logits, start)
        with causal_model(plain) as whole:
            assert whole is plain


def test_evaluate_says_why_tasks_cannot_be_loaded(tasks):
    run = finished("dpo")
    (tasks / "likely.yaml").write_text("task: [", encoding="utf-8")
    before = set(run.parent.iterdir())
    done = command("evaluate", run, "-p", small_suite(), "--tasks", tasks / "likely.yaml")
    assert done.code == 2 and "lm-evaluation-harness could not load them" in done.err, done.text
    assert "Traceback" not in done.err and set(run.parent.iterdir()) == before

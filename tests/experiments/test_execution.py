"""Execution settings: runs that were computed otherwise stand on the same artifacts and in one
table.
"""

import json
from functools import cache

from ..helpers.tools import command, finished, on_small, only_run, results


def settings_of(folder):
    return json.loads((folder / "result.json").read_text())["execution"]


@cache
def with_small_micro_batches():
    """A run of IPO in micro-batches of 512 tokens, beside `finished("dpo")`."""
    finished("dpo")
    done = command(*on_small("ipo", "--micro-batch-tokens", 512, results=results()))
    assert done.code == 0, done.text
    return only_run(results(), "small", "ipo")


def test_one_method_with_smaller_micro_batches_stands_on_the_same_artifacts():
    other, usual = with_small_micro_batches(), finished("dpo")
    pins = [json.loads((f / "result.json").read_text())["pins"] for f in (other, usual)]
    shared = [{n: c for n, c in p.items() if not n.startswith("policy-")} for p in pins]
    assert shared[0] == shared[1] and len(shared[0]) == 4
    kinds = {name.rpartition("-")[0] for name in shared[0]}
    assert kinds == {"sft", "preferences", "reward_model", "reference_answers"}
    for name, content in shared[0].items():
        manifest = json.loads((results() / "artifacts" / name / "manifest.json").read_text())
        assert manifest["content"] == content


def test_a_record_holds_how_training_evaluation_and_artifacts_were_computed():
    execution = settings_of(with_small_micro_batches())
    assert [s["micro_batch_tokens"] for s in execution["training"]] == [512]
    assert execution["evaluation"]["micro_batch_tokens"] == 512
    sizes = {
        kind: [settings["micro_batch_tokens"] for settings in used]
        for kind, used in execution["artifacts"].items()
    }
    assert sizes.pop("policy") == [512]
    assert all(size == [16384] for size in sizes.values()) and "sft" in sizes


def test_unlike_execution_stands_in_one_table_under_a_footnote():
    with_small_micro_batches()
    done = command("table", "--results", results(), "--methods", "dpo,ipo", "--format", "md")
    assert done.code == 0, done.text
    assert "| ipo" in done.out and "| dpo" in done.out
    assert done.out.count("Computed with unlike execution settings") == 1
    assert "micro_batch_tokens 512, most runs 16384" in done.out or (
        "micro_batch_tokens 16384, most runs 512" in done.out
    )

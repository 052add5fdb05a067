"""`harness reproduce`: one run made again for real; then every way in which a record can be untrue
is told.
"""

import json
import shutil
from functools import cache

import pytest

from harness.core.errors import HarnessError, Refused, UsageError
from harness.core.records import write_sealed
from harness.core.run_folder import read_result
from harness.experiments import reproduce as module
from harness.experiments.reproduce import (
    ReproduceOptions,
    changed_code,
    checked,
    folder_for,
    read_run,
    reproduce,
    summary,
)
from harness.experiments.reproduction_digests import (
    CLOSE,
    DIFFERENT,
    SAME,
    compare_runs,
    weights_of,
    within,
)

from ..helpers.registries import small_registry
from ..helpers.tools import (
    command,
    finished,
    fresh,
    on_small,
    only_run,
    plugin,
    results,
    small_suite,
)

BREAKS = """
from dataclasses import dataclass

from harness import PairOptions, hookimpl


@dataclass
class Breaks(PairOptions):
    name, needs = "breaks", frozenset({"pairs"})
    steps: int = 3  # optimiser steps

    def train(self, lab):
        raise KeyError("nothing there")


@hookimpl
def register_methods(register):
    register(Breaks)
"""


@cache
def registry():
    """A registry with the suite `small`."""
    return small_registry()


@cache
def again():
    """(reply, results folder) of `finished("dpo")` reproduced by the command, kept."""
    into = fresh("again") / "new"
    return command("reproduce", finished("dpo"), "-p", small_suite(), "--into", into), into


@pytest.fixture
def copy(tmp_path):
    """A copy of a finished run, to be edited."""
    return shutil.copytree(finished("dpo"), tmp_path / finished("dpo").name)


def edit(file, change):
    told = json.loads(file.read_text())
    change(told)
    write_sealed(file, told)


def pre_check(folder, anyway=False):
    lines = []
    return checked(read_run(folder), registry(), anyway, lines.append), lines


def items(folder):
    """{name: item} of a record that was edited against the run made again."""
    made = only_run(again()[1], "small", "dpo")
    return {i.name: i for i in compare_runs(folder, read_result(folder), made, read_result(made))}


def wrong(folder):
    return [name for name, item in items(folder).items() if item.status == DIFFERENT]


# -- a run made again ------------------------------------------------------------------------------


def test_run_is_reproduced_digest_by_digest():
    done, into = again()
    assert done.code == 0, done.text
    lines = done.out.splitlines()
    assert lines[-1].startswith("identical: all 18 items.") and lines[0].startswith(
        "same       code"
    )
    names = [line[11:43].strip() for line in lines if line.startswith("same")]
    assert {
        "stage sft",
        "stage preferences",
        "stage reward_model",
        "stage baseline_answers",
        "ground judge",
        "policy/model.safetensors",
        "metrics.jsonl",
        "samples.jsonl",
        "evaluation",
        "cost (what is counted)",
    } <= set(names)
    assert only_run(into, "small", "dpo") != finished("dpo")
    assert (
        read_result(only_run(into, "small", "dpo"))["cost"]["reused_stages"] == []
    )  # all of it was made again


def test_nothing_is_left_of_a_run_without_into_and_it_goes_on_with_one(copy):
    _, into = again()
    done = command(
        "reproduce", copy, "-p", small_suite(), "--into", into
    )  # finished before: only compared
    assert done.code == 0 and "finished in" not in done.err
    with folder_for(read_run(copy), None) as folder:
        assert folder.is_dir()
    assert not folder.exists()


def test_folder_with_something_else_in_it_is_refused(copy, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "artifacts").mkdir()
    with (
        pytest.raises(UsageError, match="it is not empty"),
        folder_for(read_run(copy), tmp_path / "full"),
    ):
        pass
    edit(copy / "spec.json", lambda s: s.update(seed=1))  # another run's reproduction
    with pytest.raises(UsageError, match="it is not empty"), folder_for(read_run(copy), again()[1]):
        pass


# -- a record that is not true ---------------------------------------------------------------------


def test_untouched_record_has_nothing_wrong(copy):
    assert wrong(copy) == [] and pre_check(copy)[0].fingerprint() == copy.name[-12:]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda s: s["options"].update(beta=0.2),
            "options.beta is 0.2 in spec.json and 0.3 in the record",
        ),
        (lambda s: s.update(seed=1), "seed is 1 in spec.json and 0 in the record"),
        (lambda s: s["stages"]["sft"].update(steps=13), "spec.json was edited: its recipe is"),
        (lambda s: s.update(snapshots=2), "spec.json was edited: its fingerprint is"),
        (
            lambda s: s["suite_options"].update(labeller_bias=0.5),
            "suite_options.labeller_bias is 0.5",
        ),
        (lambda s: s["code"].update(method="0" * 64), "the code of method: 000000000000 then, "),
        (
            lambda s: s["code"].update(judge="0", data="1"),
            "code of judge: .*; the files of data: .*--data-folder",
        ),
    ],
)
def test_edited_spec_is_refused_before_anything_is_run(copy, change, told):
    edit(copy / "spec.json", change)
    with pytest.raises(Refused, match=told) as refusal:
        pre_check(copy)
    assert "Nothing was run. --anyway" in str(refusal.value)
    _, lines = pre_check(copy, anyway=True)
    assert any(line.startswith("different ") for line in lines)


def test_other_code_of_the_harness_names_the_commit(copy):
    for name in ("spec.json", "provenance.json"):
        edit(copy / name, lambda s: s["code"].update(harness="0" * 64))
    edit(copy / "provenance.json", lambda p: p.update(git={"commit": "abc123", "dirty": False}))
    with pytest.raises(
        Refused, match=r"the code of harness: .* It was made at commit abc123 of the harness"
    ):
        pre_check(copy)


def test_changed_code_sees_parts_that_came_and_went():
    assert changed_code({"a": "1", "b": "2"}, {"a": "1", "c": "3"}) == {
        "c": ("", "3"),
        "b": ("2", ""),
    }


def test_other_versions_and_machines_are_noted_and_do_not_refuse(copy):
    edit(
        copy / "provenance.json",
        lambda p: (p["versions"].update(torch="1.0"), p["machine"].update(cores=999)),
    )
    _, lines = pre_check(copy)
    assert any("torch was 1.0, is 2" in line for line in lines) and any(
        "cores was 999" in line for line in lines
    )


def test_one_byte_of_the_policy(copy):
    file = copy / "policy" / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    assert wrong(copy) == ["policy/model.safetensors"]
    file.unlink()
    assert items(copy)["policy/model.safetensors"].detail.startswith("none then, ")


def test_line_of_metrics(copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[2]) | {"loss": 7.5}
    (copy / "metrics.jsonl").write_text("".join([*lines[:2], json.dumps(row) + "\n", *lines[3:]]))
    assert wrong(copy) == ["metrics.jsonl"]
    assert items(copy)["metrics.jsonl"].detail.startswith(
        "first at line 3 (step 3.0): loss 7.5 then, 0."
    )
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert items(copy)["metrics.jsonl"].detail == f"line {len(lines)}: missing then"
    (copy / "metrics.jsonl").write_text("".join(line.replace('": ', '":') for line in lines))
    assert "the same values, written otherwise" in items(copy)["metrics.jsonl"].detail
    (copy / "metrics.jsonl").write_text("{")
    assert "metrics.jsonl is damaged" in items(copy)["metrics.jsonl"].detail


def test_answer(copy):
    lines = (copy / "samples.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[4]) | {"answer": "tam\x1bpered", "gold": 99.0}
    (copy / "samples.jsonl").write_text(
        "".join([*lines[:4], json.dumps(row, sort_keys=True) + "\n", *lines[5:]])
    )
    assert wrong(copy) == ["samples.jsonl"]
    told = items(copy)["samples.jsonl"].detail
    assert (
        told.startswith("first at line 5 (prompt_id test/4): answer tam\\u001bpered then, ")
        and "gold 99.0 then" in told
    )


@pytest.mark.parametrize(
    ("change", "name", "told"),
    [
        (lambda r: r["evaluation"]["gold"].update(mean=9.5), "evaluation", "gold.mean 9.5 then, "),
        (
            lambda r: r["artifacts"]["sft"].update(content="0" * 64),
            "stage sft",
            "content 000000000000 then, ",
        ),
        (lambda r: r["artifacts"]["sft"].update(loss=9.0), "stage sft", "loss 9.0 then, "),
        (lambda r: r["artifacts"].pop("sft"), "stage sft", "none then, "),
        (lambda r: r["ground"].update(judge="x"), "ground judge", "x then, "),
        (
            lambda r: r["cost"]["method"].update(flops=1),
            "cost (what is counted)",
            "method.flops 1 then, ",
        ),
        (
            lambda r: r["cost"]["shared"]["sft"].update(steps=1),
            "cost (what is counted)",
            "shared.sft.steps 1 then, ",
        ),
    ],
)
def test_figure(copy, change, name, told):
    edit(copy / "result.json", change)
    assert wrong(copy) == [name] and items(copy)[name].detail.startswith(told)


def test_what_the_clock_says_is_not_compared(copy):
    def slower(r):
        r["cost"]["method"].update(seconds=1e6, cpu_seconds=1e6, peak_memory=1)
        r["cost"].update(spent_seconds=1e6, reused_stages=["sft"])

    edit(copy / "result.json", slower)
    assert wrong(copy) == []


def test_command_tells_and_ends_with_1(copy):
    (copy / "samples.jsonl").write_text("")
    done = command("reproduce", copy, "-p", small_suite(), "--into", again()[1])
    assert done.code == 1
    assert done.out.splitlines()[-1].startswith("different: 1 of 18 items differ (samples.jsonl).")


# -- loose -----------------------------------------------------------------------------------------


def loose(folder):
    lines = []
    verdict = reproduce(
        read_run(folder), registry(), ReproduceOptions(again()[1], loose=True), lines.append
    )
    return verdict, summary(verdict, again()[1])


def test_loose_is_content_with_figures_in_each_others_intervals(copy):
    edit(
        copy / "result.json",
        lambda r: r["evaluation"]["gold"].update(mean=r["evaluation"]["gold"]["mean"] + 1e-3),
    )
    verdict, told = loose(copy)
    assert (
        verdict.reproduced
        and told.startswith("the same within tolerance (--loose)")
        and "(evaluation)" in told
    )
    assert {i.name: i.status for i in verdict.figures}["evaluation gold"] == CLOSE


def test_loose_is_not_content_beyond_them(copy):
    edit(copy / "result.json", lambda r: r["evaluation"]["gold"].update(mean=50.0))
    verdict, told = loose(copy)
    assert not verdict.reproduced and "beyond the intervals: evaluation gold" in told


def test_loose_says_identical_where_it_is(copy):
    verdict, told = loose(copy)
    assert verdict.figures == [] and told.startswith("identical: all 18 items.")


def test_each_mean_must_lie_in_the_others_interval():
    def records(a, b):
        ground = dict.fromkeys(
            ("train_prompts", "evaluation_prompts", "suite_options", "sampling"), "x"
        )
        return [
            {"ground": ground, "evaluation": {"gold": {"mean": m, "low": m - h, "high": m + h}}}
            for m, h in (a, b)
        ]

    assert [i.status for i in within(*records((1, 0.5), (1.2, 0.1)))] == [SAME] * 4 + [DIFFERENT]
    assert [i.status for i in within(*records((1, 0.5), (1.2, 0.3)))] == [SAME] * 4 + [CLOSE]


# -- failures, plugins, usage ----------------------------------------------------------------------


@cache
def broken():
    """(plugin file, folder) of a run that fails."""
    file = plugin(fresh("plugin"), "breaks", BREAKS)
    done = command(*on_small("breaks", "-p", file, results=results()))
    assert done.code == 1, done.text
    return file, only_run(results(), "small", "breaks")


def test_failure_is_reproduced_and_another_message_is_told(tmp_path):
    file, folder = broken()
    arguments = ("-p", small_suite(), "-p", file, "--into", tmp_path / "into")
    done = command("reproduce", folder, *arguments)
    assert done.code == 0 and "failed: KeyError: 'nothing there'" in done.out, done.text
    assert done.out.splitlines()[-1].startswith("identical: all 2 items.")
    other = shutil.copytree(folder, tmp_path / folder.name)
    edit(
        other / "failure.json",
        lambda f: f.update(status="diverged", failure="The loss is nan at optimiser step 1."),
    )
    done = command("reproduce", other, *arguments)
    assert done.code == 1 and "diverged then, failed now" in done.out
    assert "The loss is nan at optimiser step 1. then, The method breaks failed" in done.out


def test_where_a_traceback_lies_is_no_part_of_a_failure():
    told = "KeyError: 1. The traceback is in {}/traceback.txt."
    failures = [
        {"status": "failed", "failure": told.format(where)}
        for where in ("results/runs/a", "/elsewhere")
    ]
    ends = [module.how_it_ended(failure) for failure in failures]
    assert ends[0] == ends[1] == {"status": "failed", "message": "KeyError: 1."}


def test_run_that_failed_and_now_ends_well_is_different(copy):
    (copy / "result.json").rename(copy / "failure.json")
    edit(copy / "failure.json", lambda f: f.update(status="failed", failure="Out of memory."))
    verdict, told = loose(copy)
    assert not verdict.reproduced and told.startswith(
        "different: 2 of 2 items differ (status, failure message)"
    )


def test_plugin_file_is_asked_for_by_name_and_never_loaded_because_a_record_says_so():
    done = command("reproduce", finished("dpo"))
    assert done.code == 2 and "There is no suite 'small'" in done.err
    assert f"harness reproduce {finished('dpo')} -p {small_suite()}" in done.err


def test_what_is_no_run_folder(tmp_path, copy):
    with pytest.raises(
        UsageError, match=r"no such folder.*RESULTS/runs/SUITE/METHOD/seedN.*nearest: .*seed0"
    ):
        read_run(tmp_path / "seed0-nosuch")
    with pytest.raises(UsageError, match=r"no spec.json in it.*nearest: .*seed0"):
        read_run(tmp_path)
    (copy / "result.json").unlink()
    with pytest.raises(UsageError, match="is not finished"):
        read_run(copy)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("dtype"), "differs in its fields dtype"),
        (lambda s: s.update(new=1), "differs in its fields new"),
        (lambda s: s["stages"].pop("sft"), "differs in its fields sft"),
        (lambda s: s["budget"].update(watts=1), "is damaged .*watts"),
    ],
)
def test_spec_of_another_version(copy, change, told):
    edit(copy / "spec.json", change)
    with pytest.raises(HarnessError, match=told):
        read_run(copy)


def test_data_folder_is_for_suites_with_files(copy, tmp_path):
    with pytest.raises(UsageError, match="the suite small reads no files"):
        read_run(copy, tmp_path)


def test_several_processes_are_refused(copy, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="by one process"):
        reproduce(read_run(copy), registry(), ReproduceOptions(), print)


def test_compare_runs_takes_digests_for_weights_that_are_not_there(copy):
    weights = weights_of(copy)
    assert weights
    shutil.rmtree(copy / "policy")
    record = read_result(copy)

    def status(**how):
        items = compare_runs(copy, record, finished("dpo"), record, **how)
        return {item.name: item.status for item in items}

    (name,) = weights
    assert status(weights=weights)[name] == SAME
    assert status(weights={name: "0" * 64})[name] == DIFFERENT
    assert status()[name] == DIFFERENT

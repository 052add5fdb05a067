"""The command line end to end: clear refusals, the built-in methods, a stranger's method, failures,
determinism.
"""

import csv
import hashlib
import io
import json
import re
import resource
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from harness.cli import display
from harness.core.seeds import derive
from harness.statistics.power import Design, power

from ..helpers.faulty_method import FAULTY
from ..helpers.tools import (
    ROOT,
    command,
    estimate,
    finished,
    fresh,
    on_small,
    only_run,
    outputs,
    plugin,
    process,
    put,
    record,
    results,
    with_shared_stages,
)

REINFORCE = '''
"""REINFORCE with a running baseline: a method as a stranger would write it."""

from dataclasses import dataclass

from harness import GradientMethod, hookimpl


@dataclass
class Reinforce(GradientMethod):
    """Raise the likelihood of what scores above the running mean."""

    name, paper = "centred", "https://example.org"
    needs = frozenset({"prompts", "reward"})

    steps: int = 2  # rollouts
    decay: float = 0.9  # of the running mean

    def loss(self, logp, batch):
        return -(logp.sum(-1) * batch["advantage"]), {"advantage": batch["advantage"]}

    def train(self, lab):
        lab.state.setdefault("mean", 0.0)
        for prompts in lab.prompts(self.steps, batch_size=8):
            batch = lab.rollout(prompts)
            reward = lab.reward(batch)
            lab.step(self.loss, batch.with_columns(advantage=reward - lab.state["mean"]))
            lab.state["mean"] += (1 - self.decay) * (float(reward.mean()) - lab.state["mean"])
            lab.log(reward=reward.mean())
        return lab.policy


@hookimpl
def register_methods(register):
    register(Reinforce)
'''


@pytest.fixture(scope="module")
def faulty():
    return plugin(fresh("plugins"), "faulty", FAULTY)


def run_faulty(faulty, fault, where=None):
    return command(
        *on_small("faulty", "-p", faulty, "--set", f"fault={fault}", results=where or results())
    )


# -- refusals before anything starts ---------------------------------------------------------------

DPO, SUITE = ["-m", "dpo"], ["-s", "summarization"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-m", "pp0", *SUITE], "There is no method 'pp0'. Did you mean 'ppo'?"),
        (
            [*DPO, "-s", "sumarization"],
            "There is no suite 'sumarization'. Did you mean 'summarization'?",
        ),
        ([*DPO, *SUITE, "--set", "bta=1"], "There is no option 'bta'. Did you mean 'beta'?"),
        ([*DPO, *SUITE, "--suite-set", "labeler_bias=1"], "Did you mean 'labeller_bias'?"),
        (
            [*DPO, *SUITE, "--stage-set", "stf.steps=1"],
            "There is no stage 'stf'. Did you mean 'sft'?",
        ),
        (
            [*DPO, *SUITE, "--stage-set", "sft.step=1"],
            "There is no option 'step'. Did you mean 'steps'?",
        ),
        ([*DPO, *SUITE, "--stage-set", "sft=1"], "There is no option ''"),
        ([*DPO, *SUITE, "--budget", "step=1"], "There is no budget 'step'. Did you mean 'steps'?"),
        ([*DPO, *SUITE, "--budget", "steps=0"], "expected a number above 0"),
        (
            [*DPO, *SUITE, "--engine", "fh"],
            "There is no engine 'fh'. Known: cuda_graphs, hf, vllm.",
        ),
        ([*DPO, *SUITE, "--judge", "summary_gald"], "Did you mean 'summary_gold'?"),
        ([*DPO, *SUITE, "--labeller", "bradley"], "There is no labeller 'bradley'"),
        ([*DPO, *SUITE, "--set", "beta=strong"], "beta = 'strong': expected float"),
        ([*DPO, *SUITE, "--set", "robust=perhaps"], "robust = 'perhaps': expected bool"),
        ([*DPO, *SUITE, "--set", "steps=1.5"], "steps = '1.5': expected int"),
        ([*DPO, *SUITE, "--set", "beta=nan"], "beta = 'nan': expected float"),
        ([*DPO, *SUITE, "--set", "beta=-1"], "beta must be above 0"),
        ([*DPO, *SUITE, "--set", "beta"], "expected name=value"),
        ([*DPO, *SUITE, "--set", "beta=1", "--set", "beta=2"], "--set beta is given twice"),
        ([*DPO, *SUITE, "--seed", "-1"], "--seed"),
        ([*DPO, *SUITE, "--dtype", "float16"], "--dtype"),
        ([*DPO, *SUITE, "--sed", "1"], "'--seed'"),
        ([*DPO, *SUITE, "-p", "gone.py"], "-p gone.py: there is no such file"),
        ([*DPO, "-s", "gone.toml"], "--suite gone.toml: there is no such file"),
        (DPO, "--suite"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_run_refuses_wrong_options(tmp_path, arguments, told):
    done = command("run", *arguments, "--quick", "--results", tmp_path / "results", cwd=tmp_path)
    assert done.code == 2 and told in done.err, done.text
    assert "Traceback" not in done.text and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data = ", "not a TOML file"),
        ("\x00", "not a TOML file"),
        ("x = " + "[" * 5000, "nested too deeply"),
        ('data = "a"\ndata = "b"', "not a TOML file"),
        ('dat = "x.jsonl"', "There is no option 'dat'. Did you mean 'data'?"),
        ("max_rows = 1.5", "expected int"),
        ("max_rows = true", "expected int"),
        ("title = 3", "expected letters"),
        ("", "name the training rows by either"),
        (
            'data = "x.jsonl"\n[stages.stf]\nsteps = 1',
            "There is no stage 'stf'. Did you mean 'sft'?",
        ),
        (
            'data = "x.jsonl"\n[stages.sft]\nstep = 1',
            "There is no option 'step'. Did you mean 'steps'?",
        ),
        (
            'data = "x.jsonl"\n[settings.dpo]\nbta = 1',
            "There is no option 'bta'. Did you mean 'beta'?",
        ),
        ('data = "x.jsonl"\n[setings.dpo]\nbeta = 1', "There is no option 'setings'"),
    ],
)
def test_run_refuses_suite_files_that_cannot_work(tmp_path, text, told):
    (tmp_path / "mine.toml").write_text(text)
    done = command("run", *DPO, "-s", "mine.toml", "--results", tmp_path / "results", cwd=tmp_path)
    assert done.code == 2 and told in done.err and "Traceback" not in done.text, done.text
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "text", ["settings = 3", "[settings]\ndpo = 1", "stages = 3", "[stages]\nsft = 1"]
)
def test_run_refuses_suite_files_of_the_wrong_shape(tmp_path, text):
    test_run_refuses_suite_files_that_cannot_work(
        tmp_path, f'data = "x.jsonl"\n{text}', "mine.toml"
    )


def test_run_refuses_suite_files_with_unknown_settings(tmp_path):
    test_run_refuses_suite_files_that_cannot_work(
        tmp_path, 'data = "x.jsonl"\n[settings.dpp]\nbeta = 1', "dpo"
    )


@pytest.mark.parametrize("value", ["inf", "1e999"])
def test_run_refuses_an_endless_number_of_steps(tmp_path, value):
    test_run_refuses_wrong_options(
        tmp_path, [*DPO, *SUITE, "--set", f"steps={value}"], "expected int"
    )


def test_run_names_missing_data_of_a_suite_file(tmp_path):
    (tmp_path / "mine.toml").write_text('data = "gone.jsonl"')
    model = ROOT / "suites" / "harness_suites" / "base"
    done = command(
        "run",
        *DPO,
        "-s",
        "mine.toml",
        "--model",
        model,
        "--results",
        tmp_path / "results",
        cwd=tmp_path,
    )
    assert (
        done.code == 2
        and "there is no" in done.err
        and "gone.jsonl" in done.err
        and "Traceback" not in done.text
    )


def test_run_refuses_a_folder_that_is_not_a_model(tmp_path):
    done = command(
        "run", *DPO, *SUITE, "--model", tmp_path, "--quick", "--results", tmp_path / "results"
    )
    assert (
        done.code == 2
        and "A folder in Hugging Face format" in done.err
        and "Traceback" not in done.text
    ), done.text


def test_cli_suggests_the_nearest_command():
    done = command("rnu")
    assert done.code == 2 and "There is no command 'rnu'. Did you mean 'run'?" in done.err


def test_help_shows_the_verbs_in_four_groups():
    sections = {}
    for line in command("--help").out.splitlines():
        if re.fullmatch(r"[A-Z]\w+:", line):
            sections[line[:-1]] = verbs = []
        elif re.match(r"  [a-z]", line) and sections:
            verbs.append(line.split()[0])
    sections.pop("Options")
    assert sections == {
        "Run": ["run", "study", "evaluate"],
        "Read": ["table", "plot", "compare", "report"],
        "Extend": ["list", "show", "new", "check"],
        "Trust": ["reproduce", "power", "clean"],
    }


def test_list_and_show_describe_plugins():
    listed = command("list")
    assert listed.code == 0
    assert all(
        word in listed.out
        for word in ("methods", "suites", "ppo", "dpo", "summarization", "alignment-harness")
    )
    rows = {line.split()[0]: line for line in listed.out.splitlines() if line.strip()}
    assert "policy, reference" in rows["dpo"] and "stated" in rows["dpo"]
    assert "policy, reference" not in rows["simpo"] and "stated" not in rows["rlaif"]
    assert rows["cdpo"].split() == ["cdpo", "dpo", "label_smoothing=0.1"]
    assert rows["dr_grpo"].split()[:2] == ["dr_grpo", "grpo"]
    lines = listed.out.splitlines()
    families = [i for i, line in enumerate(lines) if re.fullmatch(r"  [\w -]+ \(\d+\)", line)]
    counts = [int(lines[i].split("(")[1][:-1]) for i in families]
    assert counts == sorted(counts, reverse=True)
    assert lines[families[0]].startswith("  offline preference (")
    assert f"  {sum(counts)} methods. " in listed.out
    assert rows["ppo"].split()[1:3] == ["prompts,", "reward"]
    shown = command("show", "dpo", "--suite", "summarization")
    assert (
        shown.code == 0
        and "strength of the KL constraint" in shown.out
        and re.search(r"^beta +0\.3 +suite +float ", shown.out, re.M)
    )
    missing = command("show", "dpoo")
    assert missing.code == 2 and "Did you mean 'dpo'?" in missing.err


def test_table_of_nothing_says_what_to_do(tmp_path):
    done = command("table", "--results", tmp_path)
    assert done.code == 2 and "harness run" in done.err and "Traceback" not in done.text
    done = command("table", "--results", tmp_path, "--format", "markdwn")
    assert done.code == 2 and "There is no reporter 'markdwn'" in done.err


def test_panel_is_short_and_in_plain_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    made = record("ppo")
    evaluation = {
        "accuracy": estimate(0.5),
        "baseline_accuracy": 0.4,
        "proxy": estimate(1.0),
        "baseline_proxy": 0.2,
        "suite": {"words": 12.5, "copied": 0.25},
        "rouge": {"rouge1": 0.3, "rouge2": 0.2, "rougeL": 0.25},
        "curve": [{}, {}, {}],
    }
    made["evaluation"] |= evaluation
    cost = made["cost"] = made["cost"] | {"reused_stages": ["sft"]}
    cost["phases"] = {phase: {"peak_memory": 2**29} for phase in ("sft", "method", "evaluation")}
    put(tmp_path, made)
    (folder,) = tmp_path.glob("runs/toy/ppo/*")
    display.show(SimpleNamespace(result=made, folder=folder, reused=False))
    text = capsys.readouterr().out
    lines = text.splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("\u2570"))
    assert end + 1 <= 10, text
    assert text.count("512 MiB") == 1 and lines[-1] == "next: harness table"
    assert "win-rate vs baseline" in text and "baseline" in "\n".join(lines[end + 1 :])
    for word in ("rao-blackwell", "looked up", "computed", "SFT", "rollouts"):
        assert word not in text
    cost["phases"]["method"] = {"peak_memory": 2**30}
    assert dict(display._lines(made))["peak memory"].count("MiB") == 3


@pytest.mark.parametrize("difference", [False, True])
def test_power_names_the_seeds_needed(difference):
    arguments = ["--effect", 0.08, "--seeds", 3, "--prompts", 512]
    done = command("power", *arguments)
    head, _, *rows = (line.split("|") for line in done.out.splitlines() if line.startswith("|"))
    assert done.code == 0 and head[-2].strip() == "seeds for 80% power", done.text
    needed = int(rows[difference][-2])
    design = Design(prompts=512, seed_sd=0.02)
    reached = [power(replace(design, seeds=n), 0.08, difference) for n in (needed - 1, needed)]
    assert reached[0] < 0.8 <= reached[1]
    few = command("power", "--effect", 0.01, "--seeds", 3, "--prompts", 64)
    assert "no number is enough with 64 prompts" in few.out


# -- end to end ------------------------------------------------------------------------------------

METHODS = ("start", "dpo", "best_of_n", "ppo")


@pytest.mark.parametrize("method", METHODS)
def test_run_writes_a_complete_record(method):
    folder = finished(method, "summarization")
    result = json.loads((folder / "result.json").read_text())
    assert (
        result["status"] == "finished"
        and result["method"] == method
        and result["evaluation"]["prompts"] == 64
    )
    low, high = (result["evaluation"]["win_rate"][k] for k in ("low", "high"))
    assert 0 <= low <= result["evaluation"]["win_rate"]["mean"] <= high <= 1
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for name in ("samples.jsonl", "metrics.jsonl"):
        assert result["files"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert len(samples) == 64 and all(s["prompt_id"].startswith("test/") for s in samples)
    assert (folder / "policy" / "model.safetensors").exists() == (method != "best_of_n")
    steps = len((folder / "metrics.jsonl").read_text().splitlines())
    assert steps == {"start": 0, "dpo": 6, "best_of_n": 0, "ppo": 3}[method]
    cost = result["cost"]
    assert cost["method"]["steps"] == (steps if method == "dpo" else cost["method"]["steps"])
    assert ("reference" in cost["models"]) == (method in ("dpo", "ppo"))
    assert (cost["method"]["reward_queries"] > 0) == (method == "ppo")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["versions"]["torch"] and provenance["code"]["harness"]
    assert {"sft", "preferences", "reward_model", "baseline_answers"} <= set(
        provenance["artifacts"]
    )
    assert (
        all(len(digest) == 64 for digest in provenance["artifacts"].values())
        and provenance["ground"]["judge"]
    )


def test_start_is_the_start_checkpoint_itself():
    evaluation = json.loads((finished("start", "summarization") / "result.json").read_text())[
        "evaluation"
    ]
    assert evaluation["kl"]["mean"] == 0 and evaluation["kl"]["high"] == 0


def test_run_again_returns_the_finished_result():
    finished("dpo", "summarization")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = process("run", "-m", "dpo", "-s", "summarization", "--quick", "--results", results())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.code == 0 and "finished before" in done.out, done.text
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0  # no torch


def test_table_writes_markdown_and_csv(tmp_path):
    for method in METHODS:
        finished(method, "summarization")
    done = command("table", "-s", "summarization", "--results", results())
    assert done.code == 0, done.text
    rows = [line.split("|")[1].strip() for line in done.out.splitlines() if line.startswith("|")]
    assert rows[2] == "start quick" and set(rows[2:]) == {f"{method} quick" for method in METHODS}
    file = tmp_path / "table.csv"
    done = command(
        "table", "-s", "summarization", "--results", results(), "--format", "csv", "-o", file
    )
    assert done.code == 0 and done.out == ""
    found = {row["method"]: row for row in csv.DictReader(io.StringIO(file.read_text()))}
    result = json.loads((finished("ppo", "summarization") / "result.json").read_text())
    assert float(found["ppo quick"]["kl"]) == result["evaluation"]["kl"]["mean"]
    done = command(
        "table",
        "-s",
        "summarization",
        "--results",
        results(),
        "-o",
        tmp_path / "new" / "a" / "t.md",
    )
    assert done.code == 0 and "| start quick" in (tmp_path / "new" / "a" / "t.md").read_text()
    done = command("table", "-s", "summarization", "--results", results(), "-o", file / "t.md")
    assert done.code == 3 and "Cannot write" in done.err and "is a file" in done.err


def test_plot_writes_a_file(tmp_path):
    pytest.importorskip("matplotlib")
    finished("dpo", "summarization")
    done = command(
        "plot", "-s", "summarization", "--results", results(), "-o", tmp_path / "frontier.png"
    )
    assert done.code == 0 and (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG"), (
        done.text
    )
    done = command("plot", "--results", tmp_path)
    assert done.code == 2 and "Traceback" not in done.text


def test_run_accounts_for_its_wall_time():
    where, began = fresh("wall"), time.time()
    done = process(*on_small("ppo", results=where))
    assert done.code == 0, done.text
    record = only_run(where, "small", "ppo") / "result.json"
    cost = json.loads(record.read_text())["cost"]
    assert cost["spent_seconds"] == pytest.approx(sum(cost["wall"].values()))
    assert cost["wall"]["other"] < 0.05 * cost["spent_seconds"]  # all parts have a name
    made = sum(cost["stages_made"].values())
    assert cost["wall"]["stages"] <= made  # loading inside a stage is loading
    assert {"sft", "preferences", "reward_model", "baseline_answers"} <= set(cost["stages_made"])
    assert cost["spent_seconds"] == pytest.approx(record.stat().st_mtime - began, rel=0.05)
    assert f"{cost['spent_seconds']:.1f} s: stages" in done.out
    assert "stages: sft, preferences, reward model, 4 steps of ppo, evaluation" in done.err


def test_run_accepts_the_former_name_of_start_and_says_its_name():
    folder = finished("start")
    done = command(*on_small("sft", results=results()))
    assert done.code == 0 and "The method sft is called start." in done.err, done.text
    assert folder.name in done.out and "(finished before)" in done.out
    shown = command("show", "sft")
    assert shown.out.startswith("start (method)"), shown.text


def test_table_shows_a_method_from_a_plain_file():
    finished("start")
    file = plugin(fresh("plugins"), "centred", REINFORCE)
    done = command(*on_small("centred", "-p", file, "--set", "steps=3", results=results()))
    assert done.code == 0, done.text
    made = command("table", "-s", "small", "--methods", "start, centred", "--results", results())
    rows = [line.split("|")[1].strip() for line in made.out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["start quick", "centred quick"], made.text
    shown = command("show", "centred", "-p", file)
    assert "of the running mean" in shown.out and "centred.py" not in shown.err


# -- what goes wrong -------------------------------------------------------------------------------


def only_message(done, code, told):
    """Assert that a command ended in one message."""
    assert done.code == code and told in done.err and "Traceback" not in done.text, done.text
    assert done.err.count("harness: ") == 1 and done.err.rstrip().splitlines()[-1].startswith(
        "harness: "
    )


@pytest.fixture(scope="module")
def diverged(faulty):
    """A run whose loss became NaN, in a results folder with one that finished."""
    where = with_shared_stages("diverged")
    good = run_faulty(faulty, "", where)
    assert good.code == 0, good.text
    return where, run_faulty(faulty, "nan", where)


def test_run_with_a_loss_of_nan_is_one_message_and_a_row(diverged):
    where, done = diverged
    only_message(done, 1, "The loss is nan at optimiser step 2.")
    (file,) = where.rglob("failure.json")
    recorded = json.loads(file.read_text())
    assert (
        recorded["status"] == "diverged"
        and "nan" in recorded["failure"]
        and not (file.parent / "result.json").exists()
    )
    made = command("table", "--results", where)
    (row,) = [line for line in made.out.splitlines() if "fault=nan" in line]
    assert "0/1" in row and "failed: The loss is nan at optimiser step 2." in row


def test_failure_record_names_its_time(diverged):
    (file,) = diverged[0].rglob("failure.json")
    assert json.loads(file.read_text())["finished_at"]


def test_run_after_a_failure_starts_anew(diverged, faulty):
    done = run_faulty(faulty, "nan", diverged[0])
    assert (
        done.code == 1
        and "This run failed before; it is tried again." in done.err
        and "step 2" in done.err
    )


def test_show_describes_a_stage():
    done = command("show", "stage.evaluation")
    assert (
        done.code == 0 and "--stage-set evaluation.OPTION=VALUE" in done.out and "split" in done.out
    )
    done = command("show", "stage.evaluatoin")
    only_message(done, 2, "There is no stage 'evaluatoin'. Did you mean 'evaluation'?")


def test_run_refuses_a_method_without_its_verifier(tmp_path):
    done = command("run", "-m", "rlvr", *SUITE, "--quick", "--results", tmp_path)
    only_message(done, 3, "needs verifier, which the suite summarization cannot give")
    assert "Nothing was trained" in done.err and not [
        f for f in (tmp_path / "artifacts").iterdir() if f.name != ".work"
    ]


def test_run_names_an_undeclared_need(faulty):
    done = run_faulty(faulty, "reward")
    only_message(done, 1, "asks for a reward without saying so: add 'reward' to its `needs`")
    assert "The method faulty failed" in done.err


def test_run_names_a_method_that_returns_nothing(faulty):
    only_message(run_faulty(faulty, "nothing"), 1, "returned NoneType, not a Policy")


def test_run_with_a_metric_of_nan_is_one_message(faulty):
    only_message(run_faulty(faulty, "metric"), 1, "strange is nan at step 1")


@pytest.mark.parametrize("fault", ["bug", "memory", "reward"])
def test_run_records_any_failure_of_a_method(faulty, fault):
    where = results()
    run_faulty(faulty, fault, where)
    records = [json.loads(f.read_text()) for f in where.glob("runs/small/faulty/*/failure.json")]
    assert [r for r in records if r["options"]["fault"] == fault]


def test_run_records_errors_of_a_method_in_training(faulty):
    where = fresh("usage")
    done = run_faulty(faulty, "usage", where)
    assert done.code == 2 and "top_k=5" in done.err and "Traceback" not in done.text
    (record,) = [json.loads(f.read_text()) for f in where.glob("runs/small/faulty/*/failure.json")]
    assert "top_k=5" in record["failure"] and list(where.glob("runs/small/faulty/*/spec.json"))


def test_run_out_of_memory_is_one_message(faulty):
    only_message(run_faulty(faulty, "memory"), 1, "micro-batch-tokens")


# -- determinism -----------------------------------------------------------------------------------


def test_run_gives_the_same_bytes_in_another_folder(tmp_path):
    first = finished("ppo")
    done = process(
        *on_small("ppo", results=tmp_path / "other results"),
        cwd=tmp_path,
        env={"PYTHONHASHSEED": "4242", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
    )
    assert done.code == 0, done.text
    again = only_run(tmp_path / "other results", "small", "ppo")
    assert again.name == first.name and len(outputs(first)) == 4
    assert outputs(again) == outputs(first)


def test_run_with_another_seed_gives_other_bytes():
    first = finished("dpo")
    done = command(*on_small("dpo", "--seed", 7, results=results()))
    assert done.code == 0, done.text
    (other,) = (results() / "runs" / "small" / "dpo").glob("seed7-*")
    assert outputs(other)["metrics.jsonl"] != outputs(first)["metrics.jsonl"]
    grounds = [json.loads((f / "result.json").read_text())["ground"] for f in (first, other)]
    assert grounds[0] == grounds[1]


def test_run_settings_of_the_machine_change_rounding_only(tmp_path):
    done = command(*on_small("dpo", "--micro-batch-tokens", 300, results=tmp_path))
    assert done.code == 0, done.text
    folders = [only_run(tmp_path, "small", "dpo"), finished("dpo")]
    assert folders[0].name == folders[1].name  # they are no part of a run's name
    losses = [
        [json.loads(line)["loss"] for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in folders
    ]
    assert len(losses[0]) > 2 and losses[0] == pytest.approx(losses[1], abs=1e-4)


# -- nothing stale ---------------------------------------------------------------------------------

JUDGE = """
from harness import Judge, hookimpl


class Mine(Judge):
    name = "mine"

    def score(self, prompts, completions):
        return [{score} for text in completions]


@hookimpl
def register_judges(register):
    register(Mine)
"""


def test_run_with_another_judge_of_one_name_is_another_run():
    where = with_shared_stages("judge")
    file = plugin(where, "judge", JUDGE.format(score="1.0"))
    arguments = on_small("start", "-p", file, "--judge", "mine", results=where)
    assert command(*arguments).code == 0
    file.write_text(JUDGE.format(score="float(len(text))"))
    done = command(*arguments)
    assert done.code == 0 and "finished before" not in done.out, done.text


def test_run_with_another_model_in_one_folder_is_another_run():
    from safetensors.torch import load_file, save_file

    where = fresh("model")
    model = where / "model"
    shutil.copytree(ROOT / "suites" / "harness_suites" / "base", model)
    arguments = on_small("start", "--model", model, results=where)
    assert command(*arguments).code == 0
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: value + 0.01 for name, value in weights.items()},
        model / "model.safetensors",
        {"format": "pt"},
    )
    done = command(*arguments)
    assert done.code == 0 and "finished before" not in done.out, done.text


# -- a suite from a file ---------------------------------------------------------------------------

MINE = """
data = "data.jsonl"
max_completion_tokens = 6
test_share = {test}
validation_share = 0.2
[settings.dpo]
steps = 2
batch_size = 4
[stages.sft]
steps = 2
batch_size = 4
[stages.reward_model]
batch_size = 8
"""


def run_on_file(where, rows, test=0.2):
    """DPO on a made-up preference file of so many rows."""
    line = (
        '{{"prompt": "the mayor sold {0} bridge .", "chosen": " old {0} .", "rejected": " {0} new'
        ' old ."}}\n'
    )
    (where / "data.jsonl").write_text("".join(line.format(n) for n in range(rows)))
    (where / "mine.toml").write_text(MINE.format(test=test))
    model = ROOT / "suites" / "harness_suites" / "base"
    return command(
        "run",
        "-m",
        "dpo",
        "-s",
        "mine.toml",
        "--model",
        model,
        "--results",
        where / "results",
        cwd=where,
    )


def test_run_accepts_a_preference_file(tmp_path):
    done = run_on_file(tmp_path, 60)
    assert done.code == 0, done.text
    result = json.loads(
        only_run(tmp_path / "results", "mine", "dpo").joinpath("result.json").read_text()
    )
    assert result["evaluation"]["prompts"] >= 2 and result["ground"]["judge"].startswith(
        "reward_model_judge"
    )
    assert result["cost"]["labels"] < 60 and "rouge" in result["evaluation"]


def test_run_with_one_evaluation_prompt_is_one_message(tmp_path):
    places = sorted(derive("split", 0, f"the mayor sold {n} bridge .") / 2**63 for n in range(60))
    done = run_on_file(
        tmp_path, 60, (places[0] + places[1]) / 2
    )  # exactly one prompt falls to the test split
    assert "usable rows are too few" not in done.err
    assert "Traceback" not in done.text, done.text

"""Rewards kept fresh: a labeller in a process of its own, its bill, its end; runs killed while it
works.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from random import Random

import pytest
import torch

from harness.api.participants import participants
from harness.api.registry import installed, load_file
from harness.api.resolve import Request, resolve
from harness.core.errors import HarnessError
from harness.core.seeds import derive
from harness.models.batches import Batch
from harness.training.label_server import LabelClient
from harness.training.reward_model import bradley_terry_loss, ranking_loss

from ..helpers.tools import (
    ENV,
    command,
    finished,
    fresh,
    on_small,
    only_run,
    outputs,
    plugin,
    results,
    small_suite,
    with_shared_stages,
)
from ..helpers.watched_runs import Watched

# A labeller that says where it works, prints to where answers go, and fails in the way $FAIL names.
TELLING = """
import os
import time
from dataclasses import dataclass

from harness import Comparison, Labeller, hookimpl
from harness.core.errors import UsageError


@dataclass
class Telling(Labeller):
    name = "telling"
    human = False

    dear: float = 0.0  # how many more pairs it says it was asked about than it answered

    def prepare(self, suite, judge):
        self.judge, self.asked = judge, 0
        with open(os.environ["PIDS"], "a") as stream:
            print(os.getpid(), file=stream)
        print("hello, this is no answer", flush=True)
        if os.environ.get("FAIL") == "prepare":
            raise UsageError("There is nobody to ask.")

    def compare(self, prompt, completions, lengths, rng):
        fail = os.environ.get("FAIL") if prompt.id.startswith("train/") else None
        if fail == "raise":
            raise RuntimeError("no opinion\\non this one")
        if fail == "exit":
            os._exit(3)
        if fail == "sleep":
            time.sleep(300)
        print("thinking", flush=True)
        self.asked += len(completions) // 2
        firsts = range(0, len(completions) - 1, 2)
        return [Comparison(i, i + 1, rng.choice((0.9, 0.2))) for i in firsts]

    def usage(self):
        return {"asked": self.asked + self.dear} if self.dear else {}

    def revise(self, prompt, completion, principle, rng):
        return f"{principle.id} {completion}"


@hookimpl
def register_labellers(register):
    register(Telling)
"""


@pytest.fixture(scope="module")
def telling():
    return plugin(fresh("plugins"), "telling", TELLING)


def alive(pid):
    try:
        os.kill(pid, 0)
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def gone(pids, within=10.0):
    """Whether processes have ended, or do so soon."""
    end = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


# -- the desk --------------------------------------------------------------------------------------


class Office:
    """Desks on the suite `small`, opened in this process."""

    def __init__(self, telling, monkeypatch):
        self.files, self.env, self.pids_file = (
            (str(small_suite()), str(telling)),
            monkeypatch,
            fresh("pids") / "pids",
        )
        monkeypatch.setenv("PIDS", str(self.pids_file))
        self.registry = installed.__wrapped__()  # one of its own: files stay loaded
        for file in self.files:
            load_file(self.registry, file)

    def spec(self, labeller=None, settings=()):
        fixed = {"quick": True, "labeller": labeller}
        asked = Request(
            "ppo", "small", ("reward_refresh=2",), labeller_settings=settings, fixed=fixed
        )
        return resolve(asked, self.registry)

    def label_client(self, *args, fail=None):
        self.env.setenv("FAIL", fail or "")
        return LabelClient(self.spec(*args), self.files, human=True)

    @property
    def pids(self):
        return [int(line) for line in self.pids_file.read_text().split()]


@pytest.fixture
def office(telling, monkeypatch):
    return Office(telling, monkeypatch)


TEXTS = [
    ["painter opened dam in milan .", "artist sold ship .", "nobody knows what follows .", "x ."],
    ["a .", "b ."],
]
ENDED = [[True, True, True, False], [True, True]]
ASKED = (["train/3", "train/5"], TEXTS, [[7, 5, 6, 3], [3, 3]], ENDED)


def test_desk_says_what_the_labeller_would_say_here(office):
    spec = office.spec()
    built = participants(spec, office.registry)
    suite, judge, labeller = built.suite, built.labelling_judge, built.learns_from
    judge.prepare(suite, None), labeller.prepare(suite, judge)
    label_client = office.label_client()
    said, asked = label_client.compare(*ASKED, key=[0, 2])
    prompts = {p.id: p for p in suite.prompts("train")}
    for row, name, texts, lengths, _ in zip(said, *ASKED, strict=True):
        rng = Random(derive(spec.shared_seed, spec.seed, "fresh labels", 0, 2, name))
        assert row == labeller.compare(prompts[name], texts, lengths, rng)
    assert asked == 7 and label_client.compare(*ASKED, key=[0, 2]) == (said, 7)
    assert any(
        label_client.compare(*ASKED, key=[0, turn])[0] != said for turn in (4, 6, 8)
    )  # other turns, other errors
    label_client.close()


def test_what_a_labeller_prints_is_no_answer(office):
    label_client = office.label_client("telling")
    said, asked = label_client.compare(*ASKED, key=[0, 2])
    assert [[(c.first, c.second) for c in row] for row in said] == [
        [(0, 1), (2, 3)],
        [(0, 1)],
    ] and asked == 3
    label_client.close()
    assert gone(office.pids, 0)


def test_labellers_own_count_is_the_bill_each_time(office):
    label_client = office.label_client("telling", ("dear=2",))
    assert [label_client.compare(*ASKED, key=[0, turn])[1] for turn in (2, 4)] == [
        3,
        3,
    ]  # what it had counted before is paid
    label_client.close()


def test_revisions_come_from_the_desk_as_well(office):
    label_client = office.label_client("telling")
    revised = label_client.revise(ASKED[0], TEXTS, 2, key=[0, 0])
    known = {p.id for p in participants(office.spec(), office.registry).suite.principles()}
    for row, texts in zip(revised, TEXTS, strict=True):
        for text, before in zip(row, texts, strict=True):
            *names, rest = text.split(" ", 2)
            assert rest == before and set(names) <= known
    assert (
        revised
        == label_client.revise(ASKED[0], TEXTS, 2, key=[0, 0])
        != label_client.revise(ASKED[0], TEXTS, 2, key=[0, 1])
    )
    label_client.close()


def test_labeller_that_does_not_revise_is_one_message(office):
    label_client = office.label_client()
    with pytest.raises(HarnessError, match="The labeller failed: .*bradley_terry compares"):
        label_client.revise(ASKED[0], TEXTS, 1, key=[0, 0])
    label_client.close()


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("raise", "The labeller failed: RuntimeError: no opinion"),
        ("exit", "The labeller's process ended: exit code 3"),
    ],
)
def test_labeller_that_fails_is_one_message(office, fail, message):
    label_client = office.label_client("telling", fail=fail)
    with pytest.raises(HarnessError, match=message):
        label_client.compare(*ASKED, key=[0, 2])
    label_client.close()
    assert gone(office.pids, 0)


def test_labeller_that_cannot_be_opened_leaves_no_process(office):
    with pytest.raises(HarnessError, match="^The labeller failed: There is nobody to ask.$"):
        office.label_client("telling", fail="prepare")
    assert len(office.pids) == 1 and gone(office.pids, 0)


def test_closing_ends_a_labeller_in_the_middle_of_an_answer(office):
    label_client = office.label_client("telling", fail="sleep")
    caught = []

    def ask():
        try:
            label_client.compare(*ASKED, key=[0, 2])
        except HarnessError as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    assert alive(office.pids[0])  # the negative control: it is at work
    begun = time.monotonic()
    label_client._child.stdin.close()
    asking.join(10)
    assert time.monotonic() - begun < 8 and gone(office.pids, 1) and len(caught) == 1


def test_labeller_does_not_outlive_a_killed_process(office, telling):
    code = (
        "import sys; from harness.training.label_server import LabelClient; from"
        " harness.api.resolve import Request, resolve\nfrom harness.api.registry import installed,"
        f" load_file\nfiles = {office.files!r}; registry = installed(); [load_file(registry, f) for"
        " f in files]\nfixed = {'quick': True, 'labeller': 'telling'}\ndesk ="
        " LabelClient(resolve(Request('ppo', 'small', fixed=fixed), registry), files,"
        f" True)\nprint('open', flush=True); desk.compare(*{ASKED!r}, key=[0, 2])\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENV, "FAIL": "sleep"},
    )
    assert parent.stdout.readline() == "open\n"
    time.sleep(0.3)
    assert alive(office.pids[0])
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(office.pids, 5)


# -- a loss on fresh labels ------------------------------------------------------------------------


def test_fresh_labels_survive_parts_of_a_batch_with_as_many_tokens_as_completions(
    tokens, make_batch
):
    batch = make_batch(tokens, words=(2, 3), lengths=((1, 2), (2, 1)))  # K = T = 2
    preferred = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.25], [0.75, 0.0]]])
    scores = torch.tensor([[0.3, -0.2], [1.0, 0.5]])
    whole = batch.with_columns(preferred=preferred.flatten(1))
    short = make_batch(tokens, words=(2, 3), lengths=((1, 1), (2, 1))).with_columns(
        preferred=preferred.flatten(1)
    )
    for b in (whole, short):
        for i in range(2):
            part = b.select([i])
            expected = bradley_terry_loss(scores[i : i + 1], preferred[i : i + 1])
            assert torch.equal(ranking_loss(scores[i : i + 1], part), expected)
    square = Batch(short.prompts, {**short, "preferred": preferred}).select(
        [0]
    )  # the negative control: not laid flat
    assert square["preferred"].shape == (1, 2, 1)


# -- whole runs ------------------------------------------------------------------------------------

FRESH = ["--set", "reward_refresh=2", "--set", "steps=6"]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_of(*more, method="ppo"):
    """The folder of a quick run in the session's results."""
    before = set((results() / "runs" / "small" / method).glob("*"))
    done = command(*on_small(method, *more, results=results()))
    assert done.code == 0, done.text
    (folder,) = set((results() / "runs" / "small" / method).glob("*")) - before
    return folder


@pytest.fixture(scope="module")
def whole():
    finished("ppo")  # the artifacts
    return run_of(*FRESH)


def test_fresh_labels_are_billed_to_the_method(whole):
    result = json.loads((whole / "result.json").read_text())
    cost = result["cost"]
    own, usual = cost["method"], json.loads((finished("ppo") / "result.json").read_text())["cost"]
    assert (
        2 * 8 * 3 <= own["labels"] <= 2 * 8 * 6 and own["ai_labels"] == 0
    )  # two refreshes, 8 prompts, C(4, 2) pairs
    assert cost["labels"] == own["labels"] + usual["labels"] == cost["budget_used"]["labels"]
    assert usual["method"]["labels"] == 0  # the negative control
    assert own["samples"] == 6 * 8 * result["options"]["num_generations"] + 2 * 8 * 4


def test_reward_model_is_trained_on_them(whole):
    rows = rows_of(whole)
    assert ["reward_accuracy" in row for row in rows] == [False, False, True, False, True, False]
    stale = rows_of(run_of("--set", "steps=6"))
    assert [a["reward"] == b["reward"] for a, b in zip(rows, stale, strict=True)] == [
        True,
        True,
    ] + [False] * 4


@pytest.mark.slow
def test_killed_around_a_refresh_it_ends_in_the_same_bytes(whole):
    watched = Watched()
    done, seen = watched.run("ppo", "ppo 3", *FRESH)  # the first refresh is lost
    assert done.code == -signal.SIGKILL and seen["ppo"] == [1, 2, 3]
    done, seen = watched.run("ppo", "ppo 2", *FRESH)  # one is kept, and has to be gone on from
    assert done.code == -signal.SIGKILL and seen["ppo"] == [3, 4]
    done, seen = watched.run("ppo", "ppo 2", *FRESH)
    assert done.code == -signal.SIGKILL and seen["ppo"] == [4, 5]
    assert watched.rest("ppo", *FRESH).code == 0
    (folder,) = (watched.folder / "runs" / "small" / "ppo").iterdir()
    assert outputs(folder) == outputs(whole)
    killed, complete = (
        json.loads((f / "result.json").read_text())["cost"] for f in (folder, whole)
    )
    for name in ("labels", "samples", "steps", "reward_queries", "flops"):
        assert killed["method"][name] == complete["method"][name], name


def cost_of(folder):
    return json.loads((folder / "result.json").read_text())["cost"]


@pytest.fixture(scope="module")
def asked():
    """How many labels the preferences of the suite `small` take."""
    return cost_of(finished("ppo"))["labels"]


def test_budget_of_labels_ends_the_run_once_preferences_and_refreshes_took_it(whole, asked):
    folder = run_of(*FRESH, "--budget", f"labels={asked + 20}")
    assert len(rows_of(folder)) == 3
    cost = cost_of(folder)
    assert (
        cost["budget_used"]["labels"]
        == cost["labels"]
        == asked + 20 - cost["budget_left"]["labels"]
        >= asked + 20
    )


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_budget_of_labels_cuts_the_preferences_and_lets_training_end(method, asked):
    limit = asked // 2
    usual, folder = finished(method), run_of("--budget", f"labels={limit}", method=method)
    cost = cost_of(folder)
    assert (
        limit - 6 < cost["labels"] == cost["budget_used"]["labels"] <= limit
    )  # C(4, 2) of a prompt that had no room
    assert cost["method"]["labels"] == 0 and cost["budget_left"]["labels"] == limit - cost["labels"]
    if method == "ppo":  # turns are its own; DPO's are passes over fewer pairs
        assert len(rows_of(folder)) == len(rows_of(usual))
    assert cost_of(usual)["labels"] == asked  # the negative control


def test_what_asks_for_labels_is_refused_where_preferences_take_all_and_told_what_to_leave(asked):
    before = set((results() / "runs" / "small" / "ppo").glob("*"))
    limit = f"labels={asked // 2}"
    done = command(*on_small("ppo", *FRESH, "--budget", limit, results=results()))
    assert done.code == 2 and "Traceback" not in done.text
    leave = f"preferences.labels={asked // 4}"
    assert (
        f"--budget {limit}: the preferences took" in done.err and f"--stage-set {leave}" in done.err
    )
    assert set((results() / "runs" / "small" / "ppo").glob("*")) == before
    cost = cost_of(run_of(*FRESH, "--budget", limit, "--stage-set", leave))
    assert 0 < cost["method"]["labels"] and cost["labels"] - cost["method"]["labels"] <= asked // 4


@pytest.mark.slow
def test_preferences_are_cut_by_the_labeller_s_own_count(telling):
    prompts = []
    for dear in (
        0.0,
        30.0,
    ):  # it answers 2 pairs of a prompt, and says from the start that 30 more were asked about
        folder, said = (
            with_shared_stages("own_count"),
            ("--labeller", "telling", "--labeller-set", f"dear={dear}"),
        )
        args = on_small("dpo", "-p", telling, *said, "--budget", "labels=60", results=folder)
        assert command(*args, env={"PIDS": str(folder / "pids")}).code == 0
        result = json.loads((only_run(folder, "small", "dpo") / "result.json").read_text())
        assert 54 < result["cost"]["ai_labels"] <= 60  # C(4, 2) of one more prompt had no room
        prompts.append(result["artifacts"]["preferences"]["prompts"])
    assert prompts[1] < 0.6 * prompts[0]


def test_fixed_pairs_are_cut_to_a_budget_of_labels():
    costs = []
    for budget in ([], ["--budget", "labels=20"]):
        folder = with_shared_stages("cut")
        done = command("run", "-m", "dpo", "-s", "exact", "--quick", *budget, "--results", folder)
        assert done.code == 0, done.text
        (run,) = (folder / "runs" / "exact" / "dpo").iterdir()
        costs.append(cost_of(run)["labels"])
    assert costs[0] > 20 >= costs[1] > 0


def test_too_few_labels_for_two_prompts_are_refused():
    done = command(*on_small("dpo", "--budget", "labels=11", results=results()))
    assert (
        done.code == 2
        and "labels=11 is too few for two prompts" in done.err
        and "at least 12" in done.err
    )


@pytest.mark.parametrize("fail", ["", "raise"])
def test_no_process_is_left_when_a_run_ends(telling, fail):
    pids = fresh("pids") / "pids"
    args = on_small(
        "ppo",
        "-p",
        telling,
        "--labeller",
        "telling",
        "--seed",
        len(fail),
        *FRESH,
        results=results(),
    )
    done = command(*args, env={"PIDS": str(pids), "FAIL": fail})
    found = [int(p) for p in pids.read_text().split()]
    assert len(set(found)) >= (1 if fail else 2) and gone(
        found[-1:], 1
    )  # the desk's is the last to be told
    assert done.code == (1 if fail else 0), done.text
    if fail:
        assert "Traceback" not in done.text
        assert "The labeller failed: RuntimeError: no opinion" in done.err


HOSTILE = '''
"""Has its reward refreshed and samples revised, and looks for whoever did that."""

import json
import os
import sys
from dataclasses import dataclass

from harness import OnPolicyOptions, hookimpl
from harness.training.label_server import LabelClient
from harness.check.reachability import neighbours, reachable


def desks(*roots):
    seen, queue = {}, list(roots)
    while queue:
        thing = queue.pop()
        if id(thing) not in seen:
            seen[id(thing)] = thing
            queue.extend(neighbours(thing))
    return sum(isinstance(thing, LabelClient) for thing in seen.values())


@dataclass
class Refreshing(OnPolicyOptions):
    name = "refreshing"

    def labeller(self):
        return "constitution"

    def train(self, lab):
        for prompts, batch in self.rollouts(lab):
            lab.revise(batch)
        roots = (lab, sys._getframe())
        found, looked_at = reachable(*roots, test_ids=["test/" + str(i) for i in range(200)])
        json.dump([found, looked_at, desks(*roots)], open(os.environ["FOUND"], "w"))
        return lab.policy


@hookimpl
def register_methods(register):
    register(Refreshing)
'''


def test_no_labeller_judge_or_suite_can_be_reached_from_the_method():
    hostile = plugin(fresh("plugins"), "refreshing", HOSTILE)
    file = fresh("found") / "found.json"
    more = ("-p", hostile, "--set", "reward_refresh=1", "--set", "steps=2", "--set", "batch_size=4")
    done = command(*on_small("refreshing", *more, results=results()), env={"FOUND": str(file)})
    assert done.code == 0, done.text
    found, looked_at, met = json.loads(file.read_text())
    assert found == [] and looked_at > 1000
    assert met == 1  # the walk did come by the desk
    (folder,) = (results() / "runs" / "small" / "refreshing").iterdir()
    cost = json.loads((folder / "result.json").read_text())["cost"]
    assert (
        cost["labels"] == 0 and cost["method"]["ai_labels"] > 2 * 4 * 8
    )  # revisions and fresh labels


# -- what else is against reward hacking -----------------------------------------------------------


def test_length_penalty_is_taken_off_every_reward():
    usual, penalised = rows_of(finished("ppo")), rows_of(run_of("--set", "length_penalty=0.1"))
    assert (
        penalised[0]["length"] == usual[0]["length"]
    )  # the first rollout is the start checkpoint's
    assert penalised[0]["reward"] == pytest.approx(
        usual[0]["reward"] - 0.1 * usual[0]["length"], abs=1e-5
    )
    assert [r["loss"] for r in penalised] != [r["loss"] for r in usual]


def test_ensembles_combine_their_members():
    usual = rows_of(finished("ppo"))[0]["reward"]
    members = ("--set", "reward_members=2")
    worst, unsure = (
        rows_of(run_of(*members, "--set", f"reward_combine={how}"))
        for how in ("worst", "uncertainty")
    )
    assert worst[0]["reward"] < unsure[0]["reward"] and usual not in (
        worst[0]["reward"],
        unsure[0]["reward"],
    )
    assert [row["loss"] for row in worst] != [row["loss"] for row in unsure]


def test_beta_is_steered_towards_the_target():
    usual = rows_of(finished("ppo"))
    rows = rows_of(
        run_of("--set", "adaptive_beta=true", "--set", "kl_target=0.05", "--set", "kl_gain=0.5")
    )
    assert {row["beta"] for row in usual} == {usual[0]["beta"]} == {rows[0]["beta"]}
    for now, then in zip(rows[1:], rows[:-1], strict=True):
        error = min(0.2, max(-0.2, then["kl"] / 0.05 - 1))
        assert now["beta"] == pytest.approx(then["beta"] * (1 + 0.5 * error))
    assert len({row["beta"] for row in rows}) > 1

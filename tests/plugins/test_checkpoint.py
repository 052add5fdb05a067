"""Models trained elsewhere as rows: a folder, an adapter, another tokenizer, an endpoint."""

import csv
import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness_plugins.checkpoint import Checkpoint, Served, messages

from harness import Prompt, UsageError
from harness.core.data import Sampling
from harness.core.distributed import ALONE
from harness.core.meter import Meter
from harness.core.options import build
from harness.core.run_folder import read_result, read_rows
from harness.models.hub_format import load_tokenizer
from harness.models.loading import load_causal
from harness.models.lora import Lora, beside
from harness.models.lora_weights import save_adapter
from harness.models.tokens import Tokens
from harness.training.guests import GuestTokens, written

from ..helpers.fake_endpoint import reply
from ..helpers.small_folders import save_model
from ..helpers.tiny_models import tiny_folder
from ..helpers.tools import command, finished, on_small, with_shared_stages

BASE = "suites/harness_suites/base"
SAMPLE = ("answer", "gold", "kl", "win", "length", "ended")


@pytest.fixture(scope="module")
def where():
    """Results with one run, of dpo, and its shared stages."""
    made, run = with_shared_stages("guests"), finished("dpo")
    shutil.copytree(run, made / "runs" / "small" / "dpo" / run.name)
    return made


def evaluated(where, *settings):
    """The record and the samples of a guest on the suite `small`."""
    before = set((where / "runs" / "small" / "checkpoint").glob("*"))
    done = command(*on_small("checkpoint", *settings, results=where))
    assert done.code == 0, done.text
    (folder,) = set((where / "runs" / "small" / "checkpoint").glob("*")) - before
    return read_result(folder), read_rows(folder / "samples.jsonl"), done


@pytest.fixture(scope="module")
def own(where):
    """The policy that a method of this harness trained, as a guest."""
    return evaluated(where, "--set", f"path={finished('dpo') / 'policy'}")


@pytest.fixture(scope="module")
def foreign(where, tmp_path_factory):
    """A random model of another architecture and another tokenizer."""
    folder = save_model(tmp_path_factory.mktemp("foreign"))
    return evaluated(where, "--set", f"path={folder}")


# -- folders ---------------------------------------------------------------------------------------


def test_checkpoint_answers_as_the_run_that_trained_it(own):
    """The same answers, KL and verdicts to the bit; only the training is unknown."""
    record, samples, done = own
    trained = read_rows(finished("dpo") / "samples.jsonl")
    assert [[s[k] for k in SAMPLE] for s in samples] == [[s[k] for k in SAMPLE] for s in trained]
    theirs = read_result(finished("dpo"))["evaluation"]
    for name in ("win_rate", "kl", "gold", "length"):
        assert record["evaluation"][name] == theirs[name]
    assert record["guest"]["name"].endswith("policy") and len(record["guest"]["digest"]) == 64
    assert record["policy"]["saved"] == "none" and "trained elsewhere" in done.out


def test_another_tokenizer_has_no_kl_and_says_why(foreign):
    record, samples, done = foreign
    assert "kl" not in record["evaluation"] and "vocabulary" in record["evaluation"]["kl_missing"]
    assert all(s["kl"] is None for s in samples) and "missing: its tokenizer" in done.out
    # its own words reach the judge, which the start checkpoint's tokenizer would have to spell
    assert {w for s in samples for w in s["answer"].split()} & {"Answer:", "Response", "Task:"}
    assert record["evaluation"]["win_rate"]["mean"] < 0.5
    assert record["cost"]["models"]["policy"]["parameters"] > 0


def test_table_leaves_the_cost_of_a_guest_blank(where, own, foreign):
    done = command("table", "--suite", "small", "--results", where, "--format", "csv")
    assert done.code == 0, done.text
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(done.out))}
    guests = [row for name, row in rows.items() if name.startswith("checkpoint ")]
    assert len(guests) == 2 and all(row["method_flops"] == row["labels"] == "" for row in guests)
    assert float(next(row for name, row in rows.items() if "dpo" in name)["method_flops"]) > 0
    shown = command("table", "--suite", "small", "--results", where)
    assert "Trained elsewhere" in shown.out and "KL cannot be measured: its token" in shown.out
    plot = ("plot", "--kind", "cost", "-o", where / "cost.png")
    assert command(*plot, "--suite", "small", "--results", where).code == 0
    match = command("table", "--match", "flops", "--suite", "small", "--results", where)
    assert match.code == 2 and "Nothing to match" in match.err  # one setting of each method


def test_adapter_and_its_base_are_read_and_recorded(tmp_path):
    model = load_causal(BASE)
    policy = beside(model, Lora(2, 4.0, 1))
    for key, p in policy.named_parameters():
        if "lora_B" in key:
            p.data.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    save_adapter(policy, BASE, tmp_path / "adapter")
    method = build(Checkpoint, {"path": str(tmp_path / "adapter")}, "method")
    names = {file.name for file in method.data_files()}
    assert {"adapter_model.safetensors", "model.safetensors"} <= names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a model"),
        ({"path": "a/b", "url": "http://x/v1", "model": "m"}, "needs a model"),
        ({"path": "./nowhere"}, "no such folder"),
        ({"path": "tests"}, "neither config.json"),
        ({"url": "http://x/v1"}, "url=https://HOST/v1"),
    ],
)
def test_checkpoint_refuses_what_is_no_model(options, message):
    with pytest.raises(UsageError, match=message):
        build(Checkpoint, options, "method")


def test_changed_weights_are_another_run(tmp_path):
    folder = tiny_folder("llama", tmp_path / "m")
    method = build(Checkpoint, {"path": str(folder)}, "method")
    assert {f.name for f in method.data_files()} >= {"model.safetensors", "config.json"}


# -- tokens ----------------------------------------------------------------------------------------


def test_tokens_agree_only_with_the_same_vocabulary_template_and_ends(tmp_path):
    start = Tokens(load_tokenizer(BASE))
    assert GuestTokens(Tokens(load_tokenizer(BASE)), start).unlike() == ""
    more = Tokens(load_tokenizer(BASE), other_ends=[5])
    assert "end its answers" in GuestTokens(more, start).unlike()
    posed = load_tokenizer(BASE)
    posed.chat_template = "{% for m in messages %}Q {{ m.content }} A {% endfor %}"
    assert "poses prompts as other tokens" in GuestTokens(Tokens(posed), start).unlike()
    other = Tokens(load_tokenizer(save_model(tmp_path)))
    assert "another vocabulary" in GuestTokens(other, start).unlike()


def test_guest_with_too_few_positions_is_refused(tmp_path):
    folder = save_model(tmp_path)  # 256 positions
    start = Tokens(load_tokenizer(BASE))
    assert GuestTokens.read(folder, start, 200).own.max_prompt == 56
    with pytest.raises(UsageError, match="no room for a prompt"):
        GuestTokens.read(folder, start, 256)


def test_written_answers_keep_their_text_and_whether_they_ended(tokens):
    prompts = tokens.prompt_batch([Prompt("a", "w1 w2"), Prompt("b", "w3")])
    batch = written(tokens, prompts, ["w1 strange w2", "w4 w5"], [True, False])
    assert tokens.texts(batch) == [["w1 strange w2"], ["w4 w5"]]
    assert batch.lengths[:, 0].tolist() == [4, 2] and batch["ended"][:, 0].tolist() == [True, False]
    assert batch["completion_ids"][0, 0, 3] == tokens.eos
    assert tokens.texts(batch.select([1])) == [["w4 w5"]]


# -- an endpoint -----------------------------------------------------------------------------------


@pytest.fixture
def served(fake, tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_API_KEY", "sk-secret-0123456789")

    def policy(**options):
        settings = {"url": fake.url, "model": "gpt", "workers": 1, "cache": str(tmp_path / "c")}
        lab = SimpleNamespace(tokens=tokens)
        method = build(Checkpoint, settings | options, "method")
        return method.train(lab)

    return policy


def sampler_of(meter, **sampling):
    return SimpleNamespace(
        sampling=Sampling(**{"temperature": 0.7, "max_new_tokens": 9} | sampling),
        noise_key=("evaluation", 0, "policy", 1),
        distributed=ALONE,
        meter=meter,
        phase="evaluate",
    )


def test_served_model_answers_with_the_evaluation_s_sampling(fake, served, tokens, meter):
    fake.script = [(500, b"oops"), reply("w1 word"), reply("w2", finish_reason="length")]
    prompts = tokens.prompt_batch([Prompt("a", "w1 w2"), Prompt("b", "w3")])
    policy = served()
    policy.client.backoff = 0.01
    batch = policy.answer(prompts, sampler_of(meter, top_p=0.9))
    assert tokens.texts(batch) == [["w1 word"], ["w2"]]
    assert batch["ended"][:, 0].tolist() == [True, False] and batch.temperature == 0.7
    body, _, other = fake.asked
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, 9)
    assert body["messages"] == [{"role": "user", "content": "w1 w2"}]
    assert body["seed"] != other["seed"] and 0 <= body["seed"] < 2**31
    assert isinstance(policy, Served) and policy.model is None and "endpoint" in policy.no_kl
    served().answer(prompts, sampler_of(Meter(peak=lambda reset: 0), top_p=0.9))
    assert len(fake.asked) == 3  # the replies are cached
    served().answer(prompts, sampler_of(meter, greedy=True))
    assert fake.asked[-1]["temperature"] == 0 and "seed" not in fake.asked[-1]


def test_served_model_is_a_row_with_its_own_provenance(fake, tmp_path):
    fake.script = [reply("the answer of a served model")]
    settings = [f"url={fake.url}", "model=gpt", f"cache={tmp_path / 'c'}"]
    more = [part for setting in settings for part in ("--set", setting)]
    done = command(
        *on_small("checkpoint", *more, results=with_shared_stages("served")),
        env={"HARNESS_API_KEY": "sk-secret-0123456789"},
    )
    assert done.code == 0, done.text
    record = read_result(Path(done.err.split(" -> ")[1].split("\n")[0]))
    assert record["guest"] == {"name": "gpt", "url": fake.url}
    assert "endpoint" in record["evaluation"]["kl_missing"]


def test_prompts_are_messages_for_an_endpoint():
    assert messages("2 + 2?") == [{"role": "user", "content": "2 + 2?"}]
    talk = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    assert [m["role"] for m in messages(talk)] == ["user", "assistant", "user"]
    assert messages([{"role": "user", "content": "x"}]) == [{"role": "user", "content": "x"}]

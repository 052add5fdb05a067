"""The proof that demonstrations survive the tokenizer, on suites of a file with a model."""

import json

from tokenizers.normalizers import Lowercase

from harness.api.registry import installed
from harness.check import FAILED, PASSED, Options
from harness.check.suites import suite_proofs

from ..helpers.chat_families import FAMILIES
from ..helpers.tools import command

PROOF = "demonstrations survive the tokenizer"


def suite_of(folder, chosen):
    rows = (
        {"prompt": f"w{i % 50} w{i // 50}", "chosen": chosen, "rejected": "w3"} for i in range(99)
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.toml").write_text('data = "rows.jsonl"\n')
    return str(folder / "mine.toml")


def finding(folder, tokenizer, chosen):
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "model")
    options = Options(model=str(folder / "model") if tokenizer is not None else None)
    proofs = suite_proofs(suite_of(folder, chosen), installed(), options)
    return next(f for f in proofs if f.proof == PROOF)


def test_words_of_the_vocabulary_survive(tmp_path, make_tokenizer):
    found = finding(tmp_path, make_tokenizer(), " w1 w2")
    assert found.status == PASSED and "posed as plain text" in found.detail


def test_words_that_the_tokenizer_does_not_know_are_named(tmp_path, make_tokenizer):
    found = finding(tmp_path, make_tokenizer(), " w1 zebra")
    assert found.status == FAILED and "does not know a word of" in found.detail
    assert "zebra" in found.detail


def test_words_that_are_read_back_otherwise_are_named(tmp_path):
    tokenizer = FAMILIES["chatml"].tokenizer()
    assert finding(tmp_path, tokenizer, " w1 North").status == PASSED
    lower = type(tokenizer).from_pretrained(tmp_path / "model")
    lower.backend_tokenizer.normalizer = Lowercase()
    found = finding(tmp_path, lower, " w1 North")
    assert found.status == FAILED and "' w1 North' is read back as 'w1 north'" in found.detail


def test_chat_model_is_posed_by_its_template(tmp_path):
    for family in ("qwen3", "llama3"):
        found = finding(tmp_path, FAMILIES[family].tokenizer(), " w1 North")
        assert found.status == PASSED and "posed by the chat template" in found.detail


def test_suite_file_without_a_model_has_nothing_to_read_with(tmp_path):
    assert "name one with --model" in finding(tmp_path, None, " w1").detail


def test_suite_file_is_checked_by_the_command(tmp_path, make_tokenizer, build_model):
    make_tokenizer().save_pretrained(tmp_path / "model")
    build_model().save_pretrained(tmp_path / "model")
    done = command("check", suite_of(tmp_path, " w1 w2"), "--model", tmp_path / "model")
    assert done.code == 0 and PROOF in done.out and "FAILED" not in done.out, done.text

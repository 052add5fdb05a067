"""How many texts of a suite are cut: counted with the tokenizer's own lengths, before training."""

import copy
import json

import pytest
from harness_suites.preference_file import PreferenceFile
from harness_suites.question_file import QuestionFile
from harness_suites.summarization import Summarization

from harness.core.data_report import Cut, Measured
from harness.core.errors import UsageError
from harness.core.options import build
from harness.models.loading import load_tokenizer
from harness.models.tokens import Tokens
from harness.training.stages import data_check
from harness.training.stages.data_check import check_positions, check_vocabulary, measure

WORDS = "mayor council nurse pilot farmer teacher driver senator coach artist".split()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Summarization().base_model())


def suite_of(tmp_path, rows, cls=PreferenceFile, **options):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = build(cls, {"data": "data.jsonl", "folder": str(tmp_path)} | options, "suite")
    made.shared_seed = 0
    return made


def pairs(n=120):
    """Pairs with prompts of one to ten words, and answers of one word and of as many words."""
    for i in range(n):
        words = " ".join(WORDS[: 1 + i % 10])
        yield {"prompt": f"{words} {i}", "chosen": " bank", "rejected": f" {words} bank"}


def lengths(tokenizer, texts, special):
    return [len(tokenizer(text, add_special_tokens=special)["input_ids"]) for text in texts]


def test_cut_texts_are_counted_by_their_own_length(tmp_path, tokenizer):
    rows = list(pairs())
    found = measure(suite_of(tmp_path, rows), Tokens(tokenizer, 8, 6))
    prompts = lengths(tokenizer, [r["prompt"] for r in rows], True)
    prompts = [n - (tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id) for n in prompts]
    assert (found.prompts.texts, found.prompts.cut) == (120, sum(n > 8 for n in prompts))
    assert 0 < found.prompts.cut < 120 and found.prompts.limit == 8
    enough = found.prompts.enough
    assert sum(n > enough for n in prompts) <= 6 < sum(n > enough - 1 for n in prompts)
    assert found.all_rows and not found.template


def test_completions_count_their_end_token(tmp_path, tokenizer):
    rows = list(pairs())
    made = suite_of(tmp_path, rows)
    seen = {p.prompt.id: p for p in [*made.preferences(), *made.judge_preferences()]}.values()
    texts = [text for pair in seen for text in (pair.chosen, pair.rejected)]
    expected = sum(n + 1 > 6 for n in lengths(tokenizer, texts, False))
    found = measure(made, Tokens(tokenizer, 8, 6))
    assert (found.completions.texts, found.completions.cut) == (2 * len(seen), expected)
    assert found.pairs == len(seen)


def test_pairs_that_become_equal_by_the_cut_are_counted(tmp_path, tokenizer):
    words = [word for word in WORDS if word != "coach"]
    rows = [
        {"prompt": f"bank {i}", "chosen": " ship tower coach", "rejected": f" ship tower {word}"}
        for i, word in enumerate(words * 12)
    ]
    made = suite_of(tmp_path, rows)
    assert measure(made, Tokens(tokenizer, 8, 8)).equal_pairs == 0
    cut = measure(made, Tokens(tokenizer, 8, 2))
    assert cut.equal_pairs == cut.pairs > 50


def test_questions_are_measured_too(tmp_path, tokenizer):
    rows = [{"question": f"one {i}", "answer": f"two {i} #### {i}"} for i in range(120)]
    found = measure(suite_of(tmp_path, rows, QuestionFile), Tokens(tokenizer, 1, 100))
    assert found.prompts.share == 1.0 and found.completions.cut == 0 and found.pairs == 0
    assert found.completions.texts > 20


def test_large_data_are_measured_in_part(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(data_check, "MEASURED", 50)
    found = measure(suite_of(tmp_path, list(pairs())), Tokens(tokenizer, 8, 6))
    assert not found.all_rows and found.prompts.texts == 40 and found.pairs <= 50


def test_share_of_unknown_tokens(tmp_path, tokenizer):
    known = [
        {"prompt": "mayor " * (1 + i), "chosen": " bank", "rejected": " ship"} for i in range(60)
    ]
    odd = [row | {"chosen": " zyx", "rejected": " zyx bank"} for row in known]
    assert measure(suite_of(tmp_path, known), Tokens(tokenizer)).unknown == 0.0
    assert 0 < measure(suite_of(tmp_path, odd), Tokens(tokenizer)).unknown < 0.5


@pytest.mark.parametrize(("limit", "answer", "fits"), [(200, 56, True), (201, 56, False)])
def test_limits_beyond_the_positions_are_refused_where_prompts_reach_them(limit, answer, fits):
    model = Summarization().base_model()  # 256 positions
    prompts = Cut("max_prompt_tokens", limit, 9, 0, 9, 300)
    found = Measured(True, False, prompts, Cut("max_completion_tokens", answer, 9, 0, 9, 9))
    if fits:
        return check_positions(found, model)
    with pytest.raises(UsageError, match="257 positions.*has 256.*max_prompt_tokens=200 fits"):
        check_positions(found, model)


def test_limits_beyond_the_positions_are_no_fault_where_all_prompts_are_short():
    model = Summarization().base_model()
    prompts, answers = (
        Cut("max_prompt_tokens", 512, 9, 0, 9, 30),
        Cut("max_completion_tokens", 128, 9, 0, 9, 9),
    )
    check_positions(Measured(True, False, prompts, answers), model)
    with pytest.raises(UsageError, match="has 256"):  # not all prompts were looked at
        check_positions(Measured(False, False, prompts, answers), model)


def test_measuring_changes_no_count_and_no_limit(tmp_path, tokenizer):
    tokens = Tokens(tokenizer, 8, 6)
    measure(suite_of(tmp_path, list(pairs())), tokens)
    assert (tokens.max_prompt, tokens.max_completion) == (8, 6)
    assert (tokens.cut_prompts, tokens.cut_completions) == (0, 0)


def test_cut_prompts_are_counted_once(tokenizer):
    tokens = Tokens(tokenizer, 8, 6)
    assert tokens.count_cut(["a", "the a one two three four five six seven eight nine"]) == 1
    assert tokens.cut_prompts == 0


def test_token_without_an_embedding_is_refused(tmp_path, tokenizer):
    """Added to the tokenizer alone, it would end training with an index out of range."""
    model, more = Summarization().base_model(), copy.deepcopy(tokenizer)
    more.add_tokens(["<|new|>"])
    tokens = Tokens(more, 20, 20)
    used = measure(
        suite_of(tmp_path, [r | {"prompt": f"<|new|> {i}"} for i, r in enumerate(pairs())]), tokens
    )
    assert used.largest == len(tokenizer)
    with pytest.raises(UsageError, match=r"has 296 embeddings.*token '<\|new\|>' with the id 296"):
        check_vocabulary(used.largest, tokens, model)
    unused = measure(suite_of(tmp_path, list(pairs())), tokens)
    check_vocabulary(unused.largest, tokens, model)  # only what is used is needed


def test_end_token_without_an_embedding_is_refused(tokenizer):
    more = copy.deepcopy(tokenizer)
    more.add_special_tokens({"eos_token": "<|end|>"})
    with pytest.raises(UsageError, match=r"token '<\|end\|>'"):
        check_vocabulary(0, Tokens(more), Summarization().base_model())

"""Padding, masks, end-of-sequence, truncation and templates; columns stay aligned through every
selection.
"""

import pytest
import torch

from harness.core.data import Prompt
from harness.core.errors import UsageError
from harness.models.batches import Batch
from harness.models.tokens import Tokens

CHAT = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
FORGETFUL = "{{ '<sys> ' + messages[-1]['content'] + ' </s>' }}"  # shows the last turn only


def text_ids(tokens, text):
    return tokens.tokenizer(text, add_special_tokens=False)["input_ids"]


def real_rows(batch):
    """Return [(prompt ids, [completion ids, ...])] without padding, by the masks alone."""
    rows = []
    for i in range(batch.shape[0]):
        prompt = batch.prompts.ids[i][batch.prompts.mask[i] > 0].tolist()
        rows.append(
            (
                prompt,
                [
                    batch["completion_ids"][i, j][batch["mask"][i, j] > 0].tolist()
                    for j in range(batch.shape[1])
                ],
            )
        )
    return rows


def check_masks(batch, eos):
    """Every completion keeps its one EOS inside the mask, and the mask is a prefix."""
    assert (batch["mask"].diff(dim=-1) <= 0).all()
    for _, completions in real_rows(batch):
        for ids in completions:
            assert ids.count(eos) == 1 and ids[-1] == eos


def chat_tokens(make_tokenizer, template=CHAT, **limits):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Tokens(tokenizer, **limits)


def test_prompts_are_padded_left_and_completions_right(tokens, make_batch, words):
    batch = make_batch(tokens)
    assert batch.prompts.mask.sum(1).tolist() == [4, 2, 6, 3]  # the start token and the words
    assert (batch.prompts.mask.diff(dim=1) >= 0).all() and (batch["mask"].diff(dim=-1) <= 0).all()
    assert batch.prompts.mask[:, -1].all() and batch["mask"][..., 0].all()
    assert (batch.prompts.ids[batch.prompts.mask == 0] == words.PAD).all()
    assert batch.lengths.tolist() == [[2, 4], [1, 3], [6, 2], [3, 5]]
    assert batch.shape == (4, 2, 6)


@pytest.mark.parametrize("kind", ["tokens", "eos_padded"])
def test_mask_comes_from_lengths(kind, request, make_batch):
    tokens = request.getfixturevalue(kind)
    batch = make_batch(tokens, open_ended=())
    assert (tokens.pad == tokens.eos) == (kind == "eos_padded")
    check_masks(batch, tokens.eos)
    broken = batch.with_columns(mask=(batch["completion_ids"] != tokens.pad).float())
    if kind == "eos_padded":
        with pytest.raises(AssertionError):  # the EOS is gone from the mask
            check_masks(broken, tokens.eos)


@pytest.mark.parametrize("text", ["w1 w2", "w1 w2 </s>", "w1 w2 </s> w3 </s>", "w1 w2 </s> </s>"])
def test_exactly_one_eos(tokens, text):
    assert tokens.completion_ids("w0", text) == [*text_ids(tokens, "w1 w2"), tokens.eos]
    assert tokens.completion_ids("w0", "") == [tokens.eos]


def test_completion_ends_at_the_first_end_of_any_kind(tiny_tokenizer):
    other = tiny_tokenizer.convert_tokens_to_ids("<end>")
    tokens = Tokens(tiny_tokenizer, other_ends=[other])
    assert tokens.completion_ids("w0", "w1 <end> w2") == [*text_ids(tokens, "w1"), other]
    assert tokens.completion_ids("w0", "w1 w2")[-1] == tokens.eos and tokens.ends == {
        tokens.eos,
        other,
    }
    alone = Tokens(tiny_tokenizer)  # negative control
    assert alone.completion_ids("w0", "w1 <end> w2")[-1] == alone.eos


def test_what_is_cut_is_counted_by_each_counter_alone(tiny_tokenizer):
    tokens = Tokens(tiny_tokenizer, max_completion=2)
    tokens.completion_ids("w0", "w1 w2 w3")
    other = tokens.counting_afresh()
    other.completion_ids("w0", "w1 w2 w3 w4")
    assert (tokens.cut_completions, other.cut_completions, other.max_completion) == (1, 1, 2)


def test_cut_prompt_keeps_its_start_token_and_its_end(tiny_tokenizer):
    tokens = Tokens(tiny_tokenizer, max_prompt=3)
    assert (
        tokens.prompt_ids("w1 w2 w3 w4 w5") == text_ids(tokens, "<s> w4 w5")
        and tokens.cut_prompts == 1
    )
    assert len(tokens.prompt_ids("w1 w2")) == 3 and tokens.cut_prompts == 1


def test_cut_completion_has_no_eos_and_is_counted(tiny_tokenizer):
    tokens = Tokens(tiny_tokenizer, max_completion=3)
    assert (
        tokens.completion_ids("w0", "w1 w2 w3 w4") == text_ids(tokens, "w1 w2 w3")
        and tokens.cut_completions == 1
    )
    assert (
        tokens.completion_ids("w0", "w1 w2 w3") == text_ids(tokens, "w1 w2 w3")
        and tokens.cut_completions == 2
    )
    assert tokens.completion_ids("w0", "w1 w2")[-1] == tokens.eos and tokens.cut_completions == 2


def test_start_token_is_the_tokenizers_own(tokens, make_tokenizer, words):
    assert tokens.prompt_ids("w1") == [words.BOS, *text_ids(tokens, "w1")]
    assert words.BOS not in tokens.completion_ids("w1", "w2")
    bare = Tokens(make_tokenizer(template=""))
    assert bare.prompt_ids("w1") == text_ids(tokens, "w1")
    assert bare.prompt_ids("") == [words.BOS]
    nameless = Tokens(make_tokenizer(template="", bos_token=None))
    assert nameless.prompt_ids("") == [words.EOS]


def test_eos_that_the_tokenizer_adds_is_taken_off_a_prompt(make_tokenizer, words):
    tokens = Tokens(make_tokenizer(template="<s> $A </s>"))
    assert tokens.prompt_ids("w1") == [words.BOS, *text_ids(tokens, "w1")]
    assert tokens.completion_ids("w0", "w1") == [*text_ids(tokens, "w1"), words.EOS]


def marking_tokenizer(legacy):
    """Return a tokenizer of characters with a space marker before every text, as Llama 2's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *"\u2581\nQA:45north"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    if legacy:
        marks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        raw.normalizer = normalizers.Sequence(marks)
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    ("prompt", "completion"), [("Q: 4\nA:", " 5"), ("Q:\n", "5"), ("Q:", "  5"), ("A:", "\n5")]
)
def test_completion_has_no_space_that_is_not_in_its_text(legacy, prompt, completion):
    tokenizer = marking_tokenizer(legacy)
    tokens = Tokens(tokenizer)
    ids = tokens.prompt_ids(prompt) + tokens.completion_ids(prompt, completion)
    assert ids == [*tokenizer(prompt + completion)["input_ids"], tokens.eos]


def test_text_that_was_rendered_with_two_start_tokens_keeps_one(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    tokens = Tokens(tokenizer)
    text = f"{tokenizer.bos_token}<user> a </s> <assistant>"
    assert tokens.prompt_ids(tokenizer.bos_token + text) == tokens.prompt_ids(text)
    assert tokens.prompt_ids(text).count(tokenizer.bos_token_id) == 1


def test_tokenizer_without_an_end_is_refused(make_tokenizer):
    with pytest.raises(UsageError, match="end-of-sequence"):
        Tokens(make_tokenizer(eos_token=None))


@pytest.mark.parametrize("turns", [1, 3])
def test_conversation_is_its_template(make_tokenizer, turns):
    tokens = chat_tokens(make_tokenizer)
    roles = ["user", "assistant"]
    prompt = [{"role": roles[i % 2], "content": f"w{i} w{i + 1}"} for i in range(turns)]
    answer = [{"role": "assistant", "content": "w7 w8 w9"}]
    whole = tokens.tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)
    joined = tokens.prompt_ids(prompt) + tokens.completion_ids(prompt, answer)
    assert joined == text_ids(tokens, whole)
    assert joined.count(tokens.eos) == turns + 1 and joined[-1] == tokens.eos
    with pytest.raises(AssertionError):  # the template knows nothing of a second start token
        assert tokens.tokenizer(whole)["input_ids"] == joined


def test_messages_after_a_plain_prompt_are_an_answer_to_a_user(make_tokenizer):
    tokens = chat_tokens(make_tokenizer)
    ids = tokens.completion_ids("w1", [{"role": "assistant", "content": "w2"}])
    assert ids == [*text_ids(tokens, "w2"), tokens.eos]


def test_template_that_forgets_a_turn_is_refused(make_tokenizer):
    tokens = chat_tokens(make_tokenizer, FORGETFUL)
    prompt = [{"role": "user", "content": "w1"}]
    with pytest.raises(UsageError, match="leaves out the message of the user 'w1'"):
        tokens.completion_ids(prompt, [{"role": "assistant", "content": "w2"}])


def test_conversation_without_a_template_is_refused(tokens):
    with pytest.raises(UsageError, match="chat template"):
        tokens.prompt_ids([{"role": "user", "content": "w1"}])


def test_texts_are_what_was_tokenised(tokens):
    prompts = [Prompt("a", "w0"), Prompt("b", "w1 w2")]
    told = [["w3", "w4 w5 w6"], ["", "w7"]]
    ids = [
        [tokens.completion_ids(p.text, text) for text in row]
        for p, row in zip(prompts, told, strict=True)
    ]
    assert tokens.texts(tokens.batch(prompts, ids)) == told


# -- selections ------------------------------------------------------------------------------------


def marked(batch):
    """Return the batch with columns of every shape that say which row, completion and token they
    belong to.
    """
    b, k, t = batch.shape
    row = torch.arange(b)
    each = row[:, None] * 100 + torch.arange(k)
    return batch.with_columns(
        row=row, each=each, token=(each[..., None] * 100 + torch.arange(t)) * batch["mask"].long()
    )


def check_marks(batch, source):
    """Every column of the batch still belongs to the tokens beside it."""
    b, k, _ = batch.shape
    told = real_rows(source)
    for i in range(b):
        row = int(batch["row"][i])
        for j in range(k):
            origin, place = divmod(int(batch["each"][i, j]), 100)
            n = int(batch.lengths[i, j])
            assert origin == row and batch["token"].shape == batch["mask"].shape
            assert (
                real_rows(batch)[i][0] == told[row][0]
                and real_rows(batch)[i][1][j] == told[row][1][place]
            )
            assert batch["token"][i, j, :n].tolist() == [
                (row * 100 + place) * 100 + t for t in range(n)
            ]
        assert batch.prompts.prompts[i].id == f"p{row}"


def test_select_keeps_columns_aligned_and_drops_padding(tokens, make_batch):
    source = marked(make_batch(tokens))
    part = source.select([3, 1])
    check_marks(part, source)
    assert (
        part["row"].tolist() == [3, 1]
        and part.shape == (2, 2, 5)
        and part.prompts.ids.shape[1] == 3
    )
    assert source.shape == (4, 2, 6)
    crooked = part.with_columns(row=part["row"].flip(0))
    with pytest.raises(AssertionError):
        check_marks(crooked, source)


def test_pick_takes_one_completion_of_each(tokens, make_batch):
    source = marked(make_batch(tokens))
    picked = source.pick(torch.tensor([1, 0, 1, 0]))
    check_marks(picked, source)
    assert picked["each"][:, 0].tolist() == [1, 100, 201, 300] and picked.shape == (4, 1, 6)


def test_flat_makes_every_completion_a_row(tokens, make_batch):
    source = marked(make_batch(tokens))
    flat = source.flat()
    check_marks(flat, source)
    assert flat.shape == (8, 1, 6) and flat["row"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    check_marks(flat.flat(), source)


def test_concatenate_is_the_inverse_of_select(tokens, make_batch):
    source = marked(make_batch(tokens))
    whole = Batch.concatenate([source.select([2, 0]), source.select([1]), source.select([3])])
    check_marks(whole, source)
    back = whole.select([1, 2, 0, 3])
    assert all(torch.equal(back[name], source[name]) for name in source)
    assert torch.equal(back.prompts.ids, source.prompts.ids) and torch.equal(
        back.prompts.mask, source.prompts.mask
    )


def test_selections_keep_the_temperature(tokens, make_batch):
    batch = make_batch(tokens)
    batch.temperature = 0.7
    parts = [
        batch.select([0, 1]),
        batch.flat(),
        batch.pick(torch.zeros(4, dtype=torch.long)),
        batch.with_columns(),
    ]
    assert {part.temperature for part in [*parts, Batch.concatenate(parts[:1])]} == {0.7}


def test_with_columns_leaves_the_original_and_refuses_other_sizes(tokens, make_batch):
    batch = make_batch(tokens)
    assert "extra" in batch.with_columns(extra=torch.zeros(4)) and "extra" not in batch
    with pytest.raises(ValueError, match="extra"):
        batch.with_columns(extra=torch.zeros(3))

"""Folders with a tiny random model and a tokenizer of given words."""

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [
    "<unk>",
    "</s>",
    "1",
    "2",
    "A",
    "B",
    "Answer:",
    "Response",
    "Task:",
    "good",
    "bad",
    "x",
    "long",
    "1:",
    "2:",
]


def save_model(folder, words=WORDS, template=None, seed=0, pieces=False):
    """A tiny random model and a tokenizer of whole words, or (`pieces`) of words that know their
    leading space.
    """
    if pieces:
        words = [*words, *(f"\u2581{w}" for w in words[2:])]
    core = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    spaced = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="never")
    core.pre_tokenizer = (
        pre_tokenizers.Sequence([spaced, pre_tokenizers.Punctuation()])
        if pieces
        else WhitespaceSplit()
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    torch.manual_seed(seed)
    config = tiny_config(words, max_position_embeddings=256, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_config(words, **more):
    """The configuration of a model of one layer and width 16, for a vocabulary."""
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        **more,
    )


def save_classifier(folder, tokenizer, seed=0, labels=1):
    """A tiny random sequence classifier in hub format, with the tokenizer of another folder."""
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    words = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(seed)
    config = tiny_config(
        words,
        max_position_embeddings=512,
        pad_token_id=words.pad_token_id,
        num_labels=labels,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)

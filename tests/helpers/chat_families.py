"""Tokenizers of twelve families of chat models: their templates' forms and their special tokens."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .tools import ROOT

TEMPLATES = ROOT / "tests" / "data" / "chat_templates"
# What Llama 3 splits text by before it makes tokens: line ends stay together.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
SAMPLE = """which way is north of the river and what is the answer to that question
user assistant system model tool think 0123456789 {"name": "f", "arguments": {}}
\n\nThe Blue.\n\n\n  so 7 * 6 = 42, is it not?\n"""


@dataclass(frozen=True)
class Family:
    """A family: which tokens it has, and what its template takes."""

    name: str
    end: str  # what ends an answer
    special: tuple[str, ...] = ()
    bos: str | None = None
    eos: str = ""  # the same as `end` unless given
    system: bool = True  # a system message is taken
    thinks: bool = False  # answers begin with a thought
    tools: bool = False  # calls of tools are rendered
    adds_bos: bool = True  # the tokenizer puts the start token before plain text

    @property
    def template(self) -> str:
        """The text of the template."""
        return (TEMPLATES / f"{self.name}.jinja").read_text()

    def tokenizer(self):
        """A byte-level tokenizer with the family's special tokens and template."""
        return _tokenizer(self)


_IM = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    family.name: family
    for family in (
        Family(
            "llama3",
            "<|eot_id|>",
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|begin_of_text|>",
            tools=True,
        ),
        Family("qwen2_5", "<|im_end|>", (*_IM, "<|endoftext|>"), tools=True),
        Family("qwen3", "<|im_end|>", (*_IM, "<|endoftext|>"), tools=True),
        Family(
            "gemma2",
            "<end_of_turn>",
            ("<start_of_turn>", "<end_of_turn>"),
            "<bos>",
            "<eos>",
            system=False,
        ),
        Family("gemma3", "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>"),
        Family("mistral", "</s>", ("[INST]", "[/INST]"), "<s>"),
        Family("phi3", "<|end|>", ("<|user|>", "<|assistant|>", "<|end|>"), "<s>", "<|endoftext|>"),
        Family("smollm2", "<|im_end|>", _IM, "<|im_start|>", adds_bos=False),
        Family("zephyr", "</s>", (), "<s>"),
        Family("chatml", "<|im_end|>", _IM, "<s>", "<|endoftext|>"),
        Family("r1", "<|end_of_sentence|>", ("<|User|>", "<|Assistant|>"), "<|bos|>", thinks=True),
        Family("no_system", "</s>", (), "<s>", system=False),
    )
}


@cache
def _tokenizer(family):
    eos = family.eos or family.end
    special = list(dict.fromkeys([t for t in (family.bos, eos, *family.special) if t]))
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [SAMPLE] * 9,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if family.bos and family.adds_bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, special.index(family.bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=family.bos,
        eos_token=eos,
        additional_special_tokens=[t for t in family.special if t != eos],
    )
    tokenizer.chat_template = family.template
    return tokenizer


def chat_model(folder: Path, positions: int = 128) -> Path:
    """Write a tiny random chat model in hub format."""
    tokenizer = FAMILIES["chatml"].tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

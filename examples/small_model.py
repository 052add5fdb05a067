"""Make a small untrained Llama and a byte-level BPE tokenizer from a text, in hub format: for
trying a real data set.

    python examples/small_model.py DATA.jsonl[.gz] FOLDER

Where the rows hold conversations (lists of messages), the tokenizer gets a chat template in the
form of ChatML. Its figures will be poor; the path it takes is the one a real model takes.
"""

import gzip
import json
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def rows_of(path):
    """Yield the rows of a JSON-lines file."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise SystemExit(f"{path}: line {number} is not JSON ({error}).") from error


def texts(value):
    """Yield every string of a row, those of messages included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts(part)


def is_conversation(row):
    """Return whether a row holds a list of messages."""
    lists = [value for value in row.values() if isinstance(value, list)]
    return any(isinstance(m, dict) and "content" in m for messages in lists for m in messages)


def main(data, folder):
    """Train the tokenizer, draw the model, save both."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    rows = list(rows_of(data))
    chat = any(map(is_conversation, rows))
    end = "<|im_end|>" if chat else "</s>"
    special = ["<pad>", "<s>", end] + ["<|im_start|>"] * chat
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts(rows),
        trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token=end
    )
    tokenizer.chat_template = TEMPLATE if chat else None
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=1024,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:3])

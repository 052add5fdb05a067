"""Fixtures for every test file: a tiny random model, its tokenizer, batches, a bench, a trainer;
all offline.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import contextlib  # noqa: E402
import copy  # noqa: E402
import types  # noqa: E402
from random import Random  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import WhitespaceSplit  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402
from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from harness.core.data import Prompt, Sampling  # noqa: E402
from harness.core.meter import Meter  # noqa: E402
from harness.core.settings import AdamWOptions  # noqa: E402
from harness.models.generation import CachedEngine  # noqa: E402
from harness.models.loading import frozen, scalar_from, trainable  # noqa: E402
from harness.models.logprobs import completion_logp  # noqa: E402
from harness.models.tokens import Tokens  # noqa: E402
from harness.training.lab import Runtime  # noqa: E402
from harness.training.trainer import Role, Trainer  # noqa: E402

from .helpers.registries import small_registry  # noqa: E402

torch.set_num_threads(int(os.environ.get("HARNESS_THREADS", "1")))

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "<end>", "<sys>")
WORDS = [f"w{i}" for i in range(52)]
VOCABULARY = [*SPECIAL, *WORDS]  # 60 words
PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, len(SPECIAL)


def build_tokenizer(pad="<pad>", template="<s> $A", **special):
    """Return a word-level tokenizer; `template` is its post-processor ("" for none)."""
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    core = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    if template:
        core.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": pad,
    } | special
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **settings)


def build_llama(seed=0, attention="sdpa", dropout=0.0):
    """Return a random Llama whose logits are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.25,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        attention_dropout=dropout,
        attn_implementation=attention,
    )
    return frozen(LlamaForCausalLM(config))


def build_gpt2(seed=0, attention="sdpa", dropout=0.1):
    """Return a random GPT-2: absolute positions, Conv1D layers, dropout in its configuration."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.25,
        bos_token_id=BOS,
        eos_token_id=EOS,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        attn_implementation=attention,
    )
    return frozen(GPT2LMHeadModel(config))


class Accelerator:
    """What the trainer needs of `accelerate.Accelerator`, without its process-wide state."""

    def autocast(self):
        return contextlib.nullcontext()

    def backward(self, loss):
        loss.backward()


@pytest.fixture(scope="session")
def accelerator():
    """What a trainer needs of an Accelerator."""
    return Accelerator()


@pytest.fixture(scope="module")
def registry():
    """The built-in plugins and the suite `small`."""
    return small_registry()


@pytest.fixture(scope="session")
def make_tokenizer():
    """The factory of tokenizers: `make_tokenizer(pad="</s>")`, `make_tokenizer(template="")`."""
    return build_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A word-level tokenizer of 60 words that puts a start token in front."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model():
    """A frozen random Llama of 60 words, width 32, two layers.

    Copy it (harness.models.loading.trainable) to change it.
    """
    return build_llama()


@pytest.fixture(scope="session")
def gpt2_model():
    """A frozen random GPT-2 of the same size."""
    return build_gpt2()


@pytest.fixture(scope="session")
def build_model():
    """The factory of models: `build_model("llama" or "gpt2", seed=0, attention="sdpa",
    dropout=...)`.
    """
    return lambda kind="llama", **options: {"llama": build_llama, "gpt2": build_gpt2}[kind](
        **options
    )


@pytest.fixture(scope="session")
def scalar_model(tiny_model):
    """A frozen scalar model on the tiny model's trunk."""
    return frozen(scalar_from(tiny_model).initialise(7))


@pytest.fixture
def tokens(tiny_tokenizer):
    """The tiny tokenizer with the harness's rules."""
    return Tokens(tiny_tokenizer)


@pytest.fixture(scope="session")
def eos_padded():
    """Tokens of a tokenizer without a pad token of its own: pad == eos."""
    return Tokens(build_tokenizer(pad="</s>"))


@pytest.fixture
def meter():
    """A meter that does not look at memory."""
    return Meter(peak=lambda reset: 0)


@pytest.fixture
def runtime(meter):
    """The factory of benches: `bench(temperature=1.0, max_new_tokens=8, eos=(2,), seed=0,
    micro_batch_tokens=64)`.
    """

    def make(
        temperature=1.0, max_new_tokens=8, eos=(EOS,), seed=0, micro_batch_tokens=64, meter=meter
    ):
        sampling = Sampling(temperature, max_new_tokens)
        return Runtime(CachedEngine(set(eos)), sampling, set(eos), seed, meter, micro_batch_tokens)

    return make


@pytest.fixture(scope="session")
def make_prompts():
    """The factory of prompts of given lengths in words: `make_prompts([3, 1, 5], seed=0)`."""

    def make(lengths, seed=0):
        rng = Random(seed)
        return [Prompt(f"p{i}", " ".join(rng.choices(WORDS, k=n))) for i, n in enumerate(lengths)]

    return make


@pytest.fixture(scope="session")
def make_batch(make_prompts):
    """The factory of batches: prompts of `words` words, completions of `lengths` (B, K) tokens, end
    token included.

    `open_ended` names the (row, completion) places whose last token is an ordinary word: cut, not
      ended.
    """

    def make(
        tokens,
        words=(3, 1, 5, 2),
        lengths=((2, 4), (1, 3), (6, 2), (3, 5)),
        seed=0,
        open_ended=((3, 1),),
    ):
        rng = Random(seed + 1)

        def ids(i, j, n):
            body = rng.choices(range(FIRST_WORD, len(VOCABULARY)), k=n)
            return body if (i, j) in open_ended else [*body[:-1], tokens.eos]

        completions = [[ids(i, j, n) for j, n in enumerate(row)] for i, row in enumerate(lengths)]
        return tokens.batch(make_prompts(words, seed), completions)

    return make


@pytest.fixture
def make_trainer(meter):
    """The factory of trainers: `make_trainer(model, micro_batch_tokens=64, **options)` gives the
    trainer and its role.

    `sgd=True` takes plain gradient steps, at the options' schedule: AdamW's division makes any
      rounding error visible.
    """

    def make(model, micro_batch_tokens=64, sgd=False, **options):
        options = {
            "learning_rate": 0.1,
            "lr_schedule": "constant",
            "warmup_ratio": 0.0,
            "max_grad_norm": 0.0,
        } | options
        policy = trainable(model)
        trainer = Trainer(AdamWOptions(**options), Accelerator(), meter, micro_batch_tokens)
        trainer.add("policy", policy)
        if sgd:
            trainer.optimizers["policy"] = torch.optim.SGD(
                policy.parameters(), lr=trainer.learning_rates["policy"]
            )
        return trainer, Role("policy", policy, lambda batch: completion_logp(policy, batch))

    return make


@pytest.fixture(scope="session")
def with_dropout():
    """Return a copy of a model with dropout on: what every identity must notice."""

    def make(model, share=0.3):
        noisy = copy.deepcopy(model).train()
        for module in noisy.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = share
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = share
        return noisy

    return make


@pytest.fixture(scope="session")
def words():
    """The vocabulary's facts: `all`, `PAD`, `BOS`, `EOS`, and `FIRST`, the first ordinary word."""
    return types.SimpleNamespace(all=VOCABULARY, PAD=PAD, BOS=BOS, EOS=EOS, FIRST=FIRST_WORD)

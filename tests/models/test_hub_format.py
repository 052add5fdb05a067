"""Reading models: PEFT adapters are merged or refused, invalid generation configs stop nothing."""

import json
import shutil

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PolyConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from harness.core.errors import UsageError
from harness.core.model_folder import adapters_in, model_digest, model_files, model_record
from harness.models.hub_format import end_tokens, meta_model, notes_on
from harness.models.loading import load_causal, load_tokenizer, save_causal, trainable
from harness.models.lora import adapted, own_state

from ..helpers.tiny_models import tiny_folder
from ..helpers.tools import command, fresh, on_small, only_run

IDS = torch.arange(3, 23).view(2, 10)
ATTENTION = {"target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def bases():
    """Folders of whole models, by architecture."""
    where = fresh("bases")
    return {name: tiny_folder(name, where / name) for name in ("llama", "gemma", "mixtral")}


def lora(**more):
    """A LoRA configuration for a causal language model."""
    return LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", **ATTENTION, **more})


def adapter_on(base, config=None, resize=0, cls=AutoModelForCausalLM):
    """Write an adapter of a base with random matrices; return its folder and PEFT's own model."""
    folder = fresh("adapter")
    model = cls.from_pretrained(base)
    if resize:
        model.resize_token_embeddings(model.config.vocab_size + resize)
    theirs = get_peft_model(model, config or lora()).eval()
    torch.manual_seed(1)
    for p in theirs.parameters():
        if p.requires_grad:
            p.data.add_(0.05 * torch.randn_like(p))
    theirs.save_pretrained(folder)
    return folder, theirs


def edit(folder, **values):
    """Change an adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# -- adapters that are merged ----------------------------------------------------------------------

MERGED = {
    "lora": ("llama", {}, 0),
    "rslora": ("llama", {"use_rslora": True}, 0),
    "dora": ("llama", {"use_dora": True}, 0),
    "a saved head": ("llama", {"modules_to_save": ["lm_head"]}, 0),
    "saved embeddings of a tied model": ("gemma", {"modules_to_save": ["embed_tokens"]}, 0),
    "a saved norm": ("llama", {"modules_to_save": ["norm"]}, 0),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, 0),
    "single tokens": ("llama", {"trainable_token_indices": [5, 6]}, 0),
    "resized embeddings": ("llama", {}, 4),
    "resized and saved": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, 4),
    "resized and tied": ("gemma", {"modules_to_save": ["embed_tokens"]}, 4),
    "experts": ("mixtral", {"target_modules": "all-linear"}, 0),
}


@pytest.mark.parametrize("kind", MERGED)
def test_load_causal_merges_an_adapter_and_gives_the_logits_of_peft(kind, bases):
    base, options, resize = MERGED[kind]
    folder, theirs = adapter_on(bases[base], lora(**options), resize)
    model = load_causal(folder)
    assert not adapted(model) and not hasattr(model, "peft_config")
    expected = theirs(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=0)
    untouched = load_causal(bases[base])(IDS).logits
    assert float((expected[..., :296] - untouched).detach().abs().max()) > 0.1
    save_causal(model, load_tokenizer(folder), folder / "saved")
    assert torch.equal(load_causal(folder / "saved")(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[]),
        LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
        AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_load_causal_merges_other_kinds_of_adapter(config, bases):
    folder, theirs = adapter_on(bases["llama"], config)
    torch.testing.assert_close(
        load_causal(folder)(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0
    )


def test_trained_merged_adapter_is_saved_as_it_was_trained(bases):
    """huggingface/trl#4713: what is trained besides the adapter was not saved."""
    folder, _ = adapter_on(bases["llama"])
    model = trainable(load_causal(folder))
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(IDS).logits.log_softmax(-1)[..., 0].mean().backward()
    optimizer.step()
    save_causal(model, load_tokenizer(folder), folder / "saved")
    assert torch.equal(load_causal(folder / "saved")(IDS).logits, model(IDS).logits)
    assert learning <= own_state(model).keys()


def test_base_is_found_beside_its_adapter_and_may_be_an_adapter(bases):
    folder, theirs = adapter_on(bases["llama"])
    shutil.copytree(bases["llama"], folder / "whole")
    edit(folder, base_model_name_or_path="./whole")
    torch.testing.assert_close(
        load_causal(folder)(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0
    )
    outer, _ = adapter_on(bases["llama"], lora(init_lora_weights=True))
    edit(outer, base_model_name_or_path=str(folder))
    assert [adapter.name for adapter in adapters_in(outer)] == [str(outer), str(folder)]
    assert load_tokenizer(outer).get_vocab() == load_tokenizer(bases["llama"]).get_vocab()
    assert model_record(outer)["base"]["base"]["digest"] == model_digest(bases["llama"])


def test_digest_of_an_adapter_changes_with_its_base(bases):
    folder, _ = adapter_on(bases["llama"])
    shutil.copytree(bases["llama"], folder / "whole")
    edit(folder, base_model_name_or_path=str(folder / "whole"))
    before = model_digest(folder)
    assert folder / "whole" / "model.safetensors" in model_files(folder)
    tensors = load_file(folder / "whole" / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, folder / "whole" / "model.safetensors", {"format": "pt"})
    assert model_digest(folder) != before


# -- adapters that are refused ---------------------------------------------------------------------


def _drop_tensor(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")


def _add_score(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.score.weight"] = torch.ones(2, 32)
    save_file(tensors, folder / "adapter_model.safetensors")


FAULTS = {
    "no base": (lambda f: edit(f, base_model_name_or_path=None), "does not name its base model"),
    "itself": (lambda f: edit(f, base_model_name_or_path=str(f)), "names itself as its base"),
    "base gone": (
        lambda f: edit(f, base_model_name_or_path="/not/there"),
        "is not there: /not/there",
    ),
    "hub base": (
        lambda f: edit(f, base_model_name_or_path="a/b"),
        "The model a/b could not be loaded",
    ),
    "bad json": (lambda f: (f / "adapter_config.json").write_text("{"), "is not valid JSON"),
    "no object": (lambda f: (f / "adapter_config.json").write_text("[]"), "is not a JSON object"),
    "kind": (lambda f: edit(f, peft_type="FANCY"), "of the kind FANCY"),
    "rank": (lambda f: edit(f, r=8), "could not be merged into"),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "Only safetensors are read",
    ),
    "a tensor missing": (_drop_tensor, "is incomplete"),
    "a classification head": (_add_score, "its tensor base_model.model.score.weight has no place"),
    "both": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "holds whole weights .model.safetensors. and an adapter",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_causal_refuses_a_faulty_adapter_in_one_message(fault, bases):
    folder, _ = adapter_on(bases["llama"])
    break_it, message = FAULTS[fault]
    break_it(folder)
    with pytest.raises(UsageError, match=message):
        load_causal(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PROMPT_TUNING has no"),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PREFIX_TUNING has no"),
        (PolyConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), "could not be merged"),
        (lora(task_type="SEQ_CLS"), "is of the task SEQ_CLS"),
    ],
)
def test_load_causal_refuses_kinds_that_cannot_be_merged(config, message, bases):
    sequence = config.task_type == "SEQ_CLS"
    cls = AutoModelForSequenceClassification if sequence else AutoModelForCausalLM
    folder, _ = adapter_on(bases["llama"], config, cls=cls)
    with pytest.raises(UsageError, match=message):
        load_causal(folder)


def test_adapters_that_name_each_other_are_refused(bases):
    (one, _), (other, _) = adapter_on(bases["llama"]), adapter_on(bases["llama"])
    edit(one, base_model_name_or_path=str(other))
    edit(other, base_model_name_or_path=str(one))
    with pytest.raises(UsageError, match="has no end of bases"):
        model_files(one)


# -- whole models that are refused -----------------------------------------------------------------


def test_load_causal_refuses_quantised_weights_also_below_an_adapter(bases):
    folder, _ = adapter_on(bases["llama"])
    shutil.copytree(bases["llama"], folder / "whole")
    edit(folder, base_model_name_or_path=str(folder / "whole"))
    file = folder / "whole" / "config.json"
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    file.write_text(json.dumps(json.loads(file.read_text()) | quantised))
    for name in (folder / "whole", folder):
        with pytest.raises(UsageError, match=r"has quantised weights \(bitsandbytes\)"):
            load_causal(name)


def test_load_causal_refuses_a_folder_without_a_model_and_a_reward_model(bases):
    only = fresh("only")
    shutil.copy(bases["llama"] / "generation_config.json", only)
    with pytest.raises(UsageError, match="could not be loaded. A folder in Hugging Face format"):
        load_causal(only)
    reward = AutoModelForSequenceClassification.from_pretrained(bases["llama"])
    reward.save_pretrained(only / "reward")
    with pytest.raises(UsageError, match="has no lm_head.weight, which would be random"):
        load_causal(only / "reward")


def test_load_causal_refuses_a_configuration_that_contradicts_itself(tmp_path):
    folder = tiny_folder("qwen2", tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 3}))
    for read in (load_causal, meta_model):
        with pytest.raises(UsageError, match="could not be loaded.*num_hidden_layers"):
            read(folder)


# -- generation configs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "ends", "noted"),
    [
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {2}, False),  # as Llama 2 has it
        ({"do_sample": False, "num_return_sequences": 4, "eos_token_id": [2, 7]}, {2, 7}, True),
        ({"max_new_tokens": 0}, {2}, True),
        ({"cache_implementation": "nonsense"}, {2}, True),
        ({"watermarking_config": {"x": 1}}, {2}, True),
        ({"eos_token_id": "</s>"}, set(), False),
        ({"eos_token_id": True}, set(), False),  # Python takes True for 1
        ([1], set(), True),
        ("{bad", set(), True),
    ],
)
def test_invalid_generation_config_stops_nothing_and_is_told(config, ends, noted, bases):
    folder = fresh("generation") / "model"
    shutil.copytree(bases["llama"], folder)
    file = folder / "generation_config.json"
    if isinstance(config, dict):
        config = json.loads(file.read_text()) | config
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    model = load_causal(folder)
    assert end_tokens(folder) == ends
    assert any("generation_config.json is" in note for note in notes_on(folder)) == noted
    save_causal(model, load_tokenizer(folder), folder / "saved")
    assert torch.equal(load_causal(folder / "saved")(IDS).logits, model(IDS).logits)


# -- the command line ------------------------------------------------------------------------------


def test_run_on_an_adapter_says_and_records_its_base(bases):
    folder, _ = adapter_on(bases["llama"])
    results = fresh("results")
    done = command(*on_small("dpo", "--model", folder, results=results))
    assert done.code == 0, done.text
    assert f"{folder} is a LORA adapter of {bases['llama']}: it is merged" in done.err
    model = json.loads((only_run(results, "small", "dpo") / "result.json").read_text())["model"]
    assert model["adapter"] == "LORA" and model["base"]["name"] == str(bases["llama"])
    assert model["base"]["digest"] == model_digest(bases["llama"]) != model["digest"]


def test_run_on_a_faulty_adapter_ends_in_one_message(bases):
    folder, _ = adapter_on(bases["llama"])
    edit(folder, base_model_name_or_path="/not/there")
    done = command(*on_small("dpo", "--model", folder, results=fresh("results")))
    assert done.code == 2 and "is not there: /not/there is no folder" in done.err
    assert "Traceback" not in done.err


# -- the limits of a model's configuration ---------------------------------------------------------


def _tiny_with_padding(folder, pad_id):
    """A model with 8 embeddings, and a tokenizer whose padding token has a given id."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<s>": 1, "</s>": 2, "a": 3, "b": 4, "<pad>": pad_id}
    core = Tokenizer(models.WordLevel(words, unk_token="a"))
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=8, num_attention_heads=1, max_position_embeddings=32, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_limits_of_reads_positions_and_vocabulary(tmp_path):
    from harness.models.hub_format import ModelLimits, limits_of

    assert limits_of(_tiny_with_padding(tmp_path / "m", 0)) == ModelLimits(32, 8)
    assert limits_of(tmp_path / "nothing") == ModelLimits()


@pytest.mark.parametrize(("pad_id", "used", "noted"), [(0, 0, False), (7, 7, False), (8, 2, True)])
def test_padding_token_without_an_embedding_is_replaced_and_noted(tmp_path, pad_id, used, noted):
    from harness.models.hub_format import load_tokenizer, notes_on

    folder = _tiny_with_padding(tmp_path / "m", pad_id)
    assert load_tokenizer(folder).pad_token_id == used
    assert any("no embedding for its padding token" in note for note in notes_on(folder)) == noted

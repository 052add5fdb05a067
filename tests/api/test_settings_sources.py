"""Where the settings of a run come from: the table for real models, LoRA, suites, the user."""

import json
from pathlib import Path

import pytest

from harness.api.real_models import LORA_FACTOR, RECIPES
from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.api.settings_sources import SUITE, TABLE, USER, Sources, values_of
from harness.core.options import options_of
from harness.core.settings import STAGES, AdamWOptions
from harness.core.suite_file import read_suite_file

from ..helpers.registries import METHODS
from ..helpers.tools import command

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TRAINED = [name for name in METHODS if issubclass(installed().get("methods", name), AdamWOptions)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder that stands for a user's chat model: nothing of it is loaded."""
    folder = tmp_path_factory.mktemp("chat")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return str(folder)


def spec_of(method, suite, model=None, settings=(), stage_settings=(), **fixed):
    request = Request(
        method, str(suite), settings, (), stage_settings, fixed={"model": model, **fixed}
    )
    return resolve(request, installed())


def test_every_row_of_the_table_is_of_a_method_or_stage_and_its_options():
    for key, recipe in RECIPES.items():
        name = key.partition(":")[0]
        stage = name.removeprefix("stage.")
        cls = STAGES[stage] if stage != name else installed().get("methods", name)
        for settings in (recipe.full, recipe.lora):
            assert set(settings) <= set(options_of(cls)), key
            assert 1e-8 < settings["learning_rate"] < 1e-3
        assert recipe.lora["learning_rate"] > recipe.full["learning_rate"]
        assert recipe.source


def test_every_built_in_method_that_trains_has_a_row():
    own = {
        name
        for name in TRAINED
        if installed().origins["methods", name].distribution == "alignment-harness"
    }
    assert own <= set(RECIPES)


@pytest.mark.parametrize(
    "method", [name for name in RECIPES if "." not in name and ":" not in name]
)
@pytest.mark.parametrize("lora", [False, True])
def test_real_model_gets_the_rate_of_the_table(method, lora, model):
    rank = ("lora_rank=8",) if lora else ()
    suite = EXAMPLES / ("gsm8k.toml" if method in ("rlvr", "maxrl") else "hh.toml")
    options = spec_of(method, suite, model, rank).options
    recipe = RECIPES[method]
    assert {k: options[k] for k in recipe.full} == dict(recipe.lora if lora else recipe.full)


def test_table_gives_way_to_the_user_and_to_a_suite_file(model, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('data = "x.jsonl"\n[settings.dpo]\nlearning_rate = 7e-7\n')
    assert spec_of("dpo", file, model).options["learning_rate"] == 7e-7
    set_by_user = spec_of("dpo", file, model, ("learning_rate=9e-7",))
    assert set_by_user.options["learning_rate"] == 9e-7
    file.write_text('data = "x.jsonl"\n[settings."*"]\nlearning_rate = 3e-7\n')
    assert spec_of("dpo", file, model).options["learning_rate"] == 3e-7


def test_embedded_suite_does_not_advise_another_model(model):
    own, other = spec_of("dpo", "summarization"), spec_of("dpo", "summarization", model)
    assert own.options["learning_rate"] == 5e-4
    assert other.options["learning_rate"] == RECIPES["dpo"].full["learning_rate"]
    assert other.options["steps"] == own.options["steps"]  # what the table is silent on
    assert other.stages["reward_model"]["learning_rate"] == 1e-5


def test_one_value_of_an_option_may_have_a_row_of_its_own(model):
    hh = EXAMPLES / "hh.toml"
    rates = {
        value: spec_of("rlaif", hh, model, (f"optimiser={value}",)).options["learning_rate"]
        for value in ("ppo", "dpo")
    }
    assert rates == {"ppo": 3e-6, "dpo": 5e-7}


def test_lora_brings_its_rate_where_nothing_sets_one():
    cls = installed().get("methods", "dpo")
    for name, rate in (("dpo", 5e-6), ("a_plugins_own", LORA_FACTOR * 1e-6)):
        chosen = Sources().of_method(cls, name, {"lora_rank": "4"})
        assert chosen["learning_rate"].value == pytest.approx(rate)
        assert chosen["learning_rate"].origin == TABLE
        assert "learning_rate" not in Sources().of_method(cls, name, {})  # negative control
    suite = {"*": {"learning_rate": 5e-4}}
    chosen = Sources(suite).of_method(cls, "dpo", {"lora_rank": "4"})
    assert chosen["learning_rate"].value == 5e-4 and chosen["learning_rate"].origin == SUITE
    assert chosen["lora_rank"].origin == USER


def test_settings_of_stages_are_those_of_the_table_too(model):
    stages = spec_of("dpo", EXAMPLES / "hh.toml", model, start="sft").stages
    assert stages["sft"]["learning_rate"] == 2e-5
    assert stages["reward_model"]["learning_rate"] == 1e-5
    toy = spec_of("dpo", EXAMPLES / "toy" / "hh.toml", model, start="sft").stages
    assert toy["sft"]["learning_rate"] == 1e-3


@pytest.mark.parametrize("name", ["hh", "gsm8k"])
def test_examples_for_real_models_hold_no_settings_of_a_toy(name):
    assert not read_suite_file(str(EXAMPLES / f"{name}.toml")).settings
    toy = read_suite_file(str(EXAMPLES / "toy" / f"{name}.toml"))  # negative control
    assert toy.settings and toy.options["title"] == f"{name}_toy"


def test_show_gives_the_value_that_a_run_uses_and_where_it_comes_from(model):
    args = ("show", "dpo", "--suite", EXAMPLES / "toy" / "hh.toml", "--model", model)
    done = command(*args, "--set", "beta=0.2", "--set", "lora_rank=4")
    assert done.code == 0, done.text
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.split()}
    assert rows["learning_rate"][1:3] == ["2e-05", "suite"]
    assert rows["beta"][1:3] == ["0.2", "user"]
    assert rows["warmup_ratio"][1:3] == ["0.1", "default"]
    done = command("show", "dpo", "--model", model)
    assert "5e-07" in done.out and "real-model table" in done.out and "Zephyr" in done.out
    done = command("show", "stage.sft", "--model", model, "--set", "epochs=2")
    assert "real-model table" in done.out and "user" in done.out
    assert command("show", "dpo", "--set", "bta=1").code == 2


def test_values_of_settings_are_plain():
    chosen = Sources({"dpo": {"beta": 0.3}}).of_method(
        installed().get("methods", "dpo"), "dpo", {"epochs": "2"}
    )
    assert values_of(chosen) == {"beta": 0.3, "epochs": "2"}


def test_table_stands_in_the_docs():
    text = (ROOT / "docs" / "your-model-and-data.md").read_text()
    for key, recipe in RECIPES.items():
        source = recipe.source + ("" if recipe.verified else " (not verified)")
        full, lora = (r["learning_rate"] for r in (recipe.full, recipe.lora))
        more = "".join(f", {n} {v:g}" for n, v in recipe.full.items() if n != "learning_rate")
        assert f"| `{key}` | {full:g}{more} | {lora:g} | {source} |" in text, key

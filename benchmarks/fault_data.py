"""Faulty input: configuration, study files, suite files, data, prompts, models."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from functools import partial
from pathlib import Path

from fault_trials import FAILED, PASSED, Trial, Trials, Verdict, kind, one_message
from fault_world import World

RUN = ("run", "-m", "dpo", "-s", "exact", "--quick")
COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown method": (("run", "-m", "dpoo", "-s", "exact"), "dpo"),
    "unknown suite": (("run", "-m", "dpo", "-s", "exakt"), "exact"),
    "unknown option": ((*RUN, "--set", "learning_rat=1"), "learning_rate"),
    "wrong type": ((*RUN, "--set", "learning_rate=fast"), "learning_rate"),
    "negative rate": ((*RUN, "--set", "learning_rate=-1"), "learning_rate"),
    "NaN rate": ((*RUN, "--set", "learning_rate=nan"), "learning_rate"),
    "no value": ((*RUN, "--set", "learning_rate"), "learning_rate"),
    "no budget": ((*RUN, "--budget", "stps=1"), "steps"),
    "odd budget": ((*RUN, "--budget", "steps=-1"), "steps"),
    "unknown stage": ((*RUN, "--stage-set", "sfft.steps=1"), "sft"),
    "unknown judge": ((*RUN, "--judge", "nobody"), "judge"),
    "unknown device": ((*RUN, "--device", "tpu"), "tpu"),
    "missing plugin": ((*RUN, "-p", "missing.py"), "missing.py"),
    "missing model": ((*RUN, "--model", "./missing"), "missing"),
    "odd interval": ((*RUN, "--checkpoint-every", "often"), "checkpoint-every"),
    "two values": ((*RUN, "--set", "beta=1", "--set", "beta=2"), "beta"),
}


@kind("wrong options", "11")
def options(world: World, rng: random.Random) -> Trials:
    """Exit status 2, one message with the nearest name, and nothing written."""
    for name, (arguments, word) in COMMANDS.items():
        yield Trial(name, partial(_refused, world, arguments, word))


def _refused(world: World, arguments: tuple[object, ...], word: str) -> Verdict:
    results = world.fresh() / "none"
    verdict = one_message(world.run(*arguments, "--results", results), 2, word)
    if verdict.outcome == PASSED and results.exists() and any(results.rglob("*.json")):
        verdict = Verdict(FAILED, "something was written")
    return verdict


HEAD = 'suites = ["exact"]\nquick = true\n'
METHOD = '[[methods]]\nname = "dpo"\n'
STUDIES = {
    "not TOML": ("suites = [", "TOML"),
    "duplicate key": (f"{HEAD}quick = false\n{METHOD}", "TOML"),
    "UTF-16": ("\ufeffsuites".encode("utf-16"), "TOML"),
    "no methods": (HEAD, "methods"),
    "no suites": (METHOD, "suites"),
    "unknown key": (f"{HEAD}quik = true\n{METHOD}", "quick"),
    "unknown method": (f'{HEAD}[[methods]]\nname = "dpoo"\n', "dpo"),
    "wrong type": (f"{HEAD}seeds = 1.5\n{METHOD}", "seeds"),
    "negative seeds": (f"{HEAD}seeds = -1\n{METHOD}", "seeds"),
    "unknown option": (f"{HEAD}{METHOD}set = {{ bta = 1 }}\n", "beta"),
    "empty sweep": (f"{HEAD}{METHOD}sweep = {{ beta = [] }}\n", "beta"),
    "one trial": (f"{HEAD}{METHOD}[tune]\ntrials = 1\n", "trials"),
    "deep nesting": (f"{HEAD}a = {'[' * 2000}{']' * 2000}\n{METHOD}", ""),
    "NUL": (f"{HEAD}\x00{METHOD}", "TOML"),
    "a folder name out of the folder": (f'{HEAD}name = "../../x"\n{METHOD}', "name"),
    "10 MB": (f'{HEAD}title = "{"x" * 10_000_000}"\n{METHOD}', "title"),
    "empty": ("", ""),
}


@kind("wrong study files", "11")
def study_files(world: World, rng: random.Random) -> Trials:
    """Exit status 2 and one message, before anything is started."""
    for name, (text, word) in STUDIES.items():
        yield Trial(name, partial(_study_file, world, text, word))


def _study_file(world: World, text: str | bytes, word: str) -> Verdict:
    file = world.fresh("study") / "study.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return _refused(world, ("study", file), word)


GOOD = [
    {"prompt": f"question {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(60)
]


def _lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


BAD_ROWS = {
    "missing field": _lines(GOOD[0], {"prompt": "a", "chosen": "b"}),
    "wrong type": _lines({**GOOD[0], "chosen": 3}),
    "null": _lines({**GOOD[0], "rejected": None}),
    "equal answers": _lines({"prompt": "a", "chosen": "b", "rejected": "b"}),
    "empty answer": _lines({"prompt": "a", "chosen": "", "rejected": "b"}),
    "broken line": b'{"prompt": "a", "cho\n',
    "deep nesting": b"[" * 20_000 + b"\n",
    "a list": _lines([1, 2]),
    "NUL": _lines({**GOOD[0], "chosen": "a\x00b"}),
    "64 MB row": b'{"prompt": "' + b"x" * (64 << 20) + b'"}\n',
    "NaN": b'{"prompt": "a", "chosen": NaN, "rejected": "b"}\n',
}
ODD_PROMPTS = {
    "byte-order mark": b"\xef\xbb\xbf" + _lines(*GOOD),
    "Windows line ends": _lines(*GOOD).replace(b"\n", b"\r\n"),
    "special tokens": _lines(*GOOD, {**GOOD[0], "prompt": "<|im_end|><|endoftext|>"}),
    "HTML, LaTeX": _lines(*GOOD, {**GOOD[0], "prompt": "<script>x</script> \\input{a} $%&#_{}~^"}),
    "right to left": _lines(*GOOD, {**GOOD[0], "prompt": "\u202e\u05d0\u05d1 \u200d\U0001f469"}),
    "escape codes": _lines(*GOOD, {**GOOD[0], "prompt": "\x1b[31mred\x07"}),
    "100,000 words": _lines(*GOOD, {**GOOD[0], "prompt": "word " * 100_000}),
}


@kind("wrong rows of data", "13")
def rows(world: World, rng: random.Random) -> Trials:
    """One message with the row and the reason; skipped where asked, with the count."""
    for name, content in BAD_ROWS.items():
        yield Trial(name, partial(_row, world, content))


def _row(world: World, content: bytes) -> Verdict:
    suite = _suite(world, "data.jsonl", _lines(*GOOD[1:]) + content)
    verdict = one_message(world.run("show", suite), 2, "data.jsonl")
    if verdict.outcome != PASSED:
        return verdict
    with suite.open("a", encoding="utf-8") as stream:
        stream.write('bad_rows = "skip"\n')
    done = world.run("show", suite)
    good = done.code == 0 and "skipped" in done.text
    return Verdict(PASSED if good else FAILED, "" if good else f"not skipped: {done.text[-300:]}")


def _suite(world: World, name: str, content: bytes) -> Path:
    folder = world.fresh("data")
    (folder / name).write_bytes(content)
    (folder / "suite.toml").write_text(f'data = "{name}"\n', encoding="utf-8")
    return folder / "suite.toml"


@kind("odd prompts", "14")
def prompts(world: World, rng: random.Random) -> Trials:
    """No crash, and no control character reaches the terminal."""
    for name, content in ODD_PROMPTS.items():
        yield Trial(name, partial(_prompts, world, content))


def _prompts(world: World, content: bytes) -> Verdict:
    done = world.run("show", _suite(world, "data.jsonl", content))
    bad = [c for c in ("\x1b", "\x07", "\u202e", "\x00") if c in done.text]
    if done.code or bad:
        return Verdict(FAILED, f"{done.code} {bad} {done.text[-300:]}")
    return Verdict(PASSED)


@kind("files that are not what they seem", "13, 15")
def streams(world: World, rng: random.Random) -> Trials:
    """A FIFO, a device, a compressed bomb, a broken Parquet file, a link into itself."""
    for name in ("fifo", "device", "bomb", "parquet", "loop"):
        yield Trial(name, partial(_stream, world, name))


def _stream(world: World, name: str) -> Verdict:
    suite = _suite(world, "data.jsonl", b"")
    data = suite.with_name("data.jsonl")
    data.unlink()
    if name == "fifo":
        import os

        os.mkfifo(data)
    elif name == "device":
        data.symlink_to("/dev/zero")
    elif name == "loop":
        data.symlink_to(data)
    elif name == "bomb":
        data = data.with_name("data.jsonl.gz")
        with gzip.open(data, "wb", compresslevel=1) as stream:
            for _ in range(600):
                stream.write(b" " * (1 << 20))
    else:
        data = data.with_name("data.parquet")
        data.write_bytes(b"PAR1" + b"\x00" * 100)
    suite.write_text(f'data = "{data.name}"\n', encoding="utf-8")
    return one_message(world.run("show", suite, limit=120), 2)


MODEL_FAULTS = ("pickle", "auto_map", "header", "cut", "nan", "no config", "deep config", "layer")


@kind("model folders", "27")
def models(world: World, rng: random.Random) -> Trials:
    """Each is refused by name, and nothing of it is executed."""
    for name in MODEL_FAULTS:
        yield Trial(name, partial(_model, world, name))


def _model(world: World, name: str) -> Verdict:
    from fault_world import run_of

    start = run_of(world.whole("dpo")[0], "start")
    assert start is not None, "the undisturbed runs hold a policy"
    folder, results = world.fresh("model") / "model", world.fresh()
    shutil.copytree(start / "policy", folder)
    canary = results / "canary"
    _spoil(folder, name, canary)
    suite = _suite(world, "data.jsonl", _lines(*GOOD))
    arguments = ("run", "-m", "sft_chosen", "-s", suite, "--model", folder, "--quick")
    done = world.run(*arguments, "--start", "model", "--results", results)
    if canary.exists():
        return Verdict(FAILED, "code of the model was executed")
    if "Traceback" in done.text or done.code not in (1, 2, 3):
        return Verdict(FAILED, f"{done.code}: {done.text[-300:]}")
    return Verdict(PASSED)


def _spoil(folder: Path, name: str, canary: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    if name == "pickle":
        weights.unlink()
        command = f"cposix\nsystem\n(S'touch {canary}'\ntR."
        (folder / "pytorch_model.bin").write_bytes(command.encode())
    elif name == "auto_map":
        (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')", encoding="utf-8")
        content |= {"auto_map": {"AutoModelForCausalLM": "evil.M"}, "model_type": "evil"}
        config.write_text(json.dumps(content), encoding="utf-8")
    elif name == "layer":
        content["num_hidden_layers"] += 1
        config.write_text(json.dumps(content), encoding="utf-8")
    elif name == "no config":
        config.unlink()
    elif name == "deep config":
        config.write_text("[" * 100_000, encoding="utf-8")
    elif name == "nan":
        _not_finite(weights)
    else:
        whole = weights.read_bytes()
        weights.write_bytes(b"\xff" * 8 + whole if name == "header" else whole[: len(whole) // 2])


def _not_finite(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})

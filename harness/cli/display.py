"""Text for the terminal: the result of a run, and the description of a plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api import real_models, settings_sources
from ..api.registry import Registry
from ..api.resolve import suite_class
from ..api.settings_sources import Sources
from ..core.data_report import brief, recorded
from ..core.errors import UsageError, unknown
from ..core.movement import sentence
from ..core.options import about, build, options_of, parse_settings
from ..core.plain_text import visible
from ..core.run_folder import FAILURE, RESULT, SAMPLES, read_failure, read_result, rows_behind
from ..core.settings import STAGES
from ..core.suite_file import is_suite_file, read_suite_file

if TYPE_CHECKING:
    from rich.text import Text

    from ..experiments.run import Outcome

SAMPLES_SHOWN, SAMPLE_CHARACTERS = 2, 400
EXACT_KL = "rao-blackwell"  # the estimator from the log-probabilities of every token
KINDS = {"pool": "sampling", "reference_logp": "reference"}  # of artifacts, as shown
NEXT = "next: harness table"


def show(outcome: Outcome) -> None:
    """Print the result panel of a run."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    r = outcome.result
    grid = Table.grid(padding=(0, 2))
    for label, value in _lines(r):
        grid.add_row(f"[bold]{label}[/bold]", value)
    title = f"{r['method']} on {r['suite']}, seed {r['seed']}" + (
        ", quick" if r.get("quick") else ""
    )
    title += ", start: model" if r.get("start") == "model" else ""
    title += " (finished before)" if outcome.reused else ""
    console = Console()
    console.print(Panel(grid, title=title, subtitle=str(outcome.folder), expand=False))
    record = {**r, "folder": str(outcome.folder)}
    for sample in rows_behind(record, SAMPLES)[:SAMPLES_SHOWN]:
        console.print(_sample(sample, r["method"]))
    console.print(NEXT)


def _sample(sample: dict[str, Any], method: str) -> Any:
    """Return a prompt with the answers of the baseline and of the method."""
    from rich.table import Table

    table = Table(
        title=printable(sample["prompt"][-SAMPLE_CHARACTERS:]),
        title_justify="left",
        show_header=False,
    )
    win = sample.get("win")
    for row, text, gold in (("baseline", "baseline", "baseline_gold"), (method, "answer", "gold")):
        score = sample.get(gold)
        shown = f"{score:.2f}" if score is not None else ""
        if score is None and row == method and win is not None:
            shown = f"wins {win:.2f}"
        table.add_row(row, shown, printable(sample[text][:SAMPLE_CHARACTERS]))
    return table


def printable(text: str) -> Text:
    """Return model or user text for a terminal, without control characters and markup."""
    from rich.text import Text

    return Text(visible(text))


def _lines(r: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the panel: at most nine, and one more each if training changed nothing,
    the suite reads data, or phases differ in memory.
    """
    still = [("warning", sentence(r))] if sentence(r) else []
    data = [("data", brief(r["data"]))] if r.get("data") else []
    scorer = [("reward model", _scorer(r["reward_model"]))] if "reward_model" in r else []
    return [*still, *_quality(r["evaluation"]), *scorer, *data, *_cost(r), *_wall_time(r["cost"])]


def _scorer(scorer: Mapping[str, Any]) -> str:
    """Return the reward model that a run named, and its normalisation."""
    raw = f"raw scores of the start checkpoint {scorer['mean']:.3g} +- {scorer['scale']:.3g}"
    return f"{printable(scorer['name'])} ({scorer['weights'][:12]}), {raw}"


def show_run(folder: Path) -> None:
    """Print the panel of a finished run again, and below it the whole report on its data.

    Raises:
        UsageError: The run failed, or its record is damaged.
    """
    from ..experiments.run import Outcome

    result = read_result(folder)
    if result is None:
        failure = read_failure(folder) or {}
        raise UsageError(f"{folder}: the run failed. {failure.get('message', '')}".strip())
    show(Outcome(folder, result, reused=True))
    if result.get("data"):
        report = recorded(result["data"])
        for line in [*report.lines(), *report.warnings()]:
            print(line)


def is_run(name: str) -> bool:
    """Return whether a name is the folder of a finished or failed run."""
    return any((Path(name) / file).is_file() for file in (RESULT, FAILURE))


def _wall_time(cost: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the line on the wall time; empty for older records, which do not have it."""
    wall = cost.get("wall")
    if not wall:
        return []
    stages_made = ", ".join(
        f"{KINDS.get(kind, kind.replace('_', ' '))} {seconds:.1f}"
        for kind, seconds in cost["stages_made"].items()
    )
    stages = f"stages {wall['stages']:.1f}" + (f" ({stages_made})" if stages_made else "")
    rest = ", ".join(f"{name} {wall[name]:.1f}" for name in wall if name != "stages")
    return [("wall time", f"{cost['spent_seconds']:.1f} s: {stages}, {rest}")]


def _own(value: Any) -> str:
    """Return a figure of a suite, which may be any JSON value; the record has lists in full."""
    if isinstance(value, (list, dict)):
        return f"({len(value)} values)"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    text = f"{value:.4g}" if number else "--" if value is None else visible(str(value))
    return text.replace("[", "\\[")  # no markup


def _quality(e: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of the evaluation; the baseline is the start checkpoint's answers."""
    scores = [
        f"{label} {e[name]['mean']:.3f} (baseline {e['baseline_' + name]:.3f})"
        for name, label in (("accuracy", "accuracy"), ("proxy", "proxy reward"))
        if name in e and "baseline_" + name in e
    ]
    own = [f"{name.replace('_', ' ')} {_own(value)}" for name, value in e.get("suite", {}).items()]
    own += [
        f"{kind}@{k} {estimate['mean']:.3f}"
        for kind in ("pass", "maj")
        for k, estimate in e.get(f"{kind}_at_k", {}).items()
    ]
    own += [
        f"{task} {t['mean']:.3f} (start {t['start']:.3f})"
        for task, t in e.get("tasks", {}).items()
        if "mean" in t
    ]
    if "rouge" in e:
        own.append("ROUGE-L " + f"{e['rouge']['rougeL']:.3f}")
    if e.get("curve"):
        own.append(f"{len(e['curve'])} snapshots")
    gold = ""
    if "gold" in e and "baseline_gold" in e:
        gold = f"{e['gold']['mean']:.3f} (baseline {e['baseline_gold']:.3f})"
    lines = [
        (
            "win-rate vs baseline",
            f"{_win_rate(e)}  on {e['prompts']} {e['split']} prompts{_drawn_otherwise(e)}",
        ),
        ("judge", judge_text(e.get("judge", {}))),
        ("gold reward", gold),
        ("other scores", ", ".join(scores)),
        ("missing scores", ", ".join(f"{k} {n}" for k, n in e.get("missing", {}).items())),
        ("KL", _kl(e)),
        (
            "length",
            f"{e['length']['mean']:.1f} tokens (baseline {e['baseline_length']:.1f}),"
            f" {e['eos_rate']:.0%} of the answers complete",
        ),
        ("also", ", ".join(own)),
    ]
    return [(label, value) for label, value in lines if value]


def _win_rate(e: dict[str, Any]) -> str:
    """Return the win-rate with its interval, or why there is none."""
    if "win_rate" in e:
        return _interval(e["win_rate"], 3)
    return str(e["judge"]["no_win_rate"]).replace("[", "\\[")


def _kl(e: dict[str, Any]) -> str:
    """Return the KL with its interval, or why it is missing."""
    if "kl" not in e:
        return f"missing: {printable(e['kl_missing'])}"
    estimated = "" if e["kl_estimator"] == EXACT_KL else ", estimated"
    return f"{_interval(e['kl'], 2)} nats{estimated}{kl_temperature(e)}"


def _drawn_otherwise(e: dict[str, Any]) -> str:
    """Return how answers were drawn, and what they are compared with, where it is unusual."""
    parts = [", greedy" if e["temperature"] == 0 else ""]
    parts += [f", top-p {e['top_p']:g}" if "top_p" in e else ""]
    parts += [f", against {printable(e['against'])}" if "against" in e else ""]
    return "".join(parts)


def kl_temperature(e: dict[str, Any]) -> str:
    """Return the temperature of KL where answers were drawn otherwise."""
    return f", of answers at T={e['kl_temperature']:g}" if "kl_temperature" in e else ""


def judge_text(judge: dict[str, Any]) -> str:
    """Return the qualities of the verdicts; empty for a judge of which nothing is known."""
    parts = []
    if held_out := judge.get("held_out"):
        ends = f" \\[{held_out['low']:.3f}, {held_out['high']:.3f}]" if "low" in held_out else ""
        doubt = f", {held_out['doubt']}" if "doubt" in held_out else ""
        pairs = f"{held_out['pairs']:.0f} held-out pairs"
        parts.append(f"accuracy {held_out['accuracy']:.3f}{ends} on {pairs}{doubt}")
    if judge.get("missing"):
        parts.append(f"{judge['missing']} of {judge['pairs']} pairs without a verdict")
    parts += [f"{n} {name}" for name, n in judge.get("problems", {}).items()]
    if bias := judge.get("position_bias"):
        parts.append(f"position bias {bias['mean']:+.3f} \\[{bias['low']:.3f}, {bias['high']:.3f}]")
        parts.append(f"both orders agree {judge['position_consistency']:.0%}")
    if "self_agreement" in judge:
        parts.append(f"agrees with itself {judge['self_agreement']:.0%}")
    return f"{judge['name']}: {', '.join(parts)}" if parts else ""


def _judging(cost: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the line on the cost of judging, if the judge counts requests or tokens."""
    counts, phase = cost.get("judge", {}), cost["phases"].get("judge", {})
    shown = [
        f"{counts[name]:.0f} {name.replace('_', ' ')}"
        for name in ("requests", "cached", "failed_tries", "prompt_tokens", "completion_tokens")
        if counts.get(name)
    ]
    if not shown:
        return []
    flops = f", {phase['flops']:.3g} FLOPs" if phase.get("flops") else ""
    return [("judging", f"{phase.get('seconds', 0.0):.1f} s{flops}, {', '.join(shown)}")]


def _origin(guest: dict[str, Any]) -> str:
    """Return where a model that was trained elsewhere comes from."""
    name = printable(guest["name"])
    if "url" in guest:
        return f"{name}, served at {printable(guest['url'])}"
    adapter = (
        f", a {guest['adapter']} adapter of {guest['base']['name']}" if "base" in guest else ""
    )
    return f"{name} ({guest['digest'][:12]}){adapter} was trained elsewhere"


def _cost(r: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the cost of training and of the shared stages, and the peak memory."""
    cost = r["cost"]
    if "guest" in r:
        return [("training", f"unknown: {_origin(r['guest'])}"), *_judging(cost)]
    own, shared = cost["method"], cost["shared_total"]
    ai = f", {cost['ai_labels']} AI labels" if cost["ai_labels"] else ""
    reused = f"; reused: {', '.join(cost['reused_stages'])}" if cost["reused_stages"] else ""
    peaks = {
        name: f"{c['peak_memory'] / 2**20:.0f} MiB"
        for name, c in cost["phases"].items()
        if c["peak_memory"]
    }
    training = (
        f"{own['seconds']:.1f} s, {own['flops']:.3g} FLOPs, {own['tokens_generated']} tokens"
        f" generated, {own['tokens_trained']} trained"
    )
    if len(set(peaks.values())) == 1:
        training += f", peak {next(iter(peaks.values()))}"
    lines = [
        ("training", training),
        (
            "shared stages",
            f"{shared['seconds']:.1f} s, {shared['flops']:.3g} FLOPs, {cost['labels']} labels"
            f"{ai}{reused}",
        ),
    ]
    lines += _judging(cost)
    if len(set(peaks.values())) > 1:
        lines.append(("peak memory", ", ".join(f"{name} {peak}" for name, peak in peaks.items())))
    return lines


def _interval(e: dict[str, float], digits: int) -> str:
    return f"{e['mean']:.{digits}f} \\[{e['low']:.{digits}f}, {e['high']:.{digits}f}]"


@dataclass(frozen=True)
class ShowRequest:
    """The run whose settings `harness show` shows."""

    suite: str | None = None
    model: str | None = None
    settings: tuple[str, ...] = ()

    def settings_of(
        self, name: str, cls: Any, registry: Registry
    ) -> dict[str, settings_sources.Setting]:
        """Return the settings of a method, or of `stage.NAME`, that are not its class's own."""
        file = read_suite_file(self.suite) if self.suite and is_suite_file(self.suite) else None
        own = suite_class(self.suite, registry).settings if self.suite else {}
        sources = Sources(own, file.settings if file else {}, {}, bool(self.model))
        by_hand = parse_settings(self.settings, "--set")
        if name.startswith("stage."):
            return sources.of_stage(cls, name.removeprefix("stage."), by_hand)
        return sources.of_method(cls, name, by_hand)


def describe(kind: str, cls: type, registry: Registry, request: ShowRequest) -> str:
    """Return the text of `harness show` for a plugin."""
    name = cls.name  # type: ignore[attr-defined]
    origin = registry.origins[kind, name]
    lines = [f"{name} ({kind[:-1]}) from {origin.distribution} {origin.version}"]
    lines += [about(cls)]
    for attribute in ("paper", "version", "needs"):
        value = getattr(cls, attribute, None)
        if value:
            lines.append(
                f"{attribute}:"
                f" {', '.join(sorted(value)) if isinstance(value, frozenset) else value}"
            )
    if hasattr(cls, "__dataclass_fields__"):
        settings = request.settings_of(name, cls, registry) if kind == "methods" else {}
        lines += ["", *_option_lines(cls, settings, f"method {name}")]
    if kind == "methods":
        lines += _reward_lines(cls)
        lines += ["", *_tuning_lines(cls), *real_models.settings_lines(name)]
    if kind == "suites":
        lines += _stage_lines(cls)
    return "\n".join(lines).rstrip() + "\n"


def _reward_lines(cls: Any) -> list[str]:
    """Return where the reward model of a method comes from; nothing where it has none."""
    try:
        method = cls()
        named = "reward" in method.required() and method.labeller() is None
    except Exception:  # a third-party class with required options
        return []
    if not named:
        return []
    return ["", "reward model: trained on preferences, or published: --reward-model PATH_OR_HUB_ID"]


def _tuning_lines(cls: Any) -> list[str]:
    """Return what `[tune]` of a study searches if the study names no space."""
    from ..experiments.study.spaces import read_space

    if not cls.tuning_space:
        return ["tuning space: none", ""]
    space = read_space(cls.tuning_space, "tuning_space")
    rows = [f"  {key}: {axis}" for key, axis in space.items()]
    return ["tuning space, for [tune] of a study without one of its own", *rows, ""]


def describe_stage(name: str, registry: Registry, request: ShowRequest) -> str:
    """Return the text of `harness show stage.NAME`; raise UsageError for an unknown stage."""
    if name not in STAGES:
        raise unknown("stage", name, STAGES)
    cls, key = STAGES[name], f"stage.{name}"
    lines = [f"{name} (stage), set with --stage-set {name}.OPTION=VALUE", about(cls), ""]
    lines += _option_lines(cls, request.settings_of(key, cls, registry), key)
    return "\n".join([*lines, "", *real_models.settings_lines(key)]).rstrip() + "\n"


def _option_lines(
    cls: type, chosen: Mapping[str, settings_sources.Setting], where: str
) -> list[str]:
    """Return a table of options: the value in use, its source, and the help."""
    options = options_of(cls)
    if not options:
        return ["no options"]
    plain = settings_sources.values_of(chosen)
    values = vars(build(cls, plain, where)) if chosen else {}
    rows = [("option", "value", "from", "type", "help")]
    for o in options.values():
        origin = chosen[o.name].origin if o.name in chosen else settings_sources.DEFAULT
        rows.append((o.name, str(values.get(o.name, o.default)), origin, o.type, o.help))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]


def _stage_lines(cls: Any) -> list[str]:
    """Return the options of every stage, with the values that a suite recommends."""
    lines = ["", "stages (set with --stage-set STAGE.OPTION=VALUE)"]
    for stage, options_cls in STAGES.items():
        chosen = Sources(cls.settings).of_stage(options_cls, stage, {})
        rows = _option_lines(options_cls, chosen, f"stage.{stage}")
        lines += [f"  {stage}", *(f"    {row}" for row in rows)]
    return lines

"""Text for the terminal: the result of a run, and the description of a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..api.registry import Registry
from ..api.resolve import recommended, suite_class
from ..core.errors import unknown
from ..core.options import about, options_of
from ..core.run_folder import read_rows
from ..core.settings import STAGES
from ..core.suite_file import is_suite_file, read_suite_file

if TYPE_CHECKING:
    from rich.text import Text

    from ..experiments.run import Outcome

SAMPLES_SHOWN, SAMPLE_CHARACTERS = 2, 400
EXACT_KL = "rao-blackwell"  # the estimator from the log-probabilities of every token
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
    for sample in read_rows(outcome.folder / "samples.jsonl")[:SAMPLES_SHOWN]:
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
    for row, text, gold in (("baseline", "baseline", "baseline_gold"), (method, "answer", "gold")):
        table.add_row(row, f"{sample[gold]:.2f}", printable(sample[text][:SAMPLE_CHARACTERS]))
    return table


def printable(text: str) -> Text:
    """Return model or user text as it may go to a terminal: no control characters, no markup."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() or c == "\n" else " " for c in text))


def _lines(r: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the panel: at most eight, and one more where phases differ in memory."""
    return [*_quality(r["evaluation"]), *_cost(r["cost"])]


def _quality(e: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of the evaluation; the baseline is the start checkpoint's answers."""
    scores = [
        f"{label} {e[name]['mean']:.3f} (baseline {e['baseline_' + name]:.3f})"
        for name, label in (("accuracy", "accuracy"), ("proxy", "proxy reward"))
        if name in e
    ]
    own = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in e.get("suite", {}).items()]
    own += [f"pass@{k} {found['mean']:.3f}" for k, found in e.get("pass_at_k", {}).items()]
    if "rouge" in e:
        own.append("ROUGE-L " + f"{e['rouge']['rougeL']:.3f}")
    if e.get("curve"):
        own.append(f"{len(e['curve'])} snapshots")
    estimated = "" if e["kl_estimator"] == EXACT_KL else ", estimated"
    lines = [
        (
            "win-rate vs baseline",
            f"{_interval(e['win_rate'], 3)}  on {e['prompts']} {e['split']} prompts",
        ),
        ("gold reward", f"{e['gold']['mean']:.3f} (baseline {e['baseline_gold']:.3f})"),
        ("other scores", ", ".join(scores)),
        ("KL", f"{_interval(e['kl'], 2)} nats{estimated}"),
        (
            "length",
            f"{e['length']['mean']:.1f} tokens (baseline {e['baseline_length']:.1f}),"
            f" {e['eos_rate']:.0%} of the answers complete",
        ),
        ("also", ", ".join(own)),
    ]
    return [(label, value) for label, value in lines if value]


def _cost(cost: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the cost of training and of the shared stages, and the peak memory."""
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
    if len(set(peaks.values())) > 1:
        lines.append(("peak memory", ", ".join(f"{name} {peak}" for name, peak in peaks.items())))
    return lines


def _interval(e: dict[str, float], digits: int) -> str:
    return f"{e['mean']:.{digits}f} \\[{e['low']:.{digits}f}, {e['high']:.{digits}f}]"


def describe(kind: str, cls: type, registry: Registry, suite: str | None) -> str:
    """Return what `harness show` prints of a plugin."""
    origin = registry.origins[kind, cls.name]  # type: ignore[attr-defined]
    lines = [f"{cls.name} ({kind[:-1]}) from {origin.distribution} {origin.version}"]  # type: ignore[attr-defined]
    lines += [about(cls)]
    for attribute in ("paper", "version", "needs"):
        value = getattr(cls, attribute, None)
        if value:
            lines.append(
                f"{attribute}:"
                f" {', '.join(sorted(value)) if isinstance(value, frozenset) else value}"
            )
    advised = _advice(kind, cls, registry, suite)
    if hasattr(cls, "__dataclass_fields__"):
        lines += ["", *_option_lines(cls, advised, suite)]
    if kind == "suites":
        lines += _stage_lines(cls)
    return "\n".join(lines) + "\n"


def describe_stage(name: str) -> str:
    """Return what `harness show stage.NAME` prints; raise UsageError for a stage that does not
    exist.
    """
    if name not in STAGES:
        raise unknown("stage", name, STAGES)
    text = about(STAGES[name])
    lines = [f"{name} (stage), set with --stage-set {name}.OPTION=VALUE", text, ""]
    return "\n".join([*lines, *_option_lines(STAGES[name], {}, None)]) + "\n"


def _advice(kind: str, cls: Any, registry: Registry, suite: str | None) -> dict[str, Any]:
    if kind != "methods" or suite is None:
        return {}
    layers = [suite_class(suite, registry).settings]
    if is_suite_file(suite):
        layers.append(read_suite_file(suite).settings)
    return recommended(layers, cls, cls.name)


def _option_lines(cls: type, advised: dict[str, Any], suite: str | None) -> list[str]:
    options = options_of(cls)
    if not options:
        return ["no options"]
    width = max(map(len, options))
    lines = [f"{'option':<{width}}  {'type':<12} {'default':<10} help"]
    for option in options.values():
        told = f" [{suite}: {advised[option.name]}]" if option.name in advised else ""
        lines.append(
            f"{option.name:<{width}}  {option.type:<12} {option.default!s:<10} {option.help}{told}"
        )
    return lines


def _stage_lines(cls: Any) -> list[str]:
    lines = [
        "",
        "stages (set with --stage-set STAGE.OPTION=VALUE; the suite's own values in brackets)",
    ]
    for stage, options_cls in STAGES.items():
        own = cls.settings.get(f"stage.{stage}", {})
        lines.append(f"  {stage}")
        for option in options_of(options_cls).values():
            told = f" [{own[option.name]}]" if option.name in own else ""
            lines.append(
                f"    {option.name:<15} {option.type:<8} {option.default!s:<9} {option.help}{told}"
            )
    return lines

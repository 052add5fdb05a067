"""What a person sees on the terminal: the result of a run, and what a plugin is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..api.registry import Registry
from ..api.resolve import recommended, suite_class
from ..core.errors import unknown
from ..core.options import options_of
from ..core.run_folder import read_rows
from ..core.settings import STAGES
from ..core.suite_file import is_suite_file, read_suite_file

if TYPE_CHECKING:
    from rich.text import Text

    from ..experiments.run import Outcome

SAMPLES_SHOWN, SAMPLE_CHARACTERS = 2, 400
STAGE_FIGURES = {
    "sft": ("demonstrations", "steps", "loss"),
    "preferences": ("prompts", "asked", "label_ceiling"),
    "reward_model": ("heldout_accuracy",),
    "ai_preferences": ("labeller", "asked", "position_consistency"),
    "ai_reward_model": ("heldout_accuracy",),
}


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
    title += " (finished before)" if outcome.reused else ""
    console = Console()
    console.print(Panel(grid, title=title, subtitle=str(outcome.folder), expand=False))
    for sample in read_rows(outcome.folder / "samples.jsonl")[:SAMPLES_SHOWN]:
        console.print(_sample(sample, r["method"]))


def _sample(sample: dict[str, Any], method: str) -> Any:
    """Return a prompt with the answers of SFT and of the method beside each other."""
    from rich.table import Table

    table = Table(
        title=printable(sample["prompt"][-SAMPLE_CHARACTERS:]),
        title_justify="left",
        show_header=False,
    )
    for who, text, gold in (("sft", "sft", "sft_gold"), (method, "answer", "gold")):
        table.add_row(who, f"{sample[gold]:.2f}", printable(sample[text][:SAMPLE_CHARACTERS]))
    return table


def printable(text: str) -> Text:
    """Return model or user text as it may go to a terminal: no control characters, no markup."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() or c == "\n" else " " for c in text))


def _lines(r: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [*_quality(r["evaluation"]), *_cost(r["cost"], r["evaluation"]["inference"]), *_path(r)]
    for stage, figures in STAGE_FIGURES.items():
        info = r["artifacts"].get(stage, {})
        told = ", ".join(
            f"{name.replace('_', ' ')} {info[name]}"
            for name in figures
            if info.get(name) is not None
        )
        if told:
            lines.append((stage.replace("_", " "), told))
    return lines


def _quality(e: dict[str, Any]) -> list[tuple[str, str]]:
    win, kl, length = e["win_rate"], e["kl"], e["length"]
    beside = (
        f"plain {e['kl_plain']['mean']:.2f}"
        if "kl_plain" in e
        else f"bound {e.get('kl_bound', float('nan')):.2f}"
    )
    lines = [
        ("win-rate vs SFT", f"{_interval(win, 3)}  on {e['prompts']} {e['split']} prompts"),
        ("gold reward", f"{e['gold']['mean']:.3f}  (SFT {e['reference_gold']:.3f})"),
        ("KL", f"{_interval(kl, 2)} nats ({e['kl_estimator']}; {beside})"),
        ("length", f"{length['mean']:.1f} tokens  (SFT {e['reference_length']:.1f})"),
        ("answers", f"{e['eos_rate']:.0%} ended by themselves, {e['distinct']:.0%} distinct"),
    ]
    for name, label in (("accuracy", "accuracy"), ("proxy", "proxy reward")):
        if name in e:
            lines.insert(2, (label, f"{e[name]['mean']:.3f}  (SFT {e['reference_' + name]:.3f})"))
    lines += [
        (name.replace("_", " "), f"{value:.4g}") for name, value in e.get("suite", {}).items()
    ]
    if "rouge" in e:
        lines.append(
            (
                "ROUGE-1/2/L",
                " / ".join(f"{e['rouge'][k]:.3f}" for k in ("rouge1", "rouge2", "rougeL")),
            )
        )
    for p in e.get("curve", ()):
        proxy = f"proxy {p['proxy']:.2f}  " if "proxy" in p else ""
        told = f"gold {p['gold']:.2f}  {proxy}KL {p['kl']:.2f}  length {p['length']:.1f}"
        lines.append((f"at step {p['step']:.0f}", f"{told}  win-rate {p['win_rate']:.3f}"))
    return lines


def _cost(cost: dict[str, Any], inference: dict[str, float]) -> list[tuple[str, str]]:
    own, shared = cost["method"], cost["shared_total"]
    models = ", ".join(f"{role} {m['parameters'] / 1e6:.2f}M" for role, m in cost["models"].items())
    reused = f"  (reused: {', '.join(cost['reused_stages'])})" if cost["reused_stages"] else ""
    ai = f", {cost['ai_labels']} AI labels" if cost["ai_labels"] else ""
    per_answer = (
        f"{inference['flops_per_answer']:.3g} FLOPs, {inference['tokens_per_answer']:.1f} tokens"
    )
    return [
        (
            "method cost",
            f"{own['seconds']:.1f} s ({own['cpu_seconds']:.1f} CPU s), {own['flops']:.3g} FLOPs",
        ),
        ("", f"{own['reward_queries']} reward queries"),
        ("method tokens", f"{own['tokens_generated']} generated, {own['tokens_trained']} trained"),
        ("models held", models or "none"),
        ("per answer", f"{per_answer}, {inference['reward_queries_per_answer']:g} reward queries"),
        (
            "shared stages",
            (
                f"{shared['seconds']:.1f} s, {shared['flops']:.3g} FLOPs, {cost['labels']}"
                f" labels{ai}{reused}"
            ),
        ),
        ("peak memory", _peaks(cost["phases"])),
    ]


def _path(r: dict[str, Any]) -> list[tuple[str, str]]:
    """Return on which path of computation a run was, and what was looked up instead of computed."""
    ran, own = r["runtime"], r["cost"]["method"]
    once = {True: "once", False: "for every completion (the plain path)"}
    read = (
        once[ran["prompt_cached_once"]]
        if ran.get("cache_kept", True)
        else "anew for every token (no cache)"
    )
    told = f"prompts scored {once[ran['prompt_computed_once']]}, read {read} in rollouts"
    lines = [("computed", f"on {ran['device']}, {ran['threads']} threads; {told}")]
    if own["flops_reused"]:
        spent = sum(kind["seconds"] for kind in ran["reuse"].values())
        share = own["flops_reused"] / own["flops"]
        lines.append(
            (
                "looked up",
                f"{share:.0%} of the method's FLOPs; making what was not there took {spent:.1f} s",
            )
        )
    return lines


def _interval(e: dict[str, float], digits: int) -> str:
    return f"{e['mean']:.{digits}f} \\[{e['low']:.{digits}f}, {e['high']:.{digits}f}]"


def _peaks(phases: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {c['peak_memory'] / 2**20:.0f} MiB"
        for name, c in phases.items()
        if c["peak_memory"]
    )


def describe(kind: str, cls: type, registry: Registry, suite: str | None) -> str:
    """Return what `harness show` prints of a plugin."""
    origin = registry.origins[kind, cls.name]  # type: ignore[attr-defined]
    lines = [f"{cls.name} ({kind[:-1]}) from {origin.distribution} {origin.version}"]  # type: ignore[attr-defined]
    lines += [(cls.__doc__ or "").strip()]
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
    about = (STAGES[name].__doc__ or "").strip()
    lines = [f"{name} (stage), set with --stage-set {name}.OPTION=VALUE", about, ""]
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

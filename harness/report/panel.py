"""What a person sees on the terminal: the result of a run, and what a plugin is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..options import options_of
from ..registry import Registry
from ..spec import STAGES, recommended, suite_class

if TYPE_CHECKING:
    from ..run import Outcome

STAGE_FIGURES = {
    "sft": ("demonstrations", "steps", "loss"),
    "preferences": ("prompts", "labels", "label_ceiling"),
    "reward_model": ("heldout_accuracy",),
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
    title = f"{r['method']} on {r['suite']}, seed {r['seed']}" + (" (finished before)" if outcome.reused else "")
    Console().print(Panel(grid, title=title, subtitle=str(outcome.folder), expand=False))


def _lines(r: dict[str, Any]) -> list[tuple[str, str]]:
    e, own, cost = r["evaluation"], r["cost"]["method"], r["cost"]
    win = e["win_rate"]
    kl = f"{e['kl']['mean']:.2f} \\[{e['kl']['low']:.2f}, {e['kl']['high']:.2f}] nats ({e['kl_estimator']}"
    kl += f"; plain {e['kl_plain']['mean']:.2f})" if "kl_plain" in e else f"; bound {e['kl_bound']:.2f})" if "kl_bound" in e else ")"
    lines = [
        ("win-rate vs SFT", f"{win['mean']:.3f} \\[{win['low']:.3f}, {win['high']:.3f}]  on {e['prompts']} {e['split']} prompts"),
        ("gold reward", f"{e['gold']['mean']:.3f}  (SFT {e['reference_gold']:.3f})"),
        ("proxy reward", f"{e['proxy']['mean']:.3f}"),
        ("KL", kl),
        ("length", f"{e['length']['mean']:.1f} tokens  (SFT {e['reference_length']:.1f});  ended {e['eos_rate']:.0%};  distinct {e['distinct']:.0%}"),
    ]  # fmt: skip
    if "rouge" in e:
        lines.append(("ROUGE-1/2/L", " / ".join(f"{e['rouge'][k]:.3f}" for k in ("rouge1", "rouge2", "rougeL"))))
    lines += [
        ("method cost", f"{own['seconds']:.1f} s, {own['flops']:.3g} FLOPs, {own['tokens_generated']} tokens generated, "
         f"{own['tokens_trained']} trained, {own['reward_queries']} reward queries"),
        ("models held", ", ".join(f"{role} {m['parameters'] / 1e6:.2f}M" for role, m in cost["models"].items()) or "none"),
        ("per answer", f"{e['inference']['flops_per_answer']:.3g} FLOPs, {e['inference']['tokens_per_answer']:.1f} tokens, "
         f"{e['inference']['reward_queries_per_answer']:g} reward queries"),
        ("shared stages", f"{cost['shared_total']['seconds']:.1f} s, {cost['shared_total']['flops']:.3g} FLOPs, {cost['labels']} labels"
         + (f"  (reused: {', '.join(cost['reused_stages'])})" if cost["reused_stages"] else "")),
        ("peak memory", _peaks(cost["phases"])),
    ]  # fmt: skip
    for stage, figures in STAGE_FIGURES.items():
        info = r["artifacts"].get(stage, {})
        told = ", ".join(f"{name.replace('_', ' ')} {info[name]}" for name in figures if info.get(name) is not None)
        if told:
            lines.append((stage.replace("_", " "), told))
    return lines


def _peaks(phases: dict[str, Any]) -> str:
    return ", ".join(f"{name} {c['peak_memory'] / 2**20:.0f} MiB" for name, c in phases.items() if c["peak_memory"])


def describe(kind: str, cls: type, registry: Registry, suite: str | None) -> str:
    """Return what `harness show` prints of a plugin."""
    origin = registry.origins[kind, cls.name]  # type: ignore[attr-defined]
    lines = [f"{cls.name} ({kind[:-1]}) from {origin.distribution} {origin.version}"]  # type: ignore[attr-defined]
    lines += [(cls.__doc__ or "").strip()]
    for attribute in ("paper", "version", "needs"):
        value = getattr(cls, attribute, None)
        if value:
            lines.append(f"{attribute}: {', '.join(sorted(value)) if isinstance(value, frozenset) else value}")
    advised = _advice(kind, cls, registry, suite)
    if hasattr(cls, "__dataclass_fields__"):
        lines += ["", *_option_lines(cls, advised, suite)]
    if kind == "suites":
        lines += _stage_lines(cls)
    return "\n".join(lines) + "\n"


def _advice(kind: str, cls: Any, registry: Registry, suite: str | None) -> dict[str, Any]:
    if kind != "methods" or suite is None:
        return {}
    return recommended([suite_class(suite, registry).settings], cls, cls.name)


def _option_lines(cls: type, advised: dict[str, Any], suite: str | None) -> list[str]:
    options = options_of(cls)
    if not options:
        return ["no options"]
    width = max(map(len, options))
    lines = [f"{'option':<{width}}  {'type':<12} {'default':<10} help"]
    for option in options.values():
        told = f" [{suite}: {advised[option.name]}]" if option.name in advised else ""
        lines.append(f"{option.name:<{width}}  {option.type:<12} {option.default!s:<10} {option.help}{told}")
    return lines


def _stage_lines(cls: Any) -> list[str]:
    lines = ["", "stages (set with --stage-set STAGE.OPTION=VALUE; the suite's own values in brackets)"]
    for stage, options_cls in STAGES.items():
        own = cls.settings.get(f"stage.{stage}", {})
        lines.append(f"  {stage}")
        for option in options_of(options_cls).values():
            told = f" [{own[option.name]}]" if option.name in own else ""
            lines.append(f"    {option.name:<15} {option.type:<8} {option.default!s:<9} {option.help}{told}")
    return lines

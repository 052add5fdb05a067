"""Draw the curves of speed_curves.csv as small multiples: works down, what is changed across."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LABELS = {
    "group": "completions per prompt",
    "prompt": "prompt tokens",
    "completion": "completion tokens, at most",
    "batch": "batch",
    "size": "model, M parameters",
}
SIDES = {  # colours that colour-blind readers tell apart; markers and line styles for print
    "peers": ("TRL / generate", "#D55E00", "o", "-"),
    "ours": ("harness", "#0072B2", "s", "-"),
}
COSTS = {
    "ms": ("CPU ms per step", "speed_curves.png"),
    "us": ("CPU us per real token", "speed_curves_tokens.png"),
}


def draw(points: list[dict[str, str]], folder: Path) -> None:
    """Write one figure per kind of cost."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    works = list(dict.fromkeys(p["work"] for p in points))
    axes = [a for a in LABELS if any(p["axis"] == a for p in points)]
    for cost, (title, name) in COSTS.items():
        whole, panels = plt.subplots(
            len(works),
            len(axes),
            figsize=(2.5 * len(axes), 2.2 * len(works)),
            sharey="row",
            squeeze=False,
        )
        for i, work in enumerate(works):
            for j, axis in enumerate(axes):
                some = [p for p in points if p["work"] == work and p["axis"] == axis]
                _panel(panels[i][j], some, cost)
                panels[i][j].set_xlabel(
                    LABELS[axis] if some and not _has(points, works[i + 1 :], axis) else "",
                    fontsize=8,
                )
            first = next(
                j for j, axis in enumerate(axes) if _has(points, [work], axis)
            )  # DPO has no groups
            panels[i][first].set_ylabel(f"{work}: {title}", fontsize=8)
            panels[i][first].tick_params(labelleft=True)
        handles = {h.get_label(): h for row in panels for p in row for h in p.get_lines()}
        whole.legend(
            handles.values(), handles.keys(), loc="upper center", ncols=len(handles), frameon=False
        )
        whole.tight_layout(rect=(0, 0, 1, 1 - 0.25 / (2.2 * len(works)) * 1.4))
        whole.savefig(folder / name, dpi=150)
        plt.close(whole)


def _has(points: list[dict[str, str]], works: list[str], axis: str) -> bool:
    """Return whether any of these works was measured along an axis."""
    return any(p["work"] in works and p["axis"] == axis for p in points)


def _panel(panel: Any, points: list[dict[str, str]], cost: str) -> None:
    """Draw one panel; none where the work has no such axis."""
    if not points:
        panel.set_visible(False)
        return
    for side, (label, colour, marker, style) in SIDES.items():
        some = sorted((number(p["x"]), float(p[cost])) for p in points if p["side"] == side)
        panel.plot(
            *zip(*some, strict=True),
            color=colour,
            marker=marker,
            ls=style,
            ms=4,
            lw=1.3,
            label=label,
        )
    roof = sorted((number(p["x"]), float(p[f"roof_{cost}"])) for p in points if p["side"] == "ours")
    panel.plot(*zip(*roof, strict=True), color="black", ls="--", lw=1, label="roofline")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks([x for x, _ in roof], [f"{x:g}" for x, _ in roof])
    panel.minorticks_off()
    panel.tick_params(labelsize=7)
    panel.grid(True, which="major", lw=0.3, color="0.8")


def number(x: str) -> float:
    """Return the place of a point on its axis; a model's is its size."""
    return float(x.removesuffix("M"))

"""Pictures of records: the win-rate-against-KL frontier, and gold and proxy along training. Readable in print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import Refused, UsageError
from .select import Filter, Record, rows_of
from .select import select as choose

MARKERS = "osD^vP*X<>"
# Okabe and Ito's colours: the colour-blind can tell them apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def frontier(results: Path, suite: str | None, output: Path, study: str | None = None) -> None:
    """Draw the runs of a suite; two more panels show reward and length against sqrt(KL) where runs kept snapshots."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise Refused("Plots need matplotlib: pip install 'alignment-harness[plots]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = choose(results, Filter(suite, study)).good
    if not good:
        raise UsageError(f"There is no finished run below {results} to draw.")
    curves = [r for r in good if r["evaluation"].get("curve")]
    panels = 3 if curves else 1
    figure, axes = pyplot.subplots(1, panels, figsize=(5 * panels + 2.2, 4.8), squeeze=False)
    _draw_frontier(axes[0][0], good)
    if curves:
        _draw_curves(axes[0][1], axes[0][2], curves)
    figure.tight_layout()
    try:
        figure.savefig(output, dpi=150)
    except (OSError, ValueError) as error:
        raise Refused(f"Cannot write {output}: {error}.") from error
    pyplot.close(figure)


def _draw_frontier(axis: Any, records: list[Record]) -> None:
    labels = _names(records)
    for i, label in enumerate(dict.fromkeys(labels)):
        for j, r in enumerate(r for r, own in zip(records, labels, strict=True) if own == label):
            e = r["evaluation"]
            win, kl = e["win_rate"], e["kl"]["mean"]
            error = [[win["mean"] - win["low"]], [win["high"] - win["mean"]]]
            style = {"marker": MARKERS[i % len(MARKERS)], "color": COLOURS[i % len(COLOURS)]}
            axis.errorbar(
                kl, win["mean"], yerr=error, label=label if j == 0 else None, capsize=3, linestyle="", **style
            )
    axis.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xlabel("KL(policy || SFT), nats per completion")
    axis.set_ylabel("gold win-rate over SFT, 95 % interval")
    few = len(set(labels)) <= 6
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    axis.legend(fontsize=7, **({} if few else beside))


def _draw_curves(reward: Any, length: Any, records: list[Record]) -> None:
    """Draw gold and proxy, and the length of answers, from the start checkpoint (KL 0) along training."""
    for i, (r, label) in enumerate(zip(records, _names(records), strict=True)):
        e = r["evaluation"]
        names = [name for name in ("gold", "proxy", "length") if f"reference_{name}" in e]
        points = [{"kl": 0.0} | {name: e[f"reference_{name}"] for name in names}, *e["curve"]]
        root = [max(0.0, p["kl"]) ** 0.5 for p in points]
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        reward.plot(root, [p["gold"] for p in points], label=f"{label}: gold", **style)
        if "proxy" in names:
            reward.plot(root, [p["proxy"] for p in points], label=f"{label}: proxy", linestyle=":", **style)
        length.plot(root, [p["length"] for p in points], label=label, **style)
    for axis, name in ((reward, "reward"), (length, "length of an answer, tokens")):
        axis.set_xlabel("sqrt(KL), along training")
        axis.set_ylabel(name)
        axis.legend(fontsize=7, handlelength=4)


def _names(records: list[Record]) -> list[str]:
    names = {r["folder"]: row.name for row in rows_of(records) for r in row.records}
    return [names[r["folder"]] for r in records]

"""Draw the README's picture, win-rate against KL of eight methods, from results/summarization.csv
(needs matplotlib):

python results/readme_picture.py
"""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent
RENAMED = {"sft": "start"}  # in a file made before the method `start` had this name
KL_END = 7.0  # nats; rlaif, at 11, is left out
LABELS = {  # the method, and where its label stands: points right of and above its mean
    "start": (8, -12),
    "best_of_n": (9, 2),
    "ppo": (9, 3),
    "grpo": (9, -4),
    "dpo": (8, -11),
    "kto": (-6, 9),
    "ipo": (8, -11),
    "simpo": (7, -11),
}
COLOURS = ("#555555", "#0072b2", "#d55e00", "#cc79a7", "#009e73", "#e69f00", "#56b4e9", "#000000")


def seeds_of(file: Path) -> dict[str, list[tuple[float, float]]]:
    """Return KL and win-rate of every run, by method; the file calls a run `ppo, seed 0`."""
    runs = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            name, _, seed = row["method"].rpartition(", seed ")
            method = RENAMED.get(name, name)
            if seed and method in LABELS:
                runs[method].append((float(row["kl"]), float(row["win_rate"])))
    return runs


def draw(runs: dict[str, list[tuple[float, float]]], output: Path) -> None:
    """Draw a large point for the mean of each method, and a small one for each seed."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), dpi=150)
    axes.axhline(0.5, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
    for (method, offset), colour in zip(LABELS.items(), COLOURS, strict=True):
        kl, win_rate = zip(*runs[method], strict=True)
        axes.scatter(kl, win_rate, s=10, color=colour, alpha=0.35, linewidths=0)
        mean = (fmean(kl), fmean(win_rate))
        axes.scatter(*mean, s=48, color=colour, zorder=3)
        axes.annotate(
            method,
            mean,
            xytext=offset,
            textcoords="offset points",
            color=colour,
            fontsize=10,
            zorder=4,
        )
    axes.set_xlim(-0.15, KL_END)
    axes.set_ylim(0.4, 1.0)
    axes.set_xlabel("KL to the start checkpoint (nats per answer)")
    axes.set_ylabel("win-rate vs baseline")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(output, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(seeds_of(RESULTS / "summarization.csv"), RESULTS / "readme.png")

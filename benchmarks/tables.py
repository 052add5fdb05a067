"""Keep measured rows in speed.csv and speed_curves.csv, and make speed.md of them."""

from __future__ import annotations

import csv
import platform
import subprocess
from pathlib import Path
from typing import Any

import figure

KEY = ("part", "work", "size", "batch", "group", "prompt", "completion")
TITLES = {
    "main": "## Prompts of 64 tokens, completions of at most 32, groups of 8",
    "unfavourable": "## Where sharing prompts cannot help: prompts of 8 tokens, completions of at most 128, no groups",
}
ABOUT = {
    "main": "`ppo` draws one completion per prompt, as TRL's does; `ppo_group` 4 prompts x 8 completions; a 4 is for 4 "
    "epochs. `dpo_precomputed` has the reference's log-probabilities from before the clock starts, on both sides.",
    "unfavourable": "One completion per prompt; GRPO and RLOO need 2, a group of one has no advantage. Pairs have two "
    "by nature.",
}
WHY = (
    "Where a step has little to share - one completion per prompt, or a model so large that its products of matrices "
    "are most of the work - the peer wastes less. Much above 60 % of the roofline is out of reach on one core: "
    "normalisation, activation, softmax and the optimiser are no products of matrices."
)
HEAD = (
    "| work | model | batch | G | peer | ours | peer / ours [turns] | aimed at | roofline reached, peer / ours | peak "
    "MiB, peer / ours | ours / peer (aimed at) | grown, peer / ours | mean length, peer / ours |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def commit() -> str:
    """Return the commit of the harness that is measured; a plus says that files below harness/ or plugins/ differ."""
    here = Path(__file__).parent.parent
    told = ["git", "-C", str(here)]
    name = subprocess.run([*told, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        [*told, "status", "--porcelain", "harness", "plugins"], capture_output=True, text=True
    ).stdout.strip()
    return (name or "unknown") + ("+" if changed else "")


def read(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is none."""
    if not file.exists():
        return []
    with open(file, encoding="utf-8", newline="") as told:
        return list(csv.DictReader(told))


def save(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows, all with the same columns."""
    with open(file, "w", encoding="utf-8", newline="") as told:
        writer = csv.DictWriter(told, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def same(a: dict[str, Any], b: dict[str, Any], key: tuple[str, ...] = KEY) -> bool:
    """Return whether two rows are about the same."""
    return all(str(a[name]) == str(b[name]) for name in key)


def has(folder: Path, row: dict[str, Any]) -> bool:
    """Return whether a row was measured."""
    return any(same(row, other) for other in read(folder / "speed.csv"))


def keep(folder: Path, row: dict[str, Any]) -> None:
    """Add a measured row, in the place of one about the same."""
    file = folder / "speed.csv"
    save(file, [other for other in read(file) if not same(row, other)] + [row])


def write(folder: Path, works: list[str]) -> None:
    """Write speed.md, and the figures, of what was measured."""
    rows, points = read(folder / "speed.csv"), read(folder / "speed_curves.csv")
    lines = [*_preface(rows + points), ""]
    for part, title in TITLES.items():
        some = [r for r in rows if r["part"] == part]
        if some:
            some.sort(key=lambda r: (works.index(r["work"]), int(r["size"].removesuffix("M"))))
            lines += [title, "", ABOUT[part], "", *HEAD, *map(line, some), "", *missed(some), ""]
    if points:
        figure.draw(points, folder)
        lines += [*curve_lines(points), ""]
    (folder / "speed.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _preface(rows: list[dict[str, str]]) -> list[str]:
    rates = [float(r["gflops"]) for r in rows]
    commands = sorted({r["command"] for r in rows})
    return [
        f"One core of {_processor()}. Medians of CPU seconds, both sides taking turns. The roofline is the time that "
        "the FLOPs which a step needs (each prompt once, each real completion token once, backward twice forward: "
        "benchmarks/roofline.py) would take at the rate of a product of 1024 x 1024 matrices, measured in the same "
        f"processes: {min(rates):.0f} to {max(rates):.0f} GFLOP/s. Peak memory is the process's, with imports; grown "
        "is by how much the steps raised it above what was resident before the first, models and data included.",
        "",
        f"Of commit {', '.join(sorted({r['commit'] for r in rows}))}; load of the machine {_range(rows, 'load')}; made "
        f"by {'; '.join(f'`{c}`' for c in commands)}.",
    ]


def _range(rows: list[dict[str, str]], name: str) -> str:
    values = [float(r[name]) for r in rows]
    return f"{min(values):.1f} to {max(values):.1f}"


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    names = [x.split(":")[1].strip() for x in told.read_text().splitlines() if x.startswith("model name")]
    return names[0] if names else platform.machine()


def line(row: dict[str, str]) -> str:
    """Return a row of the table."""
    r = {k: float(row[k]) for k in row if k.startswith(("peer_", "ours_", "ratio")) or k == "goal"}
    unit, scale = ("us/token", 1e6) if row["work"] == "rollout" else ("ms/step", 1e3)
    memory = f"{r['ours_peak'] / r['peer_peak']:.2f}" + (f" ({row['memory_goal']})" if row["memory_goal"] else "")
    spread = f"[{r['ratio_min']:.2f} to {r['ratio_max']:.2f}]"
    group = {"dpo": "2", "dpo_precomputed": "2", "ipo": "2", "reward": "2", "kto": "1", "sft": "1"}.get(row["work"])
    group = "1" if row["work"] in ("ppo", "ppo4") else group or row["group"]
    return (
        f"| {row['work']} | {row['size']} | {row['batch']} | {group} | {r['peer_seconds'] * scale:.0f} {unit} | "
        f"{r['ours_seconds'] * scale:.0f} | {r['ratio']:.2f} {spread} | {r['goal']} | {r['peer_share']:.0%} / "
        f"{r['ours_share']:.0%} | {r['peer_peak']:.0f} / {r['ours_peak']:.0f} | {memory} | "
        f"{r['peer_peak'] - r['peer_before']:.0f} / {r['ours_peak'] - r['ours_before']:.0f} | "
        f"{r['peer_length']:.1f} / {r['ours_length']:.1f} |"
    )


def missed(rows: list[dict[str, str]]) -> list[str]:
    """Return one line that says which targets are missed, and what share of the roofline each would have taken."""
    slow = [
        f"{r['work']} {r['size']} {float(r['ratio']):.2f} of {r['goal']} "
        f"({float(r['ours_share']):.0%} of the roofline, at the target {float(r['peer_share']) * float(r['goal']):.0%})"
        for r in rows
        if _slow(r)
    ]
    large = [
        f"{r['work']} {r['size']} {float(r['ours_peak']) / float(r['peer_peak']):.2f} of {r['memory_goal']}"
        for r in rows
        if r["memory_goal"] and float(r["ours_peak"]) / float(r["peer_peak"]) > float(r["memory_goal"])
    ]
    told = [f"{what}: {', '.join(some)}." for what, some in (("speed", slow), ("peak memory", large)) if some]
    return [f"Missed in {' Missed in '.join(told)}{' ' + WHY if slow else ''}"] if told else ["No target is missed."]


def _slow(row: dict[str, str]) -> bool:
    return float(row["ratio"]) < float(row["goal"])


def curve_lines(points: list[dict[str, str]]) -> list[str]:
    """Return the section about the curves: the figures, and the share of the roofline reached at every point."""
    lines = [
        "## Curves",
        "",
        "Cost against one thing at a time, logarithmic axes; the roofline is dashed. All numbers are in "
        "speed_curves.csv.",
        "",
        "![CPU milliseconds per step](speed_curves.png)",
        "",
        "![CPU microseconds per real completion token](speed_curves_tokens.png)",
        "",
        "| work | against | at | peer ms/step | ours | peer / ours | us/token, peer / ours | roofline reached, peer / "
        "ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for work, axis, x in dict.fromkeys((p["work"], p["axis"], p["x"]) for p in points):
        some = {p["side"]: p for p in points if (p["work"], p["axis"], p["x"]) == (work, axis, x)}
        if len(some) < 2:
            continue
        peer, ours = ({k: float(some[side][k]) for k in ("ms", "us", "share")} for side in ("peers", "ours"))
        lines.append(
            f"| {work} | {axis} | {x} | {peer['ms']:.0f} | {ours['ms']:.0f} | {peer['ms'] / ours['ms']:.2f} | "
            f"{peer['us']:.0f} / {ours['us']:.0f} | {peer['share']:.0%} / {ours['share']:.0%} |"
        )
    return lines

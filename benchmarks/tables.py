"""Keep measured rows in speed.csv and speed_curves.csv, and make speed.md of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import figure
import report
import roofline

KEY = ("part", "work", "size", "batch", "group", "prompt", "completion")
TITLES = {
    "main": "## Prompts of 64 tokens, completions of at most 32, groups of 8",
    "unfavourable": (
        "## Where sharing prompts cannot help: prompts of 8 tokens, completions of at most 128, no"
        " groups"
    ),
}
ABOUT = {
    "main": (
        "`ppo` samples one completion per prompt, as TRL does; `ppo_group` samples 8 for each of"
        " 4 prompts. `ppo4` has 4 epochs. In `dpo_precomputed` both sides compute the reference's"
        " log-probabilities before the measurement starts."
    ),
    "unfavourable": (
        "One completion per prompt. GRPO and RLOO have 2, because a group of one has no advantage."
        " Pairs always have two."
    ),
}
LOADED = 2.0  # a load at which others computed too: the benchmark itself makes 1
HEAD = (
    (
        "| work | model | batch | G | peer | ours | peer / ours per step | per completion token |"
        " aimed at | roofline reached, peer / ours | peak MiB, peer / ours | ours / peer (aimed at)"
        " | grown, peer / ours | mean length, peer / ours | commit | turns x steps | load |"
    ),
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)
READ = (
    (
        "How to read a row: `commit` is the measured commit of the harness (with a plus: and"
        " local changes). `turns x steps` is the number of processes of each side, and of measured"
        " steps in each; the figures are medians over them. `load` is the machine's load in the"
        " minute before the end of the row. The benchmark alone has load 1; a load above"
        f" {LOADED:.0f} is bold, because other programs ran too. Compare rows of one commit and a"
        " low load. Other comparisons are rough."
    ),
    "",
    (
        "If completions are sampled, each side samples its own, and a row has two ratios. The one"
        " with the range over turns in brackets was measured; the target is for it. The other"
        " follows from the mean lengths. Fixed data are the same on both sides, in another order:"
        " a row has one ratio, and its length is the data's mean."
    ),
)
OUT = (
    "The roofline has no norms, activations, softmax or optimiser, because they are not matrix"
    " products. The largest share that a row reached is"
)


def read(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is none."""
    if not file.exists():
        return []
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def save(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows; what an earlier one did not record is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def same(a: dict[str, Any], b: dict[str, Any], key: tuple[str, ...] = KEY) -> bool:
    """Return whether two rows are about the same."""
    return all(str(a[name]) == str(b[name]) for name in key)


def row_about(folder: Path, row: dict[str, Any]) -> dict[str, str] | None:
    """Return the measured row about the same, None if there is none."""
    return next((other for other in read(folder / "speed.csv") if same(row, other)), None)


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
    report.write(folder / "speed.md", lines)


def _preface(rows: list[dict[str, str]]) -> list[str]:
    rates = [float(r["gflops"]) for r in rows]
    names, commands = _distinct(rows, "processor"), [f"`{c}`" for c in _distinct(rows, "command")]
    return [
        (
            f"One core of {' and '.join(names) or 'an unrecorded processor'}. Medians of CPU"
            " seconds; both sides of a row take turns, the curves' do not (see there). The"
            " roofline is the time that the FLOPs which a step needs (each prompt once, each real"
            " completion token once, backward twice forward: benchmarks/roofline.py) would take at"
            " the rate of a product of 1024 x 1024 matrices, measured in the same processes:"
            f" {min(rates):.0f} to {max(rates):.0f} GFLOP/s. Peak memory is the process's, with"
            " imports; grown is by how much the steps raised it above what was resident before the"
            " first, models and data included."
        ),
        "",
        *READ,
        "",
        _software(rows),
        "",
        f"Made by {'; '.join(commands)}.",
    ]


def _distinct(rows: list[dict[str, str]], name: str) -> list[str]:
    """Return what rows say of themselves in a column, once each; rows of before the column was say
    nothing.
    """
    return sorted({r[name] for r in rows if r.get(name)})


def _software(rows: list[dict[str, str]]) -> str:
    """Return the versions that rows were measured with, and which rows do not say."""
    peer = [r | {"software": r.get("software_peer", "")} for r in rows if "part" in r]
    peer += [r for r in rows if r.get("side") == "peers"]
    ours = [r | {"software": r.get("software_ours", "")} for r in rows if "part" in r]
    ours += [r for r in rows if r.get("side") == "ours"]
    sentences = [
        f"{name}: {'; '.join(_distinct(some, 'software'))}."
        for name, some in (("Peer", peer), ("Ours", ours))
        if _distinct(some, "software")
    ]
    silent = _distinct([r for r in peer + ours if not r.get("software")], "commit")
    if silent:
        sentences.append(
            f"Rows of {', '.join(silent)} did not record versions: what they ran with is known only"
            " as what constraints.txt and benchmarks/requirements*.txt ask for."
        )
    return " ".join(sentences)


def _range(rows: list[dict[str, str]], name: str) -> str:
    values = [float(r[name]) for r in rows]
    return f"{min(values):.1f} to {max(values):.1f}"


def ratios(row: dict[str, str]) -> tuple[str, str]:
    """Return peer / ours per step and per completion token, the measured one with its turns; "-"
    for fixed data.
    """
    ratio, low, high, peer, ours = (
        float(row[k]) for k in ("ratio", "ratio_min", "ratio_max", "peer_length", "ours_length")
    )
    measured = (
        f"{ratio:.2f} [{f'{low:.2f} to {high:.2f}' if int(row['turns']) > 1 else 'one turn'}]"
    )
    if row["work"] == "rollout":
        return f"{ratio * peer / ours:.2f}", measured
    return measured, f"{ratio * ours / peer:.2f}" if row["work"] in roofline.DRAWS else "-"


def line(row: dict[str, str]) -> str:
    """Return a row of the table."""
    r = {k: float(row[k]) for k in row if k.startswith(("peer_", "ours_")) or k == "goal"}
    unit, scale = ("us/token", 1e6) if row["work"] == "rollout" else ("ms/step", 1e3)
    memory = f"{r['ours_peak'] / r['peer_peak']:.2f}" + (
        f" ({row['memory_goal']})" if row["memory_goal"] else ""
    )
    group = {
        "dpo": "2",
        "dpo_precomputed": "2",
        "ipo": "2",
        "reward": "2",
        "kto": "1",
        "sft": "1",
    }.get(row["work"])
    group = "1" if row["work"] in ("ppo", "ppo4") else group or row["group"]
    drawn = row["work"] in roofline.DRAWS
    lengths = (
        f"{r['peer_length']:.1f} / {r['ours_length']:.1f}"
        if drawn
        else f"{r['ours_length']:.1f} nominal"
    )
    load = f"**{row['load']}**" if float(row["load"]) > LOADED else row["load"]
    return (
        f"| {row['work']} | {row['size']} | {row['batch']} | {group} |"
        f" {r['peer_seconds'] * scale:.0f} {unit} | {r['ours_seconds'] * scale:.0f} |"
        f" {' | '.join(ratios(row))} | {r['goal']} | {r['peer_share']:.0%} / {r['ours_share']:.0%}"
        f" | {r['peer_peak']:.0f} / {r['ours_peak']:.0f} | {memory} |"
        f" {r['peer_peak'] - r['peer_before']:.0f} / {r['ours_peak'] - r['ours_before']:.0f} |"
        f" {lengths} | {row['commit'][:8]} | {row['turns']} x {row['steps']} | {load} |"
    )


def missed(rows: list[dict[str, str]]) -> list[str]:
    """Return which targets are missed, a line and a reason each."""
    slow = [
        f"- {r['work']} {r['size']}, {float(r['ratio']):.2f} of {r['goal']}: {why(r)}."
        for r in rows
        if _slow(r)
    ]
    large = [
        f"{r['work']} {r['size']} {float(r['ours_peak']) / float(r['peer_peak']):.2f} of"
        f" {r['memory_goal']}"
        for r in rows
        if r["memory_goal"]
        and float(r["ours_peak"]) / float(r["peer_peak"]) > float(r["memory_goal"])
    ]
    lines = []
    if slow:
        most = max(float(r[f"{side}_share"]) for r in rows for side in ("peer", "ours"))
        lines += ["Missed in speed:", "", *slow, "", f"{OUT} {most:.0%}."]
    if large:
        lines += ["", f"Missed in peak memory: {', '.join(large)}."]
    return lines or ["No target is missed."]


def why(row: dict[str, str]) -> str:
    """Return what a row's own numbers say about why its target is missed."""
    ratio, goal, reached, most = (
        float(row[k]) for k in ("ratio", "goal", "ours_share", "ratio_max")
    )
    if int(row["turns"]) > 1 and most >= goal:
        return f"within the spread of its turns, {float(row['ratio_min']):.2f} to {most:.2f}"
    needed = reached * goal / ratio  # ours would take ratio / goal of its time
    if needed > 1:
        return (
            f"would need {needed:.0%} of the roofline, so it is impossible with the same matrix"
            " products"
        )
    alone = "; one turn, so the spread is unknown" if int(row["turns"]) == 1 else ""
    return (
        f"not explained by the roofline: {reached:.0%} of it is reached and {needed:.0%} would be"
        f" needed{alone}"
    )


def _slow(row: dict[str, str]) -> bool:
    return float(row["ratio"]) < float(row["goal"])


def curve_lines(points: list[dict[str, str]]) -> list[str]:
    """Return the section about the curves: the figures, and the share of the roofline reached at
    every point.
    """
    lines = [
        "## Curves",
        "",
        (
            "Cost against one quantity at a time, with logarithmic axes. The roofline is dashed."
            " All numbers are in speed_curves.csv. The sides do not take turns: for each work one"
            " process measures all points of the peer, and then another process all of ours. Each"
            " point has one warm-up step before the measured ones. A change of the machine between"
            " the two processes is part of the ratio. Each side samples its own lengths. Of commit"
            f" {', '.join(_distinct(points, 'commit'))}, load {_range(points, 'load')}."
        ),
        "",
        "![CPU milliseconds per step](speed_curves.png)",
        "",
        "![CPU microseconds per real completion token](speed_curves_tokens.png)",
        "",
        (
            "| work | against | at | peer ms/step | ours | peer / ours | us/token, peer / ours |"
            " roofline reached, peer / ours |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for work, axis, x in dict.fromkeys((p["work"], p["axis"], p["x"]) for p in points):
        some = {p["side"]: p for p in points if (p["work"], p["axis"], p["x"]) == (work, axis, x)}
        if len(some) < 2:
            continue
        peer, ours = (
            {k: float(some[side][k]) for k in ("ms", "us", "share")} for side in ("peers", "ours")
        )
        lines.append(
            f"| {work} | {axis} | {x} | {peer['ms']:.0f} | {ours['ms']:.0f} |"
            f" {peer['ms'] / ours['ms']:.2f} | {peer['us']:.0f} / {ours['us']:.0f} |"
            f" {peer['share']:.0%} / {ours['share']:.0%} |"
        )
    return lines

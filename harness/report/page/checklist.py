"""A draft of answers for a paper's checklist, from records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

from ..selection.filters import Record
from .sections import Section

Answer = tuple[str, str]


def checklist(
    sections: Sequence[Section], captions: Sequence[str], facts: Mapping[str, Any]
) -> list[Answer]:
    """Return questions with their answers; the captions of tables describe the intervals."""
    records = [r for section in sections for r in section.selection.records]
    good = [r for r in records if "failure" not in r]
    return [
        ("Error bars", "\n".join(dict.fromkeys(captions)) or "There is no finished run."),
        ("Seeds", _seeds(records)),
        ("Data", _data(sections, good)),
        ("Hyper-parameters", _hyper_parameters(records, facts["study"])),
        ("Compute", _compute(good, facts["environments"])),
        ("Failed runs", _failed(records, facts["study"])),
        ("Code", _code(facts)),
    ]


def _seeds(records: Sequence[Record]) -> str:
    counts: dict[tuple[str, str], set[int]] = {}
    for r in records:
        counts.setdefault((r["suite"], r["recipe"]), set()).add(int(r["seed"]))
    sizes = [len(seeds) for seeds in counts.values()]
    many = str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    return (
        f"{many} per row; they vary the order of prompts and pairs, rollouts, minibatches and the"
        " evaluated answers. Data, the SFT start checkpoint, preferences and reward models come"
        " from the shared seed and are the same."
    )


def _data(sections: Sequence[Section], good: Sequence[Record]) -> str:
    sizes = dict.fromkeys(
        f"{r['suite']}: {r['evaluation']['prompts']} {r['evaluation']['split']} prompts"
        for r in good
    )
    same = (
        "Within a table, start checkpoint, data, reward model, judge and sampling have the same"
        " digests"
    )
    apart = " (other runs have tables of their own)" if any(s.apart for s in sections) else ""
    return f"{'; '.join(sizes) or 'No finished run'}. {same}{apart}."


def _hyper_parameters(records: Sequence[Record], study: Mapping[str, Any] | None) -> str:
    tuning = study and study["tuning"]
    set_options = any(r.get("asked") for r in records)
    set_by_hand = (
        "Options set by hand are marked in the settings. All others are the methods' defaults."
    )
    defaults = set_by_hand if set_options else "Every option is the method's default."
    if not tuning:
        return f"{defaults} There was no search among these runs."
    return (
        f"Rows with a footnote were tuned: {tuning['trials']} random trials for each method and"
        f" suite, seed {tuning['seed']}; chosen: {tuning['rule']}. Other rows: {defaults}"
    )


def _compute(good: Sequence[Record], environments: Sequence[Mapping[str, str]]) -> str:
    parts = [
        r["cost"][name] for r in good for name in ("method", "evaluation") if name in r["cost"]
    ]
    hours, flops = fsum(c["cpu_seconds"] for c in parts) / 3600, fsum(c["flops"] for c in parts)
    machines = "; ".join(dict.fromkeys(e["machine"] for e in environments if e["machine"]))
    return (
        f"{len(good)} finished runs: {hours:.2f} CPU hours and {flops:.3g} FLOPs for training and"
        " evaluation, without shared stages and failed runs. The settings show the cost of each"
        f" row. Machines: {machines or 'not recorded'}."
    )


def _failed(records: Sequence[Record], study: Mapping[str, Any] | None) -> str:
    failed = sum("failure" in r for r in records)
    text = f"{failed} of {len(records)} runs failed. They are listed, and no mean includes them."
    if study and study["missing"]:
        text += f" {len(study['missing'])} of the study's {study['planned']} runs are missing."
    if study and study["refused"]:
        text += f" {len(study['refused'])} were refused; the reasons are listed."
    return text


def _code(facts: Mapping[str, Any]) -> str:
    commits = ", ".join(dict.fromkeys(e["commit"] for e in facts["environments"]))
    study = facts["study"]
    again = (
        f"harness study {study['name']}.toml, whose text is below, or the command"
        if study
        else "the command"
    )
    return (
        f"Commits: {commits or 'not recorded'}. To reproduce: {again} of each run in the"
        " provenance."
    )

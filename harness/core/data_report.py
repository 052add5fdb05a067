"""A report of the user's data: rows read, skipped, dropped and cut. It is shown once and
recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .plain_text import one_line

PLACES = 3  # first places of skipped rows that are kept
EXAMPLE = 80  # characters of an example
TOO_MANY_CUT = 0.05  # share of texts cut above which the report warns
TOO_MANY_UNKNOWN = 0.01  # share of tokens that are the unknown token above which it warns


@dataclass
class Skipped:
    """Rows that were skipped for one reason."""

    reason: str
    rows: int = 0
    first: list[str] = field(default_factory=list)  # the places of the first of them


@dataclass
class SourceReport:
    """What was read of one file, folder or data set."""

    name: str
    part: str  # train, validation or test
    rows: int = 0  # read, those that were skipped included
    used: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, place: str, reason: str) -> None:
        """Count a skipped row under its reason; values quoted in a reason do not tell reasons
        apart.
        """
        kind = _kind(reason)
        known = next((s for s in self.skipped if _kind(s.reason) == kind), None)
        if known is None:
            known = Skipped(reason)
            self.skipped.append(known)
        known.rows += 1
        if len(known.first) < PLACES:
            known.first.append(place)


@dataclass
class Overlap:
    """Prompts that stood in two parts, and were dropped from the one that trains."""

    kept: str  # the part that keeps them
    dropped: str  # the part that lost rows
    prompts: int
    rows: int  # dropped
    places: tuple[str, str]  # of the first: where it is kept, where it was dropped
    example: str  # the beginning of the first prompt


@dataclass
class Cut:
    """How many texts of one kind are longer than their limit."""

    option: str  # that sets the limit
    limit: int  # tokens
    texts: int
    cut: int
    enough: int  # a limit, in tokens, that leaves 95 % of the texts whole
    longest: int  # tokens

    @property
    def share(self) -> float:
        """The share of texts that are cut."""
        return self.cut / self.texts if self.texts else 0.0


@dataclass
class Measured:
    """What the tokenizer makes of the rows: of all, or of the first of each part."""

    all_rows: bool
    template: bool  # the tokenizer's chat template renders the prompts
    prompts: Cut
    completions: Cut
    pairs: int = 0
    equal_pairs: int = 0  # pairs of equal token ids, which are dropped
    unknown: float = 0.0  # share of the tokens that are the tokenizer's unknown token
    form: str = ""  # how the prompts are posed, in words
    largest: int = 0  # the largest token id
    judged_prompts: Cut | None = None  # of the rows that only a judge is trained on
    judged_completions: Cut | None = None


@dataclass
class DataReport:
    """Everything that was read, skipped, dropped and cut of a suite's data."""

    sources: list[SourceReport] = field(default_factory=list)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)  # rows and prompts by split
    overlaps: list[Overlap] = field(default_factory=list)
    unused: str = ""  # rows that this run withholds from training for nothing
    measured: Measured | None = None
    lowered: bool = False  # the limits are those of a quick run: that they cut is no warning

    def lines(self) -> list[str]:
        """Return the report for the terminal: a few short lines."""
        lines = [*map(_source_line, self.sources), *self._split_line(), *self._token_line()]
        return list(map(one_line, lines))

    def warnings(self) -> list[str]:
        """Return the warnings for the user, each with the option that helps."""
        lines = [_overlap_line(overlap) for overlap in self.overlaps]
        lines += [self.unused] if self.unused else []
        cuts = (self.measured.prompts, self.measured.completions) if self.measured else ()
        many = [cut for cut in cuts if cut.share > TOO_MANY_CUT and not self.lowered]
        lines += map(_cut_warning, many)
        if self.measured and self.measured.unknown > TOO_MANY_UNKNOWN:
            lines.append(
                f"{self.measured.unknown:.0%} of the tokens are the tokenizer's unknown token: the"
                " rows hold words that it does not know. Use a model whose tokenizer knows them."
            )
        return list(map(one_line, lines))

    def record(self) -> dict[str, Any]:
        """Return the report as it is recorded: JSON-able, and without the text of any prompt."""
        values = asdict(self)
        for overlap in values["overlaps"]:
            del overlap["example"]
        return values

    def _split_line(self) -> Iterator[str]:
        if self.splits:
            sizes = (_size(name, counts) for name, counts in self.splits.items())
            yield f"splits: {', '.join(sizes)}"

    def _token_line(self) -> Iterator[str]:
        m = self.measured
        if m is None:
            return
        form = m.form or ("rendered by the chat template" if m.template else "plain text")
        sample = "" if m.all_rows else " (of the first rows)"
        yield (
            f"tokens: prompts are {form}; {_share(m.prompts)} of the prompts and"
            f" {_share(m.completions)} of the completions are cut{sample}"
            + (f"; {m.equal_pairs} of {m.pairs} pairs are equal and dropped" if m.pairs else "")
        )
        if m.judged_prompts and m.judged_completions:
            yield (
                f"rows of the judge: {_share(m.judged_prompts)} of their prompts and"
                f" {_share(m.judged_completions)} of their completions are cut"
            )


def recorded(values: Mapping[str, Any]) -> DataReport:
    """Return a report as it was recorded; the examples of prompts in two parts are empty."""
    measured = values.get("measured")
    return DataReport(
        sources=[
            SourceReport(**{**s, "skipped": [Skipped(**one) for one in s["skipped"]]})
            for s in values["sources"]
        ],
        splits=dict(values["splits"]),
        overlaps=[
            Overlap(**{**o, "places": tuple(o["places"]), "example": ""})
            for o in values["overlaps"]
        ],
        unused=values.get("unused", ""),
        measured=None if measured is None else _measured(measured),
        lowered=bool(values.get("lowered")),
    )


def _measured(values: Mapping[str, Any]) -> Measured:
    cuts = ("prompts", "completions", "judged_prompts", "judged_completions")
    measured = {name: Cut(**values[name]) for name in cuts if values.get(name)}
    return Measured(**{**values, **measured})


def brief(values: Mapping[str, Any]) -> str:
    """Return a recorded report in a line: rows read, skipped and dropped, and texts cut."""
    report = recorded(values)
    rows, used = (sum(getattr(s, n) for s in report.sources) for n in ("rows", "used"))
    dropped = sum(overlap.rows for overlap in report.overlaps)
    parts = [f"{used} of {rows} rows used", f"{rows - used} skipped" if rows > used else ""]
    parts.append(f"{dropped} dropped: their prompts stand in another part" if dropped else "")
    if m := report.measured:
        parts.append(f"{m.equal_pairs} equal pairs dropped" if m.equal_pairs else "")
        parts.append(f"cut: {_share(m.prompts)} of prompts, {_share(m.completions)} of completions")
        many = max(m.prompts.share, m.completions.share) > TOO_MANY_CUT and not report.lowered
        parts[-1] += " (warning: above 5 %)" if many else ""
    return "; ".join(filter(None, parts))


def _kind(reason: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+", "", reason)


def _size(name: str, counts: Mapping[str, int]) -> str:
    rows, prompts = counts["rows"], counts["prompts"]
    return f"{name} {rows}" + (f" ({prompts} prompts)" if prompts != rows else "")


def _source_line(source: SourceReport) -> str:
    line = f"{source.part}: {source.used} of {source.rows} rows of {source.name}"
    reasons = [
        f"{s.rows} skipped: {s.reason} ({', '.join(s.first)}{', ...' * (s.rows > len(s.first))})"
        for s in sorted(source.skipped, key=lambda s: -s.rows)[:PLACES]
    ]
    more = len(source.skipped) - len(reasons)
    return "; ".join([line, *reasons] + ([f"{more} more reasons"] if more else []))


def _overlap_line(o: Overlap) -> str:
    return (
        f"{o.prompts} prompts of the {o.kept} rows also stand in the {o.dropped} rows. Those"
        f" {o.rows} {o.dropped} rows were dropped. The first is {o.places[0]} = {o.places[1]}"
        + (f": {o.example!r}." if o.example else ".")
    )


def _share(cut: Cut) -> str:
    return f"{cut.share:.0%}"


def _cut_warning(cut: Cut) -> str:
    what = "prompts" if cut.option == "max_prompt_tokens" else "completions"
    lost = "lose their beginning" if what == "prompts" else "lose their end"
    return (
        f"{cut.share:.0%} of the {what} are longer than {cut.option} = {cut.limit} and {lost}."
        f" --suite-set {cut.option}={cut.enough} leaves 95 % whole."
    )

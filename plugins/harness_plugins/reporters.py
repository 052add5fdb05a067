"""Table formats: Markdown for people, CSV (unrounded) for programs, LaTeX for papers, HTML for
pages.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from importlib.resources import files

from harness import Reporter, hookimpl
from harness.core.plain_text import markdown, one_line, spreadsheet, visible


class Markdown(Reporter):
    """A GitHub-flavoured Markdown table with its notes below."""

    name, suffix = "md", ".md"

    def render(self, table):
        """Return the table with aligned columns; bold is `**0.61**`, and the best mean
        `***0.61***`.
        """
        rows = [[markdown(name, cell=True) for name in table.columns]]
        rows += [[self._cell(cell) for cell in row] for row in table.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
        lines = [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
            for row in rows
        ]
        rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
        marked = [f"({mark}) {text}" for mark, text in table.footnotes.items()]
        notes = [
            f"\n{markdown(note)}"
            for note in (*filter(None, [table.caption]), *marked, *table.notes)
        ]
        return (
            "\n".join([f"**{markdown(table.title)}**\n", lines[0], rule, *lines[1:], *notes]) + "\n"
        )

    def _cell(self, cell):
        text = markdown(cell.text, cell=True)
        stars = "*" * (2 * cell.bold + cell.best)
        marks = f"({', '.join(cell.marks)})" if cell.marks else ""
        return " ".join(
            filter(None, [f"{stars}{text}{stars}" if text else "", cell.interval, marks])
        )


class CSV(Reporter):
    """Unrounded figures, one line for each row of the table."""

    name, suffix = "csv", ".csv"

    def render(self, table):
        """Return comma-separated values with a header."""
        columns = list(dict.fromkeys(name for row in table.plain for name in row))
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: spreadsheet(v) for k, v in row.items()} for row in table.plain)
        return stream.getvalue()


class LaTeX(Reporter):
    r"""A booktabs table: `\input` it in a paper that loads booktabs, or compile it alone."""

    name, suffix = "latex", ".tex"
    columns = (
        "method",
        "seeds",
        "win_rate",
        "lc_win_rate",
        "gold",
        "kl",
        "length",
        "flops",
        "labels",
    )  # fit a page

    # \@nodocument is \relax after \begin{document}: then the table is part of a paper. Otherwise it
    # is a document of its own.
    BEGIN = r"""\makeatletter\ifx\@nodocument\relax\def\harnessend{}\else
\documentclass{article}\usepackage[margin=15mm]{geometry}\usepackage{booktabs}
\def\harnessend{\end{document}}\begin{document}\fi\makeatother
"""
    ROWS = r"""\begin{table}[htbp]
\centering
\caption{%(caption)s}
\label{tab:%(label)s}
\smallskip
\footnotesize
\setlength{\tabcolsep}{3pt}
\begin{tabular}{%(columns)s}
\toprule
%(head)s \\
\midrule
%(rows)s
\bottomrule
\end{tabular}
%(notes)s\end{table}
\harnessend
"""

    def render(self, table):
        """Return a file that compiles alone and inside a paper; a comment after each row names its
        runs.
        """
        runs = [f"  % {' '.join(one_line(r) for r in row)}" if row else "" for row in table.runs]
        runs += [""] * (len(table.rows) - len(runs))
        lines = [
            self._row(row) + r" \\" + behind for row, behind in zip(table.rows, runs, strict=True)
        ]
        names = [row[0].text for row in table.rows]
        marked = [
            f"{superscript([mark])} {_with_names(latex(text), names)}"
            for mark, text in table.footnotes.items()
        ]
        written = [_with_names(note, names) for note in filter(None, map(_note, table.notes))]
        notes = "\\par\n".join([*marked, *written])
        below = (
            "\\par\\smallskip\n\\begin{minipage}{\\linewidth}\\footnotesize\n"
            f"{notes}\n\\end{{minipage}}\n"
        )
        filled = self.ROWS % {
            "caption": _with_names(latex(table.caption or table.title), names),
            "label": re.match(r"[\w.-]*", table.title, re.ASCII)[0].replace("_", "-"),
            "columns": "l" + "r" * (len(table.columns) - 1),
            "head": " & ".join(map(latex, table.columns)),
            "rows": "\n".join(lines),
            "notes": below if notes else "",
        }
        return f"% {one_line(table.title)}\n{self.BEGIN}{filled}"

    def _row(self, row):
        first, *rest = row
        marks = self._cell(replace(first, text=""))
        cells = [display_name(first.text) + marks, *map(self._cell, rest)]
        text = " & ".join(cells)
        return (
            f"{{}}{text}" if text.startswith(("[", "*")) else text
        )  # otherwise the preceding \\\\ would take the text as its argument

    def _cell(self, cell):
        text = "--" if cell.text in ("-", "--") else latex(cell.text)
        text = f"\\textit{{{text}}}" if cell.best else text
        text = f"\\textbf{{{text}}}" if cell.bold else text
        marks = superscript(cell.marks) if cell.marks else ""
        return text + (f" {{\\scriptsize {latex(cell.interval)}}}" if cell.interval else "") + marks


class HTML(Reporter):
    """A page of its own with the table; the title of a row names the runs behind it."""

    name, suffix = "html", ".html"

    def render(self, table):
        """Return the page; the template table.html escapes all text in it."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=lambda value: visible(value) if type(value) is str else value,
        )
        template = files("harness_plugins").joinpath("table.html").read_text(encoding="utf-8")
        return environment.from_string(template).render(table=table) + "\n"


DISPLAY_NAMES = {  # display names of the built-in methods in LaTeX
    "a_lol": "A-LoL",
    "alpha_po": "AlphaPO",
    "aot": "AOT",
    "apo_down": "APO-down",
    "apo_zero": "APO-zero",
    "bco": "BCO",
    "best_of_n": "best-of-$n$",
    "beta_dpo": "$\\beta$-DPO",
    "cal_dpo": "Cal-DPO",
    "checkpoint": "checkpoint",
    "chipo": "ChiPO",
    "cispo": "CISPO",
    "clip_cov": "Clip-Cov",
    "cpo": "CPO",
    "dapo": "DAPO",
    "discopop": "DiscoPOP",
    "dpo": "DPO",
    "dpo_nll": "DPO+NLL",
    "dpo_shift": "DPO-Shift",
    "dpop": "DPOP",
    "dppo": "DPPO",
    "dr_dpo": "Dr. DPO",
    "exo": "EXO",
    "f_dpo": "$f$-DPO",
    "focal_po": "FocalPO",
    "gdpo": "GDPO",
    "gkd": "GKD",
    "gmpo": "GMPO",
    "gpg": "GPG",
    "gpo": "GPO",
    "grpo": "GRPO",
    "gspo": "GSPO",
    "hinge_norm": "hinge-norm",
    "info_nca": "InfoNCA",
    "ipo": "IPO",
    "kl_cov": "KL-Cov",
    "kto": "KTO",
    "ld_dpo": "LD-DPO",
    "lipo": "LiPO",
    "luspo": "LUSPO",
    "maxrl": "MaxRL",
    "nash_md": "Nash-MD",
    "nca": "NCA",
    "nca_k": "NCA ($K$)",
    "odpo": "ODPO",
    "online_dpo": "online DPO",
    "opo": "OPO",
    "orpo": "ORPO",
    "ppo": "PPO",
    "pro": "PRO",
    "r_dpo": "R-DPO",
    "raft": "RAFT",
    "rebel": "REBEL",
    "reinforce": "REINFORCE",
    "reinforce_pp": "REINFORCE++",
    "remax": "ReMax",
    "rlaif": "RLAIF",
    "rloo": "RLOO",
    "rlvr": "RLVR",
    "rrhf": "RRHF",
    "sapo": "SAPO",
    "self_rewarding": "self-rewarding",
    "sft_chosen": "SFT on chosen",
    "simpo": "SimPO",
    "slic": "SLiC",
    "spin": "SPIN",
    "sppo": "SPPO",
    "sppo_hard": "SPPO (hard)",
    "start": "start checkpoint",
    "tdpo": "TDPO",
    "tr_dpo": "TR-DPO",
    "trl_dpo": "DPO (TRL)",
    "trl_grpo": "GRPO (TRL)",
    "trl_kto": "KTO (TRL)",
    "vespo": "VESPO",
    "wpo": "WPO",
    "xpo": "XPO",
}
GENERATED = re.compile(r"(\w+)(( quick)?( \(\w+=.*\))?( \[[0-9a-f]+\])?)", re.ASCII)
COMMAND_LINE = re.compile(r"(?:^|(?<=\.) )[^.]*`--[^.]*\.")


def display_name(row):
    """Return the name of a row in LaTeX: a built-in method by its usual name, a label unchanged.

    The harness appends only `quick`, options and a recipe to a method's name.
    """
    match = GENERATED.fullmatch(row)
    if match is None or match[1] not in DISPLAY_NAMES:
        return latex(row)
    return " ".join(filter(None, [DISPLAY_NAMES[match[1]], latex(match[2])]))


def _with_names(text, rows):
    """Return LaTeX text with rows named as the table names them: only names of several words, or
    with an underscore, which mean nothing else.
    """
    told = [row for row in rows if " " in row or "_" in row]
    for row in sorted(told, key=len, reverse=True):
        text = re.sub(
            rf"(?<!\w){re.escape(latex(row))}(?!\w)", lambda _, row=row: display_name(row), text
        )
    return text


def superscript(marks):
    """Return the marks of footnotes in LaTeX: letters, and a dagger."""
    letters = ",".join(marks).replace("\u2020", r"\dagger")
    return f"$^{{\\mathrm{{{letters}}}}}$"


def _note(text):
    """Return a note in LaTeX, without sentences about the command line."""
    return latex(COMMAND_LINE.sub("", text)).replace("; - where", "; -- where")


SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\ttfamily\char34}",
    "`": r"\textasciigrave{}",
    "\u00b1": r"$\pm$",
}
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho"
    " varsigma sigma tau upsilon phi chi psi omega"
).split()
SPECIAL |= {chr(0x3B1 + i): f"$\\{name}$" for i, name in enumerate(GREEK) if name != "omicron"}
NEGATIVE = re.compile(r"(?<![\w}.])-(?=\d)")
ORDINARY = re.compile(r"[ -~\u00c0-\u00ff]")  # characters that pdflatex prints unchanged


def latex(text):
    """Return text escaped for LaTeX; a character unknown to pdflatex becomes its number."""
    set_as = (
        SPECIAL.get(c) or (c if ORDINARY.match(c) else f"[U+{ord(c):04X}]") for c in one_line(text)
    )
    return NEGATIVE.sub(
        "$-$", "".join(set_as).replace("--", "-{}-")
    )  # no ligature to a dash, and a minus for numbers


@hookimpl
def register_reporters(register):
    for reporter in (Markdown, CSV, LaTeX, HTML):
        register(reporter)

"""LaTeX and HTML: what a table says survives every name, and LaTeX compiles alone and inside a
paper.

Where there is no pdflatex (Debian: texlive-latex-recommended) compilations are skipped, and checks
of form stay.
"""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from harness_plugins.reporters import DISPLAY_NAMES, HTML, LaTeX, Markdown, display_name, latex
from hypothesis import given
from hypothesis import strategies as st

from harness.api.registry import installed
from harness.core.plain_text import visible
from harness.core.table import Cell, Table
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.tables import comparison

from ..helpers.tools import ROOT, put, record

HOSTILE = [
    r"a_b%&#{}~^\ $x$",
    r"\input{/etc/passwd}",
    r"\end{document}",
    "<script>alert(1)</script>",
    "q\"u'o`te",
    "50% off",
    "beta \u03b2, \u4e2d\u6587, \u00e9",
    "[bracket]",
    "*star",
    "two\nlines\ttab",
    "--no-ligature",
    "\x07bell",
    "a & b \\\\ c",
]
COMMANDS = (
    r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textasciigrave)\{\}"
    r"|\{\\ttfamily\\char34\}|\$\\[a-z]+\$|\$-\$|-\{\}-|\\[{}&%$#_]"
)
needs_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None,
    reason="no pdflatex: apt-get install texlive-latex-recommended",
)


def table_of(names):
    rows = [
        [
            Cell(name),
            Cell("4/5", marks=("a",)),
            Cell("0.891", "[0.866, 0.912]", True, i == 0),
            Cell("-0.51 (est.)"),
        ]
        for i, name in enumerate(names)
    ]
    return Table(
        f"title {names[0]}",
        ["method", "seeds", "win-rate [95 %]", "KL_x"],
        rows,
        ["A note on 100% & more."],
        [],
        f"Caption: {names[-1]}",
        {"a": f"1 of 5 runs failed: {names[0]}"},
        [[f"runs/{i}_%"] for i in range(len(rows))],
    )


def compiled(folder, name):
    """The text of the PDF that pdflatex makes of a file, or its log."""
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout
    if shutil.which("pdftotext") is None:
        return ""
    return subprocess.run(
        ["pdftotext", "-layout", f"{name[:-4]}.pdf", "-"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@needs_latex
def test_latex_compiles_alone_with_hostile_names(tmp_path):
    (tmp_path / "table.tex").write_text(LaTeX().render(table_of(HOSTILE)), encoding="utf-8")
    told = compiled(tmp_path, "table.tex")
    if told:
        assert "0.891" in told and "4/5" in told and "root:" not in told and "50% off" in told
        assert len(re.findall("0.891", told)) == len(
            HOSTILE
        )  # no row was swallowed, nothing ended the document


@needs_latex
def test_latex_compiles_inside_a_paper_twice(tmp_path):
    (tmp_path / "one.tex").write_text(LaTeX().render(table_of(["ppo", "dpo"])), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}Before."
        "\n"
        r"\input{one}\input{one}"
        "\n"
        r"After.\end{document}"
    )
    told = compiled(tmp_path, "paper.tex")
    if told:
        assert "Before." in told and "After." in told and len(re.findall("0.891", told)) == 4


@needs_latex
@pytest.mark.parametrize(
    "file", sorted((ROOT / "results").glob("*.tex")), ids=lambda file: file.name
)
def test_committed_tables_compile(tmp_path, file):
    shutil.copy(file, tmp_path)
    told = compiled(tmp_path, file.name)
    if told:
        rows = [
            line for line in file.read_text(encoding="utf-8").splitlines() if "\\\\  % " in line
        ]
        assert len(rows) > 10 and re.search(rf"{file.stem}, +ties +half", " ".join(told.split()))
        assert not [row for row in rows if re.search(r"\d\.\d{3}", row)[0] not in told]


@needs_latex
def test_negative_control_an_unescaped_name_does_not_compile(tmp_path):
    broken = LaTeX().render(table_of(["ppo"])).replace("ppo", "p_p&o", 1).replace("ppo", "p_p&o")
    (tmp_path / "table.tex").write_text(broken)
    with pytest.raises(AssertionError):
        compiled(tmp_path, "table.tex")


@given(st.text(max_size=60))
def test_latex_leaves_no_active_character(text):
    told = latex(text)
    plain = re.sub(COMMANDS, "", told)
    assert not set(plain) & set("\\{}&%$#_~^\n")
    assert all(ord(c) < 128 or "\u00c0" <= c <= "\u00ff" for c in told)


def test_latex_says_what_stands_behind_each_row_and_how_it_is_set():
    text = LaTeX().render(table_of(["ppo", "dpo"]))
    assert (
        r"\textbf{\textit{0.891}} {\scriptsize [0.866, 0.912]}" in text
        and r"\textbf{0.891}" in text
    )
    assert r"4/5$^{\mathrm{a}}$" in text and "% runs/0_%" in text and r"$-$0.51 (est.)" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    assert "1 of 5 runs failed: ppo" in text and r"100\% \& more" in text


def comparison_in_latex(results):
    """The table of runs with an estimate, a missing value and reused work, as LaTeX."""
    reused = record("dpo")
    reused["cost"]["method"]["flops_reused"] = 1e12
    put(results, reused, record("best_of_n", win=0.8), record("start", win=0.5))
    return LaTeX().render(comparison(select(results, Filter("toy")), LaTeX.columns))


def test_latex_has_a_label_and_fits_without_scaling(tmp_path):
    text = comparison_in_latex(tmp_path)
    assert r"\label{tab:toy}" in text and text.index(r"\caption") < text.index(r"\label")
    assert r"\resizebox" not in text and "graphicx" not in text
    assert "\\footnotesize\n\\setlength{\\tabcolsep}{3pt}\n\\begin{tabular}" in text


def test_latex_notes_are_on_its_columns_and_name_no_option(tmp_path):
    text = comparison_in_latex(tmp_path)
    assert "up to 33" in text and "columns" not in text and "{-}" not in text
    assert "TFLOP are those of the method" in text and "Train s" not in text and "Peak" not in text
    full = comparison(select(tmp_path, Filter("toy"))).notes[1]
    assert "Train s, CPU s (of all threads), TFLOP, tokens and queries are those of the" in full


def test_latex_notes_name_rows_as_the_table_does():
    notes = ["Row dpo quick and best_of_n: see ppo.", "not dpo quicker, nor xdpo quick"]
    rows = [[Cell("dpo quick")], [Cell("best_of_n")], [Cell("ppo")]]
    text = LaTeX().render(Table("t", ["method"], rows, notes, caption="dpo quick 26%"))
    assert "Row DPO quick and best-of-$n$: see ppo." in text and "DPO quick 26" in text
    assert "not dpo quicker, nor xdpo quick" in text


def test_latex_leaves_out_a_column_without_values_unless_it_is_asked_for(tmp_path):
    made = put(tmp_path, record("dpo"), record("ppo"))
    selection = select(made, Filter())
    columns = ("method", "pass_at_k", "gold")
    kept, shown = (comparison(selection, columns, keep_empty=keep) for keep in (True, False))
    assert kept.columns[1] == "pass@k" and shown.columns == [kept.columns[0], "gold"]


def test_latex_sets_a_missing_value_as_a_dash(tmp_path):
    rows = [[Cell("ppo"), Cell("-")]]
    assert "PPO & -- " in LaTeX().render(Table("toy: x", ["method", "length-controlled"], rows))


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ("ppo", "PPO"),
        ("best_of_n quick", "best-of-$n$ quick"),
        ("dpo (beta=0.1) [ab12]", "DPO (beta=0.1) [ab12]"),
        ("dpo (shuffled labels)", "dpo (shuffled labels)"),  # a study's own label
        ("my_ppo", r"my\_ppo"),
    ],
)
def test_built_in_methods_have_display_names_in_latex(row, shown):
    assert display_name(row) == shown


def test_every_built_in_method_has_a_display_name():
    registry = installed()
    own = {n for n in registry.classes["methods"] if registry.origins["methods", n].distribution}
    assert set(DISPLAY_NAMES) <= own
    assert {
        n for n in own if registry.classes["methods"][n].__module__.startswith("harness_plugins")
    } <= set(DISPLAY_NAMES)


class Reader(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_html_shows_hostile_names_as_text():
    page = Reader()
    page.feed(HTML().render(table_of(HOSTILE)))
    assert {tag for tag, _ in page.tags} <= {
        "html",
        "meta",
        "title",
        "style",
        "h1",
        "div",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "strong",
        "span",
        "small",
        "sup",
        "p",
    }
    for name in HOSTILE:
        assert visible(name) in "".join(page.text)
    assert [a["title"] for tag, a in page.tags if tag == "tr" and a] == [
        f"runs/{i}_%" for i in range(len(HOSTILE))
    ]


def test_markdown_names_its_footnotes():
    text = Markdown().render(table_of(["ppo", "dpo"]))
    assert (
        "4/5 (a)" in text
        and "\n(a) 1 of 5 runs failed: ppo\n" in text
        and "***0.891*** [0.866, 0.912]" in text
    )

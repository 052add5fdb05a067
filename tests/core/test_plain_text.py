"""Text of others is neutralised on a terminal, in Markdown, CSV, LaTeX and HTML."""

import csv
import io

import pytest
from harness_plugins.reporters import CSV, HTML, LaTeX, Markdown

from harness.core.errors import HarnessError
from harness.core.plain_text import markdown, one_line, spreadsheet, visible
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.tables import comparison

from ..helpers.tools import command, failure, put, record

ESCAPES = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "clear": "\x9b2J",
    "return": "safe\roverwritten",
    "bidi": "a\u202etxt.exe",
    "isolate": "a\u2066b\u2069",
    "zero width": "pp\u200bo",
    "byte order": "\ufeffppo",
    "nul": "a\x00b",
    "surrogate": "a\ud800b",
    "soft hyphen": "pp\u00ado",
}
UNSAFE = set("\x1b\x07\x9b\r\u202e\u2066\u2069\u200b\ufeff\x00\ud800\u00ad")
FORMULAS = ("=1+1", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1")
LINKS = ("[a](http://x)", "![a](http://x)", "[a][b]", "[b]: http://x", "<img src=x>", "<http://x>")


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_visible_shows_what_is_unseen(text):
    assert UNSAFE & set(text)
    for safe in (visible(text), one_line(text), markdown(text), str(HarnessError(text))):
        assert not UNSAFE & set(safe)


def test_visible_keeps_scripts_emoji_and_lines():
    text = "na\u00efve \u05d0\u05d1 \u0645\u06cc\u200c\u062e \U0001f468\u200d\U0001f469\n\ttab"
    assert visible(text) == text


@pytest.mark.parametrize("text", FORMULAS)
def test_spreadsheet_quotes_formulas(text):
    assert spreadsheet(text).startswith("'")


@pytest.mark.parametrize("value", ["dpo", "-", "-1.5", "+3e4", "-inf", "a=1", -2, 0.5, None])
def test_spreadsheet_keeps_everything_else(value):
    assert spreadsheet(value) == value


@pytest.mark.parametrize("text", LINKS)
def test_markdown_makes_no_link_image_or_tag(text):
    safe = markdown(text)
    assert safe != text and "](" not in safe.replace("\\](", "") and "<i" not in safe


def test_markdown_escapes_pipes_in_cells():
    assert markdown("a|b", cell=True) == "a\\|b" and markdown("a|b") == "a|b"
    assert markdown("a\\|b", cell=True) == "a\\\\\\|b"


HOSTILE = "\x1b[31m=cmd|'x'\u202e![i](http://x)<script>\u200b"


@pytest.mark.parametrize("reporter", [Markdown, CSV, LaTeX, HTML])
def test_tables_of_hostile_records_are_safe(tmp_path, reporter):
    put(tmp_path, record(HOSTILE.replace("/", "\u2044")), failure("ppo", why=HOSTILE))
    text = reporter().render(comparison(select(tmp_path, Filter())))
    assert not UNSAFE & set(text)
    if reporter is not LaTeX:
        assert "u202e" in text
    if reporter is Markdown:
        assert "![i](" not in text and "<script>" not in text
    if reporter is HTML:
        assert "<script>" not in text
    if reporter is CSV:
        cells = [c for row in csv.reader(io.StringIO(text)) for c in row]
        assert not any(c.startswith(("=", "@", "\t")) for c in cells)


def test_csv_quotes_a_label_that_is_a_formula(tmp_path):
    put(tmp_path, record("=cmd|x"))
    rows = list(csv.DictReader(io.StringIO(CSV().render(comparison(select(tmp_path, Filter()))))))
    assert rows[0]["method"] == "'=cmd|x"


def test_message_on_the_terminal_has_no_escapes(tmp_path):
    put(tmp_path, failure(why="It said \x1b]0;owned\x07\x1b[2J."))
    done = command("table", "--results", tmp_path)
    assert "\\u001b]0;owned" in done.out and "\x1b" not in done.text
    done = command("table", "--results", "none\x1b[31m")
    assert done.code == 2 and "\x1b" not in done.text and "none\\u001b[31m" in done.err

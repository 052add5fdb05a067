"""Input has limits: each is one message that names file, row and limit, and each is an option."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tracemalloc

import pytest
from harness_suites.limits import Limits, number
from harness_suites.preference_file import PreferenceFile
from harness_suites.question_file import QuestionFile

from harness.core.errors import UsageError
from harness.core.options import build

ROWS = [
    {"prompt": f"question {i} ?", "chosen": f" good {i}", "rejected": f" bad {i}"}
    for i in range(60)
]
MIB = 1 << 20
MANY = (b'{"a": "' + b"x" * 1000 + b'"}\n') * 8000


@pytest.fixture
def suite(tmp_path):
    """A factory of suites over one file."""

    def make(name, content, cls=PreferenceFile, **options):
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
        made = build(cls, {"folder": str(tmp_path), "data": name} | options, "suite")
        made.shared_seed = 0
        return made

    return make


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def nested(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


BAD = {
    "long": (ROWS[0] | {"chosen": "x" * 3000}, "longer than max_row_mib"),
    "deep": (ROWS[0] | {"more": nested(70)}, "nested too deeply: more than max_depth = 64"),
    "wide": (ROWS[0] | {f"c{i}": 1 for i in range(60)}, "columns, more than max_columns = 50"),
    "nul": (ROWS[0] | {"chosen": "a\x00b"}, "a NUL character"),
}
SMALL = {"max_row_mib": 2500 / MIB, "max_columns": 50}


@pytest.mark.parametrize("kind", BAD)
def test_row_over_a_limit_is_named_or_skipped(suite, kind):
    row, reason = BAD[kind]
    text = jsonl(*ROWS[:2], row, *ROWS[2:])
    with pytest.raises(UsageError, match=rf"data.jsonl, (row|line) 3: .*{reason}.*bad_rows"):
        suite("data.jsonl", text, **SMALL).preferences()
    made = suite("data.jsonl", text, bad_rows="skip", **SMALL)
    made.preferences()
    (source,) = made.data_report().sources
    assert source.used == 60 and [s.rows for s in source.skipped] == [1]


def test_larger_limit_admits_the_row(suite):
    rows = [r for kind, (r, _) in BAD.items() if kind != "nul"]
    made = suite("data.jsonl", jsonl(*ROWS, *rows), max_depth=80)
    made.preferences()
    assert made.data_report().sources[0].used == 63


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("text", [b" " * (8 * MIB), MANY, b"[" + b" " * (8 * MIB)])
def test_file_that_unpacks_to_too_much_is_refused(suite, pack, text):
    made = suite("data.json", pack(text), max_unpacked_gib=0.002, bad_rows="skip")
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"data.json\b.*unpack to more than max_unpacked_gib"):
        made.preferences()
    assert tracemalloc.get_traced_memory()[1] < 30 * MIB
    tracemalloc.stop()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_file_within_the_limit_is_read(suite, pack):
    made = suite("data.jsonl", pack(jsonl(*ROWS).encode()))
    made.preferences()
    assert made.data_report().sources[0].used == 60


def test_zstandard_file_has_the_limit_too(suite):
    pyarrow = pytest.importorskip("pyarrow")
    packed = pyarrow.compress(jsonl(*ROWS).encode(), codec="zstd", asbytes=True)
    suite("data.jsonl", packed).preferences()
    packed = pyarrow.compress(MANY, codec="zstd", asbytes=True)
    with pytest.raises(UsageError, match="max_unpacked_gib"):
        suite("data.jsonl", packed, max_unpacked_gib=0.002, bad_rows="skip").preferences()


def test_table_has_limits(suite):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]))
    writer.writeheader()
    writer.writerows([*ROWS[:2], ROWS[2] | {"chosen": "x" * 3000}])
    with pytest.raises(UsageError, match=r"data.csv, line 4: a cell is longer than max_row_mib"):
        suite("data.csv", text.getvalue(), **SMALL).preferences()
    header = ",".join(f"c{i}" for i in range(60)) + "\n"
    with pytest.raises(UsageError, match=r"data.csv, line 1: 60 columns, more than max_columns"):
        suite("data.csv", header, **SMALL).preferences()


def test_parquet_file_has_limits(suite):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def parquet(table):
        stream = io.BytesIO()
        pq.write_table(pa.table(table), stream)
        return stream.getvalue()

    wide = parquet({f"c{i}": [1] for i in range(60)})
    with pytest.raises(UsageError, match="60 columns, more than max_columns = 50"):
        suite("data.parquet", wide, **SMALL).preferences()
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    bomb = parquet(columns | {"chosen": ["x" * MIB] * 60})  # one value, repeated by a dictionary
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"data.parquet, row 1: longer than max_row_mib = 0.5"):
        suite("data.parquet", bomb, max_row_mib=0.5).preferences()
    assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    tracemalloc.stop()
    with pytest.raises(UsageError, match="row group 1: it unpacks to"):
        suite("data.parquet", bomb, max_unpacked_gib=1e-6).preferences()


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 10**400])
def test_score_that_is_no_finite_number_is_a_bad_row(suite, score):
    ranked = {"prompt": "q", "responses": ["a", "b"], "scores": [score, 1.0]}
    text = json.dumps(ranked) + "\n"
    with pytest.raises(UsageError, match=r"data.jsonl, row 1: no score or rank"):
        suite("data.jsonl", text).preferences()


@pytest.mark.parametrize("label", ["x", [1], float("nan"), 10**400])
def test_preference_that_is_no_number_is_a_bad_row(suite, label):
    row = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": label}
    with pytest.raises(UsageError, match=r"data.jsonl, row 1: labels is"):
        suite("data.jsonl", json.dumps(row) + "\n").preferences()


def test_answer_that_is_no_finite_number_is_a_bad_row(suite):
    text = '{"question": "how many", "answer": NaN}\n'
    with pytest.raises(UsageError, match=r"row 1: 'answer' is not a finite number"):
        suite("data.jsonl", text, QuestionFile).prompts("train")


@pytest.mark.parametrize("name", vars(Limits()))
def test_limit_that_admits_nothing_is_refused(suite, name):
    with pytest.raises(UsageError, match=f"{name} must be above 0"):
        suite("data.jsonl", jsonl(*ROWS), **{name: 0})


def test_number_takes_numbers_only():
    assert number(2, "x") == 2.0
    for value in (True, "2", None):
        with pytest.raises(ValueError, match="x is a number"):
            number(value, "x")

"""Where rows come from: layouts of JSON, tables, folders, data sets, and parts with rows of their
own.
"""

import bz2
import gzip
import json
import lzma
import os
import re
import tracemalloc

import pytest
from harness_suites import json_rows
from harness_suites.preference_file import PreferenceFile
from harness_suites.question_file import QuestionFile

from harness.core.errors import UsageError
from harness.core.options import build

ROWS = [
    {"prompt": f"question {i} ?", "chosen": f" good {i}", "rejected": f" bad {i}"}
    for i in range(200)
]
HALF = "bad \ud83d half"


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def suite(tmp_path):
    """A factory of suites over files: `suite({"name.jsonl": text}, **options)`."""

    def make(files=(), cls=PreferenceFile, **options):
        for name, content in dict(files).items():
            content = content.encode() if isinstance(content, str) else content
            (tmp_path / name).write_bytes(content)
        if not {"train", "dataset", "sources", "data"} & set(options):
            options["data"] = next(iter(files))
        made = build(cls, {"folder": str(tmp_path)} | options, "suite")
        made.shared_seed = 0
        return made

    return make


def contents(made, part=None):
    """The pairs of a part, or of all parts."""
    pairs = [pair for name, rows in made._parts.items() if part in (None, name) for pair in rows]
    return sorted((p.prompt.text, p.chosen, p.rejected) for p in pairs)


def expected(rows):
    return sorted((r["prompt"], r["chosen"], r["rejected"]) for r in rows)


# -- JSON ------------------------------------------------------------------------------------------

WRAPPED = {"version": "1.0", "more": [1, 2], "data": ROWS, "notes": {"data": [{}]}}
LAYOUTS = {
    "an array on one line": json.dumps(ROWS),
    "an array with a line break": json.dumps(ROWS) + "\n\n",
    "an indented array": json.dumps(ROWS, indent=2),
    "an array with a row to a line": "[" + ",\n".join(map(json.dumps, ROWS)) + "]",
    "a bracket of its own line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "blanks before the array": "\n  \n " + json.dumps(ROWS),
    "a byte order mark": "\ufeff" + json.dumps(ROWS),
    "an object on one line": json.dumps(WRAPPED),
    "an object, indented": json.dumps(WRAPPED, indent=1),
    "an object with a byte order mark": "\ufeff" + json.dumps({"rows": ROWS}, indent="\t"),
    "lines": jsonl(ROWS),
    "lines that end as on Windows": "\ufeff" + jsonl(ROWS).replace("\n", "\r\n"),
}


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".txt"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_layouts_hold_the_same_rows(suite, layout, ending):
    assert contents(suite({f"data{ending}": LAYOUTS[layout]})) == expected(ROWS)


@pytest.mark.parametrize("chunk", [64, 100, 1000])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_is_read_in_pieces_of_any_size(suite, layout, chunk, monkeypatch):
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    rows = [r | {"n": 10**i, "text": "\u00e9\U0001f600\u2028" * i} for i, r in enumerate(ROWS[:60])]
    text = json.dumps(rows, ensure_ascii=False)
    assert contents(suite({"data.json": text})) == expected(rows)
    assert contents(suite({"more.json": LAYOUTS[layout]})) == expected(ROWS)


def test_json_lines_may_be_arrays_and_are_bad_rows(suite):
    text = "[1, 2]\n" + jsonl(ROWS)
    assert contents(suite({"data.jsonl": text}, bad_rows="skip")) == expected(ROWS)
    with pytest.raises(UsageError, match="data.jsonl, row 1: expected an object"):
        suite({"data.jsonl": text}).preferences()


def test_row_of_one_list_is_a_row(suite):
    with pytest.raises(UsageError, match="row 1: no column 'chosen'; there are words"):
        suite({"data.jsonl": jsonl([{"words": [{"role": "user"}]}])}).preferences()


def test_lists_of_a_json_object_are_named_as_parts(suite):
    whole = json.dumps({"train": ROWS[:150], "test": ROWS[150:]}, indent=1)
    with pytest.raises(UsageError, match='holds the lists train, test. Name .* train = "train"'):
        suite({"data.json": whole}).preferences()
    made = suite({"data.json": whole}, data="data.json", train="train", test="test")
    assert contents(made, "test") == expected(ROWS[150:])
    with pytest.raises(UsageError, match="no list 'dev'; its lists are train, test"):
        suite({"data.json": whole}, data="data.json", train="dev").preferences()
    odd = suite({"odd.json": json.dumps({"pairs": ROWS}, indent=1)}, data="odd.json", train="pairs")
    assert contents(odd) == expected(ROWS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps(ROWS)[:-30], "row 200: not JSON"),
        (json.dumps(ROWS[:3])[:-1] + ', {"a" 1}]', "row 4: not JSON: Expecting ':'"),
        (json.dumps(ROWS[:3]) + " x", "row 4: .*more text follows the end of the array"),
        (json.dumps({"data": ROWS}, indent=1)[:-30], "row 200: not JSON"),
        (json.dumps({"data": ROWS})[:-30], "row 200: not JSON"),
        ("[" * 100_000, "row 1: not JSON: nested too deeply"),
        ('{"a":' * 100_000, "line 1: .*nested too deeply"),
        ("not json", "line 1: not a JSON object"),
    ],
)
def test_damaged_json_is_named_by_row(suite, text, reason):
    with pytest.raises(UsageError, match=f"data.json, {reason}"):
        suite({"data.json": text}).preferences()


def test_deeply_nested_line_is_a_bad_row(suite):
    text = jsonl(ROWS[:2]) + '{"a":' * 100_000 + "\n" + jsonl(ROWS[2:])
    made = suite({"data.jsonl": text}, bad_rows="skip")
    assert contents(made) == expected(ROWS)
    assert made.data_report().sources[0].skipped[0].first == ["line 3"]


def test_line_that_is_not_utf8_is_a_bad_row(suite):
    raw = jsonl(ROWS[:2]).encode() + b'{"prompt": "\xff"}\n' + jsonl(ROWS[2:]).encode()
    assert contents(suite({"data.jsonl": raw}, bad_rows="skip")) == expected(ROWS)
    with pytest.raises(UsageError, match="data.jsonl, line 3: not UTF-8"):
        suite({"data.jsonl": raw}).preferences()


@pytest.mark.parametrize("text", ['{"prompt": "' + " " * 3000, " " * 3000, "[" + " " * 3000])
def test_row_without_end_is_refused_and_not_read_into_memory(suite, text, monkeypatch):
    monkeypatch.setattr(json_rows, "CHUNK", 100)
    data = {"data.json": gzip.compress(text.encode())}
    with pytest.raises(UsageError, match="data.json"):
        suite(data, max_row_mib=2000 / 2**20).preferences()


@pytest.mark.parametrize(
    ("form", "cls", "row"),
    [
        ("a chosen text", PreferenceFile, {"prompt": "q", "chosen": HALF, "rejected": "x"}),
        ("a prompt", PreferenceFile, {"prompt": HALF, "chosen": "y", "rejected": "x"}),
        (
            "a message",
            PreferenceFile,
            {
                "prompt": "q",
                "chosen": [{"role": "assistant", "content": HALF}],
                "rejected": [{"role": "assistant", "content": "x"}],
            },
        ),
        ("an answer", QuestionFile, {"question": "how many", "answer": HALF + " #### 5"}),
        ("a question", QuestionFile, {"question": HALF, "answer": "#### 5"}),
    ],
)
def test_half_a_surrogate_pair_is_a_bad_row_in_every_form(suite, form, cls, row):
    questions = [{"question": f"how many {i}", "answer": f"#### {i}"} for i in range(200)]
    rows = ROWS if cls is PreferenceFile else questions
    text = jsonl([*rows[:2], row, *rows[2:]])
    with pytest.raises(UsageError, match=r"row 3: half of a surrogate pair \(\\ud83d\)"):
        suite({"data.jsonl": text}, cls).prompts("test")
    suite({"data.jsonl": text}, cls, bad_rows="skip").prompts("test")


# -- other formats ---------------------------------------------------------------------------------


def table(rows, delimiter):
    import csv
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_tables(suite, ending, delimiter):
    rows = [r | {"chosen": f'a, "b"\n\t{i}\u2028'} for i, r in enumerate(ROWS)]
    text = table(rows, delimiter)
    assert contents(suite({f"data{ending}": text})) == expected(
        [r | {"chosen": r["chosen"]} for r in rows]
    )
    assert contents(suite({f"bom{ending}.gz": gzip.compress(("\ufeff" + text).encode())}))


def test_table_cell_with_messages_is_a_conversation(suite):
    talk = [{"role": "user", "content": "hello, you"}]
    rows = [
        {
            "prompt": json.dumps(talk + [{"role": "user", "content": str(i)}]),
            "chosen": json.dumps([{"role": "assistant", "content": "a"}]),
            "rejected": json.dumps([{"role": "assistant", "content": "b"}]),
        }
        for i in range(200)
    ]
    made = suite({"data.csv": table(rows, ",")})
    assert made.preferences()[0].prompt.text[0] == talk[0]
    python = table([r | {"prompt": str(talk)} for r in rows], ",")
    with pytest.raises(
        UsageError, match="line 2: a cell holds a list of messages that is not JSON"
    ):
        suite({"python.csv": python}).preferences()


def test_table_lines_of_the_wrong_width_are_bad_rows(suite):
    text = "prompt,chosen,rejected\nq,a,b\n" + 'q2,"a\nb"\n' + "q3,a,b\n"
    with pytest.raises(UsageError, match="data.csv, line 3: 2 cells under a header of 3"):
        suite({"data.csv": text}).preferences()
    with pytest.raises(UsageError, match="two columns of its header have the same name"):
        suite({"twice.csv": "prompt,prompt\n"}).preferences()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_known_by_their_content(suite, pack):
    for name in ("data.jsonl.gz", "data.jsonl", "data.csv.bz2"):
        text = table(ROWS, ",") if "csv" in name else jsonl(ROWS)
        assert contents(suite({name: pack(text.encode())})) == expected(ROWS)


def test_zstandard(suite, tmp_path):
    import pyarrow

    with pyarrow.output_stream(str(tmp_path / "data.jsonl.zst"), compression="zstd") as out:
        out.write(jsonl(ROWS).encode())
    assert contents(suite(data="data.jsonl.zst")) == expected(ROWS)


@pytest.mark.parametrize("compressed", [False, True])
def test_parquet_is_read_in_batches(suite, tmp_path, compressed):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS * 3), tmp_path / "data.parquet", row_group_size=70)
    raw = (tmp_path / "data.parquet").read_bytes()
    name = "data.parquet.gz" if compressed else "part-0"
    made = suite({name: gzip.compress(raw) if compressed else raw})
    assert contents(made) == expected(ROWS * 3)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("data.jsonl", jsonl(ROWS).encode("utf-16"), "text in UTF-16: convert it to UTF-8"),
        ("data.json", jsonl(ROWS).encode("utf-16-le"), "text in UTF-16"),
        ("data.csv", table(ROWS, ",").encode("utf-16-be"), "text in UTF-16"),
        ("data.jsonl.gz", gzip.compress(jsonl(ROWS).encode("utf-16")), "text in UTF-16"),
        ("data.json", json.dumps(ROWS).encode("utf-32"), "text in UTF-32"),
        ("data.csv", "prompt,chosen\n\u00e9,b\n".encode("latin-1"), "cannot be read as CSV"),
        ("data.jsonl.gz", gzip.compress(jsonl(ROWS).encode())[:-20], "cannot be read as JSON"),
        ("data.zip", b"PK\x03\x04 and so on", "zip archive"),
        ("data.parquet", b"PAR1 cut", "cannot be read as Parquet"),
        ("data.parquet", b"", "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(suite, name, content, reason):
    with pytest.raises(UsageError, match=f"{re.escape(name)}.*{reason}"):
        suite({name: content}).preferences()


def test_parquet_file_with_a_huge_footer_is_refused(suite):
    content = b"PAR1" + (1 << 26).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(UsageError, match="description of its columns alone takes 64 MiB"):
        suite({"data.parquet": content}).preferences()


def test_pipe_is_refused(suite, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UsageError, match="is no file and no folder"):
        suite(data="pipe.jsonl").preferences()


# -- several sources and named parts ---------------------------------------------------------------


def test_several_files_are_read_in_order(suite):
    files = {"a.jsonl": jsonl(ROWS[:80]), "b.json": json.dumps(ROWS[80:])}
    assert contents(suite(files, data=["a.jsonl", "b.json"])) == expected(ROWS)
    assert contents(suite(files, data="a.jsonl,b.json")) == expected(ROWS)
    assert contents(suite(files, data="a.jsonl, b.json", max_rows=100)) == expected(ROWS[:100])
    assert contents(suite({"a,b.jsonl": jsonl(ROWS)}, data="a,b.jsonl")) == expected(ROWS)


def test_pattern_names_its_files(suite, tmp_path):
    files = {f"shard-{i}.jsonl": jsonl(ROWS[50 * i : 50 * i + 50]) for i in range(4)}
    made = suite(files, data="shard-*.jsonl")
    assert contents(made) == expected(ROWS)
    assert [f.name for f in made.data_files()] == sorted(files)
    assert contents(suite(data=str(tmp_path / "shard-[01].jsonl"))) == expected(ROWS[:100])
    with pytest.raises(UsageError, match="no file .* matches"):
        suite(data="other-*.jsonl")


def test_official_parts(suite):
    files = {
        "train.jsonl": jsonl(ROWS[:120]),
        "dev.jsonl": jsonl(ROWS[120:150]),
        "test.jsonl": jsonl(ROWS[150:]),
    }
    made = suite(files, train="train.jsonl", validation="dev.jsonl", test="test.jsonl")
    assert contents(made, "test") == expected(ROWS[150:])
    assert contents(made, "validation") == expected(ROWS[120:150])
    trained = sorted(contents(made, "method") + contents(made, "judge"))
    assert trained == expected(ROWS[:120])
    assert {f.name for f in made.data_files()} == set(files)


def test_part_that_is_not_named_is_split_off_by_hash(suite):
    files = {"train.jsonl": jsonl(ROWS[:150]), "test.jsonl": jsonl(ROWS[150:])}
    made = suite(files, data="train.jsonl", test="test.jsonl")
    assert contents(made, "test") == expected(ROWS[150:])
    sizes = {name: len(pairs) for name, pairs in made._parts.items()}
    assert sum(sizes.values()) == 200 and 0 < sizes["validation"] < 25


def test_questions_have_official_parts_too(suite):
    rows = [{"question": f"how many {i}", "answer": f"#### {i}"} for i in range(100)]
    files = {"train.jsonl": jsonl(rows[:70]), "test.jsonl": jsonl(rows[70:])}
    made = suite(files, QuestionFile, train="train.jsonl", test="test.jsonl")
    assert {p.answer for p in made.prompts("test")} == {str(i) for i in range(70, 100)}


def test_tables_of_sources(suite):
    files = {"a.jsonl": jsonl(ROWS[:100]), "b.csv": table(ROWS[100:], ",")}
    sources = [
        {"data": "a.jsonl", "max_rows": 30},
        {"data": "b.csv", "max_rows": 40},
        {"data": "b.csv", "part": "test"},
    ]
    made = suite(files, sources=sources[:2])
    assert contents(made) == expected(ROWS[:30] + ROWS[100:140])
    report = suite(files, sources=sources).data_report()
    assert [(s.part, s.used) for s in report.sources] == [
        ("train", 30),
        ("train", 40),
        ("test", 100),
    ]
    assert report.overlaps[0].rows == 40


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"data": "a.jsonl", "dataset": "hub/id"}, "either data .* or dataset"),
        ({"test": "a.jsonl", "data": ""}, "name the training rows"),
        ({"data": "a.jsonl", "train": "a.jsonl"}, "names them again"),
        ({"data": ["a.jsonl", "a.jsonl"]}, "named twice"),
        ({"data": "a.jsonl", "test": "a.jsonl", "test_share": 0.3}, "test_share has no meaning"),
        ({"data": "a.jsonl", "dataset_revision": "v1"}, "dataset_revision has no meaning"),
        ({"sources": [{"data": "a.jsonl", "rows": 3}]}, "no option 'rows'"),
        ({"sources": [{"data": "a.jsonl", "part": "dev"}]}, "train, validation or test"),
        ({"sources": [{"data": "a.jsonl", "dataset": "b"}]}, "either data .* or dataset"),
        ({"sources": ["a.jsonl"]}, "sources.*expected"),
        ({"data": "a.jsonl", "shared_prompts": "keep"}, "drop or fail"),
        ({"data": "a.jsonl", "streaming": True}, "say how many with max_rows"),
    ],
)
def test_sources_that_make_no_sense(suite, options, reason):
    with pytest.raises(UsageError, match=reason):
        suite({"a.jsonl": jsonl(ROWS)}, **options)


# -- prompts that stand in two parts ---------------------------------------------------------------


def leaking():
    """Training rows of which three stand in the test rows too, one of them in other letters."""
    test = [dict(r) for r in ROWS[150:]]
    train = ROWS[:150] + [test[4], test[9] | {"prompt": test[9]["prompt"].upper() + " "}, test[9]]
    return {"train.jsonl": jsonl(train), "test.jsonl": jsonl(test)}


def test_test_prompts_are_dropped_from_training_and_told(suite):
    made = suite(leaking(), train="train.jsonl", test="test.jsonl")
    assert contents(made, "test") == expected(ROWS[150:])
    assert sorted(contents(made, "method") + contents(made, "judge")) == sorted(
        set(expected(ROWS[:150])) - set(contents(made, "validation"))
    )
    (overlap,) = made.data_report().overlaps
    assert (overlap.prompts, overlap.rows) == (2, 3)
    assert overlap.places == ("test row 5", "train row 151")
    (warning,) = made.data_report().warnings()
    assert "2 prompts of the test rows" in warning and "question 154 ?" in warning
    assert "question" not in json.dumps(made.data_report().record()["overlaps"])


def test_shared_prompts_can_be_refused(suite):
    made = suite(leaking(), train="train.jsonl", test="test.jsonl", shared_prompts="fail")
    with pytest.raises(UsageError, match="2 prompts of the test rows .*test row 5 = train row 151"):
        made.preferences()


def test_question_as_json_text_is_a_conversation(suite):
    talk = [[{"role": "user", "content": f"2 + {i}?"}] for i in range(100)]
    rows = [{"question": json.dumps(turns), "answer": "5"} for turns in talk]
    made = suite({"q.jsonl": jsonl(rows)}, cls=QuestionFile)
    assert all(demo.prompt.text in talk for demo in made.demonstrations())


def test_question_with_two_answers_is_refused_by_row(suite):
    rows = [{"question": f"2 + {i}?", "answer": f"#### {2 + i}"} for i in range(100)]
    rows += [rows[3], {"question": "2 + 4?", "answer": "#### 7"}]  # once the same, once another
    with pytest.raises(UsageError, match="row 102: an earlier row has the same question.*'6', not"):
        suite({"q.jsonl": jsonl(rows)}, cls=QuestionFile).demonstrations()
    made = suite({"q.jsonl": jsonl(rows)}, cls=QuestionFile, bad_rows="skip")
    golds = {d.prompt.text: d.prompt.answer for part in made._parts.values() for d in part}
    assert golds["Question: 2 + 4?\nAnswer:"] == "6" and len(golds) == 100


def test_same_question_in_another_form_is_shared(suite):
    talk = {
        "prompt": [{"role": "user", "content": "Question 154  ?"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    files = {"train.jsonl": jsonl([*ROWS[:150], talk]), "test.jsonl": jsonl(ROWS[150:])}
    assert suite(files, train="train.jsonl", test="test.jsonl").data_report().overlaps[0].rows == 1


def test_prompts_that_differ_in_case_stay_in_one_part(suite):
    rows = [*ROWS, *[r | {"prompt": r["prompt"].upper() + "\n"} for r in ROWS]]
    made = suite({"data.jsonl": jsonl(rows)})
    words = [{" ".join(p[0].casefold().split()) for p in contents(made, n)} for n in made._parts]
    assert sum(map(len, words)) == len(set().union(*words)) == 200


# -- the report ------------------------------------------------------------------------------------


def test_skipped_rows_are_told_with_reasons_and_places(suite):
    empty = [{"prompt": f"x {i}", "chosen": "", "rejected": "y"} for i in range(480)]
    equal = [{"prompt": f"z {i}", "chosen": "y", "rejected": "y"} for i in range(2)]
    text = jsonl([*ROWS, *empty, *equal, {"prompt": "q", "chosen": "a"}])
    report = suite({"data.jsonl": text}, bad_rows="skip").data_report()
    (source,) = report.sources
    assert (source.rows, source.used) == (683, 200)
    assert {s.reason: (s.rows, s.first) for s in source.skipped} == {
        "an empty completion": (480, ["row 201", "row 202", "row 203"]),
        "chosen and rejected are the same": (2, ["row 681", "row 682"]),
        "no column 'rejected'; there are chosen, prompt": (1, ["row 683"]),
    }
    (line, splits) = report.lines()
    assert "200 of 683 rows" in line and "480 skipped: an empty completion (row 201" in line
    assert (
        splits.startswith("splits: method ")
        and sum(counts["rows"] for counts in report.splits.values()) == 200
    )


def test_rows_per_part_are_kept_after_all_rows_were_read(suite):
    empty = [{"prompt": f"x {i}", "chosen": "", "rejected": "y"} for i in range(480)]
    whole = suite({"data.jsonl": jsonl([*ROWS, *empty])}, bad_rows="skip")
    made = suite({"data.jsonl": jsonl([*ROWS, *empty])}, bad_rows="skip", rows_per_part=9)
    assert made.data_report().sources[0].skipped[0].rows == 480
    assert {n: p for n, p in made._parts.items()} == {n: p[:9] for n, p in whole._parts.items()}
    assert {c["rows"] for c in made.data_report().splits.values()} <= set(range(10))


def test_report_is_json(suite):
    record = suite(leaking(), train="train.jsonl", test="test.jsonl").data_report().record()
    assert json.loads(json.dumps(record)) == json.loads(json.dumps(record, allow_nan=False))


# -- data sets -------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the hub's format: data files by split, and configurations in its README."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "org" / "pairs"
    folder.mkdir(parents=True)
    (folder / "main-train.jsonl").write_text(jsonl(ROWS[:120]))
    (folder / "main-test.jsonl").write_text(jsonl(ROWS[150:]))
    (folder / "hard.jsonl").write_text(jsonl(ROWS[120:150]))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - split: train_prefs\n    path: main-train.jsonl\n"
        "  - split: test_prefs\n    path: main-test.jsonl\n"
        "- config_name: hard\n  data_files: hard.jsonl\n---\n# Pairs\n"
    )
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("named", ["data", "dataset"])
def test_data_set_with_configurations_and_splits(suite, hub, named, streaming):
    more = {"streaming": True, "max_rows": 1000} if streaming else {}
    options = {named: "org/pairs", "dataset_config": "main"} | more
    made = suite(**options, train="train_prefs", test="test_prefs")
    assert contents(made, "test") == expected(ROWS[150:])
    assert sum(map(len, made._parts.values())) == 170
    assert len(made.data_files()) == 4
    assert len(contents(suite(**options | {"dataset_config": "hard"}))) == 30


def test_data_set_names_what_it_has(suite, hub):
    with pytest.raises(UsageError, match="train_prefs.*Name the split of each part"):
        suite(dataset="org/pairs", dataset_config="main").preferences()
    with pytest.raises(UsageError, match="Config name is missing.*hard.*Set dataset_config"):
        suite(dataset="org/pairs").preferences()
    with pytest.raises(UsageError, match="'esay'.*hard.*Set dataset_config"):
        suite(dataset="org/pairs", dataset_config="esay").preferences()
    with pytest.raises(UsageError, match="revision has no meaning for files"):
        suite(dataset="org/pairs", dataset_revision="main")


def test_data_set_that_is_not_there(suite):
    with pytest.raises(
        UsageError, match="org/nothing at v1, split train: (it could not|There is no f)"
    ):
        suite(dataset="org/nothing", dataset_revision="v1").preferences()


def test_what_the_hub_is_asked_for(suite, monkeypatch):
    import datasets

    asked = []

    def load(where, **options):
        asked.append((where, options))
        return iter(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("harness.core.hub.offline", lambda name: False)
    made = suite(
        dataset=["a/b", "c/d"],
        dataset_config="main",
        dataset_revision="abc",
        streaming=True,
        max_rows=250,
        train="train[:50%]",
    )
    assert len(contents(made)) == 250
    options = {"name": "main", "split": "train[:50%]", "revision": "abc", "streaming": True}
    assert asked == [("a/b", options), ("c/d", options)]


def test_folder_of_plain_data_files(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text(jsonl(ROWS[:150]))
    (tmp_path / "folder" / "test.jsonl").write_text(jsonl(ROWS[150:]))
    assert contents(suite(data="folder", test="test"), "test") == expected(ROWS[150:])


def test_save_to_disk_folder_has_no_parts_it_was_not_given(suite, tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "folder")
    with pytest.raises(UsageError, match="one data set without splits"):
        suite(data="folder", train="train").preferences()


# -- memory ----------------------------------------------------------------------------------------


def peak_of(make):
    """Return the peak of Python's memory while the rows of a suite are read, in MiB."""
    tracemalloc.start()
    try:
        make().preferences()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("layout", ["lines", "array", "indented", "object", "table", "gz"])
def test_rows_are_taken_without_reading_the_whole(suite, tmp_path, layout):
    rows = [r | {"text": "x" * 100_000} for r in ROWS]  # 20 MB
    texts = {
        "lines": lambda: jsonl(rows),
        "array": lambda: json.dumps(rows),
        "indented": lambda: json.dumps(rows, indent=1),
        "object": lambda: json.dumps({"data": rows}),
        "table": lambda: table(rows, ","),
        "gz": lambda: jsonl(rows),
    }
    name = {"table": "data.csv", "gz": "data.jsonl.gz"}.get(layout, "data.json")
    text = texts[layout]().encode()
    (tmp_path / name).write_bytes(gzip.compress(text, 1) if layout == "gz" else text)
    del text
    assert peak_of(lambda: suite(data=name, max_rows=100)) < 8


GROWTH = """
import os
import sys
from harness_suites.preference_file import PreferenceFile
from harness.core.options import build

SHARES = {"max_rows": 60, "test_share": 0.3, "validation_share": 0.2}

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

def growth(**options):
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = memory("VmRSS")
    build(PreferenceFile, {**SHARES, "folder": sys.argv[1], **options}, "suite").preferences()
    return memory("VmHWM") - before

for options in ({"data": "small/train.parquet"}, {"dataset": "small", "streaming": True}):
    growth(**options)  # libraries are imported
print(growth(data="large/train.parquet"), growth(dataset="large", streaming=True), flush=True)
os._exit(0)  # pyarrow's threads once aborted the interpreter at its end
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measured on Linux")
def test_parquet_and_streamed_rows_are_taken_without_reading_the_whole(tmp_path):
    import subprocess
    import sys

    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, size in (("small", 10), ("large", 600_000)):  # 120 MB
        (tmp_path / name).mkdir()
        rows = pa.Table.from_pylist([row | {"x": os.urandom(size)} for row in ROWS])
        file = tmp_path / name / "train.parquet"
        pq.write_table(rows, file, row_group_size=5, use_dictionary=False)
        del rows
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, tmp_path], capture_output=True, text=True, check=True
    )
    file, streamed = map(float, done.stdout.split())
    assert file < 50 and streamed < 100, done.stdout

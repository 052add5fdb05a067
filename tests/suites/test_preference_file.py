"""Suites from a file: formats, implicit prompts, splits by prompt, and bad rows named by file, row
and reason.
"""

import gzip
import json
import re

import pytest
from harness_suites.preference_file import PreferenceFile

from harness.api.participants import participants
from harness.api.resolve import Request, resolve
from harness.core.errors import UsageError
from harness.core.options import build

ROWS = [
    {"prompt": f"question {i} ?", "chosen": f" good {i}", "rejected": f" bad {i}"}
    for i in range(120)
]
TALK = [
    {
        "prompt": [{"role": "user", "content": f"question {i} ?"}],
        "chosen": [{"role": "assistant", "content": f"good {i}"}],
        "rejected": [{"role": "assistant", "content": f"bad {i}"}],
    }
    for i in range(120)
]
SPLITS = ("train", "validation", "test")


def jsonl(rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def suite(tmp_path):
    """A factory of suites: `suite(rows, "name.jsonl", seed=0, **options)`."""

    def make(rows, name="data.jsonl", seed=0, **options):
        path = tmp_path / name
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        elif rows is not None:
            path.write_text(jsonl(rows))
        made = build(PreferenceFile, {"data": name, "folder": str(tmp_path)} | options, "suite")
        made.shared_seed = seed
        return made

    return make


def everything(made):
    """All pairs of a suite, wherever they went."""
    return [pair for part in made._parts.values() for pair in part]


def contents(made):
    return sorted((str(p.prompt.text), str(p.chosen), str(p.rejected)) for p in everything(made))


def expected(rows):
    return sorted((str(r["prompt"]), str(r["chosen"]), str(r["rejected"])) for r in rows)


# -- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [ROWS, TALK], ids=["plain", "conversational"])
def test_json_lines(suite, rows):
    assert contents(suite(rows)) == expected(rows)


@pytest.mark.parametrize("rows", [ROWS, TALK], ids=["plain", "conversational"])
def test_gzipped_json_lines(suite, rows):
    assert contents(suite(gzip.compress(jsonl(rows).encode()), "data.jsonl.gz")) == expected(rows)


@pytest.mark.parametrize("rows", [ROWS, TALK], ids=["plain", "conversational"])
def test_parquet(suite, tmp_path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    assert contents(suite(None, "data.parquet")) == expected(rows)


@pytest.mark.parametrize("rows", [ROWS, TALK], ids=["plain", "conversational"])
def test_folder_of_save_to_disk(suite, tmp_path, rows):
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    assert contents(suite(None, "folder")) == expected(rows)


def test_folder_with_splits(suite, tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(ROWS), more=Dataset.from_list(ROWS[:60])).save_to_disk(
        tmp_path / "folder"
    )
    assert len(everything(suite(None, "folder"))) == 120
    assert len(everything(suite(None, "folder", train="more"))) == 60
    with pytest.raises(UsageError, match="no split 'nosuch'; it has train, more. Name the split"):
        suite(None, "folder", train="nosuch").preferences()


def test_folder_of_something_else(suite, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        UsageError, match="no data files in it, and not one that `save_to_disk` wrote"
    ):
        suite(None, "folder").preferences()


def test_missing_file(suite):
    with pytest.raises(UsageError, match=r"data = 'gone.jsonl': there is no .*gone.jsonl"):
        suite(None, "gone.jsonl").preferences()


def test_byte_order_mark_and_windows_line_ends(suite):
    text = "\ufeff" + jsonl(ROWS).replace("\n", "\r\n") + "\r\n"
    assert contents(suite(text.encode())) == expected(ROWS)


def test_odd_characters_survive(suite):
    odd = "\u2028 \x85 \u0645 \U0001f468\u200d\U0001f469 <script> \x01 \\"
    rows = [r | {"chosen": r["chosen"] + odd} for r in ROWS]
    assert contents(suite(rows)) == expected(rows)
    raw = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    assert contents(suite(raw.encode())) == expected(rows)


def test_other_column_names(suite):
    rows = [{"question": r["prompt"], "yes": r["chosen"], "no": r["rejected"]} for r in ROWS]
    made = suite(rows, prompt_column="question", chosen_column="yes", rejected_column="no")
    assert contents(made) == expected(ROWS)


def test_max_rows_takes_the_beginning(suite):
    assert contents(suite(ROWS, max_rows=90)) == expected(ROWS[:90])


# -- implicit prompts ------------------------------------------------------------------------------


def implicit(before, chosen, rejected):
    return {"chosen": before + chosen, "rejected": before + rejected}


def test_implicit_prompt_is_what_both_share(suite):
    rows = [implicit(f"question {i} ?", " good", " bad") for i in range(120)]
    made = suite(rows)
    assert contents(made) == sorted((f"question {i} ?", " good", " bad") for i in range(120))


def test_implicit_prompt_ends_where_told(suite):
    rows = [
        implicit(
            f"\n\nHuman: {i}\n\nAssistant: x\n\nHuman: y\n\nAssistant:", " good day", " good night"
        )
        for i in range(120)
    ]
    made = suite(rows, prompt_ends_with="\n\nAssistant:")
    assert all(
        p.prompt.text.endswith("y\n\nAssistant:") and p.chosen == " good day"
        for p in everything(made)
    )


def test_implicit_prompt_ends_at_the_last_shared_marker(suite):
    rows = [implicit(f"Q {i} A:", " first", " second A: third") for i in range(120)]
    made = suite(rows, prompt_ends_with="A:")
    assert all(
        p.prompt.text.endswith(" A:") and p.rejected == " second A: third" for p in everything(made)
    )


def test_implicit_conversation(suite):
    rows = [{c: r["prompt"] + r[c] for c in ("chosen", "rejected")} for r in TALK]
    assert contents(suite(rows)) == expected(TALK)


@pytest.mark.parametrize(
    ("row", "ends", "reason"),
    [
        (implicit("", "yes", "no"), "", "share no beginning"),
        (implicit("Q ", "yes", "no"), "A:", "share no beginning with 'A:'"),
        (implicit("Q", "", " more"), "", "an empty completion"),
    ],
)
def test_no_implicit_prompt(suite, row, ends, reason):
    with pytest.raises(UsageError, match=rf"data.jsonl, row 1: .*{reason}"):
        suite([row], prompt_ends_with=ends).preferences()


# -- splits ----------------------------------------------------------------------------------------


def parts(made):
    return {name: {p.prompt.id for p in pairs} for name, pairs in made._parts.items()}


def test_splits_are_disjoint_and_complete(suite):
    made = suite([*ROWS, *[r | {"chosen": " better"} for r in ROWS]])  # every prompt twice
    found = parts(made)
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 120
    prompts = [{p.id for p in made.prompts(split)} for split in SPLITS]
    assert (
        not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]
    )
    assert len(made.prompts("test")) == len(prompts[2])


def test_splits_are_by_prompt_and_stable(suite):
    assert parts(suite(ROWS)) == parts(suite(ROWS[::-1])) == parts(suite([*ROWS, *ROWS]))
    fewer, more = parts(suite(ROWS[:100])), parts(suite(ROWS))
    assert all(fewer[name] <= more[name] for name in fewer)


def test_seed_changes_the_splits(suite):
    assert parts(suite(ROWS, seed=0)) != parts(suite(ROWS, seed=1))
    assert contents(suite(ROWS, seed=1)) == expected(ROWS)


@pytest.mark.parametrize("seed", range(5))
def test_judges_half_is_the_judges_alone(suite, seed):
    made = suite([*ROWS, *ROWS], seed=seed)
    judged = {p.prompt.id for p in made.judge_preferences()}
    seen = {p.prompt.id for p in made.preferences()} | {d.prompt.id for d in made.demonstrations()}
    seen |= {
        p.id for split in ("train", "preferences", "demonstrations") for p in made.prompts(split)
    }
    assert judged and seen and not judged & seen
    assert not judged & {p.id for split in ("validation", "test") for p in made.prompts(split)}


def test_demonstrations_and_references_are_the_chosen(suite):
    made = suite(ROWS)
    chosen = {r["prompt"]: r["chosen"] for r in ROWS}
    assert all(d.completion == chosen[d.prompt.text] for d in made.demonstrations())
    references = made.references("test")
    assert {p.id: chosen[p.text] for p in made.prompts("test")} == references


def test_order_of_a_messages_keys_does_not_matter(suite):
    turned = [r | {"prompt": [dict(reversed(m.items())) for m in r["prompt"]]} for r in TALK]
    assert parts(suite(TALK)) == parts(suite(turned))


def test_too_few_rows_for_the_splits(suite):
    with pytest.raises(
        UsageError, match=r"2 usable rows are too few; none is left for .*(test|validation)"
    ):
        suite(ROWS[:2]).preferences()


# -- bad rows --------------------------------------------------------------------------------------

GOOD = ROWS[0]
BAD = {
    "broken": ('{"prompt": "a", "chosen":', "not a JSON object"),
    "no column": ({"prompt": "a", "chosen": "b"}, "no column 'rejected'; there are chosen, prompt"),
    "number": (GOOD | {"chosen": 3}, "expected text or a list of messages.*not '3'"),
    "null": (GOOD | {"rejected": None}, "expected text .*not 'None'"),
    "no role": (
        GOOD | {"chosen": [{"content": "x"}], "rejected": [{"content": "y"}]},
        "role and content",
    ),
    "no messages": (GOOD | {"chosen": [], "rejected": []}, "expected text or a list of messages"),
    "same": (GOOD | {"rejected": GOOD["chosen"]}, "chosen and rejected are the same"),
    "empty": (GOOD | {"chosen": ""}, "an empty completion"),
    "blank": (GOOD | {"rejected": " \n\t"}, "an empty completion"),
    "array": ([1, 2], "expected an object with 'chosen' and 'rejected'"),
    "text": ('"just text"', "expected an object"),
    "user": (
        GOOD | {"rejected": [{"role": "user", "content": "x"}]},
        "share no beginning",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_row_is_named_with_its_reason(suite, name):
    row, reason = BAD[name]
    with pytest.raises(UsageError) as refusal:
        suite([*ROWS[:2], row, *ROWS[2:]]).preferences()
    told = str(refusal.value)
    assert re.search(rf"data\.jsonl, (row|line) 3: .*{reason}", told), told
    assert 'bad_rows = "skip"' in told


@pytest.mark.parametrize("name", BAD)
def test_bad_row_can_be_skipped(suite, name):
    row, _ = BAD[name]
    assert contents(suite([*ROWS[:2], row, *ROWS[2:]], bad_rows="skip")) == expected(ROWS)


def test_nothing_but_bad_rows(suite):
    with pytest.raises(UsageError, match=r"data.jsonl: no usable row \(12 skipped\)"):
        suite([row for row, _ in BAD.values()], bad_rows="skip").preferences()


def test_empty_file(suite):
    with pytest.raises(UsageError, match="no usable row"):
        suite(b"").preferences()


def test_blank_lines_count_as_lines(suite):
    text = f"{jsonl(ROWS[:2])}\n\n{json.dumps(BAD['same'][0])}\n"
    with pytest.raises(UsageError, match="(row|line) 5:"):
        suite(text.encode()).preferences()


def test_null_prompt_is_not_an_implicit_one(suite):
    row = {"prompt": None, "chosen": "The sea is blue", "rejected": "The sea is dry"}
    with pytest.raises(UsageError, match="row 1"):
        suite([row, *ROWS]).preferences()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.jsonl", b'{"prompt": "\xff\xfe"}\n'),
        ("data.jsonl.gz", b"not gzip"),
        ("data.parquet", b"not parquet"),
    ],
)
def test_file_that_is_not_what_its_name_says(suite, name, content):
    with pytest.raises(UsageError, match=re.escape(name)):
        suite(content, name).preferences()


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data": ""}, "either data .* or dataset"),
        ({"dataset": "hub/id"}, "either data .* or dataset"),
        ({"bad_rows": "ignore"}, "bad_rows is fail or skip"),
        ({"test_share": "0"}, "test_share"),
        ({"test_share": 0.9}, "leave at least"),
        ({"nosuch": 1}, "no option 'nosuch'"),
    ],
)
def test_options_that_make_no_sense(suite, options, told):
    with pytest.raises(UsageError, match=told):
        suite(ROWS, **options)


def resolved(tmp_path, text, registry=None):
    from harness.api.registry import installed

    (tmp_path / "mine.toml").write_text(text)
    spec = resolve(Request("dpo", str(tmp_path / "mine.toml")), registry or installed())
    return spec, participants(spec, installed()).suite


def test_suite_file(tmp_path):
    (tmp_path / "data.jsonl").write_text(jsonl(ROWS))
    text = (
        'data = "data.jsonl"\nmax_completion_tokens = 9\n[settings.dpo]\nbeta ='
        " 0.7\n[stages.sft]\nsteps = 3\n"
    )
    spec, made = resolved(tmp_path, text)
    assert (
        spec.suite_name == "mine"
        and spec.options["beta"] == 0.7
        and spec.stages["sft"]["steps"] == 3
    )
    assert contents(made) == expected(ROWS) and made.max_new_tokens == 9


def test_other_data_is_another_run(tmp_path):
    (tmp_path / "data.jsonl").write_text(jsonl(ROWS))
    first, _ = resolved(tmp_path, 'data = "data.jsonl"\n')
    (tmp_path / "data.jsonl").write_text(jsonl(ROWS[1:]))
    second, _ = resolved(tmp_path, 'data = "data.jsonl"\n')
    assert first.fingerprint() != second.fingerprint()


@pytest.mark.parametrize("title", ["../../outside", "a/b"])
def test_title_that_is_no_folder_name_is_refused(tmp_path, title):
    with pytest.raises(UsageError, match="title"):
        resolved(tmp_path, f'data = "data.jsonl"\ntitle = "{title}"\n')

"""The table of formats in docs/verifiers.md says what the verifiers say."""

import json
import re
from pathlib import Path

from harness_plugins.verifiers.final_number import FinalNumber

from ...helpers.tools import ROOT

FOLDER = Path(__file__).parent


def test_table_of_formats_is_as_final_number_judges():
    lines = (FOLDER / "answer_formats.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    table = re.findall(
        r"^\| `` (.*) `` \| `` (.*) `` \| (yes|no) \| (yes|no) \| (yes|no) \|$",
        (ROOT / "docs" / "verifiers.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(table) == len(rows) == 100
    verifier = FinalNumber()
    for row, (_, _, right, ours, _) in zip(rows, table, strict=True):
        (verdict,) = verifier.verify(
            [None], [row["answer"]], [verifier.read_gold(row["gold"])], [True]
        )
        assert (right == "yes") == row["right"] and (ours == "yes") == (verdict == 1.0), row

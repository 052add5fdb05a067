"""Local files as data sets of lm-evaluation-harness: see the YAML files beside this one."""

import json
from pathlib import Path

import datasets


def gsm8k(data, **rest):
    """Return GSM8K below the folder `data`: gsm8k/train.jsonl and gsm8k/test.jsonl."""
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list(_lines(Path(data) / "gsm8k" / f"{split}.jsonl"))
            for split in ("train", "test")
        }
    )


def svamp(data, **rest):
    """Return SVAMP below the folder `data`: svamp/SVAMP.json."""
    rows = json.loads((Path(data) / "svamp" / "SVAMP.json").read_text(encoding="utf-8"))
    return datasets.DatasetDict({"test": datasets.Dataset.from_list([_problem(r) for r in rows])})


def _problem(row):
    body = row["Body"].strip()
    body = body if body.endswith((".", "?", "!")) else f"{body}."
    return {
        "question": f"{body} {row['Question'].strip()}",
        "equation": row["Equation"],
        "answer": f"{float(row['Answer']):g}",
    }


def _lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

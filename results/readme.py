"""Put rows and columns of the committed table into the README, between `<!-- FILE: METHODS -->` and
`<!-- end -->`.

python results/readme.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- (results/\S+\.md): ([\w ]+) -->\n.*?<!-- end -->", re.DOTALL)
COLUMNS = (
    "method",
    "win-rate vs baseline [95 %]",
    "KL (nats)",
    "length",
    "train TFLOP",
    "models held (params)",
)
RENAMED = {  # what tables made before the method `start` had this name call it, and its answers
    "sft": "start",
    "win-rate vs SFT [95 %]": "win-rate vs baseline [95 %]",
}


def cells(line: str) -> list[str]:
    """Return the cells of one line of a Markdown table, without the type that says which rows are
    best.
    """
    texts = [cell.strip().replace("*", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    return [RENAMED.get(text, text) for text in texts]


def shortened(table: str, methods: list[str]) -> str:
    """Return the rows of `methods`, in this order, with the columns that are shown."""
    header, rule, *rows = (cells(line) for line in table.splitlines() if line.startswith("|"))
    by_method = {row[0]: row for row in rows}
    columns = [header.index(name) for name in COLUMNS]
    lines = [header, rule, *(by_method[name] for name in methods)]
    return "\n".join("| " + " | ".join(line[i] for i in columns) + " |" for line in lines) + "\n"


def filled(text: str) -> str:
    """Return a text with every block replaced by what its file holds."""

    def block(match: re.Match[str]) -> str:
        file, methods = match.groups()
        table = (ROOT / file).read_text(encoding="utf-8")
        return f"<!-- {file}: {methods} -->\n{shortened(table, methods.split())}<!-- end -->"

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")

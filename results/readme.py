"""Put the committed tables, fewer columns of them, into the README, between `<!-- FILE -->` and
`<!-- end -->`:

python results/readme.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- (results/\S+\.md) -->\n.*?<!-- end -->", re.DOTALL)
SHOWN = (
    "method",
    "seeds",
    "win-rate vs SFT [95 %]",
    "length-controlled",
    "accuracy",
    "KL (nats)",
    "length",
    "train TFLOP",
    "reward queries",
    "labels",
    "AI labels",
    "models held (params)",
    "peak MiB",
)


def shortened(table: str) -> str:
    """Return a file's title, table with the columns that are shown, and caption; its notes stay in
    the file.
    """
    lines = table.splitlines()
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if line.startswith("|")
    ]
    kept = [i for i, name in enumerate(rows[0]) if name in SHOWN]
    caption = next(line for line in lines[1:] if line and not line.startswith("|"))
    return (
        "\n".join(
            [
                lines[0],
                "",
                *("| " + " | ".join(row[i] for i in kept) + " |" for row in rows),
                "",
                caption,
            ]
        )
        + "\n"
    )


def filled(text: str) -> str:
    """Return a text with every block replaced by what its file holds."""
    return BLOCK.sub(
        lambda m: f"<!-- {m[1]} -->\n{shortened((ROOT / m[1]).read_text())}<!-- end -->", text
    )


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")

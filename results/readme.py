"""Put the committed tables, fewer columns of them, into the README, between `<!-- FILE -->` and `<!-- end -->`:

python results/readme.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- (results/\S+\.md) -->\n.*?<!-- end -->", re.DOTALL)
SHOWN = (
    "method", "seeds", "win-rate vs SFT [95 %]", "accuracy", "KL (nats)", "length", "train s / CPU s", "train TFLOP",
    "reward queries", "labels", "AI labels", "models held (params)", "peak MiB",
)  # fmt: skip


def shortened(table: str) -> str:
    """Return a file's title and table with the columns that are shown; its notes stay in the file."""
    title, rows = table.splitlines()[0], [line.split("|") for line in table.splitlines() if line.startswith("|")]
    kept = [i for i, name in enumerate(rows[0]) if name.strip() in SHOWN]
    lines = ["|" + "|".join(row[i] for i in kept) + "|" for row in rows]
    return "\n".join([title, "", *lines]) + "\n"


def filled(text: str) -> str:
    """Return a text with every block replaced by what its file holds."""
    return BLOCK.sub(lambda m: f"<!-- {m[1]} -->\n{shortened((ROOT / m[1]).read_text())}<!-- end -->", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")

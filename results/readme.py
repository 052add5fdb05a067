"""Put the committed tables into the README, between `<!-- FILE -->` and `<!-- end -->`: python results/readme.py"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- (results/\S+\.md) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """Return a text with every block replaced by its file."""
    return BLOCK.sub(lambda m: f"<!-- {m[1]} -->\n{(ROOT / m[1]).read_text()}<!-- end -->", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")

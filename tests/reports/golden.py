"""Golden files: what a report looked like when somebody last looked at it.

``OVERWRITE=1 python -m pytest tests/reports`` writes them anew; the diff is there to be read.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def check(name: str, text: str) -> None:
    file = FOLDER / name
    if os.environ.get("OVERWRITE"):
        file.write_text(text + "\n", "utf-8")
    assert text + "\n" == file.read_text("utf-8")

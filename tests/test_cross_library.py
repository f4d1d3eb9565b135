"""The table of pairs of libraries: a row that was kept is done again where its code changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.cross_library import BEGINS, imported

ROOT = Path(__file__).parents[1]
LOADED = f"""
import sys, {BEGINS}
rooms = "surgery.graph.", "surgery.operations."
print(*(m.__file__ for name, m in sys.modules.items() if name.startswith(rooms)), sep="\\n")
"""


def test_every_file_that_a_transplant_by_graph_loads_decides_over_a_row():
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    found = {str(path) for path in imported()}
    assert found >= set(loaded)
    assert all(Path(path).is_relative_to(ROOT) for path in found)
    names = {Path(path).stem for path in found}
    assert {"by_graph", "proof", "seams", "reduce", "align"} <= names

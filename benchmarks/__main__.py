"""Run benchmarks: ``python -m benchmarks [name ...]``.

Without a name, every question; ``seeds`` stands for all textbook cases.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def scripts(folder: Path) -> list[str]:
    """The files that run; the others are what these measure and write with."""
    return sorted(
        path.stem
        for path in folder.glob("[a-z]*.py")
        if 'if __name__ == "__main__":' in path.read_text("utf-8")
    )


QUESTIONS = scripts(HERE)
SEEDS = scripts(HERE / "seeds")
MODULES = {name: f"benchmarks.{name}" for name in QUESTIONS}
MODULES |= {name: f"benchmarks.seeds.{name}" for name in SEEDS}


def main(names: list[str]) -> int:
    wanted = [each for name in names for each in (SEEDS if name == "seeds" else [name])]
    unknown = [name for name in wanted if name not in MODULES]
    if unknown:
        known = ", ".join(["seeds", *MODULES])
        print(f"no such benchmark: {', '.join(unknown)}; there are {known}")
        return 2
    failed = []
    for name in wanted or QUESTIONS:
        # Each in a process of its own: one finds no caches that another left.
        if subprocess.run([sys.executable, "-m", MODULES[name]], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Run every benchmark, or those that are named: ``python -m benchmarks [name ...]``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

QUESTIONS = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
# What the others measure with.
QUESTIONS.remove("timing")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in QUESTIONS]
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
        return 2
    failed = []
    for name in names or QUESTIONS:
        # Each in a process of its own: one finds no caches that another left.
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

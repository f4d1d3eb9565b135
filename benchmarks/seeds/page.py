"""What a textbook case prints: a table for people, kept in ``benchmarks/results``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def page(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *notes: str) -> str:
    """One table in Markdown, numbers to the right, and what there is to say about it."""
    cells = [list(row) for row in rows]
    numeric = [
        all(isinstance(row[place], int | None) for row in cells) for place in range(len(columns))
    ]
    lines = [
        f"# {title}",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'|'.join('---:' if right else '---' for right in numeric)}|",
        *(f"| {' | '.join(map(written, row))} |" for row in cells),
    ]
    for note in notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def written(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def publish(text: str, name: str) -> None:
    """Print a page, and write it to the results under the name of its script."""
    print(text)
    (RESULTS / f"{name}.md").write_text(text, "utf-8")

"""The pages of docs/ and the README as what can be run: blocks of code, in order, as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
NOT_RUN = "Not run in the tests, because "
# Directives of MyST that hold code; whatever else stands in braces holds text or nothing.
_CODE = {"code-block": "", "drawing": "python"}
_FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})(?P<info>[^\n`]*)$")
_FILE = re.compile(r"# (?P<name>[\w./-]+\.(?:py|yaml|toml))\n")


@dataclass(frozen=True)
class Block:
    """One fenced block of code.

    Attributes:
        page: path of the page, from docs/.
        line: number of its first line of code, from 1.
        language: what stands behind the fence.
        text: the code.
        caption: what is shown above it.
    """

    page: str
    line: int
    language: str
    text: str
    caption: str = ""

    @property
    def where(self) -> str:
        return f"docs/{self.page}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run, as the page says, or None."""
        return self.caption.removeprefix(NOT_RUN) if self.caption.startswith(NOT_RUN) else None

    @property
    def file(self) -> str | None:
        """The file that it is, as its first line says, or None."""
        found = _FILE.match(self.text)
        return found["name"] if found else None

    @property
    def is_doctest(self) -> bool:
        return self.language == "python" and self.text.startswith(">>> ")


@dataclass(frozen=True)
class Page:
    """One page: its path from docs/, and its blocks of code."""

    path: str
    blocks: tuple[Block, ...]


def parse(path: str, text: str) -> Page:
    """Find the blocks of code in a page."""
    return Page(path, tuple(_blocks(path, text.splitlines())))


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        at += 1
        if opening is None:
            continue
        fence, info = opening["fence"], opening["info"].strip()
        end = next((n for n in range(at, len(lines)) if lines[n].rstrip() == fence), None)
        if end is None:
            raise ValueError(f"docs/{page}:{at}: a block without an end")
        name, _, language = info.partition(" ")
        if name.startswith("{") and name.strip("{}") not in _CODE:
            # Prose in a box may hold code of its own; raw directives hold their arguments.
            yield from (
                Block(page, at + inner.line, inner.language, inner.text, inner.caption)
                for inner in _blocks(page, lines[at:end])
            )
        else:
            first, options = _options(lines, at, end)
            body = "\n".join(lines[first:end]) + "\n"
            language = (language or _CODE[name.strip("{}")]) if name.startswith("{") else info
            yield Block(page, first + 1, language, body, options.get("caption", ""))
        at = end + 1


def _options(lines: list[str], at: int, end: int) -> tuple[int, dict[str, str]]:
    options = {}
    while at < end and (option := re.match(r":([\w-]+):\s*(.*)$", lines[at])):
        options[option[1]] = option[2]
        at += 1
    if options:
        while at < end and not lines[at].strip():
            at += 1
    return at, options


def pages() -> list[Page]:
    """Every page that this project writes in docs/, and the README."""
    paths = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
    return [
        parse(path, (DOCS / path).read_text("utf-8"))
        for path in ("../README.md", *paths)
        if not path.startswith("_build/")
    ]

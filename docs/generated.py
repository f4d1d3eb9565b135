"""What the pages show of the program itself, made while they are built.

A marker in a page, ``<!-- generated: commands -->``, stands for text that is made of the program; a
``{drawing}`` shows code and the drawing that it makes.
"""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from surgery import errors

_MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.M)
WIDTH = 88


def commands() -> str:
    """Every command of the command line with its help, as Markdown."""
    from surgery.cli.main import cli

    return "\n".join(_helped(cli, ("surgery",), None))


def _helped(
    command: click.Command, path: tuple[str, ...], parent: click.Context | None
) -> Iterator[str]:
    context = click.Context(command, info_name=path[-1], parent=parent, terminal_width=WIDTH)
    yield f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _helped(inner, (*path, name), context)


def error_tree() -> str:
    """The tree of errors as it is drawn in the docstring of its module."""
    drawn = inspect.getdoc(errors) or ""
    return f"```text\n{drawn[drawn.index('SurgeryError') :]}\n```\n"


def error_classes() -> str:
    """A reference entry for every error and warning."""
    named = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    entries = "\n".join(f".. autoexception:: surgery.errors.{name}" for name in named)
    return f"```{{eval-rst}}\n{entries}\n```\n"


GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands,
    "error_tree": error_tree,
    "error_classes": error_classes,
}


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Put generated text where a page has a marker for it."""
    source[0] = _MARKER.sub(lambda found: GENERATED[found[1]](), source[0])


def without_emphasis(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Docstrings know code and no emphasis: a star in their prose is a star."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``.*?``)", line)
            parts[::2] = (part.replace("*", r"\*") for part in parts[::2])
            lines[number] = "".join(parts)


def whole_returns(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """What stands before a colon under Returns is the start of a sentence and no type."""
    returns = next((n for n, line in enumerate(lines) if line.startswith(":returns: ")), None)
    kind = next((n for n, line in enumerate(lines) if line.startswith(":rtype: ")), None)
    if returns is not None and kind is not None:
        start = lines.pop(kind).removeprefix(":rtype: ")
        lines[returns] = f":returns: {start}: {lines[returns].removeprefix(':returns: ')}"


def readable_defaults(
    app: Sphinx,
    what: str,
    name: str,
    value: object,
    options: object,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """``<factory>`` is no Python, and would leave the whole signature on one line."""
    return signature and signature.replace("<factory>", "..."), returned


class Drawing(SphinxDirective):
    """Doctest code that leaves a value ``drawing``, and what it draws."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Show the code, run it, and show the SVG."""
        code = "\n".join(self.content)
        names: dict[str, Any] = {}
        for example in doctest.DocTestParser().get_examples(code):
            exec(compile(example.source, self.env.docname, "exec"), names)
        shown = nodes.literal_block(code, code, language="python")
        return [shown, nodes.raw("", names["drawing"].svg, format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("drawing", Drawing)
    app.connect("source-read", fill)
    # Before napoleon, which makes markup of its own.
    app.connect("autodoc-process-docstring", without_emphasis, priority=400)
    app.connect("autodoc-process-docstring", whole_returns, priority=600)
    app.connect("autodoc-process-signature", readable_defaults)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Arguments that several commands take, as decorators: one word and one meaning for each.

@click.command()
@options.target
@options.json
def command(target: str, as_json: bool) -> None: ...
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from surgery.cli import plugged
from surgery.errors import RecipeError

_F = TypeVar("_F", bound=Callable[..., Any])

# Generic for whoever checks types, and in late versions of click alone when it runs.
if TYPE_CHECKING:
    _OfSizes = click.ParamType[tuple[int, ...]]
    _OfText = click.ParamType[str]
    _OfPair = click.ParamType[tuple[str, Any]]
else:
    _OfSizes = _OfText = _OfPair = click.ParamType


class Shape(_OfSizes):
    """The sizes of a tensor: ``1,3,224,224``, as a tuple."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Sizes from text with commas (or an ``x``) between."""
        if isinstance(value, tuple):
            return value
        parts = str(value).replace("x", ",").split(",")
        try:
            sizes = tuple(int(part) for part in parts)
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is no shape such as 1,3,224,224", param, ctx)
        return sizes


class Target(_OfText):
    """A catalog name, ``package.module:callable``, or the path of a checkpoint."""

    name = "target"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names of the catalogs that begin so, and whatever files do."""
        names = plugged.registry(ctx).catalog_names
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return [*found, CompletionItem(incomplete, type="file")]


class Argument(_OfPair):
    """A name and a value, ``width=64``: text where it is nothing else that YAML knows."""

    name = "argument"

    def __init__(self, option: str = "--option") -> None:
        self.option = option

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Both sides of the ``=``, the second as YAML reads it.

        Example:
            >>> convert = Argument().convert
            >>> [convert(text, None, None) for text in ("width=64", "act=relu", "bias=false")]
            [('width', 64), ('act', 'relu'), ('bias', False)]
        """
        if isinstance(value, tuple):
            return value
        from surgery.recipes.document import parse_yaml

        name, text = pair(value, self.option)
        try:
            return name, parse_yaml(text, self.option).value
        except RecipeError as error:
            self.fail(f"{text!r} is no YAML: {error.found}; text needs quotes", param, ctx)


def pair(text: str, name: str) -> tuple[str, str]:
    """Both sides of an ``=``.

    Args:
        text: what was given.
        name: of the option it was given for.

    Raises:
        click.UsageError: there is none, or nothing before it.
    """
    before, middle, after = text.partition("=")
    if not before or not middle:
        raise click.UsageError(f"{name} takes two sides with = between, not {text!r}")
    return before, after


def _arguments(
    ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, Any], ...]
) -> dict[str, Any]:
    """Arguments by name, each once."""
    found = dict(value)
    if len(found) < len(value):
        names = [name for name, _ in value]
        twice = next(name for name in names if names.count(name) > 1)
        raise click.BadParameter(f"{twice!r} is given twice", ctx, param)
    return found


def target(function: _F) -> _F:
    """``TARGET``, as ``target: str``; ``surgery.cli.targets`` makes a model or weights of it."""
    return click.argument("target", type=Target(), metavar="TARGET")(function)


def json(function: _F) -> _F:
    """``--json``, as ``as_json: bool``."""
    said = "Write JSON for programs; mistakes and warnings as well, to stderr."
    return click.option("--json", "as_json", is_flag=True, help=said)(debug(function))


def debug(function: _F) -> _F:
    """``--debug``: whoever ends the run looks for it; commands are not told."""
    said = "Show the traceback of what goes wrong."
    return click.option("--debug", is_flag=True, expose_value=False, help=said)(function)


def html(function: _F) -> _F:
    """``--html FILE``, as ``html: Path | None``."""
    said = "Write the report to one HTML file that needs no network."
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("--html", type=kind, metavar="FILE", help=said)(function)


def example(function: _F) -> _F:
    """``--example SHAPE``, as ``example: tuple[int, ...] | None``."""
    said = "Shape of the input, such as 1,3,224,224; inferred if left out."
    return click.option(
        "--example", "--input-size", "example", type=Shape(), metavar="SHAPE", help=said
    )(function)


def recipient_example(function: _F) -> _F:
    """``--recipient-example SHAPE``, as ``recipient_example: tuple[int, ...] | None``."""
    said = "By graph: shape of RECIPIENT's input, where it takes another form than DONOR."
    return click.option("--recipient-example", type=Shape(), metavar="SHAPE", help=said)(function)


def num_classes(function: _F) -> _F:
    """``--num-classes N``, as ``num_classes: int | None``."""
    kind = click.IntRange(min=1)
    return click.option("--num-classes", type=kind, metavar="N", help="Number of classes.")(
        function
    )


def built_by(function: _F) -> _F:
    """``--target NAME``, as ``built_by: str | None``: what makes the model of a checkpoint."""
    said = "What builds the model of a checkpoint, where the file does not say so itself."
    return click.option("--target", "built_by", type=Target(), metavar="NAME", help=said)(function)


def arguments(function: _F) -> _F:
    """``--option NAME=VALUE``, as ``given: dict[str, Any]``."""
    return _arguments_for(function, "--option", "given", "TARGET")


def recipient_arguments(function: _F) -> _F:
    """``--option NAME=VALUE`` where there are two models, as ``given: dict[str, Any]``."""
    return _arguments_for(function, "--option", "given", "RECIPIENT")


def donor_arguments(function: _F) -> _F:
    """``--donor-option NAME=VALUE``, as ``donor_given: dict[str, Any]``."""
    return _arguments_for(function, "--donor-option", "donor_given", "DONOR")


def _arguments_for(function: _F, option: str, name: str, built: str) -> _F:
    return click.option(
        option,
        name,
        type=Argument(option),
        multiple=True,
        callback=_arguments,
        metavar="NAME=VALUE",
        help=f"Further argument for what builds {built}.",
    )(function)


def weights(function: _F) -> _F:
    """``--weights FILE``, as ``weights: Path | None``."""
    said = "A checkpoint file or directory."
    kind = click.Path(path_type=Path)
    return click.option("--weights", type=kind, metavar="FILE", help=said)(function)


def depth(default: int) -> Callable[[_F], _F]:
    """``--depth N``, as ``depth: int``.

    Args:
        default: how deep a tree is shown where nothing is said.
    """
    return click.option(
        "--depth",
        type=click.IntRange(min=0),
        default=default,
        show_default=True,
        metavar="N",
        help="Levels of modules to show.",
    )

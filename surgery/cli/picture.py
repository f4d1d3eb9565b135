"""``surgery picture``: the graph of a model as SVG, kernels and feature maps as images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgery.cli import options, plugged, show, targets

if TYPE_CHECKING:
    from torch import nn

    from surgery.pictures.blocks import Depth
    from surgery.reports.report import Fact

_FILE = click.Path(path_type=Path)


def _depth(ctx: click.Context, param: click.Parameter, value: str | None) -> Depth | None:
    """Levels from text."""
    if value is None:
        return None
    if value == "operations":
        return "operations"
    if not value.isascii() or not value.isdigit():
        said = f"{value!r} is neither a number of levels nor 'operations'"
        raise click.BadParameter(said, ctx, param)
    return int(value)


def _numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Numbers from text with commas between."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list such as 0.5,0.5,0.5", ctx, param) from None


@click.command()
@options.target
@click.option("--graph", is_flag=True, help="Draw the graph of the model, as SVG.")
@click.option("--layer", metavar="ADDRESS", help="Draw the kernels of a layer; * for several.")
@click.option("-o", "--output", type=_FILE, required=True, metavar="FILE", help="Where to.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@options.weights
@click.option("--image", type=_FILE, metavar="FILE", help="Draw what the layer makes of an image.")
@click.option(
    "--after",
    type=options.Target(),
    metavar="TARGET",
    help="A second model or checkpoint: the maps of both, and how they differ.",
)
@click.option("--leaf", metavar="PATH", help="Which of several outputs: output[0].")
@click.option("--channel", type=click.IntRange(min=0), metavar="N", help="One input channel alone.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Tiles at most; 64.")
@click.option(
    "--normalise",
    type=click.Choice(["whole", "each"]),
    help="One scale for all tiles (whole), or for each its own.",
)
@click.option("--mean", callback=_numbers, metavar="X,...", help="Subtracted from the channels.")
@click.option("--std", callback=_numbers, metavar="X,...", help="By what they are divided then.")
@click.option(
    "--depth",
    callback=_depth,
    metavar="N",
    help="Levels of modules in the graph, or operations; as deep as fits a page, if left out.",
)
@click.option("--train", is_flag=True, help="The graph in train mode.")
@options.example
@options.num_classes
@options.built_by
@options.arguments
@options.json
def command(
    target: str,
    graph: bool,
    layer: str | None,
    output: Path,
    overwrite: bool,
    weights: Path | None,
    num_classes: int | None,
    built_by: str | None,
    given: dict[str, Any],
    example: tuple[int, ...] | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Draw TARGET: its graph, the kernels of a layer, or what a layer makes of an image.

    \b
    surgery picture package:name --graph -o graph.svg
    surgery picture model.safetensors --layer conv1 -o filters.png
    surgery picture package:name --layer layer1 --image photo.jpg -o maps.png
    """  # noqa: D301
    if graph is (layer is not None):
        raise click.UsageError("either --graph or --layer ADDRESS: what is to be drawn?")
    said = {
        name: value for name, value in asked.items() if value is not None and value is not False
    }
    wrong = sorted(set(said) - ({"depth", "train"} if graph else set(asked) - {"depth", "train"}))
    if wrong:
        raise click.UsageError(
            f"--{wrong[0]} says nothing about {'a graph' if graph else 'a layer'}"
        )
    if graph and output.suffix.lower() != ".svg":
        raise click.UsageError(f"a graph is drawn as SVG, and {output.name!r} ends otherwise")
    _check_free(output, overwrite)
    after = said.pop("after", None)
    model = _model(target, weights, num_classes, built_by, given, values=not graph)
    if after is not None:
        origin = target if targets.is_path(after) and not targets.is_path(target) else built_by
        origin = origin if targets.is_path(after) else None
        after = _model(after, None, None, origin, given, values=True)
    from surgery.reports.report import Fact, Report

    inputs = {"example": targets.tensor_of(example), "registry": plugged.registry()}
    if graph:
        title, facts, notes = _drawn(model, output, overwrite, {**said, **inputs})
    else:
        leaf = said.pop("leaf", None)
        more = {**said, **inputs, "after": after, "output": leaf}
        title, facts, notes = _pictured(model, str(layer), output, overwrite, more)
    written = (Fact("title", "", title, presence="data"), Fact("path", "written", str(output)))
    show.show(Report("picture", title, (*written, *facts), (), notes), as_json)


def _check_free(output: Path, overwrite: bool) -> None:
    """Refuse a destination before anything is built."""
    from surgery.pictures.file import check

    check(output, overwrite, "surgery.picture(model, 'filters.png')")


def _model(
    target: str,
    weights: Path | None,
    num_classes: int | None,
    built_by: str | None,
    given: dict[str, Any],
    *,
    values: bool,
) -> nn.Module:
    if weights is None:
        return targets.model_of(
            target, built_by=built_by, num_classes=num_classes, options=given, values=values
        )
    if targets.is_path(target):
        targets.refuse(target, "a file", "the name of a model", {"--weights": weights})
    targets.refuse(target, "a name", "a saved file", {"--target": built_by})
    targets.find_modules_here()
    from surgery.operations.build import build
    from surgery.recipes.fitting import fitting_classes

    targets.check_given(given)
    registry = plugged.registry()
    number = num_classes or fitting_classes(target, str(weights), given, registry)
    return build(target, num_classes=number, weights=weights, registry=registry, **given).model


def _drawn(
    model: nn.Module, output: Path, overwrite: bool, asked: dict[str, Any]
) -> tuple[str, tuple[Fact, ...], tuple[str, ...]]:
    from surgery.pictures.drawing import draw
    from surgery.reports.report import Fact

    drawing = draw(model, output, overwrite=overwrite, **asked)
    facts = (
        Fact("kind", "kind", "graph", presence="data"),
        Fact("blocks", "blocks", len(drawing.sketch.blocks), "count"),
        Fact("depth", "depth", str(drawing.depth)),
    )
    return f"graph of {type(model).__name__}", facts, ()


def _pictured(
    model: nn.Module, layer: str, output: Path, overwrite: bool, asked: dict[str, Any]
) -> tuple[str, tuple[Fact, ...], tuple[str, ...]]:
    from surgery.pictures.picture import picture
    from surgery.reports.report import Fact

    made = picture(model, layer, output, overwrite=overwrite, **asked)
    height, width = made.image.shape[1:]
    facts: tuple[Fact, ...] = (
        Fact("kind", "kind", "kernels" if made.maps is None else "maps", presence="data"),
        Fact("width", "width", width, "count"),
        Fact("height", "height", height, "count"),
    )
    if asked.get("after") is not None:
        facts = (*facts, Fact("difference", "largest difference", made.difference))
    return made.title, facts, made.notes

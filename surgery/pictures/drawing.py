"""A drawing of a model's graph, folded to what fits a page."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from surgery import tree
from surgery.errors import ArgumentError
from surgery.families.registry import Registry
from surgery.findings import Head
from surgery.graph.graph import Graph
from surgery.operations.plan import Outcome
from surgery.pictures import words
from surgery.pictures.blocks import Depth, Sketch, deepest, sketch
from surgery.pictures.file import placed
from surgery.pictures.marks import Marking, marking
from surgery.pictures.repeats import folded
from surgery.pictures.svg import Caption, render
from surgery.recording import record
from surgery.survey import survey

# A page holds this many blocks; more are drawn where a depth is asked for.
_BLOCKS = 60
_MOST = 2_000
_NOTES = 4


@dataclass(frozen=True, repr=False)
class Drawing:
    """A drawing as SVG. Notebooks show it.

    Attributes:
        svg: the document, which stands alone and follows the reader's light or dark mode.
        depth: how many levels of modules are drawn.
        sketch: what is drawn: blocks, the tensors between them, frames.
    """

    svg: str
    depth: Depth
    sketch: Sketch = field(compare=False)

    def __repr__(self) -> str:
        return f"<Drawing of {len(self.sketch.blocks)} blocks, depth {self.depth}>"

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the SVG to a file, all of it or nothing.

        Args:
            path: the destination.
            overwrite: replace a file that is there.

        Returns:
            The path of the file.

        Raises:
            ArgumentError: this is no path.
            WeightsError: there is a file already, no directory, no permission or no space.

        Example:
            >>> import tempfile, torch, surgery
            >>> drawing = surgery.draw(torch.nn.Linear(3, 2), example=torch.zeros(1, 3))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     drawing.save(f"{folder}/graph.svg").name
            'graph.svg'
        """
        with placed(path, overwrite, "drawing.save('graph.svg')") as file:
            file.write(self.svg.encode())
        return Path(path).resolve()


def draw(
    target: nn.Module | Graph | Outcome,
    path: str | os.PathLike[str] | None = None,
    *,
    depth: Depth | None = None,
    outcomes: Outcome | Iterable[Outcome] = (),
    heads: Iterable[Head] | None = None,
    example: Any = None,
    train: bool = False,
    overwrite: bool = False,
    registry: Registry | None = None,
) -> Drawing:
    """Draw the graph of a model as SVG: modules, the tensors between them, heads, what is frozen.

    The model is recorded, neither run nor touched. Equal models give the same bytes, and no
    random number is drawn.

    Args:
        target: a model; a graph of ``surgery.record``, which knows neither classes nor what is
            frozen; or an outcome, whose model is drawn with what it changed marked.
        path: where to save the drawing, if anywhere.
        depth: how many levels of modules to draw: 0 is the model in one block, 1 its children.
            ``"operations"`` draws every operation. Left out, as deep as some 60 blocks go.
            Modules that repeat one right after the other are drawn once, with their number.
        outcomes: operations on the model to mark as well: what is new, transplanted or loaded.
        heads: the heads to mark; left out, those that are found in a model. ``()`` for none.
        example: the arguments of one forward pass; left out, it is supplied or inferred.
        train: draw what runs in train mode.
        overwrite: replace a file that is there.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The drawing, with its ``svg``.

    Raises:
        ArgumentError: a target, depth or path that is none, or too many operations for a drawing.
        UnsupportedModelError: the model is lazy, scripted or exported.
        RecordError: forward raised, or no example could be inferred.
        ClaimContradictedError: the family of the model claims another head than the graph shows.
        WeightsError: the file cannot be written.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
        >>> drawing = surgery.draw(net, example=torch.zeros(1, 3, 8, 8))
        >>> drawing
        <Drawing of 6 blocks, depth 1>
        >>> drawing.svg.startswith("<svg")
        True
    """
    done = (outcomes,) if isinstance(outcomes, Outcome) else tuple(outcomes)
    if isinstance(target, Outcome):
        done = (target, *(outcome for outcome in done if outcome is not target))
        target = target.model
    _check_depth(depth)
    if isinstance(target, Graph):
        graph, model, name = target, None, "Graph"
    else:
        model = tree.unwrap(tree.check_model(target))
        graph, heads = _recorded(model, example, train, heads, registry)
        name = type(model).__name__
    marks = marking(model, heads or (), done)
    chosen, found = _fold(graph, depth, marks)
    caption = _caption(graph, name, chosen, found, marks)
    drawing = Drawing(render(found, caption), chosen, found)
    if path is not None:
        drawing.save(path, overwrite=overwrite)
    return drawing


def _check_depth(depth: object) -> None:
    number = isinstance(depth, int) and not isinstance(depth, bool) and depth >= 0
    if depth is None or number or depth == "operations":
        return
    raise ArgumentError(
        "a depth is a number of levels below the root",
        where="depth",
        expected="an integer, 0 or more, or 'operations'",
        found=repr(depth),
        fix="surgery.draw(model, depth=2)",
    )


def _recorded(
    model: nn.Module,
    example: Any,
    train: bool,
    heads: Iterable[Head] | None,
    registry: Registry | None,
) -> tuple[Graph, Iterable[Head]]:
    """The graph in one mode, and the heads: those given, or those found."""
    if heads is not None:
        return record(model, example, train=train, registry=registry), heads
    known = survey(model, example, registry=registry)
    graph = known.graphs.get("train" if train else "eval")
    if graph is None:
        graph = record(model, known.example, train=train, registry=registry)
    return graph, _marked(known.heads)


def _marked(heads: Iterable[Head]) -> list[Head]:
    """Those that something besides the graph speaks for; a candidate where it is the only one."""
    every = list(heads)
    sure = [head for head in every if head.corroborated]
    return sure or (every if len(every) == 1 else [])


def _fold(graph: Graph, depth: Depth | None, marks: Marking) -> tuple[Depth, Sketch]:
    """The sketch at the depth that was asked for, or at the deepest that fits a page."""
    if not any(True for _ in graph.operations):
        raise ArgumentError(
            "there is nothing to draw: the graph has no operations",
            where="target",
            expected="a forward pass that computes something",
            found=repr(graph),
            fix="surgery.draw(model, train=True), or the graph of another model",
        )
    levels = deepest(graph)
    if depth is not None:
        found = folded(sketch(graph, depth, marks.marks), levels)
        if len(found.blocks) > _MOST:
            raise ArgumentError(
                "that is too much for one drawing",
                where=f"depth={depth!r}",
                expected=f"at most {_MOST:,} blocks",
                found=f"{len(found.blocks):,}",
                fix="surgery.draw(model), which folds to a depth that fits a page",
            )
        return depth, found
    best: tuple[Depth, Sketch] | None = None
    for level in range(1, max(levels, 1) + 1):
        found = folded(sketch(graph, level, marks.marks), levels)
        if best is not None and len(found.blocks) > _BLOCKS:
            break
        best = level, found
    return best or (0, folded(sketch(graph, 0, marks.marks), levels))


def _caption(graph: Graph, name: str, depth: Depth, found: Sketch, marks: Marking) -> Caption:
    total = sum(
        math.prod(node.outputs[0].shape) for node in graph.nodes if node.role == "parameter"
    )
    facts = [
        f"{'train' if graph.training else 'eval'} mode",
        f"{words.count(total)} parameters",
        f"{words.count(graph.flops)} floating-point operations",
        "every operation" if depth == "operations" else f"depth {depth} of {deepest(graph)}",
    ]
    notes = [f"not seen: {spot}" for spot in graph.blind_spots]
    more = len(notes) - _NOTES
    if more > 0:
        notes[_NOTES:] = [f"and {more} more, in the graph's blind_spots"]
    return Caption(name, " · ".join(facts), tuple(notes), tuple(marks.classes.items()))

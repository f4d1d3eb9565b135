"""``surgery inspect``: what a model or a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from surgery.cli import options, plugged, show, targets


@click.command()
@options.target
@click.option("--inside", metavar="ENTRY", help="Which entry of a training checkpoint.")
@options.example
@options.num_classes
@options.arguments
@options.json
@options.html
def command(
    target: str,
    inside: str | None,
    example: tuple[int, ...] | None,
    num_classes: int | None,
    given: dict[str, Any],
    as_json: bool,
    html: Path | None,
) -> None:
    """Show what TARGET is.

    Of a model: its class, family, inputs, heads, parameters, trainable ratio and size. Of a
    checkpoint: its tensors with layers folded, dtypes, metadata, and the operations that made it.
    No tensor is read, and of a safetensors file nothing but its header.
    """
    if targets.is_path(target):
        from surgery.weights.contents import contents

        asked = {"--example": example, "--num-classes": num_classes, "--option": given or None}
        targets.refuse(target, "a file", "the name of a model", asked)
        show.show(contents(target, inside=inside, registry=plugged.registry()), as_json, html)
        return
    targets.refuse(target, "a model", "a training checkpoint", {"--inside": inside})
    model = targets.model_of(target, num_classes=num_classes, options=given)
    from surgery.operations.inspection import inspect_model

    tensor = targets.tensor_of(example)
    show.show(inspect_model(model, tensor, registry=plugged.registry()), as_json, html)

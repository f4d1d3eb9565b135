"""What a model is, in short: its class, family, inputs, heads, parameters and size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from surgery import tree
from surgery.errors import SurgeryError
from surgery.families.registry import Registry, in_force
from surgery.findings import Heads
from surgery.graph.example import Example
from surgery.parameters import Audit, audit
from surgery.recording import resolve_example
from surgery.shown import Shown
from surgery.survey import survey


@dataclass(frozen=True)
class Inspection(Shown):
    """What a model is.

    Attributes:
        class_name: the qualified name of its class, wrappers passed through.
        family: the name of the family that claims it, or None.
        plugin: the plugin of that family, or None.
        example: the arguments that forward takes, or None where they are not known.
        heads: where it makes its classes, or None where it could not be recorded.
        audit: its parameters, buffers and bytes.
        notes: what could not be found out, and why.
    """

    class_name: str
    family: str | None
    plugin: str | None
    example: Example | None
    heads: Heads | None
    audit: Audit
    notes: tuple[str, ...] = ()


def inspect_model(
    model: nn.Module, example: Any = None, *, registry: Registry | None = None
) -> Inspection:
    """Find out what a model is; what cannot be found out is a note, and no error.

    Args:
        model: any module, materialised or on ``meta``. It is neither run nor touched.
        example: the arguments of one forward pass; left out, it is supplied or inferred.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        Class, family, inputs, heads and count.

    Raises:
        UnsupportedModelError: the model is lazy, scripted or exported.
        ArgumentError: the registry is none.

    Example:
        >>> import torch
        >>> found = inspect_model(torch.nn.Linear(8, 5))
        >>> found.class_name, found.audit.total, [head.num_classes for head in found.heads]
        ('torch.nn.modules.linear.Linear', 45, [5])
    """
    registry = in_force(registry)
    tree.check_model(model)
    claim = registry.find_claim(model)
    resolved, heads, notes = None, None, []
    try:
        resolved = resolve_example(model, example, registry=registry)
        found = survey(model, resolved, registry=registry)
        heads, notes = found.heads, list(found.blind_spots)
    except SurgeryError as error:
        asked = "the heads" if resolved is not None else "inputs and heads"
        notes.append(f"{asked} are not known: {error.what}" + (f"; {error.fix}" * bool(error.fix)))
    return Inspection(
        tree.class_name(type(tree.unwrap(model))),
        claim.family.name if claim else None,
        claim.plugin if claim else None,
        resolved,
        heads,
        audit(model),
        tuple(notes),
    )

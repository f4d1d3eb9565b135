"""Heads whose weights a quantised layer keeps packed: they have no rows that could be resized.

A layer of floating-point numbers takes their place, behind the quantised trunk. What dequantises
their answer afterwards has nothing left to do then, and no derivative: it goes, or nothing trains.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.ao.nn.quantized import DeQuantize

from surgery import tree
from surgery.errors import PlanError
from surgery.graph.aten import packet
from surgery.heads import Head
from surgery.operations.entries import Options
from surgery.operations.plan import Step
from surgery.survey import Survey

_FIRST = "surgery.replace_head(model, {size}), and then quantise the model"


def check_packed(model: nn.Module, known: Survey, head: Head, size: int, options: Options) -> None:
    """Refuse a packed head, unless a plugin says what to put in its place and that can train.

    Args:
        model: the model, out of its wrappers.
        known: its recordings.
        head: a head of any kind.
        size: the new number of classes.
        options: how new heads are made, with the head kinds of plugins.

    Raises:
        PlanError: the head is packed, and no head kind is registered for its class, or the
            model's own code dequantises what it makes.
    """
    if head.kind != "packed" or options.is_deeper(head):
        return
    layer = tree.get_module(model, head.address)
    stuck = sorted(set(_dequantising(known, head)) - set(_idle(model, known, head)))
    if head.address not in options.kinds:
        raise PlanError(
            "the weights of this head are packed, and cannot be given other rows",
            where=head.address or "(the model itself)",
            expected="a head of floating-point numbers, or a plugin with a head kind for its class",
            found=tree.class_name(type(layer)),
            fix=_remedy(model, known, head, size)
            if hasattr(layer, "set_weight_bias") and not stuck
            else _FIRST.format(size=size),
        )
    if options.trainable is not False and stuck:
        raise PlanError(
            "the model's own code dequantises what this head makes, which has no derivative: "
            "a new head could not be trained there",
            where=head.address or "(the model itself)",
            expected="a DeQuantize layer of its own behind the head, or nothing",
            found=f"it runs in {', '.join(address or 'the model itself' for address in stuck)}",
            fix=f"{_FIRST.format(size=size)}; or, for a head that is not trained there, "
            f"surgery.replace_head(model, {size}, trainable=False)",
        )


def idle_steps(model: nn.Module, known: Survey, head: Head) -> list[Step]:
    """The steps that take out what only dequantised the answer of a packed head."""
    if head.kind != "packed":
        return []
    index = tree.index(model)
    return [
        Step(
            "module",
            index.addresses(tree.get_module(model, address)),
            "DeQuantize",
            "Identity: the head makes floats",
            nn.Identity(),
        )
        for address in _idle(model, known, head)
    ]


def _dequantising(known: Survey, head: Head) -> dict[str, set[tuple[str, int]]]:
    """Where the answer of a packed head is dequantised: by module, the operations (by mode)."""
    found: dict[str, set[tuple[str, int]]] = {}
    for site in known.sites[head.address]:
        graph = known.graphs[site.mode]
        for ref in site.track.axes:
            node = graph.nodes[ref.node]
            given = [graph.spec(source).dtype for source in node.inputs]
            if packet(node.operation) == "dequantize" and torch.float32 not in given:
                found.setdefault(node.module, set()).add((site.mode, node.index))
    return found


def _idle(model: nn.Module, known: Survey, head: Head) -> list[str]:
    """The layers that do nothing but dequantise the answer of this head."""
    found = []
    for address, nodes in _dequantising(known, head).items():
        runs = {
            (mode, node.index)
            for mode, graph in known.graphs.items()
            for node in graph.nodes
            if node.role == "operation" and node.module == address
        }
        if runs == nodes and isinstance(tree.get(model, address), DeQuantize):
            found.append(address)
    return found


def _remedy(model: nn.Module, known: Survey, head: Head, size: int) -> str:
    """The code that does without a plugin what a head kind does."""
    layer = tree.get_module(model, head.address)
    sizes = f"{head.in_features}, {size}"
    kernel = getattr(layer, "kernel_size", None)
    made = f"Conv{len(kernel)}d({sizes}, {kernel})" if kernel else f"Linear({sizes})"
    new = f"torch.nn.Sequential(torch.ao.nn.quantized.DeQuantize(), torch.nn.{made})"
    if any(".dynamic." in cls.__module__ for cls in type(layer).__mro__):
        new = f"torch.nn.{made}"
    idle = [f", {address!r}: torch.nn.Identity()" for address in _idle(model, known, head)]
    return f"surgery.replace(model, {{{head.address!r}: {new}{''.join(idle)}}})"

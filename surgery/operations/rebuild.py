"""Heads whose class a plugin knows how to rebuild."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from surgery import tree
from surgery.errors import PluginError
from surgery.families.kinds import HeadKind
from surgery.families.registry import Registry
from surgery.graph.skeleton import build_skeleton
from surgery.heads import Head
from surgery.operations.carry import check_carry
from surgery.operations.plan import Step


def head_kinds(model: nn.Module, heads: Iterable[Head], registry: Registry) -> dict[str, HeadKind]:
    """The head kinds that plugins register for the layers of these heads, by address."""
    found = {}
    for head in heads:
        layer = tree.get(model, head.address)
        kind = registry.head_kind(layer) if isinstance(layer, nn.Module) else None
        if kind is not None:
            found[head.address] = kind
    return found


def rebuilt_step(
    model: nn.Module, head: Head, size: int, kind: HeadKind, trainable: bool | None, *, real: bool
) -> Step:
    """The step that puts a layer which its kind rebuilt where the old one was.

    Args:
        model: the model.
        head: the head.
        size: the new number of classes.
        kind: what the plugin registered for the layer's class.
        trainable: ``requires_grad`` of the new parameters; None keeps that of the first old one.
        real: rebuild the layer; else a skeleton of it, to try the shapes out.

    Raises:
        PluginError: the kind raised, or made no new layer.
        PlanError: the hooks of the old layer cannot be carried over.
    """
    layer = tree.get_module(model, head.address)
    where = f"HeadKind({kind.name!r}).rebuild"
    given = layer if real else build_skeleton(layer).model
    try:
        new = kind.rebuild(given, size)
    except Exception as error:  # a plugin's code: anything can come out
        raise PluginError(
            f"head kind {kind.name!r} could not rebuild this layer: {error}",
            where=where,
            expected=f"a {type(layer).__name__} with {size} classes",
            found=type(error).__name__,
            fix=f"correct it, or surgery.replace(model, {{{head.address!r}: module}})",
        ) from error
    if not isinstance(new, nn.Module) or new is given:
        raise PluginError(
            f"head kind {kind.name!r} made no new layer",
            where=where,
            expected="another torch.nn.Module of the same kind",
            found="the old layer itself" if new is given else type(new).__name__,
            fix="return a layer made by its constructor",
        )
    check_carry(layer, new, head.address)
    old = next(layer.parameters(), None)
    flag = (old is None or old.requires_grad) if trainable is None else trainable
    for parameter in new.parameters():
        if parameter.dtype.is_floating_point or parameter.dtype.is_complex:
            parameter.requires_grad_(flag)
    before = f"{type(layer).__name__} ({head.in_features} -> {head.num_classes})"
    after = f"{type(new).__name__} ({head.in_features} -> {size}), by head kind {kind.name!r}"
    return Step("root" if head.address == "" else "module", head.addresses, before, after, new)

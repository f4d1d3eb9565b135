"""Which example a model is recorded with: the caller's, its family's, or an inferred one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from surgery import tree
from surgery.errors import PluginError, RecordError
from surgery.families.applied import attribute, example_for
from surgery.families.family import Family
from surgery.families.registry import Registry, in_force
from surgery.families.wrapping import Wrapping
from surgery.graph.example import Example
from surgery.graph.graph import Graph
from surgery.graph.infer import infer_example
from surgery.graph.record import needs_values, record_graph


def record(
    model: nn.Module,
    example: Any = None,
    *,
    train: bool | None = None,
    registry: Registry | None = None,
) -> Graph:
    """Record one forward pass of a model as a graph, without running or touching the model.

    Parameters and buffers are replaced by stand-ins on the ``meta`` device, so nothing is
    computed and no weight is read. Where forward needs values, real tensors are used and the
    graph says so in its blind spots.

    Args:
        model: any module, materialised or on ``meta``, wrapped or not, frozen or not.
        example: a tensor, a tuple of arguments, a dict of keyword arguments or an ``Example``;
            left out, the family supplies it or it is inferred.
        train: record in train mode (True), eval mode (False) or the modes the modules are in.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The graph: operations with arguments, shapes, dtypes, parameters, module and
        floating-point operations; outputs by path; blind spots.

    Raises:
        UnsupportedModelError: the model is lazy, scripted or exported.
        ExampleError: no example could be inferred, or forward does not take it.
        RecordError: forward raised.

    Example:
        >>> import torch, surgery
        >>> graph = surgery.record(torch.nn.Linear(4, 3), torch.zeros(2, 4))
        >>> [node.operation for node in graph.operations]
        ['aten.t.default', 'aten.addmm.default']
        >>> graph.leaves[0].spec.shape
        (2, 3)
    """
    tree.check_model(model)
    return record_graph(model, resolve_example(model, example, registry=registry), train=train)


def resolve_example(
    model: nn.Module, example: Any = None, *, registry: Registry | None = None
) -> Example:
    """The example to use: the given one, else the family's, else one that is inferred.

    Args:
        model: any module.
        example: what the caller passed, or None.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        An example. Inferred ones have their floating tensors on ``meta``.

    Raises:
        ExampleError: nothing was given and nothing could be inferred.
    """
    registry = in_force(registry)
    taken = [wrapping for wrapping in registry.wrappings if wrapping.bare is not None]
    prepare = partial(_bared, taken) if any(_modules(model, taken)) else None
    if example is not None:
        given = _with_forward(Example.of(example), registry.claim(model), model)
        return given if prepare is None else replace(given, prepare=prepare)
    known = _of_family(model, registry)
    if known is not None:
        return known if prepare is None else replace(known, prepare=prepare)
    inner = _handed_on(model)
    if inner is not None:
        found = resolve_example(inner, registry=registry)
        return found if prepare is None else replace(found, prepare=prepare)

    def attempt(candidate: Example, train: bool) -> Exception | None:
        candidate = replace(candidate, prepare=prepare)
        try:
            record_graph(model, candidate, train=train, operations=False, backends=("meta",))
        except RecordError as error:
            if not needs_values(error.__cause__):
                return error
            return _attempt_real(model, candidate, train)
        return None

    found = infer_example(model, attempt)
    return found if prepare is None else replace(found, prepare=prepare)


def _of_family(model: nn.Module, registry: Registry) -> Example | None:
    """What the model's family knows, or that of the model which it carries."""
    family = registry.claim(model)
    if family is not None:
        return example_for(family, model)
    bare = tree.unwrap(model)
    for wrapping in registry.wrappings:
        inner = attribute(bare, wrapping.carries) if wrapping.carries else None
        if isinstance(inner, nn.Module) and wrapping.is_on(bare):
            known = _of_family(inner, registry)
            # What stands in for a forward is for the model itself.
            return known if known is None or known.forward is None else None
    return None


def _modules(
    model: nn.Module, wrappings: Sequence[Wrapping]
) -> Iterator[tuple[Wrapping, nn.Module]]:
    """Every module that one of these is on."""
    if wrappings:
        for module in model.modules():
            yield from ((wrapping, module) for wrapping in wrappings if wrapping.is_on(module))


def _bared(wrappings: Sequence[Wrapping], stand_in: nn.Module) -> None:
    """Take off a stand-in what would be in the way of a recording."""
    for wrapping, module in list(_modules(stand_in, wrappings)):
        if wrapping.bare is not None:
            wrapping.bare(module)


def _handed_on(model: nn.Module) -> nn.Module | None:
    """The first part of a model that hands all of its arguments on, whatever they are."""
    inner = tree.unwrap(model)
    try:
        taken = list(inspect.signature(inner.forward).parameters.values())
    except (TypeError, ValueError):
        return None
    kinds = {parameter.kind for parameter in taken}
    if kinds != {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return None
    return next(iter(inner.children()), None)


def _with_forward(given: Example, family: Family | None, model: nn.Module) -> Example:
    """The caller's arguments, for what the family records in place of a forward on values."""
    if family is None or given.forward is not None or not callable(family.example):
        return given
    try:
        known = example_for(family, model)
    except PluginError:  # it tells callers to pass an example, which this one did
        return given
    return given if known is None else replace(given, forward=known.forward)


def _attempt_real(model: nn.Module, candidate: Example, train: bool) -> Exception | None:
    try:
        record_graph(model, candidate, train=train, operations=False, backends=("real",))
    except RecordError as error:
        return error
    return None

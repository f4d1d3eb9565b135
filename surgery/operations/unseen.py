"""Layers that stand beside a head and only run for other inputs: branches no recording took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from surgery import tree
from surgery.errors import PlanError
from surgery.graph.aten import packet
from surgery.graph.graph import Graph
from surgery.heads import Head
from surgery.survey import Survey


def check_unseen(model: nn.Module, known: Survey, chosen: Sequence[tuple[Head, int]]) -> None:
    """Refuse to leave a head's twins behind where values decide which of them runs.

    A value chose where the recording needed real tensors, or read a number out of the input's
    integers, which are real on ``meta`` too. Otherwise no value can choose a branch.

    Args:
        model: the model, out of its wrappers.
        known: its recordings.
        chosen: the heads with their new numbers of classes.

    Raises:
        PlanError: layers like a head stand beside it, and no recording ran them.
    """
    if not any(_values_chose(graph) for graph in known.graphs.values()):
        return
    ran = {a for graph in known.graphs.values() for node in graph.nodes for a in node.addresses}
    for head, size in chosen:
        if size == head.num_classes:
            continue
        twins = sorted({t for address in head.addresses for t in _twins(model, address, ran)})
        if twins:
            raise PlanError(
                "values of the input decide which layers of this model run, and for this example "
                f"some that are like {head.address!r} did not: they would keep their classes",
                where=", ".join(twins),
                expected="every layer that makes these classes in the recordings",
                found=f"{head.num_classes} classes here, and {size} asked for",
                fix="example=(an input that runs them), or give them the new number first: "
                f"surgery.replace(model, {{{twins[0]!r}: module, ...}})",
            )


def _values_chose(graph: Graph) -> bool:
    return graph.backend == "real" or any(
        node.depends_on_input and packet(node.operation) == "_local_scalar_dense"
        for node in graph.nodes
    )


def _twins(model: nn.Module, address: str, ran: set[str]) -> Iterator[str]:
    """What stands where the head does, in a module that nothing ran and that is built alike."""
    place, inside = address, ""
    while place:
        owner, name = tree.split(place)
        member, holder = tree.get(model, place), tree.get_module(model, owner)
        for other, beside in _beside(holder, member):
            found = tree.join(owner, other)
            if _like(beside, member) and not any(a in ran for a in _parameters(found, beside)):
                yield tree.join(found, inside) if inside else found
        place, inside = owner, tree.join(name, inside) if inside else name


def _beside(holder: nn.Module, member: tree.Member) -> Iterator[tuple[str, tree.Member]]:
    """The other modules, or parameters, of the module that holds this one."""
    table = holder._parameters if isinstance(member, torch.Tensor) else holder._modules
    for name, other in table.items():
        if other is not None and other is not member:
            yield name, other


def _like(first: tree.Member, second: tree.Member) -> bool:
    """Whether two members are of one class, with parameters of the same names and shapes."""
    return type(first) is type(second) and _shapes(first) == _shapes(second) != {}


def _shapes(member: tree.Member) -> dict[str, tuple[int, ...]]:
    if isinstance(member, torch.Tensor):
        return {"": tuple(member.shape)}
    named = member.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in named}


def _parameters(address: str, member: tree.Member) -> list[str]:
    return [tree.join(address, name) if name else address for name in _shapes(member)]

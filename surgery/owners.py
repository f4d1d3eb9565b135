"""Which layer a weight operand belongs to, in the words of the model's own structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from surgery import tree
from surgery.graph.aten import packet
from surgery.graph.graph import Graph, Node
from surgery.graph.walk import Mixing, weight_sources

_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, "linear"),
    (nn.ConvTranspose1d, "conv_transpose1d"),
    (nn.ConvTranspose2d, "conv_transpose2d"),
    (nn.ConvTranspose3d, "conv_transpose3d"),
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
    (nn.Bilinear, "bilinear"),
    (nn.Embedding, "embedding"),
)


@dataclass(frozen=True)
class Owner:
    """The layer that a head's weight belongs to.

    Attributes:
        address: of the module, or of the parameter (buffer, plain tensor) where the module does
            other things too.
        addresses: all of them.
        kind: as ``Head.kind``.
        weights: for each parameter behind the weight operand (each buffer or plain tensor, where
            no parameter holds a matrix), all addresses.
        tied_to: addresses of the same parameters in other layers that are used otherwise.
    """

    address: str
    addresses: tuple[str, ...]
    kind: str
    weights: tuple[tuple[str, ...], ...]
    tied_to: tuple[str, ...]


def owner_of(index: tree.Index, graph: Graph, mixing: Mixing) -> Owner:
    """Find the layer behind a mixing operation's weight.

    Args:
        index: the model's modules and tensors.
        graph: the recording.
        mixing: the operation.
    """
    if mixing.packed:
        address = graph.nodes[mixing.node].module
        module = tree.get_module(index.root, address)
        return Owner(address, index.addresses(module) or (address,), "packed", (), ())
    sources = _sources(graph, mixing)
    weights = tuple(source.addresses for source in sources)
    ran_in = graph.nodes[mixing.node].module
    owners = list(dict.fromkeys(_layer(a) for source in sources for a in source.addresses))
    common = [o for o in owners if all(_owns(o, source) for source in sources)]
    if not common:
        address = _holder(sources, ran_in)
        return Owner(
            address, (address,), "computed", weights, _read_outside(graph, sources, address)
        )
    chosen = ran_in if ran_in in common else common[0]
    module = tree.get_module(index.root, chosen)
    tied = _tied(index, graph, sources, chosen)
    if len(sources) == 1 and not _is_layer(module, sources, chosen):
        addresses = sources[0].addresses
        return Owner(addresses[0], addresses, "parameter", weights, tied)
    kind = next((name for cls, name in _KINDS if isinstance(module, cls)), "custom")
    return Owner(chosen, index.addresses(module) or (chosen,), kind, weights, tied)


def _sources(graph: Graph, mixing: Mixing) -> list[Node]:
    """The parameters behind a weight; where no matrix is among them, the matrices of buffers."""
    every = weight_sources(graph, mixing.weight)
    parameters = [source for source in every if source.role == "parameter"]
    if any(_is_matrix(source) for source in parameters):
        return parameters
    return [source for source in every if _is_matrix(source)] or parameters


def _is_matrix(source: Node) -> bool:
    return len(source.outputs[0].shape) > 1


def _layer(address: str) -> str:
    """The module that a parameter is part of: parametrizations belong to what they parametrize."""
    owner, _ = tree.split(address)
    head, marker, _ = f"{owner}.".partition("parametrizations.")
    return head.rstrip(".") if marker else owner


def _owns(layer: str, source: Node) -> bool:
    return any(_layer(address) == layer for address in source.addresses)


def _holder(sources: list[Node], ran_in: str) -> str:
    """The innermost module that holds all parameters, each at one of its addresses.

    Of several, the one in which the operation ran, or which holds it.
    """
    holding = [
        {part for address in source.addresses for part in _above(address)} for source in sources
    ]
    common = set.intersection(*holding)
    around = {ran_in, *_above(ran_in)}
    return max(sorted(common), key=lambda each: (each.count(".") + bool(each), each in around))


def _above(address: str) -> list[str]:
    """Every address of which this one is a part: the root's is empty."""
    names = address.split(".")
    return [".".join(names[:length]) for length in range(len(names))]


def _read_outside(graph: Graph, sources: list[Node], holder: str) -> tuple[str, ...]:
    """Addresses outside the head of what it is computed from and an embedding reads as well."""
    return tuple(
        place
        for source in sources
        if _is_table(graph, source)
        for place in source.addresses
        if holder and not place.startswith(f"{holder}.")
    )


def _is_table(graph: Graph, source: Node) -> bool:
    return any(
        packet(graph.nodes[user].operation).startswith("embedding")
        for user in graph.users[source.index]
    )


def _is_layer(module: nn.Module, sources: list[Node], address: str) -> bool:
    """Whether a module is nothing but the layer: no layers inside, no other weights."""
    for name, child in module._modules.items():
        if child is None or name == "parametrizations":
            continue
        if any(True for _ in child.parameters()):
            return False
    used = {place for source in sources for place in source.addresses}
    others = [
        name
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() > 1 and tree.join(address, name) not in used
    ]
    return not others


def _tied(index: tree.Index, graph: Graph, sources: list[Node], owner: str) -> tuple[str, ...]:
    """Addresses of the weight in layers that use it for something else than this head."""
    elsewhere = [
        place for source in sources for place in source.addresses if _layer(place) != owner
    ]
    # A table stays one in a pass that is given what it would have read from it.
    held = any(isinstance(tree.get_module(index.root, _layer(e)), nn.Embedding) for e in elsewhere)
    used = held or any(_is_table(graph, source) for source in sources)
    if used and not elsewhere:
        return tuple(source.addresses[0] for source in sources)
    return tuple(elsewhere) if used else ()

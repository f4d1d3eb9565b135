"""Where a model has a place for a head: an identity that its features go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.claims import claims_of
from surgery.errors import ArgumentError
from surgery.families.family import HeadRole
from surgery.families.registry import Registry
from surgery.graph.aten import packet
from surgery.graph.record import record_graph
from surgery.graph.skeleton import Skeleton
from surgery.graph.structure import tensors
from surgery.graph.walk import ancestors
from surgery.operations.attach_features import Features
from surgery.operations.simulate import MODES
from surgery.survey import Survey

_ROLES = ("main", "distillation", "projection")

# What may come between a head and the output: heads are brought together, scores made likelihoods.
_COMBINING = frozenset(
    {
        *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "mean", "sum", "neg"),
        *("stack", "cat", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "select"),
        *("alias", "detach", "clone", "_to_copy", "expand", "unbind", "split", "transpose", "t"),
        *("_softmax", "_log_softmax", "sigmoid", "sigmoid_"),
    }
)


@dataclass(frozen=True)
class Place:
    """An identity where a head may stand.

    Attributes:
        address: its first address.
        addresses: all of them.
        role: of the head that belongs there.
        shape: of the features that go through it.
        given_out: whether what goes through it is the output itself, in every mode.
    """

    address: str
    addresses: tuple[str, ...]
    role: HeadRole
    shape: tuple[int, ...]
    given_out: bool


@dataclass
class _Seen:
    """What went through identities in one forward pass; None where it came out as another."""

    calls: dict[str, list[torch.Tensor | None]] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)


def find_places(
    model: nn.Module,
    known: Survey,
    features: Features,
    registry: Registry,
    wanted: Sequence[str] | None,
) -> Iterator[tuple[Place, ...]]:
    """Groups of identities that heads may be put in the place of, the likeliest first.

    What the caller names; what the model's family claims; the last that the output goes through;
    the last of those that the same features go through, if these are all but the output: classes
    behind which the model rectifies or drops features are none.

    Args:
        model: the model, out of its wrappers.
        known: its recordings.
        features: what the head is put on.
        registry: the plugins to ask.
        wanted: the addresses that the caller gave, if any.

    Raises:
        ArgumentError: what the caller names is no identity that is called once.
    """
    index = tree.index(model)
    passes = [_watched(model, known, mode) for mode in known.graphs]
    first = passes[0]

    def place(address: str, role: HeadRole = "main") -> Place | None:
        calls = [seen.calls.get(address, []) for seen in passes]
        through = calls[0][0] if all(len(each) == 1 for each in calls) else None
        if through is None or any(each[0] is None for each in calls):
            return None
        given_out = all(
            seen.calls[address][0] is seen.outputs.get(features.path) for seen in passes
        )
        addresses = index.addresses(tree.get_module(model, address))
        return Place(address, addresses, role, tuple(through.shape), given_out)

    if wanted is not None:
        yield tuple(_asked(model, index, address, place) for address in wanted)
        return
    claimed = {
        index.addresses(tree.get_module(model, c.address))[0]: c.claim.role
        for c in claims_of(index, registry)
        if not c.base and c.claim.role in _ROLES and _is_there(index, c.address)
    }
    yield _found(place(address, role) for address, role in claimed.items())
    flat = [p for p in map(place, first.calls) if p is not None and len(p.shape) == 2]
    yield tuple(p for p in flat if p.given_out)[-1:]
    like = [p for p in flat if p.shape == features.shape]
    if like:
        through = first.calls[like[-1].address][0]
        group = tuple(p for p in like if first.calls[p.address][0] is through)
        if all(_is_last(model, known, features, group, mode) for mode in known.graphs):
            yield group


def _is_last(
    model: nn.Module, known: Survey, features: Features, group: Sequence[Place], mode: str
) -> bool:
    """Whether what comes out of places is only brought together on its way to the output."""
    addresses = {place.address for place in group}

    def edit(skeleton: Skeleton) -> None:
        for module, address in skeleton.modules:
            if address in addresses:
                # An identity leaves no trace in a graph; a copy does.
                module.forward = torch.clone

    graph = record_graph(model, known.example, train=MODES[mode], edit=edit)
    leaf = next((each for each in graph.leaves if each.path == features.path), None)
    if leaf is None or leaf.source is None:
        return False
    reached: set[int] = set()
    for index in sorted(ancestors(graph, leaf.source.node) | {leaf.source.node}):
        node = graph.nodes[index]
        name = packet(node.operation) if node.role == "operation" else ""
        if name == "clone" and node.module in addresses:
            reached.add(index)
        elif any(ref.node in reached for ref in node.inputs):
            if name not in _COMBINING:
                return False
            reached.add(index)
    return bool(reached)


def _found(places: Iterable[Place | None]) -> tuple[Place, ...]:
    return tuple(place for place in places if place is not None)


def _is_there(index: tree.Index, address: str) -> bool:
    return any(
        address in addresses and isinstance(module, nn.Identity)
        for module, addresses in index.modules.values()
    )


def _asked(model: nn.Module, index: tree.Index, address: str, place: Any) -> Place:
    """A place that the caller named.

    Raises:
        ArgumentError: it is none.
    """
    module = tree.get_module(model, address)
    first = index.addresses(module)[0]
    identity = isinstance(module, nn.Identity)
    found: Place | None = place(first) if identity else None
    if found is None:
        kind = "one that forward does not call once" if identity else type(module).__name__
        raise ArgumentError(
            "this is no place for a head",
            where=f"heads={address!r}",
            expected="an nn.Identity that the features go through, once",
            found=kind,
            fix="leave heads out, or surgery.replace(model, "
            f"{{{address!r}: torch.nn.Linear(features, classes)}}) for any module",
        )
    return found


def _watched(model: nn.Module, known: Survey, mode: str) -> _Seen:
    """Run a model on stand-ins and see what goes through its identities."""
    seen = _Seen()

    def edit(skeleton: Skeleton) -> None:
        seen.calls.clear()
        seen.outputs.clear()
        for module, address in skeleton.modules:
            if isinstance(module, nn.Identity):
                module.register_forward_hook(_Watch(seen, address))
        skeleton.model.register_forward_hook(lambda _, given, output: _note(seen, output))

    record_graph(model, known.example, train=MODES[mode], edit=edit, operations=False)
    return seen


def _note(seen: _Seen, output: Any) -> None:
    seen.outputs.update(tensors(output))


@dataclass(frozen=True, eq=False)
class _Watch:
    """A hook on an identity that notes what goes through it."""

    seen: _Seen
    address: str

    def __call__(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        through = len(given) == 1 and isinstance(output, torch.Tensor) and given[0] is output
        self.seen.calls.setdefault(self.address, []).append(output if through else None)

"""What an operator does to tensors, read from its schema once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Their output is new memory that a constructor fills afterwards, or fills itself.
FACTORIES = {
    *("aten::empty", "aten::empty_strided", "aten::zeros", "aten::ones", "aten::full"),
    *("aten::new_empty", "aten::new_empty_strided", "aten::new_zeros", "aten::new_ones"),
    *("aten::new_full", "aten::empty_like", "aten::zeros_like", "aten::ones_like"),
    *("aten::full_like",),
}
# They read no value of their first argument.
FORM_ONLY = {
    *(name for name in FACTORIES if "_like" in name or "new_" in name),
    *("aten::rand_like", "aten::randn_like", "aten::randint_like"),
}
# They write into these arguments in training, and their schema does not say so.
UNSAID = {"aten::native_batch_norm": ("running_mean", "running_var")}
_REPOINTS = {"aten::set_", "aten::_unsafe_view", "aten::lift_fresh", "aten::lift"}
# A mask makes the shape follow from values, and then it has no form on meta; indices do not.
_SHAPED = {"aten::index"}
_MOVES = {"aten::resize_", "aten::resize_as_"}


@dataclass(frozen=True)
class Traits:
    """What is known of an operator.

    Attributes:
        name: without the overload.
        arguments: their names, in order.
        writes: those written in place.
        returns: for each returned value the argument that it is, or None where it is new.
        repoints: it makes views, or changes what a tensor points to, and touches no value.
        moves: it gives a tensor other memory.
        factory: it makes new memory from no tensor's values.
        draws: it draws random numbers.
        form_only: it reads shape and dtype of its first argument, and no value.
        tensors: all it returns are tensors whose shapes follow from shapes.
    """

    name: str
    arguments: tuple[str, ...]
    writes: frozenset[str]
    returns: tuple[str | None, ...]
    repoints: bool
    moves: bool
    factory: bool
    draws: bool
    form_only: bool
    tensors: bool

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return {**dict(zip(self.arguments, args, strict=False)), **kwargs}

    def written(self, bound: Mapping[str, Any]) -> frozenset[str]:
        """The arguments that a call writes in place."""
        unsaid = UNSAID.get(self.name)
        if unsaid is None or not bound.get("training"):
            return self.writes
        return self.writes.union(unsaid)


@functools.cache
def traits_of(operator: torch._ops.OpOverload) -> Traits:
    """Read the schema of an operator."""
    schema = operator._schema
    writes, viewed = {}, False
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            writes[str(argument.alias_info.before_set)] = argument.name
        elif argument.alias_info is not None:
            viewed = True
    tags = set(operator.tags)
    shapeless = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    name = schema.name
    return Traits(
        name=name,
        arguments=tuple(argument.name for argument in schema.arguments),
        writes=frozenset(writes.values()),
        returns=tuple(
            writes.get(str(value.alias_info.before_set)) if value.alias_info else None
            for value in schema.returns
        ),
        repoints=viewed
        or name in _REPOINTS
        or (torch.Tag.inplace_view in tags and name not in _MOVES),
        moves=name in _MOVES,
        factory=name in FACTORIES,
        draws=torch.Tag.nondeterministic_seeded in tags,
        form_only=name in FORM_ONLY,
        tensors=(not tags & shapeless or name in _SHAPED)
        and all("Tensor" in str(value.type) for value in schema.returns),
    )

"""First values of heads as their architecture draws them, by what its family says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from surgery import tree
from surgery.claims import claims_of
from surgery.errors import PluginError
from surgery.families.family import HeadClaim
from surgery.families.registry import Registry
from surgery.heads import Head
from surgery.operations.values import Init, Start


def starts_of(
    model: nn.Module,
    heads: Iterable[Head],
    registry: Registry,
    generator: torch.Generator | None,
) -> dict[str, Start]:
    """How families draw the first values of these heads, by address; others are left out.

    Args:
        model: the model, out of its wrappers.
        heads: the heads.
        registry: the plugins to ask.
        generator: where random numbers come from; torch's default one, if None.

    Raises:
        PluginError: a claim names a function that ``torch.nn.init`` does not have.
    """
    claims = claims_of(tree.index(model), registry)
    found = {}
    for head in heads:
        claimed = next((c for c in claims if c.covers(head.addresses)), None)
        if claimed is not None and (claimed.claim.init or claimed.claim.bias is not None):
            init: Init = "default"
            if claimed.claim.init:
                init = _initialiser(claimed.claim, generator)
            found[head.address] = Start(init, claimed.claim.bias)
    return found


def _initialiser(
    claim: HeadClaim, generator: torch.Generator | None
) -> Callable[[torch.Tensor], object]:
    name, *arguments = claim.init or ("",)
    function = getattr(nn.init, str(name), None)
    if not inspect.isfunction(function):
        raise PluginError(
            f"torch.nn.init has no {name!r}",
            where=f"HeadClaim({claim.address!r}).init",
            expected="a function in torch.nn.init",
            found=repr(name),
            fix=f"HeadClaim({claim.address!r}, init=('normal_', 0.0, 0.01))",
        )
    draws = generator is not None and "generator" in inspect.signature(function).parameters
    return partial(_fill, function, arguments, {"generator": generator} if draws else {})


def _fill(
    function: Callable[..., object],
    arguments: list[object],
    options: dict[str, object],
    tensor: torch.Tensor,
) -> object:
    return function(tensor, *arguments, **options)

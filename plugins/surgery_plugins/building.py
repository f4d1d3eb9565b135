"""Builders for a catalog whose callable needs options: it must take no required argument.

They import the framework when they are called, so that a plugin costs nothing until then.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def builder(target: str, *args: Any, **options: Any) -> Callable[..., nn.Module]:
    """A builder that calls another with options of its own.

    Args:
        target: ``package.module:callable``, as in a catalog.
        args: what comes first.
        options: keyword arguments; the caller's own win.

    Example:
        >>> from surgery_plugins.building import builder
        >>> build = builder("torch.nn:Linear", 4, out_features=3)
        >>> build()
        Linear(in_features=4, out_features=3, bias=True)
        >>> build(out_features=2)
        Linear(in_features=4, out_features=2, bias=True)
    """

    def build(**given: Any) -> nn.Module:
        model: nn.Module = pkgutil.resolve_name(target)(*args, **{**options, **given})
        return model

    return build

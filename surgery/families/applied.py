"""A family applied to one model at hand: its example input, its stem and its stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from surgery.errors import PluginError
from surgery.families.family import Family, HeadClaim, Stages, Stem, are_claims

if TYPE_CHECKING:
    import torch
    from torch import nn

    from surgery.graph.example import Example

_MISSING = object()


def example_for(family: Family, model: nn.Module) -> Example | None:
    """The arguments of one forward pass of this model, as its family knows them.

    A shape becomes one tensor of zeros, on the device of the model's first parameter and in the
    dtype of its first floating one, so that it draws no random number.

    Args:
        family: the family that claimed the model.
        model: the model; a wrapped one is reached through.

    Returns:
        The example, or None where the family supplies none, or none for this model.

    Raises:
        PluginError: the family's shape names an attribute that the model lacks or that is no
            size, or its callable raised or returned something else than an Example.

    Example:
        >>> from torch import nn
        >>> from surgery.families.applied import example_for
        >>> from surgery.families.family import Family
        >>> family = Family("line", ("torch.nn.modules.linear.Linear",), example=(2, "in_features"))
        >>> example_for(family, nn.Linear(5, 1)).args[0].shape
        torch.Size([2, 5])
    """
    import torch

    from surgery import tree
    from surgery.graph.example import Example

    spec = family.example
    if spec is None:
        return None
    model = tree.unwrap(model)
    if callable(spec):
        example = _call(family, "example", spec, model)
        if example is not None and not isinstance(example, Example):
            raise _wrong(family, "example", "a surgery.Example, or None", example)
        return example
    sizes = tuple(item if isinstance(item, int) else _size(family, model, item) for item in spec)
    dtype, device = _placement(model)
    return Example((torch.zeros(sizes, dtype=dtype, device=device),))


def heads_for(family: Family, model: nn.Module) -> tuple[HeadClaim, ...]:
    """What the family claims of the heads of this model.

    Args:
        family: the family that claimed the model.
        model: the model; a wrapped one is reached through.

    Raises:
        PluginError: the family's callable raised, or returned something else than a tuple of
            claims.

    Example:
        >>> from torch import nn
        >>> from surgery.families.applied import heads_for
        >>> from surgery.families.family import Family, HeadClaim
        >>> claims = lambda model: (HeadClaim("fc"),) if hasattr(model, "fc") else ()
        >>> family = Family("line", ("torch.nn.modules.linear.Linear",), heads=claims)
        >>> heads_for(family, nn.Linear(5, 1))
        ()
    """
    from surgery import tree

    if not callable(family.heads):
        return family.heads
    claims = _call(family, "heads", family.heads, tree.unwrap(model))
    if not are_claims(claims):
        raise _wrong(family, "heads", "a tuple of HeadClaim", claims)
    return cast("tuple[HeadClaim, ...]", claims)


def is_headless(family: Family, model: nn.Module) -> bool:
    """Whether the family says that nothing in this model makes classes.

    Args:
        family: the family that claimed the model.
        model: the model; a wrapped one is reached through.

    Raises:
        PluginError: the family's callable raised, or returned something else than True or False.

    Example:
        >>> from torch import nn
        >>> from surgery.families.applied import is_headless
        >>> from surgery.families.family import Family
        >>> says = lambda model: model.out_features == 0
        >>> family = Family("line", ("torch.nn.modules.linear.Linear",), headless=says)
        >>> is_headless(family, nn.Linear(5, 1))
        False
    """
    from surgery import tree

    if not callable(family.headless):
        return family.headless
    said = _call(family, "headless", family.headless, tree.unwrap(model))
    if not isinstance(said, bool):
        raise _wrong(family, "headless", "True or False", said)
    return said


def stages_for(family: Family, model: nn.Module) -> Stages:
    """The stages of this model, in the order of execution.

    Args:
        family: the family that claimed the model.
        model: the model; a wrapped one is reached through.

    Raises:
        PluginError: the family's callable raised, or returned something else than a tuple of
            tuples of addresses.

    Example:
        >>> from torch import nn
        >>> from surgery.families.applied import stages_for
        >>> from surgery.families.family import Family
        >>> family = Family("line", ("torch.nn.modules.linear.Linear",), stages=(("a",), ("b",)))
        >>> stages_for(family, nn.Linear(5, 1))
        (('a',), ('b',))
    """
    return _parts_for(family, "stages", model)


def blocks_for(family: Family, model: nn.Module) -> Stages:
    """The stem and the stages of this model in smaller parts, in the order of execution.

    Args:
        family: the family that claimed the model.
        model: the model; a wrapped one is reached through.

    Returns:
        The parts; none where the family knows no smaller ones.

    Raises:
        PluginError: the family's callable raised, or returned something else than a tuple of
            tuples of addresses.

    Example:
        >>> from torch import nn
        >>> from surgery.families.applied import blocks_for
        >>> from surgery.families.family import Family
        >>> family = Family("line", ("torch.nn.modules.linear.Linear",), blocks=(("a",), ("b",)))
        >>> blocks_for(family, nn.Linear(5, 1))
        (('a',), ('b',))
    """
    return _parts_for(family, "blocks", model)


def stem_for(family: Family, model: nn.Module) -> Stem:
    """The addresses of this model's part before the first stage.

    Args:
        family: the family that claimed the model.
        model: the model; a wrapped one is reached through.

    Raises:
        PluginError: the family's callable raised, or returned something else than a tuple of
            addresses.

    Example:
        >>> from torch import nn
        >>> from surgery.families.applied import stem_for
        >>> from surgery.families.family import Family
        >>> family = Family("line", ("torch.nn.modules.linear.Linear",), stem=lambda model: ("a",))
        >>> stem_for(family, nn.Linear(5, 1))
        ('a',)
    """
    from surgery import tree

    if not callable(family.stem):
        return family.stem
    stem = _call(family, "stem", family.stem, tree.unwrap(model))
    if not _are_addresses(stem):
        raise _wrong(family, "stem", "a tuple of addresses", stem)
    return cast("Stem", stem)


def attribute(model: object, path: str, default: Any = None) -> Any:
    """The value at a path of attributes, ``features.0.in_channels``, or the default."""
    value: Any = model
    for name in path.split("."):
        # A Sequential answers to getattr for its numbered members too.
        value = getattr(value, name, _MISSING)
        if value is _MISSING:
            return default
    return value


def _parts_for(family: Family, name: str, model: nn.Module) -> Stages:
    from surgery import tree

    parts = getattr(family, name)
    if callable(parts):
        parts = _call(family, name, parts, tree.unwrap(model))
        if not isinstance(parts, tuple) or not all(part and _are_addresses(part) for part in parts):
            raise _wrong(family, name, "a tuple with a tuple of addresses for each", parts)
    return cast("Stages", parts)


def _are_addresses(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)


def _size(family: Family, model: nn.Module, path: str) -> int:
    value = attribute(model, path)
    # bool is an int in Python, and no size.
    if type(value) is not int or value < 1:
        raise PluginError(
            f"family {family.name!r}: the shape of its example names {path!r}, which is no size",
            where=f"{type(model).__name__}.{path}",
            expected="an attribute that holds a whole number above zero",
            found="nothing" if value is None else repr(value),
            fix="pass example=torch.zeros(...), or correct the family's example",
        )
    return value


def _placement(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """The dtype of the first floating parameter and the device of the first of any dtype."""
    import torch

    dtype, device = torch.get_default_dtype(), None
    for parameter in model.parameters():
        device = parameter.device if device is None else device
        # Eight-bit weights are storage: arithmetic happens in another dtype.
        if parameter.is_floating_point() and parameter.element_size() > 1:
            dtype = parameter.dtype
            break
    return dtype, device if device is not None else torch.get_default_device()


def _call(family: Family, name: str, function: Any, model: nn.Module) -> Any:
    try:
        return function(model)
    except Exception as error:  # a plugin's code: anything can come out
        raise PluginError(
            f"family {family.name!r}: its {name} raised for a {type(model).__name__}",
            where=f"Family({family.name!r}).{name}",
            found=f"{type(error).__name__}: {error}",
            fix=f"correct Family.{name}, or pass example= yourself",
        ) from error


def _wrong(family: Family, name: str, expected: str, found: object) -> PluginError:
    return PluginError(
        f"family {family.name!r}: its {name} returned something else than it should",
        where=f"Family({family.name!r}).{name}",
        expected=expected,
        found=f"{type(found).__name__}: {found!r}",
        fix=f"correct Family.{name}",
    )

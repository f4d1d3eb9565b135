"""What follows the size of images, as a family tells it: values that operations carry out.

Nothing here imports torch, so that a plugin costs nothing until it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from surgery.errors import PlanError, PluginError, SurgeryError

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Family

Sizes: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True)
class Fixed:
    """An attribute that holds a size.

    Args:
        module: address of the module that holds it; empty for the model itself.
        name: the attribute, or a path of attributes.
        value: what it becomes.
    """

    module: str
    name: str
    value: Any


@dataclass(frozen=True)
class Positions:
    """A tensor with an entry for every cell of the image's grid, along its last axis but one.

    Args:
        address: the parameter or buffer.
        old: the grid before: rows and columns, or several axes in front of them that stay.
        new: the grid afterwards.
        tokens: how many entries in front belong to no cell (a class token).
    """

    address: str
    old: Sizes
    new: Sizes
    tokens: int = 0


@dataclass(frozen=True)
class RelativePositions:
    """A table with a row for every distance inside a window, and the index that reads it.

    Args:
        table: the parameter, with ``2 n - 1`` rows for every axis of length ``n``, multiplied.
        old: the window before.
        new: the window afterwards.
        index: a buffer with the row for each pair of cells, where there is one.
    """

    table: str
    old: Sizes
    new: Sizes
    index: str = ""


@dataclass(frozen=True)
class Recomputed:
    """Buffers that a module computes from its own sizes, by one of its methods.

    Args:
        module: address of the module.
        method: what computes them; it is called on a copy that has the new sizes.
        buffers: their names.
    """

    module: str
    method: str
    buffers: tuple[str, ...]


@dataclass(frozen=True)
class Exchanged:
    """A submodule without parameters that is made for one size (padding).

    Args:
        module: address of the submodule.
        new: the one for the new size.
    """

    module: str
    new: nn.Module


def check_multiple(size: tuple[int, int], step: int, *, square: bool = False) -> None:
    """Refuse images that a model cannot cut evenly.

    Args:
        size: height and width.
        step: what both must be a multiple of.
        square: whether they must be equal as well.

    Raises:
        PlanError: they are not.

    Example:
        >>> from surgery.families.resizing import check_multiple
        >>> check_multiple((384, 384), 16, square=True)
    """
    wrong = any(length % step for length in size) or (square and size[0] != size[1])
    if wrong:
        near = max(round(size[0] / step), 1) * step
        raise PlanError(
            "this model cannot cut images of that size evenly",
            where="image_size",
            expected=f"{'equal sides, ' if square else ''}a multiple of {step}",
            found=f"{size[0]} by {size[1]}",
            fix=f"surgery.adapt_input(model, image_size={near})",
        )


Follower: TypeAlias = "Fixed | Positions | RelativePositions | Recomputed | Exchanged"
Resize: TypeAlias = "Callable[[nn.Module, tuple[int, int]], Iterable[Follower]]"


def followers_for(
    family: Family, model: nn.Module, size: tuple[int, int]
) -> tuple[Follower, ...] | None:
    """What follows in this model when images get another size, as its family knows it.

    Args:
        family: the family that claimed the model.
        model: the model, out of its wrappers.
        size: height and width of the new images.

    Returns:
        The values, or None where the family says nothing about sizes.

    Raises:
        PluginError: the family's callable raised, or gave something else.
        PlanError: the family says that the model cannot take images of this size.
    """
    if family.resize is None:
        return None
    where = f"Family({family.name!r}).resize"
    try:
        found = tuple(family.resize(model, size))
    except SurgeryError:
        raise
    except Exception as error:  # a plugin's code: anything can come out
        raise PluginError(
            f"family {family.name!r}: its resize raised for a {type(model).__name__}",
            where=where,
            found=f"{type(error).__name__}: {error}",
            fix="correct Family.resize",
        ) from error
    kinds = (Fixed, Positions, RelativePositions, Recomputed, Exchanged)
    wrong = [each for each in found if not isinstance(each, kinds)]
    if wrong:
        raise PluginError(
            f"family {family.name!r}: its resize gave something else than it should",
            where=where,
            expected=", ".join(kind.__name__ for kind in kinds),
            found=repr(wrong[0]),
            fix="correct Family.resize",
        )
    return found

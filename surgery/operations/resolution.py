"""The steps that let a model take images of another size, as its family tells what follows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional

from surgery import tree
from surgery.errors import AddressError, ArgumentError, ClaimContradictedError, PlanError
from surgery.families.applied import attribute
from surgery.families.resizing import (
    Exchanged,
    Fixed,
    Follower,
    Positions,
    Recomputed,
    RelativePositions,
)
from surgery.operations.channels import attribute_step, exact, lost_hooks, tensor_step
from surgery.operations.plan import Step

_MISSING = object()


def check_size(size: object) -> tuple[int, int] | None:
    """Height and width, from one number or two.

    Raises:
        ArgumentError: anything else.
    """
    if size is None:
        return None
    pair = (size, size) if type(size) is int else size
    if (
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and all(type(each) is int and each > 0 for each in pair)
    ):
        return pair[0], pair[1]
    raise ArgumentError(
        "this is no size of images",
        where="image_size",
        expected="height and width, or one number for both, in pixels",
        found=repr(size),
        fix="surgery.adapt_input(model, image_size=384)",
    )


def pixel_axes(rank: int, channels: int) -> tuple[int, int]:
    """The axes of an input that hold rows and columns: the last two but samples and channels.

    Raises:
        PlanError: it has none.
    """
    others = [axis for axis in range(1, rank) if axis != channels]
    if len(others) < 2:
        raise PlanError(
            "an input without rows and columns has no image size",
            where="image_size",
            expected="an input with rows and columns",
            found=f"an input of {rank} axes",
            fix="leave image_size out",
        )
    return others[-2], others[-1]


def size_steps(
    model: nn.Module, followers: Iterable[Follower]
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps that carry out what a family says, and remarks.

    Args:
        model: the unwrapped model, which stays as it is.
        followers: what follows; what is as it should be already makes no step.

    Raises:
        ClaimContradictedError: the model has no such thing, or another one than the family says.
        PlanError: something cannot be interpolated.
    """
    steps: dict[tuple[str, ...], Step] = {}
    remarks: list[str] = []
    fixed: dict[str, dict[str, object]] = {}
    for follower in followers:
        if isinstance(follower, Fixed):
            fixed.setdefault(follower.module, {})[follower.name] = follower.value
        for step in _steps(model, follower, fixed):
            steps.setdefault(step.addresses, step)
            if step.kind == "parameter":
                remarks += lost_hooks(step.addresses, _tensor(model, step.address))
    return tuple(steps.values()), tuple(remarks)


def _steps(
    model: nn.Module, follower: Follower, fixed: dict[str, dict[str, object]]
) -> Iterator[Step]:
    if isinstance(follower, Fixed):
        module = _module(model, follower.module)
        old = attribute(module, follower.name, _MISSING)
        if old is _MISSING:
            raise _contradicted(tree.join(follower.module, follower.name), "a value", "nothing")
        if old != follower.value or type(old) is not type(follower.value):
            yield attribute_step(follower.module, follower.name, old, follower.value)
    elif isinstance(follower, Positions):
        yield from _position_steps(model, follower)
    elif isinstance(follower, RelativePositions):
        yield from _relative_steps(model, follower)
    elif isinstance(follower, Recomputed):
        yield from _recomputed_steps(model, follower, fixed.get(follower.module, {}))
    else:
        yield from _exchanged_steps(model, follower)


def _position_steps(model: nn.Module, follower: Positions) -> Iterator[Step]:
    if follower.old == follower.new:
        return
    old = _tensor(model, follower.address)
    entries = follower.tokens + math.prod(follower.old)
    if old.dim() < 2 or old.shape[-2] != entries:
        raise _contradicted(
            follower.address, f"{entries} entries along the last axis but one", str(list(old.shape))
        )
    lined = old.detach().movedim(-2, 0)
    tokens, cells = lined[: follower.tokens], lined[follower.tokens :]
    cells = resampled(cells, follower.old, follower.new, follower.address)
    new = torch.cat([tokens, cells.to(old.dtype)]).movedim(0, -2).contiguous()
    yield tensor_step(model, _addresses(model, old), old, new)


def _relative_steps(model: nn.Module, follower: RelativePositions) -> Iterator[Step]:
    if follower.old == follower.new:
        return
    before, after = (tuple(2 * n - 1 for n in grid) for grid in (follower.old, follower.new))
    if follower.table:
        old = _tensor(model, follower.table)
        if old.dim() < 1 or old.shape[0] != math.prod(before):
            raise _contradicted(
                follower.table, f"{math.prod(before)} rows", f"{list(old.shape)} in all"
            )
        new = resampled(old.detach(), before, after, follower.table).to(old.dtype)
        yield tensor_step(model, _addresses(model, old), old, new.contiguous())
    if not follower.index:
        return
    index = _tensor(model, follower.index)
    known = _pairs(follower.old)
    if index.numel() != known.numel() or (
        not index.is_meta and not torch.equal(index.detach().cpu().reshape(known.shape), known)
    ):
        raise _contradicted(
            follower.index, f"the row for every pair in {follower.old}", f"{list(index.shape)}"
        )
    pairs = _pairs(follower.new)
    shaped = pairs if index.dim() == 2 else pairs.flatten()
    yield tensor_step(model, _addresses(model, index), index, shaped.to(index))


def _pairs(window: tuple[int, ...]) -> torch.Tensor:
    """For each pair of cells of a window, the row that holds their distance."""
    with torch.device("cpu"):
        axes = [torch.arange(length) for length in window]
        cells = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    rows = torch.zeros_like(cells[0, :, None] - cells[0, None, :])
    for place, length in enumerate(window):
        distance = cells[place, :, None] - cells[place, None, :] + length - 1
        rows = rows * (2 * length - 1) + distance
    return rows


def resampled(
    cells: torch.Tensor, old: tuple[int, ...], new: tuple[int, ...], address: str
) -> torch.Tensor:
    """A grid of entries on another grid: bicubic over rows and columns, linear over one axis."""
    ahead, last = old[:-2], old[-2:]
    if len(old) != len(new) or ahead != new[:-2]:
        raise PlanError(
            "only rows and columns are interpolated, and what stands in front of them stays",
            where=address,
            expected=f"a grid that begins with {ahead}",
            found=f"{old} -> {new}",
            fix="keep the number of frames, and change the size of the images alone",
        )
    features = cells.shape[1:]
    grid = exact(cells).reshape(math.prod(ahead), *last, math.prod(features)).movedim(-1, 1)
    if len(last) == 1:
        grid = functional.interpolate(grid, size=new, mode="linear")
    else:
        # Fewer cells are made of all of the old ones, and not of the nearest alone.
        fewer = new[-2] < last[0] or new[-1] < last[1]
        grid = functional.interpolate(grid, size=new[-2:], mode="bicubic", antialias=fewer)
    return grid.movedim(1, -1).reshape(math.prod(new), *features)


def _recomputed_steps(
    model: nn.Module, follower: Recomputed, sizes: dict[str, object]
) -> Iterator[Step]:
    module = _module(model, follower.module)
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(module.__dict__[name])
    twin.__dict__.update(sizes)
    compute = getattr(twin, follower.method, None)
    if not callable(compute):
        raise _contradicted(follower.module, f"a method {follower.method}", "nothing")
    compute()
    for name in follower.buffers:
        address = tree.join(follower.module, name)
        old, new = _tensor(model, address), twin._buffers.get(name)
        if new is None:
            raise _contradicted(address, f"a buffer that {follower.method} makes", "nothing")
        if new.shape != old.shape or not (new.is_meta or old.is_meta or torch.equal(new, old)):
            yield tensor_step(model, _addresses(model, old), old, new.to(old))


def _exchanged_steps(model: nn.Module, follower: Exchanged) -> Iterator[Step]:
    old = _module(model, follower.module)
    if repr(old) != repr(follower.new):
        addresses = tree.index(model).addresses(old)
        yield Step("module", addresses, repr(old), repr(follower.new), follower.new)


def _module(model: nn.Module, address: str) -> nn.Module:
    try:
        return tree.get_module(model, address)
    except AddressError as error:
        raise _contradicted(address, "a module", "nothing") from error


def _tensor(model: nn.Module, address: str) -> torch.Tensor:
    try:
        found = tree.get(model, address)
    except AddressError as error:
        raise _contradicted(address, "a tensor", "nothing") from error
    if isinstance(found, torch.Tensor):
        return found
    raise _contradicted(address, "a tensor", type(found).__name__)


def _addresses(model: nn.Module, tensor: torch.Tensor) -> tuple[str, ...]:
    return tree.index(model).addresses(tensor)


def _contradicted(where: str, expected: str, found: str) -> ClaimContradictedError:
    return ClaimContradictedError(
        "the model shows something else than its family says of what follows the image size",
        where=where,
        expected=expected,
        found=found,
        fix="correct Family.resize, or surgery.replace(model, {address: module})",
    )

"""Save a changed model to one file, with all that another process needs to make it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.operations import made, names
from surgery.operations.donors import unreadable
from surgery.operations.portrait import (
    Portrait,
    hooks_of,
    is_torchs_own,
    portrait_of,
    strides_of,
)
from surgery.operations.record import Origin, Record, written
from surgery.operations.recorded import KEY
from surgery.weights.destination import check_destination
from surgery.weights.stored import fills
from surgery.weights.write import write


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: the file.
        operations: the operations that made the model, as far as they are known: a copy of a
            model knows of none.
        nbytes: its size.
        notes: what the file does not hold.
    """

    path: Path
    operations: tuple[str, ...]
    nbytes: int
    notes: tuple[str, ...]


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    target: str | Origin | None = None,
    overwrite: bool = False,
) -> Saved:
    """Save a model to one safetensors file from which ``surgery.restore`` makes it again, exactly.

    The file holds the parameters and buffers of the model under their addresses, tied ones once,
    and in its metadata what else the model is: the class and the plain attributes of every
    module, ties, frozen parameters, layers that stay in eval mode, train and eval modes, class
    names, memory layouts, and the operations that made it. Nothing is pickled. Other programs
    read it as the safetensors file that it is.

    What no file holds is the code: classes, functions and objects hung on modules. ``restore`` is
    given what makes the model as it was before, and changes that. Not saved are hooks, gradients,
    parametrizations that the target lacks, and buffers that are in no ``state_dict``, unless an
    operation changed them.

    The file is written beside its destination, brought to the disk, and renamed: whenever the
    process ends, there is the old file or the new one.

    Args:
        model: any module; wrappers are passed through.
        path: where to.
        target: the name of what made the model as it was before, for the file to remember:
            commands then restore it from the file alone, where a catalog has the name.
        overwrite: replace a file that is there.

    Returns:
        What was written, and notes on what the file does not hold.

    Raises:
        ArgumentError: the target is no name.
        PlanError: the model has state that is no plain tensor (quantised layers, sparse tensors,
            extra state), tensors on meta, or no tensors at all.
        WrappedModelError: it is inside DataParallel, DistributedDataParallel or FSDP.
        WeightsError: there is a file already, no such directory, no permission, or no space.
        UnsupportedModelError: no model, or a lazy, scripted or exported one.

    Example:
        >>> import tempfile, torch, surgery
        >>> from torch import nn
        >>> def make():
        ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> model = make()
        >>> outcome = surgery.replace_head(model, 3, heads="2")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = surgery.save(model, f"{folder}/model.safetensors")
        ...     again = surgery.restore(make, saved.path).model
        >>> saved.operations, torch.equal(again(torch.ones(1, 8)), model(torch.ones(1, 8)))
        (("replace_head('2': 3)",), True)
    """
    check_destination(path, overwrite)
    origin = _origin(target)
    tree.check_model(model)
    tree.check_changeable(model)
    inner = tree.unwrap(model)
    portrait = portrait_of(inner)
    operations = made.operations_on(inner)
    tensors = _tensors(inner, portrait, operations)
    _check_state(inner)
    if not tensors:
        raise PlanError(
            "there is nothing to save: the model has no values of its own",
            where=tree.class_name(type(inner)),
            expected="at least one parameter or buffer",
            found="none that a file would hold",
            fix="the code that makes it makes all of it",
        )
    record = Record(
        portrait,
        operations,
        names.remembered(inner),
        dict(strides_of(inner)),
        {"torch": torch.__version__},
        origin,
    )
    metadata = {"format": "pt", KEY: written(record)}
    # As the format's own library does: a name that was left out, and the one that has its bytes.
    ties = {a: first for first, all_ in portrait.tensors.items() for a in all_[1:]}
    metadata |= {a: first for a, first in ties.items() if first in tensors and a not in metadata}
    file = write(path, tensors, metadata, overwrite=overwrite)
    titles = tuple(each.title for each in operations)
    return Saved(file, titles, file.stat().st_size, tuple(_notes(inner, portrait)))


def _origin(target: object) -> Origin | None:
    if isinstance(target, str) and target:
        return Origin(target)
    if target is None or isinstance(target, Origin):
        return target
    raise ArgumentError(
        "a file remembers what made the model by its name",
        where="target",
        expected="'package:name' or 'package.module:callable'",
        found=repr(target),
        fix="surgery.save(model, path), and surgery.restore(factory, path)",
    )


def _tensors(
    model: nn.Module, portrait: Portrait, operations: tuple[made.Made, ...]
) -> dict[str, torch.Tensor]:
    """The tensors to write, by first address."""
    touched = {address for operation in operations for address in operation.touched}
    found: dict[str, torch.Tensor] = {}
    for first, addresses in portrait.tensors.items():
        tensor: Any = tree.get(model, first)
        _check_plain(first, tensor)
        # What the constructor makes again each time is in no state dict, and in no file.
        if not all(_is_passing(portrait, a) and not _is_in(a, touched) for a in addresses):
            found[first] = tensor
    return found


def _is_passing(portrait: Portrait, address: str) -> bool:
    owner, name = tree.split(address)
    placed = portrait.modules.get(owner)
    return placed is not None and name in placed.form.passing


def _is_in(address: str, touched: set[str]) -> bool:
    """Whether an operation put something else there, or around it."""
    names = address.split(".")
    return any(".".join(names[:length]) in touched for length in range(len(names) + 1))


def _check_plain(address: str, tensor: torch.Tensor) -> None:
    what = unreadable(tensor)
    if what is not None:
        raise PlanError(
            f"this tensor {what[0]}, and a file of plain tensors cannot hold it",
            where=address,
            expected="a plain, dense tensor with values",
            found=what[1],
            fix=what[2] if tensor.is_meta else "torch.save(model.state_dict(), 'model.pt')",
        )


def _check_state(model: nn.Module) -> None:
    """Refuse state that is neither parameter nor buffer: nothing else would be in the file."""
    index = tree.index(model)
    held = {id(entry.tensor) for entry in index.of_kind("parameter", "buffer")}
    for key, value in model.state_dict(keep_vars=True).items():
        if id(value) not in held:
            raise PlanError(
                "the model keeps state that is neither a parameter nor a buffer",
                where=key,
                expected="parameters and buffers alone",
                found=tree.class_name(type(value)),
                fix="torch.save(model.state_dict(), 'model.pt'); quantise after restoring",
            )


def _notes(model: nn.Module, portrait: Portrait) -> Iterator[str]:
    """What the file does not hold, and what that asks of ``restore``."""
    hooked = [
        address
        for address, module in tree.walk(model)
        if any(not is_torchs_own(hook) for hook in hooks_of(module))
    ]
    if hooked:
        yield f"hooks are not saved: {_listed(hooked)}"
    gone = [a for a in portrait.tensors if _is_passing(portrait, a)]
    if gone:
        yield f"in no state dict, so the constructor has to make them again: {_listed(gone)}"
    loose = []
    for entry in tree.index(model).of_kind("parameter", "buffer"):
        tensor = entry.tensor
        if not fills(tuple(tensor.shape), tensor.stride()):
            loose.append(entry.address)
    if loose:
        yield f"saved without the gaps or overlaps they have in memory: {_listed(loose)}"


def _listed(addresses: list[str]) -> str:
    shown = ", ".join(address or "the model itself" for address in addresses[:4])
    return shown + (f" and {len(addresses) - 4} more" if len(addresses) > 4 else "")

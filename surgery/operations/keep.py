"""Rows of the old head that carry over: classes that stay, in any order, merged or renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch

from surgery.errors import ArgumentError
from surgery.graph.packing import PLAIN, Packing

Class: TypeAlias = "int | str"
Keep: TypeAlias = "Mapping[Class, Class | Sequence[Class]] | Literal['all'] | None"
# A list, or an entry of pretrained weights with its ``meta["categories"]``.
OldNames: TypeAlias = "Sequence[str] | Any | None"
Rows: TypeAlias = Mapping[int, tuple[int, ...]]


def resolve_keep(
    keep: Keep,
    *,
    new: int,
    old: int,
    new_names: Sequence[str] | None,
    old_names: Sequence[str] | None,
) -> dict[int, tuple[int, ...]]:
    """Say for every new class that keeps something which old rows it comes from.

    Args:
        keep: ``{new class: old class}``, by index or by name, or a list of old classes whose
            mean it is to be; ``"all"`` for every class of the same name, or, where neither side
            has names, of the same index.
        new: the new number of classes.
        old: the old number of classes.
        new_names: names of the new classes, if known.
        old_names: names of the old classes, if known.

    Returns:
        Indices of old classes by index of the new class.

    Raises:
        ArgumentError: a class that does not exist, a name that is not known or stands for
            several classes.

    Example:
        >>> from surgery.operations.keep import resolve_keep
        >>> resolve_keep({"cat": "cat", 1: [0, 2]}, new=2, old=3, new_names=["cat", "pet"],
        ...              old_names=["dog", "cat", "fish"])
        {0: (1,), 1: (0, 2)}
    """
    if keep is None:
        return {}
    if keep == "all":
        return _all(new, old, new_names, old_names)
    if not isinstance(keep, Mapping):
        raise ArgumentError(
            "keep says which old classes the new ones come from",
            where="keep",
            expected="{new class: old class}, or 'all'",
            found=repr(keep),
            fix="surgery.replace_head(model, 3, keep={0: 0, 1: 5})",
        )
    found: dict[int, tuple[int, ...]] = {}
    for key, value in keep.items():
        target = _index(key, new, new_names, "new")
        if target in found:
            raise ArgumentError(
                "one new class is named twice",
                where=f"keep[{key!r}]",
                expected="every new class once",
                found=f"class {target} by index and by name",
                fix="name several old classes in a list: keep={0: [1, 2]}",
            )
        several = isinstance(value, Sequence) and not isinstance(value, str)
        members: Any = value if several else (value,)
        if not members:
            raise ArgumentError(
                "a class cannot come from no class",
                where=f"keep[{key!r}]",
                expected="at least one old class",
                found=repr(value),
                fix=f"leave {key!r} out of keep",
            )
        found[target] = tuple(_index(item, old, old_names, "old") for item in members)
    return found


def check_old_names(names: object) -> tuple[str, ...]:
    """The names of the old classes; they may repeat, as placeholders do.

    Args:
        names: a list, or an entry of pretrained weights that lists them in its ``meta``.

    Raises:
        ArgumentError: no list of strings.
    """
    meta = getattr(names, "meta", None)
    if isinstance(meta, Mapping) and "categories" in meta:
        names = meta["categories"]
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not names or not all(isinstance(name, str) for name in names):  # type: ignore[attr-defined]
        raise ArgumentError(
            "the names of the old classes are a list of strings",
            where="old_classes",
            expected="one name for each old class",
            found=repr(names),
            fix="surgery.replace_head(model, 3, keep='all', old_classes=['cat', 'dog'])",
        )
    return tuple(names)  # type: ignore[arg-type]


def _all(
    new: int, old: int, new_names: Sequence[str] | None, old_names: Sequence[str] | None
) -> dict[int, tuple[int, ...]]:
    if (new_names is None) is not (old_names is None):
        lacking = "old" if old_names is None else "new"
        raise ArgumentError(
            f"the {lacking} classes have no names to compare",
            where="keep='all'",
            expected="names on both sides, or on neither",
            found=f"no names of the {lacking} classes",
            fix="old_classes=[...]" if lacking == "old" else "classes=[...]",
        )
    if new_names is None or old_names is None:
        return {index: (index,) for index in range(min(new, old))}
    return {
        index: (_index(name, old, old_names, "old"),)
        for index, name in enumerate(new_names)
        if name in old_names
    }


def _index(key: object, count: int, names: Sequence[str] | None, side: str) -> int:
    """The index of a class given by index or name."""
    if isinstance(key, int) and not isinstance(key, bool):
        if 0 <= key < count:
            return key
        raise ArgumentError(
            f"there is no {side} class {key}",
            where="keep",
            expected=f"0 to {count - 1}",
            found=key,
            fix="indices count from 0",
        )
    if not isinstance(key, str):
        raise ArgumentError(
            "a class is given by its index or its name",
            where="keep",
            expected="a whole number or a string",
            found=repr(key),
            fix="keep={'cat': 'cat'}, or keep={0: 5}",
        )
    places = [index for index, name in enumerate(names or ()) if name == key]
    if len(places) == 1:
        return places[0]
    argument = "classes" if side == "new" else "old_classes"
    raise ArgumentError(
        f"{len(places)} {side} classes have this name" if places else f"no {side} class has it",
        where=f"keep: {key!r}",
        expected="a name that stands for one class",
        found=f"classes {places}" if places else _known(names),
        fix=f"use an index: keep={{...: {places[0]}}}" if places else f"{argument}=[...]",
    )


def _known(names: Sequence[str] | None) -> str:
    if names is None:
        return "no names at all"
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def carry_rows(
    old: torch.Tensor, new: torch.Tensor, axis: int, rows: Rows, packing: Packing = PLAIN
) -> None:
    """Copy rows along the class axis, bit for bit; several old rows become their mean.

    Args:
        old: the tensor of the old head.
        new: the tensor of the new head, filled already; written in place.
        axis: the class axis of both.
        rows: old indices by new index.
        packing: how many entries each class has on that axis, and in which order.
    """
    if old.is_meta or new.is_meta or not rows:
        return
    if packing != PLAIN:
        old, new = unpacked(old, axis, packing), unpacked(new, axis, packing)
        axis += 1
    with torch.no_grad():
        single = {to: found[0] for to, found in rows.items() if len(found) == 1}
        if single:
            source = torch.tensor(list(single.values()), device=old.device)
            target = torch.tensor(list(single), device=new.device)
            new.index_copy_(axis, target, old.detach().index_select(axis, source))
        for to, found in rows.items():
            if len(found) > 1:
                source = torch.tensor(found, device=old.device)
                merged = old.detach().index_select(axis, source).mean(axis)
                new.select(axis, to).copy_(merged)


def unpacked(tensor: torch.Tensor, axis: int, packing: Packing) -> torch.Tensor:
    """A view with the classes on an axis of their own, between what is around them."""
    shape = tensor.shape
    classes = packing.classes(shape[axis])
    apart = (packing.outer, classes, packing.inner)
    return tensor.view(*shape[:axis], *apart, *shape[axis + 1 :])

"""Rows of the old head that carry over: classes that stay, in any order, merged or renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal, TypeAlias

import torch

from surgery.errors import ArgumentError
from surgery.graph.packing import PLAIN, Packing
from surgery.operations.background import is_background
from surgery.operations.counted import CLASSES, Counted

Class: TypeAlias = "int | str"
Keep: TypeAlias = "Mapping[Class, Class | Sequence[Class]] | Literal['all'] | None"
# A list, or an entry of pretrained weights with its ``meta["categories"]``.
OldNames: TypeAlias = "Sequence[str] | Any | None"
Rows: TypeAlias = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class _Side:
    """The old classes, or the new ones: how many, their names, and how errors speak of them."""

    side: str
    argument: str
    count: int
    names: Sequence[str] | None
    counted: Counted
    background: str

    def places(self, name: str) -> list[int]:
        """Where a name stands; at 0 as well where both are names of the background."""
        names, background = self.names or (), self.background
        exact = [index for index, known in enumerate(names) if known == name]
        if exact or not names or not background:
            return exact
        alike = all(is_background(each, background) for each in (name, names[0]))
        return [0] if alike else []

    def index(self, key: object) -> int:
        """The index of a class given by index or name.

        Raises:
            ArgumentError: no index or name, or one that does not stand for one class.
        """
        counted = self.counted
        if isinstance(key, Integral) and not isinstance(key, bool):
            if 0 <= int(key) < self.count:
                return int(key)
            raise ArgumentError(
                f"there is no {self.side} {counted.one} {key}",
                where="keep",
                expected=f"0 to {self.count - 1}",
                found=key,
                fix="indices count from 0",
            )
        if not isinstance(key, str):
            name = counted.sample[0]
            raise ArgumentError(
                f"a {counted.one} is given by its index or its name",
                where="keep",
                expected="a whole number or a string",
                found=repr(key),
                fix=f"keep={{{name!r}: {name!r}}}, or keep={{0: 5}}",
            )
        places = self.places(key)
        if len(places) == 1:
            return places[0]
        many, first = f"{len(places)} {self.side} {counted.many}", (places or [0])[0]
        raise ArgumentError(
            f"{many} have this name" if places else f"no {self.side} {counted.one} has it",
            where=f"keep: {key!r}",
            expected=f"a name that stands for one {counted.one}",
            found=f"{counted.many} {places}" if places else _known(self.names),
            fix=f"use an index: keep={{...: {first}}}" if places else f"{self.argument}=[...]",
        )


def resolve_keep(
    keep: Keep,
    *,
    new: int,
    old: int,
    new_names: Sequence[str] | None,
    old_names: Sequence[str] | None,
    counted: Counted = CLASSES,
    background: str = "",
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
        counted: what errors call them.
        background: the name of class 0, where it is the background; all its names are one.

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
    target_side = _Side("new", counted.new, new, new_names, counted, background)
    source_side = _Side("old", counted.old, old, old_names, counted, background)
    if isinstance(keep, str) and keep == "all":
        return _all(target_side, source_side)
    one = counted.one
    if not isinstance(keep, Mapping):
        raise ArgumentError(
            f"keep says which old {counted.many} the new ones come from",
            where="keep",
            expected=f"{{new {one}: old {one}}}, or 'all'",
            found=repr(keep),
            fix=f"surgery.{counted.verb}(model, 3, keep={{0: 0, 1: 5}})",
        )
    found: dict[int, tuple[int, ...]] = {}
    for key, value in keep.items():
        target = target_side.index(key)
        if target in found:
            raise ArgumentError(
                f"one new {one} is named twice",
                where=f"keep[{key!r}]",
                expected=f"every new {one} once",
                found=f"{one} {target} by index and by name",
                fix="name several old classes in a list: keep={0: [1, 2]}",
            )
        several = isinstance(value, Sequence) and not isinstance(value, str)
        members: Any = value if several else (value,)
        if not members:
            raise ArgumentError(
                f"a {one} cannot come from no {one}",
                where=f"keep[{key!r}]",
                expected=f"at least one old {one}",
                found=repr(value),
                fix=f"leave {key!r} out of keep",
            )
        found[target] = tuple(source_side.index(item) for item in members)
    return found


def check_old_names(names: object, counted: Counted = CLASSES) -> tuple[str, ...]:
    """The names of the old classes; they may repeat, as placeholders do.

    Args:
        names: a list, or an entry of pretrained weights that lists them in its ``meta``.
        counted: what errors call them, and where an entry lists them.

    Raises:
        ArgumentError: no list of strings.
    """
    meta = getattr(names, "meta", None)
    if isinstance(meta, Mapping) and counted.published in meta:
        names = meta[counted.published]
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not names or not all(isinstance(name, str) for name in names):  # type: ignore[attr-defined]
        raise ArgumentError(
            f"the names of the old {counted.many} are a list of strings",
            where=counted.old,
            expected=f"one name for each old {counted.one}",
            found=repr(names),
            fix=f"{counted.old}={list(counted.sample)!r}, one for each",
        )
    return tuple(names)  # type: ignore[arg-type]


def unused_names(keep: Keep, old_names: OldNames, counted: Counted = CLASSES) -> tuple[str, ...]:
    """What a person should know who names old classes, none of which is to stay.

    Args:
        keep: which stay, if any.
        old_names: the names given for the old ones, if any.
        counted: what they are.
    """
    if keep is not None or old_names is None:
        return ()
    return (f"{counted.old} is not used: no {counted.one} stays without keep",)


def unnamed(count: int) -> tuple[str, ...]:
    """What stands where a model must list names of classes and there are none.

    Args:
        count: the number of classes.
    """
    return tuple(f"LABEL_{index}" for index in range(count))


def _all(new: _Side, old: _Side) -> dict[int, tuple[int, ...]]:
    new, old = (
        replace(side, names=None) if tuple(side.names or ()) == unnamed(side.count) else side
        for side in (new, old)
    )
    if (new.names is None) is not (old.names is None):
        lacking = old if old.names is None else new
        raise ArgumentError(
            f"the {lacking.side} {new.counted.many} have no names to compare",
            where="keep='all'",
            expected="names on both sides, or on neither",
            found=f"no names of the {lacking.side} {new.counted.many}",
            fix=f"{lacking.argument}=[...]",
        )
    if new.names is None:
        return {index: (index,) for index in range(min(new.count, old.count))}
    return {index: (old.index(name),) for index, name in enumerate(new.names) if old.places(name)}


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

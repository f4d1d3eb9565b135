"""Class 0 as "no object": counted among the classes, and never a label of a thing."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.errors import ArgumentError
from surgery.heads import Head


def check_background(
    chosen: Sequence[tuple[Head, int]], names: Sequence[str] | None
) -> tuple[str, ...]:
    """Hold the classes asked for against a background that is counted as one of them.

    Args:
        chosen: the heads with their new numbers of classes.
        names: the names of the new classes, if any.

    Returns:
        What a person should know of it.

    Raises:
        ArgumentError: nothing but the background would be left, or the first name is that of a
            thing.
    """
    remarks: dict[str, None] = {}
    for head, size in chosen:
        if not head.background or head.follows:
            continue
        if names is not None and not is_background(names[0], head.background):
            first = [name for name in names if is_background(name, head.background)]
            things = [name for name in names if name not in first]
            raise ArgumentError(
                "class 0 of this model is the background, and its name is that of a thing",
                where="classes[0]",
                expected=repr(head.background),
                found=repr(names[0]),
                fix=f"classes={[*(first or [head.background]), *things]!r}",
            )
        if size < 2:
            raise ArgumentError(
                "class 0 is the background, so nothing would be left to detect",
                where="num_classes",
                expected="at least 2, the background and one kind of object",
                found=size,
                fix="surgery.replace_head(model, 2)",
            )
        remarks[
            f"class 0 is the background: {size} classes are {size - 1} kinds of objects, with the "
            f"labels 1 to {size - 1}"
        ] = None
    return tuple(remarks)


def is_background(name: str, known: str) -> bool:
    """Whether a name is that of class 0, in the spelling that a family knows or in plain words.

    Example:
        >>> [is_background(name, "N/A") for name in ("N/A", "__background__", "cat")]
        [True, True, False]
    """
    return name == known or name.strip("_ ").lower() == "background"

"""Which heads an operation takes, and how many classes each is to have."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from surgery.errors import (
    AmbiguousHeadError,
    ArgumentError,
    NoHeadError,
    UncorroboratedWarning,
)
from surgery.heads import Evidence, Head, Heads

Wanted: TypeAlias = "str | Iterable[str] | Mapping[str, int] | None"
Names: TypeAlias = "Sequence[str] | None"


def check_num_classes(num_classes: object, where: str = "num_classes") -> int:
    """A whole number of at least one.

    Raises:
        ArgumentError: anything else, ``True`` included.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ArgumentError(
            "the number of classes is a whole number of at least 1",
            where=where,
            expected="1, 2, 3, ...",
            found=repr(num_classes),
            fix="surgery.replace_head(model, 7)",
        )
    return num_classes


def check_classes(
    classes: object, num_classes: object
) -> tuple[int | None, tuple[str, ...] | None]:
    """The number of classes and their names, from either or both.

    Raises:
        ArgumentError: names that are no different strings, or as many as something else says.
    """
    if classes is None:
        return (None if num_classes is None else check_num_classes(num_classes)), None
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
        raise ArgumentError(
            "the names of the classes are a list of strings",
            where="classes",
            expected="['cat', 'dog']",
            found=repr(classes),
            fix="surgery.replace_head(model, classes=['cat', 'dog'])",
        )
    names = tuple(classes)
    wrong = [name for name in names if not isinstance(name, str)]
    twice = sorted({name for name in names if names.count(name) > 1}) if not wrong else []
    if wrong or twice:
        raise ArgumentError(
            "every class needs a name of its own",
            where="classes",
            expected="different strings",
            found=f"twice: {twice}" if twice else f"no string: {wrong[0]!r}",
            fix="leave classes out and pass the number alone",
        )
    if num_classes is not None and check_num_classes(num_classes) != len(names):
        raise ArgumentError(
            "the number of classes and their names disagree",
            where="num_classes, classes",
            expected=f"{len(names)} classes, one for each name",
            found=num_classes,
            fix="leave num_classes out: the names give it",
        )
    return len(names), names


def choose(
    heads: Heads, wanted: Wanted, num_classes: int | None, verb: str
) -> list[tuple[Head, int | None]]:
    """The heads to take, each with its new number of classes (None for ``remove_head``).

    All that are corroborated; else the candidates, if every output has the same number of
    classes, with one warning; else the caller must say.

    Raises:
        NoHeadError: the model makes no classes.
        AmbiguousHeadError: several candidates, and nothing that decides.
        ArgumentError: ``heads`` names something that is no head of this model.
    """
    if wanted is not None:
        return _asked(heads, wanted, num_classes, verb)
    if not heads:
        raise NoHeadError(
            "no layer of this model makes a class output",
            where="the outputs of the model",
            expected="an output whose axis is made by one layer",
            found=heads.ending,
            fix="put a head behind it: torch.nn.Sequential(model, torch.nn.Linear(features, n))",
        )
    certain = [head for head in heads if head.corroborated]
    if certain:
        return [(head, num_classes) for head in certain]
    sizes = {output.size for head in heads for output in head.outputs}
    whole = all(output.size == head.num_classes for head in heads for output in head.outputs)
    if len(sizes) > 1 or not whole:
        raise _ambiguous(heads, verb)
    names = ", ".join(repr(head.address) for head in heads)
    warnings.warn(
        f"{names} is taken for the head because it is the nearest layer behind every output; "
        "nothing else says so: no plugin knows this model and no attribute such as num_classes "
        f"gives {heads[0].num_classes}. Name it to silence this: heads={heads[0].address!r}",
        UncorroboratedWarning,
        stacklevel=4,
    )
    return [(head, num_classes) for head in heads]


def _ambiguous(heads: Heads, verb: str) -> AmbiguousHeadError:
    shown = "\n".join(
        f"{head.address or '(the model itself)'}: {head.kind}, {head.num_classes} features, "
        f"makes {', '.join(output.path for output in head.outputs)}"
        for head in heads
    )
    first = heads[0]
    fix = f"surgery.{verb}(model, ..., heads={first.address!r})"
    if verb == "replace_head":
        fix += f" or heads={{{first.address!r}: 7, ...}}"
    return AmbiguousHeadError(
        "several layers could be the head, and nothing decides between them",
        where="the outputs of the model",
        expected="one number of classes in every output, or something that says which layer it is",
        found=shown,
        fix=fix,
    )


def _asked(
    heads: Heads, wanted: Wanted, num_classes: int | None, verb: str
) -> list[tuple[Head, int | None]]:
    if isinstance(wanted, Mapping):
        if num_classes is not None:
            raise ArgumentError(
                "heads gives a number for each head, so there is none for all",
                where="num_classes, heads",
                expected="one of the two",
                found=f"num_classes={num_classes}, heads={dict(wanted)!r}",
                fix=f"surgery.{verb}(model, heads={dict(wanted)!r})",
            )
        sizes = {
            address: check_num_classes(n, f"heads[{address!r}]") for address, n in wanted.items()
        }
        return [(_named(heads, address), size) for address, size in sizes.items()]
    addresses = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if not addresses or not all(isinstance(address, str) for address in addresses):
        raise ArgumentError(
            "heads names the layers to take",
            where="heads",
            expected="an address, a list of addresses, or {address: number of classes}",
            found=repr(wanted),
            fix=f"heads={heads[0].address!r}" if heads else "surgery.find_heads(model)",
        )
    chosen = {head.address: head for head in (_named(heads, address) for address in addresses)}
    return [(head, num_classes) for head in chosen.values()]


def _named(heads: Heads, address: str) -> Head:
    """The head at an address, or the only one inside it."""
    exact = [head for head in heads if address in head.addresses]
    inside = [h for h in heads if any(a.startswith(f"{address}.") for a in h.addresses)]
    found = exact or inside
    if len(found) == 1:
        said = Evidence("caller", f"heads={address!r}")
        return dataclasses.replace(found[0], evidence=(*found[0].evidence, said))
    known = ", ".join(repr(head.address) for head in heads) or f"none: {heads.ending}"
    raise ArgumentError(
        f"{len(found)} heads are inside this" if found else "the graph shows no head there",
        where=f"heads={address!r}",
        expected=f"one of: {known}",
        found=address,
        fix="surgery.replace(model, {address: module}) changes any layer, head or not",
    )

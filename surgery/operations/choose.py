"""Which heads an operation takes, and how many classes each is to have."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from surgery.claims import FOLLOWING, SCORED
from surgery.errors import (
    AmbiguousHeadError,
    ArgumentError,
    NoHeadError,
    PlanError,
    UncorroboratedWarning,
)
from surgery.heads import Evidence, Head, Heads
from surgery.operations.counted import CLASSES, KEYPOINTS, Counted
from surgery.survey import Survey

Wanted: TypeAlias = "str | Iterable[str] | Mapping[str, int] | None"
Names: TypeAlias = "Sequence[str] | None"


def check_num_classes(
    num_classes: object, where: str = "", fix: str = "", counted: Counted = CLASSES
) -> int:
    """A whole number of at least one.

    Args:
        num_classes: what a caller passed.
        where: the argument it was passed as; that of ``counted``, if left out.
        fix: the call as it should be; one of the verb of ``counted``, if left out.
        counted: what it is the number of.

    Raises:
        ArgumentError: anything else, ``True`` included.
    """
    whole = isinstance(num_classes, Integral) and not isinstance(num_classes, bool)
    if not whole or int(num_classes) < 1:  # type: ignore[call-overload]
        raise ArgumentError(
            f"the number of {counted.many} is a whole number of at least 1",
            where=where or counted.number,
            expected="1, 2, 3, ...",
            found=repr(num_classes),
            fix=fix or f"surgery.{counted.verb}(model, 7)",
        )
    return int(num_classes)  # type: ignore[call-overload, no-any-return]


def check_classes(
    classes: object, num_classes: object, heads: object = None
) -> tuple[int | None, tuple[str, ...] | None]:
    """The number of classes and their names, from either or both, before any head is known.

    Raises:
        ArgumentError: names that are no different strings, or as many as something else says; no
            number at all, or one for all heads beside one for each.
    """
    several = isinstance(heads, Mapping)
    if several and num_classes is not None:
        raise ArgumentError(
            "heads gives a number for each head, so there is none for all",
            where="num_classes, heads",
            expected="one of the two",
            found=f"num_classes={num_classes!r}, heads={heads!r}",
            fix=f"surgery.replace_head(model, heads={heads!r})",
        )
    number, names = check_names(classes, num_classes)
    if number is None and not several:
        raise ArgumentError(
            "how many classes?",
            where="num_classes",
            expected="num_classes, classes, or heads={address: number}",
            found="none of them",
            fix="surgery.replace_head(model, 7)",
        )
    if isinstance(heads, Mapping) and names is not None:
        different = {address: n for address, n in heads.items() if n != number}
        if different:
            raise ArgumentError(
                "classes names the classes of every head, and heads asks for other numbers",
                where="classes, heads",
                expected=f"{number} for each head, one for each name",
                found=repr(different),
                fix="replace those heads in a call of their own",
            )
        return None, names
    return number, names


def check_names(
    given: object, number: object, counted: Counted = CLASSES
) -> tuple[int | None, tuple[str, ...] | None]:
    """The number that a head is to have and the names of what it counts, from either or both.

    Args:
        given: the names that a caller passed, or None.
        number: the number that a caller passed, or None.
        counted: what a head counts.

    Raises:
        ArgumentError: no number of at least one; names that are no different strings, or not as
            many.
    """
    one, many, sample = counted.one, counted.many, list(counted.sample)
    size = None if number is None else check_num_classes(number, counted=counted)
    if given is None:
        return size, None
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ArgumentError(
            f"the names of the {many} are a list of strings",
            where=counted.new,
            expected=repr(sample),
            found=repr(given),
            fix=f"surgery.{counted.verb}(model, {counted.new}={sample!r})",
        )
    names = tuple(given)
    wrong = [name for name in names if not isinstance(name, str)]
    twice = sorted({name for name in names if names.count(name) > 1}) if not wrong else []
    if wrong or twice:
        raise ArgumentError(
            f"every {one} needs a name of its own",
            where=counted.new,
            expected="different strings",
            found=f"twice: {twice}" if twice else f"no string: {wrong[0]!r}",
            fix=f"leave {counted.new} out and pass the number alone",
        )
    if size not in (None, len(names)):
        raise ArgumentError(
            f"the number of {many} and their names disagree",
            where=f"{counted.number}, {counted.new}",
            expected=f"{len(names)} {many}, one for each name",
            found=size,
            fix=f"leave {counted.number} out: the names give it",
        )
    return len(names), names


def check_keypoints(keypoints: object, num_keypoints: object) -> tuple[int, tuple[str, ...] | None]:
    """The number of keypoints and their names, from either or both.

    Raises:
        ArgumentError: names that are no different strings, or not as many as the number; neither.
    """
    number, names = check_names(keypoints, num_keypoints, KEYPOINTS)
    if number is None:
        raise ArgumentError(
            "how many keypoints?",
            where="num_keypoints",
            expected="num_keypoints, or keypoints",
            found="neither",
            fix="surgery.replace_keypoints(model, 7)",
        )
    return number, names


def choose(
    heads: Heads, wanted: Wanted, num_classes: int | None, verb: str
) -> list[tuple[Head, int | None]]:
    """The heads to take, each with its new number of classes (None for ``remove_head``).

    All that are corroborated; else the candidates, if every output has the same number of
    classes and none is made by the branches of a trunk, with one warning; else the caller must say.

    Raises:
        NoHeadError: the model makes no classes.
        AmbiguousHeadError: several candidates, and nothing that decides.
        ArgumentError: ``heads`` names something that is no head of this model.
    """
    if wanted is not None:
        return with_following(heads, _asked(heads, wanted, num_classes, verb))
    own = [head for head in heads if head.role not in FOLLOWING]
    if not own:
        raise NoHeadError(
            "no layer of this model makes a class output",
            where="the outputs of the model",
            expected="an output whose axis is made by one layer",
            found=heads.ending,
            fix=heads.remedy
            or (
                "surgery.replace_head(model, 7, attach=True)"
                if verb == "replace_head"
                else "nothing to do: the features come out already"
            ),
        )
    certain = [head for head in own if head.corroborated]
    if _by_chance(own, certain):
        raise _ambiguous(heads, verb)
    if certain:
        return with_following(heads, [(head, num_classes) for head in certain])
    sizes = {output.size for head in own for output in head.outputs}
    whole = all(output.size == head.num_classes for head in own for output in head.outputs)
    if len(sizes) > 1 or not whole or heads.branches:
        raise _ambiguous(heads, verb)
    names = [head.address for head in own]
    one = len(names) == 1
    warnings.warn(
        f"{', '.join(map(repr, names))} {'is' if one else 'are'} taken for the "
        f"{'head' if one else 'heads'}, as the nearest behind every output; nothing else says so: "
        "no plugin names it, and no attribute such as num_classes gives "
        f"{own[0].num_classes}. To silence this: heads={(names[0] if one else names)!r}",
        UncorroboratedWarning,
        stacklevel=5,
    )
    return [(head, num_classes) for head in own]


def check_known_layers(known: Survey) -> None:
    """Refuse where forward was not recorded and the model has other layers than its family knows.

    What else depends on the classes would stay behind, unseen.

    Raises:
        PlanError: the family claims heads, and none of its layers is one here.
    """
    family = known.family
    if family is None or known.example.forward is None or not known.heads:
        return
    if any(e.source == "family" for head in known.heads for e in head.evidence):
        return
    shown = ", ".join(f"{h.address} ({h.num_classes * h.factor} outputs)" for h in known.heads)
    heads = () if callable(family.heads) else family.heads
    claimed = [claim.address for claim in heads if claim.role not in FOLLOWING]
    part = claimed[0].rpartition(".")[0] if claimed else ""
    raise PlanError(
        f"forward depends on values and was not recorded, and family {family.name!r} does not know "
        "the layers that make classes here: what is coupled to them would be left behind",
        where=part or "the model",
        expected=", ".join(claimed),
        found=shown,
        fix=f"surgery.replace(model, {{{part!r}: module}}) with all of it made for the new classes",
    )


def choose_keypoints(heads: Heads, num_keypoints: int) -> list[tuple[Head, int]]:
    """The layers that make keypoints, each with the new number.

    Raises:
        NoHeadError: no family says that a layer of the model makes keypoints.
    """
    found = [head for head in heads if head.role == "keypoints"]
    if not found:
        raise NoHeadError(
            "no layer of this model is known to make keypoints",
            where="the model",
            expected="a layer that its family claims with the role 'keypoints'",
            found=heads.ending,
            fix="surgery.replace_head(model, n) where keypoints are classes of an output, or "
            "surgery.replace(model, {address: module})",
        )
    return [(head, num_keypoints) for head in found]


def with_following(
    heads: Heads, chosen: Sequence[tuple[Head, int | None]]
) -> list[tuple[Head, int | None]]:
    """The chosen heads, and the layers that are coupled to them, with the same number.

    Raises:
        ArgumentError: a layer is coupled to heads that are not all to have one number.
    """
    numbers = {head.address: size for head, size in chosen}
    found = list(chosen)
    for head in heads:
        leading = [address for address in head.follows if address in numbers]
        if not leading:
            continue
        asked = {numbers.get(address, "its own") for address in head.follows}
        if len(asked) > 1:
            raise ArgumentError(
                f"{head.address!r} has numbers for the classes of several heads, which are to "
                "become different",
                where="heads",
                expected=f"one number of classes for {', '.join(map(repr, head.follows))}",
                found=repr({address: numbers.get(address) for address in head.follows}),
                fix=f"heads={{{', '.join(f'{address!r}: n' for address in head.follows)}}}",
            )
        found.append((head, numbers[leading[0]]))
    return found


def _by_chance(own: Sequence[Head], certain: Sequence[Head]) -> bool:
    """Whether an attribute may mean another layer, which makes one class more: "no object".

    The attribute then counts the kinds of objects, and a layer with as many outputs does so by
    chance: four numbers of a box where there are four kinds.
    """
    weak = [head for head in certain if _sources(head) <= {"graph", "attribute"}]
    others = [head for head in own if head not in certain]
    return bool(weak) and any(
        other.num_classes == head.num_classes + 1 and _paths(other).isdisjoint(_paths(head))
        for head in weak
        for other in others
    )


def _sources(head: Head) -> set[str]:
    return {evidence.source for evidence in head.evidence}


def _paths(head: Head) -> set[str]:
    return {output.path for output in head.outputs}


def _ambiguous(heads: Heads, verb: str) -> AmbiguousHeadError:
    shown = "\n".join(
        f"{head.address or '(the model itself)'}: {head.kind}, {head.num_classes} features, "
        f"makes {', '.join(output.path for output in head.outputs)}"
        for head in heads
    )
    if heads.branches:
        shown += f"\n{heads.branches}"
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
    asked = _addresses(heads, wanted)
    if isinstance(wanted, Mapping) and verb != "replace_head":
        raise ArgumentError(
            f"{verb} takes heads out, and gives them no number of classes",
            where="heads",
            expected="an address, or a list of addresses",
            found=repr(wanted),
            fix=f"surgery.{verb}(model, heads={list(wanted)!r})",
        )
    found: dict[str, tuple[Head, int | None, str]] = {}
    for address, number in asked.items():
        size = num_classes
        if isinstance(wanted, Mapping):
            fix = f"heads={{{address!r}: 7}}"
            size = check_num_classes(number, f"heads[{address!r}]", fix)
        for head in _named(heads, address):
            _, other, first = found.setdefault(head.address, (head, size, address))
            if other != size:
                raise ArgumentError(
                    "one head is asked for twice, with different numbers of classes",
                    where=f"heads[{first!r}], heads[{address!r}]",
                    expected=f"one number for {head.address!r}",
                    found=f"{other} and {size}",
                    fix=f"heads={{{head.address!r}: {size}}}",
                )
    return [(head, size) for head, size, _ in found.values()]


def _check_own(heads: Sequence[Head], address: str) -> None:
    """Refuse a layer that makes no class output of its own.

    Raises:
        ArgumentError: it follows other heads, or makes keypoints, choices or spans.
    """
    for head in heads:
        if head.role == "keypoints":
            raise ArgumentError(
                "this layer makes keypoints, and no classes",
                where=f"heads={address!r}",
                expected="a layer that makes classes",
                found=f"{head.num_classes} keypoints",
                fix=f"surgery.replace_keypoints(model, {head.num_classes})",
            )
        if head.role in SCORED:
            raise ArgumentError(
                f"this layer {SCORED[head.role]}, and makes no classes",
                where=f"heads={address!r}",
                expected="a layer that makes classes",
                found=f"a head with the role {head.role!r}",
                fix=f"surgery.replace(model, {{{address!r}: module}}) changes any layer",
            )
        if head.role == "coupled":
            raise ArgumentError(
                "this layer has no number of classes of its own: it follows other heads",
                where=f"heads={address!r}",
                expected=f"one of: {', '.join(map(repr, head.follows))}",
                found=f"{head.factor} numbers for each of their {head.num_classes} classes",
                fix=f"heads={head.follows[0]!r}",
            )


def _addresses(heads: Heads, wanted: Wanted) -> dict[str, Any]:
    """What was asked for by address, with a number where one was given."""
    listed: list[Any] = []
    if isinstance(wanted, str):
        listed = [wanted]
    elif isinstance(wanted, Iterable):
        listed = list(wanted)
    if not listed or not all(isinstance(address, str) for address in listed):
        raise ArgumentError(
            "heads names the layers to take",
            where="heads",
            expected="an address, a list of addresses, or {address: number of classes}",
            found=repr(wanted),
            fix=f"heads={heads[0].address!r}" if heads else "surgery.find_heads(model)",
        )
    return dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(listed)


def _named(heads: Heads, address: str) -> list[Head]:
    """The head at an address, or those inside it."""
    exact = [head for head in heads if address in head.addresses]
    _check_own(exact, address)
    own = [head for head in heads if head.role not in FOLLOWING]
    found = exact or [h for h in own if any(a.startswith(f"{address}.") for a in h.addresses)]
    if not found:
        known = ", ".join(repr(head.address) for head in heads)
        raise ArgumentError(
            "the graph shows no head there",
            where=f"heads={address!r}",
            expected=f"one of: {known}" if known else f"no head at all: {heads.ending}",
            found=repr(address),
            fix=f"surgery.replace(model, {{{address!r}: module}}) changes any layer, head or not",
        )
    said = Evidence("caller", f"heads={address!r}")
    return [dataclasses.replace(head, evidence=(*head.evidence, said)) for head in found]

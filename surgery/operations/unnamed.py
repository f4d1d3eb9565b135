"""Numbers of classes under names that nobody knows: found by what happens when they change.

A forward pass that allocates or reshapes by ``self.output_dim`` breaks when the head alone gets
another size. Of the numbers on the way to the head that equal its classes, the one that makes the
pass run again is a number of classes, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from torch import nn

from surgery import tree
from surgery.errors import PlanError
from surgery.facts import COUNTS
from surgery.heads import Head
from surgery.operations.plan import Step

# Each attempt is a recording in every mode.
_ATTEMPTS = 16
_Found = TypeVar("_Found")
Place = tuple[str, str]


def with_unnamed_counts(
    model: nn.Module,
    trial: Sequence[tuple[Head, int]],
    steps: tuple[Step, ...],
    attempt: Callable[[tuple[Step, ...]], _Found],
) -> tuple[_Found, dict[Place, str]]:
    """Try steps; where they do not do, try them with one more number set, then with all.

    Args:
        model: the model.
        trial: the heads, each with the number of classes that is tried.
        steps: the steps without those numbers.
        attempt: tries steps; raises PlanError where the model does not run, or an output changes
            in a way that is not explained.

    Returns:
        What the attempt returned, and the attributes that had to be set too, as (module address,
        name), each with the address of the head it follows.

    Raises:
        PlanError: the first one, where nothing helps.
    """
    try:
        return attempt(steps), {}
    except PlanError as error:
        places = dict(_places(model, trial, steps))
        sizes = {head.address: size for head, size in trial}
        single = [{place: head} for place, head in places.items()]
        every = [dict(places)] if len(places) > 1 else []
        for chosen in [*single, *every][:_ATTEMPTS]:
            more = tuple(
                count_step(model, place, sizes[address]) for place, address in chosen.items()
            )
            try:
                return attempt((*steps, *more)), chosen
            except PlanError:
                continue
        raise error


def count_step(model: nn.Module, place: Place, size: int) -> Step:
    """The step that sets one number."""
    module, name = place
    before = tree.get_module(model, module).__dict__[name]
    return Step("attribute", (tree.join(module, name),), str(before), str(size), size, module)


def staying_notes(
    model: nn.Module, chosen: Sequence[tuple[Head, int]], steps: tuple[Step, ...]
) -> Iterator[str]:
    """Say which numbers above a head equal its old classes and stay, as forward runs with them.

    A loss or a method that was not recorded may read them. Numbers of the layer itself are its
    own: as many features may go in as came out. Of those that are known by name more is said
    elsewhere.

    Args:
        model: the model.
        chosen: the heads to be replaced, with their new numbers.
        steps: all that is done.
    """
    moved = [(head, size) for head, size in chosen if size != head.num_classes]
    counts = {head.address: head.num_classes for head, _ in moved}
    found = {
        tree.join(*place): counts[address]
        for place, address in _places(model, moved, steps)
        if place[0] != address and place[1] not in COUNTS
    }
    for count in dict.fromkeys(found.values()):
        names = [place for place, each in found.items() if each == count]
        are, stay, them = ("is", "stays", "it") if len(names) == 1 else ("are", "stay", "them")
        yield (
            f"{', '.join(names)} {are} {count} as well and {stay}, as forward runs with {them}: "
            "set what counts classes, should a loss read it"
        )


def _places(
    model: nn.Module, trial: Sequence[tuple[Head, int]], steps: tuple[Step, ...]
) -> Iterator[tuple[Place, str]]:
    """Whole numbers on the way to a head that equal its classes and are not set already."""
    planned: Mapping[str, None] = dict.fromkeys(a for step in steps for a in step.addresses)
    for head, _ in trial:
        names = head.address.split(".") if head.address else []
        for length in range(len(names) + 1):
            address = ".".join(names[:length])
            module = tree.get(model, address)
            if not isinstance(module, nn.Module):
                continue
            for name, value in module.__dict__.items():
                same = type(value) is int and value == head.num_classes
                if same and tree.join(address, name) not in planned:
                    yield (address, name), head.address

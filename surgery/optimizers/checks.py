"""What cannot be followed: by this optimizer, or because of what was done before."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer

from surgery import tree
from surgery.errors import ArgumentError, UndoError
from surgery.operations import history
from surgery.operations.plan import Outcome
from surgery.operations.undoing import Operated
from surgery.optimizers.keepers import Keepers
from surgery.optimizers.memory import memories_of, memory_of
from surgery.optimizers.places import Lists

# By the class that keeps the state elsewhere than with each parameter: why, and what to do.
_REFUSED = {
    "ZeroRedundancyOptimizer": (
        "each process of this optimizer holds the state of other parameters",
        "make it after the operation: surgery.replace_head(model, 7), then "
        "ZeroRedundancyOptimizer(model.parameters(), ...)",
    ),
    "LBFGS": (
        "this optimizer keeps one state for all parameters together",
        "torch.optim.LBFGS(model.parameters(), ...) after the operation",
    ),
    "Adahessian": (
        "this optimizer hangs what it learned on the parameters themselves, when it is made",
        "Adahessian(model.parameters(), ...) after the operation",
    ),
}
# Why an operation is over, by a word of it: what that is, and what to do.
_OVER = (
    (
        "committed",
        "an outcome that has let go of the old parameters",
        "surgery.follow(optimizer, outcome), then outcome.commit()",
    ),
    (
        "copy",
        "a copied or unpickled outcome",
        "surgery.follow(optimizer, outcome) with the outcome that the verb returned",
    ),
    (
        "built",
        "a model that is new as a whole",
        "make the optimizer for it: torch.optim.AdamW(surgery.parameter_groups(outcome.model))",
    ),
)
# Parameters that are shards of others.
_SHARDS = ("FlatParameter", "DTensor")


def check_optimizer(given: object) -> Keepers:
    """The optimizer, out of what wraps it, and everything that keeps its state.

    Raises:
        ArgumentError: none, or one whose state belongs to no single parameter of one process, or
            one that steps through others with groups of their own.
    """
    while not isinstance(given, Optimizer):
        inner = getattr(given, "optimizer", None)
        if not isinstance(inner, Optimizer):
            several = isinstance(given, list | tuple | dict)
            raise ArgumentError(
                "this is no optimizer",
                where="optimizer",
                expected="a torch.optim.Optimizer",
                found=type(given).__name__,
                fix="for each in optimizers: surgery.follow(each, outcome)"
                if several
                else "surgery.follow(optimizer, outcome)",
            )
        given = inner
    _check_kept_apart(given)
    keepers = Keepers.of(given)
    for each in keepers:
        _check_kept_apart(each)
    _check_whole(keepers.optimizer)
    return keepers


def _check_kept_apart(optimizer: Optimizer) -> None:
    for cls in type(optimizer).__mro__:
        if cls.__name__ in _REFUSED:
            what, fix = _REFUSED[cls.__name__]
            raise ArgumentError(
                what,
                where="optimizer",
                expected="an optimizer with a state for each parameter",
                found=tree.class_name(type(optimizer)),
                fix=fix,
            )


def _check_whole(optimizer: Optimizer) -> None:
    for number, group in enumerate(optimizer.param_groups):
        for tensor in group["params"]:
            if any(cls.__name__ in _SHARDS for cls in type(tensor).__mro__):
                raise ArgumentError(
                    "this optimizer holds shards of parameters, and the state of shards",
                    where=f"optimizer.param_groups[{number}]",
                    expected="the parameters of a model that is not sharded",
                    found=type(tensor).__name__,
                    fix="operate on the model first, then shard it and make the optimizer",
                )


def check_groups(lists: Lists) -> None:
    """Refuse groups that hold one parameter twice.

    Raises:
        ArgumentError: they do.
    """
    where: dict[int, int] = {}
    for number, tensors in enumerate(lists.tensors):
        for tensor in tensors:
            other = where.get(id(tensor))
            if other is not None:
                raise ArgumentError(
                    "a parameter stands twice in the groups of this optimizer",
                    where=f"optimizer.param_groups[{number}]",
                    expected="every parameter in one group, once",
                    found=f"one of shape {list(tensor.shape)} in groups {other} and {number}",
                    fix="surgery.parameter_groups(model) makes groups without that",
                )
            where[id(tensor)] = number


def check_group(group: object, number: int) -> None:
    """Refuse what is no number of a group.

    Raises:
        ArgumentError: it is none.
    """
    if group is None or (type(group) is int and 0 <= group < number):
        return
    raise ArgumentError(
        "there is no such group in this optimizer",
        where="group",
        expected=f"a number from 0 to {number - 1}, or None",
        found=repr(group),
        fix="optimizer.add_param_group({'params': [...]}) makes another",
    )


def check_outcome(optimizer: Optimizer, outcome: object) -> Operated:
    """What an outcome did, where it can be followed.

    Raises:
        ArgumentError: no outcome, a dry run, a copy of an outcome, one that was committed before
            it was followed, or one that was followed already.
    """
    if not isinstance(outcome, Outcome):
        raise ArgumentError(
            "this is no outcome",
            where="outcome",
            expected="what a verb returned",
            found=type(outcome).__name__,
            fix="outcome = surgery.replace_head(model, 7); surgery.follow(optimizer, outcome)",
        )
    operated, title = outcome.operated, outcome.plan.title
    if operated is None:
        raise ArgumentError(
            "there is nothing to follow: this was a dry run",
            where=title,
            fix="call the verb without dry_run=True to carry the plan out",
        )
    undone = is_undone(operated)
    if memory_of(optimizer, operated) is not None and not undone:
        raise ArgumentError(
            "this optimizer followed the operation already",
            where=title,
            expected="every operation once",
            found="the parameters of the operation are in its groups",
            fix="nothing to do",
        )
    if operated.over and not undone:
        said = next((said for word, *said in _OVER if word in operated.over), _OVER[0][1:])
        raise ArgumentError(
            f"this operation cannot be followed: {operated.over}",
            where=title,
            expected="the outcome that the verb returned, before commit()",
            found=said[0],
            fix=said[1],
        )
    return operated


def is_undone(operated: Operated) -> bool:
    """Whether an operation was taken back."""
    return "undone" in operated.over


def check_order(optimizer: Optimizer, operated: Operated, lost: set[int]) -> None:
    """Refuse to follow out of order: an optimizer follows as the operations were done and undone.

    Args:
        optimizer: the optimizer.
        operated: what it is to follow.
        lost: by ``id`` the parameters that it holds, the model does not, and this operation has
            nothing to do with.

    Raises:
        UndoError: an operation was undone that the optimizer followed, and did not follow back.
        ArgumentError: an earlier operation was not followed.
    """
    for other, memory in memories_of(optimizer):
        if is_undone(other) and _is_in_the_way(other, operated):
            raise UndoError(
                f"{memory.title} was undone, and the optimizer has not heard of it",
                where=memory.title,
                expected="operations followed back in the order in which they were undone",
                found="an optimizer that holds parameters of an operation that was undone",
                fix="surgery.follow(optimizer, outcome) with that outcome first",
            )
    known = {id(operated), *(id(each.operated) for each in operated.also)}
    for entry in history.standing() if lost else ():
        keeper = entry.keeper()
        if keeper is None or id(keeper) in known or memory_of(optimizer, keeper) is not None:
            continue
        if not lost.isdisjoint(map(id, keeper.old.values())):
            raise ArgumentError(
                f"{entry.title} was not followed yet, and the optimizer holds what it replaced",
                where=entry.title,
                expected="operations followed in the order in which they were done",
                found="an earlier operation that was left out",
                fix="surgery.follow(optimizer, outcome) with its outcome first",
            )


def later_ones(optimizer: Optimizer, operated: Operated, held: Mapping[int, int]) -> list[str]:
    """The operations after one that replaced what an optimizer holds, and that it did not follow.

    Args:
        optimizer: the optimizer.
        operated: the operation that it followed, or followed back.
        held: by ``id`` what it holds.
    """
    own = {id(operated), *(id(each.operated) for each in operated.also)}
    serial = operated.entry.serial if operated.entry is not None else 0
    keepers = [(entry, entry.keeper()) for entry in history.standing() if entry.serial > serial]
    return [
        entry.title
        for entry, keeper in keepers
        if keeper is not None
        and id(keeper) not in own
        and memory_of(optimizer, keeper) is None
        and not held.keys().isdisjoint(map(id, keeper.old.values()))
    ]


def _is_in_the_way(other: Operated, operated: Operated) -> bool:
    """Whether an undone operation is to be followed back first: any, or the later of two."""
    if other is operated or other.entry is None or operated.entry is None:
        return False
    return not is_undone(operated) or other.entry.serial > operated.entry.serial

"""What a module that takes another's place takes over from it: mode and hooks."""

from __future__ import annotations

from typing import Any

from torch import nn

from surgery import tree
from surgery.errors import PlanError
from surgery.operations.journal import Write
from surgery.operations.norms import stays_in_eval

_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def check_carry(old: nn.Module, new: nn.Module, address: str) -> None:
    """Refuse where the hooks of the old module cannot pass to the new one.

    Raises:
        PlanError: the old module has hooks of a user beside those by which torch recomputes a
            weight, which no handle tells apart, or both modules have hooks.
    """
    theirs = users_hooks(old)
    if theirs and not _holds(new, old) and (len(theirs) < len(_hooks(old)) or _hooks(new)):
        raise PlanError(
            "the hooks of the old module cannot be carried over to the new one",
            where=address or "(the model itself)",
            expected="hooks of a user on the old module alone",
            found=f"{len(_hooks(old))} hooks on the old module, {len(_hooks(new))} on the new one",
            fix="remove one set of hooks first: handle.remove()",
        )


def carry_writes(old: nn.Module, new: nn.Module) -> list[Write]:
    """What gives a new module the mode and the hooks of the one whose place it takes.

    The hook tables are shared, not copied, so that a user's ``handle.remove()`` still works.
    Hooks by which torch recomputes a weight (weight norm, pruning) belong to the old weight and
    stay behind; a module that lives on inside the new one keeps its own, and its mode.
    """
    # What lives on inside the new module keeps its own modes.
    known = {id(module) for module, _ in tree.index(old).modules.values()}
    inside = [m for m, _ in tree.index(new).modules.values() if id(m) not in known]
    writes = [
        Write(module, "training", old.training)
        for module in inside
        if module.training is not old.training and not stays_in_eval(module)
    ]
    if users_hooks(old) and not _holds(new, old):
        writes += [
            Write(tree.unwrap(new), name, old.__dict__[name])
            for name in (*_TABLES, "_is_full_backward_hook")
            if name in old.__dict__
        ]
    return writes


def _holds(new: nn.Module, old: nn.Module) -> bool:
    """Whether the old module lives on inside the new one, and keeps its hooks."""
    return any(module is old for module, _ in tree.index(new).modules.values())


def users_hooks(module: nn.Module) -> list[Any]:
    """The hooks of a module, less those by which torch itself recomputes a weight."""
    return [hook for hook in _hooks(module) if not _is_structural(hook)]


def _hooks(module: nn.Module) -> list[Any]:
    tables = (module.__dict__.get(name) or {} for name in _TABLES if "with" not in name)
    return [hook for table in tables for hook in table.values() if callable(hook)]


def _is_structural(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")

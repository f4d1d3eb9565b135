"""What a module that takes another's place takes over from it: mode and hooks."""

from __future__ import annotations

from typing import Any

from torch import nn

from surgery.errors import PlanError

_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def carried_over(old: nn.Module, new: nn.Module, address: str) -> None:
    """Give a new module the mode and the hooks of the one whose place it is going to take.

    The hook tables are shared, not copied, so that a user's ``handle.remove()`` still works.
    Hooks by which torch recomputes a weight (weight norm, pruning) belong to the old weight and
    stay behind.

    Raises:
        PlanError: the old module has hooks of both sorts, which cannot be told apart by a handle,
            or both modules have hooks.
    """
    new.train(old.training)
    theirs = [hook for hook in _hooks(old) if not _is_structural(hook)]
    if not theirs:
        return
    if len(theirs) < len(_hooks(old)) or _hooks(new):
        raise PlanError(
            "the hooks of the old module cannot be carried over to the new one",
            where=address or "(the model itself)",
            expected="hooks of a user on the old module alone",
            found=f"{len(_hooks(old))} hooks on the old module, {len(_hooks(new))} on the new one",
            fix="remove one set of hooks first: handle.remove()",
        )
    for name in _TABLES:
        if name in old.__dict__:
            new.__dict__[name] = old.__dict__[name]
    new._is_full_backward_hook = old._is_full_backward_hook


def _hooks(module: nn.Module) -> list[Any]:
    tables = (module.__dict__.get(name) or {} for name in _TABLES if "with" not in name)
    return [hook for table in tables for hook in table.values() if callable(hook)]


def _is_structural(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")

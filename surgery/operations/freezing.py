"""Freeze and unfreeze parameters by address."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

from torch import nn

from surgery import tree
from surgery.errors import ArgumentError
from surgery.families.registry import Registry
from surgery.graph.skeleton import is_floating
from surgery.heads import find_heads
from surgery.operations.apply import apply
from surgery.operations.plan import Outcome, Plan, Step
from surgery.operations.size import count_parameters


def freeze(
    model: nn.Module,
    patterns: str | Iterable[str] = "*",
    *,
    except_: str | Iterable[str] = (),
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Stop parameters from training: ``requires_grad`` becomes False.

    Normalisation layers keep the mode they are in; call ``model.eval()``, or ``.eval()`` on
    them, where their running statistics must stay.

    Args:
        model: any module; it is changed in place.
        patterns: addresses of modules or parameters, ``*`` and ``?`` allowed.
        except_: what to leave as it is, in the same form; ``"heads"`` means the heads.
        example: for finding heads: the arguments of one forward pass, if they are needed.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome; ``undo()`` gives every parameter the flag it had.

    Raises:
        ArgumentError: a pattern that fits nothing.
        HeadError, RecordError: heads were asked for and could not be found.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> outcome = surgery.freeze(model, except_="2")
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['2.weight', '2.bias']
    """
    kept = _matching(model, except_, "except_", example, registry)
    return _flagged(model, patterns, kept, False, "freeze", example, dry_run, registry)


def unfreeze(
    model: nn.Module,
    patterns: str | Iterable[str] = "*",
    *,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Let parameters train: ``requires_grad`` becomes True where the dtype allows it.

    Args:
        model: any module; it is changed in place.
        patterns: addresses of modules or parameters, ``*`` and ``?`` allowed; ``"heads"``.
        example: for finding heads: the arguments of one forward pass, if they are needed.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome; ``undo()`` gives every parameter the flag it had.

    Raises:
        ArgumentError: a pattern that fits nothing.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Linear(8, 5).requires_grad_(False)
        >>> outcome = surgery.unfreeze(model, "bias")
        >>> model.weight.requires_grad, model.bias.requires_grad
        (False, True)
    """
    return _flagged(model, patterns, frozenset(), True, "unfreeze", example, dry_run, registry)


def _flagged(
    model: nn.Module,
    patterns: str | Iterable[str],
    kept: frozenset[str],
    trainable: bool,
    verb: str,
    example: Any,
    dry_run: bool,
    registry: Registry | None,
) -> Outcome:
    tree.check_model(model)
    tree.check_changeable(model)
    chosen = _matching(model, patterns, "patterns", example, registry)
    steps = []
    for entry in tree.index(model).of_kind("parameter"):
        wanted = chosen.intersection(entry.addresses) and not kept.intersection(entry.addresses)
        if not wanted or entry.tensor.requires_grad is trainable:
            continue
        if trainable and not is_floating(entry.tensor.dtype):
            continue
        words = ("frozen", "trainable") if trainable else ("trainable", "frozen")
        steps.append(Step("flag", entry.addresses, *words, trainable))
    count = count_parameters(model)
    plan = Plan(f"{verb}({_shown(patterns)})", tuple(steps), (), (count, count))
    return Outcome(model, plan) if dry_run else apply(model, plan)


def _shown(patterns: str | Iterable[str]) -> str:
    return repr(patterns) if isinstance(patterns, str) else ", ".join(map(repr, patterns))


def _matching(
    model: nn.Module,
    patterns: str | Iterable[str],
    argument: str,
    example: Any,
    registry: Registry | None,
) -> frozenset[str]:
    """The addresses of all parameters that patterns fit: their own, or of a module above."""
    found: set[str] = set()
    listed = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    addresses = [a for entry in tree.index(model).of_kind("parameter") for a in entry.addresses]
    for pattern in listed:
        if not isinstance(pattern, str):
            raise ArgumentError(
                "parameters are named by strings",
                where=argument,
                expected="addresses, '*' and '?' allowed",
                found=repr(pattern),
                fix="surgery.freeze(model, 'features.*')",
            )
        if pattern == "heads":
            heads = find_heads(model, example, registry=registry)
            fitting = {
                a for head in heads for weight in head.addresses for a in _in(weight, addresses)
            }
        else:
            fitting = {a for a in addresses if _fits(a, pattern)}
        if not fitting and addresses:
            raise ArgumentError(
                "no parameter has such an address",
                where=f"{argument}={pattern!r}",
                expected="the address of a module or parameter",
                found=pattern,
                fix="for name, _ in model.named_parameters(): print(name)",
            )
        found |= fitting
    return frozenset(found)


def _in(address: str, addresses: Iterable[str]) -> set[str]:
    return {a for a in addresses if not address or a == address or a.startswith(f"{address}.")}


def _fits(address: str, pattern: str) -> bool:
    parts = address.split(".")
    return any(
        fnmatch.fnmatchcase(".".join(parts[:length]), pattern)
        for length in range(1, len(parts) + 1)
    )

"""Freeze and unfreeze: parameters that do not train, statistics that do not move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

from torch import nn

from surgery import tree
from surgery.errors import ArgumentError
from surgery.families.registry import Registry
from surgery.graph.skeleton import is_floating
from surgery.operations.apply import apply
from surgery.operations.calls import called
from surgery.operations.journal import MISSING
from surgery.operations.norms import StaysInEval, keeps_statistics, stays_in_eval
from surgery.operations.plan import Outcome, Plan, Step
from surgery.operations.selection import Patterns, first_stages, listed, select
from surgery.operations.size import count_parameters

Norm: TypeAlias = Literal["eval", "train"]


def freeze(
    model: nn.Module,
    patterns: Patterns = "*",
    *,
    except_: Patterns = (),
    norm: Norm = "eval",
    stages: int | None = None,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Stop parameters from training, and normalisation statistics from moving.

    ``requires_grad`` becomes False. Normalisation layers with running statistics stay in eval
    mode through ``model.train()``, ``copy.deepcopy``, ``pickle`` and ``torch.compile``: in train
    mode they answer what they answer in eval mode. A ``state_dict`` carries no freezing into
    another model, and ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` builds new layers, so
    convert first and freeze then.

    Args:
        model: any module; it is changed in place.
        patterns: what to freeze: an address or several, ``*`` and ``?`` allowed, regular
            expressions or callables; what lies inside a module that fits is frozen too.
        except_: what to leave as it is, in the same form; ``"heads"`` means the heads.
        norm: ``"eval"``, or ``"train"`` to let frozen layers go on updating their statistics.
        stages: freeze the stem and this many stages (and not everything), as the model's family
            counts them.
        example: for finding heads: the arguments of one forward pass, if they are needed.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome; ``undo()`` gives every parameter and layer what it had.

    Raises:
        ArgumentError: a pattern that fits nothing, an unknown ``norm``, or stages nobody knows.
        RecordError: heads were asked for and the model could not be recorded.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))
        >>> outcome = surgery.freeze(model, except_="2")
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['2.weight', '2.bias']
        >>> model.train()[1].training
        False
    """
    if norm not in ("eval", "train"):
        raise ArgumentError(
            "frozen normalisation layers either keep their statistics or go on updating them",
            where="norm",
            expected="'eval' or 'train'",
            found=repr(norm),
            fix="surgery.freeze(model, norm='eval')",
        )
    tree.check_model(model)
    tree.check_changeable(model)
    if stages is not None:
        early = first_stages(model, stages, registry)
        patterns = early if patterns == "*" else (*early, *listed(patterns))
    kept = select(model, except_, "except_", example=example, registry=registry)
    chosen = select(model, patterns, "patterns", example=example, registry=registry) - kept
    steps = steps_to_freeze(model, chosen, kept, norm)
    given = {"patterns": list(listed(patterns)), "except_": list(listed(except_)), "norm": norm}
    call = called("freeze", **given)
    return _carried_out(model, f"freeze({_shown(patterns)})", steps, call, dry_run)


def unfreeze(
    model: nn.Module,
    patterns: Patterns = "*",
    *,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Let parameters train, and normalisation layers follow the model's mode again.

    Args:
        model: any module; it is changed in place.
        patterns: as in ``freeze``.
        example: for finding heads: the arguments of one forward pass, if they are needed.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome; ``undo()`` gives every parameter and layer what it had.

    Raises:
        ArgumentError: a pattern that fits nothing.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Linear(8, 5).requires_grad_(False)
        >>> outcome = surgery.unfreeze(model, "bias")
        >>> model.weight.requires_grad, model.bias.requires_grad
        (False, True)
    """
    tree.check_model(model)
    tree.check_changeable(model)
    chosen = select(model, patterns, "patterns", example=example, registry=registry)
    steps = [*_flags(model, chosen, frozenset(), trainable=True), *_moving(model, chosen)]
    call = called("unfreeze", patterns=list(listed(patterns)))
    return _carried_out(model, f"unfreeze({_shown(patterns)})", steps, call, dry_run)


def steps_to_freeze(
    model: nn.Module,
    chosen: frozenset[str],
    kept: frozenset[str] = frozenset(),
    norm: Norm = "eval",
) -> list[Step]:
    """What freezing consists of.

    Args:
        model: any module.
        chosen: addresses of parameters and buffers to freeze.
        kept: addresses to leave as they are, also where they share a tensor with others.
        norm: whether normalisation layers among them stay in eval mode.
    """
    steps = list(_flags(model, chosen, kept, trainable=False))
    if norm == "eval":
        steps += _still(model, chosen, kept)
    return steps


def _carried_out(
    model: nn.Module, title: str, steps: list[Step], call: Mapping[str, Any], dry_run: bool
) -> Outcome:
    count = count_parameters(model)
    plan = Plan(title, tuple(steps), (), (count, count), call=call)
    return Outcome(model, plan) if dry_run else apply(model, plan)


def _flags(
    model: nn.Module, chosen: frozenset[str], kept: frozenset[str], *, trainable: bool
) -> Iterator[Step]:
    words = ("frozen", "trainable") if trainable else ("trainable", "frozen")
    for entry in tree.index(model).of_kind("parameter"):
        # A shared parameter is left alone where one of its addresses is to be.
        wanted = chosen.intersection(entry.addresses) and kept.isdisjoint(entry.addresses)
        if not wanted or entry.tensor.requires_grad is trainable:
            continue
        if is_floating(entry.tensor.dtype):
            yield Step("flag", entry.addresses, *words, trainable)


def _still(model: nn.Module, chosen: frozenset[str], kept: frozenset[str]) -> Iterator[Step]:
    for module, addresses in tree.index(model).modules.values():
        held = {tree.join(address, "running_mean") for address in addresses}
        wanted = chosen & held and not kept & held
        if wanted and keeps_statistics(module) and not stays_in_eval(module):
            still = StaysInEval(module)
            yield _attribute(addresses[0], "train", "follows the model's mode", str(still), still)
            if module.training:
                yield _attribute(addresses[0], "training", "True", "False", False)


def _moving(model: nn.Module, chosen: frozenset[str]) -> Iterator[Step]:
    mode = tree.unwrap(model).training
    for module, addresses in tree.index(model).modules.values():
        held = {tree.join(address, "running_mean") for address in addresses}
        if chosen & held and stays_in_eval(module):
            after = "follows the model's mode"
            yield _attribute(addresses[0], "train", "stays in eval mode", after, MISSING)
            if module.training is not mode:
                yield _attribute(addresses[0], "training", str(not mode), str(mode), mode)


def _attribute(module: str, name: str, before: str, after: str, new: Any) -> Step:
    return Step("attribute", (tree.join(module, name),), before, after, new, module)


def _shown(patterns: Any) -> str:
    return ", ".join(repr(pattern) for pattern in listed(patterns))

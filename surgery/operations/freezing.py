"""Freeze and unfreeze: parameters that do not train, statistics that do not move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

from torch import nn

from surgery import tree
from surgery.errors import ArgumentError
from surgery.families.registry import Registry
from surgery.graph.skeleton import is_floating
from surgery.operations.apply import apply, operate
from surgery.operations.calls import called
from surgery.operations.journal import MISSING
from surgery.operations.norms import Layer, StaysInEval, layers, still_of
from surgery.operations.plan import Outcome, Plan, Step
from surgery.operations.selection import first_stages, select
from surgery.operations.size import count_parameters
from surgery.patterns import Patterns, listed

Norm: TypeAlias = Literal["eval", "train"]
_SHOWN = 4


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
    """Stop parameters from training, and statistics from moving.

    ``requires_grad`` becomes False. Layers with running statistics, and spectral norms, stay in
    eval mode: in train mode they answer what they answer in eval mode. Such a layer is frozen
    where it is chosen itself, or its statistics are, or all of its parameters.

    This holds through ``model.train()``, ``copy.deepcopy``, ``pickle`` and ``torch.compile``, and
    not through what makes other layers: a ``state_dict`` carries no freezing into another model
    (``surgery.save`` does), ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` and
    ``torch.jit.script`` build layers that follow the mode. Convert first and freeze then; script
    a model in eval mode. The ``train()`` of a ``copy.copy`` of one layer returns the original,
    until the copy is frozen itself.

    Args:
        model: any module; it is changed in place.
        patterns: what to freeze: an address or several, ``*`` and ``?`` allowed, regular
            expressions that fit the whole address, or callables; what lies inside a module that
            fits is frozen too. ``"heads"`` means the heads that are found.
        except_: what to leave as it is, in the same form.
        norm: ``"eval"``, or ``"train"`` to let frozen layers go on updating their statistics,
            those too that were held until now.
        stages: freeze the stem and this many stages (and not everything), as the model's family
            counts them; 0 is the stem alone. Patterns are frozen besides.
        example: for finding heads: the arguments of one forward pass, if they are needed.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome; ``undo()`` gives every parameter what it had, and every layer the mode that
        it would have now.

    Raises:
        ArgumentError: a pattern that is none, fits nothing or means two things, an unknown
            ``norm``, or stages nobody knows.
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
    except_ = listed(except_, "except_")
    whole, patterns = _is_default(patterns), listed(patterns, "patterns")
    title = _title("freeze", "*" if whole else patterns, stages, except_=except_, norm=norm)
    if stages is not None:
        early = first_stages(model, stages, registry)
        patterns = tuple(early) if whole else (*early, *patterns)
    kept = select(model, except_, "except_", example=example, registry=registry)
    chosen = select(model, patterns, "patterns", example=example, registry=registry) - kept
    steps = steps_to_freeze(model, chosen, kept, norm)
    notes = tuple(_moves_on(model, chosen, kept)) if norm == "eval" else ()
    call = called("freeze", patterns=list(patterns), except_=list(except_), norm=norm)
    return _carried_out(model, title, steps, notes, call, dry_run)


def unfreeze(
    model: nn.Module,
    patterns: Patterns = "*",
    *,
    except_: Patterns = (),
    stages: int | None = None,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Let parameters train, and layers that stay in eval mode follow the model's mode again.

    Stages are counted from the end: after ``freeze(model)``, ``unfreeze(model, stages=n)`` leaves
    frozen what ``freeze(model, stages=m)`` freezes, where the model has n + m stages. An optimizer
    that was made before does not know of parameters it was not given: see
    ``torch.optim.Optimizer.add_param_group``.

    Args:
        model: any module; it is changed in place.
        patterns: as in ``freeze``.
        except_: what to leave as it is, in the same form.
        stages: unfreeze this many of the last stages and what follows them, the heads included
            (and not everything), as the model's family counts them; 0 is what follows them
            alone. Patterns are unfrozen besides.
        example: for finding heads: the arguments of one forward pass, if they are needed.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome; ``undo()`` freezes again what was frozen.

    Raises:
        ArgumentError: a pattern that is none, fits nothing or means two things, or stages nobody
            knows.
        RecordError: heads were asked for and the model could not be recorded.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.

    Example:
        From the head down, one stage more at a time:

        >>> import torch, surgery
        >>> from torch import nn
        >>> from surgery.families.registry import Registry
        >>> classes = ("torch.nn.modules.container.Sequential",)
        >>> line = surgery.Family("line", classes, stem=("0",), stages=(("1",), ("2",)))
        >>> model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for layer in range(4)))
        >>> outcome = surgery.freeze(model)
        >>> for stages in range(3):
        ...     outcome = surgery.unfreeze(model, stages=stages, registry=Registry.of(line))
        ...     print([name for name, p in model.named_parameters() if p.requires_grad])
        ['3.weight']
        ['2.weight', '3.weight']
        ['1.weight', '2.weight', '3.weight']
    """
    tree.check_model(model)
    tree.check_changeable(model)
    named, except_ = listed(patterns, "patterns"), listed(except_, "except_")
    title = _title("unfreeze", "*" if _is_default(patterns) else named, stages, except_=except_)
    early: frozenset[str] = frozenset()
    if stages is not None:
        first = first_stages(model, stages, registry, from_end=True)
        early = select(model, first, "stages")
        named = () if _is_default(patterns) else named
    kept = select(model, except_, "except_", example=example, registry=registry)
    chosen = select(model, named, "patterns", example=example, registry=registry)
    if stages is not None:
        kept |= early - chosen
        chosen |= select(model, "*", "patterns")
    chosen -= kept
    steps = [*_flags(model, chosen, kept, trainable=True), *_moving(model, chosen, kept)]
    call = called("unfreeze", patterns=list(named), except_=list(except_), stages=stages)
    return _carried_out(model, title, steps, (), call, dry_run)


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
    ways = {"eval": _still, "train": _moving}
    return [*steps, *ways[norm](model, chosen, kept)]


def _carried_out(
    model: nn.Module,
    title: str,
    steps: list[Step],
    notes: tuple[str, ...],
    call: Mapping[str, Any],
    dry_run: bool,
) -> Outcome:
    count = count_parameters(model)
    plan = Plan(title, tuple(steps), (), (count, count), notes=notes, call=call)
    return operate(model, lambda: plan, dry_run=True) if dry_run else apply(model, plan)


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
    for layer in layers(model):
        if not layer.among(chosen) or layer.among(kept):
            continue
        held, training = still_of(layer.module), layer.module.training
        # A shallow copy of a held layer has the original's.
        if held is None or held.module is not layer.module:
            own = layer.module.__dict__.get("train") if held is None else held.own
            still = StaysInEval(layer.module, training or None, own)
            yield _attribute(layer, "train", "follows the model's mode", str(still), still)
        if training:
            yield _attribute(layer, "training", "True", "False", False)


def _moving(model: nn.Module, chosen: frozenset[str], kept: frozenset[str]) -> Iterator[Step]:
    for layer in layers(model):
        held = still_of(layer.module)
        if held is None or not layer.among(chosen) or layer.among(kept):
            continue
        new = MISSING if held.own is None else held.own
        yield _attribute(layer, "train", str(held), "follows the model's mode", new)
        mode = held.asked
        if mode is None:
            # Nobody asked while it was held: it goes with what it lies in.
            mode = tree.get_module(model, tree.split(layer.addresses[0])[0]).training
        if layer.module.training is not mode:
            yield _attribute(layer, "training", str(not mode), str(mode), mode)


def _moves_on(model: nn.Module, chosen: frozenset[str], kept: frozenset[str]) -> Iterator[str]:
    """What a person may believe to be frozen and is not."""
    everything = all(
        not chosen.isdisjoint(entry.addresses) for entry in tree.index(model).of_kind("parameter")
    )
    found = [
        layer.addresses[0]
        for layer in layers(model)
        if not layer.among(chosen | kept)
        and still_of(layer.module) is None
        and (layer.partly_among(chosen) or (everything and not layer.parameters))
    ]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        shown = ", ".join(found[:_SHOWN]) + more
        yield f"statistics go on moving in {shown}: a layer is frozen where it is named itself"


def _attribute(layer: Layer, name: str, before: str, after: str, new: Any) -> Step:
    module = layer.addresses[0]
    return Step("attribute", (tree.join(module, name),), before, after, new, module)


def _is_default(patterns: object) -> bool:
    return isinstance(patterns, str) and patterns == "*"


def _title(
    verb: str,
    patterns: Patterns,
    stages: int | None,
    *,
    except_: tuple[Any, ...],
    norm: Norm = "eval",
) -> str:
    """What was asked for, as a call; what was not said is left out."""
    named = stages is None or not _is_default(patterns)
    shown = list(map(_shown, listed(patterns, "patterns"))) if named else []
    if except_:
        inner = ", ".join(map(_shown, except_))
        shown.append(f"except_={inner}" if len(except_) == 1 else f"except_=[{inner}]")
    shown += [f"{norm=}"] if norm != "eval" else []
    shown += [f"{stages=}"] if stages is not None else []
    return f"{verb}({', '.join(shown)})"


def _shown(pattern: object) -> str:
    """A pattern in the same words in every process: a callable by its name, not its place."""
    if callable(pattern):
        return str(getattr(pattern, "__qualname__", type(pattern).__qualname__))
    return repr(pattern)

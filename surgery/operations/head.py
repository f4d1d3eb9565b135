"""Replace heads: another number of classes in every class output, and nothing else moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry
from surgery.graph.graph import Spec
from surgery.graph.skeleton import is_floating
from surgery.heads import Head
from surgery.operations.agree import fact_steps, layer_steps
from surgery.operations.apply import operate
from surgery.operations.choose import Names, Wanted, check_classes, choose
from surgery.operations.deeper import check_depth, deeper_steps
from surgery.operations.follow import PerClass, per_class_tensors
from surgery.operations.plan import Outcome, OutputChange, Plan, Step
from surgery.operations.simulate import ProbeSizes, outputs_after
from surgery.operations.size import growth
from surgery.operations.values import (
    Init,
    carry_on,
    check_init,
    fill_bias,
    fill_vector,
    fill_weight,
    is_mask,
    parameter_like,
    resized,
)
from surgery.survey import Site, Survey, survey


@dataclass(frozen=True)
class Options:
    """How new heads are made.

    Attributes:
        hidden: sizes of the layers before the last.
        dropout: probability of dropout before every layer of the head.
        init: first values of the last layer.
        generator: where random numbers come from.
        trainable: ``requires_grad`` of new parameters; None keeps that of the old ones.
    """

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    init: Init = "default"
    generator: torch.Generator | None = None
    trainable: bool | None = True

    @property
    def deeper(self) -> bool:
        """Whether the head becomes more than one layer."""
        return bool(self.hidden) or self.dropout > 0


def replace_head(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    classes: Names = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    heads: Wanted = None,
    init: Init = "default",
    generator: torch.Generator | None = None,
    trainable: bool | None = True,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Give every class output of a model another number of classes, and prove it.

    The head layer stays the same object and gets new parameters; per-class biases, temperatures
    and statistics behind it, attributes such as ``num_classes`` and ``config.id2label``, and
    every address of a shared layer follow. Everything is planned first, checked afterwards by
    recording the model again in eval and in train mode, and taken back if anything fails.

    Args:
        model: any module; it is changed in place. ``torch.compile``'s wrapper is passed through.
        num_classes: the new number of classes; may be left out where ``classes`` or ``heads``
            gives it.
        classes: names of the new classes, written to ``id2label`` and the like.
        hidden: sizes of hidden layers in front of the last, each with a ReLU.
        dropout: probability of dropout in front of every layer of the head, 0 to below 1.
        heads: which heads: an address, several, or ``{address: number}``. Left out: all that are
            corroborated, else the only candidates, with a warning.
        init: ``"default"`` (what the layer's constructor draws), ``"zeros"``, or a callable that
            fills the weight in place, such as ``torch.nn.init.xavier_uniform_``.
        generator: source of the random numbers; torch's default one, if left out.
        trainable: ``requires_grad`` of the new parameters; None keeps that of the old ones.
        example: the arguments of one forward pass; left out, it is supplied or inferred.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome: the model, what changed, every check, and ``undo()``.

    Raises:
        ArgumentError: a wrong argument.
        NoHeadError: nothing in the model makes classes.
        AmbiguousHeadError: several candidates, and nothing that decides.
        PlanError: something that depends on the old number cannot follow. Nothing was touched.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.
        VerificationError: a check failed. Everything was undone.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> outcome = surgery.replace_head(model, 3, heads="2")
        >>> model(torch.zeros(1, 8)).shape
        torch.Size([1, 3])
        >>> outcome.undo()(torch.zeros(1, 8)).shape
        torch.Size([1, 5])
    """
    number, names = check_classes(classes, num_classes)
    options = Options(*check_depth(hidden, dropout), init, generator, trainable)
    check_init(init)
    if number is None and not isinstance(heads, Mapping):
        raise ArgumentError(
            "how many classes?",
            where="num_classes",
            expected="num_classes, classes, or heads={address: number}",
            found=None,
            fix="surgery.replace_head(model, 7)",
        )
    tree.check_model(model)
    tree.check_changeable(model)

    def planned() -> Plan:
        known = survey(model, example, registry=registry)
        chosen = [(h, n) for h, n in choose(known.heads, heads, number, "replace_head") if n]
        title = f"replace_head({', '.join(f'{h.address!r}: {n}' for h, n in chosen)})"
        return _plan(tree.unwrap(model), known, chosen, names, options, title)

    return operate(model, planned, dry_run=dry_run, generator=generator)


def _plan(
    model: nn.Module,
    known: Survey,
    chosen: list[tuple[Head, int]],
    names: tuple[str, ...] | None,
    options: Options,
    title: str,
) -> Plan:
    for head, size in chosen:
        _check_replaceable(model, head, size)
        tree.check_changeable(model, head.address)
    items = {head.address: per_class_tensors(known, head) for head, _ in chosen}
    trial = _trial(model, known, chosen)
    probed = _steps(model, known, trial, items, None, options, real=False)
    after = outputs_after(model, probed, known.example, known.graphs)
    outputs = tuple(_changes(known, chosen, trial, after))
    steps = _steps(model, known, chosen, items, names, options, real=True)
    return Plan(
        title,
        steps,
        outputs,
        growth(model, steps),
        probes={head.address: size for head, size in trial},
        notes=_notes(model, known, chosen, names, steps),
        example=known.example,
    )


def _trial(
    model: nn.Module, known: Survey, chosen: list[tuple[Head, int]]
) -> list[tuple[Head, int]]:
    """A probe size for each head; heads that make one output together have one size.

    Raises:
        PlanError: such heads are to have different numbers of classes.
    """
    probes = ProbeSizes(known.graphs.values(), [size for _, size in chosen])
    trial: list[tuple[Head, int]] = []
    for head, size in chosen:
        partner = next(
            (n for n, (other, _) in enumerate(trial) if _together(known, head, other)), None
        )
        if partner is None:
            trial.append((head, probes.next(getattr(_module(model, head), "groups", 1))))
            continue
        if chosen[partner][1] != size:
            raise PlanError(
                "two heads make one output together, and are to have different numbers of classes",
                where=f"{chosen[partner][0].address}, {head.address}",
                expected="one number for both",
                found=f"{chosen[partner][1]} and {size}",
                fix="surgery.replace_head(model, n) replaces them together",
            )
        trial.append((head, trial[partner][1]))
    return trial


def _module(model: nn.Module, head: Head) -> object:
    return tree.get(model, head.address)


def _together(known: Survey, head: Head, other: Head) -> bool:
    """Whether two heads are added up, averaged or chosen between in one output."""
    places = {(s.mode, s.leaf.path) for s in known.sites[head.address] if _fills(s)}
    return any((s.mode, s.leaf.path) in places for s in known.sites[other.address] if _fills(s))


def _fills(site: Site) -> bool:
    return site.mixing.features == site.leaf.spec.shape[site.axis]


def _check_replaceable(model: nn.Module, head: Head, size: int) -> None:
    groups = getattr(_module(model, head), "groups", 1)
    if isinstance(groups, int) and size % groups:
        raise PlanError(
            f"the convolution works in {groups} groups, which must share the classes evenly",
            where=head.address or "(the model itself)",
            expected=f"a multiple of {groups}",
            found=size,
            fix=f"surgery.replace(model, {{{head.address!r}: module}})",
        )
    if head.kind == "computed":
        raise PlanError(
            "the weight of this head is itself computed by several layers",
            where=head.address or "(the model itself)",
            expected="a layer that owns its weight",
            found=", ".join(addresses[0] for addresses in head.weights),
            fix="surgery.replace(model, {address: module}) for the layers that compute it",
        )
    if head.tied_to:
        raise PlanError(
            "the weight of this head is also used as an embedding: with other rows the inputs "
            "would no longer fit, and the tie must stay a tie",
            where=head.address or "(the model itself)",
            expected="a head with a weight of its own",
            found=f"tied to {', '.join(head.tied_to)}",
            fix=f"untie it first: surgery.replace(model, {{{head.address!r}: "
            f"torch.nn.Linear({head.in_features}, n)}})",
        )


def _steps(
    model: nn.Module,
    known: Survey,
    chosen: list[tuple[Head, int]],
    items: Mapping[str, tuple[PerClass, ...]],
    names: tuple[str, ...] | None,
    options: Options,
    *,
    real: bool,
) -> tuple[Step, ...]:
    """The steps for these sizes: with values, or on meta to try the shapes out."""
    found: dict[tuple[str, ...], Step] = {}
    for head, size in chosen:
        tensors = items[head.address]
        if options.deeper:
            steps = deeper_steps(model, head, size, options, real=real)
            tensors = tuple(item for item in tensors if item.part == "behind")
        else:
            steps = []
        steps += _tensor_steps(model, head, tensors, size, options, real=real)
        steps += layer_steps(model, tensors, head.num_classes, size)
        for step in steps:
            _keep(found, step)
    root = [step for step in found.values() if step.kind == "root"]
    if root:
        # The model becomes another object; what hangs on the old one stays with it.
        return tuple(root)
    for step in fact_steps(model, known.facts, chosen, known.heads, names):
        found.setdefault(step.addresses, step)
    return tuple(found.values())


def _keep(found: dict[tuple[str, ...], Step], step: Step) -> None:
    """Two heads may share a tensor; then both must want the same of it."""
    other = found.setdefault(step.addresses, step)
    if other.after != step.after:
        raise PlanError(
            "two heads share this, and are to have different numbers of classes",
            where=step.address,
            expected=other.after,
            found=step.after,
            fix="give both heads the same number of classes",
        )


def _tensor_steps(
    model: nn.Module,
    head: Head,
    items: tuple[PerClass, ...],
    size: int,
    options: Options,
    *,
    real: bool,
) -> list[Step]:
    rank = {"weight": 0, "bias": 1, "magnitude": 2, "vector": 3, "behind": 4}
    made: dict[str, torch.Tensor] = {}
    steps = []
    fan_in = head.in_features
    for item in sorted(items, key=lambda item: rank[item.part]):
        old = tree.get(model, item.addresses[0])
        if not isinstance(old, torch.Tensor):
            continue
        if not is_floating(old.dtype) and item.part == "weight" and item.role == "parameter":
            raise PlanError(
                "this head holds whole numbers (a quantised weight), which cannot be drawn anew",
                where=item.addresses[0],
                expected="a floating-point weight",
                found=str(old.dtype),
                fix=f"surgery.replace(model, {{{head.address!r}: "
                f"torch.nn.Linear({head.in_features}, {size})}})",
            )
        new = resized(old.detach() if real else old.detach().to("meta"), item.axis, size)
        if real:
            fan_in = _fill(item, old, new, head, options, made, fan_in)
        made.setdefault(item.part, new)
        kind = {"parameter": "parameter", "buffer": "buffer"}.get(item.role, "attribute")
        steps.append(
            Step(
                kind,  # type: ignore[arg-type]
                item.addresses,
                str(Spec(tuple(old.shape), old.dtype)),
                str(Spec(tuple(new.shape), new.dtype)),
                parameter_like(old, new, options.trainable),
                tree.split(item.addresses[0])[0] if kind == "attribute" else "",
            )
        )
    return steps


def _fill(
    item: PerClass,
    old: torch.Tensor,
    new: torch.Tensor,
    head: Head,
    options: Options,
    made: Mapping[str, torch.Tensor],
    fan_in: int,
) -> int:
    """Give a new tensor its values; returns the fan-in that bounds a bias."""
    if item.part == "weight" and item.role == "parameter":
        return fill_weight(new, item.axis, head.kind, options.init, options.generator)
    if item.part == "bias" and item.role == "parameter":
        fill_bias(new, fan_in, options.init, options.generator)
    elif item.part == "vector" and is_floating(old.dtype):
        fill_vector(new, options.generator)
    elif item.part in ("weight", "magnitude") and is_mask(old) and item.role != "parameter":
        new.fill_(1)
    elif item.part == "magnitude" and "weight" in made and new.numel() == new.shape[item.axis]:
        _norms(made["weight"], item.axis, new)
    else:
        carry_on(old, new, item.axis, item.addresses[0])
    return fan_in


def _norms(weight: torch.Tensor, axis: int, new: torch.Tensor) -> None:
    """The norm of each row, so that a weight given as direction and magnitude starts as drawn."""
    if new.is_meta:
        return
    with torch.no_grad():
        others = [dim for dim in range(weight.dim()) if dim != axis]
        norms = torch.linalg.vector_norm(weight.detach(), dim=others)
        new.copy_(norms.reshape(new.shape) if norms.numel() == new.numel() else new.fill_(1))


def _changes(
    known: Survey,
    chosen: list[tuple[Head, int]],
    trial: list[tuple[Head, int]],
    after: Mapping[str, Mapping[str, Any]],
) -> list[OutputChange]:
    """What every output must be, from what it became with probe sizes in place of the classes."""
    changes = []
    moved: set[str] = set()
    probes = {head.address: size for head, size in trial}
    for mode, leaves in after.items():
        before = {leaf.path: leaf.spec for leaf in known.graphs[mode].leaves}
        for path in {**before, **leaves}:
            if path not in before or path not in leaves:
                raise _moved(path, mode, before.get(path), leaves.get(path), chosen)
            old, new = before[path], leaves[path].spec
            here = [
                (head, size)
                for head, size in chosen
                if any(s.leaf.path == path and s.mode == mode for s in known.sites[head.address])
            ]
            shape, axes = _expected(old, new, here, probes)
            if shape is None:
                raise _moved(path, mode, old, new, chosen)
            if axes:
                moved.update(head.address for head, _ in here)
            changes.append(OutputChange(mode, path, old, Spec(shape, new.dtype), axes))
    for head, _ in chosen:
        if head.address not in moved:
            raise PlanError(
                "no output follows this head's number of classes, so nothing could be proven",
                where=head.address or "(the model itself)",
                expected="an output with an axis for the classes",
                found=known.heads.ending,
                fix="return the logits from forward, or choose another head with heads=",
            )
    return changes


def _expected(
    old: Spec, new: Spec, here: list[tuple[Head, int]], probes: Mapping[str, int]
) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """The shape an output must have, and its class axes; None where it cannot be explained."""
    if len(old.shape) != len(new.shape) or old.dtype != new.dtype:
        return None, ()
    # Heads with one probe size make the output together, and move it once.
    parts = {probes[head.address]: (head.num_classes, size) for head, size in here}
    trial = sum(probe - classes for probe, (classes, _) in parts.items())
    shape, axes = list(old.shape), []
    for axis, (was, now) in enumerate(zip(old.shape, new.shape, strict=True)):
        if was == now:
            continue
        times, rest = divmod(now - was, trial) if trial else (0, 1)
        if rest or times < 1:
            return None, ()
        shape[axis] = was + times * sum(size - classes for classes, size in parts.values())
        axes.append(axis)
    return tuple(shape), tuple(axes)


def _moved(path: str, mode: str, old: Any, new: Any, chosen: list[tuple[Head, int]]) -> PlanError:
    names = ", ".join(head.address or "(the model itself)" for head, _ in chosen)
    return PlanError(
        f"with other classes in {names}, an output changes in a way that is not explained by them",
        where=f"{path} ({mode})",
        expected=f"{old} with another class axis",
        found=str(getattr(new, "spec", new)),
        fix="surgery.replace(model, {address: module}) changes layers without this promise",
    )


def _notes(
    model: nn.Module,
    known: Survey,
    chosen: list[tuple[Head, int]],
    names: tuple[str, ...] | None,
    steps: tuple[Step, ...],
) -> tuple[str, ...]:
    notes = list(known.blind_spots)
    taken = {head.address for head, _ in chosen}
    for head in known.heads:
        if head.address not in taken:
            notes.append(f"{head.address} ({head.num_classes} classes) keeps its classes")
    kept = any(fact.kind != "count" for fact in known.facts)
    if names is not None and not kept:
        notes.append("the model has no place for class names, so they are not stored in it")
    return tuple(notes)

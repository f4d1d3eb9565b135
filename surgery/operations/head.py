"""Replace heads: another number of classes in every class output, and nothing else moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry
from surgery.heads import Head
from surgery.operations.agree import fact_steps, known_names, layer_steps, staying_facts
from surgery.operations.apply import operate
from surgery.operations.choose import Names, Wanted, check_classes, choose
from surgery.operations.coupled import class_tables
from surgery.operations.deeper import check_depth, deeper_steps
from surgery.operations.entries import Options, tensor_steps
from surgery.operations.follow import PerClass, multiple_of, per_class_tensors
from surgery.operations.idle import idle_notes, with_class_weights
from surgery.operations.keep import Keep, Rows, check_old_names, resolve_keep
from surgery.operations.observers import check_observers
from surgery.operations.plan import Outcome, OutputChange, Plan, Step
from surgery.operations.probing import are_few, check_few, output_changes, probe_sizes
from surgery.operations.rebuild import head_kinds, rebuilt_step
from surgery.operations.simulate import outputs_after
from surgery.operations.size import growth
from surgery.operations.unnamed import count_step, with_unnamed_counts
from surgery.operations.unseen import check_unseen
from surgery.operations.values import Init, check_generator, check_init, check_trainable
from surgery.survey import Survey, survey


def replace_head(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    classes: Names = None,
    keep: Keep = None,
    old_classes: Names = None,
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
        keep: classes that stay: ``{new: old}`` by index or name, a list of old ones for their
            mean, or ``"all"`` for those of the same name (or index, where there are no names).
            Their entries carry over bit for bit; all others are drawn.
        old_classes: names of the present classes, where the model does not know them.
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
    number, names = check_classes(classes, num_classes, heads)
    check_init(init)
    check_generator(generator)
    check_trainable(trainable)
    options = Options(*check_depth(hidden, dropout), init, generator, trainable)
    tree.check_model(model)
    tree.check_changeable(model)

    def planned() -> Plan:
        known = survey(model, example, registry=registry)
        chosen = [(h, n) for h, n in choose(known.heads, heads, number, "replace_head") if n]
        inner = tree.unwrap(model)
        kinds = head_kinds(inner, (head for head, _ in chosen), registry)
        making = dataclasses.replace(options, kinds=kinds)
        rows = _rows(inner, known, chosen, keep, names, old_classes, making)
        return _plan(inner, known, chosen, names, making, rows)

    return operate(model, planned, dry_run=dry_run, generator=generator)


def _plan(
    model: nn.Module,
    known: Survey,
    chosen: list[tuple[Head, int]],
    names: tuple[str, ...] | None,
    options: Options,
    rows: Mapping[str, Rows],
) -> Plan:
    for head, size in chosen:
        _check_replaceable(model, known, head, size)
        tree.check_changeable(model, head.address)
    check_unseen(model, known, chosen)
    items = {head.address: per_class_tensors(known, head) for head, _ in chosen}
    for head, _ in chosen:
        if not options.deeper and head.address not in options.kinds:
            check_observers(known, head, items[head.address])
    items = with_class_weights(model, known, chosen, items)
    tables = class_tables(known, chosen)
    trial = probe_sizes(known, chosen, items)
    probed, _ = _steps(model, known, trial, items, None, options, {}, real=False)

    def tried(steps: tuple[Step, ...]) -> tuple[OutputChange, ...]:
        after = outputs_after(model, steps, known.example, known.graphs)
        return tuple(output_changes(known, chosen, trial, after))

    outputs, unnamed = with_unnamed_counts(model, trial, probed, tried)
    # Parameters made in inference mode could never be trained.
    with torch.inference_mode(False):
        steps, remarks = _steps(model, known, chosen, items, names, options, rows, real=True)
    asked = {head.address: size for head, size in chosen}
    for place, address in unnamed.items():
        steps = (*steps, count_step(model, place, asked[address]))
        remarks.append(f"{tree.join(*place)} is a number of classes: without it nothing runs")
    if are_few(known, chosen):
        check_few(outputs, outputs_after(model, steps, known.example, known.graphs))
    idle = idle_notes(model, known, chosen, items)
    sizes = ", ".join(f"{head.address!r}: {size}" for head, size in chosen)
    return Plan(
        f"replace_head({sizes})",
        steps,
        outputs,
        growth(model, steps),
        probes={head.address: size for head, size in trial},
        notes=_notes(model, known, chosen, names, (*remarks, *tables, *idle)),
        example=known.example,
    )


def _rows(
    model: nn.Module,
    known: Survey,
    chosen: list[tuple[Head, int]],
    keep: Keep,
    names: Names,
    old_classes: Names,
    options: Options,
) -> dict[str, Rows]:
    """For each head, the old classes that new ones keep the entries of."""
    if keep is None:
        return {}
    if options.deeper:
        raise ArgumentError(
            "a head with other layers in front of it has nothing in common with the old one",
            where="keep, hidden, dropout",
            expected="keep without hidden and dropout",
            found=f"hidden={options.hidden}, dropout={options.dropout}",
            fix="leave keep out, or hidden and dropout",
        )
    if options.kinds:
        shown = ", ".join(repr(kind.name) for kind in options.kinds.values())
        raise ArgumentError(
            "a plugin rebuilds this head, and does not say which of its tensors belong to a class",
            where="keep",
            expected="a head that the graph alone can change",
            found=f"head kind {shown}",
            fix="leave keep out, or registry=Registry.of()",
        )
    given = None if old_classes is None else check_old_names(old_classes)
    found: dict[str, Rows] = {}
    for head, size in chosen:
        old = given or known_names(model, known.facts, head)
        if old is not None and len(old) != head.num_classes:
            raise ArgumentError(
                "there are not as many old names as old classes",
                where="old_classes",
                expected=f"{head.num_classes} names for {head.address or 'the model itself'}",
                found=f"{len(old)} names",
                fix="surgery.find_heads(model) shows the number of classes",
            )
        found[head.address] = resolve_keep(
            keep, new=size, old=head.num_classes, new_names=names, old_names=old
        )
    return found


def _check_replaceable(model: nn.Module, known: Survey, head: Head, size: int) -> None:
    groups = multiple_of(known, head)
    if size % groups:
        raise PlanError(
            f"{groups} groups of a convolution or a group norm share the classes, evenly",
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
            f"torch.nn.Linear({head.in_features}, {head.num_classes})}})",
        )


def _steps(
    model: nn.Module,
    known: Survey,
    chosen: list[tuple[Head, int]],
    items: Mapping[str, tuple[PerClass, ...]],
    names: tuple[str, ...] | None,
    options: Options,
    rows: Mapping[str, Rows],
    *,
    real: bool,
) -> tuple[tuple[Step, ...], list[str]]:
    """The steps for these sizes: with values, or on meta to try the shapes out; and remarks."""
    found: dict[tuple[str, ...], Step] = {}
    remarks: list[str] = []
    for head, size in chosen:
        tensors = items[head.address]
        steps: list[Step] = []
        kind = options.kinds.get(head.address)
        if options.deeper:
            steps, remarked = deeper_steps(model, head, size, options, real=real)
            remarks += remarked
        elif kind is not None:
            steps = [rebuilt_step(model, head, size, kind, options.trainable, real=real)]
        if options.deeper or kind is not None:
            tensors = tuple(item for item in tensors if item.part == "behind")
        fresh = tuple(item for item in tensors if item.addresses not in found)
        kept = rows.get(head.address)
        resizing, remarked = tensor_steps(model, head, fresh, size, options, real=real, rows=kept)
        steps += resizing
        remarks += remarked
        if kept:
            remarks.append(f"{len(kept)} of {size} classes keep their entries in {head.address!r}")
        steps += layer_steps(model, fresh, head.num_classes, size)
        for step in steps:
            _keep(found, step)
        _check_shared(found, tensors, size)
    if any(step.kind == "root" for step in found.values()):
        # The model becomes another object; what hangs on the old one stays with it.
        return tuple(step for step in found.values() if step.kind == "root"), remarks
    for step in fact_steps(model, known.facts, chosen, known.heads, names):
        found.setdefault(step.addresses, step)
    return tuple(found.values()), remarks


def _keep(found: dict[tuple[str, ...], Step], step: Step) -> None:
    """Two heads may hang on one layer; then both must want the same of it."""
    other = found.setdefault(step.addresses, step)
    if other.after != step.after:
        raise _shared(step.address, other.after, step.after)


def _check_shared(
    found: Mapping[tuple[str, ...], Step], items: tuple[PerClass, ...], size: int
) -> None:
    """A tensor that two heads share was resized for the first; the second must want the same."""
    for item in items:
        step = found.get(item.addresses)
        if step is None or not isinstance(step.new, torch.Tensor):
            continue
        length = step.new.shape[item.axis]
        if length != size // item.share:
            raise _shared(step.address, f"{length} classes", f"{size // item.share} classes")


def _shared(address: str, expected: str, found: str) -> PlanError:
    return PlanError(
        "two heads share this, and are to have different numbers of classes",
        where=address,
        expected=expected,
        found=found,
        fix="give both heads the same number of classes",
    )


def _notes(
    model: nn.Module,
    known: Survey,
    chosen: list[tuple[Head, int]],
    names: tuple[str, ...] | None,
    remarks: Sequence[str],
) -> tuple[str, ...]:
    notes = [*known.blind_spots, *dict.fromkeys(remarks)]
    taken = {head.address for head, _ in chosen}
    for head in known.heads:
        if head.address not in taken:
            notes.append(f"{head.address} ({head.num_classes} classes) keeps its classes")
    notes += staying_facts(model, known.facts, chosen, known.heads)
    kept = any(fact.kind != "count" for fact in known.facts)
    if names is not None and not kept:
        notes.append("the model has no place for class names, so they are not stored in it")
    return tuple(notes)

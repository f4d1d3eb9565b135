"""The plan that gives heads another size, whatever they count: tried out, drawn, explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.heads import Head
from surgery.operations.agree import fact_steps, known_names, layer_steps, staying_facts
from surgery.operations.choose import Names
from surgery.operations.counted import CLASSES, Counted
from surgery.operations.coupled import class_tables
from surgery.operations.deeper import deeper_steps
from surgery.operations.entries import Options, tensor_steps
from surgery.operations.follow import PerClass, multiple_of, per_class_tensors
from surgery.operations.idle import idle_notes, with_class_weights
from surgery.operations.keep import Keep, OldNames, Rows, check_old_names, resolve_keep
from surgery.operations.kept import together
from surgery.operations.names import remembered
from surgery.operations.observers import check_observers
from surgery.operations.plan import OutputChange, Plan, Step
from surgery.operations.probing import are_few, check_few, output_changes, probe_sizes
from surgery.operations.quantised import check_packed, idle_steps
from surgery.operations.rebuild import rebuilt_step
from surgery.operations.simulate import outputs_after
from surgery.operations.size import growth
from surgery.operations.unnamed import Place, count_step, staying_notes, with_unnamed_counts
from surgery.operations.unread import unread_notes
from surgery.operations.unseen import check_unseen
from surgery.survey import Survey

Sizes: TypeAlias = list[tuple[Head, int]]
Tried: TypeAlias = tuple[Sizes, tuple[OutputChange, ...], dict[Place, str]]


def sizes_shown(chosen: Sizes) -> str:
    """The sizes asked for, by the address of the head; of what follows a head, nothing is said."""
    return ", ".join(f"{head.address!r}: {size}" for head, size in chosen if not head.follows)


def plan_resizing(
    title: str,
    model: nn.Module,
    known: Survey,
    chosen: Sizes,
    names: tuple[str, ...] | None,
    options: Options,
    rows: Mapping[str, Rows],
) -> Plan:
    """Plan another size for heads, and all that follows.

    Args:
        title: the operation, as a person would say it.
        model: the model, out of its wrappers.
        known: its recordings.
        chosen: the heads with the sizes asked for.
        names: the names of the new classes, if any.
        options: how new values are made.
        rows: for each head, the old classes that new ones keep the entries of.

    Raises:
        PlanError: something that depends on the old size cannot follow.
    """
    for head, size in chosen:
        check_packed(model, known, head, size, options)
        _check_replaceable(model, known, head, size)
        tree.check_changeable(model, head.address)
    check_unseen(model, known, chosen)
    items = {head.address: per_class_tensors(known, head) for head, _ in chosen}
    for head, _ in chosen:
        if not options.is_deeper(head) and head.address not in options.kinds:
            check_observers(known, head, items[head.address])
    items = with_class_weights(model, known, chosen, items)
    tables = class_tables(known, chosen)
    trial, outputs, unnamed = _tried(model, known, chosen, items, options)
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
    unread = unread_notes(known, chosen)
    stays = staying_notes(model, chosen, steps)
    return Plan(
        title,
        steps,
        outputs,
        growth(model, steps),
        probes={head.address: size for head, size in trial},
        notes=_notes(model, known, chosen, names, (*remarks, *tables, *idle, *unread, *stays)),
        example=known.example,
    )


def _tried(
    model: nn.Module,
    known: Survey,
    chosen: Sizes,
    items: Mapping[str, tuple[PerClass, ...]],
    options: Options,
) -> Tried:
    """The numbers that the heads were tried with, what comes out, and what else had to be set."""

    def tried(trial: Sizes) -> Tried:
        probed, _ = _steps(model, known, trial, items, None, options, {}, real=False)

        def attempt(steps: tuple[Step, ...]) -> tuple[OutputChange, ...]:
            after = outputs_after(model, steps, known.example, known.graphs)
            return output_changes(known, chosen, trial, after)

        return trial, *with_unnamed_counts(model, trial, probed, attempt)

    apart = probe_sizes(known, chosen, items)
    try:
        return tried(apart)
    except PlanError as error:
        # Code that reshapes the features of two heads by one number runs with no two numbers.
        alike = probe_sizes(known, chosen, items, alike=True)
        if len({size for _, size in alike}) < len({size for _, size in apart}):
            with suppress(PlanError):
                return tried(alike)
        raise error


def kept_rows(
    model: nn.Module,
    known: Survey,
    chosen: Sizes,
    keep: Keep,
    names: Names,
    old_names: OldNames,
    options: Options,
    counted: Counted = CLASSES,
) -> dict[str, Rows]:
    """For each head, the old classes that new ones keep the entries of.

    Raises:
        ArgumentError: ``keep`` names classes that are not there, or that nobody can tell;
            ``old_names`` are no names, or not as many as there are old classes, kept or not.
    """
    given: tuple[str, ...] | None = None
    if old_names is not None:
        given = check_old_names(old_names, counted)
        for head, _ in chosen:
            _check_as_many(given, head, counted)
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
    return {
        head.address: resolve_keep(
            keep,
            new=size,
            old=head.num_classes,
            new_names=names,
            old_names=given or _own_names(model, known, head),
            counted=counted,
            background=head.background,
        )
        for head, size in chosen
    }


def _check_as_many(names: Sequence[str], head: Head, counted: Counted) -> None:
    if len(names) != head.num_classes:
        raise ArgumentError(
            f"there are not as many old names as old {counted.many}",
            where=counted.old,
            expected=f"{head.num_classes} names for {head.address or 'the model itself'}",
            found=f"{len(names)} names",
            fix=f"surgery.find_heads(model) shows the number of {counted.many}",
        )


def _own_names(model: nn.Module, known: Survey, head: Head) -> tuple[str, ...] | None:
    """The names of a head's classes, as the model knows them; what else it counts has none."""
    if head.role == "keypoints":
        return None
    return known_names(model, known.facts, head) or _remembered(model, head)


def _remembered(model: nn.Module, head: Head) -> tuple[str, ...] | None:
    """The names that were learned with the model's weights, where they are about this head."""
    names = remembered(model)
    return names if names is not None and len(names) == head.num_classes else None


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
        own = f"torch.nn.Linear({head.in_features}, {head.num_classes})"
        # Where forward scores words by the table itself there is no layer to put another for.
        is_table = all(tied.rpartition(".")[0] == head.address for tied in head.tied_to)
        raise PlanError(
            "the weight of this head is also used as an embedding: with other rows the inputs "
            "would no longer fit, and the tie must stay a tie",
            where=head.address or "(the model itself)",
            expected="a head with a weight of its own",
            found=f"tied to {', '.join(head.tied_to)}",
            fix=f"let forward score by a layer of its own, {own}, in place of this weight"
            if is_table
            else f"untie it first: surgery.replace(model, {{{head.address!r}: {own}}})",
        )


def _steps(
    model: nn.Module,
    known: Survey,
    chosen: Sizes,
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
        if options.is_deeper(head):
            steps, remarked = deeper_steps(model, head, size, options, real=real)
            remarks += remarked
        elif kind is not None:
            steps = [rebuilt_step(model, head, size, kind, options.trainable, real=real)]
            steps += idle_steps(model, known, head)
        if options.is_deeper(head) or kind is not None:
            tensors = tuple(item for item in tensors if item.part == "behind")
        fresh = tuple(item for item in tensors if item.addresses not in found)
        kept = rows.get(head.address)
        resizing, remarked = tensor_steps(model, head, fresh, size, options, real=real, rows=kept)
        steps += resizing
        remarks += remarked
        if kept:
            remarks += together(known, head)
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
        if length != item.length(size):
            raise _shared(step.address, f"{length} entries", f"{item.length(size)} entries")


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
    chosen: Sizes,
    names: tuple[str, ...] | None,
    remarks: Sequence[str],
) -> tuple[str, ...]:
    notes = [*known.blind_spots, *remarks]
    taken = {head.address for head, _ in chosen}
    for head in known.heads:
        if head.address not in taken:
            made = "keypoints" if head.role == "keypoints" else "classes"
            notes.append(f"{head.address} ({head.num_classes} {made}) keeps its {made}")
    notes += staying_facts(model, known.facts, chosen, known.heads)
    kept = any(fact.kind != "count" for fact in known.facts)
    if names is not None and not kept:
        notes.append(
            "the model has no place for class names: they are remembered for this very object and "
            "in what surgery.save writes, and neither copies nor a state_dict hold them"
        )
    return tuple(dict.fromkeys(notes))

"""Layers from one model, or from a checkpoint, into another model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry
from surgery.operations.apply import operate
from surgery.operations.arrivals import (
    Arrival,
    Arrivals,
    arrivals_of,
    check_memory,
    check_writable,
    lossy,
)
from surgery.operations.by_graph import aligned
from surgery.operations.differences import Difference
from surgery.operations.donors import Donor, check_live, donor_of
from surgery.operations.freezing import steps_to_freeze
from surgery.operations.hooks import undisturbed
from surgery.operations.plan import Outcome, Plan, Step
from surgery.operations.routes import Routes, compare, routes_of
from surgery.operations.size import count_parameters, growth
from surgery.weights.match import check_share
from surgery.weights.policies import resolve
from surgery.weights.verdicts import Policy

How: TypeAlias = Literal["copy", "share", "move"]

_SHOWN = 8


def transplant(
    donor: object,
    recipient: nn.Module,
    mapping: Mapping[str, str] | None = None,
    *,
    match: Literal["address", "graph"] = "address",
    how: How = "copy",
    freeze: bool = False,
    on_mismatch: Policy | Mapping[str, Policy] = "error",
    differences: Literal["refuse", "allow", "set"] = "refuse",
    min_coverage: float = 0.5,
    example: Any = None,
    recipient_example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Put layers of one model, or of a checkpoint, into another model.

    Parameters and buffers go together. Equal shapes do not make equal layers, so the classes and
    all plain attributes of the layers (stride, padding, groups, eps, activation ...) are compared
    as well. Layers of several donors arrive by several calls, each with its own ``undo()``.

    By graph, hooks and parametrizations of both models are part of what they compute: a hook that
    changes an output changes what is compared, and stays where it is. The proof calls hooks on
    stand-ins; what they count or collect in variables of their own is put back afterwards. What
    else they do outside the model (a line printed, a file written) has happened.

    Args:
        donor: a model, a path, a mapping from names to tensors, or ``Weights``.
        recipient: the model that gets the layers; it is changed in place.
        mapping: where each goes: addresses of modules or tensors in the donor, and of the same in
            the recipient. ``*`` stands for one part of an address, ``**`` for any number of
            parts; what they stand for fills the wildcards on the other side. Left out, all
            tensors go whose address both have.
        match: how layers find each other: by ``"address"``, or by ``"graph"``: both models are
            recorded, and a layer goes where the recipient's does the same, whatever either calls
            it, however either packs it. Then both run on stand-ins on one random input, and
            nothing is brought over unless the outputs are equal within rounding.
        how: ``"copy"``: the recipient's own tensors get the values. They stay the same objects
            with their dtype, device and ``requires_grad``, so that ties and optimizers hold.
            ``"share"``: the donor's tensors themselves are put in as well, and training either
            model changes both. ``"move"``: the same, and the donor keeps stand-ins on meta of
            the same shapes, with which it no longer runs; ``undo()`` gives it its tensors back
            with what training made of them.
        freeze: what arrived does not train, and normalisation layers among it stay in eval mode,
            as with ``surgery.freeze``.
        on_mismatch: for tensors whose shapes differ: ``"error"``, ``"skip"``, or a callable that
            gets the recipient's address, a copy of the donor's tensor and one of the recipient's,
            and returns a tensor of the recipient's shape, or None to skip. Or a mapping from
            patterns of the recipient's addresses to these.
        differences: ``"refuse"`` where layers differ in class or an attribute, or one has a
            tensor or layer that the other lacks; ``"allow"`` lists that in the plan's notes.
            By graph, what matters is what comes out: ``"set"`` gives the recipient's layers the
            donor's settings (eps, stride ...) where they are attributes.
        min_coverage: by graph, the share of tensors, 0 to 1, that must belong somewhere, on the
            donor's side or on the recipient's.
        example: by graph, the arguments of one forward pass of both; the family's, if left out.
        recipient_example: by graph, the same tensors in the form that the recipient takes, where it
            takes them in another: in another order or nesting, with other axes. Where they hold
            numbers, each of its own, these say which goes where, and both run on the same; else
            the comparison begins behind the first layers.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask: their readers know further formats of checkpoints, their
            families know examples, and their wrappings what layers are wrapped in.

    Returns:
        The outcome: ``model`` is the recipient; ``undo()`` restores both models.

    Raises:
        ArgumentError: a wrong argument.
        AddressError: an address or a pattern that fits nothing, with the closest addresses.
        PlanError: shapes or layers differ, a tied tensor would get two different ones, or there
            are no values to copy. By graph: the outputs differ. Nothing was touched.
        CoverageError: by graph, too little of the two is the same.
        WeightsError: the checkpoint cannot be read.
        WrappedModelError: the recipient is inside DataParallel, DistributedDataParallel or FSDP.
        VerificationError: a check failed. Everything was undone.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> donor = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
        >>> outcome = surgery.transplant(donor, model, {"0": "1", "2": "2"}, freeze=True)
        >>> torch.equal(model[1].weight, donor[0].weight)
        True
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['0.weight', '0.bias']
    """
    _check_arguments(match, how, differences)
    _check_graph(match, differences, mapping, on_mismatch, recipient_example)
    tree.check_model(recipient)
    tree.check_changeable(recipient)
    given = donor_of(donor, registry)
    if how != "copy":
        check_live(given, how)
    inner = tree.unwrap(recipient)
    _check_apart(given, inner, mapping, how)
    check_share(min_coverage)
    policies = resolve(on_mismatch, _tensor_addresses(inner))

    def planned() -> Plan:
        if match == "graph":
            with undisturbed(inner, *([] if given.model is None else [given.model])):
                found = aligned(
                    given,
                    inner,
                    (example, recipient_example),
                    registry,
                    differences=differences,
                    min_coverage=min_coverage,
                )
            arrivals = arrivals_of(found.donor, inner, found.pairs, policies)
            plan = _plan(
                found.donor, inner, Routes(found.pairs, (), ()), arrivals, how, "refuse", freeze
            )
            notes = (*found.notes, *plan.notes)
            return replace(plan, steps=(*plan.steps, *found.settings), notes=notes)
        routes = routes_of(given, inner, mapping)
        arrivals = arrivals_of(given, inner, routes.tensors, policies)
        return _plan(given, inner, routes, arrivals, how, differences, freeze)

    if how == "move" and isinstance(donor, nn.Module):
        return _moved(donor, given, recipient, planned, dry_run, registry)
    return operate(recipient, planned, dry_run=dry_run, registry=registry)


def _check_arguments(match: object, how: object, differences: object) -> None:
    choices = (
        ("match", match, ("address", "graph")),
        ("how", how, ("copy", "share", "move")),
        ("differences", differences, ("refuse", "allow", "set")),
    )
    for name, value, known in choices:
        if value not in known:
            raise ArgumentError(
                f"transplant knows no such {name}",
                where=f"{name}={value!r}",
                expected=", ".join(map(repr, known)),
                found=repr(value),
                fix=f"surgery.transplant(donor, recipient, {name}={known[0]!r})",
            )


def _check_graph(
    match: str, differences: str, mapping: object, on_mismatch: object, example: object
) -> None:
    """Refuse arguments of the one way of matching with the other."""
    wrong = None
    if match == "address" and differences == "set":
        wrong = "differences='set'", "settings are taken over by graph only", "match='graph'"
    elif match == "address" and example is not None:
        wrong = "recipient_example", "by address nothing runs on an example", "match='graph'"
    elif match == "graph" and differences == "allow":
        why = "what was brought over by graph is proven, and a proof allows no differences"
        wrong = "differences='allow'", why, "differences='set'"
    elif match == "graph" and mapping is not None:
        wrong = "mapping", "by graph the models themselves say what goes where", "mapping=None"
    elif match == "graph" and on_mismatch != "error":
        why = "tensors of different shapes have no place in common by graph"
        wrong = "on_mismatch", why, "min_coverage=0.3 to leave them out"
    if wrong is not None:
        raise ArgumentError(
            wrong[1],
            where=f"match={match!r}, {wrong[0]}",
            expected=wrong[2],
            found=wrong[0],
            fix=f"surgery.transplant(donor, recipient, match='graph', {wrong[2]})"
            if not wrong[2].startswith("m")
            else f"surgery.transplant(donor, recipient, {wrong[2]})",
        )


def _check_apart(donor: Donor, recipient: nn.Module, mapping: object, how: How) -> None:
    if donor.model is recipient and (mapping is None or how == "move"):
        raise ArgumentError(
            "donor and recipient are the same model",
            where="donor, recipient",
            expected="two models, or a mapping between parts of one",
            found=donor.title,
            fix="surgery.transplant(model, model, {'blocks.0': 'blocks.1'})",
        )
    if how == "move" and donor.model is not None:
        ours = tree.index(recipient)
        held = [
            address
            for index in (tree.index(donor.model),)
            for key, (_, addresses) in index.modules.items()
            if key in ours.modules
            for address in addresses
        ]
        if held:
            raise ArgumentError(
                "donor and recipient have a module in common, and it cannot move out of one",
                where=held[0] or "(the donor itself)",
                expected="models apart from each other",
                found=f"{len(held)} modules that are in both",
                fix="how='copy'",
            )


def _tensor_addresses(model: nn.Module) -> list[str]:
    entries = tree.index(model).of_kind("parameter", "buffer")
    return [address for entry in entries for address in entry.addresses]


def _plan(
    donor: Donor,
    recipient: nn.Module,
    routes: Routes,
    arrivals: Arrivals,
    how: How,
    differences: str,
    freeze: bool,
) -> Plan:
    notes = _accepted(donor, recipient, routes, arrivals, differences)
    moving = [each for each in arrivals.all if not _is_there(each)]
    notes += [
        f"{each.address} is one tensor with {each.gift.address} of {donor.title} already"
        for each in arrivals.all
        if _is_there(each)
    ]
    if not arrivals.all:
        raise PlanError(
            "nothing arrives: every tensor was skipped for its shape",
            where=donor.title,
            expected="at least one tensor that fits",
            found="; ".join(map(str, arrivals.skipped[:_SHOWN])),
            fix="surgery.transplant(donor, recipient, {'features.0': 'stem'})",
        )
    steps = _copies(donor, recipient, moving) if how == "copy" else _shares(donor, moving, how)
    notes += _said(donor, routes, arrivals, how)
    if freeze:
        arrived = frozenset(address for each in arrivals.all for address in each.addresses)
        steps += _freezing(recipient, arrived, steps)
    count = len(arrivals.all)
    title = f"transplant({count} tensor{'s' * (count != 1)} of {donor.title})"
    return Plan(title, tuple(steps), (), growth(recipient, tuple(steps)), notes=tuple(notes))


def _is_there(arrival: Arrival) -> bool:
    return arrival.gift.tensor is arrival.entry.tensor


def _accepted(
    donor: Donor, recipient: nn.Module, routes: Routes, arrivals: Arrivals, differences: str
) -> list[str]:
    """Notes on how the layers differ, where that is allowed.

    Raises:
        PlanError: it is not.
    """
    reshaped = [each.key for each in arrivals.skipped]
    reshaped += [each.address for each in arrivals.all if each.adapted]
    adapted = {tree.split(address)[0] for address in reshaped}
    found, notes = compare(donor, recipient, routes, adapted)
    sentences = [*routes.gaps, *map(str, found)]
    if sentences and differences == "refuse":
        raise _differ(sentences, found)
    return [*sentences, *notes]


def _differ(sentences: list[str], found: list[Difference]) -> PlanError:
    more = len(sentences) - _SHOWN
    shown = [*sentences[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return PlanError(
        "equal shapes do not make equal layers: these differ"
        if found
        else "what one side has there the other has not",
        where=(found[0].recipient or "(the model itself)") if found else sentences[0].split()[0],
        expected="the same layers on both sides",
        found="\n".join(shown),
        fix="make the recipient's layers like the donor's, or surgery.transplant(..., "
        "differences='allow')",
    )


def _copies(donor: Donor, recipient: nn.Module, arrivals: list[Arrival]) -> list[Step]:
    for each in arrivals:
        check_writable(each, donor)
    check_memory(tree.index(recipient), arrivals)
    return [
        Step("values", each.addresses, _form(each.entry.tensor), _origin(each, donor), each.content)
        for each in arrivals
    ]


def _shares(donor: Donor, arrivals: list[Arrival], how: How) -> list[Step]:
    return [_share(donor, each, how) for each in arrivals]


def _share(donor: Donor, each: Arrival, how: How) -> Step:
    theirs, ours = each.gift.tensor, each.entry.tensor
    if each.adapted or theirs is None:
        raise ArgumentError(
            f"a tensor of another shape cannot be given away by how={how!r}",
            where=each.address,
            expected=str(tuple(ours.shape)),
            found=str(each.gift.shape),
            fix="how='copy', or on_mismatch='skip'",
        )
    kinds = [isinstance(tensor, nn.Parameter) for tensor in (theirs, ours)]
    forms = [(tensor.dtype, tensor.device) for tensor in (theirs, ours)]
    if kinds[0] is not kinds[1] or forms[0] != forms[1]:
        raise PlanError(
            "one tensor cannot be in both models: they want it in different forms",
            where=each.address,
            expected=f"{'a parameter' if kinds[1] else 'a buffer'}, {_form(ours)} on {ours.device}",
            found=f"{'a parameter' if kinds[0] else 'a buffer'}, {_form(theirs)} on "
            f"{theirs.device} ({each.gift.address} of {donor.title})",
            fix="how='copy'",
        )
    kind: Literal["parameter", "buffer"] = "parameter" if kinds[1] else "buffer"
    after = f"{each.gift.address} of {donor.title}, {'shared' if how == 'share' else 'moved'}"
    return Step(kind, each.addresses, _form(ours), after, theirs)


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _origin(each: Arrival, donor: Donor) -> str:
    theirs, ours = each.gift.dtype, each.entry.tensor.dtype
    cast = f", {theirs} -> {ours}" if theirs != ours else ""
    made = ", adapted" if each.adapted else ""
    return f"{each.gift.address} of {donor.title}{made}{cast}"


def _said(donor: Donor, routes: Routes, arrivals: Arrivals, how: How) -> Iterator[str]:
    """What a person should know besides the steps."""
    if donor.model is None:
        yield "a checkpoint has no classes: attributes of the layers were not compared"
    named = {pair.recipient for pair in routes.tensors}
    for mismatch in arrivals.skipped:
        yield f"skipped: {mismatch}"
    for each in arrivals.all:
        others = [address for address in each.addresses if address not in named]
        if others:
            yield f"{' = '.join(others)} changes too: it is one tensor with {each.address}"
        if how == "copy" and (loss := lossy(each)) is not None:
            yield loss
        if how == "share":
            yield f"{each.address} and {each.gift.address} of {donor.title} are tied from now on"
        if how == "move":
            yield f"{' = '.join(each.gift.addresses)} of {donor.title} is left on meta"


def _freezing(recipient: nn.Module, arrived: frozenset[str], steps: list[Step]) -> list[Step]:
    """The steps that freeze what arrived, whatever flags it brings."""
    brought = {step.address: step for step in steps if step.kind == "parameter"}
    flags = [
        Step("flag", step.addresses, "trainable", "frozen", False)
        for step in brought.values()
        if step.new.requires_grad
    ]
    rest = steps_to_freeze(recipient, arrived)
    return [*flags, *(step for step in rest if step.address not in brought)]


def _moved(
    model: nn.Module,
    donor: Donor,
    recipient: nn.Module,
    planned: Callable[[], Plan],
    dry_run: bool,
    registry: Registry | None,
) -> Outcome:
    """Carry out a plan and leave stand-ins in the donor: both or neither."""
    tree.check_changeable(model)
    outcome = left = None
    try:
        outcome = operate(recipient, planned, dry_run=dry_run, registry=registry)
        leaving = _leaving(donor, recipient, outcome.plan)
        left = operate(model, lambda: leaving, dry_run=dry_run, registry=registry)
        if outcome.operated is not None:
            outcome.operated.also = (left,)
        return outcome
    except BaseException:
        for done in (left, outcome):
            # Each by itself, whether they were put together already or not.
            if done is not None and done.operated is not None and not done.operated.over:
                done.operated.also = ()
                done.undo()
        raise


def _leaving(donor: Donor, recipient: nn.Module, plan: Plan) -> Plan:
    model = check_live(donor, "move")
    held: dict[int, list[str]] = {}
    for step in plan.steps:
        if step.kind in ("parameter", "buffer"):
            held.setdefault(id(step.new), []).append(step.address)
    steps = []
    for entry in tree.index(model).of_kind("parameter", "buffer"):
        if id(entry.tensor) in held:
            places = " = ".join(held[id(entry.tensor)])
            after = f"on meta: it is {places} of {type(recipient).__name__} now"
            stand_in = _stand_in(entry.tensor)
            steps.append(Step("left", entry.addresses, _form(entry.tensor), after, stand_in))
    count = count_parameters(model)
    return Plan(f"what {plan.title} left behind", tuple(steps), (), (count, count))


def _stand_in(tensor: torch.Tensor) -> Any:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty

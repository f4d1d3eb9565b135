"""The plan that puts a head on a model that has none: in its place for one, or behind the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from surgery import tree
from surgery.claims import FOLLOWING
from surgery.errors import ArgumentError, PlanError
from surgery.facts import CONFIGURATIONS, COUNTS, MAPPINGS, NAMES, Fact, find_facts, members
from surgery.families.applied import attribute
from surgery.families.family import HeadRole
from surgery.families.registry import Registry, in_force
from surgery.graph.graph import Spec
from surgery.graph.skeleton import is_floating
from surgery.graph.structure import tensors
from surgery.heads import Evidence, Head
from surgery.operations.agree import fact_steps
from surgery.operations.attach_features import Features, find_features
from surgery.operations.attach_places import Place, find_places
from surgery.operations.attached import POOLS, Headed, Pooled
from surgery.operations.carry import check_carry
from surgery.operations.choose import Wanted, check_num_classes
from surgery.operations.deeper import layers_like
from surgery.operations.entries import Options
from surgery.operations.plan import OutputChange, Plan, Step
from surgery.operations.simulate import Leaves, ProbeSizes, outputs_after
from surgery.operations.size import growth
from surgery.operations.wrapped import is_kept_elsewhere
from surgery.survey import Survey

_Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    3: nn.Conv1d,
    4: nn.Conv2d,
    5: nn.Conv3d,
}

Attach: TypeAlias = "bool | str"


def check_attach(attach: object, pool: object, channels: object, **others: object) -> None:
    """Refuse arguments that say nothing of a head to attach.

    Args:
        attach: whether a head is attached, or to which output.
        pool: how features are pooled.
        channels: the axis of their channels.
        others: arguments about a head that is there already, with what was passed.

    Raises:
        ArgumentError: a wrong one, or one too many.
    """
    if not isinstance(attach, bool) and not (isinstance(attach, str) and attach):
        raise ArgumentError(
            "attach says whether to put a head on a model that has none, or on which output",
            where="attach",
            expected="True, False, or the path of an output",
            found=repr(attach),
            fix="surgery.replace_head(model, 7, attach=True)",
        )
    if pool is not None and pool not in POOLS:
        raise ArgumentError(
            "this is no way to pool features",
            where="pool",
            expected=" or ".join(map(repr, (*POOLS, None))),
            found=repr(pool),
            fix="surgery.replace_head(model, 7, attach=True, pool='mean')",
        )
    if channels is not None and type(channels) is not int:
        raise ArgumentError(
            "channels says which axis of the features holds the channels",
            where="channels",
            expected="a number of an axis, or None",
            found=repr(channels),
            fix="surgery.replace_head(model, 7, attach=True, channels=2)",
        )
    for name, value in (("pool", pool), ("channels", channels)):
        if value is not None and not attach:
            raise ArgumentError(
                "the features of a head that is there are pooled by the model",
                where=name,
                expected=f"{name} with attach=True",
                found=f"{name}={value!r}, attach={attach!r}",
                fix=f"surgery.replace_head(model, 7, attach=True, {name}={value!r})",
            )
    given = [name for name, value in others.items() if value is not None]
    if attach and given:
        raise ArgumentError(
            "a head that is attached has no former classes",
            where=", ".join(given),
            expected="attach without keep and old_classes",
            found=", ".join(f"{name}={others[name]!r}" for name in given),
            fix=f"leave {' and '.join(given)} out",
        )


def _places_named(heads: Wanted) -> tuple[str, ...] | None:
    """The addresses of identities that a caller wants heads in the place of.

    Raises:
        ArgumentError: they are none, or with numbers of their own.
    """
    if heads is None:
        return None
    listed: list[Any] = [heads] if isinstance(heads, str) else []
    if not isinstance(heads, str | Mapping):
        listed = list(heads)
    if not listed or not all(isinstance(address, str) for address in listed):
        raise ArgumentError(
            "with attach, heads names the identities that the head takes the place of",
            where="heads",
            expected="an address, or a list of addresses, and num_classes",
            found=repr(heads),
            fix="surgery.replace_head(model, 7, attach=True), with heads='fc' if need be",
        )
    return tuple(dict.fromkeys(listed))


def _check_headless(known: Survey, attach: Attach) -> tuple[str, ...]:
    """Refuse a model that has a head already.

    Returns:
        Remarks on layers that could be one.

    Raises:
        ArgumentError: it has one, or ends in a layer that looks like one.
    """
    own = [head for head in known.heads if head.role not in FOLLOWING]
    certain = [head for head in own if head.corroborated]
    if certain:
        names = ", ".join(f"{h.address!r} ({h.num_classes} classes)" for h in certain)
        says = "; ".join(e.says for h in certain[:1] for e in h.evidence if e.source != "graph")
        raise ArgumentError(
            "this model has a head, and another one is attached only where there is none",
            where="attach",
            expected="attach left out",
            found=f"{names}: {says}",
            fix="surgery.replace_head(model, 7)",
        )
    plain = [h for h in own for s in known.sites[h.address] if s.leaf.source == s.mixing.value]
    if attach is True and plain and len(plain[0].outputs) and _is_vector(known, plain[0]):
        head = plain[0]
        raise ArgumentError(
            "the last layer of this model could be its head: its result is the output",
            where=head.address or "(the model itself)",
            expected="attach left out, or the output named that holds features",
            found=f"{head.kind}, {head.in_features} -> {head.num_classes}",
            fix=f"surgery.replace_head(model, 7, heads={head.address!r}), or if these are features "
            f"surgery.replace_head(model, 7, attach={head.output!r})",
        )
    return tuple(
        f"{head.address} was taken for a part of the trunk: nothing says that its "
        f"{head.num_classes} features are classes"
        for head in own
    )


def _is_vector(known: Survey, head: Head) -> bool:
    return any(len(site.leaf.spec.shape) == 2 for site in known.sites[head.address])


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is known while a head is attached."""

    model: nn.Module
    known: Survey
    features: Features
    number: int
    names: tuple[str, ...] | None
    options: Options
    registry: Registry


def plan_attaching(
    model: nn.Module,
    known: Survey,
    number: int | None,
    names: tuple[str, ...] | None,
    options: Options,
    *,
    attach: Attach,
    pool: str | None,
    channels: int | None,
    heads: Wanted,
    registry: Registry | None,
) -> Plan:
    """Plan a head where there is none.

    Where the features go through an ``nn.Identity`` that stands for a head, the head takes its
    place; what that makes of the outputs is tried out first. Elsewhere the model becomes the
    ``backbone`` of a ``Headed``, and is not touched itself.

    Args:
        model: the model, out of its wrappers.
        known: its recordings.
        number: how many classes; None where ``heads`` was to give it, which is refused.
        names: of the classes, if any.
        options: how the layers are made.
        attach: True, or the path of the output that holds the features.
        pool: how the features are pooled; None for the model's own way.
        channels: the axis of their channels; None for the one that the graph shows.
        heads: the places that the caller names, if any.
        registry: the plugins to ask.

    Raises:
        ArgumentError: the model has a head; no such output or place; nobody can tell how to pool.
        AmbiguousHeadError: several outputs, and nothing that decides.
        NoHeadError: no output holds features.
        PlanError: with a head the model does not run, or no output has the classes.
    """
    wanted = _places_named(heads)
    number = check_num_classes(number)
    remarks = _check_headless(known, attach)
    registry = in_force(registry)
    features = find_features(model, known, attach, pool, channels)
    work = _Work(model, known, features, number, names, options, registry)
    probe = ProbeSizes(known.graphs.values(), [number]).next()
    plan = _in_place(work, probe, wanted) or _behind(work, probe)
    notes = (*known.blind_spots, *remarks, *features.remarks, *plan.notes)
    return dataclasses.replace(plan, probes=dict.fromkeys(plan.probes, probe), notes=notes)


def _in_place(work: _Work, probe: int, wanted: Sequence[str] | None) -> Plan | None:
    """The plan that puts heads where identities stand, or None where there is no such place."""
    found = find_places(work.model, work.known, work.features, work.registry, wanted)
    for places in found:
        fitting = {place: layer for place in places if (layer := _first_layer(work, place))}
        if not fitting or (wanted is not None and len(fitting) < len(places)):
            continue
        trial = tuple(_place_steps(work, fitting, probe, real=False))
        try:
            outputs = _explained(work, trial, probe)
        except PlanError:
            if wanted is not None:
                raise
            continue
        with torch.inference_mode(False):
            steps = tuple(_place_steps(work, fitting, work.number, real=True))
        return _plan(work, steps, outputs, [place.address for place in fitting])
    if wanted is not None:
        raise PlanError(
            "no head fits there",
            where=", ".join(wanted),
            expected="features with one axis of channels",
            found=f"{work.features.path} {list(work.features.shape)}",
            fix="leave heads out",
        )
    return None


def _first_layer(work: _Work, place: Place) -> _Layer | None:
    """What the first layer of a head looks like at a place; None where none fits."""
    features, shape = work.features, place.shape
    form: dict[str, Any] = {"device": "meta", "dtype": features.dtype}
    if place.given_out or len(shape) == 2:
        pooled = features.axis if place.given_out else 1
        return nn.Linear(shape[pooled], 1, **form)
    # In front of what flattens it, a head keeps the form of the features.
    axes = [axis for axis in range(1, len(shape)) if shape[axis] == features.size]
    if axes == [len(shape) - 1]:
        return nn.Linear(features.size, 1, **form)
    if axes == [1] and len(shape) in _CONVOLUTIONS:
        return _CONVOLUTIONS[len(shape)](features.size, 1, kernel_size=1, **form)
    return None


def _place_steps(
    work: _Work, places: Mapping[Place, _Layer], size: int, *, real: bool
) -> Iterator[Step]:
    """The steps that put a head at every place, and let the facts follow."""
    facts, former = _facts(work, list(places))
    heads = [_head(place.addresses, layer, place.role, former) for place, layer in places.items()]
    options = work.options.known_to(work.model, heads, work.registry)
    for (place, layer), head in zip(places.items(), heads, strict=True):
        tree.check_changeable(work.model, place.address)
        pool = work.features.pool if place.given_out else None
        new = _made(work, layer, head, size, options, real=real)
        if pool is not None:
            new = nn.Sequential(Pooled(pool, work.features.axis), new)
        old = tree.get_module(work.model, place.address)
        check_carry(old, new, place.address)
        after = _shown(head, options, size)
        yield Step("module", place.addresses, type(old).__name__, after, new)
    pairs = [(head, size) for head in heads]
    yield from fact_steps(work.model, facts, pairs, heads, work.names)


def _head(addresses: tuple[str, ...], layer: _Layer, role: HeadRole, former: int) -> Head:
    """A head that is yet to be, with the number of classes that the model says it has."""
    weight = layer.weight
    kind = "linear" if weight.dim() == 2 else f"conv{weight.dim() - 2}d"
    return Head(
        address=addresses[0],
        addresses=addresses,
        kind=kind,
        in_features=weight.shape[1],
        num_classes=former,
        role=role,
        outputs=(),
        weights=(),
        tied_to=(),
        evidence=(Evidence("caller", "attach=True"),),
    )


def _made(
    work: _Work, layer: _Layer, head: Head, size: int, options: Options, *, real: bool
) -> nn.Module:
    """The layers of a head, or the one layer that it is."""
    known = dataclasses.replace(options, trainable=options.trainable is not False)
    device = _device(work)
    layers = layers_like(layer, head, size, known, real=real, device=device)
    return layers if len(layers) > 1 else layers[0]


def _device(work: _Work) -> torch.device:
    """Where the last parameters are: a head stands at the end."""
    placed = [(n, p.device) for n, p in work.model.named_parameters() if is_floating(p.dtype)]
    if not placed:
        return torch.device("cpu")
    address, last = placed[-1]
    if last.type != "meta" or not is_kept_elsewhere(work.model, address, work.registry):
        return last
    # What comes out is where that went in; parameters on meta are brought back for a moment.
    example = work.known.example
    given = [t.device for _, t in tensors([example.args, dict(example.kwargs)])]
    here = [each for each in (*given, *(device for _, device in placed)) if each.type != "meta"]
    return here[0] if here else torch.device("cpu")


def _shown(head: Head, options: Options, size: int) -> str:
    widths = " -> ".join(map(str, (head.in_features, *options.hidden, size)))
    return f"{'Linear' if head.kind == 'linear' else head.kind.capitalize()} ({widths})"


def _facts(work: _Work, places: Sequence[Place]) -> tuple[tuple[Fact, ...], int]:
    """What the model says of its number of classes at these places, and which number that is.

    A model without a head says 0, or still what its head had.
    """
    about = [
        fact
        for fact in (*_zeros(work), *find_facts(work.model))
        if any(
            fact.module == "" or address.startswith(f"{fact.module}.")
            for place in places
            for address in place.addresses
        )
    ]
    numbers = [fact.classes for fact in about]
    if 0 in numbers:
        return tuple(fact for fact in about if not fact.classes), 0
    same = set(numbers)
    return (tuple(about), same.pop()) if len(same) == 1 else ((), 0)


def _zeros(work: _Work) -> Iterator[Fact]:
    """The attributes that say that there are no classes."""
    for address, module in tree.walk(work.model):
        family = work.registry.claim(module)
        paths = dict.fromkeys(family.sync if family is not None else ())
        paths |= dict.fromkeys(COUNTS & set(module.__dict__))
        zeros = [path for path in paths if _is_zero(attribute(module, path))]
        yield from (Fact(address, path, "count", 0) for path in zeros)
        if zeros:
            yield from _nameless(address, "", module.__dict__)
        for name, value in list(module.__dict__.items()):
            if name.strip("_").lower().rpartition("_")[2] in CONFIGURATIONS:
                yield from _zeros_inside(address, name, value)


def _zeros_inside(address: str, name: str, value: object) -> Iterator[Fact]:
    held = members(value)
    for inner in sorted(held, key=lambda each: each in MAPPINGS):
        path = f"{name}.{inner}"
        if inner in COUNTS and _is_zero(held[inner]):
            yield Fact(address, path, "count", 0)
        if inner in MAPPINGS and isinstance(held[inner], Mapping) and not held[inner]:
            yield Fact(address, path, "mapping", 0)
    if any(inner in COUNTS and _is_zero(held[inner]) for inner in held):
        yield from _nameless(address, name, held)


def _nameless(address: str, path: str, held: Mapping[str, Any]) -> Iterator[Fact]:
    """The lists of names that are empty, beside a number of classes that is zero."""
    for name in NAMES & held.keys():
        if isinstance(held[name], list | tuple) and not held[name]:
            yield Fact(address, tree.join(path, name), "names", 0)


def _is_zero(value: object) -> bool:
    return type(value) is int and value == 0


def _behind(work: _Work, probe: int) -> Plan:
    """The plan that makes the model the backbone of one with a head."""
    form: dict[str, Any] = {"device": "meta", "dtype": work.features.dtype}
    layer = nn.Linear(work.features.size, 1, **form)
    head = _head(("head",), layer, "main", 0)

    def step(size: int, *, real: bool) -> Step:
        features = work.features
        pool = None if features.pool is None else Pooled(features.pool, features.axis)
        new = Headed(
            work.model,
            _made(work, layer, head, size, work.options, real=real),
            pool,
            path=features.path,
            mask=features.mask,
            num_classes=size,
            classes=work.names if real else None,
        )
        new.training = work.model.training
        new.pool.train(work.model.training)
        new.head.train(work.model.training)
        before = tree.class_name(type(work.model)).rpartition(".")[2]
        after = f"Headed ({before}, {_shown(head, work.options, size)})"
        return Step("root", ("",), before, after, new)

    outputs = _explained(work, (step(probe, real=False),), probe)
    with torch.inference_mode(False):
        steps = (step(work.number, real=True),)
    plan = _plan(work, steps, outputs, ["head"])
    own = [f for f in work.known.facts if not f.module]
    said = [f"{f.address} says {f.classes} and stays: it is about the model inside" for f in own]
    note = "the model has no place for a head: outcome.model is a new one that holds it as backbone"
    return dataclasses.replace(plan, notes=(*plan.notes, note, *said))


def _plan(
    work: _Work, steps: tuple[Step, ...], outputs: tuple[OutputChange, ...], places: list[str]
) -> Plan:
    if work.number == 1:
        # One class may be squeezed away.
        _explained(work, steps, 1)
    shown = ", ".join(f"{address!r}: {work.number}" for address in places)
    return Plan(
        f"replace_head({shown}, attach)",
        steps,
        outputs,
        growth(work.model, steps),
        probes=dict.fromkeys(places, work.number),
        classes=work.names or (),
        example=work.known.example,
    )


def _explained(work: _Work, steps: tuple[Step, ...], size: int) -> tuple[OutputChange, ...]:
    """What every output is to be, from what it becomes with a number of classes.

    Raises:
        PlanError: the model does not run then, or no output has the classes.
    """
    after = outputs_after(work.model, steps, work.known.example, work.known.graphs)
    found: list[OutputChange] = []
    for mode, leaves in after.items():
        before = {leaf.path: leaf.spec for leaf in work.known.graphs[mode].leaves}
        anew = any(step.kind == "root" for step in steps)
        changes = [_change(mode, path, before, leaves, work, size) for path in leaves]
        gone = set() if anew else set(before) - set(leaves)
        if gone or not any(change.class_axes for change in changes):
            raise _unmade(work, mode, leaves)
        found += changes
    return tuple(found)


def _change(
    mode: str, path: str, before: Mapping[str, Spec], leaves: Leaves, work: _Work, size: int
) -> OutputChange:
    old, new = before.get(path), leaves[path].spec
    samples = work.features.shape[0]
    if new.shape == (samples, size) and (old is None or old.shape != new.shape or size == 1):
        classes = Spec((samples, work.number), new.dtype)
        return OutputChange(mode, path, old, classes, (1,))
    if old != new:
        raise _unmade(work, mode, leaves)
    return OutputChange(mode, path, old, new)


def _unmade(work: _Work, mode: str, leaves: Leaves) -> PlanError:
    return PlanError(
        "with a head there, no output is [samples, classes], or others change as well",
        where=f"{work.features.path} ({mode})",
        expected=f"[{work.features.shape[0]}, classes]",
        found="; ".join(f"{path} {leaf.spec}" for path, leaf in leaves.items()) or "no output",
        fix="leave heads out, and let surgery.replace_head find the place",
    )

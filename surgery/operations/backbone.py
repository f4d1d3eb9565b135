"""Remove heads: the model gives out the features its classes were made from."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from surgery import tree
from surgery.errors import PlanError, RecordError
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.heads import Head
from surgery.operations.agree import fact_steps, staying_facts
from surgery.operations.apply import operate
from surgery.operations.calls import called
from surgery.operations.carry import check_carry
from surgery.operations.choose import Wanted, choose
from surgery.operations.follow import PerClass, per_class_tensors
from surgery.operations.plan import Outcome, OutputChange, Plan, Step
from surgery.operations.simulate import outputs_after
from surgery.operations.size import growth
from surgery.survey import Survey, survey

_LABELS = ("labels", "label", "targets", "target")


def remove_head(
    model: nn.Module,
    *,
    heads: Wanted = None,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Take the heads out of a model, so that features come out instead of classes.

    An ``nn.Identity`` takes the place of each head, at every address. Attributes that give the
    number of classes become 0. The operation is verified and undone like every other.

    Args:
        model: any module; it is changed in place.
        heads: which heads, as in ``replace_head``.
        example: the arguments of one forward pass; left out, it is supplied or inferred.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome; ``outcome.feature_size`` is the size of the features.

    Raises:
        NoHeadError, AmbiguousHeadError, ArgumentError: as in ``replace_head``.
        PlanError: the head is no layer that can be taken out. Nothing was touched.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.
        VerificationError: a check failed. Everything was undone.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> outcome = surgery.remove_head(model, heads="2")
        >>> outcome.feature_size, model(torch.zeros(1, 8)).shape
        (16, torch.Size([1, 16]))
    """
    tree.check_model(model)
    tree.check_changeable(model)

    def planned() -> Plan:
        known = survey(model, example, registry=registry)
        _check_forward(known.example)
        chosen = [head for head, _ in choose(known.heads, heads, None, "remove_head")]
        return _plan(tree.unwrap(model), known, chosen)

    return operate(model, planned, dry_run=dry_run, registry=registry)


def _check_forward(example: Example) -> None:
    """Refuse where forward reads the classes itself, and gives out what it chose by them.

    Raises:
        PlanError: what was recorded is not forward.
    """
    if example.forward is not None:
        raise PlanError(
            "forward chooses by the classes and gives out no class scores, so no features could "
            "come out in their place",
            where="forward",
            expected="a forward that gives out what the head makes",
            found="a family that records the layers in place of a forward that depends on values",
            fix="call the part that makes the features: model.backbone(images)",
        )


def _plan(model: nn.Module, known: Survey, chosen: list[Head]) -> Plan:
    steps: list[Step] = []
    for head in chosen:
        tree.check_changeable(model, head.address)
        steps.append(_step(model, known, head))
    gone = [(head, 0) for head in chosen]
    if not any(step.kind == "root" for step in steps):
        steps += fact_steps(model, known.facts, gone, known.heads, None)
    after = _after(model, tuple(steps), known)
    return Plan(
        f"remove_head({', '.join(repr(head.address) for head in chosen)})",
        tuple(steps),
        tuple(_changes(known, chosen, after)),
        growth(model, tuple(steps)),
        features={head.address: head.in_features for head in chosen},
        feature_size=_feature_size(chosen),
        notes=(*known.blind_spots, *staying_facts(model, known.facts, gone, known.heads)),
        example=known.example,
        call=called("remove_head", heads=[head.address for head in chosen]),
    )


def _after(
    model: nn.Module, steps: tuple[Step, ...], known: Survey
) -> dict[str, Mapping[str, Any]]:
    try:
        return dict(outputs_after(model, steps, known.example, known.graphs))
    except PlanError as error:
        labels = _labels(known.example)
        if not labels or not isinstance(error.__cause__, RecordError):
            raise
        raise PlanError(
            error.what,
            where=error.where,
            expected="no loss: features have no classes that labels could name",
            found=f"an example with {', '.join(labels)}",
            fix=f"pass the example without {' and '.join(labels)}",
        ) from error


def _labels(example: Example) -> list[str]:
    """The arguments of an example that are labels by their names."""
    forms = [form for form in (example, example.train) if form is not None]
    return list(dict.fromkeys(n for form in forms for n in form.kwargs if n in _LABELS))


def _feature_size(heads: list[Head]) -> int | None:
    main = [head for head in heads if head.role != "aux"] or heads
    sizes = {head.in_features for head in main}
    return sizes.pop() if len(sizes) == 1 else None


def _step(model: nn.Module, known: Survey, head: Head) -> Step:
    layer = tree.get(model, head.address)
    if not isinstance(layer, nn.Module) or head.kind in ("computed", "bilinear", "embedding"):
        raise PlanError(
            f"a head of kind {head.kind!r} is no layer with one input that can be taken out",
            where=head.address or "(the model itself)",
            expected="a layer that takes features and gives classes",
            found=type(layer).__name__,
            fix="change forward to return the features",
        )
    behind = [item for item in per_class_tensors(known, head) if item.part == "behind"]
    if behind:
        raise PlanError(
            "behind this head stands something with one entry a class, which features do not fit",
            where=", ".join(item.addresses[0] for item in behind),
            expected="nothing behind the head that depends on the number of classes",
            found=f"{len(behind)} tensors of {head.num_classes} entries",
            fix=_remedy(model, head, behind, _labels(known.example)),
        )
    identity = nn.Identity()
    check_carry(layer, identity, head.address)
    kind = "root" if head.address == "" else "module"
    before = f"{type(layer).__name__} ({head.in_features} -> {head.num_classes})"
    return Step(kind, head.addresses, before, "Identity", identity)  # type: ignore[arg-type]


def _remedy(model: nn.Module, head: Head, behind: Iterable[PerClass], labels: Iterable[str]) -> str:
    """What to do about tensors behind a head: only what leaves the rest of the model whole."""
    owners: dict[str, set[str]] = {}
    for item in behind:
        for address in item.addresses:
            owner, _, _ = address.partition(".parametrizations.")
            owner = tree.split(address)[0] if owner == address else owner
            owners.setdefault(owner, set()).add(address)
    if all(_is_removable(model, head, owner, own) for owner, own in owners.items()):
        layers = ", ".join(f"{owner!r}: torch.nn.Identity()" for owner in owners)
        return f"take those layers out first: surgery.replace(model, {{{layers}}})"
    names = ", ".join(address for own in owners.values() for address in sorted(own))
    first = f"pass the example without {' and '.join(labels)}, or " if labels else ""
    return f"{first}make forward return the features, before {names} come in"


def _is_removable(model: nn.Module, head: Head, owner: str, own: set[str]) -> bool:
    """Whether an identity can stand in for a module: it does nothing but what is in the way."""
    if any(owner in ("", a) or a.startswith(f"{owner}.") for a in head.addresses):
        return False
    module = tree.get_module(model, owner)
    others = any(name != "parametrizations" for name, _ in module.named_children())
    held = {tree.join(owner, name) for name, _ in module.named_parameters(remove_duplicate=False)}
    return not others and held <= own and _takes_one_input(module)


def _takes_one_input(module: nn.Module) -> bool:
    """Whether forward takes one argument, as an identity does; a loss takes two."""
    try:
        taken = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return (
        len(taken) > 0
        and taken[0].kind in kinds
        and all(p.default is not p.empty for p in taken[1:])
    )


def _changes(
    known: Survey, chosen: list[Head], after: Mapping[str, Mapping[str, Any]]
) -> list[OutputChange]:
    changes = []
    for mode, leaves in after.items():
        before = {leaf.path: leaf.spec for leaf in known.graphs[mode].leaves}
        made = {
            site.leaf.path: head
            for head in chosen
            for site in known.sites[head.address]
            if site.mode == mode
        }
        for path, leaf in leaves.items():
            old = before.pop(path, None)
            head = made.get(path)
            if old is None or (head is None and old != leaf.spec):
                raise _moved(path, mode, old, leaf.spec)
            if head is not None and head.in_features not in leaf.spec.shape:
                raise _moved(path, mode, f"{head.in_features} features", leaf.spec)
            changes.append(OutputChange(mode, path, old, leaf.spec))
        for path, spec in before.items():
            raise _moved(path, mode, spec, None)
    return changes


def _moved(path: str, mode: str, expected: object, found: object) -> PlanError:
    return PlanError(
        "without the head an output changes in a way that is not explained by it",
        where=f"{path} ({mode})",
        expected=str(expected),
        found=str(found),
        fix="choose the heads to take out with heads=",
    )

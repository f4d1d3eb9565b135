"""Let a model take other inputs: another number of channels, another size of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, ClaimContradictedError, PlanError, RecordError
from surgery.families.family import Family
from surgery.families.registry import Registry, default_registry
from surgery.graph.entrance import find_entrances
from surgery.graph.example import Example
from surgery.graph.graph import Graph
from surgery.graph.record import record_graph
from surgery.graph.structure import replace_tensors, tensors
from surgery.operations.apply import operate
from surgery.operations.channels import Opening, channel_steps, resized_inputs
from surgery.operations.normalisation import How, Pair, check_how, make_recipe
from surgery.operations.plan import Outcome, OutputChange, Plan, Step
from surgery.operations.simulate import MODES, outputs_after
from surgery.operations.size import growth
from surgery.recording import resolve_example


def adapt_input(
    model: nn.Module,
    *,
    in_channels: int | None = None,
    how: How = "auto",
    mean: Pair = None,
    std: Pair = None,
    inputs: str | Sequence[str] | None = None,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Let a model take another number of input channels, and prove that nothing else moved.

    The first convolution or patch embedding stays the same object and gets a new weight; every
    other first layer behind the same input, ``in_channels``, ``config.num_channels`` and
    normalisation inside the model follow, or planning refuses.

    Weights are made of the old ones. Their sum lets a grey image given as one channel have the
    answers of the same image repeated over three, within rounding. For several channels they are
    repeated in a circle and scaled by old over new, so that activations keep their size; the
    answers for grey images stay then too where the new number is a multiple of the old.

    A model has seen inputs that were normalised by a mean and a standard deviation for each
    channel. Without ``mean`` and ``std`` the new channels are taken to be normalised so that equal
    numbers mean what they meant. Otherwise ``std`` is folded into the weight, which is exact, and
    ``mean`` into the bias (or the running mean of a batch norm right behind). That is exact too,
    except where the first layer reads zeros from around the image: they stand for another value
    then, and along the borders the answers differ.

    Args:
        model: any module; it is changed in place. ``torch.compile``'s wrapper is passed through.
        in_channels: the new number of channels; left out, it stays (and ``mean`` and ``std`` are
            folded in).
        how: ``"sum"`` (every new channel gets the sum over the old ones, divided by the number
            of new ones), ``"repeat"`` (in a circle, scaled by old over new), ``"auto"`` (the sum
            for one channel, else repeated), or a callable that is given a copy of the weight,
            (out, channels, *kernel) and the new number, and returns the new weight.
        mean: a pair: the mean of the old channels and that of the new ones, each a number or one
            number a channel, in the units of the images before normalisation.
        std: likewise the standard deviations.
        inputs: which inputs, where the model takes several: ``"args[0]"``, or several of them.
        example: the arguments of one forward pass of the model as it is; left out, it is supplied
            or inferred.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome: the model, what changed, every check, and ``undo()``.

    Raises:
        ArgumentError: a wrong argument, or several inputs and nothing that decides.
        ClaimContradictedError: the model's family names another stem than the graph shows.
        PlanError: something that depends on the channels cannot follow. Nothing was touched.
        RecordError: the model could not be recorded.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.
        VerificationError: a check failed. Everything was undone.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> grey = torch.rand(1, 1, 16, 16)
        >>> before = model(grey.expand(-1, 3, -1, -1))
        >>> outcome = surgery.adapt_input(model, in_channels=1)
        >>> torch.allclose(model(grey), before, atol=1e-6)
        True
    """
    _check_arguments(in_channels, how, mean, std)
    tree.check_model(model)
    tree.check_changeable(model)

    def planned() -> Plan:
        known = default_registry() if registry is None else registry
        inner = tree.unwrap(model)
        resolved = resolve_example(model, example, registry=known)
        graphs, notes = _record(inner, resolved)
        openings = _openings(graphs, inputs, known.claim(model))
        old = openings[0].entrance.channels
        new = old if in_channels is None else in_channels
        recipe = make_recipe(old, new, how, mean, std)
        if recipe.nothing:
            return _nothing(inner, f"the model takes {old} channels already", resolved)
        for opening in openings:
            tree.check_changeable(model, opening.entrance.weight[0])
        # Parameters made in inference mode could never be trained.
        with torch.inference_mode(False), torch.no_grad():
            steps, remarks = channel_steps(inner, openings, recipe)
        changed = _changed(resolved, graphs, openings, new)
        title = f"adapt_input(in_channels={new})"
        if mean is None and std is None:
            remarks += ("the channels are taken to be normalised as they were: mean=, std=",)
        return _plan(inner, title, steps, graphs, changed, (*notes, *remarks))

    return operate(model, planned, dry_run=dry_run)


def _check_arguments(in_channels: object, how: object, mean: object, std: object) -> None:
    if in_channels is None and mean is None and std is None and how == "auto":
        raise ArgumentError(
            "nothing was asked for",
            where="in_channels, mean, std",
            expected="at least one of them",
            found="none",
            fix="surgery.adapt_input(model, in_channels=1)",
        )
    if in_channels is not None and (type(in_channels) is not int or in_channels < 1):
        raise ArgumentError(
            "this is no number of channels",
            where="in_channels",
            expected="a whole number above zero",
            found=repr(in_channels),
            fix="surgery.adapt_input(model, in_channels=1)",
        )
    check_how(how)


def _record(model: nn.Module, example: Example) -> tuple[dict[str, Graph], list[str]]:
    """Recordings in each mode that can be recorded, and what could not be seen."""
    graphs: dict[str, Graph] = {}
    errors: dict[str, RecordError] = {}
    for mode, train in MODES.items():
        try:
            graphs[mode] = record_graph(model, example, train=train)
        except RecordError as error:
            errors[mode] = error
    if not graphs:
        raise errors["eval"]
    spots = [spot for graph in graphs.values() for spot in graph.blind_spots]
    return graphs, [
        *(f"{mode} mode was not seen: {error.what}" for mode, error in errors.items()),
        *dict.fromkeys(spots),
    ]


def _openings(
    graphs: Mapping[str, Graph], inputs: str | Sequence[str] | None, family: Family | None
) -> list[Opening]:
    """The first layers behind the inputs that are meant, in every recording."""
    seen = {mode: find_entrances(graph) for mode, graph in graphs.items()}
    groups = _groups(seen.values())
    if not groups:
        raise _no_entrance(seen.values())
    chosen = _chosen(groups, inputs, family)
    for entrances in seen.values():
        for unseen in entrances.unseen:
            if unseen.path in chosen:
                raise PlanError(
                    "the channels of an input cannot be traced to a layer that takes it",
                    where=", ".join(unseen.weights) or unseen.path,
                    expected="a convolution or a patch embedding that reads channels",
                    found=unseen.reason,
                    fix="torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') "
                    "where it is computed, or surgery.replace(model, {address: module})",
                )
    openings = [
        Opening(graphs[mode], entrance)
        for mode, entrances in seen.items()
        for entrance in entrances.found
        if entrance.path in chosen
    ]
    counts = {opening.entrance.channels for opening in openings}
    if len(counts) > 1:
        raise ArgumentError(
            "these inputs have different numbers of channels",
            where="inputs",
            expected="inputs with one number of channels",
            found=", ".join(f"{o.entrance.path}: {o.entrance.channels}" for o in openings),
            fix=f"surgery.adapt_input(model, in_channels=1, inputs={openings[0].entrance.path!r})",
        )
    _check_stem(openings, family)
    return openings


def _groups(seen: Any) -> list[dict[str, set[tuple[str, ...]]]]:
    """Inputs that share a first layer change together: for each group, the layers by input."""
    groups: list[dict[str, set[tuple[str, ...]]]] = []
    for entrances in seen:
        for entrance in entrances.found:
            here: dict[str, set[tuple[str, ...]]] = {entrance.path: {entrance.weight}}
            apart = []
            for group in groups:
                shares = any(entrance.weight in weights for weights in group.values())
                if entrance.path not in group and not shares:
                    apart.append(group)
                    continue
                for path, weights in group.items():
                    here.setdefault(path, set()).update(weights)
            groups = [*apart, here]
    return groups


def _chosen(
    groups: list[dict[str, set[tuple[str, ...]]]],
    inputs: str | Sequence[str] | None,
    family: Family | None,
) -> set[str]:
    """The paths of the inputs that are meant."""
    known = [path for group in groups for path in group]
    if inputs is not None:
        asked = [inputs] if isinstance(inputs, str) else list(inputs)
        spelt = [f"kwargs[{name!r}]" if f"kwargs[{name!r}]" in known else name for name in asked]
        wrong = [name for name in spelt if name not in known]
        if wrong or not spelt:
            raise _which(groups, f"{wrong or inputs!r}")
        return {path for group in groups if not group.keys().isdisjoint(spelt) for path in group}
    if len(groups) > 1 and family is not None and family.stem:
        inside = [
            group
            for group in groups
            if any(_in_stem(family, weight) for weights in group.values() for weight in weights)
        ]
        groups = inside if len(inside) == 1 else groups
    if len(groups) > 1:
        raise _which(groups, "several inputs, each with first layers of its own")
    return set(groups[0])


def _in_stem(family: Family, weight: tuple[str, ...]) -> bool:
    return any(
        address == stem or address.startswith(f"{stem}.")
        for address in weight
        for stem in family.stem
    )


def _which(groups: list[dict[str, set[tuple[str, ...]]]], found: str) -> ArgumentError:
    listed = "\n".join(
        f"{path}: {', '.join(sorted(weight[0] for weight in weights))}"
        for group in groups
        for path, weights in group.items()
    )
    return ArgumentError(
        "which input is meant?",
        where="inputs",
        expected=f"one or several of these, with the first layers behind each:\n{listed}",
        found=found,
        fix=f"surgery.adapt_input(model, in_channels=1, inputs={next(iter(groups[0]))!r})",
    )


def _no_entrance(seen: Any) -> PlanError:
    reasons = [
        f"{', '.join(unseen.weights) or unseen.path}: {unseen.reason}"
        for entrances in seen
        for unseen in entrances.unseen
    ]
    return PlanError(
        "no layer was found that takes the channels of an input",
        where="forward",
        expected="a convolution or a patch embedding behind a floating-point input",
        found="; ".join(dict.fromkeys(reasons)) or "no layer behind a floating-point input",
        fix="pass example= with the arguments of one forward pass, or "
        "surgery.replace(model, {address: module})",
    )


def _check_stem(openings: Sequence[Opening], family: Family | None) -> None:
    if family is None or not family.stem:
        return
    if not any(_in_stem(family, opening.entrance.weight) for opening in openings):
        raise ClaimContradictedError(
            f"the graph shows other first layers than family {family.name!r} says",
            where=f"Family({family.name!r}).stem",
            expected=", ".join(family.stem),
            found=", ".join(opening.entrance.weight[0] for opening in openings),
            fix="correct the claim, and run surgery.testing.check_family(family)",
        )


def _changed(
    example: Example, graphs: Mapping[str, Graph], openings: Sequence[Opening], new: int
) -> Example:
    """The example with as many channels as are wanted, in both of its forms."""
    forms = []
    for training in (False, True):
        given = example.in_mode(training)
        here = [o for o in openings if o.graph.training is training] or openings
        forms.append(_form(given, resized_inputs(here, new)))
    plain, train = forms
    own = example.train is not None
    return Example(plain.args, plain.kwargs, train if own else None)


def _form(example: Example, wanted: Mapping[str, tuple[int, int]]) -> Example:
    found = [*tensors(example.args, "args"), *tensors(dict(example.kwargs), "kwargs")]
    places = {id(tensor): wanted[path] for path, tensor in found if path in wanted}

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in places:
            return tensor
        axis, size = places[id(tensor)]
        order = torch.arange(size, device=tensor.device) % tensor.shape[axis]
        return tensor.detach().index_select(axis, order)

    return Example(
        tuple(replace_tensors(value, twin) for value in example.args),
        {name: replace_tensors(value, twin) for name, value in example.kwargs.items()},
    )


def _plan(
    model: nn.Module,
    title: str,
    steps: tuple[Step, ...],
    graphs: Mapping[str, Graph],
    example: Example,
    notes: tuple[str, ...],
) -> Plan:
    seen = outputs_after(model, steps, example, graphs)
    outputs = []
    for mode, graph in graphs.items():
        old = {leaf.path: leaf.spec for leaf in graph.leaves}
        new = {path: leaf.spec for path, leaf in seen[mode].items()}
        for path in {**old, **new}:
            if old.get(path) != new.get(path):
                raise PlanError(
                    "with other channels at the input an output has another form",
                    where=f"{path} ({mode})",
                    expected=str(old.get(path, "nothing")),
                    found=str(new.get(path, "nothing")),
                    fix="surgery.replace(model, {address: module}) changes layers without this "
                    "promise",
                )
            outputs.append(OutputChange(mode, path, old[path], new[path]))
    before, after = growth(model, steps)
    added = [s.new for s in steps if s.kind == "attribute" and isinstance(s.new, nn.Parameter)]
    count = (before, after + sum(tensor.numel() for tensor in added))
    return Plan(title, steps, tuple(outputs), count, notes=notes, example=example)


def _nothing(model: nn.Module, why: str, example: Example) -> Plan:
    return Plan("adapt_input", (), (), growth(model, ()), notes=(why,), example=example)

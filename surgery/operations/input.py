"""Let a model take other inputs: another number of channels, another size of images."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, ClaimContradictedError, PlanError, RecordError
from surgery.families.applied import stem_for
from surgery.families.family import Family, Stem
from surgery.families.registry import Registry, in_force
from surgery.families.resizing import followers_for
from surgery.graph.entrance import find_entrances
from surgery.graph.example import Example
from surgery.graph.graph import Graph, Spec
from surgery.graph.record import record_graph
from surgery.graph.structure import replace_tensors, tensors
from surgery.operations.apply import operate
from surgery.operations.calls import called
from surgery.operations.channels import Opening, channel_steps
from surgery.operations.normalisation import How, Pair, Recipe, check_how, make_recipe
from surgery.operations.plan import Outcome, OutputChange, Plan, Step
from surgery.operations.resolution import check_size, pixel_axes, size_steps
from surgery.operations.simulate import MODES, outputs_after
from surgery.operations.size import growth
from surgery.recording import resolve_example


def adapt_input(
    model: nn.Module,
    *,
    in_channels: int | None = None,
    image_size: int | Sequence[int] | None = None,
    how: How = "auto",
    mean: Pair = None,
    std: Pair = None,
    inputs: str | Sequence[str] | None = None,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Let a model take other channels or images of another size, and prove what comes out.

    **Channels.** The first convolution or patch embedding stays the same object and gets a new
    weight; every other first layer behind the same input, ``in_channels``, ``config.num_channels``
    and normalisation inside the model follow, or planning refuses.

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

    **Image size.** What follows it is known to the model's family: position embeddings and tables
    of relative positions are interpolated (bicubic, class tokens apart), and windows, indices and
    attributes follow. The model is recorded at the new size before anything is touched, and again
    afterwards. A model without such a family must run at the new size as it is.

    Args:
        model: any module; it is changed in place. ``torch.compile``'s wrapper is passed through.
        in_channels: the new number of channels; left out, it stays (and ``mean`` and ``std`` are
            folded in).
        image_size: the new height and width in pixels, or one number for both; left out, it stays.
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
        PlanError: something that depends on the channels or the size cannot follow. Nothing was
            touched.
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
    size = check_size(image_size)
    _check_arguments(in_channels, how, mean, std, size)
    tree.check_model(model)
    tree.check_changeable(model)

    def planned() -> Plan:
        known = in_force(registry)
        inner = tree.unwrap(model)
        resolved = resolve_example(model, example, registry=known)
        graphs, notes = _record(inner, resolved)
        family = known.claim(model)
        stem = () if family is None else stem_for(family, inner)
        openings = _openings(graphs, inputs, family, stem)
        old = openings[0].entrance.channels
        new = old if in_channels is None else in_channels
        recipe = make_recipe(old, new, how, mean, std)
        # Parameters made in inference mode could never be trained.
        with torch.inference_mode(False), torch.no_grad():
            steps, remarks = _steps(inner, openings, recipe, family, size)
        if new != old and mean is None and std is None:
            remarks += ("the channels are taken to be normalised as they were: mean=, std=",)
        if new == old and recipe.nothing and size is None:
            remarks += (f"the model takes {old} channels already",)
        changed = _changed(resolved, graphs, openings, new, size)
        asked: dict[str, Any] = {"in_channels": in_channels, "image_size": size}
        shown = ", ".join(f"{name}={value}" for name, value in asked.items() if value)
        title = f"adapt_input({shown or 'mean, std'})"
        plan = _plan(inner, title, steps, graphs, changed, (*notes, *remarks), size)
        asked |= {"how": how, "mean": mean, "std": std, "inputs": inputs}
        return dataclasses.replace(plan, call=called("adapt_input", **asked))

    return operate(model, planned, dry_run=dry_run, registry=registry)


def _steps(
    model: nn.Module,
    openings: Sequence[Opening],
    recipe: Recipe,
    family: Family | None,
    size: tuple[int, int] | None,
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    steps: tuple[Step, ...] = ()
    remarks: tuple[str, ...] = ()
    if not recipe.nothing:
        for opening in openings:
            tree.check_changeable(model, opening.entrance.weight[0])
        steps, remarks = channel_steps(model, openings, recipe)
    if size is None:
        return steps, remarks
    followers = followers_for(family, model, size) if family is not None else None
    following, said = size_steps(model, followers or ())
    if not following:
        # The recording at that size proves it, or planning fails.
        said += (f"nothing in the model has to change for images of {size[0]} by {size[1]}",)
    return (*steps, *following), (*remarks, *said)


def _check_arguments(
    in_channels: object, how: object, mean: object, std: object, size: object
) -> None:
    if all(each is None for each in (in_channels, mean, std, size)) and how == "auto":
        raise ArgumentError(
            "nothing was asked for",
            where="in_channels, image_size, mean, std",
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
    graphs: Mapping[str, Graph],
    inputs: str | Sequence[str] | None,
    family: Family | None,
    stem: Stem,
) -> list[Opening]:
    """The first layers behind the inputs that are meant, in every recording."""
    seen = {mode: find_entrances(graph) for mode, graph in graphs.items()}
    groups = _groups(seen.values())
    if not groups:
        raise _no_entrance(seen.values())
    chosen = _chosen(groups, inputs, stem)
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
    _check_stem(openings, family, stem)
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
    stem: Stem,
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
    if len(groups) > 1 and stem:
        inside = [
            group
            for group in groups
            if any(_in_stem(stem, weight) for weights in group.values() for weight in weights)
        ]
        groups = inside if len(inside) == 1 else groups
    if len(groups) > 1:
        raise _which(groups, "several inputs, each with first layers of its own")
    return set(groups[0])


def _in_stem(stem: Stem, weight: tuple[str, ...]) -> bool:
    return any(
        address == place or address.startswith(f"{place}.") for address in weight for place in stem
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


def _check_stem(openings: Sequence[Opening], family: Family | None, stem: Stem) -> None:
    if family is None or not stem:
        return
    if not any(_in_stem(stem, opening.entrance.weight) for opening in openings):
        raise ClaimContradictedError(
            f"the graph shows other first layers than family {family.name!r} says",
            where=f"Family({family.name!r}).stem",
            expected=", ".join(stem),
            found=", ".join(opening.entrance.weight[0] for opening in openings),
            fix="correct the claim, and run surgery.testing.check_family(family)",
        )


def _changed(
    example: Example,
    graphs: Mapping[str, Graph],
    openings: Sequence[Opening],
    channels: int,
    size: tuple[int, int] | None,
) -> Example:
    """The example with as many channels and pixels as are wanted, in both of its forms."""
    forms = []
    for training in (False, True):
        given = example.in_mode(training)
        here = [o for o in openings if o.graph.training is training] or openings
        forms.append(_form(given, {o.entrance.path: o.entrance.axis for o in here}, channels, size))
    plain, train = forms
    own = example.train is not None
    return dataclasses.replace(plain, train=train if own else None, forward=example.forward)


def _form(
    example: Example, axes: Mapping[str, int], channels: int, size: tuple[int, int] | None
) -> Example:
    found = [*tensors(example.args, "args"), *tensors(dict(example.kwargs), "kwargs")]
    lists = {_list(path): axis for path, axis in axes.items() if _list(path)}
    places = {
        id(tensor): axes[path] if path in axes else lists[_list(path)]
        for path, tensor in found
        if path in axes or _list(path) in lists
    }

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in places:
            return tensor
        axis = places[id(tensor)]
        wanted = {axis: channels}
        if size is not None:
            wanted |= dict(zip(pixel_axes(tensor.dim(), axis), size, strict=True))
        for place, length in wanted.items():
            order = torch.arange(length, device=tensor.device) % tensor.shape[place]
            tensor = tensor.detach().index_select(place, order)
        return tensor

    return Example(
        tuple(replace_tensors(value, twin) for value in example.args),
        {name: replace_tensors(value, twin) for name, value in example.kwargs.items()},
        prepare=example.prepare,
    )


def _list(path: str) -> str:
    """The list that an input is an item of, inside an argument: images are of one kind."""
    inside = re.fullmatch(r"(.+\])\[\d+\]", path)
    return inside[1] if inside else ""


def _plan(
    model: nn.Module,
    title: str,
    steps: tuple[Step, ...],
    graphs: Mapping[str, Graph],
    example: Example,
    notes: tuple[str, ...],
    size: tuple[int, int] | None,
) -> Plan:
    try:
        seen = outputs_after(model, steps, example, graphs)
    except PlanError as error:
        if steps or size is None:
            raise
        raise PlanError(
            "the model is made for one size of images, and no family says what follows it: "
            f"{error.what.partition(': ')[2]}",
            where="image_size",
            expected="a family with resize, or a model that takes images of any size",
            found=f"{error.found}, for {size[0]} by {size[1]}",
            fix="surgery.replace(model, {address: module}) for every layer that depends on it, or "
            "registry= with a family that knows",
        ) from error
    outputs = []
    for mode, graph in graphs.items():
        old = {leaf.path: leaf.spec for leaf in graph.leaves}
        new = {path: leaf.spec for path, leaf in seen[mode].items()}
        for path in {**old, **new}:
            if path not in new or not _allowed(old.get(path), new[path], size):
                raise PlanError(
                    "with other inputs an output has another form",
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


def _allowed(old: Spec | None, new: Spec, size: tuple[int, int] | None) -> bool:
    """Whether an output may become another: pictures may get another size where images do."""
    if old == new or old is None:
        return old is not None
    return size is not None and len(old.shape) == len(new.shape) > 2 and old.dtype == new.dtype

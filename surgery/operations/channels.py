"""The steps that give the first layers of a model another number of input channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.facts import CONFIGURATIONS, members
from surgery.graph.aten import packet
from surgery.graph.entrance import Entrance, per_channel, picks
from surgery.graph.graph import Graph, Node, Ref, Spec
from surgery.graph.skeleton import is_floating
from surgery.operations.normalisation import Recipe
from surgery.operations.plan import Carried, Step
from surgery.operations.values import parameter_like, resized

# What the field calls the number of channels that come in.
_CHANNELS = frozenset(
    {
        *("in_channels", "in_chans", "in_chan", "in_ch", "input_channels", "num_channels"),
        *("num_input_channels", "n_channels", "nchannels", "image_channels", "img_channels"),
        *("num_image_channels", "channels_in", "input_dim", "in_dim"),
    }
)
# What a layer calls how much it sums over, or takes one value each for.
_READS = frozenset({"in_channels", "in_features", "in_dim", "input_size", "input_dim"})
_SIZES = frozenset({"num_features", "num_channels", "num_parameters"})
_MOMENTS = ("mean", "std")
_DEPTH = 3


@dataclass(frozen=True)
class Opening:
    """One first layer, and the recording that it was found in."""

    graph: Graph
    entrance: Entrance

    @property
    def start(self) -> Ref:
        """The input."""
        path = self.entrance.path
        nodes = (n for n in self.graph.nodes if n.role == "input" and n.addresses[0] == path)
        return Ref(next(nodes).index)


def channel_steps(
    model: nn.Module, openings: Sequence[Opening], recipe: Recipe
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps that let first layers take other channels, and remarks.

    Args:
        model: the unwrapped model.
        openings: every first layer behind the inputs that change.
        recipe: how old channels make new ones.

    Raises:
        PlanError: something that depends on the channels cannot follow.
        ArgumentError: a callable made no weight of the right shape.
    """
    steps: dict[tuple[str, ...], Step] = {}
    remarks: list[str] = []
    for opening in openings:
        _check_adaptable(opening, openings, recipe)
        entrance = opening.entrance
        if entrance.weight in steps:
            continue
        old = _tensor(model, entrance.weight)
        lives_on = _carried(old, opening, recipe)
        steps[entrance.weight] = tensor_step(
            model, entrance.weight, old, _new(old, opening, recipe), lives_on
        )
        remarks += lost_hooks(entrance.weight, old)
        if recipe.shifts:
            for step, remark in _shift_steps(model, opening, old, recipe):
                steps.setdefault(step.addresses, step)
                remarks.append(remark)
            remarks += _borders(opening)
        for step in _attribute_steps(model, entrance, recipe.new):
            steps.setdefault(step.addresses, step)
    if recipe.new != recipe.old:
        for opening in openings:
            for step in _moment_steps(model, opening, recipe):
                steps.setdefault(step.addresses, step)
    return tuple(steps.values()), tuple(dict.fromkeys(remarks))


def _check_adaptable(opening: Opening, openings: Sequence[Opening], recipe: Recipe) -> None:
    graph, entrance = opening.graph, opening.entrance
    where = entrance.weight[0]
    resizes = recipe.new != recipe.old
    if entrance.groups > 1 and (resizes or recipe.shifts or recipe.how is None):
        raise PlanError(
            "the first convolution works in groups, each on channels of its own, so what comes "
            "out of it depends on their number",
            where=where,
            expected="one group",
            found=f"{entrance.groups} groups for {entrance.channels} channels",
            fix=f"surgery.replace(model, {{{tree.split(where)[0]!r}: module}}) for it and the next",
        )
    if not entrance.moved_only and recipe.how is None:
        raise PlanError(
            "the weight of the first layer is itself computed (normed, scaled or a sum), so no sum "
            "of what is stored gives the same answers",
            where=where,
            expected="a layer that uses its weight as it is, or how= with a callable",
            found=graph.nodes[graph.nodes[entrance.node].inputs[1].node].operation,
            fix="torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') where that "
            "computes it; otherwise how=lambda weight, channels: weight[:, :channels]",
        )
    single = picks(graph, opening.start, entrance.axis) if resizes else ()
    if single:
        raise PlanError(
            "the model takes the channels of its input one by one before the first layer, by "
            "number",
            where=single[0].module or "forward",
            expected="channels that go through the model together",
            found=f"{len(single)} times {packet(single[0].operation)} on {entrance.path}",
            fix="switch that off in the model, and let the weights take it over: "
            "surgery.adapt_input(model, mean=(old, new), std=(old, new))",
        )
    known = {o.entrance.node for o in openings if o.graph is graph}
    for node in graph.nodes if resizes else ():
        if (
            node.index in known
            or not node.depends_on_input
            or entrance.weight not in node.parameters
        ):
            continue
        raise PlanError(
            "the weight of the first layer is also used further on, where the channels stay",
            where=" = ".join(entrance.weight),
            expected="a weight that only the first layer uses",
            found=f"{node.operation} in {node.module or 'forward'}",
            fix=f"untie it first: surgery.replace(model, {{{tree.split(where)[0]!r}: module}})",
        )


def _tensor(model: nn.Module, addresses: Sequence[str]) -> torch.Tensor:
    found = tree.get(model, addresses[0])
    if isinstance(found, torch.Tensor) and is_floating(found.dtype):
        return found
    raise PlanError(
        "this holds no floating-point numbers that could be added up",
        where=addresses[0],
        expected="a floating-point tensor",
        found=str(getattr(found, "dtype", type(found).__name__)),
        fix="surgery.replace(model, {address: module}) for the first layer",
    )


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's values in double precision, where the device has it."""
    data = tensor.detach()
    if data.is_complex():
        return data
    return data.to(torch.float64 if data.device.type in ("cpu", "cuda", "meta") else torch.float32)


def _by_channel(old: torch.Tensor, opening: Opening) -> torch.Tensor:
    """The weight as (channels, outer, inner, the other axes in their order)."""
    entrance = opening.entrance
    layout = entrance.layout
    lined = old.movedim(entrance.weight_axis, 0)
    channels = entrance.channels // entrance.groups
    part = lined[layout.start : layout.start + layout.length(channels)]
    shape = (layout.outer, channels, layout.inner, *lined.shape[1:])
    return part.reshape(shape).movedim(1, 0)


def _new(old: torch.Tensor, opening: Opening, recipe: Recipe) -> torch.Tensor:
    entrance, layout = opening.entrance, opening.entrance.layout
    channels = _by_channel(exact(old), opening)
    if recipe.how is not None:
        made = _called(channels, recipe)
    else:
        made = torch.stack(
            [
                sum(
                    (channels[c] * factor for c, factor in enumerate(row) if factor),
                    start=torch.zeros_like(channels[0]),
                )
                for row in recipe.scale
            ]
        )
    lined = old.detach().movedim(entrance.weight_axis, 0)
    stop = layout.start + layout.length(recipe.old)
    part = made.movedim(0, 1).flatten(0, 2).to(old.dtype)
    whole = torch.cat([lined[: layout.start], part, lined[stop:]])
    new = resized(old.detach(), entrance.weight_axis, len(whole), entrance.weight[0])
    return new.copy_(whole.movedim(0, entrance.weight_axis))


def _carried(old: torch.Tensor, opening: Opening, recipe: Recipe) -> Carried | None:
    """Which channels new ones come from; nobody knows where a callable made them."""
    if recipe.how is not None:
        return None
    layout, axis = opening.entrance.layout, opening.entrance.weight_axis
    stop = layout.start + layout.length(recipe.old)
    ahead, behind = range(layout.start), range(stop, old.shape[axis])
    rows = [[c for c, factor in enumerate(row) if factor] for row in recipe.scale]
    factors = [tuple(factor for factor in row if factor) for row in recipe.scale]
    places = [
        (o, j, i)
        for o in range(layout.outer)
        for j in range(recipe.new)
        for i in range(layout.inner)
    ]
    part = [
        tuple(layout.start + (o * recipe.old + c) * layout.inner + i for c in rows[j])
        for o, j, i in places
    ]
    return Carried(
        axis,
        (*((e,) for e in ahead), *part, *((e,) for e in behind)),
        (*((1.0,) for _ in ahead), *(factors[j] for _, j, _ in places), *((1.0,) for _ in behind)),
    )


def _in_place(tensor: torch.Tensor) -> Carried:
    """Every entry stays the one it was, with other values."""
    return Carried(0, tuple((entry,) for entry in range(len(tensor))), None)


def _called(channels: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """What a callable makes of a weight: (out, channels, ...) in, the same with others out."""
    how = recipe.how
    flat = channels.flatten(1, 2)
    shown = flat.movedim(2, 0) if flat.dim() > 2 else flat
    single = flat.shape[1] == 1 and shown.dim() > 2
    shown = shown.squeeze(2) if single else shown
    expected = (shown.shape[0], recipe.new, *shown.shape[2:])
    found: Any
    try:
        found = how(shown.clone(), recipe.new) if how is not None else None
    except Exception as error:
        raise _bad_how(f"how raised {type(error).__name__}: {error}", expected, shown) from error
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != expected:
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise _bad_how(f"how returned {what}", expected, shown)
    if not found.is_meta and bool(found.isnan().any()):
        raise _bad_how("how left values unset (nan)", expected, shown)
    made: torch.Tensor = found.detach().to(channels)
    made = made.unsqueeze(2) if single else made
    made = made.movedim(0, 2) if flat.dim() > 2 else made
    return made.reshape(recipe.new, *channels.shape[1:])


def _bad_how(what: str, expected: tuple[int, ...], given: torch.Tensor) -> ArgumentError:
    return ArgumentError(
        what,
        where="how",
        expected=f"a callable that returns a tensor of shape {expected}",
        found=f"it was given one of shape {tuple(given.shape)}, and {expected[1]}",
        fix="how=lambda weight, channels: weight[:, :1].repeat(1, channels, 1, 1)",
    )


def tensor_step(
    model: nn.Module,
    addresses: tuple[str, ...],
    old: torch.Tensor,
    new: torch.Tensor,
    carried: Carried | None = None,
) -> Step:
    """The step that puts a tensor in the place of another, as what that one was."""
    before, after = (str(Spec(tuple(t.shape), t.dtype)) for t in (old, new))
    if before == after:
        before, after = f"{before} as it is", f"{after} with other values"
    installed = parameter_like(old, new, None)
    owner, name = tree.split(addresses[0])
    holder = tree.get_module(model, owner)
    if isinstance(old, nn.Parameter) or holder._parameters.get(name) is not None:
        return Step("parameter", addresses, before, after, installed, carried=carried)
    if name in holder._buffers:
        return Step("buffer", addresses, before, after, installed, carried=carried)
    return Step("attribute", addresses, before, after, installed, owner)


def lost_hooks(addresses: Sequence[str], old: torch.Tensor) -> Iterator[str]:
    """A remark, where something hangs on a tensor that is replaced."""
    if old._backward_hooks or getattr(old, "_post_accumulate_grad_hooks", None):
        yield f"the hooks on the gradient of {addresses[0]} stay with the old tensor"


def _shift_steps(
    model: nn.Module, opening: Opening, old: torch.Tensor, recipe: Recipe
) -> Iterator[tuple[Step, str]]:
    """What makes up for other means: a bias, or the running mean of the norm that follows."""
    channels = _by_channel(exact(old), opening)
    others = opening.entrance
    summed = channels.flatten(1, 2).sum(1)
    summed = summed.flatten(2).sum(2) if summed.dim() > 2 else summed
    shift = sum(
        (summed[c] * factor for c, factor in enumerate(recipe.shift)),
        start=torch.zeros_like(summed[0]),
    )
    bias = _bias(opening)
    if bias is not None:
        held = _tensor(model, bias)
        new = (exact(held) + shift.reshape(held.shape)).to(held.dtype)
        made = resized(held.detach(), 0, len(held)).copy_(new)
        step = tensor_step(model, bias, held, made, _in_place(held))
        yield step, f"{bias[0]} makes up for the other means"
        return
    running = _running_mean(opening)
    if running is not None:
        held = _tensor(model, running)
        new = (exact(held) - shift.reshape(held.shape)).to(held.dtype)
        step = tensor_step(model, running, held, resized(held.detach(), 0, len(held)).copy_(new))
        yield step, f"{running[0]} makes up for the other means"
        return
    owner = tree.split(others.weight[0])[0]
    layer = tree.get_module(model, owner)
    if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) or layer.bias is not None:
        raise PlanError(
            "the first layer has no bias that could make up for the other means",
            where=others.weight[0],
            expected="a convolution or linear layer of torch, or a batch norm behind it",
            found=type(layer).__name__,
            fix=f"surgery.replace(model, {{{owner!r}: module}}) with a layer that has one",
        )
    yield _new_bias(owner, old, shift.to(old.dtype))


def _new_bias(address: str, old: torch.Tensor, shift: torch.Tensor) -> tuple[Step, str]:
    """A bias for a layer that has none; no tensor is replaced, so it is set like an attribute."""
    bias = nn.Parameter(shift.to(old.device), requires_grad=old.requires_grad)
    where = tree.join(address, "bias")
    after = str(Spec(tuple(bias.shape), bias.dtype))
    step = Step("attribute", (where,), "no bias", after, bias, address)
    return step, f"{where} is new, in state_dict too: it makes up for the other means"


def _bias(opening: Opening) -> tuple[str, ...] | None:
    """The bias of a first layer, as its own operation or the addition behind it takes it."""
    graph, node = opening.graph, opening.graph.nodes[opening.entrance.node]
    name = packet(node.operation)
    given: Any = None
    if "convolution" in name:
        given = node.arguments[2]
    elif name in ("addmm", "baddbmm", "_addmm_activation"):
        given = node.arguments[0]
    elif name == "linear":
        given = node.arguments[2] if len(node.arguments) > 2 else None
    source = graph.nodes[given.node] if isinstance(given, Ref) else None
    return source.addresses if source is not None and source.role == "parameter" else None


def _running_mean(opening: Opening) -> tuple[str, ...] | None:
    graph = opening.graph
    users = [graph.nodes[index] for index in graph.users[opening.entrance.node]]
    if len(users) != 1 or "batch_norm" not in users[0].operation or graph.training:
        return None
    given = users[0].arguments[3] if len(users[0].arguments) > 3 else None
    source = graph.nodes[given.node] if isinstance(given, Ref) else None
    return source.addresses if source is not None and source.role == "buffer" else None


def _borders(opening: Opening) -> Iterator[str]:
    if opening.entrance.padded:
        yield (
            f"{opening.entrance.weight[0]} reads zeros around its input, which stand for other "
            "values by the new means: along the borders, as far as the zeros are seen, the answers "
            "differ a little; everywhere else they are the same"
        )


def _attribute_steps(model: nn.Module, entrance: Entrance, new: int) -> Iterator[Step]:
    """Attributes and configurations that say how many channels come in."""
    layout, old = entrance.layout, entrance.channels
    for address in entrance.weight:
        owner = tree.split(address)[0].partition("parametrizations")[0].rstrip(".")
        module = tree.get_module(model, owner)
        weight = tree.get(model, address)
        length = weight.shape[entrance.weight_axis] if isinstance(weight, torch.Tensor) else 0
        after = length + layout.length(new) - layout.length(old)
        for name, value in module.__dict__.items():
            if name in _READS and type(value) is int and value == length and new != old:
                yield attribute_step(owner, name, value, after)
        while owner:
            owner = tree.split(owner)[0]
            module = tree.get_module(model, owner)
            for path, value in _said(module.__dict__, old):
                if new != old:
                    yield attribute_step(owner, path, value, new)


def _said(held: Mapping[str, Any], old: int, depth: int = _DEPTH) -> Iterator[tuple[str, int]]:
    """Where a module's attributes, or its configurations, give the number of channels."""
    for name, value in list(held.items()):
        if name in _CHANNELS and type(value) is int and value == old:
            yield name, value
        known = name.strip("_").lower().rpartition("_")[2] in CONFIGURATIONS
        if depth == _DEPTH and not known:
            continue
        plain = isinstance(value, int | float | str | type(None) | torch.Tensor | nn.Module | list)
        if depth and not plain and "." not in name:
            inner = _said(members(value), old, depth - 1)
            yield from ((f"{name}.{path}", each) for path, each in inner)


def attribute_step(owner: str, path: str, before: Any, after: Any) -> Step:
    """The step that gives an attribute another value."""
    return Step("attribute", (tree.join(owner, path),), repr(before), repr(after), after, owner)


def _moment_steps(model: nn.Module, opening: Opening, recipe: Recipe) -> Iterator[Step]:
    """Means, deviations and norms with one entry a channel, in front of the first layer."""
    entrance = opening.entrance
    nameless = False
    for source, axis in per_channel(opening.graph, opening.start, entrance.axis):
        if not source.addresses:
            nameless = True
            continue
        yield _cycled_step(model, source, axis, recipe)
        owner = tree.split(source.addresses[0])[0]
        for name, value in tree.get_module(model, owner).__dict__.items():
            if name in _SIZES and type(value) is int and value == recipe.old:
                yield attribute_step(owner, name, value, recipe.new)
    if nameless:
        yield from _listed_steps(model, recipe)


def _cycled_step(model: nn.Module, source: Node, axis: int, recipe: Recipe) -> Step:
    old = tree.get(model, source.addresses[0])
    if not isinstance(old, torch.Tensor):
        raise _own_values(source.addresses[0], recipe)
    data = old.detach()
    alike = data.is_meta or bool((data == data.narrow(axis, 0, 1)).all())
    if recipe.new < recipe.old and not alike:
        raise _own_values(source.addresses[0], recipe)
    places = torch.arange(recipe.new, device=data.device) % recipe.old
    lives_on = Carried(axis, tuple((place % recipe.old,) for place in range(recipe.new)))
    return tensor_step(model, source.addresses, old, data.index_select(axis, places), lives_on)


def _listed_steps(model: nn.Module, recipe: Recipe) -> Iterator[Step]:
    """Lists of means and deviations, one number a channel, that forward makes tensors of."""
    for module, addresses in tree.index(model).modules.values():
        for name, value in module.__dict__.items():
            if not name.endswith(_MOMENTS) or not isinstance(value, list | tuple):
                continue
            if len(value) != recipe.old or not all(isinstance(v, int | float) for v in value):
                continue
            if recipe.new < recipe.old and len(set(value)) > 1:
                raise _own_values(tree.join(addresses[0], name), recipe)
            cycled = type(value)(value[j % recipe.old] for j in range(recipe.new))
            yield attribute_step(addresses[0], name, value, cycled)


def _own_values(where: str, recipe: Recipe) -> PlanError:
    return PlanError(
        f"the model itself normalises {recipe.old} channels, each by values of its own, and "
        f"nothing says which of them {recipe.new} have",
        where=where,
        expected="the same value for every channel",
        found="different values",
        fix="give every channel one value there, and let the weights make up for it first: "
        "surgery.adapt_input(model, mean=(old, [m, m, m]), std=(old, [s, s, s]))",
    )

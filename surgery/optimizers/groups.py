"""Groups of parameters for an optimizer: layer by layer, with and without weight decay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError
from surgery.families.registry import Registry
from surgery.operations.selection import select
from surgery.optimizers.stages import Layers, Stage, stages_of
from surgery.patterns import Patterns
from surgery.shown import Shown


class Groups(Shown, list[dict[str, Any]]):
    """Groups as optimizers take them: a list of dicts, with notes. Prints as a table.

    Args:
        groups: the groups.
        notes: what a person should know.
    """

    def __init__(self, groups: Iterable[dict[str, Any]] = (), notes: tuple[str, ...] = ()) -> None:
        super().__init__(groups)
        self.notes = notes


def parameter_groups(
    model: nn.Module,
    *,
    lr: float | None = None,
    layer_decay: float | None = None,
    weight_decay: float | None = None,
    no_weight_decay: Patterns = (),
    decay_vectors: bool = False,
    frozen: bool = False,
    layers: Layers = None,
    example: Any = None,
    registry: Registry | None = None,
) -> Groups:
    """The parameters of a model as groups for any optimizer of torch, each exactly once.

    With ``layer_decay`` the learning rate becomes smaller from the head down: the last stage has
    ``lr``, each one before it ``layer_decay`` times that of the next, as in BEiT (Bao et al.,
    https://arxiv.org/abs/2106.08254). The stages are the family's; without a family they are
    found by depth in the recorded graph.

    Biases and other vectors go without weight decay, as is usual, and so does what the model
    itself lists as ``no_weight_decay``, a method in most.

    Args:
        model: any module, wrapped or not; it stays as it is.
        lr: the learning rate of the last stage; left out, the optimizer's own.
        layer_decay: above 0 to 1; left out, every stage learns at the same rate. Needs ``lr``.
        weight_decay: of the parameters that have any; left out, the optimizer's own.
        no_weight_decay: what goes without as well: addresses or patterns, as in ``freeze``.
        decay_vectors: let biases and vectors have weight decay too.
        frozen: take in parameters with ``requires_grad`` off, so that what is unfrozen later is in
            its group already; an optimizer passes over them until they have a gradient.
        layers: divide the depth of the graph into this many stages, whatever the family says; or
            ``"blocks"``: each block that the family knows is a stage.
        example: for recording: the arguments of one forward pass, if they are needed.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The groups, the first stages first. Each holds ``params``, ``param_names`` (the addresses,
        which a state dict keeps), ``weight_decay`` and ``lr`` where they are known, and with
        ``layer_decay`` also ``stage`` and ``scale``, the factor of the learning rate.

    Raises:
        ArgumentError: a number that is none, ``layer_decay`` without ``lr``, or a pattern that
            fits nothing.
        RecordError: ``layer_decay`` needs the graph, and the model cannot be recorded.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> groups = surgery.parameter_groups(model, lr=0.1, layer_decay=0.5, weight_decay=0.01)
        >>> for group in groups:
        ...     print(group["param_names"], group["lr"], group["weight_decay"])
        ['0.bias'] 0.05 0.0
        ['0.weight'] 0.05 0.01
        ['2.bias'] 0.1 0.0
        ['2.weight'] 0.1 0.01
        >>> optimizer = torch.optim.AdamW(groups)
    """
    tree.check_model(model)
    _check(lr, layer_decay, weight_decay)
    entries = [
        entry
        for entry in tree.index(model).of_kind("parameter")
        if frozen or entry.tensor.requires_grad
    ]
    without = _without_decay(model, entries, no_weight_decay, decay_vectors, registry)
    stages: tuple[Stage, ...] = (Stage("", tuple(e.address for e in entries), ()),)
    notes: tuple[str, ...] = ()
    if layer_decay is not None:
        stages, notes = stages_of(model, layers=layers, example=example, registry=registry)
    tensors = {entry.address: entry.tensor for entry in entries}
    groups = []
    for number, stage in enumerate(stages):
        scale = 1.0 if layer_decay is None else layer_decay ** (len(stages) - 1 - number)
        for decays in (False, True):
            inside = [a for a in stage.parameters if a in tensors and (a not in without) is decays]
            if inside:
                group: dict[str, Any] = {
                    "params": [tensors[address] for address in inside],
                    "param_names": inside,
                }
                if lr is not None:
                    group["lr"] = lr * scale
                if not decays or weight_decay is not None:
                    group["weight_decay"] = weight_decay if decays else 0.0
                if layer_decay is not None:
                    group |= {"stage": stage.name, "scale": scale}
                groups.append(group)
    if not groups and not frozen and any(True for _ in model.parameters()):
        notes = (*notes, "every parameter is frozen: frozen=True takes them in")
    return Groups(groups, notes)


def _without_decay(
    model: nn.Module,
    entries: list[tree.Entry],
    patterns: Patterns,
    decay_vectors: bool,
    registry: Registry | None,
) -> set[str]:
    """The first addresses of parameters that go without weight decay."""
    chosen = select(model, patterns, "no_weight_decay", registry=registry)
    own = _listed_by(tree.unwrap(model))
    return {
        entry.address
        for entry in entries
        if not chosen.isdisjoint(entry.addresses)
        or (not decay_vectors and _is_vector(entry.tensor, entry.address))
        or any(fnmatch(address, each) for address in entry.addresses for each in own)
    }


def _listed_by(model: nn.Module) -> list[str]:
    """What the model itself says goes without weight decay, by a method or as it stands."""
    listing = getattr(model, "no_weight_decay", ())
    try:
        names = listing() if callable(listing) else listing
        return [names] if isinstance(names, str) else [str(each) for each in names or ()]
    except Exception as error:  # the model's own code: anything can come out
        raise ArgumentError(
            "the model does not say what goes without weight decay",
            where=f"{type(model).__name__}.no_weight_decay",
            expected="names of parameters, or a method without arguments that returns them",
            found=f"{type(error).__name__}: {error}",
            fix="model.no_weight_decay = lambda: {'pos_embed'}",
        ) from error


def _is_vector(tensor: torch.Tensor, address: str) -> bool:
    return tensor.dim() <= 1 or tree.split(address)[1] == "bias"


def _check(lr: object, layer_decay: object, weight_decay: object) -> None:
    for name, value in (("lr", lr), ("layer_decay", layer_decay), ("weight_decay", weight_decay)):
        if value is not None and not _fits(name, value):
            raise ArgumentError(
                f"this is no {name}",
                where=name,
                expected="a number above 0, at most 1"
                if name == "layer_decay"
                else "a number, not below 0",
                found=repr(value),
                fix="surgery.parameter_groups(model, lr=1e-3, layer_decay=0.75)",
            )
    if layer_decay is not None and lr is None:
        raise ArgumentError(
            "the learning rates of stages are parts of one that is not known",
            where="layer_decay without lr",
            expected="lr=, the learning rate of the last stage",
            found="lr=None",
            fix=f"surgery.parameter_groups(model, lr=1e-3, layer_decay={layer_decay})",
        )


def _fits(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return 0 < value <= 1 if name == "layer_decay" else value >= 0

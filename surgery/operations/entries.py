"""The steps that give tensors with one entry a class another number of entries, with values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.families.kinds import HeadKind
from surgery.families.registry import Registry, in_force
from surgery.graph.graph import Spec
from surgery.graph.skeleton import is_floating
from surgery.heads import Head
from surgery.operations.follow import PerClass
from surgery.operations.keep import Rows, carry_rows
from surgery.operations.kept import carried, check_groups, check_kept
from surgery.operations.plan import Carried, Step
from surgery.operations.rebuild import head_kinds
from surgery.operations.starts import starts_of
from surgery.operations.values import (
    Init,
    Start,
    carry_on,
    check_same_device,
    fill_bias,
    fill_vector,
    fill_weight,
    is_constant,
    is_mask,
    parameter_like,
    resized,
)

_ORDER = {"weight": 0, "bias": 1, "magnitude": 2, "vector": 3, "behind": 4}


@dataclass(frozen=True)
class Options:
    """How new heads are made.

    Attributes:
        hidden: sizes of the layers before the last.
        dropout: probability of dropout before every layer of the head.
        init: first values of the last layer.
        generator: where random numbers come from.
        trainable: ``requires_grad`` of new parameters; None keeps that of the old ones.
        kinds: for heads whose class a plugin rebuilds, how, by address.
        starts: for heads that an architecture draws in its own way, how, by address.
    """

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    init: Init = "default"
    generator: torch.Generator | None = None
    trainable: bool | None = True
    kinds: Mapping[str, HeadKind] = field(default_factory=dict)
    starts: Mapping[str, Start] = field(default_factory=dict)

    @property
    def deeper(self) -> bool:
        """Whether the head becomes more than one layer."""
        return bool(self.hidden) or self.dropout > 0

    def is_deeper(self, head: Head) -> bool:
        """Whether this head becomes more than one layer; what follows another one does not."""
        return self.deeper and not head.follows

    def known_to(
        self, model: nn.Module, heads: Iterable[Head], registry: Registry | None
    ) -> Options:
        """These options with what plugins say of the heads of a model."""
        known = in_force(registry)
        listed = list(heads)
        return replace(
            self,
            kinds=head_kinds(model, listed, known),
            starts=starts_of(model, listed, known, self.generator),
        )

    def start(self, head: Head) -> Start:
        """How the first values of a head are made."""
        known = self.starts.get(head.address, Start())
        if self.init == "default":
            return known
        # A callable fills the weight; zeros are meant for both.
        return Start(self.init, known.bias if callable(self.init) else None)


@dataclass
class _Filling:
    """What is known while the tensors of one head get their values, one after the other."""

    model: nn.Module
    head: Head
    items: Sequence[PerClass]
    options: Options
    fan_in: int
    weight: torch.Tensor | None = None
    axis: int = 0
    remarks: list[str] = field(default_factory=list)

    def parts(self, part: str) -> list[PerClass]:
        return [item for item in self.items if item.part == part]


def tensor_steps(
    model: nn.Module,
    head: Head,
    items: Sequence[PerClass],
    size: int,
    options: Options,
    *,
    real: bool,
    rows: Rows | None = None,
) -> tuple[list[Step], list[str]]:
    """The steps that resize every per-class tensor of one head.

    Args:
        model: the model.
        head: the head.
        items: the tensors that follow its number of classes.
        size: the new number of classes.
        options: how the new values are made.
        real: make values; else tensors on meta, to try the shapes out.
        rows: the old classes that new ones keep the entries of, by index.

    Returns:
        The steps, and remarks on values that had to be made up.

    Raises:
        PlanError: a tensor cannot be resized, or nothing says what new classes hold.
        ArgumentError: ``init`` or ``generator`` does not fit.
    """
    filling = _Filling(model, head, items, options, head.in_features)
    if rows and real:
        check_kept(model, head, items, rows)
    steps = []
    for item in sorted(items, key=lambda item: _ORDER[item.part]):
        old = tree.get(model, item.addresses[0])
        if not isinstance(old, torch.Tensor):
            continue
        _check_drawable(item, old, head)
        source = old.detach() if real else old.detach().to("meta")
        new = resized(source, item.axis, item.length(size), item.addresses[0])
        lives_on = None
        if real:
            check_same_device(options.generator, new.device)
            _fill(filling, item, old, new)
            if rows:
                check_groups(item, head.num_classes, size, rows)
                carry_rows(old, new, item.axis, rows, item.packing)
                lives_on = carried(item, head.num_classes, size, rows)
            filling.remarks += _lost_hooks(item, old)
        steps.append(_step(item, old, new, options.trainable, lives_on))
    return steps, filling.remarks


def _check_drawable(item: PerClass, old: torch.Tensor, head: Head) -> None:
    if is_floating(old.dtype) or item.part != "weight" or is_mask(old):
        return
    raise PlanError(
        "this head holds whole numbers (a quantised weight), which cannot be drawn anew",
        where=item.addresses[0],
        expected="a floating-point weight",
        found=str(old.dtype),
        fix=f"make it a floating-point layer first: surgery.replace(model, {{{head.address!r}: "
        f"torch.nn.Linear({head.in_features}, {head.num_classes})}})",
    )


def _lost_hooks(item: PerClass, old: torch.Tensor) -> Iterator[str]:
    """Hooks on a gradient are about the old entries."""
    if old._backward_hooks or getattr(old, "_post_accumulate_grad_hooks", None):
        yield f"the hooks on the gradient of {item.addresses[0]} stay with the old tensor"


def _step(
    item: PerClass,
    old: torch.Tensor,
    new: torch.Tensor,
    trainable: bool | None,
    lives_on: Carried | None,
) -> Step:
    before = str(Spec(tuple(old.shape), old.dtype))
    after = str(Spec(tuple(new.shape), new.dtype))
    installed = parameter_like(old, new, trainable)
    if item.role == "parameter":
        return Step("parameter", item.addresses, before, after, installed, carried=lives_on)
    if item.role == "buffer":
        return Step("buffer", item.addresses, before, after, installed, carried=lives_on)
    owner = tree.split(item.addresses[0])[0]
    return Step("attribute", item.addresses, before, after, installed, owner)


def _fill(filling: _Filling, item: PerClass, old: torch.Tensor, new: torch.Tensor) -> None:
    """Give a new tensor its values."""
    start, generator = filling.options.start(filling.head), filling.options.generator
    given = item.role == "parameter"
    if item.part == "weight" and (given or _is_own_weight(filling, item, old)):
        _fill_weight(filling, item, old, new)
        if not given:
            filling.remarks.append(
                f"{item.addresses[0]} is no parameter: it is drawn anew, and training leaves it so"
            )
    elif item.part == "bias" and given:
        fill_bias(new, filling.fan_in, start, generator)
    elif item.part == "vector" and is_floating(old.dtype):
        fill_vector(new, generator)
        _settle_vector(filling, item, new)
    elif item.part in ("weight", "magnitude") and not given and is_mask(old):
        new.fill_(1)
    elif item.part == "magnitude" and filling.weight is not None and _one_a_class(item, new):
        _norms(filling.weight, filling.axis, new, zeros=start.init == "zeros")
    else:
        remark = carry_on(old, new, item.axis, item.addresses[0])
        if remark:
            filling.remarks.append(f"{item.addresses[0]} holds {remark}")


def _is_own_weight(filling: _Filling, item: PerClass, old: torch.Tensor) -> bool:
    """Whether a buffer or plain tensor is the head's weight itself, and no part of one."""
    return is_floating(old.dtype) and any(item.addresses == w for w in filling.head.weights)


def _one_a_class(item: PerClass, tensor: torch.Tensor) -> bool:
    return tensor.numel() == tensor.shape[item.axis]


def _fill_weight(filling: _Filling, item: PerClass, old: torch.Tensor, new: torch.Tensor) -> None:
    if len([i for i in filling.parts("weight") if i.role == "parameter"]) > 1 and is_constant(old):
        # One of several parts of a weight, and neutral: a low-rank update that starts from zero.
        carry_on(old, new, item.axis, item.addresses[0])
        return
    start = filling.options.start(filling.head)
    if start.init == "zeros" and filling.parts("vector"):
        raise ArgumentError(
            "this weight is divided by an estimate of its norm, and zeros have none",
            where=f"init, {item.addresses[0]}",
            expected="'default' or a callable",
            found="'zeros'",
            fix=f"surgery.replace_head(model, {new.shape[item.axis]})",
        )
    if start.init == "zeros" and filling.parts("magnitude"):
        # Given as direction and magnitude, a weight is zero by its magnitude.
        start = Start()
    kind, generator = filling.head.kind, filling.options.generator
    filling.fan_in = fill_weight(new, item.axis, kind, start, generator)
    filling.weight, filling.axis = new, item.axis


def _norms(weight: torch.Tensor, axis: int, new: torch.Tensor, *, zeros: bool) -> None:
    """The norm of each row, so that a weight given as direction and magnitude starts as drawn."""
    if new.is_meta:
        return
    with torch.no_grad():
        if zeros:
            new.zero_()
            return
        others = [dim for dim in range(weight.dim()) if dim != axis]
        norms = torch.linalg.vector_norm(weight.detach(), dim=others)
        new.copy_(norms.reshape(new.shape) if norms.numel() == new.numel() else new.fill_(1))


def _settle_vector(filling: _Filling, item: PerClass, new: torch.Tensor) -> None:
    """One step of power iteration from the vector on the other side, where there is one.

    The estimate of the norm is then of the right size before the first step of training.
    """
    if filling.weight is None or new.is_meta:
        return
    owner = tree.get_module(filling.model, tree.split(item.addresses[0])[0])
    rows = filling.weight.detach().movedim(filling.axis, 0).flatten(1)
    others = [
        buffer
        for buffer in owner._buffers.values()
        if buffer is not None and buffer.shape == (math.prod(rows.shape[1:]),)
    ]
    if len(others) != 1 or others[0] is tree.get(filling.model, item.addresses[0]):
        return
    with torch.no_grad():
        product = rows @ others[0].to(rows.dtype)
        if bool(product.norm() > 0):
            new.copy_(product / product.norm())

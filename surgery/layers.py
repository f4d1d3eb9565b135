"""The layer table of torchinfo, with the example filled in and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from surgery import tree
from surgery.errors import ArgumentError
from surgery.graph.record import record_graph
from surgery.graph.skeleton import Skeleton
from surgery.graph.structure import tensors
from surgery.parameters import audit

if TYPE_CHECKING:
    from torchinfo import ModelStatistics
    from torchinfo.layer_info import LayerInfo

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def summary(
    model: nn.Module,
    example: Any = None,
    *,
    depth: int = 3,
    columns: Sequence[str] = ("output_size", "num_params"),
) -> ModelStatistics:
    """Show a model layer by layer, as ``torchinfo.summary`` does, without touching it.

    The forward pass in eval mode runs over a copy of the structure, on the ``meta`` device where
    that is possible: train flags, buffers, hooks and random numbers stay as they are, and the
    model need not be materialised. The totals are those of ``surgery.audit``: torchinfo counts
    tied weights twice.

    Args:
        model: any module; wrappers are passed through.
        example: a tensor, a tuple of arguments, a dict of keyword arguments or an ``Example``;
            left out, the family supplies it or it is inferred.
        depth: levels of nested layers to show, 0 or more.
        columns: what to show of each layer: ``input_size``, ``output_size``, ``num_params``,
            ``params_percent``, ``kernel_size``, ``mult_adds``, ``trainable``.

    Returns:
        torchinfo's statistics, which print as the table. They hold no weight of the model.

    Raises:
        UnsupportedModelError: the model is no module, lazy, scripted or exported.
        ExampleError: no example could be inferred, or forward does not take it.
        RecordError: forward raised.
        ArgumentError: an unknown column, or a depth that is no depth.

    Example:
        >>> import torch, surgery
        >>> table = surgery.summary(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()))
        >>> print(str(table).splitlines()[4].split())
        ['├─Linear:', '1-1', '[2,', '3]', '15']
    """
    from surgery.recording import resolve_example

    tree.check_model(model)
    _check(depth, columns)
    # The table is about forward itself.
    resolved = replace(resolve_example(model, example), forward=None)
    tables: list[ModelStatistics] = []

    def watch(skeleton: Skeleton) -> None:
        _watch(skeleton.model, tables, depth, columns)

    record_graph(model, resolved, train=False, edit=watch, operations=False)
    return _settle(tables[-1], model)


def _check(depth: int, columns: Sequence[str]) -> None:
    from torchinfo.enums import ColumnSettings

    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise ArgumentError(
            "a depth is a number of levels below the root",
            where="depth",
            expected="an integer, 0 or more",
            found=repr(depth),
            fix="surgery.summary(model, depth=3)",
        )
    known = [column.value for column in ColumnSettings if column.value != "layer_name"]
    unknown = [columns] if isinstance(columns, str) else [c for c in columns if c not in known]
    if unknown:
        raise ArgumentError(
            "the table has no such column",
            where="columns",
            expected=f"several of {', '.join(known)}",
            found=", ".join(map(repr, unknown)),
            fix="surgery.summary(model, columns=('output_size', 'num_params'))",
        )


def _watch(
    skeleton: nn.Module, tables: list[ModelStatistics], depth: int, columns: Sequence[str]
) -> None:
    """Let torchinfo run a skeleton in place of its forward, when it is called.

    So torchinfo runs inside the recorder's modes and on its twin of the example. Of the arguments
    it gets the tensors alone, for it cannot measure anything else, and forward gets them all. The
    root's hooks run around this and not again inside.
    """
    state = skeleton.__dict__
    own_forward = skeleton.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        outputs: list[Any] = []

        def inner(*_: Any) -> Any:
            outputs.append(own_forward(*args, **kwargs))
            return outputs[-1]

        hooks = {name: state[name] for name in _HOOKS}
        state.update({name: type(held)() for name, held in hooks.items()}, forward=inner)
        for module in skeleton.modules():
            _measure_any_structure(module)
        try:
            found = [tensor for _, tensor in tensors((args, kwargs))]
            tables.append(_render(skeleton, found, depth, columns))
        finally:
            state.update(hooks, forward=own_forward)
        return outputs[-1]

    state["forward"] = forward


def _measure_any_structure(module: nn.Module) -> None:
    """Show hooks registered from now on the tensors of structures that torchinfo refuses.

    It knows tensors, lists, tuples and dicts, and raises on a dataclass.
    """
    register = module.register_forward_hook

    def register_forward_hook(hook: Callable[..., Any]) -> RemovableHandle:
        return register(
            lambda module, given, made: hook(module, _measurable(given), _measurable(made))
        )

    module.__dict__["register_forward_hook"] = register_forward_hook


def _measurable(value: Any) -> Any:
    if value is None or isinstance(value, torch.Tensor | list | tuple | dict):
        return value
    return [tensor for _, tensor in tensors(value)]


def _render(
    skeleton: nn.Module, found: list[torch.Tensor], depth: int, columns: Sequence[str]
) -> ModelStatistics:
    import torchinfo
    from torchinfo import torchinfo as engine

    remembered = dict(engine._cached_forward_pass)
    try:
        return torchinfo.summary(
            skeleton, input_data=found, depth=depth, col_names=tuple(columns), verbose=0
        )
    except RuntimeError as error:
        # torchinfo wraps what forward raised, and the recorder has to see that.
        cause = error.__cause__
        if cause is None:
            raise
        raise cause from cause.__cause__
    finally:
        # It keeps the last model of every class alive, asked or not.
        engine._cached_forward_pass.clear()
        engine._cached_forward_pass.update(remembered)


def _settle(table: ModelStatistics, model: nn.Module) -> ModelStatistics:
    """Put the right totals in, and let go of the skeleton."""
    counted = audit(model)
    table.total_params = counted.total
    table.trainable_params = counted.trainable
    table.total_param_bytes = sum(c.bytes for c in counted.cells if c.kind == "parameter")
    for layer in table.summary_list:
        above: LayerInfo | None = layer
        while above is not None:
            above.module = nn.Identity()
            above = above.parent_info
    return table

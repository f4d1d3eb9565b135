"""What a layer puts out for an image: its feature maps. The model itself is never run."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, RecordError
from surgery.graph.example import Example
from surgery.graph.execute import RealExecution
from surgery.graph.kept import kept
from surgery.graph.quiet import quiet
from surgery.graph.skeleton import build_skeleton, is_floating
from surgery.graph.structure import replace_tensors, tensors

# Tokens that stand before those of the image: of the class, of a teacher, registers.
_EXTRA_TOKENS = 6


def feature_maps(
    model: nn.Module, layer: str, example: Example, output: str | None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The maps that a layer puts out, in eval mode.

    A copy of the model that shares its weights runs, so that modes, buffers, hooks and
    gradients of the model stay as they are whatever happens.

    Args:
        model: any module with values.
        layer: the address of a module.
        example: the input.
        output: which tensor, where the layer puts out several: ``"output[0]"``.

    Returns:
        Maps of shape (channels, height, width), and what should be known of them.

    Raises:
        AddressError: there is no such module.
        ArgumentError: it does not run, or puts out nothing that could be drawn.
        RecordError: forward raised.
    """
    seen = _outputs(model, layer, example)
    if not seen:
        raise ArgumentError(
            "this layer does not run in the forward pass",
            where=layer,
            expected="a layer that is called in eval mode",
            found="a module that is never called (a list, or one whose weights others use)",
            fix="print(surgery.record(model).listing) shows what runs",
        )
    notes: tuple[str, ...] = ()
    if len(seen) > 1:
        notes = (f"it ran {len(seen)} times: the first is drawn",)
    found = {path: tensor for path, tensor in seen[0] if is_floating(tensor.dtype)}
    if output is None:
        output = next(iter(found), "output")
        if len(found) > 1:
            notes += (f"it puts out {', '.join(found)}: {output} is drawn",)
    if output not in found:
        raise ArgumentError(
            "the layer puts out no such tensor",
            where=f"{layer}, {output}",
            expected=", ".join(found) or "a tensor of floating-point numbers",
            found=output,
            fix=f"output={next(iter(found))!r}" if found else "choose another layer",
        )
    maps, said = _as_maps(found[output])
    return maps, notes + said


def _outputs(
    model: nn.Module, layer: str, example: Example
) -> list[list[tuple[str, torch.Tensor]]]:
    tree.check_model(model)
    tree.get_module(model, layer)
    for entry in tree.index(model).of_kind("parameter"):
        if entry.tensor.is_meta:
            raise ArgumentError(
                "the model has no values to run with",
                where=entry.address,
                expected="parameters on a real device",
                found="meta",
                fix="surgery.load_weights(model, 'model.safetensors')",
            )
    seen: list[list[tuple[str, torch.Tensor]]] = []

    def keep(_: nn.Module, __: Any, result: Any) -> None:
        seen.append([(path, tensor.detach().cpu().clone()) for path, tensor in tensors(result)])

    with quiet():
        skeleton = build_skeleton(model, "real")
        skeleton.model.eval()
        tree.get_module(skeleton.model, layer).register_forward_hook(keep)
        execution = RealExecution(skeleton.stand_ins, None)
        try:
            with kept(skeleton.originals), contextlib.closing(execution), execution:
                _on_device(example, model).call(skeleton.model)
        except Exception as error:  # a user's forward: anything can come out
            raise RecordError(
                f"forward raised {type(error).__name__}: {error}",
                where=layer,
                expected="a forward pass that runs on the image",
                found=", ".join(str(tuple(t.shape)) for _, t in tensors((example.args,))),
                fix="example=torch.zeros(1, 3, 224, 224), of the size that the model takes",
            ) from error
    return seen


def _on_device(example: Example, model: nn.Module) -> Example:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return Example(
        tuple(replace_tensors(value, lambda t: t.to(device)) for value in example.args),
        {k: replace_tensors(v, lambda t: t.to(device)) for k, v in example.kwargs.items()},
        forward=example.forward,
    )


def _as_maps(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Channels, height and width of the first image.

    Example:
        >>> _as_maps(torch.zeros(2, 197, 8))[0].shape, _as_maps(torch.zeros(2, 7, 7, 96))[0].shape
        (torch.Size([8, 14, 14]), torch.Size([96, 7, 7]))
    """
    notes: tuple[str, ...] = ()
    if tensor.ndim == 5:
        notes = (f"the first of {tensor.shape[2]} frames is drawn",)
        tensor = tensor[:, :, 0]
    if tensor.ndim == 4:
        _, first, second, third = tensor.shape
        last = first == second != third and third > first
        return (tensor[0].permute(2, 0, 1) if last else tensor[0]), notes
    if tensor.ndim == 3:
        for extra in range(_EXTRA_TOKENS):
            count = tensor.shape[1] - extra
            side = math.isqrt(max(count, 0))
            if side > 1 and side * side == count:
                told = "the first token is" if extra == 1 else f"the first {extra} tokens are"
                said = (f"{told} no part of the image and not drawn",) if extra else ()
                return tensor[0, extra:].T.reshape(-1, side, side), said
        return tensor[:1], ("a sequence: positions down, features across",)
    flat = tensor[0].reshape(1, 1, -1) if tensor.ndim == 2 else tensor.reshape(1, 1, -1)
    return flat, ("a vector: features across",)
